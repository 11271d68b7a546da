"""Mamba and Titans in the predictor: twins in plain numpy, equal parameters, a state that goes on,
and a training that leaves some rates undecayed."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lewm import registry
from lewm.contracts import Box, DataSpec, Plan, Undecayed
from lewm.models.lewm import LeWMConfig
from lewm.models.nn.layers import PredictorBlock
from lewm.models.nn.mixers import LANES, Mamba, Titans, matched_mlp_dim, recurrence
from lewm.planning.objectives.l2 import L2
from lewm.planning.solvers.cem import CEM
from lewm.runs import checkpoints
from lewm.training.train import train
from tests.support.knobs import ANALYSED
from tests.support.models import SPEC
from tests.support.played import MODEL as PLAYED
from tests.support.played import played
from tests.support.point_world import FRAMESKIP, SIZE, STATISTICS
from tests.support.small_models import MIXED, SMALL
from tests.support.tiny import MODEL, TRAINING, write

MIXERS = sorted(MIXED)
POINTS = DataSpec(SIZE, FRAMESKIP, STATISTICS)


def stirred(module, by=0.2):
    """Every weight matters, and nothing is where it began."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return module.eval()


def small(mixer, context=3, **changes):
    torch.manual_seed(0)
    return stirred(
        LeWMConfig(**SMALL["lewm"] | MIXED[mixer] | changes, context=context).build(SPEC), 0.1
    )


def arrays(module):
    return {name: value.detach().numpy() for name, value in module.named_parameters()}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


# ------------------------------------------------------------------------------------------- twins


def plain_mamba(w, u, rank, states):
    """One sequence, (T, width), channel by channel and state by state."""
    d = w["D"].size
    signal, gate = np.split(u @ w["inward.weight"].T, 2, axis=1)
    taps, h, out = w["conv_taps"], np.zeros((d, states)), []
    for t in range(len(u)):
        x = w["conv_bias"].copy()
        for back in range(min(t + 1, len(taps))):
            x += taps[len(taps) - 1 - back] * signal[t - back]
        x = silu(x)
        chosen = w["select.weight"] @ x
        low, B, C = chosen[:rank], chosen[rank : rank + states], chosen[rank + states :]
        delta = np.log1p(np.exp(w["delta.weight"] @ low + w["delta.bias"]))
        y = np.zeros(d)
        for c, n in itertools.product(range(d), range(states)):
            h[c, n] = np.exp(-delta[c] * np.exp(w["A_log"][c, n])) * h[c, n]
            h[c, n] += delta[c] * B[n] * x[c]
            y[c] += C[n] * h[c, n]
        out.append(w["out.weight"] @ ((y + w["D"] * x) * silu(gate[t])))
    return np.stack(out)


def plain_titans(w, u, heads, window):
    """One sequence, (T, width), head by head."""
    width = w["out.weight"].shape[1] // heads
    attended, reads = np.zeros((2, len(u), heads * width))
    q, k, v = np.split(u @ w["qkv.weight"].T, 3, axis=1)
    wanted, keys, values = np.split(u @ w["memory_qkv.weight"].T, 3, axis=1)
    gates = sigmoid(u @ w["gates.weight"].T + w["gates.bias"])
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        M, S = w["first"][head].copy(), np.zeros((width, width))
        for t in range(len(u)):
            scores = {
                s: q[t, own] @ k[s, own] / np.sqrt(width) + w["distance"][head, t - s]
                for s in range(max(0, t - window + 1), t + 1)
            }
            total = sum(np.exp(score) for score in scores.values())
            for s, score in scores.items():
                attended[t, own] += np.exp(score) / total * v[s, own]
            alpha, eta, theta = gates[t, [head, heads + head, 2 * heads + head]]
            key = keys[t, own] / np.linalg.norm(keys[t, own])
            S = eta * S - theta * np.outer(M @ key - values[t, own], key)
            M = (1 - alpha) * M + S
            reads[t, own] = M @ (wanted[t, own] / np.linalg.norm(wanted[t, own]))
    gated = attended * sigmoid(w["read_weight"] * reads + w["read_bias"])
    return gated @ w["out.weight"].T + w["out.bias"]


@pytest.mark.parametrize("mixer", MIXERS)
def test_it_is_the_recurrence_written_out(mixer):
    torch.manual_seed(0)
    module = stirred(recurrence(mixer, 8, 2, 3)).double()
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    found = module(x)[0].detach().numpy()
    for row, asked in zip(found, x.numpy(), strict=True):
        plain = (
            plain_mamba(arrays(module), asked, 1, 16)
            if mixer == "mamba"
            else plain_titans(arrays(module), asked, 2, 3)
        )
        np.testing.assert_allclose(row, plain, rtol=1e-10, atol=1e-12)


