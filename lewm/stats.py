"""What every reported number passes through: intervals for rates and for statistics over episodes,
correlation and R2.

Pure functions of numpy arrays. Two rules shape them: a rate without its sample size is not a
result, and frames of one episode are not independent, so what is resampled is always the episode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb
from statistics import NormalDist

import numpy as np

__all__ = [
    "Paired",
    "bootstrap",
    "bootstrap_mean",
    "mcnemar",
    "p_value",
    "paired",
    "pearson",
    "r2",
    "rank_correlation",
    "ranks",
    "rate_with_interval",
    "wilson",
]

SIGNIFICANT = 0.05
"""p below which a difference counts as shown."""

FEWEST_GROUPS = 10
"""Episodes below which nothing counts as shown. Where those of one episode succeed or fail
together, intervals over 6 episodes find a difference between methods that are alike in 16 of 100
cases, over 12 in 8, over 40 in 6; McNemar's test alone in 45."""


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a success rate.

    Unlike the textbook interval it neither leaves [0, 1] nor shrinks to a point at 0 or n
    successes, which is where a good planner lives.

    Raises:
        ValueError: no trials, or successes outside 0..n.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA
    1927.
    """
    if n < 1:
        raise ValueError(
            f"an interval of a rate needs at least one trial, got n={n}. Evaluate some episodes "
            "first."
        )
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
    """Return the percentile interval of `statistic(*columns)` when whole groups are drawn anew,
    with replacement.

    Args:
        statistic: takes as many arrays as there are columns, returns one number.
        columns: (F, ...) arrays whose rows belong together, such as prediction and target.
        groups: (F,) the group of each row, usually its episode. Rows of one group stay together
            because they are not independent: resampling frames would report intervals several times
            too narrow.
        draws: resamples; 1000 settles the second digit of a 95% bound.
        seed: makes the interval reproducible. Scores of an evaluation, `paired` and the study leave
            it at 0, whichever seed drew their pairs: whoever reads the same attempts later, and is
            told no seed, finds the same interval.

    Raises:
        ValueError: no rows, or columns of different lengths.

    Source: Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 1979.
    """
    _check_lengths(groups, *columns)
    order = np.argsort(groups, kind="stable")
    _, first = np.unique(np.asarray(groups)[order], return_index=True)
    members = np.split(order, first[1:])
    generator = np.random.default_rng(seed)
    values = np.empty(draws)
    for draw in range(draws):
        rows = np.concatenate(
            [members[k] for k in generator.integers(len(members), size=len(members))]
        )
        values[draw] = statistic(*(column[rows] for column in columns))
    return _percentiles(values, confidence)


def bootstrap_mean(
    values: np.ndarray,
    groups: np.ndarray,
    draws: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Return `bootstrap(np.mean, values, groups=groups)`, the same numbers some fifty times faster:
    a mean needs sums only.

    Cost: memory of draws x groups.
    """
    _check_lengths(groups, values)
    _, place = np.unique(groups, return_inverse=True)
    sizes, sums = np.bincount(place), np.bincount(place, weights=np.asarray(values, np.float64))
    drawn = np.random.default_rng(seed).integers(len(sizes), size=(draws, len(sizes)))
    return _percentiles(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1), confidence)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p of McNemar's test: did two methods succeed equally often, on the
    same attempts?

    Attempts on which they agree say nothing about that. Of the others, either method should win
    half, so p is that of a fair coin; 1 where they always agree.

    Args:
        only_first, only_second: attempts in which one succeeded and the other did not.

    Source: McNemar, "Note on the sampling error of the difference between correlated proportions",
    Psychometrika 1947.
    """
    n, fewer = only_first + only_second, min(only_first, only_second)
    if fewer < 0:
        raise ValueError(f"expected counts of at least 0, got {only_first} and {only_second}.")
    return min(1.0, 2 * sum(comb(n, k) for k in range(fewer + 1)) / 2**n)


@dataclass(frozen=True)
class Paired:
    """Two methods on the same attempts.

    Attributes:
        attempts, episodes: how many, and how many independent groups they come from.
        only_first, only_second: attempts in which one succeeded and the other did not.
        difference: rate of the first less that of the second.
        low, high: its 95% bootstrap interval over episodes.
        p: of McNemar's exact test, which takes attempts for independent; those of one episode are
            not quite.
    """

    attempts: int
    episodes: int
    only_first: int
    only_second: int
    difference: float
    low: float
    high: float
    p: float

    @property
    def enough(self) -> bool:
        """Are there episodes enough to show anything?"""
        return self.episodes >= FEWEST_GROUPS

    @property
    def better(self) -> int:
        """1 if the first is shown to be better, -1 if the second is, 0 if neither is.

        Cautious: the test and the interval over episodes must agree, and there must be episodes
        enough.
        """
        if self.p >= SIGNIFICANT or self.low <= 0 <= self.high or not self.enough:
            return 0
        return 1 if self.difference > 0 else -1


def paired(first: np.ndarray, second: np.ndarray, groups: np.ndarray) -> Paired:
    """Compare two methods by their (n,) bool successes on the same attempts, of which those of one
    group belong together."""
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    _check_lengths(groups, first, second)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    low, high = bootstrap_mean(first.astype(np.float64) - second, groups)
    return Paired(
        attempts=len(first),
        episodes=len(np.unique(groups)),
        only_first=only_first,
        only_second=only_second,
        difference=(only_first - only_second) / len(first),
        low=low,
        high=high,
        p=mcnemar(only_first, only_second),
    )


def p_value(p: float) -> str:
    """As people write it: three decimals, or that it is smaller."""
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def rate_with_interval(rate: float, low: float, high: float) -> str:
    """As the command line writes it: "94.5% [90.4%, 96.9%]"."""
    return f"{rate:.1%} [{low:.1%}, {high:.1%}]"


def pareto_front(costs: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other point equals or beats in both numbers, lower being
    better, by the first number.

    Of equal points the first counts.
    """
    front: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (*costs[i], i)):
        if not front or costs[i][1] < costs[front[-1]][1]:
            front.append(i)
    return front


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Return Pearson's correlation of two (F,) arrays; NaN where one of them is constant, for which
    it is not defined."""
    x, y = _paired(x, y)
    x, y = x - x.mean(), y - y.mean()
    norm = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / norm) if norm > 0 else float("nan")


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's correlation of two (F,) arrays: Pearson's of their ranks, equal values sharing
    their mean rank.

    A search only ever compares costs, so of a cost its ranks are what matters. NaN where one of the
    arrays is constant.
    """
    return pearson(ranks(first), ranks(second))


