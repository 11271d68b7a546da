"""The cross-entropy method: sample plans from a Gaussian, refit it to the cheapest few, repeat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator

from lewm.contracts import Box, Cost, Plan
from lewm.planning.search import Search, check_sizes

__all__ = ["CEM"]


@dataclass(frozen=True)
class CEM:
    """Cross-entropy method. The defaults are the paper's for Push-T; elsewhere it uses 10
    iterations.

    Attributes:
        num_candidates: N, action sequences scored per iteration; candidate 0 is the mean itself, so
            the incumbent competes.
        num_elites: how many of the cheapest refit the Gaussian. At least 2, or there is no spread
            to measure.
        num_iterations: refits.
        stop_spread: an environment is finished when the mean std of its elites falls below it; 0
            never.

    Source: LeWorldModel's planning protocol (arXiv 2603.19312); the method is Rubinstein's (1999).
    """

    num_candidates: int = 300
    num_elites: int = 30
    num_iterations: int = 30
    stop_spread: float = 0.0

    def __post_init__(self) -> None:
        check_sizes(self)

    @property
    def evaluations(self) -> int:
        """Sequences scored per environment: all candidates of all iterations, and the final mean
        once."""
        return self.num_candidates * self.num_iterations + 1

    @torch.no_grad()
    def solve(self, cost: Cost, start: Plan, box: Box, generators: Sequence[Generator]) -> Plan:
        """Refit `start` to its cheapest samples, `num_iterations` times.

        The mean that is returned is the last elite mean, as in the paper. Where it is worse than
        the start, the cheapest candidate ever seen is returned in its place, for one evaluation
        more: see `Search.guarded`.

        A NaN cost marks a diverged rollout, which is never an elite. With fewer valid candidates
        than elites the best fills the empty places and the spread is kept; with none at all the
        iteration changes nothing.

        Args:
            cost: (B, N, H, A) -> (B, N).
            start: the Gaussian to begin from, mean and std (B, H, A); the mean is clamped to the
                box.
            box: bounds that every scored and returned sequence respects.
            generators: B of them; environment b draws from `generators[b]` alone, on the
                generator's own device.

        Returns:
            The plan; its std is that of the last elites.

        Raises:
            ValueError: the number of generators is not B.

        Cost: at most `num_iterations` calls of `cost` with N candidates, and one with a single
        candidate.
        """
        search = Search(start, box, generators, self.stop_spread)
        for _ in range(self.num_iterations):
            candidates = search.sample(self.num_candidates)
            elites = search.select(candidates, cost(candidates), self.num_elites)
            search.refit(elites, elites.actions.mean(dim=1), elites.actions.std(dim=1))
            if search.finished:
                break
        return search.guarded(cost)
