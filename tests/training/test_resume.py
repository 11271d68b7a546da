"""`kill -9` at any moment, and the same command ends with the very bits of a training that nobody
killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from lewm.cli.main import main
from lewm.files import read_json
from lewm.runs import checkpoints
from tests.support.project import train_command


def weights(run):
    return (checkpoints.latest(run) / "weights.safetensors").read_bytes()


def optimiser(run):
    return (checkpoints.latest(run) / "optimiser.safetensors").read_bytes()


def losses(run):
    """What metrics.jsonl says of each update, but for how long it took."""
    lines = [json.loads(line) for line in (run / checkpoints.METRICS).read_text().splitlines()]
    return [{name: value for name, value in line.items() if "second" not in name} for line in lines]


def assert_same(run, reference):
    assert weights(run) == weights(reference)
    assert optimiser(run) == optimiser(reference)
    assert losses(run) == losses(reference)
    assert (run / checkpoints.MODEL).read_bytes() == (reference / checkpoints.MODEL).read_bytes()
    assert [path.name for path in (run / checkpoints.CHECKPOINTS).iterdir()] == ["00000030"]


def kill_when(words, condition, seconds=120):
    """Start a training as a user does, and kill -9 it, its workers included, as soon as the
    condition holds."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "lewm.cli", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=seconds)
    return process.returncode == -signal.SIGKILL


def lines_in(run):
    log = run / checkpoints.METRICS
    return log.read_text().count("\n") if log.exists() else 0


def test_killed_after_a_checkpoint_and_run_again(small_data, small_run, tmp_path, capsys):
    run = tmp_path / "run"
    words = train_command(small_data, run)
    # Three lines are 15 updates: five past the checkpoint of update 10, so that some of them are
    # done twice.
    assert kill_when(words, lambda: lines_in(run) >= 3)
    assert 10 <= int(checkpoints.latest(run).name) < 30
    assert main(words) == 0
    assert "going on from update" in capsys.readouterr().out
    assert_same(run, small_run)


@pytest.mark.slow
def test_killed_again_and_again_at_any_moment(small_data, small_run, tmp_path):
    run = tmp_path / "run"
    words = train_command(small_data, run)
    generator = random.Random(0)
    moments = [
        lambda: (run / checkpoints.MODEL).exists(),  # between model.json and experiment.json
        lambda: (run / checkpoints.EXPERIMENT).exists(),
        lambda: lines_in(run) >= 1,  # before the first checkpoint
        lambda: any((run / checkpoints.CHECKPOINTS).glob(".*.partial")),  # while one is written
        lambda: checkpoints.latest(run) is not None,
    ]
    for moment in moments:
        kill_when(words, moment)
    for _ in range(3):
        stop = time.monotonic() + 2 + 4 * generator.random()
        kill_when(words, lambda stop=stop: time.monotonic() > stop)
    assert main(words) == 0
    assert_same(run, small_run)


def test_half_a_checkpoint_and_half_a_line_are_no_obstacle(
    small_data, small_run, tmp_path, monkeypatch
):
    """What a kill may leave: a partial folder, a newer checkpoint beside an older one, a metrics
    line cut in two."""

    class Killed(BaseException):
        pass

    run = tmp_path / "run"
    save = checkpoints.save

    def dying(folder, update, *rest):
        if update == 20:
            raise Killed
        return save(folder, update, *rest)

    monkeypatch.setattr(checkpoints, "save", dying)
    with pytest.raises(Killed):
        main(train_command(small_data, run))
    monkeypatch.setattr(checkpoints, "save", save)

    partial = run / checkpoints.CHECKPOINTS / ".00000020.partial"
    partial.mkdir()
    (partial / "weights.safetensors").write_bytes(b"half of it")
    with (run / checkpoints.METRICS).open("a") as log:
        log.write('{"update": 25, "los')
    assert main(train_command(small_data, run)) == 0
    assert_same(run, small_run)


def test_streamed_reading_trains_the_same_weights(small_data, small_run, tmp_path):
    run = tmp_path / "run"
    assert (
        main(train_command(small_data, run, "--training.batches=streamed", "--training.workers=1"))
        == 0
    )
    assert_same(run, small_run)


