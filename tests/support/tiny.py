"""The smallest project there can be: a file of a few pictures, and a model that trains on it in a
moment."""

from __future__ import annotations

import numpy as np

from lewm.contracts import DataSpec, Statistics
from lewm.data.episodes import Episode, Provenance
from lewm.data.writing import EpisodeWriter
from lewm.models.lewm import LeWMConfig
from lewm.training.config import TrainingConfig

SIZE, LENGTH = 8, 14

MODEL = LeWMConfig(
    patch_size=4,
    encoder_width=8,
    encoder_depth=1,
    encoder_heads=2,
    latent_dim=6,
    projector_dim=12,
    context=2,
    predictor_width=8,
    predictor_depth=2,
    predictor_heads=2,
    predictor_head_dim=4,
    predictor_mlp_dim=32,  # a recurrence takes some of it
    dropout=0.2,
    sigreg_slices=8,
    sigreg_knots=7,
)

TRAINING = TrainingConfig(
    updates=8,
    batch_size=6,
    window=3,
    frameskip=2,
    learning_rate=3e-3,
    warmup=0.25,
    weight_decay=0.1,
    clip=4.0,
    holdout=0.3,
    precision="32-true",
    accelerator="cpu",
    log_every=1,
    checkpoint_every=100,
    recalibration=2,
    seed=1,
)

SPEC = DataSpec(SIZE, 2, Statistics((0.5,) * 3, (0.2,) * 3, (0.0, 0.0), (1.0, 1.0)))
"""Of data like these."""


def episode(i, length=LENGTH, size=SIZE):
    """Noise, actions and states that no two episodes share."""
    generator = np.random.default_rng((9, i))
    actions = generator.normal(size=(length, 2)).astype(np.float32)
    actions[-1] = np.nan
    return Episode(
        pixels=generator.integers(256, size=(length, size, size, 3), dtype=np.uint8),
        actions=actions,
        states=generator.normal(size=(length, 2)).astype(np.float32),
    )


def write(path, count=8, poison=(), length=LENGTH, size=SIZE, **provenance):
    """`count` episodes; of the `poison`ed ones pixels, actions and states are of another kind."""
    about = Provenance(state_names=("x", "y"), state_units=("", ""), **provenance)
    with EpisodeWriter(path, about) as writer:
        for i in range(count):
            made = episode(i, length, size)
            if i in poison:
                made = Episode(255 - made.pixels // 3, 40 + 9 * made.actions, 100 - 7 * made.states)
            writer.append(made)
    return path
