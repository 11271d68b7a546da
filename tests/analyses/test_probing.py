"""Probes find what is there to be found and nothing else, beside their controls, and in predictions
as in what came."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lewm.analyses.probing import FEWEST_FIT, FEWEST_TEST, MLP, Probing, ProbingResult
from lewm.contracts import DataSpec
from lewm.models.lewm import LeWMConfig
from lewm.runs.answers import load_result, save_result
from lewm.runs.run import Run, Unsupported
from tests.support.point_world import (
    FRAMESKIP,
    SIZE,
    STATISTICS,
    PointEpisodes,
    PointModel,
    Walks,
    draw,
)

PLAIN = {"mlp": False, "controls": False, "rollouts": 0}
PROBING = Probing(fit_frames=300, test_frames=200, draws=100, **PLAIN)
SMALL = {
    "encoder_width": 16,
    "encoder_depth": 1,
    "encoder_heads": 2,
    "predictor_width": 16,
    "predictor_depth": 1,
    "latent_dim": 12,
}
COUNT = 20
TEST = (2, 6, 7, 10, 13)
FIT = tuple(i for i in range(COUNT) if i not in TEST)


def walks():
    return Walks(count=COUNT)


def test_an_encoder_that_knows_the_state_is_read_perfectly():
    episodes = walks()
    result = PROBING.run(Run(PointModel(), episodes, FIT, TEST))
    assert list(result.variables) == ["across", "along"]
    for scores, unit in zip(result.variables.values(), ("m", "km"), strict=True):
        assert scores.unit == unit
        assert scores.r > 0.99999
        assert scores.r2 > 0.9999
        assert scores.rmse < 1e-4
        assert scores.r_interval[0] <= scores.r <= scores.r_interval[1]
    assert set(result.episodes) == set(TEST)
    np.testing.assert_allclose(result.predictions, result.states, atol=1e-3)
    np.testing.assert_array_equal(result.probe.predict(result.latents), result.predictions)
    assert len(result.states) == result.test_frames == 200


def test_what_is_held_out_decides_and_noise_is_not_read():
    class Blind(PointModel):
        def encode(self, pixels):
            generator = torch.Generator().manual_seed(int(pixels.long().sum()))
            return torch.randn(*pixels.shape[:2], 40, generator=generator)

    for scores in PROBING.run(Run(Blind(), walks(), FIT, TEST)).variables.values():
        assert scores.r2 < 0.1
        assert scores.r_interval[0] < 0.2


def test_errors_of_known_size_are_reported_in_units():
    class Shaky(PointModel):
        def encode(self, pixels):
            exact = super().encode(pixels)
            generator = torch.Generator().manual_seed(int(pixels.long().sum()))
            return exact + 0.02 * torch.randn(exact.shape, generator=generator)

    for scores in PROBING.run(Run(Shaky(), walks(), FIT, TEST)).variables.values():
        assert scores.rmse == pytest.approx(0.02, rel=0.25)
        assert scores.rmse_interval[0] < 0.02 < scores.rmse_interval[1] * 1.2


def test_the_plane_of_two_latents_is_the_latents_turned():
    result = PROBING.run(Run(PointModel(), walks(), FIT, TEST))
    latents, plane = result.latents, result.plane
    assert result.plane_variance == pytest.approx(1)
    np.testing.assert_allclose(
        np.linalg.norm(plane - plane[0], axis=1),
        np.linalg.norm(latents - latents[0], axis=1),
        atol=1e-6,
    )
    assert plane[:, 0].std() >= plane[:, 1].std()
    assert np.corrcoef(plane.T)[0, 1] == pytest.approx(0, abs=1e-6)


def test_the_seed_decides_and_the_model_is_untouched():
    model, few = PointModel(), Probing(fit_frames=50, test_frames=40, draws=20, seed=3, **PLAIN)
    first, second = (few.run(Run(model, walks(), FIT, TEST)) for _ in range(2))
    assert first.to_json() == second.to_json()
    np.testing.assert_array_equal(first.states, second.states)
    other = Probing(fit_frames=50, test_frames=40, draws=20, seed=4, **PLAIN).run(
        Run(model, walks(), FIT, TEST)
    )
    assert (other.states != first.states).any()
    assert not model.training
    assert all(not encoded.requires_grad for encoded in model.encoded)


def test_training_mode_and_shared_episodes_are_refused():
    model = PointModel()
    with pytest.raises(ValueError, match=r"\[9\] on both sides"):
        PROBING.run(Run(model, walks(), FIT, (*TEST, 9)))
    model.dropout.train()
    with pytest.raises(ValueError, match="evaluation mode"):
        PROBING.run(Run(model, walks(), FIT, TEST))


class TurningEpisodes(PointEpisodes):
    """A point on a circle, whose picture shows cosine and sine of its angle; and a number drawn
    apart, with its square."""

    state_names = ("heading", "speed", "energy")
    provenance = SimpleNamespace(state_units=("rad", "m/s", "J"))
    reach = 9.0

    def states(self, i):
        generator = np.random.default_rng(i)
        speed = generator.normal(size=self.length)
        return np.stack(
            [generator.uniform(-self.reach, self.reach, self.length), speed, speed**2 / 2], axis=1
        ).astype(np.float32)

    def rows(self, column, indices):
        states = np.concatenate([self.states(i) for i in range(self.count)])[indices]
        return draw(0.5 + 0.4 * np.stack([np.cos(states[:, 0]), np.sin(states[:, 0])], axis=1))


def test_an_angle_is_read_as_cosine_and_sine_with_its_error_in_degrees():
    values = PROBING.run(Run(PointModel(), TurningEpisodes(count=COUNT), FIT, TEST))
    assert list(values.variables) == ["cos heading", "sin heading", "speed", "energy"]
    assert values.variables["sin heading"].r > 0.9999
    assert values.angles == {"heading": pytest.approx(0, abs=0.1)}
    low, high = values.angles_interval["heading"]
    assert 0 <= low <= values.angles["heading"] <= high


def test_the_control_from_other_variables_sees_what_the_data_give_away_and_no_more():
    config = LeWMConfig(**SMALL, patch_size=2)
    model = config.build(DataSpec(SIZE, FRAMESKIP, STATISTICS)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    probing = Probing(fit_frames=400, test_frames=200, draws=20, **PLAIN | {"controls": True})
    episodes = TurningEpisodes(count=COUNT)
    episodes.reach = 1.0  # within which the sine gives the cosine away
    result = probing.run(Run(model, episodes, FIT, TEST))
    r = {name: score.controls["other variables"].r for name, score in result.variables.items()}
    assert r["energy"] > 0.99  # half the square of the speed
    assert abs(r["speed"]) < 0.3  # the energy does not say its sign
    assert abs(r["cos heading"]) < 0.3  # and the sine of the same angle is no other variable
    assert all(np.isfinite(s.controls["random encoder"].r) for s in result.variables.values())
    assert all((model.state_dict()[name] == value).all() for name, value in before.items())
    again = probing.run(Run(model, episodes, FIT, TEST))
    assert again.to_json() == result.to_json()  # its random weights are seeded


# -------------------------------------------------------------------------------------- MLP, pixels


class Shown(PointEpisodes):
    """Pictures show two numbers; the state holds these, their product, and a number that nothing
    shows."""

    state_names = ("first", "second", "product", "hidden")
    provenance = SimpleNamespace(state_units=("m", "m", "m2", "1"))

    def states(self, i):
        shown, hidden = (
            np.random.default_rng(i).uniform(0, 1, (self.length, 2)),
            np.random.default_rng(i + 1000),
        )
        product = (shown[:, 0] - 0.5) * (shown[:, 1] - 0.5)
        return np.column_stack([shown, product, hidden.normal(size=self.length)]).astype(np.float32)

    def rows(self, column, indices):
        return draw(np.concatenate([self.states(i) for i in range(self.count)])[indices, :2])


def test_a_product_is_read_by_the_mlp_and_not_by_ridge_and_what_is_hidden_by_neither():
    model = PointModel()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    probing = Probing(fit_frames=900, test_frames=300, draws=50, **PLAIN | {"mlp": True})
    variables = probing.run(Run(model, Shown(count=COUNT), FIT, TEST)).variables
    assert (torch.get_rng_state() == before).all()
    for name in ("first", "second"):
        assert variables[name].r2 > 0.9999
        assert variables[name].mlp.r2 > 0.98
    assert variables["product"].r2 < 0.05
    assert variables["product"].mlp.r2 > 0.9
    for scores in (variables["hidden"], variables["hidden"].mlp):
        assert -0.15 < scores.r2 < 0.05
        assert scores.r_interval[0] < 0.1


class Coloured(PointEpisodes):
    """Pictures of one colour, which is the state."""

    state_names, provenance = ("redness",), SimpleNamespace(state_units=("1",))

    def states(self, i):
        return np.random.default_rng(i).uniform(0, 1, (self.length, 1)).astype(np.float32)

    def rows(self, column, indices):
        red = np.concatenate([self.states(i) for i in range(self.count)])[indices, 0]
        pixels = np.random.default_rng(0).integers(0, 9, (len(red), SIZE, SIZE, 3))
        pixels[..., 0] += (200 * red).astype(int)[:, None, None]
        return pixels.astype(np.uint8)


def test_the_control_from_pixels_reads_a_colour_that_the_encoder_drops():
    class ColourBlind(PointModel):
        def encode(self, pixels):
            return pixels[:, :, 1:, 0, 0].float()  # green and blue

    probing = Probing(fit_frames=400, test_frames=200, draws=50, **PLAIN | {"controls": True})
    result = probing.run(Run(ColourBlind(), Coloured(count=COUNT), FIT, TEST))
    redness = result.variables["redness"]
    assert redness.r2 < 0.05
    assert redness.controls["pixels"].r2 > 0.99
    assert redness.controls["pixels"].r_interval[0] > 0.99
    # a model without config has no random twin, and there is one variable
    assert list(redness.controls) == ["pixels"]


# ----------------------------------------------------------------------------------------- rollouts

ROLLING = Probing(fit_frames=300, test_frames=100, draws=50, horizon=4, **PLAIN | {"rollouts": 64})


def test_an_exact_model_is_read_as_well_after_a_rollout_as_before():
    rollout = ROLLING.run(Run(PointModel(context=2), walks(), FIT, TEST)).rollout
    assert rollout.steps == (5, 10, 15, 20)
    assert rollout.episodes == len(TEST)
    # of 12 frames a block apart: 2 of context, 4 to come
    assert rollout.rollouts == len(TEST) * (12 - 1 - 4)
    across = rollout.variables["across"]
    assert across.unit == "m"
    np.testing.assert_allclose(across.rmse, across.encoded_rmse, atol=1e-4)
    assert max(across.rmse) < 1e-3
    # Copying is off by as much as the point moved.
    x = {i: walks().states(i)[:, 0] for i in TEST}
    for block, error in enumerate(across.copy_rmse, 1):
        moved = [x[i][5 * (t + block)] - x[i][5 * t] for i in TEST for t in range(1, 8)]
        assert error == pytest.approx(np.sqrt(np.mean(np.square(moved))), rel=1e-3)


def test_the_error_of_a_drifting_model_is_told_in_units():
    class Drifting(PointModel):
        def rollout(self, context, past_actions, actions):
            drift = 0.01 * torch.arange(1, actions.shape[2] + 1)[:, None] * torch.tensor([1.0, 0.0])
            return super().rollout(context, past_actions, actions) + drift

    result = ROLLING.run(Run(Drifting(), walks(), FIT, TEST))
    rollout = result.rollout
    across = rollout.variables["across"]
    np.testing.assert_allclose(across.rmse, [0.01, 0.02, 0.03, 0.04], rtol=0.05)
    np.testing.assert_allclose(np.transpose(across.rmse_interval), [across.rmse] * 2, rtol=0.05)
    assert max(rollout.variables["along"].rmse) < 2e-3
    assert {unit: of.variables for unit, of in rollout.units.items()} == {
        "m": ("across",),
        "km": ("along",),
    }
    assert rollout.units["m"].rmse == across.rmse
    rows = next(rows for caption, rows in result.tables().items() if "rollout" in caption)
    assert [row["variable"] for row in rows] == ["across", "along"]
    assert list(rows[0]) == ["variable", "unit", "5 steps", "10 steps", "20 steps", "95% at 20"]


def test_what_cannot_be_read_takes_no_part_in_the_error_of_its_unit():
    class HalfBlind(PointModel):
        def encode(self, pixels):
            return super().encode(pixels) * torch.tensor([1.0, 0.0])

    rollout = ROLLING.run(Run(HalfBlind(), walks(), FIT, TEST)).rollout
    assert list(rollout.variables) == ["across", "along"]
    assert list(rollout.units) == ["m"]


def test_short_episodes_are_probed_without_rollouts():
    values = ROLLING.run(Run(PointModel(), Walks(count=COUNT, length=5), FIT, TEST))
    assert values.rollout.units == values.rollout.variables == {}
    assert values.variables["across"].r > 0.999


# ---------------------------------------------------------------------------------------- the whole


def test_the_whole_is_told_and_stored_and_leaves_the_model_alone(tmp_path, monkeypatch):
    """Smallest numbers of episodes, all the parts, a real model in which nothing may move."""
    monkeypatch.setattr("lewm.analyses.probing.MLP", dataclasses.replace(MLP, updates=20))
    model = LeWMConfig(**SMALL, patch_size=2).build(DataSpec(SIZE, FRAMESKIP, STATISTICS)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    said = []
    probing = Probing(fit_frames=200, test_frames=100, draws=20, horizon=2)
    opened = Run(model, walks(), range(FEWEST_FIT), range(FEWEST_FIT, FEWEST_FIT + FEWEST_TEST))
    result = probing.run(opened, said.append)
    assert all((model.state_dict()[name] == value).all() for name, value in before.items())
    assert not any(module.training for module in model.modules())
    assert [progress.done for progress in said] == list(range(1, said[-1].total + 1))
    for row in result.variables.values():
        assert list(row.controls) == ["random encoder", "pixels", "other variables"]
        assert all(row.controls[rival].mlp for rival in ("random encoder", "pixels"))
    for caption, rows in result.tables().items():
        assert "held-out episodes" in caption
        assert all(list(row) == list(rows[0]) for row in rows)
    (first, *_) = result.tables().values()
    assert list(first[0]) == [
        "variable", "unit", "r, ridge", "95%", "r, MLP", "R2", "RMSE", "random encoder", "pixels",
        "other variables",
    ]  # fmt: skip
    save_result(tmp_path / "probing", result, {})
    loaded, _ = load_result(tmp_path / "probing", ProbingResult)
    assert loaded.rollout == result.rollout


def test_no_number_without_support():
    with pytest.raises(
        Unsupported,
        match=f"at least {FEWEST_FIT} episodes .* and {FEWEST_TEST} held-out .* got 9 and 5",
    ):
        PROBING.run(Run(PointModel(), walks(), FIT[:9], TEST))
    with pytest.raises(Unsupported, match="got 15 and 3"):
        PROBING.run(Run(PointModel(), walks(), FIT, TEST[:3]))
    stateless = walks()
    stateless.state_names = ()
    with pytest.raises(Unsupported, match="state columns"):
        PROBING.run(Run(PointModel(), stateless, FIT, TEST))
