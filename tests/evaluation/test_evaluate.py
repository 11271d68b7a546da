"""Which pairs are drawn, what counts as success, what stands beside it."""

import dataclasses
import json

import numpy as np
import pytest

from lewm.evaluation.evaluate import evaluate
from lewm.evaluation.recordings import record_episodes
from lewm.evaluation.tables import COLUMNS
from lewm.evaluation.tasks import Task, Unavailable, draw_pairs
from lewm.planning.agent import Agent
from lewm.planning.config import PlanningConfig
from lewm.planning.objectives.l2 import L2
from lewm.planning.solvers.cem import CEM
from lewm.stats import bootstrap, paired, wilson
from tests.support.point_world import (
    RADII,
    SPEED,
    TOLERANCE,
    PointEpisodes,
    PointModel,
    PointWorld,
    draw,
)

EPISODES = PointEpisodes()
HELD_OUT = (1, 3, 4, 8, 9, 10)  # 4 and 8 stand still
CONFIG = PlanningConfig(
    L2(), CEM(num_candidates=64, num_elites=8, num_iterations=4), hold_actions=True
)
PROTOCOL = Task(episodes=30)


def pairs_of(protocol=PROTOCOL, num_envs=8, episodes=EPISODES, held_out=HELD_OUT):
    return draw_pairs(episodes, held_out, PointWorld(num_envs), protocol)


def run(protocol=PROTOCOL, num_envs=8, criteria=("success",), **options):
    world = PointWorld(num_envs, criteria=criteria)
    return evaluate(PointModel(), CONFIG, world, EPISODES, HELD_OUT, protocol, **options)


# -------------------------------------------------------------------------------------------- pairs


