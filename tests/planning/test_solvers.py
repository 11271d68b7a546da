"""Known answers: each solver against its method written out plainly, and against what can be worked
out by hand."""

import pytest
import torch

from lewm.contracts import Box, Plan
from lewm.planning.search import coloured
from lewm.planning.solvers.cem import CEM
from lewm.planning.solvers.gradient import Gradient
from lewm.planning.solvers.icem import ICEM
from lewm.planning.solvers.mppi import MPPI, softmin
from lewm.planning.solvers.predictive_sampling import PredictiveSampling
from tests.support.search import BOX, A, B, Counted, H, generators, quadratic, ripples, start, walls

BOWL = quadratic(torch.tensor([[0.9, -0.3], [0.1, 0.2]]))


def half_diverges(cost):
    return lambda actions: torch.where(actions[..., 0, 0] > 0, torch.nan, cost(actions))


@pytest.mark.parametrize("solver", [ICEM(), MPPI(), Gradient(), PredictiveSampling()])
def test_all_but_cem_find_one_side_of_the_walls(solver):
    """A solver that returns a mean may return the average of both sides where its elites never
    decide: CEM in 5 of 100 searches, which is the paper's and stays, MPPI in one or two. Which of
    them depends on the last digits of a machine."""
    costs = walls(solver.solve(walls, start(60), BOX, generators(range(60))).mean[:, None])
    assert int((costs > 0.01).sum()) <= (3 if isinstance(solver, MPPI) else 0)


# ---------------------------------------------------------------------------------------------- CEM


def plain_cem(solver, cost, plan, seeds):
    """The method written out for one environment after the other, candidates sorted, without any
    guard."""
    means, stds = [], []
    for b, generator in enumerate(generators(seeds)):
        mean, std = plan.mean[b], plan.std[b]
        for _ in range(solver.num_iterations):
            noise = torch.randn(solver.num_candidates, H, A, generator=generator)
            candidates = [BOX.clamp(mean + std * sample) for sample in noise]
            candidates[0] = mean
            elites = sorted(candidates, key=lambda c: float(cost(c[None, None])))[
                : solver.num_elites
            ]
            mean, std = torch.stack(elites).mean(0), torch.stack(elites).std(0)
        means.append(mean)
        stds.append(std)
    return torch.stack(means), torch.stack(stds)


def first_cem(solver, cost, plan, seeds):
    """CEM as it was before solvers shared any code, kept as the record of its behaviour to the last
    bit."""
    whole, every = (lambda flags: flags[:, None, None]), generators(seeds)
    mean, std = BOX.clamp(plan.mean), plan.std
    best, best_cost, start_cost = mean, mean.new_full(mean.shape[:1], torch.inf), None
    for _ in range(solver.num_iterations):
        noise = torch.stack(
            [torch.randn(solver.num_candidates, *mean.shape[1:], generator=g) for g in every]
        )
        candidates = BOX.clamp(mean[:, None] + std[:, None] * noise)
        candidates[:, 0] = mean
        costs = cost(candidates)
        costs = torch.where(costs.isnan(), torch.inf, costs)
        start_cost = costs[:, 0] if start_cost is None else start_cost
        values, elite = costs.topk(solver.num_elites, dim=1, largest=False)
        valid = values < torch.inf
        elite = torch.where(valid, elite, elite[:, :1])
        chosen = candidates.gather(1, elite[..., None, None].expand(-1, -1, *mean.shape[1:]))
        mean = torch.where(whole(valid.any(dim=1)), BOX.clamp(chosen.mean(dim=1)), mean)
        std = torch.where(whole(valid.all(dim=1)), chosen.std(dim=1), std)
        improved = values[:, 0] < best_cost
        best = torch.where(whole(improved), chosen[:, 0], best)
        best_cost = torch.where(improved, values[:, 0], best_cost)
    kept = cost(mean[:, None])[:, 0] <= start_cost
    return torch.where(whole(kept), mean, best), std