@pytest.mark.slow
def test_two_devices_train_the_weights_of_one(small_data, tmp_path):
    """They share the batch, and its statistics and gradients are those of the whole: only the order
    of additions differs."""
    found, logged = {}, {}
    for devices in (1, 2):
        run = tmp_path / f"on {devices}"
        flags = [
            f"--training.devices={devices}",
            "--training.accelerator=cpu",
            "--training.updates=6",
            "--model.dropout=0",
        ]
        words = [
            sys.executable,
            "-m",
            "lewm.cli",
            *train_command(small_data, run, *flags, "--training.log-every=1"),
        ]
        subprocess.run(
            words,
            check=True,
            capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=300,
        )
        found[devices] = load_file(checkpoints.latest(run) / "weights.safetensors")
        logged[devices] = losses(run)
    norms = [[line["gradient_norm"] for line in logged[devices]] for devices in (1, 2)]
    assert norms[0][0] == pytest.approx(norms[1][0], rel=1e-4), "the first gradient"
    assert norms[0] == pytest.approx(norms[1], rel=0.02)
    # AdamW makes a full step even of a gradient that is nothing but rounding, such as that of a
    # bias before a batch norm. So weights are compared as a whole, with the way that each of them
    # may have gone.
    trained = [name for name in found[1] if "running" not in name and "tracked" not in name]
    apart = np.concatenate([(found[2][name] - found[1][name]).ravel() for name in trained])
    assert np.sqrt(np.mean(apart**2)) < 0.05 * sum(line["learning_rate"] for line in logged[1])


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--training.learning-rate=0.002", "training.learning_rate was 0.001, now 0.002"),
        ("--model.sigreg-weight=0.2", "model.config.sigreg_weight was 0.1, now 0.2"),
        ("--training.seed=4", "training.seed was 0, now 4"),
    ],
)
def test_other_settings_are_refused_by_name(flag, named, small_data, small_run, capsys):
    before = weights(small_run)
    assert main(train_command(small_data, small_run, flag)) == 2
    said = capsys.readouterr().err
    assert named in said
    assert str(small_run) in said
    assert "another folder" in said
    assert weights(small_run) == before


def test_other_data_are_refused(small_run, tmp_path, capsys):
    other = tmp_path / "other.h5"
    assert (
        main(
            [
                "collect",
                "two-room",
                "--out",
                str(other),
                "--episodes=16",
                "--image-size=32",
                "--seed=9",
            ]
        )
        == 0
    )
    capsys.readouterr()
    assert main(train_command(other, small_run)) == 2
    assert "data.provenance.seed was 0, now 9" in capsys.readouterr().err


def test_precision_is_decided_once_per_run(small_data, tmp_path, monkeypatch):
    """A measurement may come out differently next time; a run that goes on must not change its
    precision half-way."""
    from lewm.training import launch as training

    class Killed(BaseException):
        pass

    def dying(*_):
        raise Killed

    run = tmp_path / "run"
    words = train_command(small_data, run, "--training.precision=auto", "--training.updates=10")
    monkeypatch.setattr(training, "fastest_precision", lambda device: "bf16-mixed")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", dying)
        with pytest.raises(Killed):
            main(words)
    monkeypatch.setattr(training, "fastest_precision", lambda device: "32-true")
    assert main(words) == 0
    assert read_json(run / checkpoints.EXPERIMENT)["precision"] == "bf16-mixed"

    whole = tmp_path / "whole"
    assert (
        main(
            train_command(
                small_data, whole, "--training.precision=bf16-mixed", "--training.updates=10"
            )
        )
        == 0
    )
    exact = tmp_path / "exact"
    assert (
        main(
            train_command(
                small_data, exact, "--training.precision=32-true", "--training.updates=10"
            )
        )
        == 0
    )
    assert weights(run) == weights(whole)
    assert weights(run) != weights(exact), "autocast must reach the loss"


def test_how_it_is_read_and_logged_may_change_on_the_way(small_data, tmp_path):
    run = tmp_path / "run"
    assert main([*train_command(small_data, run), "--training.updates=30"]) == 0
    assert (
        main(
            [
                *train_command(small_data, run),
                "--training.log-every=7",
                "--training.batches=streamed",
            ]
        )
        == 0
    )


def test_two_seeds_may_share_what_they_hold_out(small_data, small_run, tmp_path):
    def split(run):
        return read_json(run / checkpoints.EXPERIMENT)["split"]

    few = ("--training.updates=1", "--training.seed=1")
    assert main(train_command(small_data, tmp_path / "own", *few)) == 0
    assert (
        main(train_command(small_data, tmp_path / "shared", *few, "--training.holdout-seed=0")) == 0
    )
    assert split(tmp_path / "shared") == split(small_run) != split(tmp_path / "own")
    assert weights(tmp_path / "shared") != weights(small_run)
