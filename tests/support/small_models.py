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

TOKENS: dict[str, Any] = {
    "predictor_width": 32,
    "predictor_depth": 2,
    "predictor_heads": 2,
    "predictor_head_dim": 16,
    "predictor_mlp_dim": 64,
    "dropout": 0.0,
}
"""Of the predictor over tokens."""

MIXED: dict[str, dict[str, Any]] = {
    mixer: {"predictor_mixer": mixer, "predictor_mlp_dim": 128} for mixer in ("mamba", "titans")
}
"""LeWM with a recurrence in its predictor: what is changed of its settings below."""

SMALL: dict[str, dict[str, Any]] = {
    "dreamer": {
        "channels": (8, 16, 16),
        "embedding_dim": 24,
        "deter": 32,
        "hidden": 32,
        "variables": 6,
        "classes": 8,
        "blocks": 2,
    },
    "lewm": TRUNK | {"sigreg_slices": 64},
    "pldm": TRUNK | {"inverse_dim": 32, "inverse_weight": 1.0},
    "byol": TRUNK | {"momentum": 0.9},
    "vjepa": TRUNK | {"momentum": 0.9},
    "dino": TRUNK
    | {"momentum": 0.9, "prototypes": 16, "view_weight": 1.0, "head_dim": 32, "bottleneck_dim": 8},
    "dino-wm": TOKENS
    | {
        "encoder": "random-tiny",
        "resolution": 28,
        "channels": 12,
        "action_dim": 4,
        "predictor_width": 96,
        "predictor_mlp_dim": 256,
    },
    "vjepa2-ac": TOKENS
    | {
        "patch_size": 8,
        "encoder_width": 32,
        "encoder_depth": 2,
        "encoder_heads": 2,
        "ema": 0.8,
        "masked_width": 24,
        "masked_depth": 1,
        "masked_heads": 2,
    },
}
"""For pictures of 32 px; `context` is set by the test."""

OTHER: dict[str, dict[str, Any]] = {
    "dreamer": {
        "channels": (8, 12, 16),
        "embedding_dim": 16,
        "deter": 40,
        "hidden": 24,
        "variables": 5,
        "classes": 7,
        "blocks": 4,
        "unimix": 0.1,
        "reconstruction_weight": 2.0,
        "dynamics_weight": 0.5,
        "representation_weight": 0.2,
        "free_bits": 3.0,
        "imagined": "mode",
    },
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
    "byol": {"momentum": 0.5, "momentum_end": 0.5, "predictor_pace": 3.0},
    "vjepa": {"momentum": 0.5, "momentum_end": 0.5, "predictor_pace": 3.0},
    "dino": {
        "momentum": 0.5,
        "momentum_end": 0.5,
        "predictor_pace": 3.0,
        "prototypes": 12,
        "student_temperature": 0.2,
        "teacher_temperature": 0.02,
        "centre_momentum": 0.5,
        "view_weight": 0.5,
        "head_dim": 16,
        "bottleneck_dim": 6,
        "crops": 2,
    },
    "dino-wm": {
        "encoder": "random",
        "resolution": 42,
        "channels": 0,
        "action_dim": 5,
        "residual": True,
    },
    "vjepa2-ac": {
        "encoder": "random-tiny",
        "pretraining": 0.3,
        "ema": 0.9,
        "mask_share": 0.4,
        "mask_blocks": 1,
        "masked_width": 32,
        "masked_depth": 2,
        "masked_heads": 4,
        "rollout_weight": 0.5,
        "residual": True,
    },
}
"""Of models beside LeWM, which has a table of its own: every field of the config that the parts do
not share -> a value that SMALL does not have."""

GENERATIVE: dict[str, tuple[str, float, int]] = {"dreamer": ("embedding", 5e-3, 80)}
"""Of models that learn to draw a frame before they predict the next, which takes hundreds of
updates and cannot be done with noise: the term that falls at once where states know their frames,
a learning rate and a number of updates."""
