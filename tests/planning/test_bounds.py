"""What a plan may ask for, dimension by dimension: boxes that are not symmetric, what the data show
of them, and where searches begin."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch

from lewm.contracts import DataSpec, Plan, Statistics
from lewm.planning.agent import Agent
from lewm.planning.config import PlanningConfig
from lewm.planning.coverage import unseen
from lewm.planning.objectives.l2 import L2
from lewm.planning.solvers.cem import CEM
from lewm.planning.solvers.predictive_sampling import PredictiveSampling
from tests.support.control import GOALS, SMALL, SPEC, STARTS, Scripted, control
from tests.support.point_world import FRAMESKIP, SIZE, SPEED, PointModel, draw

LOPSIDED = dataclasses.replace(SPEC, action_low=(-0.25, 0.5), action_high=(1.0, 0.875))


def model_of(mean, std, low=(), high=()):
    """The point's model, with other statistics than the usual ones."""
    statistics = Statistics((0.5,) * 3, (0.5,) * 3, mean, std, low, high)

    class Model(PointModel):
        def rollout(self, context, past_actions, actions):
            moves = statistics.denormalise_actions(actions).unflatten(-1, (FRAMESKIP, 2)).sum(-2)
            return context[:, -1, None, None] + SPEED * moves.cumsum(dim=2)

    model = Model()
    model.spec = DataSpec(SIZE, FRAMESKIP, statistics)
    return model


USUAL = ((0.1, -0.2), (0.5, 0.8))


@dataclasses.dataclass(frozen=True)
class Own(Scripted):
    """Gives each environment a plan of its own, always the same; keeps starts and boxes."""

    boxes: list = dataclasses.field(default_factory=list)

    def solve(self, cost, start, box, generators):
        self.starts.append(start)
        self.boxes.append(box)
        own = torch.tensor([float(g.initial_seed()) for g in generators])[:, None, None]
        mean = self.mean + own
        cost(mean[:, None])
        return Plan(mean, start.std)


# ------------------------------------------------------------------------------------------ the box


@pytest.mark.parametrize("hold", [False, True])
def test_each_dimension_has_bounds_of_its_own(hold):
    mean, std = USUAL
    solver = Own(torch.zeros(5, 2 if hold else 10))
    config = PlanningConfig(L2(), solver, hold_actions=hold)
    Agent(model_of(*USUAL), config, LOPSIDED, [0]).act(draw(STARTS[:1]), draw(GOALS[:1]))
    steps = 1 if hold else FRAMESKIP
    for bounds, of in ((solver.boxes[0].low, "action_low"), (solver.boxes[0].high, "action_high")):
        one = [(b - m) / s for b, m, s in zip(getattr(LOPSIDED, of), mean, std, strict=True)]
        assert bounds.tolist() == pytest.approx(one * steps)


@pytest.mark.parametrize("goal", [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)])
def test_each_dimension_goes_to_its_own_bound_and_no_further(goal):
    """From the middle to a corner out of reach: every action is at the bounds of that corner."""
    config = dataclasses.replace(SMALL, hold_actions=True, solver=CEM(200, 20, 12))
    agent = Agent(model_of(*USUAL), config, LOPSIDED, [0])
    _, actions = control(agent, [[0.5, 0.5]], [goal], steps=10)
    corner = [(LOPSIDED.action_high if g else LOPSIDED.action_low)[i] for i, g in enumerate(goal)]
    np.testing.assert_allclose(actions[:, 0], np.tile(corner, (10, 1)), atol=0.02)
    assert (actions >= np.float32(LOPSIDED.action_low)).all()
    assert (actions <= np.float32(LOPSIDED.action_high)).all()


