"""What the numbers of analyses owe, whatever they are of: steps are env steps, no path crosses the
end of an episode, scale and place do not matter where they should not, signs are as told, what is
paired stays paired, nothing is shown without a lower bound, and clocks are read after warming
up."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lewm.analyses import economy
from lewm.analyses.geometry import Geometry, _moments
from lewm.analyses.probes.paths import encode_paths
from lewm.analyses.surprise import compare
from lewm.contracts import DataSpec
from lewm.data.provenance import Provenance
from lewm.models.nn.sigreg import draw_directions
from lewm.planning.config import PlanningConfig
from lewm.planning.objectives.l2 import L2
from lewm.planning.solvers.cem import CEM
from lewm.runs.run import Run
from lewm.stats import bootstrap_mean
from tests.support.point_world import (
    FRAMESKIP,
    SIZE,
    SPEED,
    STATISTICS,
    PointEpisodes,
    PointModel,
    draw,
)

GEOMETRY = Geometry(gaussians=20, slices=8, draws=40, controls=False)
HELD = tuple(range(1, 13))


@dataclass
class Marches(PointEpisodes):
    """Straight on, each at its own height and `pace` of its own; a row per `every` env steps."""

    count: int = 14
    length: int = 81
    paces: tuple = (0.01,)
    state_names = ("across", "along")
    provenance = Provenance(state_units=("m", "m"))

    def states(self, i):
        t = self.every * np.arange(self.length)
        x = 0.1 + self.paces[i % len(self.paces)] * t
        return np.stack([x, np.full(self.length, i / self.count)], axis=1).astype(np.float32)

    def actions(self, i):
        fine = replace(self, every=1, length=self.every * (self.length - 1) + 1)
        moves = np.diff(fine.states(i), axis=0) / SPEED
        rows = moves.reshape(self.length - 1, -1)
        return np.concatenate([rows, np.full((1, rows.shape[1]), np.nan)]).astype(np.float32)


@dataclass
class Wanders(Marches):
    """Random walks, so that there is something to turn and to be wrong about."""

    def states(self, i):
        moves = np.random.default_rng(i).uniform(-1, 1, (self.length - 1, 2)) * SPEED
        return (0.5 + np.concatenate([np.zeros((1, 2)), moves.cumsum(axis=0)]) / 2).astype(
            np.float32
        )


class Shown(PointModel):
    """Its latents are the place times a scale, and somewhere else in every episode (by its height)
    where there is a `jump`."""

    def __init__(self, scale=1.0, shift=0.0, jump=0.0):
        super().__init__()
        self.scale, self.shift, self.jump = scale, shift, jump

    def encode(self, pixels):
        place = super().encode(pixels)
        height = (place[..., 1:] * Marches.count).round()
        return self.scale * place + self.shift + self.jump * height

    def rollout(self, context, past_actions, actions):
        still = torch.zeros_like(context)
        moved = super().rollout(still, past_actions, actions)
        return context[:, -1, None, None] + self.scale * moved


def measured(model, episodes, **heads):
    return GEOMETRY.run(Run(model, episodes, (0,), HELD, heads=heads))


# ----------------------------------------------------------------------------------- scale, borders


@pytest.mark.parametrize(("scale", "shift"), [(64.0, 0.0), (2.0**-10, 0.0), (1.0, 8.0)])
def test_scale_and_place_of_the_latents_change_no_shape(scale, shift):
    plain, other = measured(Shown(), Wanders()), measured(Shown(scale, shift), Wanders())
    for name in ("value", "still"):
        a, b = (getattr(found.straightness, name) for found in (plain, other))
        assert b == pytest.approx(a, abs=2e-3)
    assert other.straightness.n == plain.straightness.n
    assert other.effective_rank == pytest.approx(plain.effective_rank, rel=1e-3)
    assert other.saturation["l2"].offset == plain.saturation["l2"].offset
    for bound, rank in plain.ranks["l2"].items():
        if rank.rho is not None:
            assert other.ranks["l2"][bound].rho == pytest.approx(rank.rho, abs=0.01)
    # and what has a scale has this one
    assert other.latent_std == pytest.approx(scale * plain.latent_std, rel=1e-3)
    np.testing.assert_allclose(other.std, scale * plain.std, rtol=1e-3)
    np.testing.assert_allclose(other.spectrum, scale**2 * plain.spectrum, rtol=1e-2)
    for h, ahead in plain.open_loop.items():
        assert other.open_loop[h].copy == pytest.approx(scale**2 * ahead.copy, rel=1e-2)


def test_nothing_is_measured_across_the_end_of_an_episode():
    """Latents that are elsewhere in every episode: whatever compares frames of one episode is as
    before. One frame of another one among them would be off by hundreds."""
    plain, far = measured(Shown(), Marches()), measured(Shown(jump=256.0), Marches())
    assert far.saturation["l2"].strangers > 1e4 > plain.saturation["l2"].strangers
    assert far.straightness.value == pytest.approx(1, abs=1e-2)
    assert far.straightness.n == plain.straightness.n == 12 * 15
    assert far.saturation["l2"].plateau == pytest.approx(plain.saturation["l2"].plateau, rel=0.02)
    np.testing.assert_allclose(far.costs["l2"].mean, plain.costs["l2"].mean, rtol=0.05)
    for h, ahead in plain.open_loop.items():
        assert far.open_loop[h].copy == pytest.approx(ahead.copy, rel=0.05)
        assert far.open_loop[h].error < 1e-3 * ahead.copy + 1e-6
    for bound, rank in far.ranks["l2"].items():
        if rank.rho is not None:
            assert rank.rho == pytest.approx(plain.ranks["l2"][bound].rho, abs=0.03)


def test_paths_know_where_episodes_end():
    paths = encode_paths(PointModel(), Marches(length=23), HELD)
    for by in range(1, 6):
        first = paths.followed(by)
        assert len(first) == 12 * max(0, 5 - by)
        assert (paths.episode[first] == paths.episode[first + by]).all()
        np.testing.assert_array_equal(paths.rows[first + by] - paths.rows[first], FRAMESKIP * by)


# -------------------------------------------------------------------------------------------- steps


def test_offsets_are_env_steps_however_many_of_them_a_row_stands_for():
    fine, coarse = (
        measured(PointModel(), episodes, temporal=SimpleNamespace(distance=ahead))
        for episodes in (Marches(), Marches(length=17, every=FRAMESKIP))
    )
    assert fine.gap == coarse.gap == FRAMESKIP
    np.testing.assert_array_equal(fine.offsets, np.arange(5, 81, 5))
    np.testing.assert_array_equal(coarse.offsets, fine.offsets)
    assert list(coarse.ranks["l2"]) == list(fine.ranks["l2"]) == ["5", "10", "25", "50", "75"]
    assert coarse.saturation["temporal"] == fine.saturation["temporal"]
    np.testing.assert_array_equal(coarse.costs["temporal"].mean, fine.costs["temporal"].mean)
    np.testing.assert_allclose(fine.costs["temporal"].mean, fine.offsets)  # d steps are d steps


def ahead(now, goal):
    """Env steps from the first to the second of two frames of `Marches`; 0 where it lies behind:
    a distance that is not symmetric."""
    return ((goal - now)[..., 0] * 100).round().relu()


def test_costs_are_asked_from_the_earlier_frame_to_the_later_one():
    found = measured(PointModel(), Marches(), temporal=SimpleNamespace(distance=ahead))
    assert found.ranks["temporal"]["75"].rho == pytest.approx(1)
    backwards = SimpleNamespace(distance=lambda now, goal: ahead(goal, now))
    assert measured(PointModel(), Marches(), temporal=backwards).ranks["temporal"]["75"].rho is None


# -------------------------------------------------------------------------------- shown, and paired


class Sometimes(PointModel):
    """Errs by a share of the way, `shares[i]` in episode i."""

    def __init__(self, shares):
        super().__init__()
        self.shares = torch.tensor(shares)

    def rollout(self, context, past_actions, actions):
        latents = super().rollout(context, past_actions, actions)
        now = context[:, -1, None, None]
        episode = (context[:, -1, 1] * Marches.count).round().long()
        return latents + self.shares[episode][:, None, None, None] * (latents - now)


def test_better_on_average_is_not_shown_to_be_better():
    """Half of the episodes are predicted well and half are not: the mean gain is above 0 and its
    interval holds 0."""
    shares = [0.0, *(0.2, 1.3) * 6, 0.0]
    found = measured(Sometimes(shares), Marches())
    first = found.open_loop["1"]
    assert first.error < first.copy
    assert first.gain[0] < 0 < first.gain[1]
    assert found.open_loop_not_better_from == 1


def test_a_small_gain_in_every_episode_is_shown_however_different_they_are():
    """Pairs are what is compared: the intervals of the two errors overlap, that of their difference
    is above 0."""
    paces = tuple(np.linspace(0.001, 0.01, 14))
    found = measured(Sometimes([0.9] * 14), Marches(paces=paces))
    first = found.open_loop["1"]
    assert first.interval[1] > first.copy_interval[0]
    assert first.error == pytest.approx(0.81 * first.copy, rel=0.02)
    assert 0 < first.gain[0] < first.copy - first.error < first.gain[1]
    assert found.open_loop_not_better_from is None


def test_a_test_has_two_sides():
    """As much more and as much less surprise are equally significant, and p is that of both."""
    generator = np.random.default_rng(0)
    normal = generator.uniform(1, 2, (20, 3))
    apart = generator.normal(0.3, 1, 20)
    more, less = (compare(normal, normal[:, 1] + sign * apart, 1, 10) for sign in (1, -1))
    for p in ("t_p", "wilcoxon_p"):
        assert getattr(more, p) == pytest.approx(getattr(less, p), rel=1e-9)
    # five differences of one sign: one way of 2^5, and its mirror image
    assert compare(normal[:5], normal[:5, 1] + [1, 2, 3, 4, 5], 1, 10).wilcoxon_p == 2 / 2**5


def test_surprise_has_the_sign_of_more():
    """Edited less normal: above 0 where the edit surprises, and the reverse where it calms."""
    generator = np.random.default_rng(0)
    normal = generator.uniform(1, 2, (40, 5))
    calm = np.full(40, 0.5)
    found = compare(normal, calm, at=2, draws=200)
    assert found.mean_difference < 0 > found.interval[1]
    assert found.t < 0 > found.effect_size
    assert found.auc == 0
    assert found.ratio < 1
    upset = compare(normal, 2.5 + calm, at=2, draws=200)
    assert upset.mean_difference > 0 < upset.interval[0]
    assert (upset.t > 0, upset.effect_size > 0, upset.auc) == (True, True, 1)


@pytest.mark.parametrize("seed", [0, 1])
def test_intervals_over_episodes_hold_the_truth_as_often_as_they_say(seed):
    """Frames of an episode share its luck: 30 episodes of 1 to 9 frames, 300 times."""
    generator = np.random.default_rng(seed)
    held, many = [], replace(GEOMETRY, draws=1000)
    for trial in range(300):
        groups = np.repeat(np.arange(30), generator.integers(1, 10, 30))
        luck = generator.normal(size=30)[groups] + 0.3 * generator.normal(size=len(groups))
        low, high = many._interval(luck, groups)
        held.append(low <= 0 <= high)
        if trial == 0:
            assert (low, high) == bootstrap_mean(luck, groups, draws=1000, seed=0)
            other = replace(many, seed=1)._interval(luck, groups)
            assert other != (low, high)
    assert 0.89 < np.mean(held) < 0.98


# ------------------------------------------------------------------------------------------ moments


@pytest.mark.parametrize(
    ("draw_sample", "std", "skewness", "kurtosis"),
    [
        (lambda g: torch.randn(1, 40_000, 3, generator=g), 1, 0, 0),
        (lambda g: 5 + 0.1 * torch.randn(1, 40_000, 3, generator=g), 0.1, 0, 0),
        (lambda g: torch.rand(1, 40_000, 3, generator=g), 12**-0.5, 0, -1.2),
        (lambda g: -torch.rand(1, 40_000, 3, generator=g).log(), 1, 2, 6),
        (lambda g: (torch.rand(1, 40_000, 3, generator=g) > 0.5) * 2.0, 1, 0, -2),
    ],
    ids=["Gaussian", "a small one off centre", "uniform", "exponential", "a coin"],
)
def test_moments_are_those_of_known_distributions(draw_sample, std, skewness, kurtosis):
    """Kurtosis is excess: 0 for a Gaussian."""
    generator = torch.Generator().manual_seed(0)
    found = _moments(draw_sample(generator), draw_directions(3, 4, generator))
    assert float(found["std"]) == pytest.approx(std, rel=0.02)
    assert float(found["skewness"]) == pytest.approx(skewness, abs=0.1)
    assert float(found["kurtosis"]) == pytest.approx(kurtosis, abs=0.05 + 0.1 * abs(kurtosis))


# ------------------------------------------------------------------------------------------- clocks


class Clock:
    """Only what is told to take time takes any."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("receding", [1, 2, 4])
