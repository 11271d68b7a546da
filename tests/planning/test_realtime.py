"""A fixed rate, with a clock that only moves when somebody works or sleeps: every time below can be
added up by hand."""

import numpy as np
import pytest

from lewm.planning.agent import Agent
from lewm.planning.config import PlanningConfig
from lewm.planning.objectives.l2 import L2
from lewm.planning.realtime import COLUMNS, Drive, Latency, drive, latencies
from lewm.planning.solvers.cem import CEM
from tests.support.point_world import FRAMESKIP, PointModel, PointWorld, draw

ROUNDS = 6
CONFIG = PlanningConfig(
    L2(), CEM(num_candidates=64, num_elites=8, num_iterations=ROUNDS), receding=2, hold_actions=True
)
PERIOD = 0.050


class Stage:
    """A clock, and a model and a world that take time by it: encoding, rolling out, drawing and
    stepping, in seconds."""

    def __init__(self, encode=0.001, rollout=0.001, render=0.002, step=0.003, oversleep=0.0):
        self.now, self.slept, self.oversleep = 1000.0, [], oversleep
        self.model, self.world = PointModel(), PointWorld(1)
        for owner, name, seconds in (
            (self.model, "encode", encode),
            (self.model, "rollout", rollout),
            (self.world, "render", render),
            (self.world, "step", step),
        ):
            setattr(owner, name, self.taking(seconds, getattr(owner, name)))
        self.agent = Agent(self.model, CONFIG, self.world.spec, [0], trace=True, clock=self.clock)

    def taking(self, seconds, work):
        def slower(*args):
            self.now += seconds(self.now) if callable(seconds) else seconds
            return work(*args)

        return slower

    def clock(self):
        return self.now

    def sleep(self, seconds):
        assert seconds >= 0
        self.slept.append(seconds)
        self.now += seconds + self.oversleep * (seconds > 0)

    def drive(self, start=(0.2, 0.2), goal=(0.9, 0.2), rate_hz=1 / PERIOD, budget=20):
        self.world.set_states(np.array([start]))
        self.world.set_goals(np.array([goal]))
        return drive(
            self.agent, self.world, draw(np.array([goal])), rate_hz, budget, self.clock, self.sleep
        )


def test_a_search_that_fits_into_the_period():
    stage = Stage()
    found = stage.drive()
    assert found.success_step is None
    assert (found.cut_short, found.plans, found.missed.sum()) == (0, 2, 0)
    np.testing.assert_array_equal(np.flatnonzero(found.replanned), [0, 2 * FRAMESKIP])
    # Drawing; then the observation and, once, the goal are encoded; six rounds, the mean, and one
    # more for the trace.
    expected = np.zeros(20)
    expected[[5, 15]] = 0.002
    expected[[0, 10]] = 0.002 + np.array([0.002, 0.001]) + (ROUNDS + 2) * 0.001
    np.testing.assert_allclose(found.latency_s, expected, atol=1e-9)
    assert found.seconds == pytest.approx(20 * PERIOD)
    assert len(stage.agent.trace) == 2  # the plan made beforehand is forgotten
    assert stage.slept[1] == pytest.approx(PERIOD - 0.003)


def test_it_drives_as_the_same_agent_would_without_a_clock():
    found = Stage().drive()
    world, agent = PointWorld(1), Agent(PointModel(), CONFIG, PointWorld(1).spec, [0])
    world.set_states(np.array([[0.2, 0.2]]))
    for i in range(20):
        np.testing.assert_array_equal(found.states[i], world.states[0])
        action = agent.act(world.render(), draw(np.array([[0.9, 0.2]])))
        np.testing.assert_array_equal(found.actions[i], action[0])
        world.step(action)
    np.testing.assert_array_equal(found.states[20], world.states[0])
    assert len(found.states) == 21


def test_a_search_that_does_not_fit_is_cut_short_and_in_time():
    found = Stage(rollout=0.010).drive()
    assert found.cut_short == found.plans == 2
    assert not found.missed.any()
    # 45 ms to plan in (less 3 for the world's step, once that is known), 4 of which go to pictures;
    # a round needs 15 in hand: begun at 4, 14 and 24; the second time at 3, 13 and 23. Then one
    # more for the trace.
    np.testing.assert_allclose(found.latency_s[[0, 10]], [0.044, 0.043], atol=1e-9)


