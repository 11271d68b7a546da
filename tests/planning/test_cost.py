"""What a solver is told of its candidates: ranks that float32 corrects, and a deadline that no
solver has to know of."""

import dataclasses

import numpy as np
import pytest
import torch

from lewm.contracts import Plan
from lewm.planning.agent import Agent
from lewm.planning.cost import OutOfTime, PlanCost, Scorer, Situation
from lewm.planning.objectives.l2 import L2
from tests.support.control import GOALS, SMALL, SPEC, STARTS, Proposer, control
from tests.support.point_world import STATISTICS, PointModel

# ------------------------------------------------------------------------------------ low precision

NOW = Situation(torch.zeros(2, 1, 1), torch.zeros(2, 0, 1), torch.zeros(2, 1))


def exact(context, past_actions, actions):
    """A model whose latent is the action, so that its cost under L2 is the action's square."""
    return actions


def rough(context, past_actions, actions):
    """Wrong by a lot, but for the order."""
    return 1 + actions / 2


def score(values, ranking=rough, rollout=exact):
    """Costs of the same positive single-number candidates in two environments, and how many
    sequences it took."""
    blocks = torch.tensor([values, values])[..., None, None]
    costs, ends, sequences = Scorer(rollout, L2(), ranking).score(NOW, blocks)
    assert torch.equal(costs[0].nan_to_num(-1), costs[1].nan_to_num(-1))
    return costs[0], ends[0, :, 0], sequences


def test_the_cheapest_and_the_incumbent_are_scored_again():
    # 16: two and the first
    values = [9.0, *(float(v) for v in (5, 3, 8, 1, 7, 2, 6, 4, 10, 11, 12, 13, 14, 15, 16))]
    costs, ends, sequences = score(values)
    assert sequences == 2 * (16 + 3)
    again = torch.tensor([v in (9, 1, 2) for v in values])
    squares = torch.tensor(values) ** 2
    assert torch.equal(costs[again], squares[again])
    assert torch.equal(ends[again], torch.tensor(values)[again])
    # behind the dearest of the two, however cheap they were ranked
    assert (costs[~again] > 4).all()
    others = torch.tensor(values)[~again]
    assert torch.equal(costs[~again].argsort(), others.argsort())  # and in their order
    # at their distances
    torch.testing.assert_close(costs[~again] - 4, (1 + others / 2) ** 2 - (1 + 2 / 2) ** 2)


def test_a_tie_is_never_won_by_a_rank():
    costs, _, _ = score([3.0] * 16)
    assert (costs == 9).sum() == 3
    assert (costs[costs != 9] > 9).all()


def test_what_diverges_in_either_precision_stays_behind():
    values = [2.0] + [float(v) for v in range(1, 16)]

    def breaks(context, past_actions, actions):
        return torch.where(actions < 2.5, torch.nan, actions)

    costs, _, _ = score(values, rollout=breaks)
    assert costs[:3].isnan().all()
    assert (costs[3:] == torch.inf).all()  # nothing that was scored again is left to be behind of
    costs, _, _ = score(values, ranking=breaks)
    assert costs[0] == 4
    assert torch.equal(costs[3:5], torch.tensor([9.0, 16.0]))
    assert not (costs[1:3] < torch.inf).any()


@pytest.mark.parametrize("count", [1, 2])
def test_few_candidates_are_scored_in_float32_at_once(count):
    costs, _, sequences = score([3.0, 1.0][:count], ranking=None)
    again, _, same = score([3.0, 1.0][:count])
    assert torch.equal(costs, again)
    assert sequences == same == 2 * count


def test_gradients_are_those_of_float32():
    blocks = torch.ones(2, 16, 1, 1, requires_grad=True)
    costs, _, _ = Scorer(exact, L2(), ranking=lambda *_: pytest.fail("ranked")).score(NOW, blocks)
    costs.sum().backward()
    assert torch.equal(blocks.grad, torch.full_like(blocks, 2.0))


# ---------------------------------------------------------------------------------------- deadlines


