"""A planted map is found, noise is not, and neither folds nor tests look at neighbours of what they were fitted on."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from point_world import FRAMESKIP, SIZE, STATISTICS, PointEpisodes, PointModel, draw

from lewm.analyses.probing import STRENGTHS, Probe, Probing, fit_probe
from lewm.contracts import DataSpec
from lewm.models.lewm import LeWMConfig
from lewm.subject import Subject

PROBING = Probing(fit_frames=300, test_frames=200, draws=100)
SMALL = {
    "encoder_width": 16,
    "encoder_depth": 1,
    "encoder_heads": 2,
    "predictor_width": 16,
    "predictor_depth": 1,
    "latent_dim": 12,
}
FIT, TEST = (1, 3, 5, 7, 9, 11), (2, 6, 10)


class NamedEpisodes(PointEpisodes):
    state_names = ("across", "along")
    provenance = SimpleNamespace(state_units=("m", "km"))


def planted(frames=400, width=12, noise=0.0, seed=0):
    """Latents, states that are a linear map of them, and 20 episodes."""
    generator = np.random.default_rng(seed)
    weights, bias = generator.normal(size=(width, 3)) * (1, 100, 0.01), np.array([5.0, -300.0, 0.2])
    latents = generator.normal(size=(frames, width)) * generator.uniform(0.01, 50, width) + 7
    states = latents @ weights + bias
    return (
        latents,
        states + noise * states.std(axis=0) * generator.normal(size=states.shape),
        np.arange(frames) // 20,
        weights,
        bias,
    )


def test_a_planted_linear_map_is_recovered_in_its_units():
    latents, states, groups, weights, bias = planted()
    probe = fit_probe(latents, states, groups)
    np.testing.assert_allclose(probe.weights, weights, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(probe.bias, bias, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(probe.predict(latents[:5]), states[:5], rtol=1e-5)
    assert probe.predict(latents[:6].reshape(2, 3, -1)).shape == (2, 3, 3)


def test_units_change_nothing_but_units():
    latents, states, groups, *_ = planted(noise=0.3)
    scales = np.array([1e3, 1e-3, 60.0])
    here, there = fit_probe(latents, states, groups), fit_probe(latents * 17 - 4, states * scales, groups)
    np.testing.assert_array_equal(here.strengths, there.strengths)
    np.testing.assert_allclose(there.predict(latents * 17 - 4), here.predict(latents) * scales, rtol=1e-6)


def test_it_is_the_ridge_regression_of_the_textbook():
    latents, states, groups, *_ = planted(noise=0.5)
    probe = fit_probe(latents, states, groups)
    x, y = ((v - v.mean(axis=0)) / v.std(axis=0) for v in (latents, states))
    for i, strength in enumerate(probe.strengths):
        expected = np.linalg.solve(x.T @ x + strength * len(x) * np.eye(x.shape[1]), x.T @ y[:, i])
        np.testing.assert_allclose(probe.weights[:, i], expected / latents.std(axis=0) * states[:, i].std(), rtol=1e-6)


def test_the_penalty_is_chosen_by_episodes_and_not_by_frames():
    """Each episode stands nearly still, at a place that its latents do not tell: only other frames of it would."""
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 20)
    latents = generator.normal(size=(30, 25))[groups] + 1e-3 * generator.normal(size=(600, 25))
    states = generator.normal(size=(30, 1))[groups]
    assert fit_probe(latents, states, groups).strengths[0] >= 1
    assert fit_probe(latents, states, np.arange(600)).strengths[0] < 0.1  # what folds over frames would have chosen


def test_latents_and_states_that_never_vary_are_harmless():
    latents, states, groups, *_ = planted()
    latents[:, 3], states[:, 1] = 4.0, -2.0
    probe = fit_probe(latents, states, groups)
    assert np.isfinite(probe.weights).all()
    np.testing.assert_allclose(probe.predict(latents)[:, 1], -2.0)


def test_fitting_refuses_what_cannot_be_split():
    latents, states, groups, *_ = planted()
    with pytest.raises(ValueError, match="2 episodes"):
        fit_probe(latents, states, np.zeros(len(states)))
    with pytest.raises(ValueError, match="one length"):
        fit_probe(latents, states[:-1], groups)


def test_an_encoder_that_knows_the_state_is_read_perfectly():
    episodes = NamedEpisodes()
    result = PROBING.run(Subject(PointModel(), episodes, FIT, TEST))
    assert list(result.values["variables"]) == ["across", "along"]
    for scores, unit in zip(result.values["variables"].values(), ("m", "km"), strict=True):
        assert scores["unit"] == unit
        assert scores["r"] > 0.99999
        assert scores["r2"] > 0.9999
        assert scores["rmse"] < 1e-4
        assert scores["r_interval"][0] <= scores["r"] <= scores["r_interval"][1]
    arrays = result.arrays
    assert set(arrays["episodes"]) == set(TEST)
    np.testing.assert_allclose(arrays["predictions"], arrays["states"], atol=1e-3)
    np.testing.assert_array_equal(Probe.of(result).predict(arrays["latents"]), arrays["predictions"])
    assert len(arrays["states"]) == result.values["test_frames"] == 180  # all there are: 3 x 60


def test_what_is_held_out_decides_and_noise_is_not_read():
    class Blind(PointModel):
        def encode(self, pixels):
            generator = torch.Generator().manual_seed(int(pixels.long().sum()))
            return torch.randn(*pixels.shape[:2], 40, generator=generator)

    for scores in PROBING.run(Subject(Blind(), NamedEpisodes(), FIT, TEST)).values["variables"].values():
        assert scores["r2"] < 0.1
        assert scores["r_interval"][0] < 0.1


def test_errors_of_known_size_are_reported_in_units():
    class Shaky(PointModel):
        def encode(self, pixels):
            exact = super().encode(pixels)
            generator = torch.Generator().manual_seed(int(pixels.long().sum()))
            return exact + 0.02 * torch.randn(exact.shape, generator=generator)

    for scores in PROBING.run(Subject(Shaky(), NamedEpisodes(), FIT, TEST)).values["variables"].values():
        assert scores["rmse"] == pytest.approx(0.02, rel=0.25)
        assert scores["rmse_interval"][0] < 0.02 < scores["rmse_interval"][1] * 1.2


def test_the_plane_of_two_latents_is_the_latents_turned():
    result = PROBING.run(Subject(PointModel(), NamedEpisodes(), FIT, TEST))
    latents, plane = result.arrays["latents"], result.arrays["plane"]
    assert result.values["plane_variance"] == pytest.approx(1)
    np.testing.assert_allclose(
        np.linalg.norm(plane - plane[0], axis=1), np.linalg.norm(latents - latents[0], axis=1), atol=1e-6
    )
    assert plane[:, 0].std() >= plane[:, 1].std()
    assert np.corrcoef(plane.T)[0, 1] == pytest.approx(0, abs=1e-6)


def test_the_seed_decides_and_the_model_is_untouched():
    model, few = PointModel(), Probing(fit_frames=50, test_frames=40, draws=20, seed=3)
    first, second = (few.run(Subject(model, NamedEpisodes(), FIT, TEST)) for _ in range(2))
    assert first.values == second.values
    np.testing.assert_array_equal(first.arrays["states"], second.arrays["states"])
    other = Probing(fit_frames=50, test_frames=40, draws=20, seed=4).run(Subject(model, NamedEpisodes(), FIT, TEST))
    assert (other.arrays["states"] != first.arrays["states"]).any()
    assert not model.training
    assert all(not encoded.requires_grad for encoded in model.encoded)


def test_training_mode_and_shared_episodes_are_refused():
    model = PointModel()
    with pytest.raises(ValueError, match=r"\[9\] on both sides"):
        PROBING.run(Subject(model, NamedEpisodes(), FIT, (*TEST, 9)))
    model.dropout.train()
    with pytest.raises(ValueError, match="evaluation mode"):
        PROBING.run(Subject(model, NamedEpisodes(), FIT, TEST))


def test_penalties_reach_from_none_to_all():
    assert min(STRENGTHS) < 1e-6
    assert max(STRENGTHS) >= 10


class TurningEpisodes(PointEpisodes):
    """A point on a circle, whose picture shows cosine and sine of its angle; and a number drawn apart, with its square."""

    state_names = ("heading", "speed", "energy")
    provenance = SimpleNamespace(state_units=("rad", "m/s", "J"))

    def states(self, i):
        generator = np.random.default_rng(i)
        speed = generator.normal(size=self.length)
        return np.stack([generator.uniform(-9, 9, self.length), speed, speed**2 / 2], axis=1).astype(np.float32)

    def rows(self, column, indices):
        states = np.concatenate([self.states(i) for i in range(self.count)])[indices]
        return draw(0.5 + 0.4 * np.stack([np.cos(states[:, 0]), np.sin(states[:, 0])], axis=1))


def test_an_angle_is_read_as_cosine_and_sine_with_its_error_in_degrees():
    values = PROBING.run(Subject(PointModel(), TurningEpisodes(), FIT, TEST)).values
    assert list(values["variables"]) == ["cos heading", "sin heading", "speed", "energy"]
    assert values["variables"]["sin heading"]["r"] > 0.9999
    assert values["angles"] == {"heading": pytest.approx(0, abs=0.1)}


def test_the_control_from_other_variables_sees_what_the_data_give_away_and_no_more():
    config = LeWMConfig(**SMALL, patch_size=2)
    model = config.build(DataSpec(SIZE, FRAMESKIP, STATISTICS)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    probing = Probing(fit_frames=400, test_frames=200, draws=20, controls=True)
    result = probing.run(Subject(model, TurningEpisodes(), FIT, TEST))
    r = {name: score["controls"]["other variables"]["r"] for name, score in result.values["variables"].items()}
    assert r["energy"] > 0.99  # half the square of the speed
    assert abs(r["speed"]) < 0.3  # the energy does not say its sign
    assert abs(r["cos heading"]) < 0.3  # and the sine of the same angle is no other variable
    assert all(np.isfinite(s["controls"]["random encoder"]["r"]) for s in result.values["variables"].values())
    assert all((model.state_dict()[name] == value).all() for name, value in before.items())
    assert probing.run(Subject(model, TurningEpisodes(), FIT, TEST)).values == result.values  # its random weights are seeded
