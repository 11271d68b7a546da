"""Every registered model, small: settings for contract tests, and for each setting another value.

A new model adds a line to both tables.
"""

from __future__ import annotations

from typing import Any

TRUNK: dict[str, Any] = {
    "patch_size": 8,
    "encoder_width": 32,
    "encoder_depth": 2,
    "encoder_heads": 2,
    "position": "sincos",
    "overlap": True,
    "predictor_width": 32,
    "predictor_depth": 2,
    "predictor_heads": 2,
    "predictor_head_dim": 16,
    "predictor_mlp_dim": 64,
    "latent_dim": 24,
    "projector_dim": 48,
}
"""Of the parts that LeWM and its nearest rivals share."""

SMALL: dict[str, dict[str, Any]] = {
    "lewm": TRUNK | {"sigreg_slices": 64},
    "pldm": TRUNK | {"inverse_dim": 32, "inverse_weight": 1.0},
    "byol": TRUNK | {"momentum": 0.9},
    "vjepa": TRUNK | {"momentum": 0.9},
    "dino": TRUNK | {"momentum": 0.9, "prototypes": 16, "head_dim": 32, "bottleneck_dim": 8},
}
"""For pictures of 32 px; `context` is set by the test."""

OTHER: dict[str, dict[str, Any]] = {
    "pldm": {
        "variance_weight": 2.0,
        "covariance_weight": 2.0,
        "slowness_weight": 2.0,
        "time_variance_weight": 2.0,
        "time_covariance_weight": 2.0,
        "inverse_weight": 2.0,
        "inverse_dim": 16,
        "open_loop": True,
        "first_frame": True,
        "centred_time": False,
    },
    "byol": {"momentum": 0.5, "momentum_end": 0.5},
    "vjepa": {"momentum": 0.5, "momentum_end": 0.5},
    "dino": {
        "momentum": 0.5,
        "momentum_end": 0.5,
        "prototypes": 12,
        "student_temperature": 0.2,
        "teacher_temperature": 0.02,
        "centre_momentum": 0.5,
        "view_weight": 0.5,
        "head_dim": 16,
        "bottleneck_dim": 6,
        "crops": 2,
    },
}
"""Of models beside LeWM, which has a table of its own: every field of the config that the parts do
not share -> a value that SMALL does not have."""