class SlowModel(PointModel):
    """Every rollout takes 10 ms of a clock of its own."""

    def __init__(self, context=1):
        super().__init__(context)
        self.now = 100.0

    def rollout(self, context, past_actions, actions):
        self.now += 0.010
        return super().rollout(context, past_actions, actions)


def plan_within(deadline_s, solver=SMALL.solver, seeds=range(5), **changes):
    """-> the first actions of each environment, and the agent."""
    model, n = SlowModel(), len(seeds)
    config = dataclasses.replace(SMALL, solver=solver, receding=2, **changes)
    agent = Agent(model, config, SPEC, seeds, trace=True, clock=lambda: model.now)
    _, actions = control(agent, STARTS[:n], GOALS[:n], steps=20, deadline_s=deadline_s)
    return actions, agent


@pytest.mark.parametrize(
    "solver", [SMALL.solver, Proposer(torch.linspace(-2, 2, 50).reshape(5, 10))]
)
def test_a_late_deadline_changes_nothing(solver):
    free, agent = plan_within(None, solver)
    late, timed = plan_within(0.086, solver)  # seven rounds of 10 ms, and half a one in hand
    np.testing.assert_array_equal(late, free)
    assert timed.effort.cut_short == agent.effort.cut_short == 0
    assert not any(replan.cut_short for replan in timed.trace)


@pytest.mark.parametrize("deadline_s", [0.0, -1.0])
def test_without_any_time_the_plan_is_where_the_search_would_start(deadline_s):
    actions, agent = plan_within(deadline_s)
    np.testing.assert_allclose(
        actions, np.broadcast_to(STATISTICS.action_mean, actions.shape), atol=1e-6
    )
    assert (agent.effort.predictor_calls, agent.effort.cut_short, agent.effort.plans) == (0, 10, 10)
    assert agent.trace[0].cut_short
    assert agent.trace[0].of(2).cut_short
    assert agent.trace[0].rounds == ()

    @dataclasses.dataclass(frozen=True)
    class Searching(Proposer):
        def solve(self, cost, start, box, generators):
            return SMALL.solver.solve(cost, start, box, generators)

    proposal = torch.linspace(-9, 9, 50).reshape(5, 10)
    actions, _ = plan_within(deadline_s, Searching(proposal))
    proposed = (
        proposal.reshape(25, 2).numpy() * STATISTICS.action_std + STATISTICS.action_mean
    ).clip(-1, 1)[:10]
    np.testing.assert_allclose(actions[:10, 3], proposed, atol=1e-6)


@pytest.mark.parametrize(("deadline_s", "rounds"), [(0.001, 1), (0.024, 1), (0.026, 2), (0.059, 5)])
def test_a_search_cut_short_gives_the_cheapest_of_what_it_scored(deadline_s, rounds):
    """A round begins where one and a half times the longest so far fit into what is left; the first
    one always."""
    actions, agent = plan_within(deadline_s)
    first = agent.trace[0]
    assert [scored.costs.shape for scored in first.rounds] == [(5, 64)] * rounds
    for i in range(5):
        best = min(first.rounds, key=lambda scored: scored.costs[i].min())
        np.testing.assert_array_equal(first.plan[i], best.actions[i, 0])
    np.testing.assert_array_equal(first.actions[:, :10].swapaxes(0, 1), actions[:10])
    assert agent.effort.predictor_calls == 2 * rounds * 64 * 5 * 5


def test_a_plan_cut_short_is_what_the_next_one_starts_from():
    _, agent = plan_within(0.015, warm_start=True)
    left = torch.from_numpy(agent.trace[0].plan)[:, 2:]
    incumbents = torch.cat([left, torch.zeros(5, 2, 10)], dim=1)[:, None]
    latents = PointModel().rollout(
        torch.from_numpy(agent.trace[1].now)[:, None], torch.zeros(5, 0, 10), incumbents
    )
    expected = L2().cost(latents, torch.from_numpy(agent.trace[1].goal))[:, 0]
    np.testing.assert_allclose(agent.trace[1].rounds[0].costs[:, 0], expected, atol=1e-6)


UNEVEN = (10, 30, 5, 5, 20)
"""Milliseconds of the rounds, by a clock that nothing else moves."""


