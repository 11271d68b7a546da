"""What every solver owes (`contracts.Solver`). Known answers, solver by solver, are in
`test_solvers.py`."""

import dataclasses

import pytest
import torch

from lewm import registry
from lewm.contracts import Asking, Box, Plan
from lewm.planning.solvers.cem import CEM
from tests.support.search import BOX, A, B, Counted, H, generators, quadratic, ripples, start, walls

NAMES = registry.names("solvers")
every_solver = pytest.mark.parametrize("name", NAMES)


NEEDED = {name: {"search": CEM(), "spread": 1.0} for name in ("amortised", "waypoints")}
"""What a solver cannot search without, by name."""


def make(name, **settings):
    """A solver as its defaults have it, and with what it needs."""
    return registry.load("solvers", name)(**NEEDED.get(name, {}), **settings)


def stops(name):
    return any(
        field.name == "stop_spread" for field in dataclasses.fields(registry.load("solvers", name))
    )


every_solver_that_stops = pytest.mark.parametrize("name", [name for name in NAMES if stops(name)])


def solve(name, cost, plan=None, seeds=range(B), **settings):
    return make(name, **settings).solve(cost, plan or start(), BOX, generators(seeds))


@every_solver
def test_finds_a_known_minimum(name):
    target = torch.tensor([[1.5, -0.5], [-1.0, 0.8]])
    assert (solve(name, quadratic(target)).mean - target).abs().max() < 0.02


@every_solver
@pytest.mark.parametrize("cost", [quadratic(0.7), walls, ripples], ids=["bowl", "walls", "ripples"])
@pytest.mark.parametrize("mean", [0.0, 0.7, 1.0, 5.0])
def test_is_never_worse_than_its_start(name, cost, mean):
    def of(plan):
        return cost(BOX.clamp(plan.mean)[:, None])[:, 0]

    for seeds in (range(3), range(3, 6)):
        assert (of(solve(name, cost, start(mean=mean), seeds)) <= of(start(mean=mean))).all()


@every_solver
def test_scores_and_returns_only_what_lies_in_the_box(name):
    def cost(actions):
        assert (actions >= BOX.low).all()
        assert (actions <= BOX.high).all()
        return quadratic(10.0)(actions)

    for mean in (-30.0, 0.0, 30.0):
        cost(solve(name, cost, start(mean=mean)).mean[:, None])
    assert (BOX.high - solve(name, cost).mean).max() < 0.02


@every_solver
def test_same_generators_give_the_same_plan_and_others_do_not(name):
    plans = [solve(name, walls, seeds=seeds) for seeds in ((1, 2, 3), (1, 2, 3), (1, 2, 4))]
    assert torch.equal(plans[0].mean, plans[1].mean)
    assert torch.equal(plans[0].std, plans[1].std)
    assert not torch.equal(plans[0].mean[2], plans[2].mean[2])


@every_solver
def test_a_batch_never_changes_a_plan(name):
    targets = torch.linspace(-1, 1, 5)[:, None, None, None]
    together = solve(name, quadratic(targets), start(5), seeds=range(10, 15))
    for i in range(5):
        alone = solve(name, quadratic(targets[i]), start(1), seeds=[10 + i])
        assert torch.equal(alone.mean[0], together.mean[i])
        assert torch.equal(alone.std[0], together.std[i])


@every_solver
def test_never_prefers_nan(name):
    def cost(actions):  # positive costs, so that a NaN read as 0 would win
        return torch.where(
            actions[..., 0, 0] > 0.2, torch.nan, 10 + (actions - 0.5).square().sum((-1, -2))
        )

    mean = solve(name, cost).mean[:, 0, 0]
    assert (mean <= 0.2).all()
    assert (mean > 0.1).all()


OBJECTIVES = registry.names("objectives")


class Nearer:
    """A stand-in for a learnt distance."""

    def distance(self, now, goal):
        return (now - goal).square().sum(-1)


class Judge:
    """A stand-in for a model with a cost of its own."""

    costs = ("near",)

    def judge(self, name, rollout, goal):
        return (rollout[:, :, -1] - goal[:, None]).square().sum(-1)


