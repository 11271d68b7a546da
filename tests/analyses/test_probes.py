"""A planted map is found and noise is not; folds, resamples and rollouts keep to whole episodes and
to what came."""

from types import SimpleNamespace

import numpy as np
import pytest

from lewm.analyses.probes.paths import encode_paths
from lewm.analyses.probes.ridge import STRENGTHS, fit_probe, steady_probe
from lewm.analyses.probes.rollouts import first_predictions, roll_out
from lewm.analyses.probes.scores import scores
from lewm.analyses.probes.targets import errors, readings_of, sample_frames, state_targets
from lewm.runs.run import Seen
from lewm.stats import bootstrap, pearson, r2
from tests.support.point_world import PointModel, Walks

# --------------------------------------------------------------------------------- ridge regression


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
    here, there = (
        fit_probe(latents, states, groups),
        fit_probe(latents * 17 - 4, states * scales, groups),
    )
    np.testing.assert_array_equal(here.strengths, there.strengths)
    np.testing.assert_allclose(
        there.predict(latents * 17 - 4), here.predict(latents) * scales, rtol=1e-6
    )


def test_it_is_the_ridge_regression_of_the_textbook():
    latents, states, groups, *_ = planted(noise=0.5)
    probe = fit_probe(latents, states, groups)
    x, y = ((v - v.mean(axis=0)) / v.std(axis=0) for v in (latents, states))
    for i, strength in enumerate(probe.strengths):
        expected = np.linalg.solve(x.T @ x + strength * len(x) * np.eye(x.shape[1]), x.T @ y[:, i])
        np.testing.assert_allclose(
            probe.weights[:, i], expected / latents.std(axis=0) * states[:, i].std(), rtol=1e-6
        )


def test_the_penalty_is_chosen_by_episodes_and_not_by_frames():
    """Each episode stands nearly still, at a place that its latents do not tell: only other frames
    of it would."""
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 20)
    latents = generator.normal(size=(30, 25))[groups] + 1e-3 * generator.normal(size=(600, 25))
    states = generator.normal(size=(30, 1))[groups]
    assert fit_probe(latents, states, groups).strengths[0] >= 1
    # what folds over frames would have chosen
    assert fit_probe(latents, states, np.arange(600)).strengths[0] < 0.1


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


def test_penalties_reach_from_none_to_all():
    assert min(STRENGTHS) < 1e-6
    assert max(STRENGTHS) >= 10


def test_a_penalty_can_be_judged_on_rough_latents():
    """The state is the difference of two latents that hardly differ, and a third tells it
    roughly."""
    generator = np.random.default_rng(0)
    states, shared = generator.normal(size=(2, 400, 1))
    latents = np.hstack(
        [shared + 0.01 * states, shared, states + 0.3 * generator.normal(size=states.shape)]
    )
    rough = latents + 0.1 * generator.normal(size=latents.shape)
    groups = np.arange(400) // 20
    sharp, steady = (
        fit_probe(latents, states, groups),
        fit_probe(latents, states, groups, judged_on=(rough, states)),
    )
    rmse = {name: [np.sqrt(np.mean((probe.predict(x) - states) ** 2)) for x in (latents, rough)]
            for name, probe in {"sharp": sharp, "steady": steady}.items()}  # fmt: skip
    assert steady.strengths[0] > 10 * sharp.strengths[0]
    assert rmse["sharp"][0] < 0.01 < rmse["steady"][0] < 0.5
    assert rmse["steady"][1] < 0.6 < 5 < rmse["sharp"][1]


# -------------------------------------------------------------------------------- what is asked for


class Turning(Walks):
    state_names, provenance = ("heading", "along"), SimpleNamespace(state_units=("rad", "m"))


def test_an_angle_is_asked_for_as_cosine_and_sine():
    readings = readings_of(Turning())
    assert [(r.name, r.unit, r.of, r.column, r.error_unit) for r in readings] == [
        ("cos heading", "", "heading", 0, "degrees"),
        ("sin heading", "", "heading", 0, "degrees"),
        ("along", "m", "along", 1, "m"),
    ]
    rows = np.array([3, 61, 62, 119])
    angle, along = Turning().rows("state", rows).astype(float).T
    np.testing.assert_allclose(
        state_targets(Turning(), readings, rows),
        np.stack([np.cos(angle), np.sin(angle), along], axis=1),
    )