def test_mamba_with_constant_rates_is_a_sum_of_fading_inputs():
    """Delta, B and C held fast: h_t = sum_s exp(-(t - s) delta A) delta x_s B, in closed form."""
    torch.manual_seed(0)
    mamba = Mamba(4, states=2).double().eval()
    with torch.no_grad():
        mamba.conv_taps.zero_()
        mamba.conv_taps[-1] = 1
        mamba.conv_bias.zero_()
        mamba.delta.weight.zero_()
        mamba.delta.bias.fill_(0.7)
        mamba.D.zero_()
    x = torch.randn(1, 6, 4, dtype=torch.float64)
    signal, gate = mamba.inward(x).chunk(2, -1)
    signal = F.silu(signal)[0]
    B, C = mamba.select(signal)[:, 1:].chunk(2, -1)
    delta, rates = np.log1p(np.exp(0.7)), torch.tensor([1.0, 2.0], dtype=torch.float64)
    expected = torch.zeros_like(signal)
    for t, s in itertools.product(range(6), range(6)):
        if s <= t:
            fading = torch.exp(-(t - s) * delta * rates)
            expected[t] += (fading * B[s] * C[t]).sum() * delta * signal[s]
    torch.testing.assert_close(mamba(x)[0][0], mamba.out(expected * F.silu(gate[0])))


def test_a_memory_that_forgets_nothing_holds_what_was_written():
    """theta = 1, alpha = eta = 0: after a write the key reads its value, others what they did."""
    torch.manual_seed(0)
    titans = Titans(8, 1, 4).double().eval()
    with torch.no_grad():
        titans.gates.bias.copy_(torch.tensor([-80.0, -80.0, 80.0]))
    x = torch.randn(1, 1, 8, dtype=torch.float64)
    M = titans(x)[1][0][0, 0]
    key, value = titans.memory_qkv(x)[0, 0, 4:].chunk(2)
    key = F.normalize(key, dim=0)
    other = torch.randn(4, dtype=torch.float64)
    other = other - (other @ key) * key
    torch.testing.assert_close(M @ key, value)
    torch.testing.assert_close(M @ other, titans.first[0] @ other)


def test_how_they_begin():
    torch.manual_seed(0)
    mamba, titans = Mamba(64), Titans(64, 4, 16)
    delta = F.softplus(mamba.delta.bias)
    assert 1e-3 <= delta.min() < 2e-3 < 5e-2 < delta.max() <= 0.1001
    assert abs(delta.log().mean() - np.log(1e-2)) < 0.3  # log-uniform
    torch.testing.assert_close(mamba.A_log.exp(), torch.arange(1.0, 17).expand(128, 16))
    assert (mamba.D == 1).all()
    gates = titans.gates(torch.randn(5, 64)).sigmoid().unflatten(-1, (3, 4))
    torch.testing.assert_close(gates, torch.tensor([0.05, 0.5, 0.5])[:, None].expand(5, 3, 4))


