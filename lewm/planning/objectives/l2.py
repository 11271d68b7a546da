"""Squared distance to the goal in latent space: the paper's planning cost."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lewm.contracts import check_numbers

__all__ = ["L2"]


@dataclass(frozen=True)
class L2:
    """Squared Euclidean distance of the last predicted latent to the goal's.

    Attributes:
        intermediate: weight of the mean distance over the earlier steps. 0 is the paper: only the
            end of the plan counts, so a plan of which only a part is executed may put the movement
            off to the part that is not. A weight above 0 asks for progress at every step.

    Source: LeWorldModel's planning cost for `intermediate = 0`. Ours: the weight, for plans that
    are executed in part.
    """

    intermediate: float = 0.0

    def __post_init__(self) -> None:
        check_numbers(self)

    def cost(self, rollout: Tensor, goal: Tensor) -> Tensor:
        """Score predicted latents; 0 at the goal, NaN where a rollout diverged.

        Args:
            rollout: (B, N, H, D) predicted latents.
            goal: (B, D) goal latents.

        Returns:
            (B, N) costs, lower is better.
        """
        goal = goal[:, None, None]
        cost = (rollout[:, :, -1:] - goal).square().sum(dim=-1).squeeze(-1)
        if self.intermediate and rollout.shape[2] > 1:
            cost = cost + self.intermediate * (rollout[:, :, :-1] - goal).square().sum(dim=-1).mean(
                dim=-1
            )
        return cost
