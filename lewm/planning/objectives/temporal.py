"""Env steps to the goal, as a learnt quasimetric estimates them: a planning cost that sees walls
and does not saturate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from lewm.contracts import Distance, check_numbers

__all__ = ["Temporal"]


@dataclass(frozen=True)
class Temporal:
    """Predicted env steps from the last predicted latent to the goal.

    Attributes:
        network: the run's head "temporal", with `distance(now, goal)`; None until the run is
            opened.
        intermediate: weight of the mean over the earlier steps, as in `L2`: above 0 for plans that
            are executed in part.

    Source: Ours; see `heads/temporal.py`.
    """

    network: Distance | None = field(default=None, repr=False)
    intermediate: float = 0.0

    heads: ClassVar[dict[str, str]] = {"network": "temporal"}

    def __post_init__(self) -> None:
        check_numbers(self)

    def cost(self, rollout: Tensor, goal: Tensor) -> Tensor:
        """Score predicted latents; 0 at the goal, NaN where a rollout diverged.

        Args:
            rollout: (B, N, H, D) predicted latents.
            goal: (B, D) goal latents.

        Returns:
            (B, N) costs in env steps, lower is better.

        Raises:
            ValueError: the run has no such head yet.
        """
        if self.network is None:
            raise ValueError(
                "objective 'temporal': expected the head 'temporal', got none. Make it with: "
                "lewm fit RUN temporal"
            )
        if not self.intermediate or rollout.shape[2] == 1:
            return self.network.distance(rollout[:, :, -1], goal[:, None])
        steps = self.network.distance(rollout, goal[:, None, None])
        return steps[..., -1] + self.intermediate * steps[..., :-1].mean(dim=-1)
