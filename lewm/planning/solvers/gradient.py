"""Gradient descent on the actions themselves, through the model, from several starts at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from lewm.contracts import Box, Cost, Plan
from lewm.planning.search import Search, check_sizes
from lewm.registry import choose

__all__ = ["Gradient"]


@dataclass(frozen=True)
class Gradient:
    """First-order descent of the planning cost.

    A step takes about four times as long as a scoring: forward with everything kept, and backward.
    The defaults are therefore about as much work as the paper's CEM of 9001 sequences, and 8
    candidates x 15 iterations as much as a CEM of 100 x 5.

    Attributes:
        num_candidates: N, sequences that descend side by side: the start, and N-1 samples around
            it. A cost with local minima, such as latent distance, wants several.
        num_iterations: steps of each.
        learning_rate: in normalised action units for Adam and RMSprop, whose steps are about so
            long; in such units squared per unit of cost for SGD, to be tuned to the objective.
        optimiser: "adam", "rmsprop" or "sgd".
        stop_spread: an environment is finished when its last step changed its actions by less than
            this on average (of their absolute values, over all N sequences, in normalised units); 0
            never. Values of `learning_rate` and above stop Adam after one step.

    Source: LeWorldModel's comparison of solvers (Adam 84%, RMSprop 67%, SGD 26% on Push-T, against
    96% of CEM).
    """

    num_candidates: int = 30
    num_iterations: int = 75
    learning_rate: float = 0.2
    optimiser: Literal["adam", "rmsprop", "sgd"] = "adam"
    stop_spread: float = 0.0

    def __post_init__(self) -> None:
        check_sizes(self, above={"learning_rate": 0})
        choose("optimiser", self.optimiser, RULES)

    @property
    def evaluations(self) -> int:
        """Sequences scored per environment: all of them before each step, and once after the
        last."""
        return self.num_candidates * (self.num_iterations + 1)

    @torch.no_grad()
    def solve(self, cost: Cost, start: Plan, box: Box, generators: Sequence[Generator]) -> Plan:
        """Descend from `start` and from samples around it; return the cheapest sequence on any of
        the ways.

        After each step the sequences are projected onto the box. A sequence without a finite
        gradient, as where its rollout diverges, stays where it is. Other arguments and errors are
        those of every solver; see `CEM.solve`.

        Args:
            cost: (B, N, H, A) -> (B, N), differentiable. It is called with gradients enabled; only
                those of the actions are computed, and nothing is left behind in the model.

        Returns:
            The plan; its std is the start's, as descent estimates none.

        Raises:
            ValueError: also where the cost has no gradient.

        Cost: at most `num_iterations` calls of `cost` with N candidates, forward and backward, and
        one forward only.
        """
        search = Search(start, box, generators, self.stop_spread)
        actions = search.sample(self.num_candidates)
        first, second = torch.zeros_like(actions), torch.zeros_like(actions)
        moved = torch.full_like(actions, torch.inf)
        for count in range(1, self.num_iterations + 1):
            costs, slope = _slope(cost, actions)
            search.select(actions, costs, 1)
            search.finish(moved)  # only now, when what the last step led to has been scored
            if search.finished:
                break
            moving = slope.isfinite().flatten(2).all(dim=2)[..., None, None]
            step, first, second = RULES[self.optimiser](
                torch.where(moving, slope, 0.0), first, second, count
            )
            before, actions = (
                actions,
                torch.where(moving, box.clamp(actions - self.learning_rate * step), actions),
            )
            moved = (actions - before).abs()
        else:
            search.select(actions, cost(actions), 1)
        return search.cheapest()


def _slope(cost: Cost, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Costs (B, N) and their derivative by the actions (B, N, H, A), both detached."""
    with torch.enable_grad():
        actions = actions.detach().requires_grad_()
        costs = cost(actions)
        if not costs.requires_grad:
            raise ValueError(
                "expected a cost that can be differentiated by the actions, got one without "
                "gradients. Plan with a float32 model and a differentiable objective, or choose "
                "a solver that only samples, such as icem."
            )
        (slope,) = torch.autograd.grad(costs.sum(), actions)
    return costs.detach(), slope


# The rules are written out because torch.optim brings in the compiler, seconds at the first plan.
# Each takes the slope, two running means of the same shape and the number of the step, from 1, and
# gives the direction of descent and the new means.


def _adam(
    slope: Tensor, first: Tensor, second: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Kingma and Ba (2015), with their constants."""
    first, second = first.lerp(slope, 0.1), second.lerp(slope.square(), 0.001)
    return first / (1 - 0.9**count) / ((second / (1 - 0.999**count)).sqrt() + 1e-8), first, second


def _rmsprop(
    slope: Tensor, first: Tensor, second: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Hinton (2012), with torch's constants."""
    second = second.lerp(slope.square(), 0.01)
    return slope / (second.sqrt() + 1e-8), first, second


def _sgd(slope: Tensor, first: Tensor, second: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    return slope, first, second


RULES = {"adam": _adam, "rmsprop": _rmsprop, "sgd": _sgd}