def test_no_rounding_leads_out_of_the_box():
    """Normalised and back, a bound may come out as another number; what is executed is never
    beyond it."""
    rng, strayed = np.random.default_rng(0), 0
    for _ in range(80):
        mean, std = rng.uniform(-0.9, 0.9, 2), rng.uniform(0.1, 0.9, 2)
        model = model_of(tuple(mean.tolist()), tuple(std.tolist()))
        config = PlanningConfig(L2(), Scripted(torch.full((5, 10), 99.0)))
        action = Agent(model, config, LOPSIDED, [0]).act(draw(STARTS[:1]), draw(GOALS[:1]))
        np.testing.assert_allclose(action[0], LOPSIDED.action_high, rtol=1e-5)
        assert (action <= np.float32(LOPSIDED.action_high)).all()
        high, normal = torch.tensor(LOPSIDED.action_high), model.spec.statistics
        back = normal.denormalise_actions(normal.normalise_actions(high))
        strayed += bool((back > high).any())
    assert strayed, "so it would show"


# ------------------------------------------------------------------------ what the data do not show

CONSTANT = ((0.1, 0.3), (0.5, 1.0), (-1.0, 0.3), (1.0, 0.3))
"""Means, stds and ranges of data in which the second action is always 0.3."""


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("solver", [CEM(64, 8, 6), PredictiveSampling(64, 3)])
def test_an_action_that_never_varies_is_planned_at_its_recorded_value(hold, solver):
    model, rounds = model_of(*CONSTANT), []
    unroll = model.rollout

    def rollout(context, past, actions):
        rounds.append(actions)
        return unroll(context, past, actions)

    model.rollout = rollout
    config = dataclasses.replace(SMALL, hold_actions=hold, solver=solver)
    with pytest.warns(UserWarning, match=r"action 1 is always 0.3 in the data, and is planned so"):
        agent = Agent(model, config, SPEC, range(5))
    _, actions = control(agent, STARTS, GOALS, steps=30)
    assert (actions[..., 1] == np.float32(0.3)).all()
    assert actions[..., 0].std() > 0.1
    for candidates in rounds:  # it is not explored
        assert (candidates.unflatten(-1, (FRAMESKIP, 2))[..., 1] == 0).all()
        assert candidates.unflatten(-1, (FRAMESKIP, 2))[..., 0].abs().max() > 0.5


def test_what_never_varies_does_not_make_a_search_look_finished():
    """Its spread is 0 from the first elites on, and must not count in the mean of the others."""
    config = dataclasses.replace(SMALL, solver=CEM(64, 8, 30, stop_spread=0.4))
    with pytest.warns(UserWarning, match="never seen"):
        agent = Agent(model_of(*CONSTANT), config, SPEC, [0], trace=True)
    agent.act(draw(STARTS[:1]), draw(GOALS[:1]))
    last = agent.trace[0].rounds[-2]  # after it the search was over, and its mean was scored
    assert len(agent.trace[0].rounds) < 31
    elites = torch.from_numpy(last.actions[0, :8]).unflatten(-1, (FRAMESKIP, 2))[..., 0]
    assert 0.3 < float(elites.std(dim=0).mean()) < 0.4  # and not .8, of which half is .4


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        ((-1.0, -1.0), (1.0, 1.0), ""),
        ((-0.9, -0.9), (0.9, 0.9), ""),  # 90% of each
        ((-2.0, -7.0), (3.0, 2.0), ""),  # more than the box
        ((-0.88, -1.0), (0.9, 1.0), "action 0 was recorded from -0.88 to 0.9, 89% of what"),
        ((-1.0, 0.0), (1.0, 0.5), "action 1 was recorded from 0 to 0.5, 25% of what"),
        ((-1.0, 5.0), (1.0, 6.0), "action 1 was recorded from 5 to 6, 0% of what"),
        ((0.25, -1.0), (0.25, 1.0), "action 0 is always 0.25 in the data"),
        ((), (), ""),  # nobody knows
    ],
)
def test_a_box_wider_than_the_data_is_said(low, high, words):
    found = unseen(Statistics((0.5,) * 3, (0.5,) * 3, *USUAL, low, high), (-1.0, -1.0), (1.0, 1.0))
    assert words in found
    assert bool(found) == bool(words)
    model = model_of(*USUAL, low, high)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        agent = Agent(model, SMALL, SPEC, [0])
        control(agent, STARTS[:1], GOALS[:1], steps=30)
        agent.reset()
    assert [str(each.message) for each in said] == [found] * bool(words)  # once


