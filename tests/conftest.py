"""One thread per test process: pytest-xdist already uses the cores. And a small project, as the
command line makes it."""

import pytest
import torch

from lewm.cli.main import main
from tests.support.project import SIZE, train_command

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_data(tmp_path_factory):
    """An episode file of 16 episodes."""
    path = tmp_path_factory.mktemp("data") / "episodes.h5"
    assert (
        main(["collect", "two-room", "--out", str(path), "--episodes=16", f"--image-size={SIZE}"])
        == 0
    )
    return path


@pytest.fixture(scope="session")
def small_run(small_data, tmp_path_factory):
    """A run that was trained on it without interruption."""
    path = tmp_path_factory.mktemp("run") / "run"
    assert main(train_command(small_data, path)) == 0
    return path
