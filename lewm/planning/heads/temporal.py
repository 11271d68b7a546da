"""How many env steps lie between two latents? A quasimetric, so that what was learnt of short ways
adds up along long ones.

Distance in latent space saturates: two places that look different are about as far apart whether
they are 30 steps or 90 away, and a wall in between does not count at all. Steps do count it. They
are not symmetric (what was pushed cannot be pulled), but no detour is shorter than the way itself:
d(x, z) <= d(x, y) + d(y, z). The network below can express nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lewm.contracts import Hindsight, Losses, check_numbers

__all__ = ["TemporalConfig", "TemporalDistance"]


FARTHEST = math.log1p(1000)
"""Logarithm of 1 + env steps at which places are far enough apart. Without a limit what no way
connects would grow for ever."""


@dataclass(frozen=True)
class TemporalConfig:
    """Sizes of the quasimetric, and whose way it learns.

    Attributes:
        hidden_dim: width of the two hidden layers.
        metric_dim: of the embedding whose Euclidean distance is the symmetric part.
        oneway_dim: of the embedding whose greatest ascent is the asymmetric part.
        expectile: below 0.5 the distance leans to the short ways among those that were seen; 0.5 is
            their mean.
        apart: weight with which places are held apart that no recorded way connects quickly.
    """

    hidden_dim: int = 256
    metric_dim: int = 32
    oneway_dim: int = 32
    expectile: float = 0.05
    apart: float = 0.02

    def __post_init__(self) -> None:
        widths = ("hidden_dim", "metric_dim", "oneway_dim")
        check_numbers(
            self,
            least=dict.fromkeys(widths, 1),
            most=dict.fromkeys(widths, 10**5),
            above={"expectile": 0},
            below={"expectile": 1},
        )

    def build(self, latent_dim: int, block_dim: int) -> TemporalDistance:
        """Make a head with random weights for D-dimensional latents; the width of a block does not
        matter to it."""
        return TemporalDistance(self, latent_dim)


class TemporalDistance(nn.Module):
    """d(x, y) = |m(x) - m(y)| + max_i relu(o_i(y) - o_i(x)), in env steps; m and o are two halves
    of one MLP's output.

    Whatever the weights are: d(x, x) = 0, d >= 0, and the triangle inequality holds, because both
    terms obey it.

    Source: Ours, of known parts: a metric plus a maximum of one-way differences as in Pitis et al.,
    "An inductive bias for distances", 2020, and Liu et al., "Metric residual networks", 2023;
    expectiles as in Kostrikov et al., "Offline reinforcement learning with implicit Q-learning",
    2022.
    """

    horizon = 0  # it learns from steps, and from no blocks

    def __init__(self, config: TemporalConfig, latent_dim: int) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Sequential(
            nn.Linear(latent_dim, config.hidden_dim),
            nn.LayerNorm(config.hidden_dim),
            nn.GELU(),
            nn.Linear(config.hidden_dim, config.hidden_dim),
            nn.LayerNorm(config.hidden_dim),
            nn.GELU(),
            # it would cancel
            nn.Linear(config.hidden_dim, config.metric_dim + config.oneway_dim, bias=False),
        )

    def distance(self, now: Tensor, goal: Tensor) -> Tensor:
        """Estimate the env steps from `now` to `goal`; NaN where a latent holds one.

        Args:
            now: (..., D) latents.
            goal: (..., D) latents; leading dimensions broadcast, and each latent is embedded once.

        Returns:
            (...) steps, 0 or more.
        """
        return self.between(self.embed(now), self.embed(goal))

    def loss(self, batch: Hindsight) -> Losses:
        """Expectile regression of log(1 + distance) on log(1 + steps), and a pull that holds all
        other places apart.

        What a demonstration took is an upper bound of what it takes: the shortest ways are the
        informative ones, so an estimate that is too long costs (1 - expectile) / expectile times as
        much as one that is too short. Logarithms, because an error of two steps matters near the
        goal and not far from it. In a world of chance this leans to lucky ways.

        Two sides of a wall look alike, and ways from one to the other are rare on record: a smooth
        network would take them for near. So goals of other pairs of the batch are pushed away, as
        far as the ways on record allow.

        Source: the second term after Wang et al., "Optimal goal-reaching RL via quasimetric
        learning", 2023.
        """
        now, goal = self.embed(batch.now), self.embed(batch.goal)
        error = self.between(now, goal).log1p() - batch.steps.log1p()
        weight = torch.where(error > 0, 1 - self.config.expectile, self.config.expectile)
        return Losses(
            terms={
                "expectile": (weight * error.square()).mean(),
                "nearness": (FARTHEST - self.between(now, goal.roll(1, dims=0)).log1p())
                .relu()
                .mean(),
            },
            weights={"nearness": self.config.apart},
            watch={"log_error": error.detach().abs().mean()},
        )

    def between(self, now: Tensor, goal: Tensor) -> Tensor:
        """Estimate the env steps between latents that `embed` has embedded; they broadcast."""
        sizes = self.config.metric_dim, self.config.oneway_dim
        (here, low), (there, high) = now.split(sizes, -1), goal.split(sizes, -1)
        # `vector_norm` has the subgradient 0 where both are the same; a square root would have
        # none.
        return torch.linalg.vector_norm(here - there, dim=-1) + (high - low).relu().amax(dim=-1)
