"""For every setting that can be written, two values that it may have: a test takes the one that a
config does not have yet."""

from __future__ import annotations

MODEL = {
    "patch_size": (4, 8),
    "encoder_width": (32, 16),
    "encoder_depth": (3, 1),
    "encoder_heads": (4, 1),
    "position": ("learned", "sincos"),
    "overlap": (True, False),
    "stem": ("patch", "conv"),
    "latent_dim": (10, 12),
    "projector_dim": (24, 40),
    "projector_norm": (True, False),
    "context": (2, 1),
    "predictor_width": (16, 24),
    "predictor_depth": (1, 4),
    "predictor_heads": (1, 3),
    "predictor_head_dim": (6, 12),
    "predictor_mlp_dim": (20, 28),
    "dropout": (0.3, 0.4),
    "sigreg_weight": (0.3, 0.4),
    "sigreg_slices": (9, 11),
    "sigreg_knots": (9, 11),
    "sigreg_pooled": (True, False),
    "stop_gradient": (True, False),
    "zero_modulation": (True, False),
}

TRAINING = {
    "updates": (3, 5),
    "epochs": (2.5, 3.5),
    "minutes": (0.5, 0.25),
    "batch_size": (4, 8),
    "window": (5, 7),
    "frameskip": (1, 3),
    "learning_rate": (2e-3, 4e-3),
    "warmup": (0.5, 0.75),
    "weight_decay": (0.5, 0.7),
    "clip": (0.2, 0.3),
    "holdout": (0.4, 0.6),
    "holdout_seed": (11, 12),
    "precision": ("bf16-mixed", "32-true"),
    "compile": (True, False),
    "accelerator": ("cpu", "auto"),
    "devices": (2, 1),
    "batches": ("streamed", "resident"),
    "workers": (1, 3),
    "log_every": (2, 4),
    "checkpoint_every": (2, 4),
    "recalibration": (1, 3),
    "seed": (5, 6),
    "tensorboard": (True, False),
}

PLANNING = {
    "solver": ("mppi", "icem"),
    "objective": ("l2", "temporal"),
    "search": ("icem", "cem"),
    "guarded": (True, False),
    "countdown": (33, 34),
    "candidates": (17, 18),
    "elites": (3, 4),
    "iterations": (2, 3),
    "stop_spread": (0.25, 0.5),
    "intermediate": (0.75, 0.5),
    "horizon": (3, 4),
    "receding": (2, 3),
    "hold_actions": (True, False),
    "warm_start": (True, False),
    "precision": ("bfloat16", "float32"),
}
"""Changes to a way to plan, by the names of `PlanningChanges`."""


def other(values, present):
    """The first of the values that is not there yet."""
    return next(value for value in values if value != present)
