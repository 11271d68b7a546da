"""The engine against its plain twin, `rollout`: the same numbers, less arithmetic, and no hold on
the model."""

import copy
import itertools

import pytest
import torch

from lewm import devices
from lewm.benchmarks.engine import flops
from lewm.models.lewm import LeWM
from lewm.models.nn.engine import ROWS_AT_LEAST, Engine
from tests.support.models import model, question

NO_BF16 = pytest.mark.skipif(
    not devices.multiplies_bf16("cpu"), reason="this CPU has no matrix products in bfloat16"
)
BF16 = pytest.param("bfloat16", marks=NO_BF16)


def costs(rollout):
    goal = torch.ones(rollout.shape[-1], dtype=rollout.dtype)
    return (rollout[:, :, -1] - goal).square().sum(-1)


@pytest.mark.parametrize("context", [1, 2, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {"latent_dim": 32},
        {"latent_dim": 24},
        {"latent_dim": 24, "projector_norm": False},
        {"predictor_head_dim": 4},
    ],
    ids=str,
)
def test_it_is_the_rollout_in_float64(context, changes):
    """Any slip, of a position, a block or a fold, is larger than rounding by ten orders of
    magnitude."""
    plain = model(context, **changes).double()
    engine = plain.engine()
    with torch.no_grad():
        # one latent more than it looks at, too
        for k, horizon in itertools.product(range(1, context + 2), range(1, 6)):
            asked = question(plain, k, horizon=horizon)
            torch.testing.assert_close(
                engine(*asked), plain.rollout(*asked), rtol=1e-10, atol=1e-10
            )


@pytest.mark.parametrize(("context", "full"), [(1, False), (3, False), (1, True), (3, True)])
def test_costs_in_float32_are_the_same_to_rounding(context, full):
    plain = model(context, full=full)
    engine = plain.engine()
    with torch.no_grad():
        for k in range(1, context + 1):
            asked = question(plain, k, environments=1, candidates=8)
            torch.testing.assert_close(
                costs(engine(*asked)), costs(plain.rollout(*asked)), rtol=1e-5, atol=0
            )


@pytest.mark.parametrize("full", [False, True])
def test_gradients_reach_the_actions(full):
    """At full size the large products take another way where a gradient is asked."""
    plain = model(3, full=full)
    if not full:
        plain = plain.double()
    context, past, actions = question(plain, 2)
    gradients, values = [], []
    for unroll in (plain.engine(), plain.rollout):
        free = actions.clone().requires_grad_()
        values.append(costs(unroll(context, past, free)))
        gradients.append(torch.autograd.grad(values[-1].sum(), free)[0])
    tolerance = 1e-4 if full else 1e-9
    torch.testing.assert_close(values[0], values[1], rtol=tolerance, atol=0)
    torch.testing.assert_close(
        gradients[0], gradients[1], rtol=tolerance, atol=tolerance * float(gradients[1].abs().max())
    )
    assert gradients[1].abs().amin(dim=(0, 1, 3)).min() > 0


@pytest.mark.parametrize("precision", ["float32", BF16, "int8"])
@pytest.mark.parametrize("full", [False, True])
def test_it_keeps_its_hands_off_the_model_and_the_inputs(precision, full):
    plain = model(3, full=full)
    before = copy.deepcopy(plain.state_dict())
    engine = Engine(plain.state_dict(), plain.config.predictor_heads, precision)
    asked = question(plain, 2)
    copies = [x.clone() for x in asked]
    with torch.no_grad():
        answer = engine(*asked)
        assert all(torch.equal(a, b) for a, b in zip(asked, copies, strict=True))
        assert all(torch.equal(before[name], value) for name, value in plain.state_dict().items())
        for value in plain.state_dict().values():
            value.zero_()
        assert torch.equal(engine(*asked), answer), "an engine holds the weights it was built from"