@pytest.mark.parametrize("sizes", [(300, 30, 10), (40, 6, 4)])
@pytest.mark.parametrize(
    "cost", [BOWL, walls, ripples, half_diverges(walls), lambda a: a.sum((-1, -2)).round()]
)
def test_cem_is_what_it_was_to_the_last_bit(cost, sizes):
    begin = start(mean=0.3)
    plan = CEM(*sizes).solve(cost, begin, BOX, generators(range(B)))
    mean, std = first_cem(CEM(*sizes), cost, begin, range(B))
    assert torch.equal(plan.mean, mean)
    assert torch.equal(plan.std, std)


def test_cem_equals_its_plain_twin():
    solver = CEM(num_candidates=40, num_elites=6, num_iterations=4)
    plan = solver.solve(BOWL, start(), BOX, generators(range(B)))
    mean, std = plain_cem(solver, BOWL, start(), range(B))
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
    # 0 at both -1 and 1, with the start in reach of both; the elites of both sides average to 0
    def cost(actions):
        return (actions[..., 0, 0].abs() - 1).square()

    solver, begin = CEM(400, 40, 1), start(mean=0.4)
    elite_mean, _ = plain_cem(solver, cost, begin, range(B))
    worse = cost(elite_mean[:, None])[:, 0] > cost(begin.mean[:, None])[:, 0]
    assert worse.any()
    assert not worse.all()
    plan = solver.solve(cost, begin, BOX, generators(range(B)))
    torch.testing.assert_close(plan.mean[~worse], elite_mean[~worse])
    assert (cost(plan.mean[:, None])[worse] < 0.001).all()  # neither the start nor the average


@pytest.mark.parametrize("solver", [CEM(20, 4, 3), MPPI(20, 4, 3)])
def test_the_spread_is_kept_where_too_few_rollouts_survive(solver):
    def cost(actions):  # only the incumbent survives
        costs = torch.full(actions.shape[:2], torch.nan)
        costs[:, 0] = 1.0
        return costs

    plan = solver.solve(cost, start(mean=0.1), BOX, generators(range(B)))
    torch.testing.assert_close(plan.mean, start(mean=0.1).mean)
    assert torch.equal(plan.std, start().std)


@pytest.mark.parametrize("solver", [CEM, ICEM, MPPI])
@pytest.mark.parametrize("sizes", [(300, 1, 30), (10, 11, 30), (10, 5, 0)])
def test_elites_must_fit_the_candidates(solver, sizes):
    with pytest.raises(ValueError, match="must"):
        solver(*sizes)


# --------------------------------------------------------------------------------------------- iCEM


@pytest.mark.parametrize("length", [2, 5, 8])
@pytest.mark.parametrize("exponent", [-1.0, 0.0, 1.0, 2.5])
def test_noise_has_the_declared_spectrum_and_a_std_of_1(length, exponent):
    noise = coloured(
        torch.randn(40_000, length, 2, generator=torch.Generator().manual_seed(0)), exponent
    )
    torch.testing.assert_close(noise.std(dim=0), torch.ones(length, 2), atol=0.02, rtol=0)
    power = torch.fft.rfft(noise, dim=1).abs().square().mean(dim=(0, 2))
    frequency = torch.arange(length // 2 + 1) / length
    frequency[0] = frequency[1]
    torch.testing.assert_close(
        power / power[1], (frequency / frequency[1]) ** -exponent, atol=0, rtol=0.05
    )


def test_noise_of_one_block_or_exponent_0_is_white():
    white = torch.randn(10, 5, 2)
    assert torch.equal(coloured(white, 0.0), white)
    assert torch.equal(coloured(white[:, :1], 2.0), white[:, :1])


@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.5])
def test_icem_keeps_a_share_of_its_mean_and_of_its_spread(momentum):
    """The mean competes as candidate 0 of the last iteration, so it can be seen there; the spread
    is returned."""
    seen, begin, elites = [], start(mean=0.4, std=0.7), 5

    def cost(actions):
        seen.append(actions.clone())
        return BOWL(actions)

    solver = ICEM(40, elites, 2, keep_fraction=0.0, momentum=momentum)
    plan = solver.solve(cost, begin, BOX, generators(range(B)))
    mean, std = begin.mean, begin.std
    for candidates in seen:
        order = BOWL(candidates).argsort(dim=1)[:, :elites]
        best = torch.stack([candidates[b, order[b]] for b in range(B)])
        if candidates is seen[1]:
            torch.testing.assert_close(candidates[:, 0], mean)
        mean = (1 - momentum) * best.mean(dim=1) + momentum * mean
        std = (1 - momentum) * best.std(dim=1) + momentum * std
    torch.testing.assert_close(plan.std, std)


