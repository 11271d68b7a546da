"""What every reported number passes through: intervals for rates and for statistics over episodes, correlation and R2.

Pure functions of numpy arrays. Two rules shape them: a rate without its sample size is not a result, and frames of one
episode are not independent, so what is resampled is always the episode.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import numpy as np

__all__ = ["bootstrap", "pearson", "r2", "wilson"]


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a success rate.

    Unlike the textbook interval it neither leaves [0, 1] nor shrinks to a point at 0 or n successes, which is where a good
    planner lives.

    Raises:
        ValueError: no trials, or successes outside 0..n.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    """
    if n < 1:
        raise ValueError(f"an interval of a rate needs at least one trial, got n={n}. Evaluate some episodes first.")
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie between 0 and n={n}, got {successes}.")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / n
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (rate * (1 - rate) / n + z**2 / (4 * n**2)) ** 0.5
    # At the ends the exact bound is 0 or 1; rounding would report -1e-17.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return low, high


def bootstrap(
    statistic: Callable[..., float],
    *columns: np.ndarray,
    groups: np.ndarray,
    draws: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile interval of `statistic(*columns)` when whole groups are drawn anew, with replacement.

    Args:
        statistic: takes as many arrays as there are columns, returns one number.
        columns: (F, ...) arrays whose rows belong together, such as prediction and target.
        groups: (F,) the group of each row, usually its episode. Rows of one group stay together because they are not
            independent: resampling frames would report intervals several times too narrow.
        draws: resamples; 1000 settles the second digit of a 95% bound.
        seed: makes the interval reproducible.

    Raises:
        ValueError: no rows, or columns of different lengths.

    Source: Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 1979.
    """
    lengths = [len(groups), *(len(column) for column in columns)]
    if not columns or lengths[0] == 0 or len(set(lengths)) != 1:
        raise ValueError(f"bootstrap needs columns as long as their (non-empty) groups, got lengths {lengths}.")
    order = np.argsort(groups, kind="stable")
    _, first = np.unique(np.asarray(groups)[order], return_index=True)
    members = np.split(order, first[1:])
    generator = np.random.default_rng(seed)
    values = np.empty(draws)
    for draw in range(draws):
        rows = np.concatenate([members[k] for k in generator.integers(len(members), size=len(members))])
        values[draw] = statistic(*(column[rows] for column in columns))
    low, high = np.nanquantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Return Pearson's correlation of two (F,) arrays; NaN where one of them is constant, for which it is not defined."""
    x, y = _paired(x, y)
    x, y = x - x.mean(), y - y.mean()
    norm = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / norm) if norm > 0 else float("nan")


def r2(prediction: np.ndarray, target: np.ndarray) -> float:
    """Return the share of the target's variance that (F,) predictions explain: 1 is perfect, 0 no better than its mean.

    It may be negative, and unlike `pearson` it forgives neither scale nor offset. NaN where the target is constant.
    """
    prediction, target = _paired(prediction, target)
    total = np.square(target - target.mean()).sum()
    return float(1 - np.square(target - prediction).sum() / total) if total > 0 else float("nan")


def _paired(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64, so that a million rows of float32 do not lose the digits that are being reported."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise ValueError(f"expected two arrays of one shape (F,), F > 0, got {x.shape} and {y.shape}. Pass one variable.")
    return x, y
