"""Dreamer's world model: each loss against a plain twin or a closed form, what a latent holds, and
planning by its own costs."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.distributions import OneHotCategorical, kl_divergence

from lewm import registry
from lewm.contracts import Batch, DataSpec, Judging, Statistics, WorldSpec
from lewm.data.collecting import collect
from lewm.models import dreamer
from lewm.models.dreamer import CARRIED, DreamerConfig
from lewm.models.nn.rssm import RSSM, draw, kl, mode
from lewm.planning.agent import Agent
from lewm.planning.config import PlanningConfig, build_planning, describe_planning
from lewm.planning.heads.map import MapConfig
from lewm.planning.objectives.own import Own
from lewm.planning.solvers.amortised import Amortised
from lewm.planning.solvers.cem import CEM
from lewm.planning.solvers.gradient import Gradient
from lewm.runs import checkpoints
from lewm.runs.run import open_run
from lewm.training.train import train
from tests.support import knobs, tiny
from tests.support.small_models import SMALL

SPEC = DataSpec(32, 5, Statistics((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), (0.1, -0.2), (1.0, 0.5)))
WORLD = WorldSpec("square", "1", 32, (-1.0, -1.0), (1.0, 1.0), ("x", "y"), ("", ""), 50)


class Proposal:
    """A head that always proposes the same two blocks."""

    def plan(self, now, goal, steps):
        return torch.full((len(now), 2, 10), 0.1)


class Steps:
    """A distance that knows nothing but norms."""

    def embed(self, latents):
        return latents

    def between(self, now, goal):
        return (now - goal).norm(dim=-1)


SOLVERS = {
    "amortised": Amortised(network=Proposal(), countdown=10, search=CEM(8, 2, 1)),
    "cem": CEM(8, 2, 2),
    "gradient": Gradient(4, 2),
    "icem": registry.load("solvers", "icem")(8, 2, 2),
    "mppi": registry.load("solvers", "mppi")(8, 2, 2),
    "predictive-sampling": registry.load("solvers", "predictive-sampling")(8, 2),
    "waypoints": registry.load("solvers", "waypoints")(
        Proposal(), Steps(), MapConfig(3).build(105, 10), CEM(8, 2, 1)
    ),
}


def made(**changes):
    torch.manual_seed(0)
    model = DreamerConfig(**SMALL["dreamer"] | {"context": 3} | changes).build(SPEC)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def batch(size=3, length=4):
    generator = torch.Generator().manual_seed(1)
    shape = (size, length, 3, 32, 32)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return Batch(pixels, torch.randn(size, length - 1, 10, generator=generator))


# ------------------------------------------------------------------------------- the recurrent part


def test_kl_is_that_of_independent_categoricals():
    q = torch.tensor([[[0.5, 0.5], [1.0, 0.0]]])
    p = torch.tensor([[[0.25, 0.75], [0.5, 0.5]]])
    wanted = 0.5 * math.log(2) + 0.5 * math.log(2 / 3) + math.log(2)
    assert kl(q, p).item() == pytest.approx(wanted, rel=1e-6)
    assert kl(p, p).item() == 0


def test_a_draw_is_one_hot_as_often_as_it_is_likely_and_passes_the_gradient_on():
    torch.manual_seed(0)
    chances = torch.tensor([[0.7, 0.2, 0.1]]).repeat(4000, 1, 1).requires_grad_()
    drawn = draw(chances)
    assert ((drawn - drawn.round()).abs() < 1e-6).all()
    torch.testing.assert_close(drawn.sum(-1), torch.ones(4000, 1))
    assert drawn.mean(dim=(0, 1)).tolist() == pytest.approx([0.7, 0.2, 0.1], abs=0.03)
    weights = torch.randn(4000, 1, 3)
    (slope,) = torch.autograd.grad((weights * drawn).sum(), chances)
    assert torch.equal(slope, weights)
    assert mode(chances)[0, 0].tolist() == [1, 0, 0]


def test_one_hundredth_of_every_distribution_is_uniform():
    core = RSSM(4, 2, 6, 5, 3, 4, blocks=2, unimix=0.01)
    core.prior_layers[-1].weight.data.mul_(1e4)
    chances = core.prior(torch.randn(50, 6))
    torch.testing.assert_close(chances.sum(-1), torch.ones(50, 3))
    assert chances.min().item() == pytest.approx(0.01 / 4)
    assert chances.max().item() == pytest.approx(0.99 + 0.01 / 4)


def test_the_memory_is_a_gated_recurrent_unit_block_by_block():
    """A twin that keeps the blocks apart and writes the gates out."""
    torch.manual_seed(1)
    core = RSSM(4, 2, 6, 5, 3, 4, blocks=2)
    memory, codes, actions = torch.randn(7, 6), torch.randn(7, 12), torch.randn(7, 2)

    def norm(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + 1e-4).sqrt() * weight

    told = []
    for part, x in zip(core.inputs, (memory, codes, actions), strict=True):
        told.append(F.silu(norm(F.linear(x, part[0].weight, part[0].bias), part[1].weight)))
    blocks = []
    for b in range(2):
        seen = torch.cat([memory[:, 3 * b : 3 * b + 3], *told], dim=1)
        blocks.append(seen @ core.mix.weight[b] + core.mix.bias[b])
    mixed = F.silu(norm(torch.cat(blocks, dim=1), core.mix_norm.weight))
    following = []
    for b in range(2):
        part = slice(3 * b, 3 * b + 3)
        gates = mixed[:, part] @ core.gates.weight[b] + core.gates.bias[b]
        reset, candidate, update = gates[:, :3], gates[:, 3:6], gates[:, 6:]
        candidate = (reset.sigmoid() * candidate).tanh()
        update = (update - 1).sigmoid()
        following.append(update * candidate + (1 - update) * memory[:, part])
    torch.testing.assert_close(core(memory, codes, actions), torch.cat(following, dim=1))


# ----------------------------------------------------------------------------------------- the loss


def plain_loss(model, b, free_bits):
    """(terms, total), row by row and frame by frame, with torch's own divergences and every detach
    written out; and the divergences of all frames. Nothing is drawn at random."""
    c = model.config
    rows = {name: [] for name in ("reconstruction", "dynamics", "representation", "embedding",
                                  "prediction")}  # fmt: skip
    divergences = []

    def divergence(q, p):
        apart = kl_divergence(OneHotCategorical(q), OneHotCategorical(p)).sum()
        return apart if apart > free_bits else torch.tensor(free_bits, dtype=apart.dtype)

    latents = model.encode(b.pixels).detach()
    for pixels, actions, latent in zip(b.pixels, b.actions, latents, strict=True):
        memory, codes = torch.zeros(1, 32), None
        for t, frame in enumerate(pixels):
            if t:
                action = actions[None, t - 1]
                memory = model.rssm(memory, codes, action / action.abs().clamp(min=1))
            shown = frame.float()[None] / 255
            mean = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)
            embedding = model.encoder((shown - mean) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1))
            p, q = model.rssm.prior(memory), model.rssm.posterior(memory, embedding)
            codes = F.one_hot(q.argmax(-1), 8) + q - q.detach()
            codes = codes.flatten(1)
            state = torch.cat([memory, codes], dim=1)
            rows["reconstruction"].append((model.decoder(state) - shown).square().sum())
            rows["dynamics"].append(divergence(q.detach(), p))
            rows["representation"].append(divergence(q, p.detach()))
            divergences.append(
                kl_divergence(OneHotCategorical(q), OneHotCategorical(p)).sum().item()
            )
            said = model.embedder(state.detach()) - embedding.detach()
            rows["embedding"].append(said.square().sum())
            if t:
                with torch.no_grad():
                    alone = model.rollout(latent[None, t - 1 : t], torch.zeros(1, 0, 10),
                                          actions[None, None, t - 1 : t])[0, 0]  # fmt: skip
                rows["prediction"].append((alone - latent[t]).square().mean())
    terms = {name: torch.stack(values).mean() for name, values in rows.items()}
    weights = {
        "reconstruction": c.reconstruction_weight, "dynamics": c.dynamics_weight,
        "representation": c.representation_weight, "embedding": 1,
    }  # fmt: skip
    return terms, sum(weight * terms[name] for name, weight in weights.items()), divergences


@pytest.mark.parametrize("clipped", [False, True])
def test_the_loss_and_its_gradients_are_those_of_a_plain_twin(clipped, monkeypatch):
    monkeypatch.setattr(dreamer, "draw", mode)
    settings = {"unimix": 0.2, "reconstruction_weight": 0.3, "dynamics_weight": 0.7}
    model, b = made(free_bits=0.0, **settings), batch()
    divergences = sorted(plain_loss(model, b, 0.0)[2])
    # some frames above and some below: it is each frame's own that is free, not the mean's
    free = divergences[len(divergences) // 2] + 1e-4 if clipped else 0.0
    model = made(free_bits=free, **settings)
    found, (terms, total, _) = model.loss(b), plain_loss(model, b, free)
    assert found.terms.keys() == terms.keys()
    for name, value in terms.items():
        torch.testing.assert_close(found.terms[name], value, rtol=1e-4, atol=1e-5, msg=name)
    torch.testing.assert_close(found.total, total, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.latents, model.encode(b.pixels))
    names, weights = zip(*model.named_parameters(), strict=True)
    slopes = [torch.autograd.grad(x, weights, allow_unused=True) for x in (found.total, total)]
    for name, one, other in zip(names, *slopes, strict=True):
        scale = float(other.abs().max())
        assert float((one - other).abs().max()) <= 1e-3 * scale + 1e-5, name


def test_each_place_is_normed_over_its_channels_alone():
    norm, x = dreamer.ChannelNorm(6), torch.randn(2, 6, 3, 4) * torch.arange(1, 13).view(3, 4)
    found = norm(x)
    torch.testing.assert_close(found.square().mean(dim=1), torch.ones(2, 3, 4), rtol=1e-3, atol=0)
    norm.weight.data.copy_(torch.arange(6.0).view(6, 1, 1))
    torch.testing.assert_close(norm(x), found * torch.arange(6.0).view(6, 1, 1))
    other = x.clone()
    other[:, :, 0, 0] += 9
    assert torch.equal(norm(other)[:, :, 1:], norm(x)[:, :, 1:])


def test_the_mean_picture_is_of_all_batches_and_later_of_about_the_last_thousand():
    decoder = made().decoder
    batches = torch.rand(5, 4, 3, 32, 32)
    for pictures in batches:
        decoder.look(pictures)
    torch.testing.assert_close(decoder.mean, batches.mean(dim=(0, 1)))
    decoder.batches.fill_(5000)
    before = decoder.mean.clone()
    decoder.look(batches[0])
    torch.testing.assert_close(decoder.mean, 0.999 * before + 0.001 * batches[0].mean(dim=0))


def slopes(model, name):
    """Parts that a term reaches."""
    model.zero_grad()
    torch.manual_seed(0)
    model.loss(batch()).terms[name].backward()
    parts = {**dict(model.named_children()), "posterior": model.rssm.posterior_layers,
             "prior": model.rssm.prior_layers}  # fmt: skip
    reached = {
        name: any(p.grad is not None and bool(p.grad.any()) for p in part.parameters())
        for name, part in parts.items()
    }
    return {name for name, is_reached in reached.items() if is_reached}


def test_each_term_reaches_the_parts_that_it_is_to_train():
    model = made(free_bits=0.0).train()
    everything = {"encoder", "rssm", "posterior"}
    assert slopes(model, "reconstruction") == everything | {"decoder"}
    assert slopes(model, "dynamics") == everything | {"prior"}  # by the history alone
    assert slopes(model, "representation") == everything
    assert slopes(model, "embedding") == {"embedder"}
    assert not model.loss(batch()).terms["prediction"].requires_grad


def test_of_a_first_frame_the_prior_alone_learns_from_dynamics():
    """There is no history yet through which the posterior could be reached."""
    model = made(free_bits=0.0)
    q = model.rssm.posterior(torch.zeros(2, 32), torch.randn(2, 24)).detach()
    model.zero_grad()
    kl(q, model.rssm.prior(torch.zeros(2, 32))).sum().backward()
    assert all(p.grad is None for p in model.rssm.posterior_layers.parameters())


def test_up_to_the_free_bits_nothing_is_learnt_of_a_divergence():
    model = made(free_bits=1000.0).train()
    assert model.loss(batch()).terms["dynamics"].item() == 1000
    assert slopes(model, "dynamics") == slopes(model, "representation") == set()


def test_the_decoder_draws_what_differs_from_the_mean_picture():
    model, b = made(), batch()
    model.decoder.convolutions[-1].weight.data.zero_()
    model.decoder.convolutions[-1].bias.data.zero_()
    others = Batch(255 - b.pixels // 2, b.actions)
    for each in (b, others):
        model.train().loss(each)
    shown = torch.cat([b.pixels, others.pixels]).flatten(0, 1).float() / 255
    drawn = model.decoder(torch.randn(1, 32 + 48))[0]
    torch.testing.assert_close(drawn, shown.mean(dim=0))
    before = drawn.clone()
    model.eval().loss(b)
    assert torch.equal(model.decoder(torch.randn(1, 32 + 48))[0], before)


# ------------------------------------------------------------------------------------------ latents


def test_a_latent_of_a_frame_remembers_nothing_and_one_imagined_carries_its_memory():
    model = made()
    z = model.encode(batch().pixels)
    embedding, chances, memory, imagined = z.split((24, 48, 32, 1), dim=-1)
    known = model.rssm.posterior(torch.zeros(12, 32), embedding.flatten(0, 1))
    torch.testing.assert_close(chances.flatten(0, 1), known.flatten(1))
    torch.testing.assert_close(chances.unflatten(-1, (6, 8)).sum(-1), torch.ones(3, 4, 6))
    assert not memory.any()
    assert not imagined.any()
    blocks = torch.randn(3, 1, 1, 10)
    after = model.rollout(z[:, :1], torch.zeros(3, 0, 10), blocks)[:, 0, 0]
    action = blocks[:, 0, 0] / blocks[:, 0, 0].abs().clamp(min=1)
    wanted = model.rssm(torch.zeros(3, 32), chances[:, 0], action)
    torch.testing.assert_close(after[:, 72:104] / CARRIED, wanted)
    assert (after[:, 104] == CARRIED).all()
    torch.testing.assert_close(after[:, 24:72], model.rssm.prior(wanted).flatten(1))


def test_what_stands_for_a_draw_is_the_mean_or_the_likeliest_however_unlikely():
    chances = torch.tensor([[[0.4, 0.3, 0.3], [0.1, 0.2, 0.7]]])
    mean, likeliest = (made(imagined=how)._certain(chances) for how in ("mean", "mode"))
    assert torch.equal(mean, chances.flatten(1))
    torch.testing.assert_close(likeliest, torch.tensor([[1.0, 0, 0, 0, 0, 1]]))


def test_what_is_carried_counts_for_nothing_in_a_distance():
    model = made()
    z = model.encode(batch().pixels)
    after = model.rollout(z[:, :1], torch.zeros(3, 0, 10), torch.randn(3, 8, 5, 10))
    squares = (after - z[:, None, None, 1]).square()
    assert squares[..., 72:].sum() < 1e-4 * squares.sum()


def test_the_context_is_filtered_from_its_first_frame():
    model, b = made(), batch()
    z = model.encode(b.pixels)[:, :3]
    blocks = torch.randn(3, 1, 1, 10)
    memory, chances = torch.zeros(3, 32), z[:, 0, 24:72]
    for t, action in ((1, b.actions[:, 0]), (2, b.actions[:, 1]), (3, blocks[:, 0, 0])):
        memory = model.rssm(memory, chances, action / action.abs().clamp(min=1))
        if t < 3:
            chances = model.rssm.posterior(memory, z[:, t, :24]).flatten(1)
    after = model.rollout(z, b.actions[:, :2], blocks)[:, 0, 0]
    torch.testing.assert_close(after[:, 24:72], model.rssm.prior(memory).flatten(1))
    shorter = model.rollout(z[:, 2:], b.actions[:, :0], blocks)[:, 0, 0]
    assert not torch.allclose(after, shorter, atol=1e-3), "the past would not matter"


def test_actions_are_told_as_shares_of_the_recorded_range():
    """The larger end of the range of each dimension, normalised; step by step in a block."""
    statistics = Statistics(
        (0.5,) * 3, (0.2,) * 3, (1.0, 0.0), (0.5, 2.0), (0.0, -16.0), (3.0, 12.0)
    )
    model = DreamerConfig(**SMALL["dreamer"]).build(DataSpec(32, 2, statistics))
    # reaches: (3 - 1) / 0.5 = 4 of the first, 16 / 2 = 8 of the second
    told = model._acted(torch.tensor([[4.0, 4.0, -2.0, -8.0], [8.0, -16.0, 1.0, 2.0]]))
    assert told.tolist() == [[1.0, 0.5, -0.5, -1.0], [1.0, -1.0, 0.25, 0.25]]


# ------------------------------------------------------------------------------- costs and planning


def test_each_cost_is_what_it_says():
    model = made()
    assert isinstance(model, Judging)
    z = model.encode(batch().pixels)
    now, goal = z[:, 0], z[:, 1]
    rollout = model.rollout(now[:, None], torch.zeros(3, 0, 10), torch.randn(3, 4, 2, 10))
    costs = {name: model.judge(name, rollout, goal) for name in model.costs}
    for b in range(3):
        for n in range(4):
            end, memory = rollout[b, n, -1], rollout[b, n, -1, 72:104] / CARRIED
            wanted = (end[:24] - goal[b, :24]).square().sum()
            torch.testing.assert_close(costs["embedding"][b, n], wanted)
            drawn = model.decoder(torch.cat([memory, end[24:72]])[None])
            seen = model.decoder(torch.cat([torch.zeros(32), goal[b, 24:72]])[None])
            torch.testing.assert_close(costs["picture"][b, n], (drawn - seen).square().sum())
            q = model.rssm.posterior(memory[None], goal[b, None, :24])[0]
            p = end[24:72].unflatten(0, (6, 8))
            wanted = kl_divergence(OneHotCategorical(q), OneHotCategorical(p)).sum()
            torch.testing.assert_close(costs["posterior"][b, n], wanted, rtol=1e-4, atol=1e-5)


def test_costs_are_0_at_the_goal_and_a_diverged_rollout_shows():
    model = made()
    goal = model.encode(batch().pixels)[:, 1]
    for name in ("embedding", "picture"):
        assert model.judge(name, goal[:, None, None], goal).abs().max() < 1e-6
    lost = goal[:, None, None].clone()
    lost[0] = torch.nan
    for name in model.costs:
        assert model.judge(name, lost, goal).isnan().tolist() == [[True], [False], [False]]
    with pytest.raises(ValueError, match=r"unknown cost 'pictures'\. Did you mean 'picture'"):
        model.judge("pictures", lost, goal)


@pytest.mark.parametrize("name", registry.names("solvers"))
@pytest.mark.parametrize("imagined", ["mean", "mode"])
def test_every_solver_plans_with_every_cost(name, imagined):
    model = made(imagined=imagined)
    pictures = np.random.default_rng(0).integers(256, size=(2, 1, 32, 32, 3), dtype=np.uint8)
    for cost in model.costs:
        config = PlanningConfig(Own(cost), SOLVERS[name], horizon=2, receding=1)
        agent = Agent(model, config, WORLD, [0], trace=True)
        assert np.isfinite(agent.act(*pictures)).all()
        goal = model.encode(torch.from_numpy(pictures[1]).permute(0, 3, 1, 2)[:, None])[:, 0]
        seen = agent.trace[0].rounds[0]
        ends = torch.from_numpy(seen.ends)[:, :, None]
        cheapest = model.judge(cost, ends, goal).min().item()
        assert cheapest == pytest.approx(seen.costs.min(), rel=1e-4)


def test_how_to_plan_is_written_down_without_a_model():
    config = PlanningConfig(Own("picture"), CEM(8, 2, 1))
    assert describe_planning(config)["objective"] == {"name": "own", "judged_by": "picture"}
    assert build_planning(describe_planning(config)) == config


# ------------------------------------------------------------------------------ sizes and trainings


def test_presets_have_the_sizes_that_they_say():
    spec = dataclasses.replace(SPEC, image_size=64)
    count = {}
    for config in (DreamerConfig.tiny(), DreamerConfig.paper()):
        with torch.device("meta"):
            model = config.build(spec)
        parts = {name: sum(p.numel() for p in x.parameters()) for name, x in model.named_children()}
        count[config.hidden] = sum(parts.values()) - parts["decoder"], parts["decoder"]
        assert config.weights_about < sum(parts.values())
    assert 450_000 < count[128][0] < 550_000
    assert count[128][1] < 600_000
    assert 100e6 < sum(count[1024]) < 200e6  # 200 M with the actor, the critic and the reward


@pytest.mark.parametrize(
    "changes", [{"deter": 33}, {"channels": ()}, {"channels": (4,) * 6}, {"hidden": 10**6}], ids=str
)
def test_sizes_that_do_not_fit_make_no_model(changes):
    with pytest.raises(ValueError, match=r"(must|expected) .*(got).*\. ?"):
        DreamerConfig(**SMALL["dreamer"] | changes).build(SPEC)


TRAINED = dataclasses.replace(tiny.TRAINING, updates=8, checkpoint_every=4, window=3)
MODEL = DreamerConfig(
    channels=(4, 4), embedding_dim=6, deter=8, hidden=8, variables=3, classes=4, blocks=2, context=2
)


def test_a_training_that_was_stopped_ends_as_one_that_was_not(tmp_path):
    data = tiny.write(tmp_path / "episodes.h5")
    train(MODEL, TRAINED, data, tmp_path / "whole")

    def stop(progress):
        if progress.stage == "train" and progress.done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(MODEL, TRAINED, data, tmp_path / "parts", report=stop)
    assert int(checkpoints.latest(tmp_path / "parts").name) == 4
    train(MODEL, TRAINED, data, tmp_path / "parts")
    ends = [checkpoints.latest(tmp_path / name) for name in ("whole", "parts")]
    for file in ("weights.safetensors", "optimiser.safetensors"):
        assert ends[0].joinpath(file).read_bytes() == ends[1].joinpath(file).read_bytes()
    loaded = checkpoints.load(tmp_path / "whole")
    assert loaded.config == MODEL
    assert loaded.decoder.batches == 8


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A run of Two-Room, trained for a moment, that plans by the error of pictures."""
    folder = tmp_path_factory.mktemp("dreamer")
    data = folder / "episodes.h5"
    collect("two-room", data, 40, seed=0, image_size=32)
    config = DreamerConfig(**SMALL["dreamer"], context=1)
    how = dataclasses.replace(
        tiny.TRAINING, updates=3, frameskip=5, window=4, holdout=0.5, checkpoint_every=3
    )
    planning = PlanningConfig(Own("picture"), CEM(8, 2, 2))
    described = {"world": "two-room", "planning": describe_planning(planning)}
    return open_run(train(config, how, data, folder / "run", experiment=described))


@pytest.mark.parametrize("name", registry.names("analyses"))
def test_every_analysis_works_on_it(name, opened):
    settings = dict(knobs.ANALYSED[name])
    if name == "economy":
        settings["limit_s"] = 0.0
    found = registry.load("analyses", name)(**settings).run(opened)
    assert found.tables()