@pytest.mark.parametrize(
    ("precision", "error"), [pytest.param("bfloat16", 0.03, marks=NO_BF16), ("int8", 0.12)]
)
def test_low_precision_ranks_nearly_the_same(precision, error):
    plain = model(3, full=True)
    engine = Engine(plain.state_dict(), plain.config.predictor_heads, precision)
    with torch.no_grad():
        asked = question(plain, 1, environments=1, candidates=32)
        ours, exact = engine(*asked), plain.rollout(*asked)
    assert ours.dtype == torch.float32
    assert 1e-4 < float((ours - exact).std() / exact.std()) < error
    ranks = torch.stack([costs(x)[0].argsort().argsort().float() for x in (ours, exact)])
    assert torch.corrcoef(ranks)[0, 1] > 0.95


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("int8", 5e-3)])
def test_environments_that_share_a_batch_do_not_change_each_other(precision, tolerance):
    plain = model(3, full=True)
    engine = plain.engine(precision)
    with torch.no_grad():
        asked = question(plain, 2, environments=3)
        asked[2][1] *= 30  # a neighbour that would stretch the scale of all
        together = engine(*asked)
        alone = torch.cat([engine(*(x[i : i + 1] for x in asked)) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=tolerance * float(alone.std()))


@pytest.mark.parametrize("changes", [{}, {"latent_dim": 24}, {"full": True}], ids=str)
@pytest.mark.parametrize("candidates", [1, 20])
def test_an_environment_gets_the_same_bits_alone_as_in_a_batch(changes, candidates):
    """A single bit would be enough to make another sequence an elite, and so another plan."""
    plain = model(3, **changes)
    engine = plain.engine()

    def same(unroll, asked):
        return torch.equal(
            unroll(*asked), torch.cat([unroll(*(x[i : i + 1] for x in asked)) for i in range(3)])
        )

    with torch.no_grad():
        if not same(plain.rollout, question(plain, 2, environments=3, candidates=20, horizon=2)):
            pytest.skip("this machine's library rounds a large product otherwise than a small one")
        for k in (1, 2, 3):
            assert same(
                engine, question(plain, k, environments=3, candidates=candidates, horizon=2)
            )


def arithmetic(of: LeWM, k: int, candidates: int, horizon: int) -> int:
    """Multiplications and additions of an unrolling for one environment, counted by hand, token by
    token."""
    c, K = of.config, of.context
    width, inner = c.predictor_width, c.predictor_heads * c.predictor_head_dim
    mlp, value, remember = 2 * width * c.predictor_mlp_dim, width * inner, 2 * width * inner
    oldest, later = width * width, 4 * value
    action = 4 * width * (of.spec.block_dim + width)  # to 4 x width and back
    block = action + c.predictor_depth * 6 * width * width
    leave = c.projector_dim * (width + of.latent_dim)
    enter = width * of.latent_dim if width != of.latent_dim else 0
    few = ROWS_AT_LEAST  # of what depends on the past alone
    total = few * (k - 1) * block + candidates * horizon * (block + leave)
    for newest in range(k + horizon - 1):
        slides = newest >= K
        asked = newest >= k - 1
        for token in range(max(0, newest - K + 1) if slides else newest, newest + 1):
            rows = candidates if token >= k - 1 else few
            place = min(newest, K - 1) - (newest - token)
            followed = token < newest or (newest + 1 < min(K, k + horizon - 1))
            attention = later if place else oldest + followed * remember
            layers = c.predictor_depth * (attention + mlp)
            if token < newest or not asked:  # of the last layer, keys and values
                layers += remember - attention - mlp
            # The last latent of the context is entered once per environment, though its block
            # differs by candidate.
            total += rows * layers + (few if token < k else rows) * enter
    return 2 * total


@pytest.mark.parametrize(("context", "k"), [(1, 1), (2, 1), (3, 1), (3, 2), (3, 3)])
@pytest.mark.parametrize("horizon", [1, 2, 5])
def test_it_does_the_arithmetic_that_is_needed_and_no_more(context, k, horizon):
    for plain in (model(context, latent_dim=24), model(context, latent_dim=32)):
        asked = question(plain, k, environments=1, candidates=20, horizon=horizon)
        # A later token has no product of keys and queries here: that is done by sums, less than a
        # hundredth of it all.
        assert flops(plain.engine(), *asked) == arithmetic(plain, k, 20, horizon)


@pytest.mark.parametrize(("context", "saved"), [(1, 1.29), (3, 1.60)])
def test_what_is_saved_at_full_size(context, saved):
    plain = model(context, full=True)
    asked = question(plain, 1, environments=1, candidates=20)
    engine = plain.engine()
    done = flops(engine, *asked)
    assert done == arithmetic(plain, 1, 20, 5)
    assert flops(plain.rollout, *asked) > saved * done


def test_what_cannot_be_is_refused():
    plain = model(2)
    with pytest.raises(ValueError, match=r"float32, bfloat16, int8, got 'float16'"):
        plain.engine("float16")
    with pytest.raises(ValueError, match=r"past_actions must hold k-1=1 .*got 0"):
        plain.engine()(torch.zeros(1, 2, 192), torch.zeros(1, 0, 10), torch.zeros(1, 1, 1, 10))
    with pytest.raises(ValueError, match="eval"):
        plain.train().engine()
    actions = torch.zeros(1, 1, 1, 10, requires_grad=True)
    with pytest.raises(ValueError, match="only ranks"):
        plain.eval().engine("int8")(torch.zeros(1, 1, 192), torch.zeros(1, 0, 10), actions)
    with pytest.raises(ValueError, match="a CPU with quantised kernels, got meta"):
        plain.to("meta").engine("int8")


def test_bfloat16_is_refused_where_it_is_slow(monkeypatch):
    monkeypatch.setattr(devices, "fastest_precision", lambda device: "32-true")
    with pytest.raises(ValueError, match="multiplies faster in bfloat16, got cpu"):
        model().engine("bfloat16")


@pytest.mark.parametrize("full", [False, True])
def test_bfloat16_is_refused_where_there_is_none(full, monkeypatch):
    """In the engine's own words, whatever it would have met: on a CPU without AVX-512 small weights
    would be emulated and large ones end in a library's error."""
    monkeypatch.setattr(devices, "multiplies_bf16", lambda device: False)
    plain = model(full=full)
    with pytest.raises(ValueError, match=r"products in bfloat16, got cpu.* Use 'float32'"):
        Engine(plain.state_dict(), plain.config.predictor_heads, "bfloat16")
    assert devices.fastest_precision("cpu") == "32-true"  # so nobody chooses it either
    with pytest.raises(ValueError, match="bfloat16"):
        plain.engine("bfloat16")


@NO_BF16
def test_bfloat16_is_given_where_it_is_fast(monkeypatch):
    monkeypatch.setattr(devices, "fastest_precision", lambda device: "bf16-mixed")
    assert model().engine("bfloat16")(*question(model())).dtype == torch.float32