@pytest.mark.parametrize(
    ("deadline", "rounds"),
    [
        (0.1, 1),  # of the first nothing is known
        (24.9, 1),  # 10 + 1.5 x 10
        (25, 2),
        (84.9, 2),  # 40 + 1.5 x 30: the longest counts
        (85, 3),
        (89.9, 3),  # 45 + 1.5 x 30, though the last one took 5
        (90, 4),
        (94.9, 4),
        (95, 5),
    ],
)
def test_after_rounds_of_uneven_length_the_longest_counts(deadline, rounds):
    now = [0.0]
    lengths = iter(UNEVEN)

    def slow(context, past_actions, actions):
        now[0] += next(lengths)
        return actions

    cost = PlanCost(
        Scorer(slow, L2()), NOW, lambda actions: actions, False, deadline, lambda: now[0]
    )
    done = 0
    for candidate in (5.0, 1.0, 4.0, 3.0, 2.0):
        try:
            cost(torch.full((2, 1, 1, 1), candidate))
        except OutOfTime:
            break
        done += 1
    assert done == rounds
    assert now[0] == sum(UNEVEN[:rounds])
    start = Plan(torch.full((2, 1, 1), 9.0), torch.ones(2, 1, 1))
    best = 5.0 if rounds == 1 else 1.0  # of all rounds, not of the last
    assert cost.best(start).mean.flatten().tolist() == [best, best]


def test_a_round_that_began_is_finished_and_a_passed_deadline_begins_none():
    now = [0.0]

    def slow(context, past_actions, actions):
        now[0] += 1000
        return actions

    cost = PlanCost(Scorer(slow, L2()), NOW, lambda actions: actions, False, 5.0, lambda: now[0])
    cost(torch.ones(2, 1, 1, 1))
    with pytest.raises(OutOfTime):
        cost(torch.ones(2, 1, 1, 1))
    late = PlanCost(Scorer(slow, L2()), NOW, lambda actions: actions, False, 5.0, lambda: 5.0)
    with pytest.raises(OutOfTime):
        late(torch.ones(2, 1, 1, 1))


def test_an_environment_without_one_finite_cost_is_named():
    def left_diverges(context, past_actions, actions):
        return torch.where(context[:, None] < 0, torch.nan, actions)

    situation = Situation(
        torch.tensor([1.0, -1.0])[:, None, None], torch.zeros(2, 0, 1), torch.zeros(2, 1)
    )
    cost = PlanCost(
        Scorer(left_diverges, L2()), situation, lambda actions: actions, False, None, lambda: 0.0
    )
    assert cost.hopeless == []  # nothing was asked
    cost(torch.tensor([[1.0, torch.nan, 2.0]] * 2)[..., None, None])
    assert cost.hopeless == [1]  # a NaN beside numbers is no reason
    situation.context[1] = 1.0  # one number in one round is enough
    cost(torch.ones(2, 1, 1, 1))
    assert cost.hopeless == []


def test_a_batch_never_changes_a_plan_that_is_cut_short():
    actions, _ = plan_within(0.026)
    alone, _ = plan_within(0.026, seeds=range(1))
    np.testing.assert_array_equal(alone[:, 0], actions[:, 0])


def test_where_everything_diverged_the_start_is_what_is_left():
    def left_diverges(context, past_actions, actions):
        return torch.where(context[:, None] < 0, torch.nan, actions)

    situation = Situation(
        torch.tensor([-1.0, 1.0])[:, None, None], torch.zeros(2, 0, 1), torch.zeros(2, 1)
    )
    cost = PlanCost(
        Scorer(left_diverges, L2()), situation, lambda actions: actions, False, 1.0, lambda: 0.0
    )
    start = Plan(torch.full((2, 1, 1), 9.0), torch.ones(2, 1, 1))
    assert cost.best(start) == start
    cost(torch.tensor([[5.0, 3.0, 4.0]] * 2)[..., None, None])
    cost(torch.tensor([[6.0]] * 2)[..., None, None])
    assert cost.best(start).mean.flatten().tolist() == [9.0, 3.0]
