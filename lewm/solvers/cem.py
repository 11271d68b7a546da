"""The cross-entropy method: sample plans from a Gaussian, refit it to the cheapest few, repeat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from lewm.contracts import Box, Cost, Plan

__all__ = ["CEM"]


@dataclass(frozen=True)
class CEM:
    """Cross-entropy method. The defaults are the paper's for Push-T; elsewhere it uses 10 iterations.

    Attributes:
        num_candidates: N, action sequences scored per iteration; candidate 0 is the mean itself, so the incumbent competes.
        num_elites: how many of the cheapest refit the Gaussian. At least 2, or there is no spread to measure.
        num_iterations: refits.

    Source: LeWorldModel's planning protocol (arXiv 2603.19312); the method is Rubinstein's (1999).
    """

    num_candidates: int = 300
    num_elites: int = 30
    num_iterations: int = 30

    def __post_init__(self) -> None:
        if self.num_iterations < 1:
            raise ValueError(f"num_iterations must be at least 1, got {self.num_iterations}.")
        if not 2 <= self.num_elites <= self.num_candidates:
            raise ValueError(
                f"num_elites must lie between 2 and num_candidates={self.num_candidates}, got {self.num_elites}. "
                "A tenth of the candidates is usual."
            )

    @property
    def evaluations(self) -> int:
        """Sequences scored per environment: all candidates of all iterations, and the final mean once."""
        return self.num_candidates * self.num_iterations + 1

    @torch.no_grad()
    def solve(self, cost: Cost, start: Plan, box: Box, generators: Sequence[Generator]) -> Plan:
        """Refit `start` to its cheapest samples, `num_iterations` times.

        The mean that is returned is the last elite mean, as in the paper. A mean of good plans can be a bad plan (left of
        the wall and right of it average to the wall), and nothing in the method scores the last one; so it is scored, and
        where it is worse than the start, the cheapest candidate ever seen is returned in its place. Hence a plan is never
        worse than its start, for one evaluation more.

        A NaN cost marks a diverged rollout, which is never an elite. With fewer valid candidates than elites the best fills
        the empty places and the spread is kept; with none at all the iteration changes nothing.

        Args:
            cost: (B, N, H, A) -> (B, N).
            start: the Gaussian to begin from, mean and std (B, H, A); the mean is clamped to the box.
            box: bounds that every scored and returned sequence respects.
            generators: B of them; environment b draws from `generators[b]` alone, on the generator's own device.

        Returns:
            The plan; its std is that of the last elites.

        Raises:
            ValueError: the number of generators is not B.

        Cost: `num_iterations` calls of `cost` with N candidates and one with a single candidate.
        """
        mean, std = box.clamp(start.mean), start.std
        if len(generators) != mean.shape[0]:
            raise ValueError(f"expected one generator per environment, {mean.shape[0]} of them, got {len(generators)}.")
        best, best_cost, start_cost = mean, mean.new_full(mean.shape[:1], torch.inf), None
        for _ in range(self.num_iterations):
            candidates = box.clamp(mean[:, None] + std[:, None] * self._noise(generators, mean))
            candidates[:, 0] = mean
            costs = cost(candidates)
            costs = torch.where(costs.isnan(), torch.inf, costs)
            start_cost = costs[:, 0] if start_cost is None else start_cost

            values, elite = costs.topk(self.num_elites, dim=1, largest=False)
            valid = values < torch.inf
            elite = torch.where(valid, elite, elite[:, :1])
            chosen = candidates.gather(1, elite[..., None, None].expand(-1, -1, *mean.shape[1:]))
            mean = torch.where(_whole(valid.any(dim=1)), box.clamp(chosen.mean(dim=1)), mean)
            std = torch.where(_whole(valid.all(dim=1)), chosen.std(dim=1), std)

            improved = values[:, 0] < best_cost
            best = torch.where(_whole(improved), chosen[:, 0], best)
            best_cost = torch.where(improved, values[:, 0], best_cost)
        assert start_cost is not None
        kept = cost(mean[:, None])[:, 0] <= start_cost  # False for NaN
        return Plan(mean=torch.where(_whole(kept), mean, best), std=std)

    def _noise(self, generators: Sequence[Generator], mean: Tensor) -> Tensor:
        """(B, N, H, A) standard normal numbers, environment by environment."""
        shape = (self.num_candidates, *mean.shape[1:])
        draws = [torch.randn(shape, generator=g, device=g.device, dtype=mean.dtype).to(mean.device) for g in generators]
        return torch.stack(draws)


def _whole(flags: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1), to choose whole plans."""
    return flags[:, None, None]