def test_forgotten_units_are_none():
    forgetful = Walks()
    forgetful.provenance = SimpleNamespace(state_units=())
    assert [(reading.name, reading.unit) for reading in readings_of(forgetful)] == [
        ("across", ""),
        ("along", ""),
    ]


def test_errors_of_angles_are_degrees_the_shorter_way_round():
    readings = [*readings_of(Turning())]
    degrees = np.radians([[179.0, 10], [350, 20]])  # read
    true = np.radians([[-179.0, 40], [10, 20]])
    seen, truth = (
        np.stack([2 * np.cos(v), 2 * np.sin(v), 5 * v], axis=-1) for v in (degrees, true)
    )
    found = errors(readings, seen, truth)
    np.testing.assert_allclose(found["heading"], [[-2, -30], [-20, 0]], atol=1e-9)
    np.testing.assert_allclose(found["along"], 5 * (degrees - true))


# ------------------------------------------------------------------------------------------- scores


def test_scores_and_intervals_are_those_of_the_plain_bootstrap():
    generator = np.random.default_rng(1)
    groups = np.sort(generator.integers(0, 12, 150))
    states = generator.normal(size=(150, 3)) * (1, 1000, 1e-3) + (0, 5e4, 2)
    predictions = states + states.std(axis=0) * generator.normal(size=states.shape) * (0.1, 1, 3)
    told = scores(predictions, states, groups, draws=200, seed=3)
    for i, row in enumerate(told):
        plain = {
            "r": pearson,
            "r2": r2,
            "mse": lambda p, t: np.mean((p - t) ** 2),
            "rmse": lambda p, t: np.sqrt(np.mean((p - t) ** 2)),
        }
        for name, statistic in plain.items():
            columns = predictions[:, i], states[:, i]
            assert getattr(row, name) == pytest.approx(statistic(*columns), rel=1e-9)
            interval = bootstrap(statistic, *columns, groups=groups, draws=200, seed=3)
            assert getattr(row, f"{name}_interval") == pytest.approx(interval, rel=1e-7)


def test_what_never_varies_has_an_error_and_no_correlation():
    groups, generator = np.repeat(np.arange(6), 5), np.random.default_rng(0)
    varied = generator.normal(size=30)
    predictions = np.stack([varied, np.full(30, 0.1), varied], axis=1)
    states = np.stack([np.full(30, 7.0), varied, varied], axis=1)
    still, blind, exact = scores(predictions, states, groups)
    assert still.r is still.r2 is still.r_interval is blind.r is blind.r_interval is None
    assert np.isfinite([still.rmse, *still.rmse_interval, blind.r2]).all()
    assert exact.r == pytest.approx(1)
    assert exact.rmse == 0


# --------------------------------------------------------------------------------- frames, rollouts


def test_frames_are_of_the_episodes_asked_for_and_not_twice():
    rows, groups = sample_frames(Walks(), [2, 5], 70, np.random.default_rng(0))
    assert len(rows) == len(set(rows)) == 70
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows // 60, groups)
    assert set(groups) == {2, 5}


