"""V-JEPA's loss on one latent per frame (arXiv 2506.09985): predict the layer-normed latent that a
slowly following copy of the encoder makes of the next frame, in L1.

z_t      = norm(projector(ViT(o_t)))                  online
y_t+1    = norm(projector'(ViT'(o_t+1)))              target, no gradient
zhat_t+1 = norm(predictor(z_t; a_t))
loss     = mean |zhat_{t+1} - y_{t+1}|
target   <- tau target + (1 - tau) online

What is masked here is the future: V-JEPA masks blocks of a clip and predicts them from the rest.
The masked pre-training itself, and planning over its patches, are `vjepa2_ac`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from torch import Generator, Tensor

from lewm.contracts import Batch, DataSpec, Losses
from lewm.models.nn import losses
from lewm.models.nn.following import FollowingConfig, FollowingTrunk, layer_normed, watched
from lewm.models.nn.trunk import windows

__all__ = ["VJEPAConfig", "VJEPA"]


@dataclass(frozen=True)
class VJEPAConfig(FollowingConfig):
    """V-JEPA's knob: how slowly the target follows. The default is the published constant."""

    momentum: float = 0.99925

    @classmethod
    def tiny(cls) -> Self:
        """LeWM's tiny parts; a target that fits some hundred updates."""
        return replace(super().tiny(), momentum=0.99)

    def build(self, spec: DataSpec) -> VJEPA:
        """Make a model with random weights that fits the data described by `spec`."""
        return VJEPA(self, spec)


class VJEPA(FollowingTrunk):
    """LeWorldModel's parts, trained by self-prediction in L1. Plan with `l1`."""

    @staticmethod
    def finish(latents: Tensor) -> Tensor:
        return layer_normed(latents)

    def loss(self, batch: Batch, generator: Generator | None = None) -> Losses:
        """L1 loss of every window of K latents against the target's; nothing is drawn.

        Raises:
            ValueError: the windows are not longer than the context.

        Source: V-JEPA 2, sec. 2.
        """
        z, predicted, seen = self.transitions(batch)
        target = windows(self.targets(batch.pixels)[:, 1:], self.context)
        return Losses(
            terms={"l1": losses.l1(predicted, target), "prediction": watched(predicted, seen)},
            weights={"prediction": 0.0},
            latents=z.detach(),
        )
