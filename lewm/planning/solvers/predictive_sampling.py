"""Predictive sampling: try some perturbations of the plan, keep the best. The simplest search there
is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator

from lewm.contracts import Box, Cost, Plan
from lewm.planning.search import Search, check_sizes

__all__ = ["PredictiveSampling"]


@dataclass(frozen=True)
class PredictiveSampling:
    """The best of N Gaussian perturbations, again around the best. By default it scores as many as
    the paper's CEM, less one.

    Attributes:
        num_candidates: N, action sequences scored per iteration; candidate 0 is the best so far.
        num_iterations: rounds. 1 is the source's method, which relies on replanning often from a
            warm start.
        shrink: the std of a round is that of the one before times this. Without it no search of
            some rounds would settle.
        stop_spread: the search is finished when the mean std of the next round would fall below it;
            0 never.

    Source: Howell et al. (2022), arXiv 2212.00541, for one iteration. Ours: more of them, and
    `shrink`.
    """

    num_candidates: int = 300
    num_iterations: int = 30
    shrink: float = 0.85
    stop_spread: float = 0.0

    def __post_init__(self) -> None:
        check_sizes(self, above={"shrink": 0}, most={"shrink": 1})

    @property
    def evaluations(self) -> int:
        """Sequences scored per environment: all candidates of all iterations."""
        return self.num_candidates * self.num_iterations

    @torch.no_grad()
    def solve(self, cost: Cost, start: Plan, box: Box, generators: Sequence[Generator]) -> Plan:
        """Return the cheapest of the start and all samples.

        Arguments, errors and what a NaN cost means are those of every solver; see `CEM.solve`.

        Returns:
            The plan; its std is what one more round would sample with.

        Cost: at most `num_iterations` calls of `cost` with N candidates.
        """
        search = Search(start, box, generators, self.stop_spread)
        for _ in range(self.num_iterations):
            candidates = search.sample(self.num_candidates)
            elites = search.select(candidates, cost(candidates), 1)
            search.refit(elites, elites.actions[:, 0], search.std * self.shrink)
            if search.finished:
                break
        return search.cheapest()