def test_icem_begins_with_coloured_noise_around_the_start():
    seen = []

    def cost(actions):
        seen.append(actions)
        return quadratic(0.3)(actions)

    wide = Box(torch.full((A,), -100.0), torch.full((A,), 100.0))
    begin = Plan(mean=torch.full((B, 6, A), 0.1), std=torch.full((B, 6, A), 0.5))
    ICEM(20, 4, 2, noise_exponent=1.5).solve(cost, begin, wide, generators(range(B)))
    for b in range(B):
        noise = coloured(torch.randn(20, 6, A, generator=torch.Generator().manual_seed(b)), 1.5)
        assert torch.equal(seen[0][b, 1:], 0.1 + 0.5 * noise[1:])
    assert torch.equal(seen[0][:, 0], begin.mean)


def test_icem_without_its_improvements_is_cem():
    """In two iterations, in both of which the mean competes: the second refit must come from the
    same elites."""
    plain = ICEM(40, 6, 2, noise_exponent=0.0, keep_fraction=0.0, momentum=0.0)
    plan, cem = (
        solver.solve(BOWL, start(), BOX, generators(range(B))) for solver in (plain, CEM(40, 6, 2))
    )
    assert torch.equal(plan.std, cem.std)


def plain_icem(solver, cost, plan, seed):
    """One environment, sorted lists of (cost, sequence)."""
    generator, mean, std, elites, ever = (
        torch.Generator().manual_seed(seed),
        plan.mean[0],
        plan.std[0],
        [],
        [],
    )
    for iteration, number in enumerate(solver.populations):
        new = [
            BOX.clamp(mean + std * noise)
            for noise in coloured(torch.randn(number, H, A, generator=generator), 2.0)
        ]
        if iteration in (0, solver.num_iterations - 1):
            new[0] = mean
        scored = [(float(cost(sequence[None, None])), sequence) for sequence in new]
        ever += scored
        elites = sorted(scored + elites[:3], key=lambda pair: pair[0])[: solver.num_elites]
        sequences = torch.stack([sequence for _, sequence in elites])
        mean, std = 0.1 * mean + 0.9 * sequences.mean(0), 0.1 * std + 0.9 * sequences.std(0)
    return min(ever, key=lambda pair: pair[0])[1], std


@pytest.mark.parametrize("decay", [1.0, 1.5])
@pytest.mark.parametrize("cost", [BOWL, walls])
def test_icem_equals_its_plain_twin(cost, decay):
    solver, begin = ICEM(50, 10, 5, decay=decay), start(1, mean=0.2)
    for seed in range(3):
        plan = solver.solve(cost, begin, BOX, generators([seed]))
        best, std = plain_icem(solver, cost, begin, seed)
        torch.testing.assert_close(plan.mean[0], best)
        torch.testing.assert_close(plan.std[0], std)


def test_icem_scores_fewer_as_it_goes_on_but_twice_the_elites_at_least():
    solver, cost = ICEM(100, 10, 8, decay=1.5), Counted(BOWL)
    assert solver.populations == (100, 67, 44, 30, 20, 20, 20, 20)
    solver.solve(cost, start(), BOX, generators(range(B)))
    assert cost.calls == list(solver.populations)
    assert sum(cost.calls) == solver.evaluations


