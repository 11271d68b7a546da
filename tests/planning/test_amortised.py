"""The amortised planner: a network's proposal as a plan, as where a search starts, and as its
rival."""

import dataclasses

import numpy as np
import pytest
import torch

from lewm.contracts import Box, Plan, Proposing
from lewm.planning.agent import Agent
from lewm.planning.config import PlanningConfig
from lewm.planning.objectives.l2 import L2
from lewm.planning.solvers.amortised import Amortised
from lewm.planning.solvers.cem import CEM
from tests.support.point_world import FRAMESKIP, SPEED, STATISTICS, PointModel, PointWorld, draw

B, H, A = 3, 2, 2
BOX = Box(low=torch.tensor([-2.0, -1.0]), high=torch.tensor([2.0, 1.0]))
CEM_SMALL = CEM(20, 4, 3)
SPEC = PointWorld(1).spec


class Straight(torch.nn.Module):
    """Knows the point world: goes straight to the goal, in equal steps over the time it is told,
    and then stays."""

    def __init__(self, horizon=5):
        super().__init__()
        self.horizon, self.told = horizon, []

    def plan(self, now, goal, steps):
        self.told.append(steps.clone())
        step = torch.arange(self.horizon * FRAMESKIP)
        moves = ((goal - now) / SPEED / steps[:, None])[:, None] * (step < steps[:, None].ceil())[
            :, :, None
        ]
        return STATISTICS.normalise_actions(
            moves.unflatten(1, (self.horizon, FRAMESKIP)).flatten(2)
        )


class Steps(torch.nn.Module):
    """Env steps at a speed of half the greatest."""

    def distance(self, now, goal):
        return (goal - now).norm(dim=-1) / (0.5 * SPEED)


def start(mean=0.0, std=1.0, b=B):
    return Plan(torch.full((b, H, A), mean), torch.full((b, H, A), std))


def generators(seeds=range(B)):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def counted(cost):
    """A cost that counts the sequences it scores, and keeps the first of each call."""

    def of(actions):
        of.sequences += actions.shape[1]
        of.firsts.append(actions[:, 0])
        return cost(actions)

    of.sequences, of.firsts = 0, []
    return of


def near(target):
    return counted(lambda actions: (actions - target).square().sum((-1, -2)))


# ------------------------------------------------------------------------------------------ solving


@pytest.mark.parametrize(
    ("solver", "evaluations"),
    [
        (Amortised(), 0),
        (Amortised(search=CEM_SMALL), 61),
        (Amortised(search=CEM_SMALL, guarded=True), 63),
        (Amortised(search=Amortised(search=CEM_SMALL), guarded=True), 63),
    ],
)
def test_scores_exactly_what_it_declares(solver, evaluations):
    cost = near(0.0)
    solver.solve(cost, start(), BOX, generators())
    assert cost.sequences == solver.evaluations == evaluations


def test_alone_it_takes_the_proposal_within_the_box():
    plan = Amortised(spread=0.3).solve(near(0.0), start(1.5), BOX, generators())
    assert torch.equal(plan.mean, torch.tensor([1.5, 1.0]).expand(B, H, A))
    assert (plan.std == 0.3).all()
    with pytest.raises(ValueError, match="one generator per environment"):
        Amortised().solve(near(0.0), start(), BOX, generators(range(2)))


def test_a_search_starts_from_the_proposal_with_its_own_spread():
    cost = near(0.4)
    plan = Amortised(search=CEM_SMALL, spread=0.2).solve(cost, start(0.5), BOX, generators())
    assert torch.equal(cost.firsts[0], start(0.5).mean)
    expected = CEM_SMALL.solve(near(0.4), start(0.5, 0.2), BOX, generators())
    assert torch.equal(plan.mean, expected.mean)
    assert torch.equal(plan.std, expected.std)


def test_guarded_the_cheaper_of_proposal_and_cold_search_wins_in_each_environment():
    targets = torch.tensor([0.7, -0.6, 0.7])[:, None, None, None]
    solver = Amortised(search=CEM(40, 4, 8), guarded=True, spread=0.2)
    plan = solver.solve(near(targets), start(0.7), BOX, generators())
    cold = solver.search.solve(near(targets), start(0.0), BOX, generators())
    # exactly right: no search is cheaper
    assert torch.equal(plan.mean[[0, 2]], start(0.7).mean[:2])
    assert torch.equal(plan.mean[1], cold.mean[1])
    assert (plan.std[[0, 2]] == 0.2).all()
    assert torch.equal(plan.std[1], cold.std[1])