def test_the_worlds_step_takes_its_share_of_the_period():
    found = Stage(rollout=0.010, step=0.015).drive()
    np.testing.assert_allclose(found.latency_s[[0, 10]], [0.044, 0.033], atol=1e-9)
    assert found.seconds == pytest.approx(20 * PERIOD + 0.009)  # only the first step did not know


def test_a_step_that_was_slow_once_is_forgotten():
    stage = Stage(rollout=0.010, step=lambda now: 0.030 if now < 1000.1 else 0.001)
    found = stage.drive(budget=41)
    rounds = [len(replan.rounds) for replan in stage.agent.trace]
    assert rounds == [3, 2, 3, 3, 3]
    assert not found.missed.any()


def test_a_late_action_is_one_missed_deadline_and_not_a_train_of_them():
    stage = Stage(rollout=0.200)  # a single round is too long
    found = stage.drive()
    np.testing.assert_array_equal(np.flatnonzero(found.missed), [0, 10])
    np.testing.assert_allclose(found.latency_s[1:5], 0, atol=1e-9)
    late = 0.404 + 0.003 - PERIOD
    assert found.seconds == pytest.approx(20 * PERIOD + late + (late - 0.001))
    assert stage.slept[0] == 0


def test_sleeping_too_long_is_latency_and_not_drift():
    found = Stage(oversleep=0.004).drive()
    np.testing.assert_allclose(found.latency_s[1:5], 0.004, atol=1e-9)
    assert found.latency_s[0] == pytest.approx(0.012)
    assert found.seconds == pytest.approx(20 * PERIOD + 0.004)


def test_it_ends_with_the_first_success():
    found = Stage().drive(goal=(0.3, 0.2), budget=50)
    assert 2 < found.success_step < 50
    assert len(found.actions) == len(found.latency_s) == len(found.states) - 1 == found.success_step
    assert (
        np.linalg.norm(found.states[-1] - (0.3, 0.2))
        < 0.03
        <= np.linalg.norm(found.states[-2] - (0.3, 0.2))
    )
    solved = Stage().drive(goal=(0.2, 0.2))
    assert (solved.success_step, len(solved.latency_s), solved.actions.shape, solved.plans) == (
        0,
        0,
        (0, 2),
        0,
    )


# ------------------------------------------------------------------------------------------- report


def driven(milliseconds, replanned):
    n = len(milliseconds)
    latency = np.array(milliseconds) / 1e3
    return Drive(
        20.0,
        latency,
        np.array(replanned, bool),
        1,
        1.0,
        np.zeros((n + 1, 2)),
        np.zeros((n, 2)),
        None,
    )


def test_percentiles_of_all_steps_and_of_those_that_replan():
    drives = [
        driven(range(1, 52), [False] * 50 + [True]),
        driven(range(52, 102), [True] + [False] * 49),
    ]
    found = latencies(drives)
    ms = pytest.approx
    assert found["all"] == Latency(101, 51, ms(51.0), ms(91.0), ms(100.0), ms(101.0))
    assert found["replanning"] == Latency(2, 2, ms(51.5), ms(51.9), ms(51.99), ms(52.0))
    assert found["all"].row("all") == (
        "all",
        "101",
        "51",
        "50.5%",
        "51.00",
        "91.00",
        "100.00",
        "101.00",
    )
    assert len(COLUMNS) == len(found["all"].row("all"))


def test_no_steps_have_no_percentiles():
    found = latencies([driven([], [])])["replanning"]
    assert found == Latency(0, 0, None, None, None, None)
    assert found.row("replanning") == ("replanning", "0", "0", *["-"] * 5)


@pytest.mark.parametrize("rate_hz", [0.0, -20.0, float("inf"), float("nan")])
def test_a_rate_that_is_none_is_refused(rate_hz):
    with pytest.raises(ValueError, match="positive rate"):
        Stage().drive(rate_hz=rate_hz)


def test_several_environments_are_refused():
    agent = Agent(PointModel(), CONFIG, PointWorld(1).spec, range(2))
    with pytest.raises(
        ValueError, match="one environment at a time, got 2 of the world and 2 of the agent"
    ):
        drive(agent, PointWorld(2), draw(np.zeros((2, 2))), 20, 10)