@pytest.mark.parametrize("setting", [{"keep_fraction": 1.1}, {"momentum": 1.0}, {"decay": 0.9}])
def test_icem_refuses_settings_without_meaning(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))} must"):
        ICEM(**setting)


# --------------------------------------------------------------------------------------------- MPPI


def test_mppi_weighs_three_candidates_as_by_hand():
    """Costs 0, 3 and 6 have a std of sqrt(6), so at temperature sqrt(6)/2 they are 0, 1 and 2 of
    e's powers apart."""
    weights = softmin(torch.tensor([[3.0, 0.0, 6.0]]), temperature=3 / 6**0.5)
    e = torch.tensor([-1.0, 0.0, -2.0]).exp()
    torch.testing.assert_close(weights[0], e / e.sum())


def test_mppi_weights_know_no_scale_and_no_offset():
    costs = torch.rand(4, 9, dtype=torch.float64)
    torch.testing.assert_close(softmin(costs, 0.5), softmin(1000 * costs + 77, 0.5))


def test_mppi_weights_leave_out_what_diverged():
    kept = torch.tensor([[1.0, 2.0, 4.0]])
    weights = softmin(torch.cat([kept, torch.full((1, 2), torch.inf)], dim=1), 1.0)
    torch.testing.assert_close(weights[:, :3], softmin(kept, 1.0))
    assert (weights[:, 3:] == 0).all()


@pytest.mark.parametrize("costs", [[2.0, 2.0, 2.0], [torch.inf] * 3])
def test_mppi_weights_are_alike_where_nothing_is_better(costs):
    torch.testing.assert_close(softmin(torch.tensor([costs]), 1.0), torch.full((1, 3), 1 / 3))


def test_mppi_weights_the_best_alone_as_the_temperature_falls():
    torch.testing.assert_close(
        softmin(torch.tensor([[3.0, 1.0, 2.0]]), 1e-30), torch.tensor([[0.0, 1.0, 0.0]])
    )


def test_mppi_at_infinite_temperature_is_cem():
    plan = MPPI(40, 6, 4, temperature=torch.inf).solve(BOWL, start(), BOX, generators(range(B)))
    cem = CEM(40, 6, 4).solve(BOWL, start(), BOX, generators(range(B)))
    torch.testing.assert_close(plan.mean, cem.mean)
    torch.testing.assert_close(plan.std, cem.std)


def test_mppi_moves_to_the_weighted_mean():
    seen = []

    def cost(actions):
        seen.append(actions)
        return quadratic(0.3)(actions)

    plan = MPPI(3, 3, 1, temperature=0.7).solve(cost, start(1), BOX, generators([0]))
    candidates, costs = seen[0][0], quadratic(0.3)(seen[0][0])
    weights = (-(costs - costs.min()) / (0.7 * costs.std(correction=0))).exp()
    torch.testing.assert_close(
        seen[1][0, 0], (weights[:, None, None] * candidates).sum(0) / weights.sum()
    )
    assert plan.std.isfinite().all()


def test_mppi_refuses_temperature_0():
    with pytest.raises(ValueError, match="temperature must be above 0"):
        MPPI(temperature=0.0)


# ----------------------------------------------------------------------------------------- gradient