def test_the_first_plan_warms_up_and_a_plan_is_executed_for_receding_blocks(monkeypatch, receding):
    wall, work, laps = Clock(), Clock(), iter([100.0, 1.0, 3.0, 2.0])

    class Timed(economy.Agent):
        def act(self, *given, **how):
            lap = next(laps)
            wall.now += lap
            work.now += 2 * lap
            return super().act(*given, **how)

    monkeypatch.setattr(economy, "count_plan", lambda *_, **__: (6_000, 10))
    monkeypatch.setattr(economy, "Agent", Timed)
    monkeypatch.setattr(economy, "time", SimpleNamespace(perf_counter=wall, process_time=work))
    planning = PlanningConfig(L2(), CEM(8, 2, 1), horizon=4, receding=receding)
    look = draw(np.array([[0.3, 0.3]])), draw(np.array([[0.5, 0.5]]))
    run = Run(PointModel(), Marches(), (0,), HELD, planning=planning)
    found = economy._plan(run, planning, [look] * 4, per_latent=300.0, limit_s=1e9)
    assert (found.seconds, found.seconds_range, found.plans) == (2.0, (1.0, 3.0), 3)
    assert found.processor_seconds == 4.0
    assert found.gflops_per_s == pytest.approx(6_000 / 2.0 / 1e9)
    assert found.predicted_share == pytest.approx(0.5)
    assert found.steps == receding * FRAMESKIP


def test_a_goal_is_as_many_env_steps_ahead_whatever_a_row_stands_for():
    for every in (1, FRAMESKIP):
        episodes = Marches(length=60 // every + 1, every=every)
        run = Run(PointModel(), episodes, (0,), HELD)
        for now, goal in economy._observations(run, 5, seed=0):
            first, second = (
                PointModel().encode(torch.from_numpy(x).permute(0, 3, 1, 2)[:, None])[0, 0]
                for x in (now, goal)
            )
            assert float(second[0] - first[0]) == pytest.approx(0.01 * economy.OFFSET, abs=1e-3)
            assert second[1] == first[1]  # of one episode


def test_the_box_of_a_timed_plan_is_what_was_recorded():
    model = PointModel()
    spec = economy._env_spec(model)
    np.testing.assert_allclose(spec.action_low, (0.1 - 1.5, -0.2 - 2.4))  # where nobody knows
    known = replace(STATISTICS, action_low=(-0.5, 0.25), action_high=(1.0, 0.25))
    model.spec = DataSpec(SIZE, FRAMESKIP, known)
    spec = economy._env_spec(model)
    assert (spec.action_low, spec.action_high) == ((-0.5, 0.25), (1.0, 0.25))
