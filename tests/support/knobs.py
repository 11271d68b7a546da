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
    "zero_modulation": (True, False),
    "predictor_mixer": ("titans", "attention"),
    "sigreg_weight": (0.3, 0.4),
    "sigreg_slices": (9, 11),
    "sigreg_knots": (9, 11),
    "sigreg_pooled": (True, False),
    "stop_gradient": (True, False),
    "sigreg_subspaces": (2, 3),
    "inverse_weight": (0.3, 0.4),
    "inverse_gap": (2, 3),
    "inverse_dim": (12, 20),
    "multistep_weight": (0.3, 0.4),
    "reconstruction_weight": (0.3, 0.4),
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
    "nodes": (2, 1),
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
    "limit": (15.0, 25.0),
    "pace": (0.25, 0.75),
    "stop_spread": (0.25, 0.5),
    "judged_by": ("picture", "posterior"),
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


FITTING = {
    "updates": 5,
    "batch_size": 7,
    "learning_rate": 3e-3,
    "warmup": 0.6,
    "weight_decay": 0.9,
    "clip": 0.01,
    "reach": 30,
    "max_frames": 40,
    "seed": 4,
}

SOLVERS = {
    "num_candidates": 20,
    "num_elites": 7,
    "num_iterations": 5,
    "stop_spread": 0.95,
    "noise_exponent": 0.0,
    "keep_fraction": 0.0,
    "momentum": 0.7,
    "decay": 1.3,
    "temperature": 9.0,
    "learning_rate": 0.01,
    "optimiser": "sgd",
    "shrink": 0.3,
}

HEADS = {
    "hidden_dim": 24,
    "horizon": 3,
    "metric_dim": 5,
    "oneway_dim": 9,
    "expectile": 0.6,
    "apart": 0.5,
    "places": 20,
}

TASK = {"offset": 15, "budget": 20, "episodes": 9, "seed": 6, "across": True, "anywhere": True}

COLLECTION = {
    "episodes": 3,
    "policy": "random",
    "seed": 5,
    "compression": "zstd",
    "every": 5,
    "max_steps": 20,
}

ANALYSES = {
    "probing": {
        "fit_frames": 90,
        "test_frames": 50,
        "mlp": True,
        "controls": True,
        "rollouts": 6,
        "horizon": 3,
        "draws": 60,
        "seed": 3,
    },
    "surprise": {
        "episodes": 21,
        "before": 3,
        "after": 3,
        "turn": 0.25,
        "draws": 60,
        "seed": 3,
    },
    "geometry": {
        "episodes": 10,
        "sample": 9,
        "slices": 12,
        "gaussians": 25,
        "offsets": (5, 20),
        "pairs": 7,
        "horizon": 3,
        "rollouts": 3,
        "draws": 60,
        "seed": 3,
        "controls": True,
    },
    "decoding": {
        "frames": 90,
        "updates": 7,
        "batch_size": 20,
        "learning_rate": 0.02,
        "test_frames": 30,
        "horizon": 3,
        "windows": 12,
        "pictures": 3,
        "clips": 2,
        "draws": 60,
        "seed": 3,
    },
    "planning": {
        "pairs": 8,
        "offset": 15,
        "clips": 3,
        "fit_frames": 90,
        "draws": 60,
        "seed": 3,
    },
    "economy": {"plans": 3, "paper_plans": 2, "limit_s": 0.5, "seed": 3},
}
"""Analysis -> field -> another value than those of `ANALYSED`."""

ANALYSED = {
    "probing": {
        "fit_frames": 120,
        "test_frames": 60,
        "mlp": False,
        "controls": False,
        "rollouts": 8,
        "horizon": 2,
        "draws": 50,
    },
    "surprise": {"episodes": 24, "before": 2, "after": 2, "draws": 50},
    "geometry": {
        "episodes": 12,
        "sample": 11,
        "slices": 8,
        "gaussians": 20,
        "offsets": (5, 10),
        "pairs": 5,
        "horizon": 2,
        "rollouts": 2,
        "draws": 50,
        "controls": False,
    },
    "decoding": {
        "frames": 100,
        "updates": 4,
        "batch_size": 16,
        "test_frames": 40,
        "horizon": 2,
        "windows": 10,
        "pictures": 2,
        "clips": 1,
        "draws": 50,
    },
    "planning": {"pairs": 6, "offset": 10, "clips": 2, "fit_frames": 120, "draws": 50},
    "economy": {"plans": 2, "paper_plans": 1},
}
"""Small settings, in which every analysis takes a moment."""
