"""The cross-entropy method for few samples: coloured noise, elites that stay, the cheapest sequence
instead of the mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator

from lewm.contracts import Box, Cost, Plan
from lewm.planning.search import Elites, Search, check_sizes

__all__ = ["ICEM"]


@dataclass(frozen=True)
class ICEM:
    """Improved cross-entropy method. By default it scores as many sequences as the paper's CEM,
    less its final one.

    Attributes:
        num_candidates: N, new action sequences scored in the first iteration.
        num_elites: how many of the cheapest refit the Gaussian.
        num_iterations: refits.
        noise_exponent: of the samples' power spectrum over the blocks of the plan; 0 is CEM's white
            noise, and the higher, the more do neighbouring blocks move alike. Within a block the
            noise is white: the solver does not know that a block is several steps (`hold_actions`
            is one way to tell it).
        keep_fraction: part of the elites that compete again in the next iteration, at the cost they
            were found to have: they are not scored again.
        momentum: how much of the old Gaussian the new one keeps.
        decay: iteration i has N * decay**-i new candidates, but never fewer than twice the elites.
            1 keeps N; the source has 1.25, to begin broadly and save where the spread is small
            already.
        stop_spread: an environment is finished when the mean std of its Gaussian falls below it; 0
            never.

    Source: Pinneri et al. (2020), arXiv 2008.06389, with its momentum and fraction; its exponents
    lie between 0.25 and 3.5, task by task. The elites that it carries from one plan to the next are
    left out, because a solver holds no state; `warm_start` carries the plan itself.
    """

    num_candidates: int = 300
    num_elites: int = 30
    num_iterations: int = 30
    noise_exponent: float = 2.0
    keep_fraction: float = 0.3
    momentum: float = 0.1
    decay: float = 1.0
    stop_spread: float = 0.0

    def __post_init__(self) -> None:
        # with a momentum of 1 nothing would ever be learnt; a decay of 1 keeps N
        check_sizes(self, least={"decay": 1}, most={"keep_fraction": 1}, below={"momentum": 1})

    @property
    def populations(self) -> tuple[int, ...]:
        """New candidates of each iteration."""
        least = min(2 * self.num_elites, self.num_candidates)
        return tuple(
            max(round(self.num_candidates * self.decay**-i), least)
            for i in range(self.num_iterations)
        )

    @property
    def evaluations(self) -> int:
        """Sequences scored per environment: the new candidates of all iterations."""
        return sum(self.populations)

    @torch.no_grad()
    def solve(self, cost: Cost, start: Plan, box: Box, generators: Sequence[Generator]) -> Plan:
        """Refit `start` to its cheapest samples and to the elites that stayed; return the cheapest
        sequence ever scored.

        The start competes as candidate 0 of the first iteration and the mean as candidate 0 of the
        last, in between neither does: a mean that competes all along narrows the search too early.
        Arguments, errors and what a NaN cost means are those of every solver; see `CEM.solve`.

        Returns:
            The plan; its std is that of the last Gaussian.

        Cost: at most `num_iterations` calls of `cost`, with the numbers of candidates in
        `populations`.
        """
        search = Search(start, box, generators, self.stop_spread)
        kept = round(self.keep_fraction * self.num_elites)
        elites: Elites | None = None
        for iteration, number in enumerate(self.populations):
            with_mean = iteration in (0, self.num_iterations - 1)
            candidates = search.sample(number, self.noise_exponent, with_mean)
            costs = cost(candidates)
            if elites is not None:
                candidates = torch.cat([candidates, elites.actions[:, :kept]], dim=1)
                costs = torch.cat([costs, elites.costs[:, :kept]], dim=1)
            elites = search.select(candidates, costs, self.num_elites)
            mean = torch.lerp(elites.actions.mean(dim=1), search.mean, self.momentum)
            std = torch.lerp(elites.actions.std(dim=1), search.std, self.momentum)
            search.refit(elites, mean, std)
            if search.finished:
                break
        return search.cheapest()
