"""Starts and goals that the world draws: the same whatever the batch, told by room, and refused
where a world cannot."""

import dataclasses

import gymnasium
import numpy as np
import pytest

from lewm.evaluation.comparison import compare, evaluate_suite
from lewm.evaluation.evaluate import evaluate
from lewm.evaluation.outcome import Evaluation
from lewm.evaluation.tasks import Task, Unavailable, draw_pairs, goal_pictures, named_tasks
from lewm.planning.config import PlanningConfig
from lewm.planning.objectives.l2 import L2
from lewm.planning.solvers.cem import CEM
from lewm.worlds.kit.opening import open_world
from lewm.worlds.two_room import HIGH_PX, LOW_PX
from tests.support.point_world import PointEpisodes, PointModel, PointWorld

PLANNER = PlanningConfig(L2(), CEM(8, 3, 1), horizon=2, receding=2)


def test_pair_i_depends_on_the_seed_and_i_alone():
    few, many = (
        draw_pairs(None, (), open_world("two-room", n), Task.to_anywhere(30)) for n in (7, 64)
    )
    for name, values in vars(few).items():
        np.testing.assert_array_equal(values, getattr(many, name), err_msg=name)
    more = draw_pairs(None, (), open_world("two-room", 16), Task.to_anywhere(50))
    np.testing.assert_array_equal(more.starts[:30], few.starts)
    other = draw_pairs(None, (), open_world("two-room", 16), Task.to_anywhere(30, seed=1))
    assert not (other.starts == few.starts).any()


def test_starts_and_goals_fill_both_rooms_and_none_begins_solved():
    world = open_world("two-room", 128)
    pairs = draw_pairs(None, (), world, Task.to_anywhere(400))
    assert pairs.strict.all()
    assert len(np.unique(pairs.starts, axis=0)) == 400
    for places in (pairs.starts, pairs.goals):
        assert np.bincount(world.regions(places), minlength=2).min() > 160
        assert (places.min(axis=0) < LOW_PX + 5).all()
        assert (places.max(axis=0) > HIGH_PX - 5).all()
    assert np.linalg.norm(pairs.starts - pairs.goals, axis=1).min() >= 16
    rooms = world.regions(pairs.starts), world.regions(pairs.goals)
    assert 150 < (rooms[0] != rooms[1]).sum() < 250


def test_across_takes_those_of_the_stream_that_lead_to_another_room():
    world = open_world("two-room", 16)
    everything = draw_pairs(None, (), world, Task.to_anywhere(60))
    apart = world.regions(everything.starts) != world.regions(everything.goals)
    some = draw_pairs(None, (), world, Task.to_anywhere(20, across=True))
    np.testing.assert_array_equal(some.starts, everything.starts[apart][:20])
    np.testing.assert_array_equal(some.index, everything.index[apart][:20])


def test_the_goal_is_drawn_where_no_picture_was_recorded():
    world = open_world("two-room", 4, image_size=32)
    pairs = draw_pairs(None, (), world, Task.to_anywhere(4))
    np.testing.assert_array_equal(goal_pictures(world, None, pairs), world.render(pairs.goals))


def played(seeds=1, floors=("do-nothing", "straight-line")):
    return evaluate_suite(
        PointModel(),
        PLANNER,
        PointWorld(8),
        PointEpisodes(),
        range(12),
        (Task(budget=100, episodes=24, anywhere=True),),
        floors,
        seeds=seeds,
    )


@pytest.mark.parametrize("seeds", [1, 2])
def test_both_rooms_are_reported(seeds):
    """The parts add up to the whole, for every policy."""
    (found,) = played(seeds).evaluations
    parts = found.by_region
    assert list(parts) == ["same room", "other room"]
    for policy in found.success_steps:
        whole = found.score(policy, True)
        sums = [parts[name].score(policy, True) for name in parts]
        assert sum(each.successes for each in sums) == whole.successes
        assert sum(each.episodes for each in sums) == whole.episodes == 24 * seeds
    apart = (found.pairs.starts[:, 0] > 0.5) != (found.pairs.goals[:, 0] > 0.5)
    np.testing.assert_array_equal(found.apart, apart)
    assert list(found.to_json()["by_region"]) == list(parts)
    told = [row[0] for row in found.rows()]
    assert any(name.endswith("same room") for name in told)
    assert any(name.endswith("other room") for name in told)
    assert compare("A", "B", (played(seeds), played(seeds)))[0].paired.only_first == 0


def test_other_pairs_are_not_compared():
    """Their rows are alike, for there are none."""
    suites = [played(floors=()) for _ in range(2)]
    (other,) = suites[1].evaluations
    moved = dataclasses.replace(other.pairs, goals=other.pairs.goals + 0.1)
    changed = dataclasses.replace(suites[1], evaluations=(dataclasses.replace(other, pairs=moved),))
    with pytest.raises(ValueError, match="to have played the same pairs of 'anywhere'"):
        compare("A", "B", (suites[0], changed))


def test_without_regions_there_is_one_number():
    world = PointWorld(8, has_regions=False)
    task = Task(budget=20, episodes=8, anywhere=True)
    found = evaluate(PointModel(), PLANNER, world, PointEpisodes(), range(12), task, ())
    assert isinstance(found, Evaluation)
    assert found.by_region == {}
    with pytest.raises(Unavailable, match="no regions"):
        draw_pairs(None, (), world, dataclasses.replace(task, across=True))


def test_a_world_whose_states_cannot_be_set_says_what_it_lacks():
    class Plain(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0, 255, (32, 32, 3), np.uint8)
        action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

        def reset(self, *, seed=None, options=None):
            return np.zeros((32, 32, 3), np.uint8), {}

        def step(self, action):
            return np.zeros((32, 32, 3), np.uint8), 0.0, False, False, {}

    with pytest.raises(Unavailable, match="needs states that can be set"):
        draw_pairs(None, (), open_world(Plain, 2, image_size=32, max_steps=9), Task.to_anywhere(4))


def test_every_task_has_a_name_for_commands():
    assert list(named_tasks()) == [
        "offset-25",
        "offset-50",
        "offset-75",
        "offset-100",
        "other-room",
        "anywhere",
        "anywhere-other-room",
    ]
