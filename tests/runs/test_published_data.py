"""A data set in the published layout, as it is: no attributes of ours, columns that mean nothing
here, another index name."""

import json

import h5py
import numpy as np
import pytest

from lewm import registry
from lewm.cli.main import main
from lewm.worlds.kit.opening import open_world

EPISODES, LENGTH, SIZE = 12, 45, 32


@pytest.fixture
def published(tmp_path):
    try:
        registry.load("worlds", "push-t")
    except ImportError as missing:
        pytest.skip(str(missing))
    world = open_world("push-t", EPISODES, image_size=SIZE)
    world.reset(range(EPISODES))
    act = world.policy("expert", range(EPISODES))
    pixels, states, actions = [], [], []
    for _ in range(LENGTH):
        pixels.append(world.render())
        states.append(world.states)
        actions.append(act())
        world.step(actions[-1])
    actions[-1] = np.full_like(actions[-1], np.nan)
    rows = EPISODES * LENGTH
    columns = {
        "pixels": np.stack(pixels, 1).reshape(rows, SIZE, SIZE, 3),
        "action": np.stack(actions, 1).reshape(rows, 2).astype(np.float32),
        "state": np.stack(states, 1).reshape(rows, 7),
        "proprio": np.zeros((rows, 4), np.float32),
        "reward": np.zeros(rows, np.float32),
        "terminated": np.zeros(rows, bool),
        "step_idx": np.tile(np.arange(LENGTH), EPISODES),
        "episode_idx": np.repeat(np.arange(EPISODES), LENGTH),
        "ep_len": np.full(EPISODES, LENGTH, np.int32),
        "ep_offset": np.arange(EPISODES, dtype=np.int64) * LENGTH,
    }
    path = tmp_path / "pusht_expert_train.h5"
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file.create_dataset(
                name, data=values, chunks=(1, SIZE, SIZE, 3) if name == "pixels" else None
            )
    return path


def test_it_trains_and_is_evaluated_in_its_world(published, tmp_path, capsys):
    run, result = tmp_path / "run", tmp_path / "result.json"
    small = [
        "--image-size",
        str(SIZE),
        "--training.updates",
        "2",
        "--training.batch-size",
        "4",
        "--training.holdout",
        "0.5",
    ]
    assert (
        main(
            [
                "train",
                "push-t-tiny",
                "--data",
                str(published),
                "--out",
                str(run),
                "--world",
                "push-t",
                *small,
            ]
        )
        == 0
    )
    planning = ["--candidates", "8", "--elites", "2", "--iterations", "1"]
    assert main(["evaluate", str(run), "--episodes", "5", *planning, "--json", str(result)]) == 0, (
        capsys.readouterr().err
    )
    (task,) = json.loads(result.read_text())["tasks"]
    assert task["strict"]["agent"]["episodes"] == 5
    assert task["strict"]["do-nothing"]["rate"] <= 0.4


def test_without_its_world_it_trains_but_evaluation_asks_for_the_world(published, tmp_path, capsys):
    run = tmp_path / "run"
    small = ["--image-size", str(SIZE), "--training.updates", "1", "--training.batch-size", "4"]
    assert main(["train", "push-t-tiny", "--data", str(published), "--out", str(run), *small]) == 0
    assert main(["evaluate", str(run)]) == 2
    assert "--world" in capsys.readouterr().err
