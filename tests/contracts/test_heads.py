"""What every head that is trained owes (`contracts.Head`), and known answers for the two that we
have. The map, which is selected, has its own in `tests/planning/test_waypoints.py`."""

import pytest
import torch

from lewm import registry
from lewm.contracts import Head, Hindsight
from lewm.planning.heads.amortised import AmortisedConfig
from lewm.planning.heads.temporal import TemporalConfig

B, H, D, A = 6, 5, 8, 4
TRAINED = [name for name in registry.names("heads") if name != "map"]
every_head = pytest.mark.parametrize("name", TRAINED)


def fresh(name, seed=0):
    torch.manual_seed(seed)
    return registry.load("heads", name)(hidden_dim=32).build(D, A)


def batch(seed=0, horizon=H):
    torch.manual_seed(seed)
    steps = torch.arange(B).float() * 4
    known = torch.arange(horizon) * 5 < steps[:, None]
    return Hindsight(
        torch.randn(B, D),
        torch.randn(B, D),
        steps,
        torch.randn(B, horizon, A) * known[..., None],
        known,
    )


@every_head
def test_is_a_head_whose_loss_is_a_number_that_reaches_every_weight(name):
    head = fresh(name)
    assert isinstance(head, Head)
    head.loss(batch(horizon=head.horizon)).total.backward()
    for key, parameter in head.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@every_head
def test_learns_one_batch(name):
    head = fresh(name)
    data = batch(horizon=head.horizon)
    main, *_ = head.loss(data).terms
    before = float(head.loss(data).terms[main].detach())
    optimiser = torch.optim.Adam(head.parameters(), lr=3e-3)
    for _ in range(300):
        optimiser.zero_grad()
        head.loss(data).total.backward()
        optimiser.step()
    assert float(head.loss(data).terms[main].detach()) < 0.1 * before


@every_head
def test_its_config_makes_it_anew(name):
    head = fresh(name)
    other = type(head.config)(**vars(head.config)).build(D, A)
    other.load_state_dict(head.state_dict())
    data = batch(horizon=head.horizon)
    assert torch.equal(other.loss(data).total, head.loss(data).total)


# ----------------------------------------------------------------------------------------- temporal


@pytest.mark.parametrize("seed", range(5))
def test_the_distance_is_a_quasimetric_whatever_the_weights(seed):
    head = fresh("temporal", seed)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(3).add_(0.1 * torch.randn_like(parameter))
        x, y, z = 3 * torch.randn(3, 2000, D)
        xy, yz, xz = head.distance(x, y), head.distance(y, z), head.distance(x, z)
        assert (head.distance(x, x) == 0).all()
        assert (xy > 0).all()
        assert (xz <= (xy + yz) * (1 + 1e-5)).all()
        assert ((xy - head.distance(y, x)).abs() > 1e-2 * xy).float().mean() > 0.5, (
            "it is symmetric"
        )


def test_distances_broadcast_and_nan_shows():
    head = fresh("temporal")
    now, goal = torch.randn(2, 3, 4, D), torch.randn(2, D)
    found = head.distance(now, goal[:, None, None])
    assert found.shape == (2, 3, 4)
    torch.testing.assert_close(found[1, 2, 3], head.distance(now[1, 2, 3], goal[1]))
    now[0, 1, 2, 3] = torch.nan
    assert head.distance(now, goal[:, None, None]).isnan().nonzero().tolist() == [[0, 1, 2]]


def test_a_goal_that_is_reached_gives_a_gradient_that_is_a_number():
    now = torch.randn(B, D, requires_grad=True)
    fresh("temporal").distance(now, now.detach().clone()).sum().backward()
    assert now.grad.isfinite().all()


