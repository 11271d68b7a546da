"""The whole way once, in small; and folders that know what they hold."""

import json

import numpy as np
import pytest

from lewm.benchmarks import planning, sigreg
from lewm.contracts import Progress, WorldSpec
from lewm.evaluation.outcome import Evaluation
from lewm.evaluation.tasks import Pairs, Task
from lewm.experiments import pipeline, quickstart, recipes
from lewm.experiments.book import Book
from lewm.files import write_json
from lewm.models.lewm import LeWMConfig
from lewm.planning.trace import Effort
from lewm.runs.answers import analyses


def test_a_folder_belongs_to_one_seed_and_size(tmp_path):
    Book.open(tmp_path / "quickstart.json", {"recipe": "two-room-tiny", "seed": 0, "short": True})
    with pytest.raises(ValueError, match=r"expected seed 1, got seed 0.*--out"):
        quickstart.run(tmp_path, seed=1, short=True)
    with pytest.raises(ValueError, match="expected short False, got short True"):
        quickstart.run(tmp_path, seed=0)


def test_a_finished_folder_is_left_alone(tmp_path):
    Book.open(tmp_path / "quickstart.json", {"recipe": "two-room-tiny", "seed": 3, "short": False})
    write_json(tmp_path / "result.json", {"seed": 3})
    (tmp_path / "report.html").write_text("page")
    said = []
    assert quickstart.run(tmp_path, seed=3, report=said.append) == {"seed": 3}
    assert said == [Progress("report", 1, 1, "finished before")]
    assert (tmp_path / "report.html").read_text() == "page"


def test_time_is_summed_over_calls_and_survives_an_error(tmp_path):
    claim = {"recipe": "two-room-tiny", "seed": 0, "short": True}
    book = Book.open(tmp_path / "quickstart.json", claim)
    with pytest.raises(KeyboardInterrupt), book.timed("train"):
        raise KeyboardInterrupt
    assert not book.resumed
    content = json.loads((tmp_path / "quickstart.json").read_text())
    assert content["seconds"]["train"] > 0
    write_json(
        tmp_path / "quickstart.json", {**content, "seconds": {"collect": 2.0, "train": 40.0}}
    )
    again = Book.open(tmp_path / "quickstart.json", claim)
    assert again.resumed
    with again.timed("train"):
        pass
    assert again.seconds == {
        "collect": 2.0,
        "train": pytest.approx(40, abs=0.1),
        "total": pytest.approx(42, abs=0.1),
    }


def test_its_analyses_exist_with_the_settings_that_it_gives_them():
    made = analyses(tuple(quickstart.ANALYSES), seed=4, settings=quickstart.ANALYSES)
    assert [analysis.name for analysis in made] == list(quickstart.ANALYSES)
    assert "decoding" not in quickstart.ANALYSES  # it would take longer than the training


def test_the_short_one_is_smaller_and_both_are_seeded():
    full = pipeline.seeded(recipes.load(quickstart.RECIPE), 5)
    short = pipeline.shortened(full, quickstart.SHORT_EPISODES, quickstart.SHORT_UPDATES, 200)
    for experiment in (full, short):
        seeded = {n: of.seed for n, of in vars(experiment).items() if hasattr(of, "seed")}
        assert seeded == {"collection": 5, "training": 5, "fitting": 5}
    assert short.collection.episodes < full.collection.episodes
    assert short.training.updates < full.training.updates
    for experiment, pairs in ((full, quickstart.PAIRS), (short, quickstart.SHORT_PAIRS)):
        heldout = round(experiment.training.holdout * experiment.collection.episodes)
        assert heldout * (100 - 25) >= 2 * pairs  # distinct starts, also for the strict count