def test_start_and_goal_are_one_held_out_trajectory_offset_steps_apart():
    pairs = pairs_of()
    assert set(pairs.start_episodes) <= set(HELD_OUT)
    np.testing.assert_array_equal(pairs.start_episodes, pairs.goal_episodes)
    np.testing.assert_array_equal(pairs.goal_rows - pairs.start_rows, 25)
    np.testing.assert_array_equal(pairs.start_rows // 60, pairs.start_episodes)
    np.testing.assert_array_equal(pairs.goal_rows // 60, pairs.goal_episodes)
    np.testing.assert_array_equal(EPISODES.rows("state", pairs.start_rows), pairs.starts)
    np.testing.assert_array_equal(EPISODES.rows("state", pairs.goal_rows), pairs.goals)


def test_every_start_that_has_a_goal_is_drawn_once_and_no_other():
    pairs = pairs_of(Task(episodes=35 * len(HELD_OUT)))
    assert sorted(pairs.start_rows) == sorted(60 * e + t for e in HELD_OUT for t in range(35))


def test_paper_counts_the_first_pairs_and_strict_the_first_that_do_not_begin_solved():
    pairs = pairs_of()
    solved = np.linalg.norm(pairs.starts - pairs.goals, axis=1) < TOLERANCE
    np.testing.assert_array_equal(pairs.solved_at_start, solved)
    assert 5 < solved[:30].sum() < 20  # the two of six that stand still
    assert pairs.paper.sum() == pairs.strict.sum() == 30
    assert pairs.paper[:30].all()
    assert not solved[pairs.strict].any()
    np.testing.assert_array_equal(pairs.strict[:30], ~solved[:30])
    assert (pairs.paper | pairs.strict).all()


def test_pairs_depend_on_the_seed_alone():
    pairs = pairs_of()
    for same in (pairs_of(num_envs=1), pairs_of(num_envs=500)):
        np.testing.assert_array_equal(same.start_rows, pairs.start_rows)
    more = pairs_of(Task(episodes=60))
    np.testing.assert_array_equal(more.start_rows[more.paper][:30], pairs.start_rows[pairs.paper])
    np.testing.assert_array_equal(more.start_rows[more.strict][:30], pairs.start_rows[pairs.strict])
    assert (pairs_of(Task(episodes=30, seed=1)).start_rows[:30] != pairs.start_rows[:30]).any()


def test_the_other_room_is_another_region():
    pairs = pairs_of(Task(episodes=30, across=True))
    rooms = PointWorld(1).regions
    assert (rooms(pairs.starts) != rooms(pairs.goals)).all()
    assert set(rooms(pairs.starts)) == {0, 1}
    assert {*pairs.start_episodes, *pairs.goal_episodes} <= set(HELD_OUT)
    np.testing.assert_array_equal(EPISODES.rows("state", pairs.goal_rows), pairs.goals)


def test_where_the_data_run_out_there_are_fewer_strict_pairs():
    pairs = pairs_of(Task(episodes=70), held_out=(1, 4))
    assert pairs.paper.sum() == 70
    # twice the way back ends where it began
    assert pairs.strict.sum() == (~pairs.solved_at_start).sum() == 35 - 2


def test_strict_pairs_begin_solved_by_no_criterion():
    pairs, one = (
        draw_pairs(EPISODES, HELD_OUT, PointWorld(8, criteria=("exact", "near")), PROTOCOL),
        pairs_of(),
    )
    distance = np.linalg.norm(pairs.starts - pairs.goals, axis=1)
    np.testing.assert_array_equal(pairs.solved_at_start, distance < RADII["exact"])
    between = (distance >= RADII["exact"]) & (distance < RADII["near"])
    assert between[:30].any(), "neither criterion is asked for nothing"
    assert (distance[pairs.strict] >= RADII["near"]).all()
    assert pairs.strict.sum() == 30
    np.testing.assert_array_equal(pairs.start_rows[:30], one.start_rows[:30])


def test_rows_of_sparse_recordings_are_blocks_apart():
    sparse = PointEpisodes(every=5, length=13)
    assert pairs_of(Task(episodes=48), episodes=sparse).paper.sum() == 6 * 8
    pairs = pairs_of(episodes=sparse)
    np.testing.assert_array_equal(pairs.goal_rows - pairs.start_rows, 5)
    np.testing.assert_array_equal(sparse.rows("state", pairs.goal_rows), pairs.goals)
    # 25 steps without turning back
    assert np.abs(pairs.goals - pairs.starts).max() == pytest.approx(25 * 0.02)
    with pytest.raises(
        Unavailable, match=r"of 5, the env steps .* of points.h5 .* got 24\. Take a multiple"
    ):
        pairs_of(Task(offset=24), episodes=sparse)
    with pytest.raises(Unavailable, match="more than 65 steps, got at most 60"):
        pairs_of(Task(offset=65), episodes=sparse)


@pytest.mark.parametrize(
    ("protocol", "options", "message"),
    [
        (Task(offset=60), {}, "of more than 60 steps, got at most 59"),
        (Task(episodes=211), {}, "at least 211 start/goal pairs for 'offset 25', got 210 from 6"),
        (Task(), {"held_out": ()}, "got none. Hold some out"),
        (Task(episodes=10), {"held_out": (4, 8)}, "begin solved"),
        (
            Task(across=True, episodes=10),
            {"held_out": (4, 8)},
            "all held-out frames lie in one region",
        ),
    ],
)
def test_a_task_that_cannot_be_set_says_why(protocol, options, message):
    with pytest.raises(Unavailable, match=message):
        pairs_of(protocol, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"has_states": False}, "'state', got none"),
        ({"image_size": 8}, "4 x 4 px, got 8 x 8"),
        ({"action_dim": 3}, "2 numbers, got 3"),
    ],
)
def test_data_that_do_not_fit_the_world_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        pairs_of(episodes=PointEpisodes(**changes))


