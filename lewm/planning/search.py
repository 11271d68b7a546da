"""What searches over action sequences share: noise, the cheapest so far, when to stop, a plan never
worse than the start.

A solver is a loop over these: sample around the mean, score, select the cheapest, refit. What a
solver adds is how it samples and how it refits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from lewm.contracts import Box, Cost, Plan, Settings, check_numbers


@dataclass(frozen=True)
class Elites:
    """The cheapest candidates of one round, cheapest first.

    Attributes:
        costs: (B, n); infinite for a place that no valid candidate was left for.
        actions: (B, n, H, A); the cheapest candidate again in a place without a valid one.
    """

    costs: Tensor
    actions: Tensor

    @property
    def valid(self) -> Tensor:
        """(B, n) bool: places that hold a candidate whose rollout did not diverge."""
        return self.costs < torch.inf


class Search:
    """One search for B environments, which share a batch and nothing else.

    An environment is finished when the spread of its search falls below `stop_spread`. From then on
    it keeps its plan and leaves its generator alone, however long the others go on, so that its
    plans, this one and the next, are those it would be given alone. Its place in the batch is still
    scored, because a cost is of all environments: stopping early saves what it can only where all
    have finished.

    Args:
        start: the Gaussian to begin from, mean and std (B, H, A); the mean is clamped to the box.
        box: bounds that every sample and the mean respect.
        generators: B of them; environment b draws from `generators[b]` alone, on the generator's
            own device.
        stop_spread: in the plan's units; 0 never stops early.

    Raises:
        ValueError: the number of generators is not B.
    """

    def __init__(
        self, start: Plan, box: Box, generators: Sequence[Generator], stop_spread: float = 0.0
    ) -> None:
        self.mean, self.std = box.clamp(start.mean), start.std
        if len(generators) != len(self.mean):
            raise ValueError(
                f"expected one generator per environment, {len(self.mean)} of them, got "
                f"{len(generators)}."
            )
        self._box, self._generators, self._stop_spread = box, generators, stop_spread
        self.running = torch.ones_like(self.mean[:, 0, 0], dtype=torch.bool)
        self._best, self._best_cost = self.mean, torch.full_like(self.mean[:, 0, 0], torch.inf)
        self._start_cost: Tensor | None = None

    def sample(self, number: int, exponent: float = 0.0, with_mean: bool = True) -> Tensor:
        """Draw candidates from the Gaussian, within the box.

        Args:
            exponent: of the noise's power spectrum over the plan, see `coloured`; 0 is white.
            with_mean: let candidate 0 be the mean itself. The first round of a search must, or
                nothing knows the start's cost.

        Returns:
            (B, number, H, A).
        """
        shape = (number, *self.mean.shape[1:])
        running = self.running.tolist() if self._stop_spread else [True] * len(self._generators)
        draws = [
            coloured(
                torch.randn(shape, generator=g, device=g.device, dtype=self.mean.dtype), exponent
            ).to(self.mean.device)
            if runs
            else self.mean.new_zeros(shape)
            for g, runs in zip(self._generators, running, strict=True)
        ]
        candidates = self._box.clamp(self.mean[:, None] + self.std[:, None] * torch.stack(draws))
        if with_mean:
            candidates[:, 0] = self.mean
        return candidates

    def select(self, candidates: Tensor, costs: Tensor, number: int) -> Elites:
        """Pick the `number` cheapest, and remember the cheapest of all rounds. A NaN cost is never
        picked before a number.

        Args:
            candidates: (B, N, H, A); in the first round candidate 0 is the start.
            costs: (B, N).
        """
        costs = torch.where(costs.isnan(), torch.inf, costs)
        self._start_cost = costs[:, 0] if self._start_cost is None else self._start_cost
        values, places = costs.topk(number, dim=1, largest=False)
        places = torch.where(values < torch.inf, places, places[:, :1])
        chosen = candidates.gather(1, places[..., None, None].expand(-1, -1, *candidates.shape[2:]))
        improved = self.running & (values[:, 0] < self._best_cost)
        self._best = torch.where(_whole(improved), chosen[:, 0], self._best)
        self._best_cost = torch.where(improved, values[:, 0], self._best_cost)
        return Elites(values, chosen)

    def refit(self, elites: Elites, mean: Tensor, std: Tensor) -> None:
        """Take up the Gaussian that was made from `elites`, and finish environments whose spread is
        now small.

        With fewer valid candidates than elites the spread is kept; with none at all nothing
        changes.

        Args:
            mean, std: (B, H, A); the mean is clamped to the box.
        """
        some, all_ = elites.valid.any(dim=1), elites.valid.all(dim=1)
        self.mean = torch.where(_whole(self.running & some), self._box.clamp(mean), self.mean)
        self.std = torch.where(_whole(self.running & all_), std, self.std)
        self.finish(self.std)

    def finish(self, sizes: Tensor) -> None:
        """Finish the environments whose spread is below `stop_spread`.

        Args:
            sizes: (B, ..., A), whose mean is the spread. A dimension in which the box leaves no
                choice does not count: it says nothing of how far the search is.
        """
        if not self._stop_spread:
            return
        free = self._box.low < self._box.high
        some = sizes[..., free] if bool(free.any()) and not bool(free.all()) else sizes
        self.running = self.running & ~(some.flatten(1).mean(dim=1) < self._stop_spread)

    @property
    def finished(self) -> bool:
        """Have all environments finished?"""
        return self._stop_spread > 0 and not bool(self.running.any())

    def cheapest(self) -> Plan:
        """The cheapest sequence of all rounds. Never worse than the start, which was scored in the
        first."""
        return Plan(mean=self._best, std=self.std)

    def guarded(self, cost: Cost) -> Plan:
        """The mean where it is no worse than the start, else the cheapest sequence of all rounds.

        A mean of good plans can be a bad plan (left of the wall and right of it average to the
        wall), and no round scores the last one. So it is scored here: one evaluation more, and a
        plan is never worse than its start.
        """
        assert self._start_cost is not None
        kept = cost(self.mean[:, None])[:, 0] <= self._start_cost  # False for NaN
        return Plan(mean=torch.where(_whole(kept), self.mean, self._best), std=self.std)


def coloured(white: Tensor, exponent: float) -> Tensor:
    """Turn white noise into noise whose power falls with frequency, so that neighbouring blocks of
    a plan move alike.

    The power at frequency f (cycles per block) is proportional to f ** -exponent; the mean over the
    plan, f = 0, is given the power of the slowest wave that fits, 1/H. Every number keeps its
    standard deviation of 1. As the filter is a circular one, the last block is as close to the
    first as the second is.

    Args:
        white: (..., H, A) independent standard normal numbers.
        exponent: 0 leaves the noise white, 1 is pink, 2 red; below 0 neighbours alternate.

    Returns:
        (..., H, A).

    Source: Timmer and Koenig (1995), as iCEM uses it. Ours: the scale makes the standard deviation
    exactly 1.
    """
    length = white.shape[-2]
    if exponent == 0 or length == 1:
        return white
    frequency = (
        torch.fft.fftfreq(length, dtype=white.dtype, device=white.device)
        .abs()
        .clamp_min(1 / length)
    )
    power = frequency**-exponent
    gain = (power / power.mean()).sqrt()[: length // 2 + 1, None]
    return torch.fft.irfft(torch.fft.rfft(white, dim=-2) * gain, n=length, dim=-2)


class Sampling(Settings, Protocol):
    """A solver that scores so many candidates a round."""

    @property
    def num_candidates(self) -> int: ...


def check_sizes(solver: Sampling, **bounds: Mapping[str, float]) -> None:
    """Refuse sizes that make no search, with a ValueError.

    Args:
        solver: of it `num_candidates`, `num_iterations` and, where it estimates a spread from them,
            `num_elites`.
        bounds: of its other settings, as for `contracts.check_numbers`.
    """
    sizes = {"num_candidates": 1, "num_iterations": 1, "num_elites": 2}
    largest = {"num_candidates": 10**7, "num_iterations": 10**6}
    least = sizes | dict(bounds.pop("least", {}))
    check_numbers(solver, least, largest | dict(bounds.pop("most", {})), **bounds)
    elites = getattr(solver, "num_elites", 0)
    if elites > solver.num_candidates:
        raise ValueError(
            f"num_elites must lie between 2 and num_candidates={solver.num_candidates}, got "
            f"{elites}. A tenth of the candidates is usual."
        )


def _whole(flags: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1), to choose whole plans."""
    return flags[:, None, None]
