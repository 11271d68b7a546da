"""DINO-WM (arXiv 2411.04983): patches of a frozen encoder, a predictor over them that is causal by
frames, and nothing that could collapse.

    z_t      = patches(o_t)                      (P, d), frozen                      encode
    x_t      = [z_t, embed(a_t)]                 the action beside every token
    zhat_t+1 = Transformer(x_i for i <= t)       without the action's channels       predict
    loss     = mean (zhat_t+1 - z_t+1)^2         teacher-forced

A plan minimises the squared distance to the goal's tokens, at its end.

In a small model the encoder's channels are reduced to the d that vary most: z = s (patches - m) V.
V is a PCA of the tokens of the first batch that is trained on. It is not whitened, s is one number:
so distances keep their order. What is fitted is stored with the weights and never changes again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist
from torch import Generator, Tensor, nn

from lewm.contracts import Batch, DataSpec, Losses, check_numbers
from lewm.models.nn import losses
from lewm.models.nn.frozen_encoders import ENCODERS, open_encoder
from lewm.models.nn.layers import devices_together
from lewm.models.nn.tokens import FrameTransformer, TokenModel
from lewm.registry import choose

__all__ = ["DINOWMConfig", "DINOWM"]


@dataclass(frozen=True)
class DINOWMConfig:
    """The encoder, and sizes of the predictor over its tokens.

    Attributes:
        encoder: one of `frozen_encoders.ENCODERS`. Its weights come from `lewm weights NAME`;
            "random" needs none and is the control.
        resolution: to which pictures are resized for it, in pixels; with it, how many tokens there
            are: 56, 112 and 196 make 16, 64 and 196 of DINOv2. 0 takes its own choice.
        channels: d, to which its channels are reduced. 0 keeps them all, as published.
        context: K, the most frames the predictor looks at. Source: 3; 1 in Wall, Rope and Granular.
        action_dim: numbers that stand for the action in every token.
        predictor_width: 0 is as wide as a token with its action, as published; else two linear maps
            lead there and back.
        predictor_depth, predictor_heads, predictor_head_dim: of the predictor.
        predictor_mlp_dim, dropout: likewise.
        residual: predict what changes of a token, beginning with nothing, in place of the token.
            Ours, for short trainings: of a small world's tokens nearly all stays.
    """

    encoder: str = "dinov2-small"
    resolution: int = 196
    channels: int = 0
    context: int = 3
    action_dim: int = 10
    predictor_width: int = 0
    predictor_depth: int = 6
    predictor_heads: int = 16
    predictor_head_dim: int = 64
    predictor_mlp_dim: int = 2048
    dropout: float = 0.1
    residual: bool = False

    def __post_init__(self) -> None:
        kind = ENCODERS[choose("encoder", self.encoder, ENCODERS)]
        sizes = [
            *("context", "action_dim", "predictor_depth", "predictor_heads"),
            *("predictor_head_dim", "predictor_mlp_dim"),
        ]
        check_numbers(
            self,
            least=dict.fromkeys(sizes, 1),
            most=dict.fromkeys(sizes, 10**5)
            | {"context": 10_000, "predictor_depth": 1000, "predictor_width": 10**5}
            | {"channels": kind.width, "resolution": 10_000},
            below={"dropout": 1},
        )

    @classmethod
    def paper(cls) -> Self:
        """The published configuration without proprioception: 196 tokens of 384 numbers, and
        19,624,930 trainable parameters at A = 10 (20.1 M with it)."""
        return cls()

    @classmethod
    def tiny(cls) -> Self:
        """Half a million trainable parameters for 64 px and a CPU: 16 tokens of 64.

        Ours: sizes; EfficientNet-Lite0 is a tenth as dear as DINOv2 and says as much of our worlds.
        """
        return cls(
            encoder="efficientnet-lite0",
            resolution=0,
            channels=64,
            context=1,
            predictor_width=128,
            predictor_depth=3,
            predictor_heads=4,
            predictor_head_dim=32,
            predictor_mlp_dim=256,
            dropout=0.0,
            residual=True,
        )

    def build(self, spec: DataSpec) -> DINOWM:
        """Make a model with random weights that fits the data described by `spec`.

        Raises:
            ValueError: the encoder's weights are not here, or the resolution does not fit it.
        """
        return DINOWM(self, spec)


class DINOWM(TokenModel):
    """A frozen encoder, its reduction, and a predictor over tokens.

    `fitted` is 1 once the reduction was fitted. Before, it is a turn drawn at random, so that a
    model may be looked at that has not been trained.
    """

    config: DINOWMConfig
    fitted: Tensor
    middle: Tensor
    directions: Tensor
    scale: Tensor

    def __init__(self, config: DINOWMConfig, spec: DataSpec) -> None:
        c = config
        encoder = open_encoder(c.encoder, spec.image_size, c.resolution or None)
        super().__init__(c, spec, encoder.tokens, c.channels or encoder.width)
        self.encoder = encoder
        if c.channels:
            drawn = torch.linalg.qr(torch.randn(encoder.width, c.channels)).Q
            self.register_buffer("fitted", torch.tensor(0))
            self.register_buffer("middle", torch.zeros(encoder.width))
            self.register_buffer("directions", drawn.contiguous())
            self.register_buffer("scale", torch.ones(()))
        self._reduced = not c.channels
        self.register_load_state_dict_post_hook(lambda model, _: model._know_the_reduction())
        together = self.width + c.action_dim
        width = c.predictor_width or together
        self.action_embedding = nn.Linear(spec.block_dim, c.action_dim)
        self.inward = nn.Linear(together, width) if c.predictor_width else nn.Identity()
        self.predictor = FrameTransformer(
            c.context,
            self.tokens,
            width,
            c.predictor_depth,
            c.predictor_heads,
            c.predictor_head_dim,
            c.predictor_mlp_dim,
            c.dropout,
        )
        self.outward = nn.Linear(width, self.width) if c.predictor_width else nn.Identity()
        if c.residual:  # the last layer begins at zero
            for last in (self.outward if c.predictor_width else self.predictor.norm).parameters():
                nn.init.zeros_(last)

    def features(self, pixels: Tensor) -> Tensor:
        """(n, 3, h, w) uint8 -> (n, P, d), the encoder's tokens, reduced."""
        tokens = self.encoder(pixels)
        if not self.config.channels:
            return tokens
        return (tokens - self.middle) @ self.directions * self.scale

    def predict(self, tokens: Tensor, actions: Tensor, last: bool = False) -> Tensor:
        """See `TokenModel.predict`. Whatever is said in an action's channels is not read."""
        action = self.action_embedding(actions)[:, :, None].expand(*tokens.shape[:3], -1)
        x = self.inward(torch.cat([tokens, action], dim=-1))
        following = self.outward(self.predictor(x, last))[..., : self.width]
        if self.config.residual:
            following = following + (tokens[:, -1:] if last else tokens)
        return following

    def loss(self, batch: Batch, generator: Generator | None = None) -> Losses:
        """Teacher-forced prediction error over all tokens and channels.

        The first call in training mode fits the reduction to its frames, those of all devices.

        Args:
            batch: (B, T, 3, h, w) pixels and (B, T-1, A) blocks, T > K.

        Raises:
            ValueError: the windows are not longer than the context.

        Source: DINO-WM, eq. 2.
        """
        if self.training and not self._reduced:
            self._fit(batch.pixels)
        z = self.encode(batch.pixels)
        predicted, target = self.teacher_forced(z, batch.actions)
        return Losses(terms={"prediction": losses.prediction(predicted, target)}, latents=z)

    @torch.no_grad()
    def _fit(self, pixels: Tensor) -> None:
        """Find the directions in which the tokens of these pictures vary most, whatever their
        order; and the one number by which a channel varies by 1 on average."""
        rows = self.encoder(pixels.flatten(0, 1)).flatten(0, 1).double()
        sums = [rows.new_full((1,), len(rows)), rows.sum(dim=0), (rows.T @ rows).flatten()]
        total = torch.cat(sums)
        if devices_together() > 1:
            dist.all_reduce(total)
        count, mean = total[0], total[1 : 1 + rows.shape[1]] / total[0]
        square = total[1 + rows.shape[1] :].unflatten(0, (rows.shape[1], -1)) / count
        directions, variances = principal(square - mean.outer(mean), self.width)
        self.middle.copy_(mean)
        self.directions.copy_(directions)
        self.scale.copy_(variances.mean().clamp_min(1e-12).rsqrt())
        self.fitted.fill_(1)
        self._reduced = True

    def _know_the_reduction(self) -> None:
        """Read the buffer once: an accelerator would have to be waited for at every update."""
        if self.config.channels and not self.fitted.is_meta:
            self._reduced = bool(self.fitted)


def principal(covariance: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(C, C) -> (C, count) directions of most variance, and their variances, descending.

    Of a direction and its opposite the one is taken whose largest number is positive.
    """
    variances, directions = torch.linalg.eigh(covariance.cpu())
    directions, variances = directions.flip(1)[:, :count], variances.flip(0)[:count]
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    return directions * largest.sign(), variances.clamp_min(0)
