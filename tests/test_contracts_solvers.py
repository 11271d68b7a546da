"""What every solver owes (`contracts.Solver`), and known answers for CEM."""

import pytest
import torch

from lewm import registry
from lewm.contracts import Box, Plan
from lewm.solvers.cem import CEM

B, H, A = 3, 2, 2
BOX = Box(low=torch.tensor([-2.0, -1.0]), high=torch.tensor([2.0, 1.0]))
every_solver = pytest.mark.parametrize("name", registry.names("solvers"))


def start(b=B, mean=0.0, std=1.0):
    return Plan(mean=torch.full((b, H, A), mean), std=torch.full((b, H, A), std))


def generators(seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def solve(name, cost, plan=None, seeds=range(B)):
    return registry.load("solvers", name)().solve(cost, plan or start(), BOX, generators(seeds))


def quadratic(target):
    return lambda actions: (actions - target).square().sum((-1, -2))


def walls(actions):
    """Cheap on the left, cheap on the right, dear in the middle: the mean of good plans is a bad one."""
    x = actions[..., 0, 0]
    return torch.minimum((x - 1).square(), (x + 1).square()) + 0.1 * actions[..., 1].square().sum(-1)


@every_solver
def test_finds_a_known_minimum(name):
    target = torch.tensor([[1.5, -0.5], [-1.0, 0.8]])
    assert (solve(name, quadratic(target)).mean - target).abs().max() < 0.02


@every_solver
@pytest.mark.parametrize(
    "cost", [quadratic(0.7), walls, lambda a: torch.sin(9 * a).sum((-1, -2))], ids=["bowl", "walls", "ripples"]
)
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
        return torch.where(actions[..., 0, 0] > 0.2, torch.nan, 10 + (actions - 0.5).square().sum((-1, -2)))

    mean = solve(name, cost).mean[:, 0, 0]
    assert (mean <= 0.2).all()
    assert (mean > 0.1).all()


@every_solver
@pytest.mark.parametrize("hopeless", [torch.nan, torch.inf])
def test_survives_when_every_rollout_diverges(name, hopeless):
    plan = solve(name, lambda actions: torch.full(actions.shape[:2], hopeless), start(mean=0.3))
    assert torch.equal(plan.mean, start(mean=0.3).mean)
    assert plan.std.isfinite().all()


@every_solver
def test_one_diverging_environment_does_not_disturb_the_others(name):
    def cost(actions):
        costs = quadratic(0.5)(actions)
        return torch.cat([torch.full_like(costs[:1], torch.nan), costs[1:]])

    assert torch.equal(solve(name, cost).mean[1:], solve(name, quadratic(0.5)).mean[1:])


@every_solver
def test_scores_exactly_what_it_declares(name):
    scored = []

    def cost(actions):
        scored.append(actions.shape[1])
        return quadratic(0.0)(actions)

    solve(name, cost)
    assert sum(scored) == registry.load("solvers", name)().evaluations


@every_solver
def test_leaves_its_arguments_alone(name):
    plan = start(mean=0.5)
    solve(name, quadratic(0.0), plan)
    assert torch.equal(plan.mean, start(mean=0.5).mean)
    assert torch.equal(plan.std, start().std)


@every_solver
def test_wants_one_generator_per_environment(name):
    with pytest.raises(ValueError, match="one generator per environment, 3 of them, got 2"):
        solve(name, walls, seeds=range(2))


# ------------------------------------------------------------------------------------------------------------- CEM


def plain_cem(solver, cost, plan, seeds):
    """The method written out for one environment after the other, candidates sorted, without any guard."""
    means, stds = [], []
    for b, generator in enumerate(generators(seeds)):
        mean, std = plan.mean[b], plan.std[b]
        for _ in range(solver.num_iterations):
            noise = torch.randn(solver.num_candidates, H, A, generator=generator)
            candidates = [BOX.clamp(mean + std * sample) for sample in noise]
            candidates[0] = mean
            elites = sorted(candidates, key=lambda c: float(cost(c[None, None])))[: solver.num_elites]
            mean, std = torch.stack(elites).mean(0), torch.stack(elites).std(0)
        means.append(mean)
        stds.append(std)
    return torch.stack(means), torch.stack(stds)


def test_cem_equals_its_plain_twin():
    solver = CEM(num_candidates=40, num_elites=6, num_iterations=4)
    cost = quadratic(torch.tensor([[0.9, -0.3], [0.1, 0.2]]))
    plan = solver.solve(cost, start(), BOX, generators(range(B)))
    mean, std = plain_cem(solver, cost, start(), range(B))
    torch.testing.assert_close(plan.mean, mean)
    torch.testing.assert_close(plan.std, std)


def test_cem_lets_the_incumbent_compete_as_candidate_0():
    firsts = []

    def cost(actions):
        firsts.append(actions[:, 0])
        return quadratic(0.3)(actions)

    plan = CEM(20, 4, 3).solve(cost, start(mean=0.1), BOX, generators(range(B)))
    assert torch.equal(firsts[0], start(mean=0.1).mean)
    assert torch.equal(firsts[-1], plan.mean)  # the last call scores the final mean alone
    assert len(firsts) == 4


def test_cem_returns_the_best_candidate_where_the_elite_mean_is_worse_than_the_start():
    def cost(actions):  # 0 at both -1 and 1, with the start in reach of both; the elites of both sides average to 0
        return (actions[..., 0, 0].abs() - 1).square()

    solver, begin = CEM(400, 40, 1), start(mean=0.4)
    elite_mean, _ = plain_cem(solver, cost, begin, range(B))
    worse = cost(elite_mean[:, None])[:, 0] > cost(begin.mean[:, None])[:, 0]
    assert worse.any()
    assert not worse.all()
    plan = solver.solve(cost, begin, BOX, generators(range(B)))
    torch.testing.assert_close(plan.mean[~worse], elite_mean[~worse])
    assert (cost(plan.mean[:, None])[worse] < 0.001).all()  # neither the start nor the average


def test_cem_keeps_its_spread_where_too_few_rollouts_survive():
    def cost(actions):  # only the incumbent survives
        costs = torch.full(actions.shape[:2], torch.nan)
        costs[:, 0] = 1.0
        return costs

    plan = CEM(20, 4, 3).solve(cost, start(mean=0.1), BOX, generators(range(B)))
    torch.testing.assert_close(plan.mean, start(mean=0.1).mean)
    assert torch.equal(plan.std, start().std)


@pytest.mark.parametrize("sizes", [(300, 1, 30), (10, 11, 30), (10, 5, 0)])
def test_cem_refuses_sizes_that_make_no_search(sizes):
    with pytest.raises(ValueError, match="must"):
        CEM(*sizes)
