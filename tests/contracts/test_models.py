"""Every world model, tiny: shapes, causality, independence, memory, and that it can learn."""

import dataclasses

import pytest
import torch

from lewm import registry
from lewm.contracts import (
    Batch,
    DataSpec,
    Engined,
    Following,
    Paced,
    Staged,
    Statistics,
    WorldModel,
)
from lewm.models.lewm import LeWM, LeWMConfig
from lewm.models.nn import losses as sigreg_losses
from lewm.models.nn.layers import sincos_2d
from lewm.models.nn.sigreg import draw_directions, sigreg_reference
from lewm.runs import checkpoints
from tests.support.small_models import GENERATIVE, MIXED, OTHER, SMALL, TRUNK

SPEC = DataSpec(32, 5, Statistics((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), (0.1, -0.2), (1.0, 0.5)))
LEWM = SMALL["lewm"]


@pytest.fixture(
    params=[
        (name, context, mixer)
        for name, mixer in [
            *((name, "") for name in registry.names("models")),
            *(("lewm", mixer) for mixer in MIXED),
        ]
        for context in (1, 3)
    ],
    ids=lambda param: "-".join(map(str, filter(None, param))),
)
def model(request) -> WorldModel:
    name, context, mixer = request.param
    torch.manual_seed(0)
    settings = SMALL[name] | MIXED.get(mixer, {})
    model = registry.load("models", name)(**settings, context=context).build(SPEC)
    for parameter in model.parameters():  # AdaLN-zero would hide the action: make everything matter
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def pixels(*shape: int) -> torch.Tensor:
    return torch.randint(
        0, 256, (*shape, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def batch(size: int = 6, length: int = 4) -> Batch:
    return Batch(
        pixels(size, length),
        torch.randn(size, length - 1, SPEC.block_dim, generator=torch.Generator().manual_seed(2)),
    )


def test_fulfils_the_role(model):
    assert isinstance(model, WorldModel)


def test_shapes(model):
    z = model.encode(pixels(2, model.context))
    assert z.shape == (2, model.context, model.latent_dim)
    rollout = model.rollout(z, torch.randn(2, model.context - 1, 10), torch.randn(2, 7, 5, 10))
    assert rollout.shape == (2, 7, 5, model.latent_dim)
    losses = model.train().loss(batch())
    assert all(term.shape == () for term in losses.terms.values())
    assert torch.isfinite(losses.total)


def test_rollout_equals_one_step_at_a_time(model):
    """A twin that keeps the whole history itself and asks for one latent at a time: of the last K
    latents, or of all of them where a state is carried on."""
    seen = 100 if carries_a_state(model) else model.context
    for k in range(1, model.context + 1):
        z, past, actions = (
            model.encode(pixels(2, k)),
            torch.randn(2, k - 1, 10),
            torch.randn(2, 3, 5, 10),
        )
        rollout = model.rollout(z, past, actions)
        for candidate in range(3):
            latents, blocks = z, past
            for h in range(5):
                following = model.rollout(
                    latents[:, -seen:],
                    blocks[:, max(0, latents.shape[1] - seen) :],
                    actions[:, candidate : candidate + 1, h : h + 1],
                )[:, 0]
                torch.testing.assert_close(
                    rollout[:, candidate, h], following[:, 0], rtol=1e-4, atol=1e-5
                )
                latents, blocks = (
                    torch.cat([latents, following], 1),
                    torch.cat([blocks, actions[:, candidate, h : h + 1]], 1),
                )


def carries_a_state(model) -> bool:
    """Whether what was seen more than K frames ago may still matter."""
    return getattr(model.config, "predictor_mixer", "attention") != "attention"


def test_an_engine_gives_the_rollout(model):
    """Rounding differs and nothing else."""
    if not isinstance(model, Engined):
        pytest.skip("this model has no engine")
    for k in range(1, model.context + 1):
        z, past, actions = (
            model.encode(pixels(2, k)),
            torch.randn(2, k - 1, 10),
            torch.randn(2, 3, 5, 10),
        )
        torch.testing.assert_close(
            model.engine()(z, past, actions), model.rollout(z, past, actions), rtol=1e-3, atol=1e-4
        )


def test_future_actions_do_not_change_past_latents_but_past_actions_do(model):
    z, past, actions = model.encode(pixels(2, 1)), torch.zeros(2, 0, 10), torch.randn(2, 1, 5, 10)
    changed = actions.clone()
    changed[:, :, 3] += 1
    a, b = model.rollout(z, past, actions), model.rollout(z, past, changed)
    torch.testing.assert_close(a[:, :, :3], b[:, :, :3], rtol=0, atol=0)
    assert (a[:, :, 3:] - b[:, :, 3:]).abs().amin(dim=(0, 1, 3)).max() >= 0
    assert ((a[:, :, 3:] - b[:, :, 3:]).norm(dim=-1) > 1e-4).all()


def test_rows_are_independent(model):
    x = pixels(4, 2)
    torch.testing.assert_close(model.encode(x)[1:2], model.encode(x[1:2]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.encode(x)[:, 1:], model.encode(x[:, 1:]), rtol=1e-4, atol=1e-5)


def test_inputs_are_not_changed(model):
    b = batch()
    copy = Batch(b.pixels.clone(), b.actions.clone())
    model.train().loss(b).total.backward()
    assert torch.equal(b.pixels, copy.pixels)
    assert torch.equal(b.actions, copy.actions)


def test_planning_in_training_mode_is_refused(model):
    z = model.encode(pixels(1, 1))
    with pytest.raises(ValueError, match="eval"):
        model.train().rollout(z, torch.zeros(1, 0, 10), torch.zeros(1, 1, 1, 10))


def test_wrong_pictures_are_named(model):
    with pytest.raises(ValueError, match=r"\(B, T, 3, 32, 32\).*64"):
        model.encode(torch.zeros(1, 1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match="float32"):
        model.encode(torch.zeros(1, 1, 3, 32, 32))
    with pytest.raises(ValueError, match="past_actions must hold k-1=0"):
        model.rollout(
            torch.zeros(1, 1, model.latent_dim), torch.zeros(1, 2, 10), torch.zeros(1, 1, 1, 10)
        )
    with pytest.raises(ValueError, match="longer than the context"):
        model.loss(batch(length=model.context))


def test_overfits_one_batch(model):
    """What is trained for falls by far, in units of the latents' spread where it knows one."""
    key = type(model.config).__module__.rpartition(".")[2]
    watched, rate, updates = GENERATIVE.get(key, ("", 2e-3, 60))
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=rate)
    # one that chases a target which follows takes longer
    updates = 160 if isinstance(model, Following) else updates
    b, history = batch(16), []
    if watched:  # of one colour each: noise cannot be drawn
        b = Batch(b.pixels[..., :1, :1].expand_as(b.pixels).clone(), b.actions)
    for step in range(updates):
        torch.manual_seed(step)
        losses = model.loss(b, torch.Generator().manual_seed(step))
        losses.total.backward()
        optimiser.step()
        optimiser.zero_grad()
        if isinstance(model, Following):
            model.follow(step, updates)
        name = watched or next(iter(losses.terms))
        comparable = name in ("prediction", watched)
        scale = float(sigreg_losses.spread(losses.latents)[0]) ** 2 if comparable else 1
        history.append((name, losses.terms[name].item() / scale))
    # of a model that is trained in stages, the last one
    history = [value for name, value in history if name == history[-1][0]]
    assert len(history) >= 30
    assert history[-1] < 0.25 * history[0]


def test_save_and_load_are_bit_equal(model, tmp_path):
    checkpoints.save(tmp_path, 1, model)
    loaded = checkpoints.load(tmp_path)
    assert not loaded.training
    assert loaded.spec == model.spec
    assert torch.equal(loaded.encode(pixels(2, 2)), model.encode(pixels(2, 2)))


@pytest.mark.parametrize("name", sorted(set(registry.names("models")) - {"lewm"}))
def test_no_setting_is_dead(name):
    """Whatever is changed, the shapes, the first weights, the latents, the losses or their
    gradients change."""
    config = registry.load("models", name)
    own = [each.name for each in dataclasses.fields(config) if each.name not in TRUNK]
    assert sorted(OTHER[name]) == sorted(set(own) - {"context", "dropout", *TRUNK_SWITCHES, *WITH})
    before = _traces(config(**SMALL[name], context=1))
    for field, value in OTHER[name].items():
        after = _traces(config(**(SMALL[name] | {field: value}), context=1))
        assert before != after, field


WITH = ("crop_share",)
"""Matters only with another setting; the model's own tests change it."""

TRUNK_SWITCHES = ("stem", "projector_norm", "zero_modulation", "predictor_mixer")
"""Switches of the parts that LeWM's own table looks at."""


def _traces(config):
    """What is seen of a model: shapes, weights, latents, losses, gradients and what follows."""
    torch.manual_seed(0)
    model = config.build(SPEC)
    begins = {key: value.clone() for key, value in model.state_dict().items()}
    latents = model.eval().encode(pixels(3, 2))
    following = model.rollout(latents[:, :1], latents.new_zeros(3, 0, 10), torch.ones(3, 1, 2, 10))
    torch.manual_seed(1)
    losses = model.train().loss(batch(), torch.Generator().manual_seed(0))
    losses.total.backward()
    slopes = [p.grad for p in model.parameters() if p.grad is not None]
    if isinstance(model, Following):
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1)
            model.follow(3, 10)
    after = [value.clone() for value in model.state_dict().values()]
    if isinstance(model, Staged):  # and what its last stage minimises
        with torch.no_grad():
            model.follow(9, 10)
            after.append(model.loss(batch(), torch.Generator().manual_seed(0)).total)
    rates = model.stage(3, 10) if isinstance(model, Staged) else None
    rates = rates, dict(model.paces) if isinstance(model, Paced) else None
    seen = [latents, following, losses.total, *slopes]
    tensors = [*begins.values(), *seen, *after]
    return rates, [(tuple(each.shape), each.double().sum().item()) for each in tensors]


def test_paper_preset_has_the_published_number_of_parameters():
    spec = dataclasses.replace(SPEC, image_size=224)
    with torch.device("meta"):
        model = LeWM(LeWMConfig.paper(), spec)
    count = {
        name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()
    }
    assert count == {
        "encoder": 5_501_376,
        "projector": 792_768,
        "action_encoder": 156_206,
        "predictor": 10_791_360,
        "predictor_projector": 792_768,
    }
    assert sum(count.values()) == 18_034_478


def test_stop_gradient_changes_gradients_and_not_the_loss():
    grads = []
    for stop_gradient in (False, True):
        torch.manual_seed(0)
        model = LeWMConfig(**LEWM, stop_gradient=stop_gradient).build(SPEC)
        total = model.loss(batch(), torch.Generator().manual_seed(0)).total
        total.backward()
        grads.append((total.item(), model.encoder.cls.grad.norm().item()))
    assert grads[0][0] == grads[1][0]
    assert grads[0][1] != grads[1][1]


def test_pooled_sigreg_tests_all_frames_as_one_sample():
    torch.manual_seed(0)
    pooled = LeWMConfig(**LEWM, context=1, sigreg_pooled=True).build(SPEC)
    apart = LeWMConfig(**LEWM, context=1).build(SPEC)
    apart.load_state_dict(pooled.state_dict())
    losses = [m.loss(batch(6, 2), torch.Generator().manual_seed(3)).terms for m in (pooled, apart)]
    torch.testing.assert_close(losses[0]["prediction"], losses[1]["prediction"])
    # One sample of 12 latents in the place of two samples of 6 each; a batch of 12 one-frame
    # windows is the same sample.
    flat = pooled.encode(batch(6, 2).pixels).flatten(0, 1)[:, None]
    directions = draw_directions(24, 64, torch.Generator().manual_seed(3), "cpu")
    torch.testing.assert_close(
        losses[0]["sigreg"], sigreg_reference(flat, directions), rtol=1e-4, atol=1e-5
    )
    assert not torch.isclose(losses[0]["sigreg"], losses[1]["sigreg"])


def test_a_conv_stem_reaches_the_same_grid_and_sees_across_patches():
    torch.manual_seed(0)
    encoder = LeWMConfig(**{**LEWM, "overlap": False}, stem="conv").build(SPEC).encoder
    picture = torch.randn(1, 3, 32, 32, requires_grad=True)
    grid = encoder.patches(picture)
    assert grid.shape == (1, 32, 4, 4)
    (seen,) = torch.autograd.grad(grid[0, :, 1, 1].sum(), picture)
    rows = seen[0].abs().sum(dim=(0, 2)).nonzero().flatten()
    assert rows.min() < 8 <= 15 <= rows.max(), (
        "patch 1 is rows 8 to 15; its stem begins before them"
    )
    with pytest.raises(ValueError, match="power of 2"):
        LeWMConfig(**{**LEWM, "overlap": False, "patch_size": 6}, stem="conv").build(SPEC)
    with pytest.raises(ValueError, match="no overlap"):
        LeWMConfig(**LEWM, stem="conv").build(SPEC)


@pytest.mark.parametrize("side", [2, 3, 8])
def test_every_place_of_the_grid_has_an_embedding_of_its_own(side):
    """The first half says the row, the other the column; waves begin at 0, the quickest turns by a
    radian from one patch to the next."""
    grid = sincos_2d(side, 8).unflatten(0, (side, side))
    rows, columns = grid.split(4, dim=-1)
    assert torch.equal(rows, rows[:, :1].expand_as(rows))
    assert torch.equal(columns, columns[:1].expand_as(columns))
    assert torch.equal(rows[:, 0], columns[0])
    assert len(grid.flatten(0, 1).unique(dim=0)) == side**2
    place = torch.arange(float(side))
    for k, frequency in ((0, 1.0), (1, 0.1)):
        torch.testing.assert_close(columns[0, :, k], (frequency * place).sin())
        torch.testing.assert_close(columns[0, :, 2 + k], (frequency * place).cos())
