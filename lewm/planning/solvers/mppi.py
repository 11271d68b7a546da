"""Model predictive path integral control: refit the Gaussian to all good samples, the better the
heavier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from lewm.contracts import Box, Cost, Plan
from lewm.planning.search import Search, check_sizes

__all__ = ["MPPI", "softmin"]


@dataclass(frozen=True)
class MPPI:
    """Iterated path integral control with an adaptive spread. By default it scores what the paper's
    CEM scores.

    Attributes:
        num_candidates: N, action sequences scored per iteration; candidate 0 is the mean itself.
        num_elites: how many of the cheapest are weighted; `num_candidates` weights all, as the
            original does.
        num_iterations: refits.
        temperature: of the weights, in standard deviations of the elites' costs, so that it need
            not be tuned to the scale of an objective. Towards 0 the best alone counts; infinite
            weights the elites alike, which is CEM.
        stop_spread: an environment is finished when the weighted mean std of its elites falls below
            it; 0 never.

    Source: Williams et al. (2017), with elites and a spread that adapts as in TD-MPC (Hansen et
    al., 2022). Ours: the unit of the temperature, and the unbiased weighted std.
    """

    num_candidates: int = 300
    num_elites: int = 30
    num_iterations: int = 30
    temperature: float = 0.5
    stop_spread: float = 0.0

    def __post_init__(self) -> None:
        # at a temperature of 0 only the best sample would count
        check_sizes(self, above={"temperature": 0}, most={"temperature": math.inf})

    @property
    def evaluations(self) -> int:
        """Sequences scored per environment: all candidates of all iterations, and the final mean
        once."""
        return self.num_candidates * self.num_iterations + 1

    @torch.no_grad()
    def solve(self, cost: Cost, start: Plan, box: Box, generators: Sequence[Generator]) -> Plan:
        """Move `start` to the weighted mean and spread of its cheapest samples, `num_iterations`
        times.

        The last mean is returned, or the cheapest sequence ever scored where the mean is worse than
        the start: see `Search.guarded`. Arguments, errors and what a NaN cost means are those of
        every solver; see `CEM.solve`.

        Returns:
            The plan; its std is the weighted one of the last elites.

        Cost: at most `num_iterations` calls of `cost` with N candidates, and one with a single
        candidate.
        """
        search = Search(start, box, generators, self.stop_spread)
        for _ in range(self.num_iterations):
            candidates = search.sample(self.num_candidates)
            elites = search.select(candidates, cost(candidates), self.num_elites)
            weights = softmin(elites.costs, self.temperature)[..., None, None]
            mean = (weights * elites.actions).sum(dim=1)
            scatter = (weights * (elites.actions - mean[:, None]).square()).sum(dim=1)
            # Bessel's correction for weights: n / (n-1) where all are 1/n. Without it the spread
            # shrinks by itself.
            std = (
                scatter / (1 - weights.square().sum(dim=1)).clamp_min(torch.finfo(mean.dtype).eps)
            ).sqrt()
            search.refit(elites, mean, std)
            if search.finished:
                break
        return search.guarded(cost)


def softmin(costs: Tensor, temperature: float) -> Tensor:
    """Weigh candidates by exp(-cost / (temperature * std of the costs)).

    Args:
        costs: (B, n); infinite costs get weight 0 and do not count in the std.
        temperature: in standard deviations, those of the n candidates themselves (divided by n, not
            n-1).

    Returns:
        (B, n) weights that sum to 1; all alike where all costs are the same, or all infinite.
    """
    valid = costs < torch.inf
    excess = torch.where(valid, costs - costs.amin(dim=1, keepdim=True), 0.0)
    number = valid.sum(dim=1, keepdim=True).clamp_min(1)
    deviation = torch.where(valid, excess - excess.sum(dim=1, keepdim=True) / number, 0.0)
    std = (deviation.square().sum(dim=1, keepdim=True) / number).sqrt()
    scores = -excess / std.clamp_min(torch.finfo(costs.dtype).tiny) / temperature
    return torch.where(valid, scores, torch.finfo(costs.dtype).min).softmax(dim=1)
