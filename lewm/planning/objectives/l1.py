"""Mean absolute difference to the goal in latent space: V-JEPA 2-AC's energy."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lewm.contracts import check_numbers

__all__ = ["L1"]


@dataclass(frozen=True)
class L1:
    """Mean absolute difference between the numbers of the last predicted latent and the goal's.

    Attributes:
        intermediate: weight of the mean over the earlier steps, as in `L2`: above 0 for plans that
            are executed in part. 0 is the paper.

    Source: V-JEPA 2-AC (arXiv 2506.09985): mean over all numbers of all tokens.
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
        cost = (rollout[:, :, -1:] - goal).abs().mean(dim=-1).squeeze(-1)
        if self.intermediate and rollout.shape[2] > 1:
            earlier = (rollout[:, :, :-1] - goal).abs().mean(dim=-1)
            cost = cost + self.intermediate * earlier.mean(dim=-1)
        return cost
