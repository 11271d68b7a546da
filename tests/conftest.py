"""One thread per test process: pytest-xdist already uses the cores. And a small project, as the command line makes it."""

import pytest
import torch

from lewm.cli import main

torch.set_num_threads(1)

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


@pytest.fixture(scope="session")
def small_data(tmp_path_factory):
    """An episode file of 16 episodes."""
    path = tmp_path_factory.mktemp("data") / "episodes.h5"
    assert main(["collect", "two-room", "--out", str(path), "--episodes=16", f"--image-size={SIZE}"]) == 0
    return path


@pytest.fixture(scope="session")
def small_run(small_data, tmp_path_factory):
    """A run that was trained on it without interruption."""
    path = tmp_path_factory.mktemp("run") / "run"
    assert main(train_command(small_data, path)) == 0
    return path


def train_command(data, run, *more):
    """The words of a small `lewm train`."""
    return ["train", "two-room-tiny", "--data", str(data), "--out", str(run), *SMALL, *more]
