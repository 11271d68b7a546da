"""Which pairs are drawn, what counts as success, what stands beside it."""

import dataclasses
import json

import numpy as np
import pytest
from point_world import SPEED, TOLERANCE, PointEpisodes, PointModel, PointWorld, draw

from lewm.evaluation import COLUMNS, evaluate, evaluate_suite, record_episodes
from lewm.objectives.l2 import L2
from lewm.planning import PlanningConfig
from lewm.solvers.cem import CEM
from lewm.stats import wilson
from lewm.tasks import Protocol, Unavailable, draw_pairs, standard_protocols

EPISODES = PointEpisodes()
HELD_OUT = (1, 3, 4, 8, 9, 10)  # 4 and 8 stand still
CONFIG = PlanningConfig(L2(), CEM(num_candidates=64, num_elites=8, num_iterations=4), hold_actions=True)
PROTOCOL = Protocol(episodes=30)


def pairs_of(protocol=PROTOCOL, num_envs=8, episodes=EPISODES, held_out=HELD_OUT):
    return draw_pairs(episodes, held_out, PointWorld(num_envs), protocol)


def run(protocol=PROTOCOL, num_envs=8, **options):
    return evaluate(PointModel(), CONFIG, PointWorld(num_envs), EPISODES, HELD_OUT, protocol, **options)


# ------------------------------------------------------------------------------------------------------------- pairs


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
    pairs = pairs_of(Protocol(episodes=35 * len(HELD_OUT)))
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
    more = pairs_of(Protocol(episodes=60))
    np.testing.assert_array_equal(more.start_rows[more.paper][:30], pairs.start_rows[pairs.paper])
    np.testing.assert_array_equal(more.start_rows[more.strict][:30], pairs.start_rows[pairs.strict])
    assert (pairs_of(Protocol(episodes=30, seed=1)).start_rows[:30] != pairs.start_rows[:30]).any()


def test_the_other_room_is_another_region():
    pairs = pairs_of(Protocol(episodes=30, across=True))
    rooms = PointWorld(1).regions
    assert (rooms(pairs.starts) != rooms(pairs.goals)).all()
    assert set(rooms(pairs.starts)) == {0, 1}
    assert {*pairs.start_episodes, *pairs.goal_episodes} <= set(HELD_OUT)
    np.testing.assert_array_equal(EPISODES.rows("state", pairs.goal_rows), pairs.goals)


def test_where_the_data_run_out_there_are_fewer_strict_pairs():
    pairs = pairs_of(Protocol(episodes=70), held_out=(1, 4))
    assert pairs.paper.sum() == 70
    assert pairs.strict.sum() == (~pairs.solved_at_start).sum() == 35 - 2  # twice the way back ends where it began


