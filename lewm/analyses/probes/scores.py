"""How well a variable was read, with intervals over episodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lewm.analyses.probes.targets import standardised
from lewm.runs.results import Interval, defined, interval

__all__ = ["Score", "scores"]


LEAST = 1e-12
"""Share of a variable's variance below which what is left of it is rounding."""


@dataclass(frozen=True)
class Score:
    """How well one variable was read, with 95% intervals over episodes.

    Attributes:
        r: Pearson's correlation; None where one side never varies.
        r2: None where the variable never varies.
        mse, rmse: in the unit of the variable.
    """

    r: float | None
    r_interval: Interval | None
    r2: float | None
    r2_interval: Interval | None
    mse: float
    mse_interval: Interval
    rmse: float
    rmse_interval: Interval


def scores(
    predictions: np.ndarray, states: np.ndarray, groups: np.ndarray, draws: int = 500, seed: int = 0
) -> list[Score]:
    """How well each variable was read, with 95% bootstrap intervals over episodes.

    The intervals are those of `stats.bootstrap` with `stats.pearson`, `stats.r2` and so on, from
    sums per episode: of 60 variables in milliseconds.

    Args:
        predictions, states: (F, S).
        groups: (F,) the episode of each row.

    Returns:
        One per variable.
    """
    target, mean, std = standardised(states)
    guess = (predictions - mean) / std
    ones = np.ones_like(target)
    terms = np.stack(
        [ones, guess, target, guess**2, target**2, guess * target, (guess - target) ** 2], axis=1
    )
    _, place = np.unique(groups, return_inverse=True)
    sums = np.zeros((place.max() + 1, *terms.shape[1:]))
    np.add.at(sums, place, terms)
    n = len(sums)
    drawn = np.random.default_rng(seed).integers(n, size=(draws, n)) + n * np.arange(draws)[:, None]
    # that an episode is in a resample
    times = np.bincount(drawn.ravel(), minlength=draws * n).reshape(draws, n)
    found = _statistics(sums.sum(axis=0)[None], std)
    resampled = _statistics(np.tensordot(times, sums, axes=1), std)
    told: list[dict[str, Any]] = [{} for _ in std]
    for name, values in found.items():
        undefined = np.isnan(resampled[name]).all(axis=0)
        ends = np.nanquantile(np.where(undefined, 0.0, resampled[name]), [0.025, 0.975], axis=0)
        for k, row in enumerate(told):
            row[name] = defined(values[0, k])
            row[f"{name}_interval"] = None if undefined[k] else interval(ends[:, k])
    return [Score(**row) for row in told]


def _statistics(sums: np.ndarray, std: np.ndarray) -> dict[str, np.ndarray]:
    """(n, 7, S) sums of standardised values -> (n, S) each."""
    guess, target, guesses, targets, products, squares = np.moveaxis(
        sums[:, 1:] / sums[:, :1], 1, 0
    )
    spread = np.maximum(targets - target**2, 0)
    width = np.maximum(guesses - guess**2, 0)
    mse = squares * std**2
    with np.errstate(divide="ignore", invalid="ignore"):
        r = np.where(
            np.minimum(width, spread) > LEAST,
            (products - guess * target) / np.sqrt(width * spread),
            np.nan,
        )
        r2 = np.where(spread > LEAST, 1 - squares / spread, np.nan)
    return {"r": r, "r2": r2, "mse": mse, "rmse": np.sqrt(mse)}
