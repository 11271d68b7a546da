"""What the data do not show of the action box: said once by `train` and by whoever plans, and an
action that never varies is planned at its recorded value."""

import shutil

import h5py
import numpy as np
import pytest

from lewm.cli.main import main
from lewm.data.episodes import Episodes
from lewm.data.split import statistics
from lewm.files import read_json, write_json
from lewm.runs import checkpoints
from lewm.runs.run import open_run
from tests.support.project import train_command

VALUE = 0.3
"""No sum of halves: a mean of many in float32 would miss it."""


@pytest.fixture(scope="module")
def narrow(small_data, tmp_path_factory):
    """The small file, its first action within half of the box, its second always `VALUE`."""
    path = tmp_path_factory.mktemp("narrow") / "episodes.h5"
    shutil.copy(small_data, path)
    with h5py.File(path, "r+") as file:
        actions = file["action"][:]
        known = np.isfinite(actions).all(axis=1)
        actions[known, 0] *= 0.5
        actions[known, 1] = VALUE
        some = np.flatnonzero(known)[int(0.4 * known.sum())]
        actions[some, 1] = np.nextafter(np.float32(VALUE), np.float32(1))  # rounding, once
        file["action"][:] = actions
    return path


FLAGS = ("--training.updates=4", "--training.log-every=4", "--training.checkpoint-every=4")


@pytest.fixture(scope="module")
def trained(narrow, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run"
    assert main(train_command(narrow, path, *FLAGS)) == 0
    return path


def test_statistics_know_the_range_of_the_training_episodes(narrow, small_data):
    with Episodes.open(narrow) as episodes:
        found = statistics(episodes, range(3, 9))
        actions = np.concatenate([episodes.actions(i) for i in range(3, 9)])
    actions = actions[np.isfinite(actions).all(axis=1)]
    value = float(np.float32(VALUE))
    assert found.action_low == (float(actions[:, 0].min()), value)
    assert found.action_high == (float(actions[:, 0].max()), value)
    assert (found.action_mean[1], found.action_std[1]) == (value, 1.0)  # not one bit beside it
    assert found.fixed_actions == (False, True)
    with Episodes.open(small_data) as episodes:
        assert statistics(episodes, range(3, 9)).fixed_actions == (False, False)


def test_training_says_so_once_and_on_the_data_of_our_worlds_says_nothing(
    narrow, small_data, tmp_path, capsys
):
    assert main(train_command(narrow, tmp_path / "narrow", *FLAGS)) == 0
    said = capsys.readouterr().err
    assert said.count("lewm train: warning: the data show less than the action box") == 1
    assert "action 0 was recorded from -0.5 to 0.5, 50% of what the world takes, -1 to 1" in said
    assert "action 1 is always 0.3 in the data, and is planned so" in said
    assert main(train_command(small_data, tmp_path / "whole", *FLAGS)) == 0
    assert "warning" not in capsys.readouterr().err


def test_whoever_plans_says_so_once_and_plans_the_recorded_value(trained, capsys):
    words = ["evaluate", str(trained), "--episodes=4", "--together=2", "--solver=cem"]
    assert main([*words, "--objective=l2", "--candidates=8", "--elites=2", "--iterations=1"]) == 0
    said = capsys.readouterr().err
    assert said.count("the data show less than the action box") == 1
    opened = open_run(trained, device="cpu")
    with pytest.warns(UserWarning, match="action 1 is always 0.3"):
        agent = opened.agent(
            num_envs=2, solver="cem", objective="l2", candidates=8, elites=2, iterations=2
        )
    frames = opened.episodes.rows("pixels", np.arange(4))
    actions = np.stack([agent.act(frames[:2], frames[2:]) for _ in range(6)])
    assert (actions[..., 1] == np.float32(VALUE)).all()
    assert np.ptp(actions[..., 0]) > 0


def test_a_run_from_before_ranges_were_kept_is_opened_and_continued(trained, narrow, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(trained, old)
    for name in (checkpoints.MODEL, checkpoints.EXPERIMENT):
        told = read_json(old / name)
        kept = (told if name == checkpoints.MODEL else told["model"])["spec"]["statistics"]
        assert kept.pop("action_low")
        assert kept.pop("action_high")
        write_json(old / name, told)
    spec = open_run(old, device="cpu").model.spec
    assert spec.statistics.action_low == ()
    assert spec.statistics.fixed_actions == (False, False)
    assert main(train_command(narrow, old, *FLAGS)) == 0  # nothing to do, and no other experiment
