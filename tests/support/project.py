"""A small project, as the command line makes it."""

from __future__ import annotations

SIZE = 32


SMALL = [
    f"--image-size={SIZE}",
    "--training.updates=30",
    "--training.batch-size=16",
    "--training.log-every=5",
    "--training.checkpoint-every=10",
    "--training.recalibration=2",
    "--model.encoder-width=32",
    "--model.encoder-depth=1",
    "--model.predictor-depth=1",
    "--model.sigreg-slices=64",
]
"""Flags that make the smallest recipe one of seconds."""


def train_command(data, run, *more):
    """The words of a small `lewm train`."""
    return ["train", "two-room-tiny", "--data", str(data), "--out", str(run), *SMALL, *more]