def ranks(values: np.ndarray) -> np.ndarray:
    """(F,) -> (F,) float64 ranks from 1 on, equal values sharing their mean rank; all NaN where one
    is NaN. What `scipy.stats.rankdata` gives, in a tenth of its time: a bootstrap asks thousands of
    times."""
    values = np.asarray(values)
    if np.isnan(values).any():
        return np.full(len(values), np.nan)
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    first = np.flatnonzero(np.concatenate(([True], ascending[1:] != ascending[:-1])))
    end = np.append(first[1:], len(values))
    found = np.empty(len(values))
    found[order] = np.repeat((first + 1 + end) / 2, end - first)
    return found


def r2(prediction: np.ndarray, target: np.ndarray) -> float:
    """Return the share of the target's variance that (F,) predictions explain: 1 is perfect, 0 no
    better than its mean.

    It may be negative, and unlike `pearson` it forgives neither scale nor offset. NaN where the
    target is constant.
    """
    prediction, target = _paired(prediction, target)
    total = np.square(target - target.mean()).sum()
    return float(1 - np.square(target - prediction).sum() / total) if total > 0 else float("nan")


def _paired(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64, so that a million rows of float32 do not lose the digits that are being
    reported."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise ValueError(
            f"expected two arrays of one shape (F,), F > 0, got {x.shape} and {y.shape}. Pass one "
            "variable."
        )
    return x, y


def _check_lengths(groups: np.ndarray, *columns: np.ndarray) -> None:
    lengths = [len(groups), *(len(column) for column in columns)]
    if not columns or lengths[0] == 0 or len(set(lengths)) != 1:
        raise ValueError(
            f"bootstrap needs columns as long as their (non-empty) groups, got lengths {lengths}."
        )


def _percentiles(values: np.ndarray, confidence: float) -> tuple[float, float]:
    low, high = np.nanquantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
