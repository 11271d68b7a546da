"""Plans carried out: an exact model imagines what comes, a biased one is off by its bias, and
refusals say what is missing."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from lewm.analyses.planning import Planning
from lewm.data.provenance import Provenance
from lewm.planning.config import PlanningConfig
from lewm.planning.objectives.l2 import L2
from lewm.planning.solvers.cem import CEM
from lewm.report import sections
from lewm.runs.run import Run, Unsupported
from tests.support.point_world import FRAMESKIP, SPEED, PointEpisodes, PointModel, PointWorld

PLANNING = PlanningConfig(
    L2(),
    CEM(num_candidates=24, num_elites=4, num_iterations=3),
    horizon=3,
    receding=1,
    hold_actions=True,
)
BIAS = 0.04


@dataclass
class Walks(PointEpisodes):
    """With the names of its state, and the actions that led from one to the next."""

    state_names: tuple[str, ...] = ("x", "y")
    provenance: Provenance = field(default_factory=Provenance)

    def actions(self, i):
        states = self.states(i)
        return np.diff(states, axis=0, append=states[-1:]) / SPEED


class Drawn(PointWorld):
    """Whose state is a place in its picture."""

    def __init__(self, num_envs, has_regions=True):
        super().__init__(num_envs, has_regions=has_regions)
        self.spec = replace(self.spec, picture_extent=1.0, tolerance=0.03)


class Biased(PointModel):
    """Imagines that everything drifts to the right, by so much per block."""

    def rollout(self, context, past_actions, actions):
        latents = super().rollout(context, past_actions, actions)
        latents[..., 0] += BIAS * (1 + np.arange(latents.shape[2]))
        return latents


def run_of(model=None, world=Drawn, **changes):
    told = Run(
        model or PointModel(),
        Walks(count=24),
        range(12),
        range(12, 24),
        lambda n, *look: world(n),
        planning=PLANNING,
    )
    return replace(told, **changes)


SMALL = Planning(pairs=12, offset=10, clips=4, fit_frames=200, draws=50)


def test_an_exact_model_imagines_what_comes_and_a_biased_one_is_off_by_its_bias():
    exact, biased = SMALL.run(run_of()), SMALL.run(run_of(Biased()))
    for h, (row, off) in enumerate(zip(exact.horizon, biased.horizon, strict=True), 1):
        assert row.steps == h * FRAMESKIP
        assert row.ratio < 0.02  # walls stop the point and not the model; pictures are rounded
        assert off.error == pytest.approx(BIAS * h, rel=0.05)
        assert off.place_error == pytest.approx(BIAS * h, rel=0.1)
        low, high = off.ratio_interval
        assert low <= off.ratio <= high
    ways = biased.imagined[:, -1] - biased.real[:, -1]
    np.testing.assert_allclose(ways.mean(axis=0), (3 * BIAS, 0), atol=0.02)
    assert biased.imagined.shape[1:] == (4, 2)
    assert biased.real.shape[1:] == (3 * FRAMESKIP + 1, 2)


def test_a_search_narrows_and_is_drawn_so():
    costs = SMALL.run(run_of()).costs
    # of three rounds the 10th, 50th and 90th percentile; the mean that is scored last is none
    assert costs.shape[1:] == (3, 3)
    np.testing.assert_allclose(costs[:, 0, 1], 1)
    assert (np.diff(costs, axis=2) >= 0).all()
    assert np.median(costs[:, -1, 1]) < 0.5


def test_attempts_are_recorded_by_a_rule_and_read_back():
    found = SMALL.run(run_of())
    attempts, recordings = found.attempts, found.recordings
    regions = [each.other_region for each in attempts]
    assert regions == sorted(regions, reverse=True)
    assert sum(regions) <= 2
    for attempt, recording in zip(attempts, recordings, strict=True):
        assert attempt.reached == (recording.success_step is not None)
        assert len(recording.pixels) == len(recording.states) == attempt.steps + 1
        assert len(recording.replans) == attempt.plans
        step = recording.replans[0].step
        moved = np.abs(recording.replans[0].latents[0, 0] - recording.states[step]).max()
        assert moved < 1.5 * FRAMESKIP * SPEED  # places, read from latents
        assert [len(each.rounds) for each in recording.replans] == [3] * attempt.plans


def test_a_world_that_is_no_picture_of_its_state_has_no_places():
    found = SMALL.run(run_of(world=PointWorld))
    assert found.imagined is None
    assert found.horizon[0].place_error is None
    assert len(sections.draw(found)) == 2
    assert found.recordings[0].replans[0].rounds == ()
    assert len(sections.draw(SMALL.run(run_of()))) == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"open_world": None}, "of which world it is"),
        ({"planning": None}, "how it plans"),
        ({"episodes": Walks(count=24, state_names=())}, "state columns"),
        ({"test_ids": (12, 13)}, "at least 1 episodes that were trained on and 4 held-out"),
        ({"episodes": Walks(count=24, length=8)}, "held-out episodes of more than 10 steps"),
    ],
)
def test_what_cannot_be_answered_is_refused(changes, words):
    with pytest.raises(Unsupported, match=words):
        SMALL.run(run_of(**changes))
