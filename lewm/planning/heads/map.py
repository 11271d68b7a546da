"""Which places are there? A few frames of the recordings that stand for all others: a map that the
model drew of its world.

Nothing is trained. Frames are selected so that every other one is near one of them. How near they
are to each other, and so which of them are connected, the head `temporal` knows; the solver
`waypoints` finds its way over them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lewm.contracts import check_numbers

__all__ = ["MapConfig", "LatentMap"]


SAME = 1e-5
"""Square of a distance, relative to the variance of all latents, below which two of them are the
same: what float32 leaves of equal ones."""


@dataclass(frozen=True)
class MapConfig:
    """Size of the map.

    Attributes:
        places: M, frames that it holds; fewer where there are no more that differ.
    """

    places: int = 200

    def __post_init__(self) -> None:
        # a planner looks at all pairs of them
        check_numbers(self, least={"places": 2}, most={"places": 5000})

    def build(self, latent_dim: int, block_dim: int) -> LatentMap:
        """Make an empty map for D-dimensional latents; the width of a block does not matter to
        it."""
        return LatentMap(self, latent_dim)


class LatentMap(nn.Module):
    """M frames of the training episodes, as the model sees them.

    Attributes:
        latents: (M, D), in the order in which they were selected.
        rows: (M,) int64, of the episode file.
    """

    latents: Tensor
    rows: Tensor

    def __init__(self, config: MapConfig, latent_dim: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("latents", torch.zeros(config.places, latent_dim))
        self.register_buffer("rows", torch.zeros(config.places, dtype=torch.long))

    @torch.no_grad()
    def select(self, latents: Tensor, rows: Tensor) -> None:
        """Take the frame nearest to the mean of all, and then again and again the one that is
        farthest from those that were taken.

        So rare places are on the map as well as frequent ones, and no frame is farther from it than
        twice what is possible with M of them.

        Args:
            latents: (F, D), finite.
            rows: (F,) of the episode file.

        Cost: F x M x D.

        Source: farthest-point clustering (Gonzalez, 1985).
        """
        # squares of distances by products: many times faster than by differences
        centred = latents - latents.mean(dim=0)
        squares = centred.square().sum(dim=1)
        same = SAME * squares.mean()
        chosen = [squares.argmin()]
        apart = torch.full_like(squares, torch.inf)
        while len(chosen) < self.config.places:
            last = chosen[-1]
            apart = torch.minimum(apart, squares + squares[last] - 2 * (centred @ centred[last]))
            farthest = apart.argmax()
            if not apart[farthest] > same:  # all that differ are taken
                break
            chosen.append(farthest)
        taken = torch.stack(chosen)
        self.config = replace(self.config, places=max(2, len(taken)))
        if len(taken) < 2:  # all frames look alike
            taken = taken.repeat(2)
        self.latents, self.rows = latents[taken].float().clone(), rows[taken].clone()

    def loss_of(self, latents: Tensor) -> Tensor:
        """(F, D) latents -> (F,) how far each is from the nearest place, in latent space."""
        return torch.cat(
            [torch.cdist(some, self.latents).amin(dim=1) for some in latents.split(4096)]
        )
