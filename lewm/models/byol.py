"""BYOL as a world model (arXiv 2006.07733; with actions arXiv 2206.08332): predict the latent that
a slowly following copy of the encoder makes of the next frame, up to its length.

z_t      = sphere(projector(ViT(o_t)))                online
y_t+1    = sphere(projector'(ViT'(o_t+1)))            target, no gradient
zhat_t+1 = sphere(predictor(z_t; a_t))
loss     = mean (2 - 2 cos(zhat_{t+1}, y_{t+1}))
target   <- tau target + (1 - tau) online

Nothing in the loss forbids a collapse. What does is the target, the stop-gradient and a predictor
that only the online side has.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from torch import Generator, Tensor

from lewm.contracts import Batch, DataSpec, Losses
from lewm.models.nn import losses
from lewm.models.nn.following import FollowingConfig, FollowingTrunk, on_sphere, watched
from lewm.models.nn.trunk import windows

__all__ = ["BYOLConfig", "BYOL"]


@dataclass(frozen=True)
class BYOLConfig(FollowingConfig):
    """BYOL's knobs: how slowly the target follows. The defaults are the paper's schedule."""

    momentum_end: float | None = 1.0

    @classmethod
    def tiny(cls) -> Self:
        """LeWM's tiny parts; a target that fits some hundred updates."""
        return replace(super().tiny(), momentum=0.99, momentum_end=None)

    def build(self, spec: DataSpec) -> BYOL:
        """Make a model with random weights that fits the data described by `spec`."""
        return BYOL(self, spec)


class BYOL(FollowingTrunk):
    """LeWorldModel's parts, trained by self-prediction. Plan with `l2`: on the sphere it is the
    cosine."""

    @staticmethod
    def finish(latents: Tensor) -> Tensor:
        return on_sphere(latents)

    def loss(self, batch: Batch, generator: Generator | None = None) -> Losses:
        """Cosine loss of every window of K latents against the target's; nothing is drawn.

        Raises:
            ValueError: the windows are not longer than the context.

        Source: BYOL, eq. 2.
        """
        z, predicted, seen = self.transitions(batch)
        target = windows(self.targets(batch.pixels)[:, 1:], self.context)
        return Losses(
            terms={
                "cosine": losses.cosine(predicted, target),
                "prediction": watched(predicted, seen),
            },
            weights={"prediction": 0.0},
            latents=z.detach(),
        )