def objective(name, intermediate):
    kind = registry.load("objectives", name)
    made = kind(**dict.fromkeys(getattr(kind, "heads", {}), Nearer()))
    if isinstance(made, Asking):
        return made.asking(Judge())
    return dataclasses.replace(made, intermediate=intermediate)


@every_solver
@pytest.mark.parametrize("of", OBJECTIVES)
@pytest.mark.parametrize("intermediate", [0.0, 0.5])
def test_a_nan_candidate_beside_good_ones_is_never_ranked_nor_averaged(name, of, intermediate):
    """Rollouts diverge in a corner that holds less than the elites. The plan is to the last bit the
    one that is found where the corner is merely dear; a NaN counted anywhere, or read as the least
    cost, gives another plan or none."""
    goal = torch.tensor([[0.9, 0.6]]).expand(B, -1)
    weigh = objective(of, intermediate).cost
    diverged = 0

    def plan(beyond):
        def cost(actions):
            nonlocal diverged
            gone = actions[..., 0, 0] > 1.6
            diverged += int(gone.sum())
            latents = torch.where(gone[..., None, None], torch.nan, actions)
            assert latents.shape == (*actions.shape[:2], H, A)
            costs = weigh(latents, goal)
            assert torch.equal(costs.isnan(), gone)  # the objective does not hide it either
            return costs if beyond is None else torch.where(gone, beyond, costs)

        return solve(name, cost, start())

    found = plan(None)
    assert diverged > 0
    assert (found.mean[:, 0, 0] <= 1.6).all()
    assert found.mean.isfinite().all()
    assert found.std.isfinite().all()
    last = (found.mean[:, -1] - goal).abs().max()
    assert last < 0.1
    dear = plan(1e30)
    if name != "gradient":  # which leaves it where it is, and walks down from what is dear
        assert torch.equal(found.mean, dear.mean)
        assert torch.equal(found.std, dear.std)


LOPSIDED = Box(low=torch.tensor([-2.0, 0.25]), high=torch.tensor([-0.5, 3.0]))


@every_solver
@pytest.mark.parametrize("corner", [(-9, -9), (-9, 9), (9, -9), (9, 9)])
def test_each_dimension_of_the_box_has_bounds_of_its_own(name, corner):
    """Where the goal is out of reach the plan lies in the corner of the box that is nearest."""

    def cost(actions):
        assert (actions >= LOPSIDED.low).all()
        assert (actions <= LOPSIDED.high).all()
        return (actions - torch.tensor(corner, dtype=torch.float32)).abs().sum((-1, -2))

    plan = make(name).solve(cost, start(mean=0.3), LOPSIDED, generators(range(B)))
    where = torch.where(torch.tensor(corner) > 0, LOPSIDED.high, LOPSIDED.low)
    torch.testing.assert_close(plan.mean, where.expand(B, H, A), atol=0.02, rtol=0)


@every_solver
def test_the_first_round_has_the_std_of_the_start_in_each_dimension(name):
    std = torch.tensor([[0.1, 0.4], [0.2, 0.8]])
    wide = Box(low=torch.full((A,), -50.0), high=torch.full((A,), 50.0))
    firsts = []

    def cost(actions):
        if actions.shape[1] > 1:
            firsts.append(actions.detach())
        return quadratic(0.0)(actions)

    given = Plan(torch.full((40, H, A), 0.5), std.expand(40, H, A))
    make(name).solve(cost, given, wide, generators(range(40)))
    spread = (firsts[0][:, 1:] - 0.5).square().mean(dim=(0, 1)).sqrt()
    if name in NEEDED:  # around a proposal it searches with a std of its own
        std = torch.full_like(std, NEEDED[name]["spread"])
    torch.testing.assert_close(spread, std, rtol=0.1, atol=0)


@every_solver
@pytest.mark.parametrize("hopeless", [torch.nan, torch.inf])
def test_survives_when_every_rollout_diverges(name, hopeless):
    plan = solve(name, lambda actions: actions.sum((-1, -2)) * 0 + hopeless, start(mean=0.3))
    assert torch.equal(plan.mean, start(mean=0.3).mean)
    assert plan.std.isfinite().all()


