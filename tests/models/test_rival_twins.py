"""Each rival's loss beside its definition, term by term, and the gradient of every weight beside
that of the definition: a detach too many or too few, the target in place of the online network, a
frame or a block too late, a temperature at the wrong place."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from lewm import registry
from lewm.contracts import Batch, Following
from lewm.models.byol import BYOLConfig
from lewm.models.dino import DINOConfig
from lewm.models.dino_wm import DINOWMConfig
from lewm.models.nn.following import momentum_at
from lewm.models.nn.tokens import MaskedPredictor, PatchViT, bytes_to_roll_out, draw_masks
from lewm.models.pldm import PLDMConfig
from lewm.models.vjepa import VJEPAConfig
from lewm.models.vjepa2_ac import VJEPA2ACConfig
from tests.support.models import SPEC
from tests.support.small_models import SMALL

B, T = 5, 5

KINDS = {
    "pldm": PLDMConfig,
    "byol": BYOLConfig,
    "vjepa": VJEPAConfig,
    "dino": DINOConfig,
    "dino-wm": DINOWMConfig,
    "vjepa2-ac": VJEPA2ACConfig,
}


def made(name, **changes):
    """Row by row independent, also in training: no batch norm, no dropout. All weights differ."""
    torch.manual_seed(0)
    fixed = {"dropout": 0.0} | ({} if name in ("dino-wm", "vjepa2-ac") else NO_BATCH)
    model = KINDS[name](**SMALL[name] | fixed | changes).build(SPEC).double().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for buffer in model.buffers():
            if buffer.is_floating_point() and buffer.shape == (SMALL["dino"]["prototypes"],):
                buffer.normal_()  # the centre
    return model


NO_BATCH = {"projector_norm": False}


def batch(seed=1):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (B, T, 3, 32, 32), dtype=torch.uint8, generator=generator)
    actions = torch.randn(B, T - 1, SPEC.block_dim, generator=generator, dtype=torch.float64)
    return Batch(pixels, actions)


# --------------------------------------------------------------------------------- the definitions


def nothing(x):
    return x


def sphere(x):
    return x / x.square().sum(-1, keepdim=True).sqrt() * math.sqrt(x.shape[-1])


def normed(x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()


FINISH = {"pldm": nothing, "byol": sphere, "vjepa": normed, "dino": sphere}


def shown(model, pixels):
    return (pixels.double() / 255 - model.pixel_mean) / model.pixel_std


def online(model, pixels, finish):
    flat = model.projector(model.encoder(shown(model, pixels.flatten(0, 1))))
    return finish(flat).view(*pixels.shape[:2], -1)


def followed(model, pixels, finish):
    with torch.no_grad():
        flat = model.target["projector"](
            model.target["encoder"](shown(model, pixels.flatten(0, 1)))
        )
        return finish(flat).view(*pixels.shape[:2], -1)


def one_ahead(model, z, actions, finish):
    hidden = model.predictor(z, model.action_encoder(actions))
    return finish(model.predictor_projector(hidden))


def windowed(model, z, actions, finish, came):
    """Predictions of all windows of K, and what came, which is one frame later."""
    K = model.config.context
    pairs = [
        (
            one_ahead(model, z[:, s : s + K], actions[:, s : s + K], finish),
            came[:, s + 1 : s + 1 + K],
        )
        for s in range(T - K)
    ]
    return (torch.stack(side) for side in zip(*pairs, strict=True))


def cosines(head, latents):
    place = head.layers(latents)
    return torch.stack([F.cosine_similarity(place, p, dim=-1) for p in head.prototypes], dim=-1)


def entropy(model, student, teacher):
    """Of the student's answers, where the teacher's centred and sharpened ones are right."""
    c = model.config
    q = (student / c.student_temperature).exp()
    p = ((teacher - model.centre) / c.teacher_temperature).exp()
    q, p = q / q.sum(-1, keepdim=True), (p / p.sum(-1, keepdim=True)).detach()
    return -(p * q.log()).sum(-1).mean()


def byol(model, b):
    z, y = online(model, b.pixels, sphere), followed(model, b.pixels, sphere)
    predicted, came = windowed(model, z, b.actions, sphere, y)
    angle = (predicted * came).sum(-1) / predicted.norm(dim=-1) / came.norm(dim=-1)
    _, seen = windowed(model, z, b.actions, sphere, z)
    error = (predicted - seen).square().mean().detach()
    return {"cosine": (2 - 2 * angle).mean(), "prediction": error}, {"cosine": 1}


def vjepa(model, b):
    z, y = online(model, b.pixels, normed), followed(model, b.pixels, normed)
    predicted, came = windowed(model, z, b.actions, normed, y)
    _, seen = windowed(model, z, b.actions, normed, z)
    error = (predicted - seen).square().mean().detach()
    return {"l1": (predicted - came).abs().mean(), "prediction": error}, {"l1": 1}


def dino(model, b):
    c = model.config
    z, y = online(model, b.pixels, sphere), followed(model, b.pixels, sphere)
    teacher = cosines(model.target_head, y)
    predicted, came = windowed(model, z, b.actions, sphere, teacher)
    _, seen = windowed(model, z, b.actions, sphere, z)
    terms = {
        "cross_entropy": entropy(model, cosines(model.head, predicted), came),
        "prediction": (predicted - seen).square().mean().detach(),
    }
    weights = {"cross_entropy": 1, "view": c.view_weight, "crops": 1}
    if c.view_weight:
        terms["view"] = entropy(model, cosines(model.head, z), teacher)
    if c.crops:
        side, views = round(32 * c.crop_share), []
        for _ in range(c.crops):
            top, left = torch.randint(32 - side + 1, (2,)).tolist()
            rows, columns = slice(top, top + side), slice(left, left + side)
            view = b.pixels[:, :, :, rows, columns].flatten(0, 1).float()
            view = F.interpolate(view, size=(32, 32), mode="bilinear", antialias=True)
            view = view.round().clamp(0, 255).byte().view(b.pixels.shape)
            views.append(entropy(model, cosines(model.head, online(model, view, sphere)), teacher))
        terms["crops"] = torch.stack(views).mean()
    return terms, weights


def hinge(samples):
    spread = (samples - samples.mean(0)).square().sum(0) / (len(samples) - 1)
    return (1 - (spread + 1e-4).sqrt()).clamp(min=0).mean()


def off_diagonal(samples):
    centred, D = samples - samples.mean(0), samples.shape[-1]
    C = centred.T @ centred / (len(samples) - 1)
    return C[~torch.eye(D, dtype=torch.bool)].square().mean()


def pldm(model, b):
    c = model.config
    z = online(model, b.pixels, nothing)
    if c.open_loop:
        ahead = [z[:, 0]]
        for t in range(T - 1):
            first = max(0, t + 1 - c.context)
            known = torch.stack(ahead[first:], dim=1)
            said = one_ahead(model, known, b.actions[:, first : t + 1], nothing)
            ahead.append(said[:, -1])
        error = (torch.stack(ahead[1:], dim=1) - z[:, 1:]).square().mean()
    else:
        predicted, came = windowed(model, z, b.actions, nothing, z)
        error = (predicted - came).square().mean()
    steps = [z[:, 0]] if c.first_frame else list(z.unbind(1))
    paths = z - z.mean(0) if c.centred_time else z
    done = torch.stack(
        [model.inverse.layers(torch.cat([z[:, t], z[:, t + 1]], -1)) for t in range(T - 1)], dim=1
    )
    terms = {
        "prediction": error,
        "variance": torch.stack([hinge(step) for step in steps]).mean(),
        "covariance": torch.stack([off_diagonal(step) for step in steps]).mean(),
        "slowness": (z[:, 1:] - z[:, :-1]).square().mean(),
        "time_variance": torch.stack([hinge(path) for path in paths]).mean(),
        "time_covariance": torch.stack([off_diagonal(path) for path in paths]).mean(),
        "inverse": (done - b.actions).square().mean(),
    }
    return terms, {
        "prediction": 1,
        "variance": c.variance_weight,
        "covariance": c.covariance_weight,
        "slowness": c.slowness_weight,
        "time_variance": c.time_variance_weight,
        "time_covariance": c.time_covariance_weight,
        "inverse": c.inverse_weight,
    }


def patches_ahead(model, tokens, actions):
    """DINO-WM: the action beside every token, and not read again."""
    action = model.action_embedding(actions)[:, :, None].repeat(1, 1, tokens.shape[2], 1)
    x = model.inward(torch.cat([tokens, action], dim=-1))
    said = model.outward(model.predictor(x))[..., : tokens.shape[-1]]
    return said + tokens if model.config.residual else said


def tokens_ahead(model, tokens, actions):
    """V-JEPA 2-AC: the action as a token of its frame, before the others."""
    x = torch.cat([model.action_token(actions)[:, :, None], model.inward(tokens)], dim=2)
    said = model.outward(model.predictor(x))[:, :, 1:]
    return normed(said + tokens if model.config.residual else said)


def dino_wm(model, b):
    with torch.no_grad():
        z = (model.encoder(b.pixels.flatten(0, 1)) - model.middle) @ model.directions * model.scale
    z, K = z.view(B, T, *z.shape[1:]), model.config.context
    errors = [
        patches_ahead(model, z[:, s : s + K], b.actions[:, s : s + K]) - z[:, s + 1 : s + 1 + K]
        for s in range(T - K)
    ]
    return {"prediction": torch.stack(errors).square().mean()}, {"prediction": 1}


def patches_of(model, pixels, target):
    with torch.no_grad():
        return normed(target(shown(model, pixels.flatten(0, 1)))).view(*pixels.shape[:2], 16, -1)


def vjepa2_masked(model, b):
    """Picture by picture and place by place."""
    y, c = patches_of(model, b.pixels, model.target), model.config
    generator = torch.Generator().manual_seed(3)
    visible, masked = draw_masks(B, 4, c.mask_share, c.mask_blocks, generator)
    errors = []
    for i in range(B):
        for t in range(T):
            there, hidden = visible[i], masked[i]
            x = model.encoder.patches(shown(model, b.pixels[i, t : t + 1])).flatten(2).mT
            x = (x + model.encoder.position)[:, there]
            for block in model.encoder.blocks:
                x = block(x)
            said = say_masked(model.masked_predictor, model.encoder.norm(x), there, hidden)
            errors.append((said[0] - y[i, t, hidden]).abs())
    return {"masked": torch.stack(errors).mean()}, {"masked": 1}


def say_masked(predictor, seen, there, hidden):
    """Of one picture: every token knows its own place, those asked for say no more than it."""
    x = torch.cat(
        [
            predictor.inward(seen) + predictor.position[:, there],
            predictor.mask + predictor.position[:, hidden],
        ],
        dim=1,
    )
    for block in predictor.blocks:
        x = block(x)
    return predictor.outward(predictor.norm(x))[:, len(there) :]


def vjepa2_acting(model, b):
    z, K = patches_of(model, b.pixels, model.target), model.config.context
    ones, twos = [], []
    for s in range(T - K):
        said = tokens_ahead(model, z[:, s : s + K], b.actions[:, s : s + K])
        ones.append(said - z[:, s + 1 : s + 1 + K])
    for s in range(T - 2):
        known = [z[:, s]]
        for t in (s, s + 1):
            first = max(s, t + 1 - K)
            seen = torch.stack(known[first - s :], dim=1)
            known.append(tokens_ahead(model, seen, b.actions[:, first : t + 1])[:, -1])
        twos.append(torch.stack(known[1:], dim=1) - z[:, s + 1 : s + 3])
    ones, twos = torch.stack(ones), torch.stack(twos)
    terms = {
        "l1": ones.abs().mean(),
        "rollout": twos.abs().mean(),
        "prediction": ones.square().mean().detach(),
    }
    return terms, {"l1": 1, "rollout": model.config.rollout_weight}


SIX = {
    "variance_weight": 3.0,
    "covariance_weight": 5.0,
    "slowness_weight": 0.7,
    "time_variance_weight": 0.9,
    "time_covariance_weight": 0.3,
    "inverse_weight": 1.1,
}

CASES = {
    "pldm": ("pldm", pldm, SIX),
    "pldm, the original": (
        "pldm",
        pldm,
        SIX | {"open_loop": True, "first_frame": True, "centred_time": False},
    ),
    "byol": ("byol", byol, {}),
    "vjepa": ("vjepa", vjepa, {}),
    "dino": ("dino", dino, {"view_weight": 0.0}),
    "dino, all views": ("dino", dino, {"view_weight": 0.7, "crops": 3, "crop_share": 0.5}),
    "dino-wm": ("dino-wm", dino_wm, {}),
    "dino-wm, as wide as its tokens": (
        "dino-wm",
        dino_wm,
        {"predictor_width": 0, "residual": True},
    ),
    "vjepa2-ac, first stage": ("vjepa2-ac", vjepa2_masked, {}),
    "vjepa2-ac, last stage": (
        "vjepa2-ac",
        vjepa2_acting,
        {"pretraining": 0.0, "rollout_weight": 0.6},
    ),
    "vjepa2-ac, changes": (
        "vjepa2-ac",
        vjepa2_acting,
        {"pretraining": 0.0, "rollout_weight": 0.6, "residual": True},
    ),
}


@pytest.mark.parametrize("context", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_the_loss_and_its_gradients_are_those_of_the_definition(case, context):
    name, twin, changes = CASES[case]
    model, b = made(name, context=context, **changes), batch()
    if name == "dino-wm":
        model.loss(b)  # fits its reduction
    torch.manual_seed(7)
    expected, weights = twin(model, b)
    torch.manual_seed(7)
    found = model.loss(b, torch.Generator().manual_seed(3))
    assert found.terms.keys() == expected.keys()
    for term, value in expected.items():
        torch.testing.assert_close(found.terms[term], value.to(found.terms[term].dtype), msg=term)
        assert found.terms[term].requires_grad == value.requires_grad, term
    total = sum(weights.get(term, 0) * value for term, value in expected.items())
    torch.testing.assert_close(found.total, total.to(found.total.dtype))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert not [name for name in trained if name.startswith("target")]
    slopes = [
        torch.autograd.grad(of, list(trained.values()), allow_unused=True)
        for of in (found.total, total)
    ]
    for name, one, other in zip(trained, *slopes, strict=True):
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("name", "ahead"), [("dino-wm", "patches"), ("vjepa2-ac", "tokens")])
def test_what_follows_the_last_frame_alone_is_the_last_of_what_follows_all(name, ahead, residual):
    model = made(name, context=3, residual=residual).eval()
    twin = {"patches": patches_ahead, "tokens": tokens_ahead}[ahead]
    for k in (1, 2, 3):
        tokens = torch.randn(2, k, model.tokens, model.width, dtype=torch.float64)
        actions = torch.randn(2, k, SPEC.block_dim, dtype=torch.float64)
        whole = twin(model, tokens, actions)
        torch.testing.assert_close(model.predict(tokens, actions), whole)
        torch.testing.assert_close(model.predict(tokens, actions, last=True), whole[:, -1:])


@pytest.mark.parametrize("name", ["dino-wm", "vjepa2-ac"])
def test_of_fewer_frames_is_said_what_is_said_of_the_first_of_more(name):
    """Whatever comes later changes nothing, and places are counted from the first frame."""
    model = made(name, context=4).eval()
    tokens = torch.randn(2, 4, model.tokens, model.width, dtype=torch.float64)
    actions = torch.randn(2, 4, SPEC.block_dim, dtype=torch.float64)
    whole = model.predict(tokens, actions)
    for k in (1, 2, 3):
        torch.testing.assert_close(model.predict(tokens[:, :k], actions[:, :k]), whole[:, :k])
    # a rollout is what is said of the last frame, token by token
    latents = tokens.flatten(2)
    ahead = model.rollout(latents, actions[:, :3], actions[:, None, 3:])
    torch.testing.assert_close(ahead[:, 0, 0], whole[:, -1].flatten(1))


def test_memory_for_gradients_is_of_every_block_of_every_step():
    model, device = made("dino-wm", context=2), torch.device("cpu")
    for horizon in (1, 2, 6):
        kept, result = (
            bytes_to_roll_out(model, 3, horizon, kept=True, device=device),
            2 * 4 * 3 * horizon * model.latent_dim,
        )
        one = 3 * 2 * model.tokens * model.predictor.bytes_per_token
        assert kept == result + one * horizon * model.config.predictor_depth
        assert bytes_to_roll_out(model, 3, horizon, kept=False, device=device) == result + one


def test_what_is_published_is_the_default():
    """Of the sources that each config names."""
    published = {
        "byol": {"momentum": 0.996, "momentum_end": 1.0},
        "vjepa": {"momentum": 0.99925, "momentum_end": None},
        "dino": {
            "momentum": 0.996, "momentum_end": 1.0, "prototypes": 65_536, "centre_momentum": 0.9,
            "student_temperature": 0.1, "teacher_temperature": 0.04, "bottleneck_dim": 256,
            "head_dim": 2048, "view_weight": 0.0, "crops": 0,
        },
        "vjepa2-ac": {"ema": 0.99925, "rollout_weight": 1.0, "residual": False, "dropout": 0.0},
        "dino-wm": {"resolution": 196, "channels": 0, "action_dim": 10, "residual": False},
        "dreamer": {
            "unimix": 0.01, "reconstruction_weight": 1.0, "dynamics_weight": 1.0,
            "representation_weight": 0.1, "free_bits": 1.0,
        },
    }  # fmt: skip
    for name, values in published.items():
        config = registry.load("models", name)()
        assert {key: getattr(config, key) for key in values} == values, name


# ---------------------------------------------------------------------------------- what follows


@pytest.mark.parametrize("update", [0, 3, 9])
@pytest.mark.parametrize("name", ["byol", "vjepa", "dino", "vjepa2-ac"])
def test_all_of_the_target_follows_at_the_pace_of_its_update(name, update):
    """Whatever begins with "target" has a counterpart that is trained, and comes nearer to it by
    one share: of this update, and of this many."""
    last = {} if name == "vjepa2-ac" else {"momentum_end": 0.99}
    model = made(name, **last)
    assert isinstance(model, Following)
    c = model.config
    share = c.ema if name == "vjepa2-ac" else momentum_at(c.momentum, c.momentum_end, update, 20)
    before = {key: value.clone() for key, value in model.named_parameters()}
    model.follow(update, 20)
    followers = [key for key in before if key.startswith("target")]
    whole = "encoder" if name == "vjepa2-ac" else ""
    for key in followers:
        ours = whole + key.removeprefix("target")
        ours = ours if whole else ours.removeprefix(".").removeprefix("_")
        wanted = share * before[key] + (1 - share) * before[ours]
        torch.testing.assert_close(model.get_parameter(key).data, wanted.data, msg=key)
    for key in before.keys() - set(followers):
        assert torch.equal(model.get_parameter(key), before[key]), key
    assert sum(before[key].numel() for key in followers) > 1000


def test_every_model_that_follows_is_looked_at_here():
    following = {
        name
        for name in registry.names("models")
        if isinstance(registry.load("models", name)(**SMALL[name]).build(SPEC), Following)
    }
    assert following == {"byol", "vjepa", "dino", "vjepa2-ac"}


def test_the_momentum_goes_along_its_cosine_to_the_end_of_the_run():
    for total in (10, 1000):
        found = [momentum_at(0.9, 1.0, u, total) for u in range(total)]
        wanted = [1 - 0.1 * (math.cos(math.pi * u / total) + 1) / 2 for u in range(total)]
        assert found == pytest.approx(wanted)


# ------------------------------------------------------------------------------- dino's own parts


def test_the_centre_is_a_running_mean_that_the_loss_sees_as_it_was():
    model, b = made("dino"), batch()
    before, expected = model.centre.clone(), dino(model, b)[0]
    found = model.loss(b)
    torch.testing.assert_close(
        found.terms["cross_entropy"], expected["cross_entropy"].to(found.total.dtype)
    )
    mean = cosines(model.target_head, followed(model, b.pixels, sphere)).mean(dim=(0, 1))
    share = model.config.centre_momentum
    torch.testing.assert_close(model.centre, share * before + (1 - share) * mean)


def test_dino_judges_by_the_entropy_of_the_end_where_the_goal_is_right():
    model = made("dino").eval()
    torch.manual_seed(2)
    rollout, goal = (sphere(torch.randn(*n, 24).double()) for n in ((2, 4, 3), (2,)))
    costs, tau = model.judge("prototypes", rollout, goal), model.config.student_temperature
    for i in range(2):
        p = (cosines(model.head, goal[i]) / tau).softmax(-1)
        for n in range(4):
            q = (cosines(model.head, rollout[i, n, -1]) / tau).softmax(-1)
            torch.testing.assert_close(costs[i, n], -(p * q.log()).sum())


# ------------------------------------------------------------------------- masks and their places


def test_a_patch_keeps_its_place_whichever_are_visible():
    torch.manual_seed(0)
    encoder = PatchViT(32, 8, 16, 2, 2)
    order = torch.stack([torch.randperm(16) for _ in range(3)])
    pixels = torch.randn(3, 3, 32, 32)
    whole = encoder(pixels)
    some = encoder(pixels, order)
    for i in range(3):
        torch.testing.assert_close(some[i], whole[i, order[i]], rtol=1e-4, atol=1e-5)


def test_what_is_said_of_a_place_does_not_depend_on_the_order_in_which_places_are_named():
    torch.manual_seed(0)
    predictor = MaskedPredictor(16, 8, 12, 2, 2)
    places = torch.stack([torch.randperm(16) for _ in range(3)])
    there, hidden = places[:, :6], places[:, 6:]
    seen, turn = torch.randn(3, 6, 8), torch.randperm(6)
    said = predictor(seen, there, hidden)
    assert said.shape == (3, 10, 8)
    for i in range(3):
        one = say_masked(predictor, seen[i : i + 1], there[i], hidden[i])
        torch.testing.assert_close(said[i], one[0], rtol=1e-4, atol=1e-5)
    other = predictor(seen[:, turn], there[:, turn], hidden.flip(1))
    torch.testing.assert_close(other.flip(1), said, rtol=1e-4, atol=1e-5)


def test_masks_are_rectangles_of_their_area_at_every_place_and_of_both_aspects():
    """A quarter of 8 x 8 in one block: 4 x 4, or up to 5 x 3 and 3 x 5, made up to 16 patches."""
    n = 600
    _, masked = draw_masks(n, 8, 0.25, 1, torch.Generator().manual_seed(0))
    assert masked.shape == (n, 16)
    squares = torch.zeros(n, 64).scatter(1, masked, 1.0).unflatten(1, (8, 8))
    full = squares.unfold(1, 4, 1).unfold(2, 4, 1).sum(dim=(-1, -2)) == 16
    assert full.any(dim=0).all(), "a square lies in every place"
    rows, columns = masked // 8, masked % 8
    height, width = (x.amax(dim=1) - x.amin(dim=1) + 1 for x in (rows, columns))
    assert (height * width <= 20).float().mean() > 0.85, "together, and no more than their area"
    assert 0.03 < (height > width).float().mean() < 0.4
    assert 0.03 < (width > height).float().mean() < 0.4


def test_masks_are_drawn_from_their_generator_alone():
    before = torch.get_rng_state()
    one, other, third = (
        draw_masks(4, 8, 0.5, 2, torch.Generator().manual_seed(seed))[1] for seed in (0, 0, 1)
    )
    assert torch.equal(one, other)
    assert not torch.equal(one, third)
    assert torch.equal(torch.get_rng_state(), before)


# ----------------------------------------------------------------------------------------- dropout

WITH_DROPOUT = sorted(
    name
    for name in registry.names("models")
    if "dropout" in {each.name for each in dataclasses.fields(registry.load("models", name))}
)


@pytest.mark.parametrize(
    ("name", "mixer"),
    [*((name, "attention") for name in WITH_DROPOUT), ("lewm", "mamba"), ("lewm", "titans")],
)
def test_dropout_reaches_every_branch_of_the_predictor_in_training_alone(name, mixer):
    """Where all is dropped, each block passes on what came in: only the last norm is left."""
    torch.manual_seed(0)
    changes = {"dropout": 1 - 1e-9, "context": 2}
    if mixer != "attention":
        changes |= {"predictor_mixer": mixer, "predictor_mlp_dim": 128}
    model = registry.load("models", name)(**SMALL[name] | changes).build(SPEC)
    predictor = model.predictor
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    if hasattr(predictor, "inward"):
        x, condition = torch.randn(3, 2, model.latent_dim), torch.randn(3, 2, 32)
        came = x if predictor.recurrent else x + predictor.position
        came, asked = predictor.inward(came), (x, condition)
    else:
        x = torch.randn(3, *predictor.position.shape[1:])
        came, asked = x + predictor.position, (x,)
    torch.testing.assert_close(predictor.train()(*asked), predictor.norm(came))
    settled = predictor.eval()(*asked)
    assert not torch.allclose(settled, predictor.norm(came), atol=1e-2)
    assert torch.equal(settled, predictor(*asked))


@pytest.mark.parametrize(
    ("name", "mixer"), [*((name, "attention") for name in WITH_DROPOUT), ("lewm", "titans")]
)
def test_shares_of_attention_are_dropped_too(name, mixer, monkeypatch):
    """Without the dropouts behind it, what is left of chance is that of the shares."""
    changes = {"dropout": 0.5, "context": 2}
    if mixer != "attention":
        changes |= {"predictor_mixer": mixer, "predictor_mlp_dim": 128}
    model = registry.load("models", name)(**SMALL[name] | changes).build(SPEC)
    block = model.predictor.blocks[0]
    attention = block.attention if mixer == "attention" else block.mixer
    width = attention.qkv.in_features
    x = torch.randn(3, 2, *(() if "-" not in name else (4,)), width)
    if mixer == "attention":
        monkeypatch.setattr(F, "dropout", lambda x, *_: x)
    else:  # the output is the other use of it
        monkeypatch.setattr(attention, "out", torch.nn.Linear(attention.out.in_features, width))
        real = F.dropout
        monkeypatch.setattr(F, "dropout", lambda x, *a: real(x, *a) if x.dim() == 4 else x)
    answers = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found = attention.train()(x)
        answers.append(found[0] if isinstance(found, tuple) else found)
    assert not torch.allclose(*answers)