@pytest.mark.parametrize("expectile", [0.1, 0.5])
def test_of_several_ways_the_short_ones_count(expectile):
    """One pair of places, reached in 3 or in 63 steps equally often. At the optimum of an expectile
    the two sides pull alike:

    (1 - e) (p - log 4) = e (log 64 - p), hence p = log 4 + e (log 64 - log 4).
    """
    head = TemporalConfig(hidden_dim=8, expectile=expectile, apart=0).build(D, A)
    now, goal = torch.randn(2, 1, D).expand(2, B, D)
    nothing = torch.zeros(B, 0, A)
    data = Hindsight(
        now, goal, torch.tensor([3.0, 63.0] * (B // 2)), nothing, nothing[..., 0].bool()
    )
    optimiser = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(250):
        optimiser.zero_grad()
        head.loss(data).total.backward()
        optimiser.step()
    expected = 4 * 16**expectile - 1
    assert head.distance(now, goal)[0].item() == pytest.approx(expected, rel=0.03)


def test_places_that_no_way_connects_are_held_apart():
    """Two lines of places side by side, with ways along each of them and none across."""
    across = {}
    for apart in (0.0, 0.05):
        torch.manual_seed(0)
        head = TemporalConfig(hidden_dim=32, apart=apart).build(2, A)
        optimiser = torch.optim.Adam(head.parameters(), lr=3e-3)
        for _ in range(200):
            line, start, end = torch.randint(0, 2, (64,)).float(), torch.rand(64), torch.rand(64)
            now, goal = torch.stack([start, 0.2 * line], 1), torch.stack([end, 0.2 * line], 1)
            nothing = torch.zeros(64, 0, A)
            data = Hindsight(now, goal, 30 * (end - start).abs(), nothing, nothing[..., 0].bool())
            optimiser.zero_grad()
            head.loss(data).total.backward()
            optimiser.step()
        place = torch.linspace(0, 1, 9)
        sides = [torch.stack([place, torch.full((9,), y)], 1) for y in (0.0, 0.2)]
        across[apart] = head.distance(*sides).mean().item()
        along = head.distance(sides[0][:-4], sides[0][4:]).mean().item()
        assert along == pytest.approx(15, rel=0.3)
    assert across[0.0] < 10
    assert across[0.05] > 40


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"expectile must be below 1, got 1\.5"):
        TemporalConfig(expectile=1.5)
    with pytest.raises(ValueError, match="must be at least 1"):
        TemporalConfig(metric_dim=0)
    with pytest.raises(ValueError, match="apart must be 0 or more: it must not be negative"):
        TemporalConfig(apart=-1)
    with pytest.raises(ValueError, match="horizon must be at least 1, got 0"):
        AmortisedConfig(horizon=0)


# ---------------------------------------------------------------------------------------- amortised


def test_what_is_not_known_is_not_learnt():
    head, data = fresh("amortised"), batch()
    unknown = torch.where(data.known[..., None], data.blocks, torch.full_like(data.blocks, 99.0))
    changed = Hindsight(data.now, data.goal, data.steps, unknown, data.known)
    assert torch.equal(head.loss(changed).total, head.loss(data).total)
    plan = head.plan(data.now, data.goal, data.steps)
    assert torch.isclose(head.loss(data).total, (plan - data.blocks)[data.known].square().mean())
    nothing = Hindsight(
        data.now, data.goal, data.steps * 0, data.blocks, torch.zeros_like(data.known)
    )
    assert head.loss(nothing).total.item() == 0


def test_a_plan_has_blocks_and_depends_on_the_time_that_is_left():
    head, data = fresh("amortised"), batch()
    plan = head.plan(data.now, data.goal, torch.full((B,), 10.0))
    assert plan.shape == (B, H, A)
    assert not torch.allclose(plan, head.plan(data.now, data.goal, torch.full((B,), 20.0)))
    at_once = [
        head.plan(data.now, data.goal, torch.full((B,), steps)) for steps in (1.0, 0.0, -3.0)
    ]
    assert torch.equal(at_once[0], at_once[1])
    assert torch.equal(at_once[0], at_once[2])


def test_a_batch_of_another_horizon_is_refused():
    with pytest.raises(ValueError, match="expected batches of 5 blocks, as horizon says, got 3"):
        fresh("amortised").loss(batch(horizon=3))
