"""DINO as a world model (arXiv 2104.14294): sort the next frame into prototypes, as a slowly
following copy of the network does, centred and sharpened.

z_t      = sphere(projector(ViT(o_t)))                online
zhat_t+1 = sphere(predictor(z_t; a_t))
q(x)     = softmax(head(x) / tau_s)
p_t      = softmax((head'(y_t) - c) / tau_t)          target, no gradient
loss     = -mean p_{t+1} log q(zhat_{t+1}) - w mean p_t log q(z_t)
c        <- m c + (1 - m) mean head'(y);  target <- tau target + (1 - tau) online

The second term is DINO's own: a frame is a view of itself. Without it nothing asks that a predicted
latent and a seen one be alike.

Centring alone ends in one uniform answer, sharpening alone in one prototype: both are needed.
Prototypes are a coarse code, so that distances are good rank orders near and flat far away.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from lewm.contracts import Batch, DataSpec, Losses, check_numbers
from lewm.models.nn import losses
from lewm.models.nn.following import (
    FollowingConfig,
    FollowingTrunk,
    follow,
    momentum_at,
    on_sphere,
    watched,
)
from lewm.models.nn.layers import mean_over_devices
from lewm.models.nn.trunk import windows
from lewm.registry import choose

__all__ = ["DINOConfig", "DINO"]


@dataclass(frozen=True)
class DINOConfig(FollowingConfig):
    """DINO's knobs. The defaults are those of the published code.

    Attributes:
        prototypes: K.
        student_temperature, teacher_temperature: tau_s and tau_t.
        centre_momentum: m.
        view_weight: w.
        head_dim, bottleneck_dim: hidden width of the head, and the width in which prototypes lie.
        crops: local crops of each frame that are sorted as the whole frame is. 0, unlike DINO: a
            crop teaches that place does not matter, and place is the state. An option to see that.
        crop_share: side of a crop, as a share of the picture's.
    """

    momentum_end: float | None = 1.0
    prototypes: int = 65_536
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    centre_momentum: float = 0.9
    view_weight: float = 1.0
    head_dim: int = 2048
    bottleneck_dim: int = 256
    crops: int = 0
    crop_share: float = 0.625

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = ("prototypes", "head_dim", "bottleneck_dim")
        check_numbers(
            self,
            least=dict.fromkeys(sizes, 1),
            most=dict.fromkeys(sizes, 10**6)
            | {"centre_momentum": 1, "crop_share": 1, "crops": 100},
            above={"student_temperature": 0, "teacher_temperature": 0, "crop_share": 0},
        )

    @property
    def weights_about(self) -> int:
        """As of the parts; the head is included."""
        return super().weights_about + self.bottleneck_dim * (self.prototypes + self.head_dim)

    @classmethod
    def tiny(cls) -> Self:
        """LeWM's tiny parts, a small head, and a target that fits some hundred updates."""
        following = replace(super().tiny(), momentum=0.99, momentum_end=None)
        return replace(following, prototypes=256, head_dim=256, bottleneck_dim=64)

    def build(self, spec: DataSpec) -> DINO:
        """Make a model with random weights that fits the data described by `spec`."""
        return DINO(self, spec)


class PrototypeHead(nn.Module):
    """(..., D) latents -> (..., K) cosines with prototypes.

    Source: DINO's head; two layers of three, as the latent has a projector of its own.
    """

    def __init__(self, latent_dim: int, hidden_dim: int, bottleneck_dim: int, count: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, bottleneck_dim)
        )
        self.prototypes = nn.Parameter(torch.randn(count, bottleneck_dim))

    def forward(self, latents: Tensor) -> Tensor:
        places = F.normalize(self.layers(latents), dim=-1)
        return places @ F.normalize(self.prototypes, dim=-1).T


class DINO(FollowingTrunk):
    """LeWorldModel's parts and a head of prototypes. Plan with `l2`, on the sphere the cosine, or
    with `own`: the cross-entropy that it is trained for, of a goal and of what is predicted."""

    config: DINOConfig
    centre: Tensor
    costs: tuple[str, ...] = ("prototypes",)

    def __init__(self, config: DINOConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        sizes = config.head_dim, config.bottleneck_dim, config.prototypes
        self.head = PrototypeHead(config.latent_dim, *sizes)
        self.target_head = copy.deepcopy(self.head).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(config.prototypes))

    @staticmethod
    def finish(latents: Tensor) -> Tensor:
        return on_sphere(latents)

    def follow(self, update: int, total: int) -> None:
        """Move the target, its head included, after an update."""
        super().follow(update, total)
        tau = momentum_at(self.config.momentum, self.config.momentum_end, update, total)
        follow(self.target_head, self.head, tau)

    def loss(self, batch: Batch, generator: Generator | None = None) -> Losses:
        """Cross-entropy with the target's distribution: of every predicted frame, of every frame
        itself, and of crops where they are asked for. In training mode the centre moves.

        Raises:
            ValueError: the windows are not longer than the context.

        Source: DINO, eq. 2 to 4.
        """
        config = self.config
        z, predicted, seen = self.transitions(batch)
        with torch.no_grad():
            teacher = self.target_head(self.targets(batch.pixels))  # (B, T, K)
        student = self.head(predicted) / config.student_temperature
        wanted = windows(teacher[:, 1:], self.context)
        terms = {
            "cross_entropy": losses.cross_entropy(
                student, wanted, config.teacher_temperature, self.centre
            )
        }
        if config.view_weight:
            terms["view"] = losses.cross_entropy(
                self.head(z) / config.student_temperature,
                teacher,
                config.teacher_temperature,
                self.centre,
            )
        if config.crops:
            sharp = self.head(self._crops(batch.pixels)) / config.student_temperature
            terms["crops"] = losses.cross_entropy(
                sharp, teacher.repeat(config.crops, 1, 1), config.teacher_temperature, self.centre
            )
        if self.training:
            mean = mean_over_devices(teacher.flatten(0, 1).mean(dim=0))
            self.centre.lerp_(mean, 1 - config.centre_momentum)
        terms["prediction"] = watched(predicted, seen)
        return Losses(
            terms, weights={"prediction": 0.0, "view": config.view_weight}, latents=z.detach()
        )

    def judge(self, name: str, rollout: Tensor, goal: Tensor) -> Tensor:
        """(B, N, H, D) predicted latents and (B, D) goal latents -> (B, N): cross-entropy of the
        last one's prototypes with those of the goal, as `Judging` asks."""
        choose("cost", name, self.costs)
        wanted = (self.head(goal) / self.config.student_temperature).softmax(dim=-1)
        found = (self.head(rollout[:, :, -1]) / self.config.student_temperature).log_softmax(-1)
        return -(wanted[:, None] * found).sum(dim=-1)

    def _crops(self, pixels: Tensor) -> Tensor:
        """(B, T, 3, h, w) -> (crops * B, T, D) latents of random crops, enlarged to the picture."""
        size = self.spec.image_size
        side = max(1, round(self.config.crop_share * size))
        views = []
        for _ in range(self.config.crops):
            top, left = torch.randint(size - side + 1, (2,)).tolist()
            view = pixels[..., top : top + side, left : left + side].flatten(0, 1).float()
            view = F.interpolate(view, size=(size, size), mode="bilinear", antialias=True)
            views.append(view.round().clamp(0, 255).to(torch.uint8).unflatten(0, pixels.shape[:2]))
        return self.encode(torch.cat(views))
