"""What was done in such a situation? Inverse dynamics over many steps: from here to the goal in so
much time, these blocks.

One forward pass in place of a search. It imitates, so it is as good as the ways that were recorded:
demonstrations that went somewhere make it a planner, a random walk makes it a proposal that a
search should improve on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lewm.contracts import Hindsight, Losses, check_numbers

__all__ = ["AmortisedConfig", "InverseDynamics"]


@dataclass(frozen=True)
class AmortisedConfig:
    """Sizes of the network.

    Attributes:
        hidden_dim: width of the two hidden layers.
        horizon: H, how many blocks it proposes.
    """

    hidden_dim: int = 256
    horizon: int = 5

    def __post_init__(self) -> None:
        check_numbers(
            self,
            least={"hidden_dim": 1, "horizon": 1},
            most={"hidden_dim": 10**5, "horizon": 10**4},
        )

    def build(self, latent_dim: int, block_dim: int) -> InverseDynamics:
        """Make a head with random weights for D-dimensional latents and blocks of width A."""
        return InverseDynamics(self, latent_dim, block_dim)


class InverseDynamics(nn.Module):
    """An MLP from both latents and the steps that are left to the blocks of the next steps.

    Attributes:
        horizon: H, of its plans; fitting gives it that many blocks to learn from.

    Source: after goal-conditioned inverse dynamics on LeWorldModel's latents (arXiv 2605.08732).
    Ours: several blocks at once.
    """

    def __init__(self, config: AmortisedConfig, latent_dim: int, block_dim: int) -> None:
        super().__init__()
        self.config, self.horizon = config, config.horizon
        self.network = nn.Sequential(
            nn.Linear(2 * latent_dim + 2, config.hidden_dim),
            nn.GELU(),
            nn.Linear(config.hidden_dim, config.hidden_dim),
            nn.GELU(),
            nn.Linear(config.hidden_dim, config.horizon * block_dim),
            nn.Unflatten(-1, (config.horizon, block_dim)),
        )

    def plan(self, now: Tensor, goal: Tensor, steps: Tensor) -> Tensor:
        """Propose what leads from `now` to `goal` in `steps` env steps.

        Told a fixed number again and again it procrastinates: count the steps down, or estimate
        them anew.

        Args:
            now, goal: (B, D) latents.
            steps: (B,) env steps left; fewer than 1 count as 1.

        Returns:
            (B, H, A) blocks, normalised and not clipped. Those that would begin after `steps` mean
            nothing.
        """
        # As logarithm and reciprocal the last steps differ as clearly as far ones, whatever the
        # longest way is.
        left = steps.clamp(min=1)[:, None]
        return self.network(torch.cat([now, goal, left.log(), left.reciprocal()], dim=-1))

    def loss(self, batch: Hindsight) -> Losses:
        """Mean squared error, in normalised units, over the blocks that are known.

        Raises:
            ValueError: the batch does not hold H blocks.
        """
        if batch.blocks.shape[1] != self.horizon:
            raise ValueError(
                f"expected batches of {self.horizon} blocks, as horizon says, got "
                f"{batch.blocks.shape[1]}."
            )
        error = (self.plan(batch.now, batch.goal, batch.steps) - batch.blocks).square().mean(dim=-1)
        return Losses({"blocks": (error * batch.known).sum() / batch.known.sum().clamp(min=1)})
