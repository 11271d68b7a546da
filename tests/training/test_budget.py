"""A time budget decides a number of updates, once; what comes out is the run of that number, and
says that it had a budget."""

import json

import pytest

from lewm.cli.main import main
from lewm.experiments import pipeline, reproduce
from lewm.experiments.recipes import load
from lewm.report.record import record_of
from lewm.runs import checkpoints
from lewm.training import train
from tests.support.project import train_command


def weights(run):
    return (checkpoints.latest(run) / "weights.safetensors").read_bytes()


def experiment(run):
    return json.loads((run / checkpoints.EXPERIMENT).read_text())


def slow_clock(monkeypatch, seconds_per_update):
    """Time passes in updates alone, so that what is decided depends on no machine."""
    now = 0.0
    step = train.Trainer.step

    def stepping(self, *arguments):
        nonlocal now
        now += seconds_per_update
        return step(self, *arguments)

    monkeypatch.setattr(train.Trainer, "step", stepping)
    monkeypatch.setattr(train.time, "monotonic", lambda: now)


@pytest.fixture
def budgeted(small_data, tmp_path, monkeypatch):
    """A run of one minute in which an update takes two seconds."""
    run = tmp_path / "budgeted"
    with monkeypatch.context() as patch:
        slow_clock(patch, 2.0)
        assert main(train_command(small_data, run, "--training.minutes=1")) == 0
    return run


def test_updates_are_those_that_fit_and_the_schedule_fits_them(budgeted, small_data, tmp_path):
    # 60 s less the spare 4%, less 16 updates that were timed (3 + 3 + 10), leave 25.6 s: 12 updates
    # of 2 s.
    assert experiment(budgeted)["budget"] == {
        "minutes": 1.0,
        "updates": 12,
        "updates_per_second": 0.5,
    }
    assert checkpoints.latest(budgeted).name == "00000012"
    plain = tmp_path / "plain"
    assert main(train_command(small_data, plain, "--training.updates=12")) == 0
    assert weights(budgeted) == weights(plain), "what was trained while it was timed must be undone"
    assert "budget" not in experiment(plain)
    assert "minutes" not in experiment(plain)["training"], (
        "runs that were begun before there were budgets go on"
    )


def test_a_run_that_goes_on_keeps_the_decided_number(
    small_data, budgeted, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "killed"
    words = train_command(small_data, run, "--training.minutes=1")

    class Killed(BaseException):
        pass

    save = checkpoints.save

    def dying(folder, update, *rest):
        if update == 12:
            raise Killed
        return save(folder, update, *rest)

    with monkeypatch.context() as patch:
        slow_clock(patch, 2.0)
        patch.setattr(checkpoints, "save", dying)
        with pytest.raises(Killed):
            main(words)
    assert checkpoints.latest(run).name == "00000010"
    with monkeypatch.context() as patch:
        slow_clock(patch, 0.1)  # a faster machine decides nothing anew
        assert main(words) == 0
    assert "going on from update 10" in capsys.readouterr().out
    assert weights(run) == weights(budgeted)
    assert main(train_command(small_data, run, "--training.minutes=2")) == 2
    assert "training.minutes was 1.0, now 2.0" in capsys.readouterr().err


def test_a_budget_decided_before_the_first_checkpoint_is_kept(small_data, tmp_path, monkeypatch):
    run = tmp_path / "run"
    words = train_command(small_data, run, "--training.minutes=1")

    class Killed(BaseException):
        pass

    def dying(*_):
        raise Killed

    with monkeypatch.context() as patch:
        slow_clock(patch, 2.0)
        patch.setattr(checkpoints, "restore", dying)
        with pytest.raises(Killed):
            main(words)
    assert checkpoints.latest(run) is None
    assert experiment(run)["budget"]["updates"] == 12
    with monkeypatch.context() as patch:
        slow_clock(patch, 0.1)
        assert main(words) == 0
    assert checkpoints.latest(run).name == "00000012"


def test_a_budget_is_kept_for_the_very_experiment_that_it_was_decided_for(tmp_path):
    decided = {"minutes": 1.0, "updates": 12, "updates_per_second": 0.5}
    description = {
        "training": {"batch_size": 4, "minutes": 1.0},
        "model": {"model": "lewm", "config": {"latent_dim": 6}},
        "data": {"episodes": 5, "steps": 50},
        "split": {"train": (0, 1, 2, 3), "heldout": (4,)},
    }
    assert checkpoints.budget(tmp_path, description) is None
    checkpoints.claim(tmp_path, description, {})
    assert checkpoints.budget(tmp_path, description) is None
    checkpoints.claim(tmp_path, description, {"budget": decided})
    assert checkpoints.budget(tmp_path, description) == decided
    for part, told in description.items():
        for name in told:
            other = {**description, part: {**told, name: "another"}}
            assert checkpoints.budget(tmp_path, other) is None, (part, name)


def test_a_budget_that_is_too_short_says_how_long_one_takes(
    small_data, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        slow_clock(patch, 2.0)
        assert main(train_command(small_data, run, "--training.minutes=0.5")) == 2
    said = capsys.readouterr().err
    # 32 s were spent on timing, ten updates take 20 s more: 52 / .96 s.
    assert "10 updates or more fit, got 0.5 minutes" in said
    assert "Give 0.91 minutes or more" in said
    assert checkpoints.latest(run) is None
    with monkeypatch.context() as patch:
        slow_clock(patch, 2.0)
        assert main(train_command(small_data, run, "--training.minutes=0.91")) == 0
    assert checkpoints.latest(run).name == "00000010"


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf"])
def test_no_time_is_no_budget(small_data, tmp_path, minutes, capsys):
    assert main(train_command(small_data, tmp_path / "run", f"--training.minutes={minutes}")) == 2
    assert "minutes must be " in capsys.readouterr().err


def test_every_table_names_the_budget(budgeted, capsys):
    words = "1-minute budget, 12 updates"
    assert record_of(budgeted).label == f"budgeted ({words})"
    assert main(["evaluate", str(budgeted), "--episodes=4", "--solver=cem", "--objective=l2",
    "--candidates=8",
                 "--elites=2", "--iterations=1"]) == 0  # fmt: skip
    assert words in capsys.readouterr().out
    told = {"budget": {"minutes": 1.0, "updates": 12}}
    assert checkpoints.budget_in_words(told) == words
    assert checkpoints.budget_in_words({}) == ""


def test_a_reproduction_hands_its_minutes_to_the_training(tmp_path, monkeypatch):
    class Enough(Exception):
        pass

    asked = []

    def train(experiment, *_):
        asked.append(experiment.training)
        raise Enough

    monkeypatch.setattr(pipeline, "train_model", train)
    for minutes in (2.5, None):
        with pytest.raises(Enough):
            reproduce.reproduce(
                "two-room-tiny", tmp_path / str(minutes), short=True, minutes=minutes
            )
    assert [each.minutes for each in asked] == [2.5, None]
    assert load("two-room-tiny").training.minutes is None
    with pytest.raises(ValueError, match=r"expected minutes 3, got minutes 2\.5"):
        reproduce.reproduce("two-room-tiny", tmp_path / "2.5", short=True, minutes=3)