@pytest.mark.parametrize(("context", "every"), [(1, 1), (3, 1), (2, 5)])
def test_rollouts_follow_the_executed_actions(context, every):
    class Blocks(Walks):
        def actions(self, i):
            full = Walks(length=self.length * self.every).actions(i)[
                : (self.length - 1) * self.every
            ]
            return np.concatenate(
                [
                    full.reshape(self.length - 1, -1),
                    np.full((1, 2 * self.every), np.nan, np.float32),
                ]
            )

    episodes, model = Blocks(every=every), PointModel(context=context)
    rolled = roll_out(model, episodes, [1, 2, 7], 4, 64, (0,))
    np.testing.assert_allclose(rolled.predicted, rolled.encoded, atol=3e-5)
    np.testing.assert_allclose(
        rolled.encoded,
        episodes.rows("state", rolled.rows.ravel()).reshape(rolled.encoded.shape),
        atol=2e-5,
    )
    stride = 5 // every
    assert (np.diff(rolled.rows, axis=1) == stride).all()
    np.testing.assert_array_equal(rolled.rows // 60, np.repeat(rolled.groups[:, None], 4, axis=1))
    before = rolled.rows[:, 0] - stride
    np.testing.assert_allclose(rolled.last, episodes.rows("state", before), atol=2e-5)
    frames = -(-60 // stride)
    assert len(rolled.groups) == 3 * (frames - (context - 1) - 4)
    assert np.abs(rolled.predicted[:, 0] - rolled.last).max() > 0.05


def test_rollouts_are_as_long_as_half_of_the_episodes_and_refused_where_too_few_are_long_enough():
    episodes = Walks(length=12)  # 11 actions: two blocks
    assert roll_out(PointModel(), episodes, range(6), 8, 64, (0,)).predicted.shape[1] == 2
    assert roll_out(PointModel(context=3), episodes, range(6), 8, 64, (0,)) is None
    assert roll_out(PointModel(), episodes, range(3), 8, 64, (0,), fewest=4) is None
    # rows that make no blocks
    assert roll_out(PointModel(), Walks(every=2), range(6), 8, 64, (0,)) is None


def test_a_steady_probe_reads_what_a_model_predicts():
    model = PointModel()
    episodes, readings = Walks(count=20), readings_of(Walks())
    ahead = first_predictions(model, episodes, range(10), readings)
    np.testing.assert_allclose(ahead[0], ahead[1], atol=3e-5)
    probe = steady_probe(model, episodes, range(10), readings, 300)
    np.testing.assert_allclose(probe.predict(ahead[0]), ahead[1], atol=1e-3)
    model.dropout.train()
    with pytest.raises(ValueError, match="evaluation mode"):
        steady_probe(model, episodes, range(10), readings, 300)


class RoughModel(PointModel):
    """What it encodes is exact, and what it predicts is off to either side."""

    def rollout(self, context, past_actions, actions):
        ahead = super().rollout(context, past_actions, actions)
        return ahead + 0.2 * (1e3 * ahead).sin()


def test_the_penalty_of_a_steady_probe_is_that_which_suits_predictions():
    """A model that predicts roughly gets a stronger one, and is read better for it: the same that
    was judged on its first predictions of the episodes that are fitted on."""
    model, episodes, readings = RoughModel(), Walks(count=20), readings_of(Walks())
    rows, groups = sample_frames(episodes, range(10), 300, np.random.default_rng(3))
    latents, states = episodes.rows("state", rows), state_targets(episodes, readings, rows)
    ahead = first_predictions(model, episodes, range(10), readings, 3)
    by_hand = fit_probe(latents, states, groups, 3, ahead)
    sharp = fit_probe(latents, states, groups, 3)
    steady = steady_probe(model, episodes, range(10), readings, 300, 3)
    np.testing.assert_array_equal(steady.strengths, by_hand.strengths)
    np.testing.assert_allclose(steady.weights, by_hand.weights, atol=1e-3)
    assert (steady.strengths > 100 * sharp.strengths).all()

    def off(probe):
        return np.square(probe.predict(ahead[0]) - ahead[1]).mean()

    assert off(steady) < off(sharp)


def test_what_was_encoded_is_not_encoded_again_and_nothing_else_is_taken_for_it(monkeypatch):
    model, episodes, readings = PointModel(), Walks(count=20), readings_of(Walks())
    encoded, encode = [], model.encode
    monkeypatch.setattr(
        model, "encode", lambda pixels: encoded.append(pixels.shape[0]) or encode(pixels)
    )
    seen = Seen()

    def weights(ids, seed, seen):
        encoded.clear()
        probe = steady_probe(model, episodes, ids, readings, 300, seed, seen)
        return probe.weights, sum(encoded)

    plain, frames = weights(range(10), 0, None)
    first, again, others = (
        weights(*of, seen) for of in ((range(10), 0), (range(10), 0), (range(5, 15), 1))
    )
    np.testing.assert_array_equal(first[0], plain)
    np.testing.assert_array_equal(again[0], plain)
    assert [first[1], again[1]] == [frames, 0]
    np.testing.assert_array_equal(others[0], weights(range(5, 15), 1, None)[0])
    assert 0 < others[1] < frames  # of five episodes the paths are known
    np.testing.assert_array_equal(
        encode_paths(model, episodes, [3, 12], seen=seen).latents,
        encode_paths(model, episodes, [3, 12]).latents,
    )
