"""The losses of LeWM's nearest rivals: values that can be worked out by hand, and plain twins."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lewm.contracts import Batch
from lewm.models.byol import BYOLConfig
from lewm.models.dino import DINOConfig
from lewm.models.lewm import LeWMConfig
from lewm.models.nn import losses
from lewm.models.nn.decoder import Decoder, tiled
from lewm.models.nn.following import follow, layer_normed, momentum_at, on_sphere
from lewm.models.nn.layers import InverseDynamics
from lewm.models.nn.sigreg import draw_directions, sigreg_reference
from lewm.models.pldm import PLDMConfig
from lewm.models.vjepa import VJEPAConfig
from lewm.runs import checkpoints
from lewm.training import train as training_loop
from lewm.training.train import train
from tests.support import tiny
from tests.support.models import SPEC
from tests.support.small_models import SMALL

# ----------------------------------------------------------------------------------- known answers


def test_cosine_is_0_for_equal_directions_2_for_right_angles_and_4_for_opposite_ones():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    y = torch.tensor([[5.0, 0.0], [0.0, 0.1], [-2.0, 0.0]])
    for i, value in enumerate((0.0, 2.0, 4.0)):
        torch.testing.assert_close(losses.cosine(x[i : i + 1], y[i : i + 1]), torch.tensor(value))
    torch.testing.assert_close(losses.cosine(x, y), torch.tensor(2.0))


def test_l1_is_the_mean_absolute_difference():
    assert losses.l1(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 1.0]])) == 2.0


@pytest.mark.parametrize("loss", [losses.prediction, losses.l1, losses.cosine])
def test_shapes_that_would_broadcast_are_refused(loss):
    with pytest.raises(ValueError, match="one shape"):
        loss(torch.zeros(2, 3, 4), torch.zeros(2, 1, 4))


def test_variance_is_a_hinge_on_the_standard_deviation():
    """Two samples at +-s have the variance 2 s^2: with s = .5 the std is .7071, with s = 1 the
    hinge is closed."""
    latents = torch.tensor([[0.5, 1.0], [-0.5, -1.0]])
    expected = (1 - math.sqrt(0.5 + 1e-4)) / 2
    torch.testing.assert_close(losses.variance(latents), torch.tensor(expected))


def test_covariance_is_the_mean_square_off_the_diagonal():
    """Of (x, x, 0) the two covariances of x with itself count, 2 var^2 of 6 entries."""
    x = torch.tensor([1.0, -1.0, 3.0, -3.0])
    latents = torch.stack([x, x, torch.zeros(4)], dim=1)
    torch.testing.assert_close(losses.covariance(latents), 2 * x.var() ** 2 / 6)


def test_covariance_of_windows_is_the_mean_over_their_steps():
    latents = torch.randn(9, 3, 5)
    apart = torch.stack([losses.covariance(latents[:, t]) for t in range(3)]).mean()
    torch.testing.assert_close(losses.covariance(latents), apart)
    plain = np.mean(
        [
            (np.cov(step.T) ** 2 * (1 - np.eye(5))).sum() / 20
            for step in latents.transpose(0, 1).double().numpy()
        ]
    )
    torch.testing.assert_close(losses.covariance(latents.double()), torch.tensor(plain))


def test_variance_and_covariance_of_one_sample_are_refused():
    for loss in (losses.variance, losses.covariance):
        with pytest.raises(ValueError, match="batch size"):
            loss(torch.zeros(1, 3))


def test_slowness_is_the_mean_squared_step():
    path = torch.tensor([[[0.0, 0.0], [1.0, 2.0], [1.0, 2.0]]])
    assert losses.slowness(path) == (1 + 4) / 4


def test_cross_entropy_is_log_k_for_uniform_answers_and_0_for_one_sure_and_right():
    uniform, sure = torch.zeros(1, 8), torch.tensor([[100.0] + [0.0] * 7])
    centre = torch.zeros(8)
    torch.testing.assert_close(
        losses.cross_entropy(uniform, uniform, 0.04, centre), torch.tensor(math.log(8))
    )
    assert losses.cross_entropy(sure, sure, 0.04, centre) < 1e-6
    # the centre takes away what all answers share: the teacher is uniform again
    torch.testing.assert_close(
        losses.cross_entropy(uniform, sure, 0.04, sure[0]), torch.tensor(math.log(8))
    )


def test_the_teacher_is_sharpened_by_its_own_temperature():
    student, teacher = torch.tensor([[0.3, -0.1]]), torch.tensor([[0.04, 0.0]])
    p = 1 / (1 + math.exp(-1))
    q = 1 / (1 + math.exp(-0.4))
    expected = -p * math.log(q) - (1 - p) * math.log(1 - q)
    found = losses.cross_entropy(student, teacher, 0.04, torch.zeros(2))
    torch.testing.assert_close(found, torch.tensor(expected))


def test_no_gradient_reaches_a_teacher():
    teacher = torch.randn(3, 4, requires_grad=True)
    student = torch.randn(3, 4, requires_grad=True)
    losses.cross_entropy(student, teacher, 0.1, torch.zeros(4)).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_inverse_dynamics_are_told_the_blocks_between_two_latents():
    head = InverseDynamics(3, 2, 8, gap=2)
    latents, actions = torch.randn(5, 4, 3), torch.randn(5, 3, 2)
    found = head(latents)
    assert found.shape == (5, 2, 4)
    by_hand = torch.stack(
        [head.layers(torch.cat([latents[:, t], latents[:, t + 2]], dim=-1)) for t in range(2)], 1
    )
    torch.testing.assert_close(found, by_hand)
    done = torch.stack([torch.cat([actions[:, t], actions[:, t + 1]], dim=-1) for t in range(2)], 1)
    torch.testing.assert_close(head.loss(latents, actions), (by_hand - done).square().mean())
    with pytest.raises(ValueError, match="gap of 2 blocks"):
        head.loss(latents[:, :2], actions[:, :1])


# ------------------------------------------------------------------------------ targets that follow


def test_the_target_moves_by_a_share_of_the_way_and_takes_buffers_as_they_are():
    slow, fast = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    slow.weight.data.fill_(1.0)
    fast.weight.data.fill_(3.0)
    fast.running_mean.fill_(7.0)
    follow(slow, fast, 0.9)
    torch.testing.assert_close(slow.weight.data, torch.full((2,), 1.2))
    assert (slow.running_mean == 7).all()


def test_the_momentum_goes_from_its_first_to_its_last_value_along_a_cosine():
    assert momentum_at(0.9, 1.0, 0, 100) == pytest.approx(0.9)
    assert momentum_at(0.9, 1.0, 50, 100) == pytest.approx(0.95)
    assert momentum_at(0.9, 1.0, 100, 100) == pytest.approx(1.0)
    assert momentum_at(0.9, None, 70, 100) == 0.9


def test_the_sphere_has_the_radius_of_a_standard_gaussian_and_norming_has_no_weights():
    x = torch.randn(4, 3, 6) * 9 + 2
    torch.testing.assert_close(on_sphere(x).norm(dim=-1), torch.full((4, 3), 6**0.5))
    torch.testing.assert_close(layer_normed(x).mean(dim=-1), torch.zeros(4, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        layer_normed(x).var(dim=-1, unbiased=False), torch.ones(4, 3), atol=1e-4, rtol=0
    )


FOLLOWERS = {"byol": BYOLConfig, "vjepa": VJEPAConfig, "dino": DINOConfig}


def batch():
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (6, 4, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return Batch(pixels, torch.randn(6, 3, SPEC.block_dim, generator=generator))


def made(config, name, **changes):
    torch.manual_seed(0)
    model = config(**SMALL[name] | {"context": 1, "dropout": 0.0} | changes).build(SPEC).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("name", FOLLOWERS)
def test_only_the_online_side_is_trained_and_only_the_target_follows(name):
    model = made(FOLLOWERS[name], name)
    model.loss(batch()).total.backward()
    online = [model.encoder, model.projector, model.predictor]
    assert all(p.grad is not None for part in online for p in part.parameters())
    assert all(p.grad is None for p in model.target.parameters())
    before = [p.clone() for p in model.target.parameters()]
    ahead = [p.clone() for part in model.followed.values() for p in part.parameters()]
    model.follow(0, 10)
    for old, online_, new in zip(before, ahead, model.target.parameters(), strict=True):
        torch.testing.assert_close(new.data, 0.9 * old + 0.1 * online_)


def test_the_predictor_learns_at_its_own_pace(tmp_path):
    """A first step of Adam moves every weight by its learning rate: three times as far there."""
    data = tiny.write(tmp_path / "episodes.h5")
    config = BYOLConfig(**SMALL["byol"] | {"patch_size": 4, "context": 1, "predictor_pace": 3.0})
    training = replace(tiny.TRAINING, updates=1, warmup=0.0, weight_decay=0.0, clip=1e9)
    train(config, training, data, tmp_path / "run")
    after = checkpoints.load(tmp_path / "run")
    torch.manual_seed(training.seed)
    before = config.build(after.spec)
    moved = {"encoder.cls": 1, "projector.0.weight": 1}
    moved |= {"predictor_projector.3.bias": 3, "predictor.blocks.0.modulation.bias": 3}
    for name, pace in moved.items():
        step = (after.get_parameter(name) - before.get_parameter(name)).abs().max().item()
        assert step == pytest.approx(pace * training.learning_rate, rel=1e-2), name
    groups = training_loop._groups(before)
    assert [group.get("pace", 1.0) for group in groups] == [1.0, 3.0]
    assert sum(len(group["params"]) for group in groups) == len(list(before.parameters()))
    assert len(training_loop._groups(made(BYOLConfig, "byol"))) == 1


@pytest.mark.parametrize("name", ["byol", "vjepa"])
def test_the_loss_compares_predictions_with_the_target_of_the_next_frame(name):
    """A plain twin: frame by frame, from the modules themselves."""
    model, b = made(FOLLOWERS[name], name), batch()
    found = model.loss(b).terms
    term = "cosine" if name == "byol" else "l1"
    flat = (b.pixels.flatten(0, 1).float() / 255 - model.pixel_mean) / model.pixel_std
    norm = on_sphere if name == "byol" else layer_normed
    z = norm(model.projector(model.encoder(flat))).view(6, 4, -1)
    y = norm(model.target["projector"](model.target["encoder"](flat))).view(6, 4, -1)
    condition = model.action_encoder(b.actions).flatten(0, 1)[:, None]
    hidden = model.predictor(z[:, :3].flatten(0, 1)[:, None], condition)[:, 0]
    predicted = norm(model.predictor_projector(hidden)).view(6, 3, -1)
    if name == "byol":
        unit = [torch.nn.functional.normalize(x, dim=-1) for x in (predicted, y[:, 1:])]
        expected = (unit[0] - unit[1]).square().sum(dim=-1).mean()
    else:
        expected = (predicted - y[:, 1:]).abs().mean()
    torch.testing.assert_close(found[term], expected, rtol=1e-4, atol=1e-5)


def test_the_centre_moves_in_training_alone():
    model, b = made(DINOConfig, "dino"), batch()
    model.eval()
    model.loss(b)
    assert (model.centre == 0).all()
    model.train()
    with torch.no_grad():
        scores = model.target_head(model.targets(b.pixels)).flatten(0, 1).mean(dim=0)
    model.loss(b)
    torch.testing.assert_close(model.centre, 0.1 * scores, rtol=1e-4, atol=1e-6)


def test_crops_are_views_of_their_own_frame():
    """A crop of the whole picture is the picture: its term is that of the frame itself."""
    model = made(DINOConfig, "dino", crops=2, crop_share=1.0)
    found = model.eval().loss(batch()).terms
    torch.testing.assert_close(found["crops"], found["view"], rtol=1e-3, atol=1e-4)
    smaller = made(DINOConfig, "dino", crops=2, crop_share=0.5).eval().loss(batch()).terms
    assert not torch.isclose(smaller["crops"], smaller["view"], rtol=1e-2)


# --------------------------------------------------------------------------------------------- PLDM


def test_pldm_is_the_weighted_sum_of_seven_terms():
    """A plain twin in numpy, of the latents and predictions themselves."""
    weights = {"variance_weight": 3.0, "covariance_weight": 5.0, "slowness_weight": 0.7}
    weights |= {"time_variance_weight": 0.9, "time_covariance_weight": 0.3, "inverse_weight": 1.1}
    model, b = made(PLDMConfig, "pldm", **weights).eval(), batch()
    found = model.loss(b)
    z = model.encode(b.pixels).detach().double().numpy()
    ahead = model.predict(
        torch.tensor(z[:, :3]).float().flatten(0, 1)[:, None], b.actions.flatten(0, 1)[:, None]
    )
    ahead = ahead.detach().double().numpy().reshape(6, 3, -1)

    def hinge(samples):
        return np.maximum(0, 1 - np.sqrt(samples.var(axis=0, ddof=1) + 1e-4)).mean()

    def off(samples):
        C, D = np.cov(samples.T), samples.shape[-1]
        return ((C**2).sum() - (np.diag(C) ** 2).sum()) / (D * (D - 1))

    moved = z - z.mean(axis=0)
    pairs = np.concatenate([z[:, :3], z[:, 1:]], axis=-1)
    done = model.inverse.layers(torch.tensor(pairs).float()).detach().double().numpy()
    expected = {
        "prediction": ((ahead - z[:, 1:]) ** 2).mean(),
        "variance": np.mean([hinge(z[:, t]) for t in range(4)]),
        "covariance": np.mean([off(z[:, t]) for t in range(4)]),
        "slowness": (np.diff(z, axis=1) ** 2).mean(),
        "time_variance": np.mean([hinge(moved[i]) for i in range(6)]),
        "time_covariance": np.mean([off(moved[i]) for i in range(6)]),
        "inverse": ((done - b.actions.double().numpy()) ** 2).mean(),
    }
    assert found.terms.keys() == expected.keys()
    for name, value in expected.items():
        assert found.terms[name].item() == pytest.approx(value, rel=2e-4, abs=1e-6), name
    total = expected["prediction"] + sum(
        weight * expected[name.removesuffix("_weight")] for name, weight in weights.items()
    )
    assert found.total.item() == pytest.approx(total, rel=2e-4)


def test_the_original_looks_at_first_frames_and_predicts_from_them_alone():
    model, b = made(PLDMConfig, "pldm").eval(), batch()
    original = made(PLDMConfig, "pldm", open_loop=True, first_frame=True, centred_time=False).eval()
    z, found = model.encode(b.pixels), original.loss(b).terms
    torch.testing.assert_close(found["variance"], losses.variance(z[:, 0]))
    torch.testing.assert_close(found["covariance"], losses.covariance(z[:, 0]))
    torch.testing.assert_close(found["time_variance"], losses.variance(z.transpose(0, 1)))
    ahead = z[:, :1]
    for t in range(3):
        ahead = torch.cat([ahead, model.predict(ahead[:, t:], b.actions[:, t : t + 1])], dim=1)
    torch.testing.assert_close(found["prediction"], losses.prediction(ahead[:, 1:], z[:, 1:]))


def test_the_published_weights_are_those_of_the_sources():
    def weights(config):
        names = ("variance", "covariance", "slowness", "time_variance", "time_covariance")
        return [getattr(config, f"{name}_weight") for name in (*names, "inverse")]

    base = PLDMConfig()
    assert weights(base) == [18, 12, 0.2, 0.7, 0, 0]
    assert weights(base.eb_jepa()) == weights(PLDMConfig.tiny()) == [16, 8, 12, 0, 0, 1]
    assert weights(base.wall()) == [3.98, 6.92, 0.742, 0.245, 0, 1.07]
    assert weights(base.few_data()) == [2.2, 13, 0.5, 0.19, 0, 2]
    assert base.wall().open_loop
    assert not base.eb_jepa().open_loop


# --------------------------------------------------------------------------------- options of LeWM


def lewm(**changes):
    return made(LeWMConfig, "lewm", **changes)


def test_sub_spaces_are_tested_each_on_its_own():
    model, b = lewm(sigreg_subspaces=3).eval(), batch()
    z = model.encode(b.pixels)
    directions = draw_directions(8, 64, torch.Generator().manual_seed(4))
    apart = torch.stack([sigreg_reference(part, directions) for part in z.split(8, dim=-1)]).mean()
    found = model.loss(b, torch.Generator().manual_seed(4)).terms["sigreg"]
    torch.testing.assert_close(found, apart, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="sigreg_subspaces must divide latent_dim, got 5 and 24"):
        lewm(sigreg_subspaces=5)


def test_multistep_prediction_feeds_predictions_back():
    model, b = lewm(multistep_weight=0.5).eval(), batch()
    found = model.loss(b, torch.Generator().manual_seed(0))
    z = model.encode(b.pixels)
    ahead = model.rollout(z[:, :1], b.actions[:, :0], b.actions[:, None])[:, 0]
    torch.testing.assert_close(
        found.terms["multistep"], (ahead - z[:, 1:]).square().mean(), rtol=1e-4, atol=1e-6
    )
    assert found.weights["multistep"] == 0.5


def test_inverse_dynamics_reach_the_encoder():
    model = lewm(inverse_weight=1.0, sigreg_weight=0.0)
    found = model.loss(batch(), torch.Generator().manual_seed(0))
    found.terms["inverse"].backward()
    assert model.encoder.cls.grad.abs().sum() > 0


def test_the_reconstruction_is_of_every_picture_in_stds_of_a_pixel():
    """A decoder that draws nothing errs by the variance of the normalised picture."""
    model, b = lewm(reconstruction_weight=2.0).eval(), batch()
    torch.nn.init.zeros_(model.decoder.out.weight)
    torch.nn.init.zeros_(model.decoder.out.bias)
    found = model.loss(b, torch.Generator().manual_seed(0))
    shown = (b.pixels.float() / 255 - model.pixel_mean) / model.pixel_std
    torch.testing.assert_close(found.terms["reconstruction"], shown.square().mean())
    assert found.weights["reconstruction"] == 2.0
    found.terms["reconstruction"].backward()


def test_tiles_are_where_a_decoder_draws_them():
    pictures = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    decoder = Decoder(4, 32)
    deviations = tiled(pictures.float() / 255)
    drawn = decoder._pixels(deviations)
    assert torch.equal(drawn, pictures.permute(0, 2, 3, 1))


def test_options_that_are_off_leave_the_weights_as_they_were():
    assert set(lewm().state_dict()) == {
        name for name in lewm(inverse_weight=1.0).state_dict() if not name.startswith("inverse.")
    }
