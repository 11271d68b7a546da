"""Self-prediction against a target that follows: the parts of LeWorldModel, and a copy of its
encoder that is not trained but averages what was trained.

    xi <- tau xi + (1 - tau) theta      after each update

Only the online side gets gradients, and only it is asked for an action: that asymmetry is what
keeps BYOL and its kin from collapsing, without a term for it.
"""

from __future__ import annotations

import copy
import math
from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lewm.contracts import DataSpec, check_numbers
from lewm.models.nn import losses
from lewm.models.nn.trunk import Trunk, TrunkConfig

__all__ = [
    "FollowingConfig",
    "FollowingTrunk",
    "follow",
    "layer_normed",
    "momentum_at",
    "on_sphere",
]


@dataclass(frozen=True)
class FollowingConfig(TrunkConfig):
    """Of a target that follows, beside the sizes of the parts.

    Attributes:
        momentum: tau at the first update. 1 / (1 - tau) updates are its memory, which must fit the
            run: Ours, a tenth to a quarter of the updates. 0 is no target at all, stop-gradient
            alone.
        momentum_end: tau at the last one, along a cosine; None keeps the first.
        predictor_pace: times the learning rate at which the predictor learns. Theory says that one
            which is near its best keeps the encoder from collapsing (Tang et al.,
            arXiv 2212.03319).
    """

    momentum: float = 0.996
    momentum_end: float | None = None
    predictor_pace: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, most={"momentum": 1, "momentum_end": 1}, above={"predictor_pace": 0})


class FollowingTrunk(Trunk, ABC):
    """Trunk with a following copy of encoder and projector."""

    config: FollowingConfig

    def __init__(self, config: FollowingConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.target = nn.ModuleDict(
            {name: copy.deepcopy(part) for name, part in self.followed.items()}
        ).requires_grad_(False)

    @property
    def paces(self) -> Mapping[str, float]:
        """The predictor's, with what tells it of actions and what makes latents of its answer."""
        pace = self.config.predictor_pace
        return {} if pace == 1 else dict.fromkeys(("predictor", "action_encoder"), pace)

    @property
    def followed(self) -> Mapping[str, nn.Module]:
        """What the target follows."""
        return {"encoder": self.encoder, "projector": self.projector}

    @torch.no_grad()
    def targets(self, pixels: Tensor) -> Tensor:
        """(B, T, 3, h, w) uint8 -> (B, T, D) of the target, without gradient. Its batch norm uses
        the statistics of the batch, as the online one does."""
        flat = self.target["projector"](
            self.target["encoder"](self.normalised(pixels.flatten(0, 1)))
        )
        return self.finish(flat).unflatten(0, pixels.shape[:2])

    def follow(self, update: int, total: int) -> None:
        """Move the target, after an update."""
        tau = momentum_at(self.config.momentum, self.config.momentum_end, update, total)
        for name, part in self.followed.items():
            follow(self.target[name], part, tau)


def momentum_at(first: float, last: float | None, update: int, total: int) -> float:
    """tau of an update: from `first` to `last` along a cosine, or `first` throughout.

    Source: BYOL, sec. 3.3.
    """
    if last is None:
        return first
    return last - (last - first) * (math.cos(math.pi * update / max(1, total)) + 1) / 2


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """Move the weights of `target` towards those of `online`; buffers, such as running statistics,
    are copied."""
    for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
        slow.lerp_(fast, 1 - momentum)
    for kept, new in zip(target.buffers(), online.buffers(), strict=True):
        kept.copy_(new)


def on_sphere(latents: Tensor) -> Tensor:
    """(..., D) scaled to length sqrt(D), so that each number is of order 1.

    Ours: a loss that knows no scale leaves that of predictions free, and what is fed back into the
    predictor must be of the scale that it was trained on. Squared distance on the sphere is D (2 -
    2 cos), so that plans are made in the distance that was trained.
    """
    return F.normalize(latents, dim=-1) * latents.shape[-1] ** 0.5


def layer_normed(latents: Tensor) -> Tensor:
    """(..., D) with mean 0 and variance 1 over D, without weights.

    Source: V-JEPA 2, which norms its targets so; that predictions are fed back normed: its
    action-conditioned stage.
    """
    return F.layer_norm(latents, latents.shape[-1:])


def watched(predicted: Tensor, target: Tensor) -> Tensor:
    """The mean squared error beside a loss that is another: what the collapse alarm compares with
    copying."""
    return losses.prediction(predicted.detach(), target.detach())