@pytest.mark.parametrize("guarded", [False, True])
def test_a_rival_that_diverges_never_wins(guarded):
    solver = Amortised(search=CEM_SMALL, guarded=guarded)

    def only_left(actions):
        return torch.where(
            actions[..., 0, 0] > 0.2, torch.nan, 10 + (actions - 0.5).square().sum((-1, -2))
        )

    assert (
        solver.solve(only_left, start(1.0), BOX, generators()).mean[:, 0, 0] <= 0.2
    ).all() or not guarded
    hopeless = solver.solve(
        lambda a: torch.full(a.shape[:2], torch.nan), start(0.3), BOX, generators()
    )
    assert torch.equal(hopeless.mean, start(0.3).mean)


def test_a_batch_never_changes_a_plan():
    targets = torch.linspace(-1, 1, 5)[:, None, None, None]
    solver = Amortised(search=CEM_SMALL, guarded=True)
    together = solver.solve(near(targets), start(0.2, b=5), BOX, generators(range(5)))
    for i in range(5):
        alone = solver.solve(near(targets[i]), start(0.2, b=1), BOX, generators([i]))
        assert torch.equal(alone.mean[0], together.mean[i])


# ---------------------------------------------------------------------------------------- proposing


def test_the_network_is_told_the_distance_or_the_rest_of_the_countdown():
    now, goal, elapsed = (
        torch.zeros(3, 2),
        torch.tensor([[0.4, 0.3], [0.0, 0.0], [0.0, 0.1]]),
        torch.tensor([0.0, 20.0, 90.0]),
    )
    network = Straight()
    assert isinstance(Amortised(), Proposing)
    Amortised(network, Steps()).propose(now, goal, elapsed, 5)
    # never less than a step
    torch.testing.assert_close(network.told[-1], torch.tensor([50.0, 1.0, 10.0]))
    blocks = Amortised(network, Steps(), countdown=50).propose(now, goal, elapsed, 5)
    torch.testing.assert_close(network.told[-1], torch.tensor([50.0, 30.0, 1.0]))
    assert blocks.shape == (3, 5, 10)
    Amortised(network, countdown=50).propose(now, goal, elapsed, 5)  # which needs no distance


STARTS = np.array([[0.2, 0.2], [0.8, 0.3], [0.5, 0.9], [0.1, 0.6]])
GOALS = np.array([[0.5, 0.4], [0.5, 0.6], [0.4, 0.5], [0.5, 0.5]])


def drive(solver, steps, receding=2, seeds=range(4)):
    """-> final states, and the agent."""
    n = len(seeds)
    world = PointWorld(n)
    world.set_states(STARTS[:n])
    agent = Agent(PointModel(), PlanningConfig(L2(), solver, receding=receding), SPEC, seeds)
    for _ in range(steps):
        world.step(agent.act(world.render(), draw(GOALS[:n])))
    return world.states, agent


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"search": CEM(32, 6, 3)},
        {"search": CEM(64, 8, 5), "guarded": True},
        {"countdown": 40, "distance": None},
    ],
)
def test_reaches_its_goals(how):
    solver = Amortised(**{"network": Straight(), "distance": Steps(), **how})
    states, agent = drive(solver, steps=60)
    assert np.linalg.norm(states - GOALS, axis=1).max() < 0.03
    assert agent.effort.predictor_calls_per_plan == 5 * solver.evaluations


def test_a_time_that_is_counted_down_is_kept():
    """Told 40, 30, 20 and 10 steps it arrives after 40; told 40 again and again it would have come
    two thirds of the way."""
    states, _ = drive(Amortised(Straight(), countdown=40), steps=40)
    np.testing.assert_allclose(states, GOALS, atol=1e-3)


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "solver", [Amortised(), Amortised(Straight()), Amortised(None, Steps()), Amortised(countdown=9)]
)
def test_without_heads_the_command_that_makes_them_is_named(solver):
    with pytest.raises(ValueError, match="lewm fit RUN amortised temporal"):
        drive(solver, steps=1)


def test_a_head_of_another_length_is_refused():
    with pytest.raises(ValueError, match="that plans 5 blocks, as the horizon says, got one of 3"):
        drive(Amortised(Straight(horizon=3), Steps()), steps=1)


@pytest.mark.parametrize("changes", [{"guarded": True}, {"countdown": 0}, {"spread": 0.0}])
def test_what_cannot_be_is_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        dataclasses.replace(Amortised(), **changes)
