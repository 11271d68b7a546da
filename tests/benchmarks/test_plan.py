"""The table of planners: the same pairs for all, the paper's search first, and what is measured
kept as it comes."""

import itertools
import json
import re
import shutil

import pytest

from lewm.benchmarks import plan
from lewm.cli.main import main
from lewm.planning.config import PlanningConfig
from lewm.planning.objectives.l2 import L2
from lewm.planning.solvers.amortised import Amortised
from lewm.planning.solvers.cem import CEM
from lewm.stats import pareto_front


@pytest.fixture(scope="module")
def fitted(small_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("fitted") / "run"
    shutil.copytree(small_run, path)
    assert main(["fit", str(path), "--updates=3"]) == 0
    return path


@pytest.fixture
def few(monkeypatch):
    made = (
        plan.Planner(plan.PAPER, PlanningConfig(L2(), CEM(20, 4, 3))),
        plan.Planner("the same again", PlanningConfig(L2(), CEM(20, 4, 3))),
        plan.Planner("amortised", PlanningConfig(L2(), Amortised())),
    )
    monkeypatch.setattr(plan, "planners", lambda: made)
    for name, value in {"TOGETHER": 4, "COMPARED": 4, "TURNS": 1}.items():
        monkeypatch.setattr(plan, name, value)


def test_all_planners_play_the_same_pairs(fitted, few, tmp_path):
    result = plan.run(runs=[fitted], pairs=8, offsets=[10], out=tmp_path)
    rows = {
        row["planner"]: row for row in result["results"][0]["rows"] if row["task"] == "offset 10"
    }
    paper, twin, amortised = rows.values()
    assert paper["planner"] == plan.PAPER
    assert paper["p"] is None
    assert paper["faster"] == 1
    assert (twin["rate"], twin["reached"], twin["calls"]) == (
        paper["rate"],
        paper["reached"],
        paper["calls"],
    ), "same search"
    assert twin["p"] == 1
    assert paper["calls"] == (3 * 20 + 1) * 5
    assert amortised["calls"] == 0
    assert {row["pairs"] for row in rows.values()} == {8}
    assert amortised["faster"] == pytest.approx(paper["ms_batch"] / amortised["ms_batch"])
    assert 0 < paper["reached"] < amortised["reached"], (
        "three updates teach nothing, a search finds the goal's latent"
    )
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["results"][0]["rows"] == json.loads(json.dumps(result["results"][0]["rows"]))
    assert "offset 10" in (tmp_path / "plan-two-room-offset-10.svg").read_text()


def test_what_was_measured_is_kept_when_the_next_planner_fails(fitted, few, tmp_path, monkeypatch):
    played = []

    def evaluate(*args, **kwargs):
        if len(played) == 2:
            raise KeyboardInterrupt
        played.append(1)
        return original(*args, **kwargs)

    original = plan.evaluate
    monkeypatch.setattr(plan, "evaluate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        plan.run(runs=[fitted], pairs=8, offsets=[10], out=tmp_path)
    assert len(json.loads((tmp_path / "plan.json").read_text())["results"][0]["rows"]) == 2


def test_the_command_shows_the_table(fitted, few, capsys):
    assert (
        main(
            [
                "bench",
                "plan",
                "--runs",
                str(fitted),
                "--pairs=8",
                "--offsets=10",
                "--only",
                "amortised",
            ]
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert plan.PAPER in shown
    assert "amortised" in shown
    assert "the same again" not in shown


def test_without_runs_the_published_size_is_timed(few, monkeypatch, capsys):
    monkeypatch.setattr(plan.LeWMConfig, "paper", plan.LeWMConfig.tiny)
    assert main(["bench", "plan"]) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"{re.escape(plan.PAPER)} +[\d.]+ +1x +305", shown)
    assert re.search(r"amortised +[\d.]+ +[\d.]+x +0", shown)


def test_runs_are_for_the_table_of_planners(capsys):
    assert main(["bench", "sigreg", "--runs", "run"]) == 2
    assert "lewm bench plan" in capsys.readouterr().err


def test_a_pareto_front_holds_what_nothing_beats():
    points = [(1, 5), (2, 5), (2, 3), (3, 4), (0.5, 9), (2, 3), (9, 3)]
    assert pareto_front(points) == [4, 0, 2]
    assert pareto_front([]) == []


def test_of_equally_quick_points_the_best_alone_is_on_the_front():
    """In whatever order they come; against the definition, point by point."""
    for points in itertools.permutations([(1, 5), (2, 4), (2, 3), (2, 3.5), (3, 3), (3, 1)]):
        front = [points[i] for i in pareto_front(points)]
        assert front == [(1, 5), (2, 3), (3, 1)]