def test_a_dimension_in_which_box_and_data_allow_one_value_is_nothing_to_say():
    fixed = Statistics((0.5,) * 3, (0.5,) * 3, *CONSTANT)
    assert unseen(fixed, (-1.0, 0.3), (1.0, 0.3)) == ""


# ----------------------------------------------------------------------------- where searches begin


@pytest.mark.parametrize("initial_std", [0.25, 1.0, 2.0])
def test_a_search_begins_with_the_std_that_is_configured(initial_std):
    solver = Own(torch.zeros(5, 10))
    agent = Agent(PointModel(), PlanningConfig(L2(), solver, initial_std=initial_std), SPEC, [0])
    agent.act(draw(STARTS[:1]), draw(GOALS[:1]))
    assert (solver.starts[0].std == initial_std).all()
    wide = dataclasses.replace(SPEC, action_low=(-50.0, -50.0), action_high=(50.0, 50.0))
    model = PointModel()
    config = dataclasses.replace(SMALL, initial_std=initial_std)
    Agent(model, config, wide, [0]).act(draw(STARTS[:1]), draw(GOALS[:1]))
    drawn = model.rolled[0][2][0, 1:]
    assert float(drawn.std()) == pytest.approx(initial_std, rel=0.05)


@pytest.mark.parametrize("receding", [1, 2, 3, 5])
@pytest.mark.parametrize("hold", [False, True])
def test_a_warm_start_is_shifted_by_what_was_executed_and_is_of_the_same_environment(
    receding, hold
):
    width = 2 if hold else 10
    plan = torch.linspace(-0.5, 0.5, 5 * width).reshape(5, width)
    solver = Own(plan)
    config = PlanningConfig(L2(), solver, receding=receding, warm_start=True, hold_actions=hold)
    wide = dataclasses.replace(SPEC, action_low=(-99.0, -99.0), action_high=(99.0, 99.0))
    agent = Agent(PointModel(), config, wide, [3, 7, 5])
    pixels, goals = draw(STARTS[:3]), draw(GOALS[:3])
    everyone, some = np.array([True] * 3), np.array([True, False, True])
    for active in (everyone, some, everyone):
        for step in range(receding * FRAMESKIP):
            assert agent.replans == (step == 0)
            agent.act(pixels, goals, active)
    assert [len(start.mean) for start in solver.starts] == [3, 2, 3]
    assert (solver.starts[0].mean == 0).all()
    for start, seeds in zip(solver.starts[1:], ((3.0, 5.0), (3.0, 7.0, 5.0)), strict=True):
        for found, seed in zip(start.mean, seeds, strict=True):
            left = torch.cat([(plan + seed)[receding:], torch.zeros(receding, width)])
            torch.testing.assert_close(found, left)


@pytest.mark.parametrize("receding", [1, 2, 4])
def test_only_the_first_blocks_of_a_plan_are_executed_and_then_it_replans(receding):
    """Each environment its own plan, in env units; the past that the model is given is that."""
    plan = torch.linspace(-0.4, 0.4, 5 * 10).reshape(5, 10) / 10
    solver = Own(plan)
    model = PointModel(3)
    wide = dataclasses.replace(SPEC, action_low=(-99.0, -99.0), action_high=(99.0, 99.0))
    agent = Agent(model, PlanningConfig(L2(), solver, receding=receding), wide, [1, 2], trace=True)
    actions = [
        agent.act(draw(STARTS[:2]), draw(GOALS[:2])) for _ in range(2 * receding * FRAMESKIP)
    ]
    mean, std = (np.asarray(x) for x in USUAL)
    for i, seed in enumerate((1, 2)):
        expected = (plan.reshape(25, 2).numpy() + seed) * std + mean
        once = expected[: receding * FRAMESKIP]
        np.testing.assert_allclose(
            np.stack(actions)[:, i], np.concatenate([once, once]), rtol=1e-5, atol=1e-5
        )
    assert [replan.step for replan in agent.trace] == [0, receding * FRAMESKIP]
