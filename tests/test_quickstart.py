"""The whole way once, in small; and folders that know what they hold."""

import json

import numpy as np
import pytest

from lewm import checkpoints, quickstart


def test_a_folder_belongs_to_one_seed_and_size(tmp_path):
    quickstart._Book.open(tmp_path, {"recipe": "two-room-tiny", "seed": 0, "short": True})
    with pytest.raises(ValueError, match=r"expected seed 1, got seed 0.*--out"):
        quickstart.run(tmp_path, seed=1, short=True)
    with pytest.raises(ValueError, match="expected short False, got short True"):
        quickstart.run(tmp_path, seed=0)


def test_a_finished_folder_is_left_alone(tmp_path):
    quickstart._Book.open(tmp_path, {"recipe": "two-room-tiny", "seed": 3, "short": False})
    checkpoints.write_json(tmp_path / "result.json", {"seed": 3})
    (tmp_path / "report.html").write_text("page")
    said = []
    assert quickstart.run(tmp_path, seed=3, report=lambda *words: said.append(words)) == {"seed": 3}
    assert said == [("report", 1, 1, "finished before", "")]
    assert (tmp_path / "report.html").read_text() == "page"


def test_time_is_summed_over_calls_and_survives_an_error(tmp_path):
    claim = {"recipe": "two-room-tiny", "seed": 0, "short": True}
    book = quickstart._Book.open(tmp_path, claim)
    with pytest.raises(KeyboardInterrupt), book.timed("train"):
        raise KeyboardInterrupt
    assert not book.resumed
    content = json.loads((tmp_path / "quickstart.json").read_text())
    assert content["seconds"]["train"] > 0
    checkpoints.write_json(tmp_path / "quickstart.json", {**content, "seconds": {"collect": 2.0, "train": 40.0}})
    again = quickstart._Book.open(tmp_path, claim)
    assert again.resumed
    with again.timed("train"):
        pass
    assert again.seconds == {"collect": 2.0, "train": pytest.approx(40, abs=0.1), "total": pytest.approx(42, abs=0.1)}


def test_clips_are_chosen_by_rule():
    steps = np.array([0, 5, -1, 6, 7, 8, 9, -1, 10, 11, 12])
    door = np.array([1, 1, 0, 1, 0, 1, 1, 0, 0, 0, 0], bool)  # the first begins solved: nothing to see
    assert quickstart._worth_seeing(steps, door).tolist() == [1, 3, 5, 4, 8, 2]
    assert quickstart._worth_seeing(np.abs(steps), door).tolist() == [1, 3, 5, 2, 4, 7]  # no miss: all others succeed
    assert quickstart._worth_seeing(np.full(9, -1), np.zeros(9, bool)).tolist() == [0, 1, 2, 3, 4, 5]
    assert quickstart._worth_seeing(np.array([3, -1]), np.zeros(2, bool)).tolist() == [0, 1]


def test_the_short_one_is_smaller_and_both_are_seeded():
    full, short = quickstart._experiment(5, False), quickstart._experiment(5, True)
    for experiment in (full, short):
        assert experiment.collection.seed == experiment.training.seed == 5
    assert short.collection.episodes < full.collection.episodes
    assert short.training.updates < full.training.updates
    for experiment, pairs in ((full, quickstart.PAIRS), (short, quickstart.SHORT_PAIRS)):
        heldout = round(experiment.training.holdout * experiment.collection.episodes)
        assert heldout * (100 - 25) >= 2 * pairs  # distinct starts, also for the strict count


@pytest.fixture
def tiny(monkeypatch):
    for name, value in {"SHORT_EPISODES": 20, "SHORT_UPDATES": 4, "SHORT_PAIRS": 20, "ENVIRONMENTS": 32, "CLIPS": 2}.items():
        monkeypatch.setattr(quickstart, name, value)


def close(a, b):
    """Equal, but for the numbers that a clock made."""
    clocks = ("seconds", "seconds_per_plan", "resumed", "command")
    return {k: v for k, v in a.items() if k not in clocks} == {k: v for k, v in b.items() if k not in clocks}


@pytest.mark.slow
def test_the_whole_way_and_an_interrupted_one_end_alike(tiny, tmp_path):
    stages = []
    result = quickstart.run(tmp_path / "whole", seed=1, short=True, report=lambda stage, *_: stages.append(stage))
    assert list(dict.fromkeys(stages)) == ["collect", "train", "evaluate", "floors", "probe", "report"]
    assert result == json.loads((tmp_path / "whole" / "result.json").read_text())
    for of in (
        result["success"],
        result["strict"],
        *result["floors"].values(),
        *(f["strict"] for f in result["floors"].values()),
    ):
        assert of["low"] <= of["rate"] <= of["high"]
        assert of["episodes"] == 20
    assert set(result["floors"]) == {"random", "do_nothing", "straight_line"}
    assert set(result["probe_r"]) == {"x", "y"}
    assert {"collect", "train", "evaluate", "probe", "report", "total"} == set(result["seconds"])
    assert {"lewm", "torch", "python", "numpy"} == set(result["versions"])
    page = (tmp_path / "whole" / "report.html").read_text()
    assert len(page) < 4e6
    assert "This is a short run" in page

    def interrupt(stage, done, *_):
        if (stage, done) == ("train", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quickstart.run(tmp_path / "cut", seed=1, short=True, report=interrupt)
    assert not (tmp_path / "cut" / "result.json").exists()
    continued = quickstart.run(tmp_path / "cut", seed=1, short=True)
    assert continued["resumed"]
    assert close(continued, result)