@every_solver
def test_one_diverging_environment_does_not_disturb_the_others(name):
    def cost(actions):
        costs = quadratic(0.5)(actions)
        return torch.cat([torch.full_like(costs[:1], torch.nan), costs[1:]])

    assert torch.equal(solve(name, cost).mean[1:], solve(name, quadratic(0.5)).mean[1:])


@every_solver
def test_a_start_that_diverges_is_left_behind(name):
    def cost(actions):
        return torch.where(actions[..., 0, 0].abs() < 0.01, torch.nan, quadratic(0.5)(actions))

    assert (cost(solve(name, cost).mean[:, None]) < 0.5).all()  # NaN at the start itself


@every_solver
def test_scores_exactly_what_it_declares(name):
    cost = Counted(quadratic(0.0))
    solve(name, cost)
    assert sum(cost.calls) == make(name).evaluations


@every_solver
def test_leaves_its_arguments_and_the_model_alone(name):
    model = torch.nn.Linear(A, A)
    plan = start(mean=0.5)
    solve(name, lambda actions: model(actions).square().sum((-1, -2)), plan)
    assert torch.equal(plan.mean, start(mean=0.5).mean)
    assert torch.equal(plan.std, start().std)
    assert all(parameter.grad is None for parameter in model.parameters())


@every_solver
def test_returns_a_plan_without_gradients(name):
    plan = solve(name, quadratic(0.0))
    assert not plan.mean.requires_grad
    assert not plan.std.requires_grad


@every_solver
def test_wants_one_generator_per_environment(name):
    with pytest.raises(ValueError, match="one generator per environment, 3 of them, got 2"):
        solve(name, walls, seeds=range(2))


# ----------------------------------------------------------------------------------- stopping early

SPREAD = 0.03


@every_solver_that_stops
def test_stops_when_the_spread_is_small_and_not_before(name):
    cost = Counted(quadratic(0.3))
    plan = solve(name, cost, stop_spread=SPREAD)
    declared = make(name, stop_spread=SPREAD).evaluations
    assert declared == make(name).evaluations
    assert declared / 30 < sum(cost.calls) < declared
    assert (plan.mean - 0.3).abs().max() < 0.2
    never = solve(name, quadratic(0.3), stop_spread=1e-30)
    assert torch.equal(never.mean, solve(name, quadratic(0.3)).mean)


@every_solver_that_stops
def test_stopping_early_never_lets_a_batch_change_a_plan(name):
    """Nor the next plan: a finished environment leaves its generator alone while others go on."""
    widths, targets = (
        torch.tensor([0.04, 0.3, 1.0, 2.0]),
        torch.tensor([0.0, -0.3, 0.5, 0.9])[:, None, None, None],
    )
    wide = Plan(mean=torch.zeros(4, H, A), std=widths[:, None, None].expand(4, H, A))
    shared, rounds = generators(range(4)), []
    together = make(name, stop_spread=SPREAD).solve(quadratic(targets), wide, BOX, shared)
    for i in range(4):
        cost, (own,) = Counted(quadratic(targets[i])), generators([i])
        alone = make(name, stop_spread=SPREAD).solve(
            cost, Plan(wide.mean[i : i + 1], wide.std[i : i + 1]), BOX, [own]
        )
        assert torch.equal(alone.mean[0], together.mean[i])
        assert torch.equal(alone.std[0], together.std[i])
        assert torch.equal(own.get_state(), shared[i].get_state())
        rounds.append(len(cost.calls))
    assert len(set(rounds)) > 1, "all finished in the same round: the test compares nothing"


@every_solver_that_stops
@pytest.mark.parametrize(
    "setting", [{"stop_spread": -0.1}, {"num_iterations": 0}, {"num_candidates": 0}]
)
def test_refuses_sizes_that_make_no_search(name, setting):
    with pytest.raises(ValueError, match="must"):
        make(name, **setting)
