"""A distance that is not symmetric is asked from where one is to where one wants to be, never the
other way round; and what it was fitted to is the same direction."""

import dataclasses

import numpy as np
import pytest
import torch

from lewm.contracts import Hindsight
from lewm.planning.agent import Agent
from lewm.planning.config import PlanningConfig
from lewm.planning.heads.temporal import TemporalConfig
from lewm.planning.objectives.temporal import Temporal
from lewm.planning.solvers.amortised import Amortised
from lewm.training.fit import _agreement
from tests.support.control import SMALL, SPEC, control
from tests.support.point_world import PointModel, draw


class Uphill:
    """Only what lies to the right is far; whatever lies to the left is 0 away."""

    def __init__(self):
        self.asked = []

    def distance(self, now, goal):
        self.asked.append((now, goal))
        return 100 * (goal - now)[..., 0].relu()


def test_the_head_climbs_from_now_to_the_goal():
    """d(x, y) = |m(x) - m(y)| + max relu(o(y) - o(x)), worked out for one number of each."""
    head = TemporalConfig(metric_dim=1, oneway_dim=1).build(2, 10)
    head.embed = torch.nn.Identity()
    low, high = torch.tensor([[0.0, 1.0]]), torch.tensor([[3.0, 6.0]])
    assert head.distance(low, high).item() == 3 + 5
    assert head.distance(high, low).item() == 3


@pytest.mark.parametrize("steps", [1.0, 40.0])
def test_the_head_is_fitted_in_the_direction_in_which_it_is_asked(steps):
    torch.manual_seed(0)
    head = TemporalConfig(metric_dim=4, oneway_dim=4).build(6, 10)
    now, goal = torch.randn(50, 6), torch.randn(50, 6)
    batch = Hindsight(now, goal, torch.full((50,), steps), torch.zeros(50, 0, 10),
                      torch.zeros(50, 0, dtype=torch.bool))  # fmt: skip
    there, back = head.distance(now, goal), head.distance(goal, now)
    assert (there - back).abs().max() > 0.05
    target = torch.tensor(steps).log1p()
    losses = head.loss(batch)
    torch.testing.assert_close(
        losses.watch["log_error"], (there.log1p() - target).abs().mean().detach()
    )
    error = there.log1p() - target
    weight = torch.where(error > 0, 1 - head.config.expectile, head.config.expectile)
    torch.testing.assert_close(losses.terms["expectile"], (weight * error.square()).mean())


def test_what_is_said_of_a_fit_is_measured_in_that_direction():
    """Of ways that all lead to the right: there it is right about each, the other way it is 0."""
    steps = torch.arange(1.0, 41.0)
    now = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    goal = now + torch.stack([steps, 50 * (steps % 3)], dim=-1)
    nothing = torch.zeros(40, 0, 10), torch.zeros(40, 0, dtype=torch.bool)
    found = _agreement(Uphill(), iter([Hindsight(now, goal, steps, *nothing)]))
    assert found["rank_correlation"] == pytest.approx(1)
    assert found["l2_rank_correlation"] < 0.9
    back = _agreement(Uphill(), iter([Hindsight(goal, now, steps, *nothing)]))
    assert back.keys() == {"l2_rank_correlation"}, "where nothing varies there is none"


def test_a_search_goes_where_the_goal_is_near_from_there():
    """The goal lies in the middle: from its right it is 0 away, from its left it is not. An agent
    that asked in the other direction would stay at the left."""
    config = dataclasses.replace(SMALL, objective=Temporal(Uphill()))
    states, _ = control(Agent(PointModel(), config, SPEC, [0]), [[0.3, 0.5]], [[0.5, 0.5]], 25)
    assert states[-1, 0, 0] > 0.5 - 1e-3


def test_a_proposal_is_told_the_steps_from_now_to_the_goal():
    network, distance = [], Uphill()

    class Imitator:
        def plan(self, now, goal, steps):
            network.append((now, goal, steps))
            return torch.zeros(len(now), 5, 10)

    solver = Amortised(Imitator(), distance)
    agent = Agent(PointModel(), PlanningConfig(Temporal(distance), solver), SPEC, [0, 1])
    starts, goals = np.array([[0.2, 0.5], [0.9, 0.5]]), np.array([[0.6, 0.5], [0.6, 0.5]])
    agent.act(draw(starts), draw(goals))
    (now, goal, steps), *_ = network
    np.testing.assert_allclose(now, starts, atol=1e-4)
    np.testing.assert_allclose(goal, goals, atol=1e-4)
    np.testing.assert_allclose(steps, [40, 1], atol=0.01)  # fewer than 1 count as 1