@pytest.mark.parametrize(
    ("protocol", "options", "message"),
    [
        (Protocol(offset=60), {}, "of more than 60 steps, got at most 59"),
        (Protocol(episodes=211), {}, "at least 211 start/goal pairs for 'offset 25', got 210 from 6"),
        (Protocol(), {"held_out": ()}, "got none. Hold some out"),
        (Protocol(episodes=10), {"held_out": (4, 8)}, "begin solved"),
        (Protocol(across=True, episodes=10), {"held_out": (4, 8)}, "all held-out frames lie in one region"),
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
        Protocol(**{name: 0})


# -------------------------------------------------------------------------------------------------------- evaluation


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


def test_success_is_the_first_step_within_tolerance():
    walk = run(floors=("straight-line",))
    steps = walk.success_steps["straight-line"]
    distance = np.abs(walk.pairs.goals - walk.pairs.starts)[:, 0]  # walks lead along x
    expected = np.where(walk.pairs.solved_at_start, 0, np.floor((distance - TOLERANCE) / SPEED + 1e-4) + 1)
    np.testing.assert_array_equal(steps, expected)
    assert walk.score("straight-line").median_steps == np.median(expected[walk.pairs.paper & (expected > 0)])


def test_a_success_at_the_last_step_counts_and_one_after_it_does_not(evaluation):
    steps = run(floors=("straight-line",)).success_steps["straight-line"]
    longest = int(steps.max())
    for budget, missed in ((longest, 0), (longest - 1, (steps == longest).sum())):
        shorter = run(Protocol(episodes=30, budget=budget), floors=("straight-line",))
        assert (shorter.success_steps["straight-line"] == -1).sum() == missed


@pytest.mark.parametrize("num_envs", [1, 100])
def test_batching_changes_nothing(evaluation, num_envs):
    other = run(num_envs=num_envs)
    for policy, steps in evaluation.success_steps.items():
        np.testing.assert_array_equal(other.success_steps[policy], steps)
    assert other.effort.plans == evaluation.effort.plans
    assert other.effort.predictor_calls == evaluation.effort.predictor_calls


def test_the_seed_decides_everything(evaluation):
    again, other = run(), run(Protocol(episodes=30, seed=1))
    np.testing.assert_array_equal(again.success_steps["random"], evaluation.success_steps["random"])
    np.testing.assert_array_equal(again.success_steps["agent"], evaluation.success_steps["agent"])
    assert (other.success_steps["agent"][:30] != evaluation.success_steps["agent"][:30]).any()


def test_each_attempt_has_a_seed_of_its_own_that_no_batch_changes(monkeypatch):
    def seeds(protocol, num_envs):
        given = []
        policy = PointWorld.policy
        with monkeypatch.context() as patch:
            patch.setattr(PointWorld, "policy", lambda self, name, seeds: given.append(seeds) or policy(self, name, seeds))
            attempts = len(run(protocol, num_envs, floors=("random",)).pairs)
        return [seed for portion in given for seed in portion][:attempts]

    drawn = seeds(PROTOCOL, 8)
    assert len(set(drawn)) == len(drawn) > 30
    assert drawn == seeds(PROTOCOL, 100)
    assert not set(drawn) & set(seeds(Protocol(episodes=30, seed=1), 8))


def test_solved_attempts_are_not_planned_for(evaluation):
    steps = evaluation.success_steps["agent"]
    replans = np.where(steps == 0, 0, np.where((steps < 0) | (steps > 25), 2, 1))
    assert evaluation.effort.plans == replans.sum()
    assert evaluation.effort.predictor_calls_per_plan == CONFIG.solver.evaluations * CONFIG.horizon


def test_pictures_are_drawn_only_where_they_are_looked_at():
    world = PointWorld(100)
    protocol = Protocol(episodes=30, offset=30, budget=7)  # nobody can be there by then: budget 7 is looked at in 2 blocks
    evaluate(PointModel(), CONFIG, world, EPISODES, (1, 3), protocol)
    assert world.rendered == 2


def test_a_missing_floor_is_left_out_with_the_reason():
    found = evaluate(PointModel(), CONFIG, PointWorld(8, policies=("random",)), EPISODES, HELD_OUT, Protocol(episodes=5))
    assert list(found.success_steps) == ["agent", "do-nothing", "random"]
    assert found.omitted == {"straight-line": "world 'point' has no policy 'straight-line', only random."}


def test_a_floor_that_fails_is_not_left_out(monkeypatch):
    def broken(self, name, seeds):
        raise ValueError("expected 8 seeds, got 7")

    monkeypatch.setattr(PointWorld, "policy", broken)
    with pytest.raises(ValueError, match="8 seeds, got 7"):
        run()


def test_progress_is_told_and_never_goes_back():
    told = []
    run(progress=lambda what, done, total: told.append((what, done, total)), floors=("do-nothing",))
    for policy in ("agent", "do-nothing"):
        done = [step for what, step, _ in told if what == f"offset 25, {policy}"]
        assert done == sorted(set(done))
    assert all(step <= total for _, step, total in told)


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
    lines = evaluation.markdown().splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["agent", "do-nothing", "random", "straight-line"]
    assert "100.0% [88.6%, 100.0%] of 30" in lines[2]
    assert [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in (lines[0], *lines[2:])] == [
        COLUMNS,
        *evaluation.rows(),
    ]


def test_a_suite_leaves_out_what_cannot_be_set():
    protocols = standard_protocols(episodes=10)
    assert [(p.name, p.budget) for p in protocols] == [
        ("offset 25", 50),
        ("offset 50", 100),
        ("offset 75", 150),
        ("other room", 100),
    ]
    assert protocols[1] == Protocol.along(50, episodes=10)
    assert protocols[3] == Protocol.to_other_room(episodes=10)
    assert Protocol.along() == Protocol()
    world = PointWorld(20, has_regions=False)
    suite = evaluate_suite(PointModel(), CONFIG, world, EPISODES, HELD_OUT, protocols, floors=("do-nothing",))
    assert [each.protocol.offset for each in suite.evaluations] == [25, 50]
    assert suite["offset 50"].score(strict=True).rate == 1
    assert "more than 75 steps" in suite.omitted["offset 75"]
    assert "no regions" in suite.omitted["other room"]
    assert json.loads(json.dumps(suite.to_json()))["omitted"] == suite.omitted
    assert [remark.split(", because")[0] for remark in suite.remarks()] == [
        "Not evaluated: offset 75",
        "Not evaluated: other room",
    ]
    assert suite.rows() == suite["offset 25"].rows() + suite["offset 50"].rows()
    assert all(remark in suite.markdown() for remark in suite.remarks())
    assert suite.markdown().count("| agent |") == 2


# --------------------------------------------------------------------------------------------------------- recordings


def test_a_recording_is_the_attempt_that_was_scored(evaluation):
    chosen = np.flatnonzero(evaluation.success_steps["agent"] != 0)[[2, 5, 7]]
    pairs = evaluation.pairs[chosen]
    recordings = record_episodes(PointModel(), CONFIG, PointWorld(2), EPISODES, pairs, PROTOCOL)
    assert [r.success_step for r in recordings] == evaluation.success_steps["agent"][chosen].tolist()
    for i, recording in enumerate(recordings):
        steps = recording.success_step
        assert recording.pixels.shape == (steps + 1, 4, 4, 3)
        assert recording.states.shape == (steps + 1, 2)
        assert recording.actions.shape == (steps, 2)
        np.testing.assert_array_equal(recording.states[0], pairs.starts[i])
        np.testing.assert_allclose(np.diff(recording.states, axis=0), SPEED * recording.actions, atol=1e-6)
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
