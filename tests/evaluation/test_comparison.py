"""Tasks, seeds, agents and runs side by side: nothing is compared that was not played on the same
pairs."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from lewm.cli.commands import evaluate as command
from lewm.cli.main import main
from lewm.evaluation.comparison import (
    COMPARISON_COLUMNS,
    SPREAD_COLUMNS,
    Suite,
    compare,
    evaluate_suite,
    spread,
)
from lewm.evaluation.evaluate import evaluate
from lewm.evaluation.tables import COLUMNS
from lewm.evaluation.tasks import Task, standard_tasks
from lewm.files import read_json, write_json
from lewm.planning.config import PlanningConfig
from lewm.planning.objectives.l2 import L2
from lewm.planning.solvers.cem import CEM
from lewm.runs import checkpoints
from lewm.runs.run import open_run
from lewm.stats import mcnemar
from tests.support.point_world import PointEpisodes, PointModel, PointWorld

EPISODES = PointEpisodes(count=16)
HELD_OUT = tuple(range(16))  # every fourth stands still
CONFIG = PlanningConfig(
    L2(), CEM(num_candidates=64, num_elites=8, num_iterations=4), hold_actions=True
)
AIMLESS = dataclasses.replace(CONFIG, solver=CEM(num_candidates=6, num_elites=2, num_iterations=1))
CRITERIA = ("success", "exact")
TASKS = (Task(episodes=40), Task.along(50, episodes=40))


def play(config=CONFIG, protocols=TASKS, world=None, floors=("do-nothing", "random"), **options):
    world = world or PointWorld(50, criteria=CRITERIA)
    return evaluate_suite(
        PointModel(), config, world, EPISODES, HELD_OUT, protocols, floors=floors, **options
    )


@pytest.fixture(scope="module")
def good():
    return play()


@pytest.fixture(scope="module")
def aimless(good):
    return play(AIMLESS, like=good)


# ---------------------------------------------------------------------------------- tasks and seeds


def test_the_standard_tasks():
    protocols = standard_tasks(episodes=10)
    assert [(p.name, p.budget) for p in protocols] == [
        ("offset 25", 50),
        ("offset 50", 100),
        ("offset 75", 150),
        ("offset 100", 200),
        ("other room", 100),
    ]
    assert protocols[1] == Task.along(50, episodes=10)
    assert protocols[4] == Task.to_other_room(episodes=10)
    assert Task.along() == Task()


def test_a_suite_leaves_out_what_cannot_be_set():
    suite = play(protocols=standard_tasks(episodes=10), world=PointWorld(20, has_regions=False))
    assert [each.protocol.offset for each in suite.evaluations] == [25, 50]
    assert suite["offset 50"].score(strict=True).rate == 1
    assert "more than 75 steps" in suite.omitted["offset 75"]
    assert "no regions" in suite.omitted["other room"]
    assert json.loads(json.dumps(suite.to_json()))["omitted"] == suite.omitted
    left_out = [remark for remark in suite.remarks() if remark.startswith("Not evaluated")]
    expected = [f"Not evaluated: {task}" for task in ("offset 75", "offset 100", "other room")]
    assert [remark.split(", because")[0] for remark in left_out] == expected
    assert suite.rows() == suite["offset 25"].rows() + suite["offset 50"].rows()
    assert all(len(row) == len(COLUMNS) for row in suite.rows())
    assert all(remark in suite.markdown() for remark in suite.remarks())
    assert suite.markdown().count("| agent |") == 2


def test_sparse_recordings_leave_out_offsets_between_their_rows():
    sparse, world = PointEpisodes(every=10, length=13), PointWorld(20)
    protocols = standard_tasks(episodes=5)
    suite = evaluate_suite(
        PointModel(), CONFIG, world, sparse, HELD_OUT[:12], protocols, floors=("do-nothing",)
    )
    assert [each.protocol.name for each in suite.evaluations] == [
        "offset 50",
        "offset 100",
        "other room",
    ]
    assert "multiple of 10" in suite.omitted["offset 25"]
    assert suite["offset 50"].score(strict=True).rate == 1


def test_each_seed_is_played_as_if_it_were_alone_and_told_by_its_number(good):
    told = []
    protocol = Task(episodes=40)
    pool = play(protocols=[protocol], seeds=2, report=lambda progress: told.append(progress.stage))[
        "offset 25"
    ]
    alone = [
        good["offset 25"],
        play(protocols=[dataclasses.replace(protocol, seed=1)])["offset 25"],
    ]
    for part, single in zip(pool.parts, alone, strict=True):
        for policy, steps in single.success_steps.items():
            np.testing.assert_array_equal(part.success_steps[policy], steps)
    successes = sum(single.score(strict=True, criterion="exact").successes for single in alone)
    assert pool.score(strict=True, criterion="exact").successes == successes
    assert pool.score(strict=True).episodes == 80
    assert pool.effort.plans == sum(single.effort.plans for single in alone)
    assert list(dict.fromkeys(row[0] for row in pool.rows())) == [
        "offset 25, seed 0",
        "offset 25, seed 1",
        "offset 25, 2 seeds",
    ]
    record = json.loads(json.dumps(pool.to_json()))
    assert [seed["protocol"]["seed"] for seed in record["seeds"]] == [0, 1]
    assert record["seeds"][1]["pairs"]["start_rows"] == alone[1].pairs.start_rows.tolist()
    tasks = [
        f"seed {seed}, offset 25, {policy}"
        for seed in (0, 1)
        for policy in ("agent", "do-nothing", "random")
    ]
    assert list(dict.fromkeys(told)) == tasks


def test_remarks_say_what_the_agent_is_better_than(good, aimless):
    remarks = good.remarks()
    assert len(remarks) == 4  # two tasks, two criteria
    assert remarks[0].startswith(
        "offset 25: agent, strict 100.0% in every one of 12 episodes; significantly better"
    )
    assert remarks[0].endswith("than do-nothing, random.")
    assert remarks[1].startswith("offset 25, exact: agent")
    few = play(protocols=[Task(episodes=5)], world=PointWorld(20))
    assert "episodes, too few to tell more." in few.remarks()[0]
    walker = play(AIMLESS, protocols=[Task(episodes=40)], floors=("straight-line", "swim"))
    assert "worse than straight-line." in walker.remarks()[0]
    assert walker.remarks()[2] == (
        "offset 25: without swim, because world 'point' has no policy 'swim', only random, "
        "straight-line."
    )


# --------------------------------------------------------------------------------------- two agents


def test_a_better_agent_is_found_better_and_by_how_much(good, aimless):
    found = compare("A", "B", (good, aimless))
    assert [each.task for each in found] == [
        "offset 25",
        "offset 25, exact",
        "offset 50",
        "offset 50, exact",
    ]
    a, b = (suite["offset 25"] for suite in (good, aimless))
    np.testing.assert_array_equal(a.pairs.start_rows, b.pairs.start_rows)
    np.testing.assert_array_equal(a.success_steps["random"], b.success_steps["random"])
    solved = [e.success_steps["agent"][e.pairs.strict] >= 0 for e in (a, b)]
    first = found[0]
    assert (first.first_rate, first.second_rate) == (solved[0].mean(), solved[1].mean())
    assert first.first_rate == 1
    assert first.second_rate < 0.5
    assert first.paired.only_first == (solved[0] & ~solved[1]).sum() > 10
    assert first.paired.only_second == 0
    assert first.paired.p == mcnemar(first.paired.only_first, 0)
    assert 0 < first.paired.low < first.paired.difference < first.paired.high <= 1
    assert first.verdict == "A better"
    assert str(first).startswith(
        f"offset 25: A better (A 100.0%, B {first.second_rate:.1%}, difference +"
    )
    turned = compare("A", "B", (aimless, good))[0]
    assert turned.verdict == "B better"
    assert turned.paired.difference == -first.paired.difference
    assert len(first.row()) == len(COMPARISON_COLUMNS)
    assert (
        json.loads(json.dumps(first.to_json()))["paired"]["only_first"] == first.paired.only_first
    )


def test_another_agent_plays_the_same_pairs_and_takes_the_floors_over(good, monkeypatch):
    monkeypatch.setattr(PointWorld, "policy", None)  # no floor is played again
    monkeypatch.setattr("lewm.evaluation.evaluate.draw_pairs", None)
    first = good["offset 25"]
    options = {"episodes": EPISODES, "held_out": HELD_OUT, "like": first}
    other = evaluate(
        PointModel(), AIMLESS, PointWorld(8, criteria=CRITERIA), protocol=TASKS[0], **options
    )
    assert other.pairs is first.pairs
    assert list(other.success_steps) == list(first.success_steps)
    for criterion in CRITERIA:
        np.testing.assert_array_equal(
            other.steps("random", criterion), first.steps("random", criterion)
        )
        assert (other.steps("agent", criterion) != first.steps("agent", criterion)).any()
    with pytest.raises(ValueError, match="expected an evaluation of"):
        evaluate(
            PointModel(), AIMLESS, PointWorld(8, criteria=CRITERIA), protocol=TASKS[1], **options
        )


def test_between_an_agent_and_itself_there_is_no_difference(good):
    for comparison in compare("A", "B", (good, good)):
        assert comparison.verdict == "no difference shown"
        assert (comparison.paired.low, comparison.paired.high, comparison.paired.p) == (0, 0, 1)


def test_few_episodes_show_nothing(good):
    few = [play(config, [Task(episodes=4)], PointWorld(20)) for config in (CONFIG, AIMLESS)]
    comparison = compare("A", "B", tuple(few))[0]
    assert comparison.verdict == f"{comparison.paired.episodes} episodes cannot tell"


@pytest.mark.parametrize("name", ["start_rows", "goal_rows", "strict"])
def test_what_was_not_played_on_the_same_pairs_is_not_compared(name, good):
    played = good["offset 25"]
    pairs = dataclasses.replace(played.pairs, **{name: np.roll(getattr(played.pairs, name), 1)})
    with pytest.raises(
        ValueError, match="expected A and B to have played the same pairs of 'offset 25'"
    ):
        compare("A", "B", (good, Suite((dataclasses.replace(played, pairs=pairs),), {})))
    other = play(AIMLESS, [Task(episodes=40, seed=1)])
    with pytest.raises(ValueError, match="expected A and B to have played the same pairs"):
        compare("A", "B", (good, other))


def test_pooled_seeds_are_compared_as_they_were_played():
    protocols = [Task(episodes=20), Task(offset=60)]
    first = play(protocols=protocols, seeds=2)
    second = play(AIMLESS, protocols, seeds=2, like=first)
    (comparison, _) = compare("A", "B", (first, second))
    assert comparison.paired.attempts == 40
    assert second.omitted == first.omitted
    for mine, theirs in zip(second["offset 25"].parts, first["offset 25"].parts, strict=True):
        assert mine.pairs is theirs.pairs


# ------------------------------------------------------------------------------------- several runs


def test_runs_are_summed_up_by_their_mean_least_and_most(good, aimless):
    third = Suite(
        (
            evaluate(
                PointModel(),
                CONFIG,
                PointWorld(50, criteria=CRITERIA),
                EPISODES,
                HELD_OUT,
                TASKS[0],
                (),
            ),
        ),
        {},
    )
    found = {(each.task, each.policy): each for each in spread([good, aimless, third])}
    rates = [suite["offset 25"].score(strict=True).rate for suite in (good, aimless, third)]
    agent = found["offset 25", "agent"]
    assert agent.strict == pytest.approx((np.mean(rates), min(rates), max(rates)))
    assert agent.runs == 3
    assert found["offset 25", "random"].runs == found["offset 50", "agent"].runs == 2
    exact = [suite["offset 50"].score(criterion="exact").rate for suite in (good, aimless)]
    assert found["offset 50, exact", "agent"].paper == pytest.approx(
        (np.mean(exact), min(exact), max(exact))
    )
    assert len(agent.row()) == len(SPREAD_COLUMNS)
    assert agent.row()[4] == f"{np.mean(rates):.1%} ({min(rates):.1%} to 100.0%)"


# --------------------------------------------------------------------------------- the command line

QUICK = ["--episodes=8", "--candidates=20", "--elites=4", "--iterations=2"]


@pytest.fixture
def other_run(small_run, tmp_path):
    """A run of the same weights that was trained on all but one of the episodes held out of
    `small_run`, and on few others."""
    shutil.copytree(small_run, tmp_path / "other")
    experiment = read_json(small_run / checkpoints.EXPERIMENT)
    split = {"train": experiment["split"]["heldout"][1:], "heldout": experiment["split"]["train"]}
    write_json(tmp_path / "other" / checkpoints.EXPERIMENT, {**experiment, "split": split})
    return tmp_path / "other"


def test_two_runs_play_episodes_that_neither_was_trained_on(small_run, other_run, tmp_path, capsys):
    assert (
        main(
            ["evaluate", str(small_run), str(other_run), *QUICK, "--json", str(tmp_path / "e.json")]
        )
        == 0
    )
    shown = capsys.readouterr().out
    left = read_json(small_run / checkpoints.EXPERIMENT)["split"]["heldout"][0]
    told = json.loads((tmp_path / "e.json").read_text())
    for label, path, each in zip("AB", (small_run, other_run), told["runs"], strict=True):
        assert f"{label}: {path} on 1 episodes held out of its training" in shown
        assert set(each["tasks"][0]["pairs"]["start_episodes"]) == {left}
    (comparison,) = told["comparisons"]
    assert comparison["paired"]["p"] == 1
    assert comparison["paired"]["difference"] == 0, "the weights are the same"
    assert "offset 25: 1 episodes cannot tell (A " in shown


def test_runs_that_leave_no_episode_to_all_are_refused(small_run, other_run, capsys):
    experiment = read_json(other_run / checkpoints.EXPERIMENT)
    write_json(
        other_run / checkpoints.EXPERIMENT, {**experiment, "split": {"train": list(range(16))}}
    )
    assert main(["evaluate", str(small_run), str(other_run), *QUICK]) == 2
    assert (
        "that none of the runs was trained on, got none. Pass other episodes"
        in capsys.readouterr().err
    )


def test_a_pool_of_runs_each_on_its_own_episodes(small_run, other_run, tmp_path, capsys):
    words = [
        "evaluate",
        str(small_run),
        str(other_run),
        "--pool",
        "--seeds=2",
        "--markdown",
        *QUICK,
    ]
    assert main([*words, "--json", str(tmp_path / "e.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = json.loads((tmp_path / "e.json").read_text())
    rates = [each["tasks"][0]["strict"]["agent"]["rate"] for each in told["runs"]]
    agent = told["pool"][0]
    assert (agent["policy"], agent["runs"]) == ("agent", 2)
    assert agent["strict"] == pytest.approx([np.mean(rates), min(rates), max(rates)])
    assert [len(each["tasks"][0]["seeds"]) for each in told["runs"]] == [2, 2]
    assert sum(line.startswith("| offset 25, 2 seeds | agent |") for line in lines) == 2
    assert sum(line.startswith("| offset 25 | agent | 2 |") for line in lines) == 1


def test_runs_in_different_looks_are_not_pooled(small_run, other_run, tmp_path, capsys):
    data = tmp_path / "blue.h5"
    assert (
        main(
            [
                "collect",
                "two-room",
                "--out",
                str(data),
                "--image-size=32",
                "--episodes=16",
                "--look=agent_color=0000ff",
            ]
        )
        == 0
    )
    experiment = read_json(other_run / checkpoints.EXPERIMENT)
    write_json(other_run / checkpoints.EXPERIMENT, {**experiment, "data_path": str(data)})
    assert main(["evaluate", str(small_run), str(other_run), "--pool", *QUICK]) == 2
    assert (
        "got two-room (agent_color=0000ff), two-room (published). Evaluate"
        in capsys.readouterr().err
    )


def test_how_many_environments_are_stepped_together_suits_the_world(small_run, monkeypatch):
    opened = open_run(small_run)
    assert command._suitable(opened) == command.TOGETHER
    monkeypatch.setattr("lewm.registry.load", lambda kind, name: object)
    assert command._suitable(opened) == command.TOGETHER_LOOPED < command.TOGETHER


@pytest.mark.parametrize("flag", ["--seeds=0", "--together=0"])
def test_counts_below_one_are_refused(flag, small_run, capsys):
    assert main(["evaluate", str(small_run), flag]) == 2
    assert "at least 1 of --seeds and of --together" in capsys.readouterr().err