# ------------------------------------------------------------------------------------------- state


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_state_says_all_of_the_past(mixer):
    """However a sequence is cut, its parts give what the whole does, and no later token matters."""
    torch.manual_seed(0)
    module = stirred(recurrence(mixer, 8, 2, 4)).double()
    x = torch.randn(3, 8, 8, dtype=torch.float64)
    whole = module(x)[0]
    for cuts in ((1,) * 8, (3, 5), (5, 1, 2)):
        state, parts = None, []
        for part in x.split(cuts, dim=1):
            y, state = module(part, state)
            parts.append(y)
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(module(x[:, :5])[0], whole[:, :5], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mixer", MIXERS)
def test_what_was_seen_long_ago_still_matters(mixer):
    """Far beyond what the window and the convolution see; the size of the state stays."""
    torch.manual_seed(0)
    module = stirred(recurrence(mixer, 8, 2, 4)).double()
    x = torch.randn(1, 30, 8, dtype=torch.float64).requires_grad_()
    y, state = module(x)
    (slope,) = torch.autograd.grad(y[0, -1].sum(), x)
    assert (slope[0].abs().sum(-1) > 0).all()
    sizes = {"mamba": [(1, 3, 16), (1, 16, 16)], "titans": [(1, 2, 4, 4)] * 2 + [(1, 2, 2, 4)] * 2}
    for left in (state, module(x[:, :4])[1]):
        assert [tuple(part.shape) for part in left] == sizes[mixer]


@pytest.mark.parametrize("mixer", MIXERS)
def test_gradients_go_through_time_and_through_the_inner_learning(mixer):
    torch.manual_seed(0)
    module = stirred(recurrence(mixer, 4, 1, 2)).double()
    x = torch.randn(1, 4, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: module(x)[0], x)
    module(x)[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize("context", [1, 3])
@pytest.mark.parametrize("mixer", MIXERS)
def test_a_rollout_is_the_predictor_over_the_whole_history(mixer, context):
    """No window slides: each latent is what `predict` says of all before it, in one pass."""
    model = small(mixer, context).double()
    for k in (1, context, context + 2):
        seen, past, actions = question_of(model, k)
        for rollout in (model.rollout, model.engine()):
            latents = rollout(seen, past, actions)
            for n in range(actions.shape[1]):
                path = torch.cat([seen, latents[:, n]], 1)[:, :-1]
                blocks = torch.cat([past, actions[:, n]], 1)
                expected = model.predict(path, blocks)[:, k - 1 :]
                torch.testing.assert_close(latents[:, n], expected, rtol=1e-9, atol=1e-9)
        given = torch.cat([past, actions[:, 0]], 1)
        torch.testing.assert_close(model.open_loop(seen, given), rollout(seen, past, actions)[:, 0])


def question_of(model, k):
    g = torch.Generator().manual_seed(k)
    dtype = next(model.parameters()).dtype
    shapes = (2, k, model.latent_dim), (2, k - 1, 10), (2, 3, 6, 10)
    return tuple(torch.randn(*shape, generator=g, dtype=dtype) for shape in shapes)


@pytest.mark.parametrize("mixer", MIXERS)
def test_an_environment_gets_the_same_bits_alone_as_in_a_batch(mixer):
    engine = small(mixer).engine()
    with torch.no_grad():
        for k, candidates in ((1, 5), (3, 17), (3, 40)):
            g = torch.Generator().manual_seed(k)
            shapes = (3, k, 24), (3, k - 1, 10), (3, candidates, 4, 10)
            asked = tuple(torch.randn(*shape, generator=g) for shape in shapes)
            alone = torch.cat([engine(*(x[i : i + 1] for x in asked)) for i in range(3)])
            assert torch.equal(engine(*asked), alone)


@pytest.mark.parametrize("mixer", MIXERS)
def test_an_engine_has_weights_of_its_own_and_one_precision(mixer):
    model = small(mixer)
    engine, asked = model.engine(), question_of(model, 2)
    before = engine(*asked)
    actions = asked[2].clone().requires_grad_()
    engine(*asked[:2], actions).sum().backward()
    assert actions.grad.abs().sum() > 0
    stirred(model)
    assert torch.equal(engine(*asked), before)
    for precision in ("bfloat16", "int8", "float64"):
        with pytest.raises(
            ValueError, match=f"expected precision 'float32' .*{mixer}.*{precision}"
        ):
            model.engine(precision)


def test_a_frozen_memory_reads_what_was_seen_and_writes_nothing_predicted():
    model = small("titans").double()
    asked = question_of(model, 3)
    writing = model.rollout(*asked)
    model.predictor.frozen_memory = True
    frozen = model.rollout(*asked)
    torch.testing.assert_close(model.engine()(*asked), frozen)
    # the first block leaves a frame that was seen
    torch.testing.assert_close(frozen[:, :, 0], writing[:, :, 0])
    assert (frozen[:, :, 1:] - writing[:, :, 1:]).abs().amin(-1).max() > 1e-6

    torch.manual_seed(0)
    titans = stirred(Titans(8, 2, 4)).double()
    x = torch.randn(1, 5, 8, dtype=torch.float64)
    _, before = titans(x[:, :2])
    _, after = titans(x[:, 2:], before, write=False)
    assert all(torch.equal(a, b) for a, b in zip(before[:2], after[:2], strict=True))


# -------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("size", ["tiny", "paper"])
@pytest.mark.parametrize("context", [1, 3, 7])
def test_all_mixers_have_equally_many_parameters(mixer, size, context):
    base = dataclasses.replace(getattr(LeWMConfig, size)(), context=context)
    spec = dataclasses.replace(SPEC, image_size=64 if size == "tiny" else 224)
    counts = []
    for name in ("attention", mixer):
        with torch.device("meta"):
            predictor = dataclasses.replace(base, predictor_mixer=name).build(spec).predictor
        counts.append(sum(p.numel() for p in predictor.parameters()))
    assert abs(counts[1] / counts[0] - 1) < 0.02


@pytest.mark.parametrize(("mixer", "count"), [("mamba", 32_640), ("titans", 30_680)])
def test_a_mixer_has_the_parameters_of_its_formula(mixer, count):
    assert sum(p.numel() for p in recurrence(mixer, 64, 4, 16).parameters()) == count


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_mlp_makes_up_the_difference(mixer):
    block = PredictorBlock(64, 4, 16, 256, 0.0, mixer=mixer)
    hidden = block.mlp[0].out_features
    assert hidden == matched_mlp_dim(mixer, 64, 4, 16, 256)
    assert hidden % LANES == 0
    assert matched_mlp_dim("attention", 64, 4, 16, 256) == 256
    with pytest.raises(ValueError, match=f"{mixer} has more.*got predictor_mlp_dim=8. Make it"):
        LeWMConfig(**SMALL["lewm"] | {"predictor_mixer": mixer, "predictor_mlp_dim": 8})


def test_an_unknown_mixer_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown mixer 'manba'\. Did you mean 'mamba'"):
        LeWMConfig(predictor_mixer="manba")


def test_weights_of_attention_have_the_names_that_they_had():
    names = LeWMConfig(**SMALL["lewm"]).build(SPEC).state_dict()
    block = "predictor.blocks.0."
    assert "predictor.position" in names
    assert {n.removeprefix(block) for n in names if n.startswith(block)} == {
        *(f"{part}.{w}" for part in ("modulation", "norm_attention", "norm_mlp", "mlp.0", "mlp.3")
          for w in ("weight", "bias")),
        *("attention.qkv.weight", "attention.out.weight", "attention.out.bias"),
    }  # fmt: skip


# ---------------------------------------------------------------------------------------- training


def test_rates_of_mamba_do_not_decay(tmp_path):
    """A learning rate of almost nothing and a decay that makes up for it: what decays shrinks."""
    data = write(tmp_path / "episodes.h5")
    config = dataclasses.replace(
        MODEL, predictor_mixer="mamba", predictor_mlp_dim=160, predictor_head_dim=4
    )
    training = dataclasses.replace(
        TRAINING, updates=1, learning_rate=1e-9, weight_decay=5e8, warmup=0.0
    )
    model = checkpoints.load(train(config, training, data, tmp_path / "run"))
    torch.manual_seed(training.seed)
    begun = config.build(model.spec)
    assert isinstance(model, Undecayed)
    assert model.undecayed == {
        f"predictor.blocks.{i}.mixer.{name}" for i in (0, 1) for name in ("A_log", "D")
    }
    after = dict(model.named_parameters())
    for name, value in begun.named_parameters():
        kept = 1.0 if name in model.undecayed else 0.5
        torch.testing.assert_close(after[name], kept * value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_stopped_training_goes_on_bit_by_bit(mixer, tmp_path):
    data = write(tmp_path / "episodes.h5")
    config = dataclasses.replace(MODEL, predictor_mixer=mixer, predictor_mlp_dim=160)
    training = dataclasses.replace(TRAINING, updates=6, checkpoint_every=3)

    def stop(progress):
        if progress.done == 3 and progress.stage == "train":
            raise KeyboardInterrupt

    whole = train(config, training, data, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(config, training, data, tmp_path / "halves", report=stop)
    halves = train(config, training, data, tmp_path / "halves")
    for name in ("weights", "optimiser"):
        first, second = (
            (checkpoints.latest(run) / f"{name}.safetensors").read_bytes()
            for run in (whole, halves)
        )
        assert first == second


# ----------------------------------------------------------------------------------- planned with


def played_with(mixer):
    sizes = {"context": 2, "predictor_mlp_dim": 128, "predictor_mixer": mixer}
    torch.manual_seed(3)
    model = stirred(dataclasses.replace(PLAYED, **sizes).build(POINTS), 0.1)
    return played(model=model)


@pytest.mark.parametrize("name", registry.names("solvers"))
@pytest.mark.parametrize("mixer", MIXERS)
def test_every_solver_searches_its_rollouts(mixer, name):
    kind = registry.load("solvers", name)
    small = {"num_candidates": 16, "num_elites": 4, "num_iterations": 4}
    small |= {"search": CEM(16, 4, 4), "spread": 1.0}
    solver = kind(**{f.name: small[f.name] for f in dataclasses.fields(kind) if f.name in small})
    model = played_with(mixer).model
    engine = model.engine()
    g = torch.Generator().manual_seed(0)
    seen, goal = (torch.randn(2, n, 5, generator=g) for n in (2, 1))
    past = torch.randn(2, 1, model.spec.block_dim, generator=g)

    def cost(actions):
        return L2().cost(engine(seen, past, actions), goal[:, 0])

    width = model.spec.block_dim
    start = Plan(torch.zeros(2, 3, width), torch.ones(2, 3, width))
    box = Box(torch.full((width,), -2.0), torch.full((width,), 2.0))
    plan = solver.solve(cost, start, box, [torch.Generator().manual_seed(i) for i in (0, 1)])
    with torch.no_grad():
        assert (cost(plan.mean[:, None]) < cost(start.mean[:, None])).all()


@pytest.mark.parametrize("name", registry.names("analyses"))
@pytest.mark.parametrize("mixer", MIXERS)
def test_every_analysis_takes_it(mixer, name):
    result = registry.load("analyses", name)(**ANALYSED[name]).run(played_with(mixer))
    assert result.tables()
