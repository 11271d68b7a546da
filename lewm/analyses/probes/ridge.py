"""Ridge regression from latents to the true state.

Whole episodes are held out, never single frames: those of one episode are near-duplicates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lewm.analyses.probes.rollouts import first_predictions
from lewm.analyses.probes.targets import (
    LATENTS,
    Reading,
    features_of,
    latent_features,
    sample_frames,
    standardised,
    state_targets,
)
from lewm.contracts import WorldModel
from lewm.data.episodes import Episodes
from lewm.models.nn.frozen import require_evaluation_mode
from lewm.runs.run import Seen

__all__ = ["Probe", "fit_probe", "steady_probe"]


STRENGTHS = tuple(10.0**exponent for exponent in range(-8, 3))
"""Ridge penalties that are tried, as multiples of the variance of a standardised latent."""

INNER_FOLDS = 5


@dataclass(frozen=True)
class Probe:
    """A fitted linear read-out of the state.

    Attributes:
        weights: (D, S).
        bias: (S,), in the units of the state, as are predictions.
        strengths: (S,) the ridge penalty that the inner folds chose for each variable.
    """

    weights: np.ndarray
    bias: np.ndarray
    strengths: np.ndarray

    def predict(self, latents: np.ndarray) -> np.ndarray:
        """(..., D) latents -> (..., S) states."""
        return latents @ self.weights + self.bias


def fit_probe(
    latents: np.ndarray,
    states: np.ndarray,
    groups: np.ndarray,
    seed: int = 0,
    judged_on: tuple[np.ndarray, np.ndarray] | None = None,
) -> Probe:
    """Fit ridge regressions from latents to each state variable, in closed form.

    Both sides are standardised, so that one grid of penalties suits every model and unit. The
    penalty of each variable is the one with the least squared error over inner folds, or on what it
    is to be judged on.

    Args:
        latents: (F, D).
        states: (F, S), finite.
        groups: (F,) the episode of each row. Folds hold out whole episodes: with neighbours of a
            test frame in the training fold, the weakest penalty would always win.
        seed: of the folds.
        judged_on: other (n, D) latents and their (n, S) states, which choose the penalty in place
            of the folds.

    Raises:
        ValueError: arrays of different lengths, or fewer than two episodes.

    Cost: one eigendecomposition of a (D, D) matrix per fold, whatever the number of penalties.
    """
    episodes = np.unique(groups)
    if not len(latents) == len(states) == len(groups) or len(episodes) < 2:
        raise ValueError(
            "a probe needs latents, states and groups of one length, from 2 episodes or more; "
            f"got lengths {len(latents)}, {len(states)}, {len(groups)} and {len(episodes)} "
            "episodes. Give it more episodes."
        )
    x, x_mean, x_std = standardised(latents)
    y, y_mean, y_std = standardised(states)
    tried: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    if judged_on is not None:
        tried.append((x, y, (judged_on[0] - x_mean) / x_std, (judged_on[1] - y_mean) / y_std))
    else:
        for fold in np.array_split(
            np.random.default_rng(seed).permutation(episodes), min(INNER_FOLDS, len(episodes))
        ):
            held = np.isin(groups, fold)
            tried.append((x[~held], y[~held], x[held], y[held]))
    squares = np.zeros((len(STRENGTHS), y.shape[1]))
    for fit_x, fit_y, held_x, held_y in tried:
        solutions = _ridge(fit_x, fit_y)
        squares += [
            np.square(held_x @ solutions(np.full(y.shape[1], s)) - held_y).sum(axis=0)
            for s in STRENGTHS
        ]
    strengths = np.array(STRENGTHS)[squares.argmin(axis=0)]
    weights = _ridge(x, y)(strengths) / x_std[:, None] * y_std
    return Probe(weights, y_mean - x_mean @ weights, strengths)


def _ridge(x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Prepare ridge regression of (F, S) on (F, D); the answer maps (S,) strengths to (D, S)
    weights."""
    spectrum, basis = np.linalg.eigh(x.T @ x / len(x))
    rotated = basis.T @ (x.T @ y) / len(x)
    return lambda strengths: basis @ (rotated / (np.maximum(spectrum, 0)[:, None] + strengths))


def steady_probe(
    model: WorldModel,
    episodes: Episodes,
    ids: Sequence[int],
    readings: Sequence[Reading],
    most: int = 2048,
    seed: int = 0,
    seen: Seen | None = None,
) -> Probe:
    """Fit a ridge probe that reads predicted latents as well as encoded ones: for whoever shows
    what a model imagines.

    Inner folds choose penalties so weak that a probe reads directions in which latents hardly vary,
    and there a prediction is rough: after a single block of Two-Room such a probe was 27 px off,
    and this one 5.

    Args:
        ids: episodes to fit on.
        most: frames to fit on.
        seen: as for `features_of` and `encode_paths`.

    Raises:
        ValueError: fewer than two episodes, a model in training mode, or no true state.
    """
    require_evaluation_mode(model)
    rows, groups = sample_frames(episodes, ids, most, np.random.default_rng(seed))
    latents = features_of({LATENTS: latent_features(model)}, episodes, rows, seen)[LATENTS]
    ahead = first_predictions(model, episodes, ids, readings, seed, seen)
    return fit_probe(latents, state_targets(episodes, readings, rows), groups, seed, ahead)