TORCH = {"adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop, "sgd": torch.optim.SGD}


def test_gradient_reaches_the_minimum_of_a_bowl():
    target = torch.tensor([[0.9, -0.3], [0.1, 0.2]])
    plan = Gradient(4, 400, learning_rate=0.1).solve(
        quadratic(target), start(), BOX, generators(range(B))
    )
    assert (plan.mean - target).abs().max() < 1e-4
    assert torch.equal(plan.std, start().std)


@pytest.mark.parametrize("optimiser", ["adam", "rmsprop", "sgd"])
def test_gradient_equals_torchs_optimiser(optimiser):
    """One environment and one sequence, which is the start; a cost that falls at every step, so
    that the last is the best."""

    def cost(actions):
        return (actions - 1.2).square().square().sum((-1, -2)) + actions[..., 0].prod(-1)

    begin = Plan(mean=torch.tensor([[[0.5, -0.9], [0.3, 0.2]]]), std=torch.ones(1, H, A))
    plan = Gradient(1, 12, learning_rate=0.02, optimiser=optimiser).solve(
        cost, begin, BOX, generators([0])
    )
    actions = begin.mean.clone().requires_grad_()
    descent = TORCH[optimiser]([actions], lr=0.02)
    for _ in range(12):
        descent.zero_grad()
        cost(actions).sum().backward()
        descent.step()
        with torch.no_grad():
            actions.copy_(BOX.clamp(actions))
    torch.testing.assert_close(plan.mean, actions.detach())


def test_gradient_leaves_a_local_minimum_by_its_other_starts():
    def cost(actions):  # a shallow valley at -1, where the search begins, and a deep one at 1
        x = actions[..., 0, 0]
        return torch.minimum((x + 1).square(), (x - 1).square() - 1) + actions[..., 1].square().sum(
            -1
        )

    alone, several = (
        Gradient(n, 100).solve(cost, start(mean=-1.0), BOX, generators(range(B))) for n in (1, 30)
    )
    assert (alone.mean[:, 0, 0] + 1).abs().max() < 0.01
    assert (several.mean[:, 0, 0] - 1).abs().max() < 0.01


def test_gradient_leaves_a_diverged_sequence_where_it_is():
    seen = []

    def cost(actions):
        seen.append(actions.detach())
        costs = quadratic(0.5)(actions)
        return torch.cat([costs[:, :1] * torch.nan, costs[:, 1:]], dim=1)

    Gradient(3, 5).solve(cost, start(), BOX, generators(range(B)))
    assert torch.equal(seen[-1][:, 0], seen[0][:, 0])
    assert (seen[-1][:, 1:] != seen[0][:, 1:]).all()


def test_gradient_wants_a_differentiable_cost():
    with pytest.raises(ValueError, match="expected a cost that can be differentiated"):
        Gradient(4, 2).solve(
            lambda actions: quadratic(0.0)(actions.detach()), start(), BOX, generators(range(B))
        )


@pytest.mark.parametrize("setting", [{"learning_rate": 0.0}, {"optimiser": "newton"}])
def test_gradient_refuses_settings_without_meaning(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        Gradient(**setting)


# ------------------------------------------------------------------------------ predictive sampling


def test_predictive_sampling_picks_the_argmin():
    plan = PredictiveSampling(50, num_iterations=1).solve(
        ripples, start(mean=0.2), BOX, generators(range(B))
    )
    for b, generator in enumerate(generators(range(B))):
        tried = BOX.clamp(0.2 + torch.randn(50, H, A, generator=generator))
        tried[0] = 0.2
        assert torch.equal(plan.mean[b], tried[ripples(tried).argmin()])


def test_predictive_sampling_goes_on_around_its_pick_with_less_spread():
    seen = []

    def cost(actions):
        seen.append(actions)
        return BOWL(actions)

    PredictiveSampling(50, 2, shrink=0.5).solve(cost, start(), BOX, generators(range(B)))
    for b, generator in enumerate(generators(range(B))):
        torch.randn(50, H, A, generator=generator)
        pick = seen[0][b, BOWL(seen[0])[b].argmin()]
        expected = BOX.clamp(pick + 0.5 * torch.randn(50, H, A, generator=generator))
        assert torch.equal(seen[1][b, 0], pick)
        assert torch.equal(seen[1][b, 1:], expected[1:])


@pytest.mark.parametrize("shrink", [0.0, 1.1])
def test_predictive_sampling_refuses_a_shrink_without_meaning(shrink):
    with pytest.raises(ValueError, match="shrink must"):
        PredictiveSampling(shrink=shrink)
