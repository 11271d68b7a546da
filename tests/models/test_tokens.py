"""Models of many tokens: known answers and plain twins of their masks, losses and rollouts."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from lewm import devices
from lewm.contracts import Batch, DataSpec, Statistics
from lewm.models.dino_wm import DINOWMConfig, principal
from lewm.models.nn import losses
from lewm.models.nn.frozen_encoders import open_encoder
from lewm.models.nn.tokens import FrameAttention, draw_masks, frame_causal
from lewm.models.vjepa2_ac import VJEPA2ACConfig
from lewm.planning.cost import Scorer, Situation
from lewm.planning.objectives.l1 import L1
from tests.support.small_models import SMALL

SPEC = DataSpec(32, 5, Statistics((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), (0.1, -0.2), (1.0, 0.5)))


def built(kind, name, **changes):
    torch.manual_seed(0)
    model = kind(**SMALL[name] | changes).build(SPEC)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def dino_wm(**changes):
    return built(DINOWMConfig, "dino-wm", **{"context": 2} | changes)


def vjepa2_ac(**changes):
    return built(VJEPA2ACConfig, "vjepa2-ac", **{"context": 2} | changes)


def batch(size=3, length=5):
    g = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (size, length, 3, 32, 32), dtype=torch.uint8, generator=g)
    return Batch(pixels, torch.randn(size, length - 1, 10, generator=g))


def test_a_token_sees_its_frame_and_earlier_ones():
    seen = frame_causal(2, 2).int().tolist()
    assert seen == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]


def test_attention_equals_a_loop_over_queries():
    torch.manual_seed(0)
    attention, x = FrameAttention(6, 2, 3, 0.0), torch.randn(2, 3, 4, 6)
    mixed = attention(x)
    for frame in range(3):
        seen = x[:, : frame + 1].flatten(1, 2)
        q = (x[:, frame] @ attention.qkv.weight[:6].T).unflatten(-1, (2, 3))
        k = (seen @ attention.qkv.weight[6:12].T).unflatten(-1, (2, 3))
        v = (seen @ attention.qkv.weight[12:].T).unflatten(-1, (2, 3))
        shares = (torch.einsum("nqhd,nkhd->nhqk", q, k) / math.sqrt(3)).softmax(-1)
        twin = attention.out(torch.einsum("nhqk,nkhd->nqhd", shares, v).flatten(2))
        torch.testing.assert_close(mixed[:, frame], twin)
    torch.testing.assert_close(attention(x, last=True), mixed[:, -1:])


def test_masks_are_blocks_of_the_exact_count():
    visible, masked = draw_masks(50, 8, 0.65, 2, torch.Generator().manual_seed(0))
    assert masked.shape == (50, round(0.65 * 64))
    both = torch.cat([visible, masked], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(64).expand(50, -1))
    grid = torch.zeros(50, 64).scatter(1, masked, 1.0).unflatten(1, (8, 8))
    together = (grid[:, :, 1:] == grid[:, :, :-1]).float().mean()
    assert together > 0.7, "patches drawn one by one would agree with their neighbours in 0.55"
    assert len({tuple(row.tolist()) for row in masked}) > 40


def test_the_masked_loss_never_sees_what_is_masked():
    model, pixels = vjepa2_ac(), batch().pixels[:, 0]
    visible, masked = draw_masks(3, 4, 0.65, 2, torch.Generator().manual_seed(0))
    painted = pixels.clone()
    for picture, places in zip(painted, masked.tolist(), strict=True):
        for place in places:
            row, column = 8 * (place // 4), 8 * (place % 4)
            picture[:, row : row + 8, column : column + 8] = 7
    seen = [model.encoder(model._floats(each), visible) for each in (pixels, painted)]
    torch.testing.assert_close(*seen)
    assert (model.features(pixels) - model.features(painted)).abs().max() > 0.1


def test_the_masked_loss_has_a_known_answer():
    """A predictor that says nothing errs by the mean size of the layer-normed target."""
    model = vjepa2_ac().train()
    with torch.no_grad():
        model.masked_predictor.outward.weight.zero_()
        model.masked_predictor.outward.bias.zero_()
    b = batch()
    found = model.loss(b, torch.Generator().manual_seed(3)).terms["masked"]
    _, masked = draw_masks(3, 4, 0.65, 2, torch.Generator().manual_seed(3))
    z = model.encode(b.pixels).unflatten(-1, (model.tokens, -1))
    sizes = torch.stack([z[i][:, masked[i]].abs().mean() for i in range(3)])
    torch.testing.assert_close(found, sizes.mean())


@pytest.mark.parametrize("context", [1, 2, 3])
def test_the_losses_of_stage_two_equal_a_loop(context):
    model, b = vjepa2_ac(pretraining=0.0, context=context).train(), batch()
    found = model.loss(b)
    z = model.encode(b.pixels).unflatten(-1, (model.tokens, -1))
    ones, twos = [], []
    for start in range(5 - context):
        window = z[:, start : start + context]
        said = model.predict(window, b.actions[:, start : start + context])
        ones.append((said - z[:, start + 1 : start + 1 + context]).abs().mean())
    for start in range(3):
        first = model.predict(z[:, start : start + 1], b.actions[:, start : start + 1])
        both = torch.cat([z[:, start : start + 1], first], dim=1)[:, -context:]
        blocks = b.actions[:, start : start + 2][:, -both.shape[1] :]
        second = model.predict(both, blocks)[:, -1:]
        twos.append((torch.cat([first, second], 1) - z[:, start + 1 : start + 3]).abs().mean())
    torch.testing.assert_close(found.terms["l1"], torch.stack(ones).mean())
    torch.testing.assert_close(found.terms["rollout"], torch.stack(twos).mean())
    torch.testing.assert_close(found.total, found.terms["l1"] + found.terms["rollout"])


def test_stages_part_the_updates_and_the_frozen_one_never_moves():
    model = vjepa2_ac(pretraining=0.3).train()
    assert [model.stage(u, 10) for u in (0, 2, 3, 9)] == [(0, 3), (2, 3), (0, 7), (6, 7)]
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    first = ("encoder", "target", "masked_predictor")
    for update in range(6):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        model.loss(batch(), torch.Generator().manual_seed(update)).total.backward()
        optimiser.step()
        optimiser.zero_grad()
        with torch.no_grad():
            model.follow(update, 10)
        moved = {n.split(".")[0] for n, v in model.state_dict().items() if (v != before[n]).any()}
        if update < 3:
            assert moved >= set(first)
            assert "predictor" not in moved
        else:
            assert "predictor" in moved
            assert not moved & set(first)
        if update == 4:  # as a run that was stopped goes on
            other = vjepa2_ac(pretraining=0.3).train()
            other.load_state_dict(model.state_dict())
            assert "l1" in other.loss(batch()).terms


def test_an_encoder_of_others_needs_no_first_stage():
    """Whatever share stage 1 would have: the predictor has all updates, and is all there is."""
    model, b = vjepa2_ac(encoder="random-tiny", pretraining=0.5, context=1).train(), batch()
    assert [model.stage(u, 10) for u in (0, 9)] == [(0, 10), (9, 10)]
    tokens = open_encoder("random-tiny", 32)(b.pixels.flatten(0, 1))
    wanted = F.layer_norm(tokens, (tokens.shape[-1],)).flatten(1).unflatten(0, (3, 5))
    torch.testing.assert_close(model.encode(b.pixels), wanted)
    assert model.latent_dim == tokens[0].numel()
    found = model.loss(b)
    assert set(found.terms) == {"l1", "prediction", "rollout"}
    found.total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_target_follows_by_its_share():
    model = vjepa2_ac(ema=0.75)
    a, b = model.target.norm.weight.clone(), model.encoder.norm.weight.detach()
    with torch.no_grad():
        model.follow(0, 100)
    torch.testing.assert_close(model.target.norm.weight, 0.75 * a + 0.25 * b)


def test_the_error_of_copying_is_that_of_a_residual_that_says_nothing():
    torch.manual_seed(0)
    model = DINOWMConfig(**SMALL["dino-wm"], context=1, residual=True).build(SPEC).train()
    found = model.loss(batch())
    torch.testing.assert_close(found.total, losses.copying(found.latents))


def test_principal_finds_known_axes():
    turn = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0))).Q
    covariance = turn @ torch.diag(torch.tensor([4.0, 1.0, 9.0, 0.5, 2.0])) @ turn.T
    directions, variances = principal(covariance, 3)
    torch.testing.assert_close(variances, torch.tensor([9.0, 4.0, 2.0]))
    torch.testing.assert_close(
        (directions.T @ turn[:, [2, 0, 4]]).abs(), torch.eye(3), atol=1e-5, rtol=0
    )
    assert (directions.amax(0) == directions.abs().amax(0)).all()


def test_the_reduction_is_fitted_once_whatever_the_order_and_stored():
    model, b = dino_wm(), batch()
    model.eval().loss(b)
    assert not model.fitted, "looking fits nothing"
    model.train().loss(b)
    assert model.fitted
    kept = model.directions.clone()
    z = model.encode(b.pixels).flatten(0, 1).unflatten(-1, (model.tokens, -1)).flatten(0, 1)
    assert z.mean(0).abs().max() < 1e-4
    torch.testing.assert_close(z.var(0, unbiased=False).mean(), torch.tensor(1.0))
    model.loss(Batch(255 - b.pixels, b.actions))
    assert torch.equal(model.directions, kept)
    other = dino_wm()
    other.load_state_dict(model.state_dict())
    other.train().loss(Batch(255 - b.pixels, b.actions))
    assert torch.equal(other.directions, kept), "a run that goes on fits nothing anew"
    turned = dino_wm().train()
    turned.loss(Batch(b.pixels.flip(0), b.actions))
    torch.testing.assert_close(turned.directions, kept, atol=1e-4, rtol=0)


def test_the_paper_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = DINOWMConfig.paper().build(dataclasses.replace(SPEC, image_size=224))
        ac = VJEPA2ACConfig.paper().build(dataclasses.replace(SPEC, image_size=256))
    assert model.tokens == 196
    assert sum(p.numel() for p in model.parameters()) == 19_624_930
    assert ac.tokens == 256
    assert 3.0e8 < sum(p.numel() for p in ac.predictor.parameters()) < 3.1e8


def test_portions_change_no_cost(monkeypatch):
    model = dino_wm().eval()
    z, past, blocks = (
        torch.randn(2, 2, model.latent_dim),
        torch.randn(2, 1, 10),
        torch.randn(2, 9, 3, 10),
    )
    situation = Situation(z, past, torch.randn(2, model.latent_dim))
    whole, ends, count = Scorer(model.rollout, L1()).score(situation, blocks)
    monkeypatch.setattr("lewm.planning.cost.SEQUENCES_AT_ONCE", 4 * model.tokens)
    monkeypatch.setattr("lewm.models.nn.tokens.TOKENS_AT_ONCE", 3 * 2 * model.tokens)
    sizes = []

    def rolled(context, past, some):
        sizes.append(some.shape[0] * some.shape[1])
        return model.rollout(context, past, some)

    parts = Scorer(rolled, L1(), tokens=model.tokens).score(situation, blocks)
    assert (max(sizes), sum(sizes)) == (4, 18), "so many tokens are four sequences"
    torch.testing.assert_close(parts[0], whole)
    torch.testing.assert_close(parts[1], ends)
    assert parts[2] == count


def test_a_plan_that_cannot_fit_says_how_much_it_needs(monkeypatch):
    model = dino_wm().eval()
    monkeypatch.setattr(devices, "free_memory", lambda device: 1000)
    with pytest.raises(ValueError, match=r"fits the memory.*GiB.*fewer candidates"):
        model.rollout(
            torch.zeros(1, 1, model.latent_dim), torch.zeros(1, 0, 10), torch.zeros(1, 5, 2, 10)
        )


def test_l1_is_the_mean_difference_at_the_last_step():
    rollout = torch.tensor([[[[9.0, 9.0], [5.0, -1.0], [3.0, -4.0]]]])
    assert L1().cost(rollout, torch.zeros(1, 2)).item() == 3.5
    assert L1(intermediate=0.5).cost(rollout, torch.zeros(1, 2)).item() == 3.5 + 0.5 * (9 + 3) / 2


def test_spread_of_few_rows_in_many_dimensions_is_that_of_the_covariance():
    rows = torch.randn(20, 600, generator=torch.Generator().manual_seed(0))
    std, rank = losses.spread(rows)
    shares = torch.linalg.eigvalsh(torch.cov(rows.T, correction=0).double()).clamp_min(0)
    shares = shares / shares.sum()
    torch.testing.assert_close(
        rank.double(), torch.exp(-torch.xlogy(shares, shares).sum()), rtol=1e-3, atol=0
    )
    torch.testing.assert_close(std, rows.std(0, correction=0).mean())


def test_layer_norm_is_without_weights():
    z = vjepa2_ac().encode(batch().pixels).unflatten(-1, (16, 32))
    torch.testing.assert_close(z, F.layer_norm(z, (32,)), atol=1e-4, rtol=1e-4)