def evaluation(outcomes, protocol):
    """Of pairs given as (episode, step of success, in the strict count)."""
    episode, steps, strict = (np.array(column) for column in zip(*outcomes, strict=True))
    n, zeros = len(episode), np.zeros((len(episode), 2), np.float32)
    every = np.ones(n, bool)
    rows = np.arange(n)
    pairs = Pairs(
        rows, episode, episode, rows, rows, zeros, zeros, steps == 0, every, strict.astype(bool)
    )
    played = {
        "agent": steps,
        "random": np.where(rows < n // 2, 3, -1),
        "do-nothing": np.full(n, -1),
        "straight-line": steps,
    }
    return Evaluation(protocol, pairs, played, Effort(), 8, {}, {})


SPEC = WorldSpec(
    "w", "1", 64, (-1.0,), (1.0,), ("x", "y"), ("mm", "mm"), 100, picture_extent=50.0, tolerance=4.0
)


def test_intervals_are_also_those_of_whole_episodes():
    """Two episodes, one always solved and one never: drawn anew, all may be solved or none,
    whatever Wilson says."""
    outcomes = [(7, 3, True)] * 50 + [(9, -1, True)] * 50
    found = pipeline._success(evaluation(outcomes, Task()), np.zeros(100, bool), SPEC)
    for counted in (found["success"], found["strict"]):
        assert (counted["episode_low"], counted["episode_high"]) == (0, 1)
        assert 0.4 < counted["low"] < counted["rate"] < counted["high"] < 0.6
    # Every episode alike: nothing depends on which are drawn. The strict count leaves out what
    # began solved.
    alike = [(e, step, step != 0) for e in range(20) for step in (0, 5, -1, -1)]
    found = pipeline._success(evaluation(alike, Task()), np.zeros(80, bool), SPEC)
    assert (found["success"]["episode_low"], found["success"]["episode_high"]) == (0.5, 0.5)
    assert found["strict"]["episode_low"] == pytest.approx(1 / 3)
    assert found["tolerance"] == {"value": 4.0, "of": 50.0, "unit": "mm"}


def test_distant_goals_are_reported_with_their_floors():
    protocol = Task.to_other_room(episodes=4)
    found = pipeline._other_room(
        evaluation([(0, 9, True), (1, -1, True), (2, -1, True), (3, -1, True)], protocol)
    )
    assert found["agent"]["rate"] == 0.25
    assert found["floors"]["random"]["rate"] == 0.5
    assert set(found["floors"]) == {"random", "do_nothing", "straight_line"}
    assert all(
        0 <= s["low"] <= s["rate"] <= s["high"] <= 1
        for s in (found["agent"], *found["floors"].values())
    )
    assert found["protocol"]["across"]


def test_the_published_number_is_that_of_the_paper_recipe():
    paper = recipes.load("two-room-paper")
    assert quickstart._published() == {
        "recipe": paper.recipe,
        "result": paper.expected,
        "source": paper.source,
    }
    assert "arXiv" in paper.source


def test_benchmarks_measure_what_the_quickstart_does():
    experiment, model = recipes.load(quickstart.RECIPE), LeWMConfig.tiny()
    assert (experiment.training.batch_size, 4, model.latent_dim, model.sigreg_slices) == sigreg.TINY
    assert sigreg.PAPER == (128, 4, 192, 1024)
    first, *smaller = planning.SEARCHES.values()
    assert all(search.solver.evaluations < first.solver.evaluations for search in smaller)


FIRST = ("collect", "read", "train", "encode", "fit amortised", "fit temporal")
"""A map is not fitted."""


@pytest.fixture
def tiny(monkeypatch):
    small = {"SHORT_EPISODES": 20, "SHORT_UPDATES": 4, "SHORT_FIT_UPDATES": 4, "SHORT_PAIRS": 20}
    for name, value in {**small, "PAIRS": 20, "OTHER_ROOM_PAIRS": 10}.items():
        monkeypatch.setattr(quickstart, name, value)


CLOCKS = ("seconds", "seconds_per_plan", "resumed", "command")


def timeless(value):
    """Without the numbers that a clock made, at any depth."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in CLOCKS}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def close(a, b):
    """Equal, but for the numbers that a clock made."""
    return timeless(a) == timeless(b)


@pytest.mark.slow
def test_the_whole_way_and_an_interrupted_one_end_alike(tiny, tmp_path):
    stages = []

    def heard(progress):
        stages.append(progress.stage)

    result = quickstart.run(tmp_path / "whole", seed=1, short=True, report=heard)
    assert list(dict.fromkeys(stages)) == [
        *FIRST,
        "evaluate",
        "floors",
        *quickstart.ANALYSES,
        "report",
    ]
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
    assert {"collect", "train", "fit", "evaluate", "analyse", "report", "total"} == set(
        result["seconds"]
    )
    assert {"lewm", "torch", "python", "numpy"} == set(result["versions"])
    page = (tmp_path / "whole" / "report.html").read_text()
    assert len(page) < 4e6
    assert "This is a short run" in page
    assert result["other_room"] is None
    for counted in (result["success"], result["strict"]):
        assert counted["episode_low"] <= counted["rate"] <= counted["episode_high"]

    def interrupt(progress):
        if (progress.stage, progress.done) == ("train", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quickstart.run(tmp_path / "cut", seed=1, short=True, report=interrupt)
    assert not (tmp_path / "cut" / "result.json").exists()
    continued = quickstart.run(tmp_path / "cut", seed=1, short=True)
    assert continued["resumed"]
    assert close(continued, result)


@pytest.mark.slow
def test_the_full_one_also_goes_to_the_other_room(tiny, monkeypatch, tmp_path):
    small = pipeline.shortened(recipes.load(quickstart.RECIPE), 20, 4, 4)
    monkeypatch.setattr(quickstart, "seeded", lambda _, seed: pipeline.seeded(small, seed))
    stages = []
    result = quickstart.run(tmp_path, report=lambda progress: stages.append(progress.stage))
    order = [
        *FIRST,
        "evaluate",
        "floors",
        "other room",
        "its floors",
        *quickstart.ANALYSES,
        "report",
    ]
    assert list(dict.fromkeys(stages)) == order
    assert (
        result["other_room"]["protocol"] | {"budget": 100, "across": True}
        == result["other_room"]["protocol"]
    )
    for scores in (result["other_room"]["agent"], *result["other_room"]["floors"].values()):
        assert scores["episodes"] == 10
        assert scores["low"] <= scores["rate"] <= scores["high"]
    assert "The agent reaches" in (tmp_path / "report.html").read_text()