@pytest.mark.parametrize("name", ["offset", "budget", "episodes"])
def test_a_protocol_needs_positive_numbers(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        Task(**{name: 0})


# --------------------------------------------------------------------------------------- evaluation


@pytest.fixture(scope="module")
def evaluation():
    return run()


def test_an_exact_model_reaches_every_goal_and_doing_nothing_none(evaluation):
    assert evaluation.score(strict=True).rate == 1
    assert evaluation.score("straight-line", strict=True).rate == 1
    assert evaluation.score("do-nothing", strict=True).rate == 0
    assert evaluation.score("random", strict=True).rate < 0.5


def test_the_papers_protocol_counts_what_begins_solved(evaluation):
    share = evaluation.pairs.solved_at_start[:30].mean()
    assert evaluation.solved_at_start == share > 0.1
    score = evaluation.score("do-nothing")
    assert score.rate == pytest.approx(share)
    assert (score.low, score.high) == wilson(round(30 * share), 30)
    assert score.median_steps is None


def straight_line_steps(pairs, radius):
    distance = np.abs(pairs.goals - pairs.starts)[:, 0]  # walks lead along x
    return np.where(distance < radius, 0, np.floor((distance - radius) / SPEED + 1e-4) + 1)


def test_success_is_the_first_step_within_tolerance():
    walk = run(floors=("straight-line",))
    steps = walk.success_steps["straight-line"]
    expected = straight_line_steps(walk.pairs, TOLERANCE)
    np.testing.assert_array_equal(steps, expected)
    assert walk.score("straight-line").median_steps == np.median(
        expected[walk.pairs.paper & (expected > 0)]
    )


def test_a_success_at_the_last_step_counts_and_one_after_it_does_not(evaluation):
    steps = run(floors=("straight-line",)).success_steps["straight-line"]
    longest = int(steps.max())
    for budget, missed in ((longest, 0), (longest - 1, (steps == longest).sum())):
        shorter = run(Task(episodes=30, budget=budget), floors=("straight-line",))
        assert (shorter.success_steps["straight-line"] == -1).sum() == missed


@pytest.mark.parametrize("num_envs", [1, 100])
def test_batching_changes_nothing(evaluation, num_envs):
    other = run(num_envs=num_envs)
    for policy, steps in evaluation.success_steps.items():
        np.testing.assert_array_equal(other.success_steps[policy], steps)
    assert other.effort.plans == evaluation.effort.plans
    assert other.effort.predictor_calls == evaluation.effort.predictor_calls


def test_the_seed_decides_everything(evaluation):
    again, other = run(), run(Task(episodes=30, seed=1))
    np.testing.assert_array_equal(again.success_steps["random"], evaluation.success_steps["random"])
    np.testing.assert_array_equal(again.success_steps["agent"], evaluation.success_steps["agent"])
    assert (other.success_steps["agent"][:30] != evaluation.success_steps["agent"][:30]).any()


def test_each_attempt_has_a_seed_of_its_own_that_no_batch_changes(monkeypatch):
    def seeds(protocol, num_envs):
        given, searched = [], []
        policy = PointWorld.policy
        with monkeypatch.context() as patch:
            patch.setattr(
                PointWorld,
                "policy",
                lambda self, name, seeds: given.append(seeds) or policy(self, name, seeds),
            )
            patch.setattr(
                "lewm.evaluation.evaluate.Agent",
                lambda *args: searched.append(args[3]) or Agent(*args),
            )
            attempts = len(run(protocol, num_envs, floors=("random",)).pairs)
        assert searched == given
        return [seed for portion in given for seed in portion][:attempts]

    drawn = seeds(PROTOCOL, 8)
    assert len(set(drawn)) == len(drawn) > 30
    assert drawn == seeds(PROTOCOL, 100)
    assert not set(drawn) & set(seeds(Task(episodes=30, seed=1), 8))


def test_solved_attempts_are_not_planned_for(evaluation):
    steps = evaluation.success_steps["agent"]
    replans = np.where(steps == 0, 0, np.where((steps < 0) | (steps > 25), 2, 1))
    assert evaluation.effort.plans == replans.sum()
    assert evaluation.effort.predictor_calls_per_plan == CONFIG.solver.evaluations * CONFIG.horizon


def test_pictures_are_drawn_only_where_they_are_looked_at():
    world = PointWorld(100)
    # nobody can be there by then: budget 7 is looked at in 2 blocks
    protocol = Task(episodes=30, offset=30, budget=7)
    evaluate(PointModel(), CONFIG, world, EPISODES, (1, 3), protocol)
    assert world.rendered == 2


def test_a_missing_floor_is_left_out_with_the_reason():
    found = evaluate(
        PointModel(),
        CONFIG,
        PointWorld(8, policies=("random",)),
        EPISODES,
        HELD_OUT,
        Task(episodes=5),
    )
    assert list(found.success_steps) == ["agent", "do-nothing", "random"]
    assert found.omitted == {
        "straight-line": "world 'point' has no policy 'straight-line', only random."
    }


def test_a_floor_that_fails_is_not_left_out(monkeypatch):
    def broken(self, name, seeds):
        raise ValueError("expected 8 seeds, got 7")

    monkeypatch.setattr(PointWorld, "policy", broken)
    with pytest.raises(ValueError, match="8 seeds, got 7"):
        run()


def test_progress_is_told_and_never_goes_back():
    told = []
    run(report=lambda p: told.append((p.stage, p.done, p.total)), floors=("do-nothing",))
    for policy in ("agent", "do-nothing"):
        done = [step for what, step, _ in told if what == f"offset 25, {policy}"]
        assert done == sorted(set(done))
    assert all(step <= total for _, step, total in told)


# ----------------------------------------------------------------------------------------- criteria

CRITERIA = ("success", "exact", "near")


@pytest.fixture(scope="module")
def three():
    return run(criteria=CRITERIA)


def test_each_criterion_has_a_first_step_of_its_own(three):
    assert three.criteria == CRITERIA
    for criterion in CRITERIA:
        expected = straight_line_steps(three.pairs, RADII[criterion])
        np.testing.assert_array_equal(three.steps("straight-line", criterion), expected)
        assert three.share_solved_at_start(criterion) == (expected[three.pairs.paper] == 0).mean()
    assert three.solved_at_start == three.share_solved_at_start("success")
    assert (
        three.share_solved_at_start("exact")
        <= three.solved_at_start
        < three.share_solved_at_start("near")
    )
    assert three.steps() is three.success_steps["agent"]
    with pytest.raises(ValueError, match="Did you mean 'exact'"):
        three.score(criterion="exac")


def test_an_attempt_goes_on_until_every_criterion_was_met(three, evaluation):
    """The agent does not stop at the benchmark's success, and what it did until then stays as it
    was."""
    agent = three.success_steps["agent"]
    assert three.score(strict=True, criterion="exact").rate > 0.5
    assert (three.steps("agent", "exact") > agent).sum() > 10
    shared = np.isin(three.pairs.start_rows, evaluation.pairs.start_rows)
    again = dict(zip(evaluation.pairs.start_rows, evaluation.success_steps["agent"], strict=True))
    assert [again[row] for row in three.pairs.start_rows[shared]] == agent[shared].tolist()
    assert three.effort.plans > evaluation.effort.plans


def test_with_criteria_too_batching_changes_nothing(three):
    other = run(num_envs=100, criteria=CRITERIA)
    for criterion in CRITERIA:
        for policy in three.success_steps:
            np.testing.assert_array_equal(
                other.steps(policy, criterion), three.steps(policy, criterion)
            )


def test_a_recording_ends_with_the_benchmarks_success(three):
    success, exact = three.success_steps["agent"], three.steps("agent", "exact")
    chosen = np.flatnonzero((success > 0) & (success <= 25) & ((exact > 25) | (exact < 0)))[:2]
    world = PointWorld(2, criteria=CRITERIA)
    recordings = record_episodes(
        PointModel(), CONFIG, world, EPISODES, three.pairs[chosen], PROTOCOL
    )
    assert [r.success_step for r in recordings] == success[chosen].tolist()
    assert [[replan.step for replan in r.replans] for r in recordings] == [[0], [0]]


def test_every_criterion_has_rows_and_numbers_of_its_own(three):
    rows = three.rows()
    assert [row[1] for row in rows[::4]] == ["agent", "agent, exact", "agent, near"]
    assert rows[4][3] == str(three.score(strict=True, criterion="exact"))
    assert rows[4][4] == f"{three.share_solved_at_start('exact'):.1%}"
    record = json.loads(json.dumps(three.to_json()))
    assert record["criterion"] == "success"
    assert list(record["others"]) == ["exact", "near"]
    assert record["others"]["near"]["solved_at_start"] == three.share_solved_at_start("near")
    assert record["pairs"]["others"]["exact"]["agent"] == three.steps("agent", "exact").tolist()


# ----------------------------------------------------------------- floors, and what is written down


def test_the_agent_is_held_against_each_floor_on_the_same_strict_pairs(evaluation):
    strict = evaluation.pairs.strict
    agent, random = (
        evaluation.success_steps[policy][strict] >= 0 for policy in ("agent", "random")
    )
    against = evaluation.against("random")
    assert against == paired(agent, random, evaluation.pairs.start_episodes[strict])
    assert against.better == 0, "four episodes that do not stand still are too few to show anything"
    assert against.p < 1e-4
    assert evaluation.against("straight-line").p == 1
    assert [row[-1] for row in evaluation.rows()] == ["-", "<0.001", "<0.001", "1.000"]
    assert evaluation.to_json()["against"]["random"]["only_first"] == int((agent & ~random).sum())


def test_an_interval_belongs_to_the_attempts_whichever_seed_drew_them(evaluation):
    """A report that reads attempts is told no seed; it must find what the evaluation said."""
    other = dataclasses.replace(evaluation, protocol=dataclasses.replace(PROTOCOL, seed=7))
    assert other.score() == evaluation.score()
    reached = evaluation.steps() >= 0
    score, groups = evaluation.score(), evaluation.pairs.start_episodes[evaluation.pairs.paper]
    expected = bootstrap(np.mean, reached[evaluation.pairs.paper], groups=groups, seed=0)
    assert (score.episode_low, score.episode_high) == pytest.approx(expected)


def test_a_score_has_an_interval_over_episodes_too(evaluation):
    paper = evaluation.pairs.paper
    solved = evaluation.success_steps["random"][paper] >= 0
    expected = bootstrap(np.mean, solved, groups=evaluation.pairs.start_episodes[paper])
    score = evaluation.score("random")
    assert (score.episode_low, score.episode_high) == pytest.approx(expected)


def test_records_become_json_and_rows(evaluation):
    record = json.loads(json.dumps(evaluation.to_json()))
    assert record["task"] == "offset 25"
    assert record["protocol"] == dataclasses.asdict(PROTOCOL)
    assert record["strict"]["agent"]["rate"] == 1
    assert record["strict"]["agent"]["episodes"] == 30
    assert record["paper"]["do-nothing"]["rate"] == pytest.approx(record["solved_at_start"])
    assert record["pairs"]["success_steps"]["agent"] == evaluation.success_steps["agent"].tolist()
    assert record["pairs"]["start_rows"] == evaluation.pairs.start_rows.tolist()
    assert record["planning"]["predictor_calls_per_plan"] == 257 * 5
    table, *remarks = evaluation.markdown().split("\n\n")
    assert remarks == evaluation.remarks()
    lines = table.splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert [line.split("|")[2].strip() for line in lines[2:]] == [
        "agent",
        "do-nothing",
        "random",
        "straight-line",
    ]
    assert "100.0% [88.6%, 100.0%] of 30" in lines[2]
    assert [
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in (lines[0], *lines[2:])
    ] == [
        COLUMNS,
        *evaluation.rows(),
    ]


# --------------------------------------------------------------------------------------- recordings


def test_a_recording_is_the_attempt_that_was_scored(evaluation):
    chosen = np.flatnonzero(evaluation.success_steps["agent"] != 0)[[2, 5, 7]]
    pairs = evaluation.pairs[chosen]
    recordings = record_episodes(PointModel(), CONFIG, PointWorld(2), EPISODES, pairs, PROTOCOL)
    assert [r.success_step for r in recordings] == evaluation.success_steps["agent"][
        chosen
    ].tolist()
    for i, recording in enumerate(recordings):
        steps = recording.success_step
        assert recording.pixels.shape == (steps + 1, 4, 4, 3)
        assert recording.states.shape == (steps + 1, 2)
        assert recording.actions.shape == (steps, 2)
        np.testing.assert_array_equal(recording.states[0], pairs.starts[i])
        np.testing.assert_allclose(
            np.diff(recording.states, axis=0), SPEED * recording.actions, atol=1e-6
        )
        np.testing.assert_array_equal(recording.pixels, draw(recording.states))
        np.testing.assert_array_equal(recording.goal_pixels, draw(pairs.goals[i : i + 1])[0])
        np.testing.assert_array_equal(recording.goal_state, pairs.goals[i])
        assert [replan.step for replan in recording.replans] == list(range(0, steps, 25))
        assert recording.replans[0].rounds[0].ends.shape == (1, 32, 2)
        np.testing.assert_allclose(recording.replans[0].goal[0], pairs.goals[i], atol=1e-4)


def test_a_recording_that_begins_solved_has_one_frame(evaluation):
    pairs = evaluation.pairs[np.flatnonzero(evaluation.pairs.solved_at_start)[:1]]
    (recording,) = record_episodes(PointModel(), CONFIG, PointWorld(2), EPISODES, pairs, PROTOCOL)
    assert len(recording.pixels) == len(recording.states) == 1
    assert recording.actions.shape == (0, 2)
    assert (recording.success_step, recording.replans) == (0, ())
