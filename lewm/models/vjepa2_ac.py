"""V-JEPA 2-AC's recipe (arXiv 2506.09985), in two stages on the same frames: an encoder learns to
predict masked latents, is frozen, and a predictor over its tokens learns what actions do.

Stage 1, the encoder, without actions:

    s        = LN(target(o))                     (P, d) of the whole picture; target follows by EMA
    shat_M   = masked predictor(encoder(o without M), places M)
    loss     = mean |shat_M - s_M|               over 60 to 70% of the patches, in blocks

Stage 2, the predictor, while the encoder stands still:

    z_t      = LN(target(o_t))                                                         encode
    zhat_t+1 = LN(out(Transformer([a_i, z_i] for i <= t)))        causal by frames     predict
    loss     = mean |zhat_t+1 - z_t+1|  +  mean |two steps, fed back - what came|

LN is a layer norm of each token without weights. A plan minimises mean |zhat_H - z_goal|.

It is the recipe and not V-JEPA 2: nothing is known to the encoder but the frames of one world,
each of which is seen on its own. V-JEPA 2 masks and encodes clips.

What limits stage 1 in a small world: a dot that is masked can hardly be guessed from what is left.
In Two-Room, hundreds of updates shrink the dot's share of a token from .09 of its size to .03, and
then copying can hardly be beaten. With `encoder` another is taken that others trained, and stage 2
is all there is.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Self

import torch
from torch import Generator, Tensor, nn

from lewm.contracts import Batch, DataSpec, Losses, check_numbers
from lewm.models.nn import losses
from lewm.models.nn.following import follow, layer_normed
from lewm.models.nn.frozen_encoders import ENCODERS, FrozenEncoder, open_encoder
from lewm.models.nn.layers import devices_together, own_share
from lewm.models.nn.pixels import normalised
from lewm.models.nn.tokens import (
    FrameTransformer,
    MaskedPredictor,
    PatchViT,
    TokenModel,
    draw_masks,
    picked,
)
from lewm.models.nn.trunk import windows
from lewm.registry import choose

__all__ = ["VJEPA2ACConfig", "VJEPA2AC"]


OWN = "own"
"""The encoder that stage 1 trains."""


@dataclass(frozen=True)
class VJEPA2ACConfig:
    """Sizes of the parts, and how the two stages are trained.

    Attributes:
        encoder: "own" is trained in stage 1. One of `frozen_encoders.ENCODERS` was trained by
            others, or by nobody ("random"): there is no stage 1 then, and what belongs to it or to
            the ViT is not asked. Ours: the published encoder needs a million hours of video.
        patch_size, encoder_width, encoder_depth, encoder_heads: the ViT; its MLP is four times as
            wide, and a token as wide as it.
        position, overlap: as in `layers.ViT`. With overlap a patch shows a margin of its masked
            neighbours.
        context: K, the most frames the predictor looks at.
        predictor_width, predictor_depth, predictor_heads: of the predictor over tokens.
        predictor_head_dim, predictor_mlp_dim, dropout: likewise.
        pretraining: share of the updates that belong to stage 1. 0 leaves the encoder random, a
            control.
        ema: share of the target that stays, per update. Source: .99925 over 90,000 updates; .99
            fits some hundreds.
        mask_share: of the patches, that are masked.
        mask_blocks: rectangles that they are drawn as.
        masked_width, masked_depth, masked_heads: of stage 1's predictor.
        rollout_weight: of the error after two steps.
        residual: predict what changes of a token, beginning with nothing, in place of the token.
            Ours, for short trainings: of a small world's tokens nearly all stays.
    """

    encoder: str = OWN
    patch_size: int = 16
    encoder_width: int = 1408
    encoder_depth: int = 40
    encoder_heads: int = 22
    position: str = "sincos"
    overlap: bool = False
    context: int = 8
    predictor_width: int = 1024
    predictor_depth: int = 24
    predictor_heads: int = 16
    predictor_head_dim: int = 64
    predictor_mlp_dim: int = 4096
    dropout: float = 0.0
    pretraining: float = 0.5
    ema: float = 0.99925
    mask_share: float = 0.65
    mask_blocks: int = 2
    masked_width: int = 384
    masked_depth: int = 12
    masked_heads: int = 12
    rollout_weight: float = 1.0
    residual: bool = False

    def __post_init__(self) -> None:
        choose("encoder", self.encoder, (OWN, *ENCODERS))
        choose("position", self.position, ("learned", "sincos"))
        sizes = [
            *("patch_size", "encoder_width", "encoder_depth", "encoder_heads", "context"),
            *("predictor_width", "predictor_depth", "predictor_heads", "predictor_head_dim"),
            *("predictor_mlp_dim", "mask_blocks", "masked_width", "masked_depth", "masked_heads"),
        ]
        depths = ("encoder_depth", "predictor_depth", "masked_depth", "mask_blocks")
        check_numbers(
            self,
            least=dict.fromkeys(sizes, 1),
            most=dict.fromkeys(sizes, 10**5)
            | dict.fromkeys(depths, 1000)
            | {"context": 10_000, "ema": 1},
            above={"mask_share": 0},
            below={"dropout": 1, "pretraining": 1, "mask_share": 1},
        )
        for whose in ("encoder", "masked"):
            width, heads = getattr(self, f"{whose}_width"), getattr(self, f"{whose}_heads")
            if width % heads:
                raise ValueError(
                    f"expected {whose}_heads to divide {whose}_width, got {heads} and {width}. "
                    "Change one of the two."
                )

    @classmethod
    def paper(cls) -> Self:
        """The published sizes: ViT-g/16, 256 tokens at 256 px, a predictor of about 300 M."""
        return cls()

    @classmethod
    def tiny(cls) -> Self:
        """About half a million trainable parameters for 64 px and a CPU: 16 tokens of 64.

        Ours: sizes. Patches of 16 px keep a plan within seconds.
        """
        return cls(
            patch_size=16,
            encoder_width=64,
            encoder_depth=2,
            encoder_heads=2,
            context=1,
            predictor_width=96,
            predictor_depth=3,
            predictor_heads=4,
            predictor_head_dim=24,
            predictor_mlp_dim=256,
            ema=0.99,
            masked_width=48,
            masked_depth=2,
            masked_heads=2,
            residual=True,
        )

    @property
    def first_stage(self) -> float:
        """Share of the updates that belong to stage 1: none where others trained the encoder."""
        return self.pretraining if self.encoder == OWN else 0.0

    def build(self, spec: DataSpec) -> VJEPA2AC:
        """Make a model with random weights that fits the data described by `spec`.

        Raises:
            ValueError: the weights of an encoder that others trained are not here.
        """
        return VJEPA2AC(self, spec)


class VJEPA2AC(TokenModel):
    """Encoder and its target, the masked predictor of stage 1, and the predictor of stage 2.

    `pretrained` is 1 once stage 1 is over; it is stored with the weights. From then on the loss
    reaches the predictor alone, so the others have no gradient, and no optimiser moves them.
    """

    config: VJEPA2ACConfig
    encoder: PatchViT | FrozenEncoder
    pretrained: Tensor
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: VJEPA2ACConfig, spec: DataSpec) -> None:
        c = config
        encoder = (
            PatchViT(
                spec.image_size,
                c.patch_size,
                c.encoder_width,
                c.encoder_depth,
                c.encoder_heads,
                c.position,
                c.overlap,
            )
            if c.encoder == OWN
            else open_encoder(c.encoder, spec.image_size)
        )
        super().__init__(c, spec, encoder.tokens, encoder.width)
        self.encoder = encoder
        if isinstance(encoder, PatchViT):
            self.target = copy.deepcopy(encoder).requires_grad_(False)
            self.masked_predictor = MaskedPredictor(
                encoder.tokens, c.encoder_width, c.masked_width, c.masked_depth, c.masked_heads
            )
        self.action_token = nn.Linear(spec.block_dim, c.predictor_width)
        self.inward = nn.Linear(self.width, c.predictor_width)
        self.predictor = FrameTransformer(
            c.context,
            1 + self.tokens,
            c.predictor_width,
            c.predictor_depth,
            c.predictor_heads,
            c.predictor_head_dim,
            c.predictor_mlp_dim,
            c.dropout,
        )
        self.outward = nn.Linear(c.predictor_width, self.width)
        if c.residual:
            nn.init.zeros_(self.outward.weight)
            nn.init.zeros_(self.outward.bias)
        self._second = c.first_stage == 0
        self.register_buffer("pretrained", torch.tensor(int(self._second)))
        self.register_load_state_dict_post_hook(lambda model, _: model._know_the_stage())
        for name, values in (
            ("pixel_mean", spec.statistics.pixel_mean),
            ("pixel_std", spec.statistics.pixel_std),
        ):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def features(self, pixels: Tensor) -> Tensor:
        """(n, 3, h, w) uint8 -> (n, P, d), the target's tokens, each layer-normed; or those of the
        encoder that others trained."""
        if isinstance(self.encoder, FrozenEncoder):
            return layer_normed(self.encoder(pixels))
        return layer_normed(self.target(self._floats(pixels)))

    def predict(self, tokens: Tensor, actions: Tensor, last: bool = False) -> Tensor:
        """See `TokenModel.predict`. An action is a token of its frame, before the patches."""
        action = self.action_token(actions)[:, :, None]
        x = torch.cat([action, self.inward(tokens)], dim=2)
        following = self.outward(self.predictor(x, last)[:, :, 1:])
        if self.config.residual:
            following = following + (tokens[:, -1:] if last else tokens)
        return layer_normed(following)

    def loss(self, batch: Batch, generator: Generator | None = None) -> Losses:
        """The error of the stage that the model is in.

        Args:
            batch: (B, T, 3, h, w) pixels and (B, T-1, A) blocks, T > K.
            generator: draws the masks.

        Raises:
            ValueError: the windows are not longer than the context, or too short for two steps.
        """
        K, T, steps = self.context, batch.pixels.shape[1], 1 + (self.config.rollout_weight > 0)
        if max(K, steps) >= T:
            raise ValueError(
                f"windows must be longer than the context K={K} and than the {steps} steps that "
                f"are rolled out, got T={T} frames. Lengthen the windows."
            )
        z = self.encode(batch.pixels)
        return self._acting(z, batch.actions) if self._second else self._masked(z, batch, generator)

    def _masked(self, z: Tensor, batch: Batch, generator: Generator | None) -> Losses:
        """Stage 1: what the target says of masked patches, from the visible ones."""
        assert isinstance(self.encoder, PatchViT)
        (B, T), c = batch.pixels.shape[:2], self.config
        # of the windows of all devices, so that they do not depend on how a batch is spread
        places = draw_masks(
            B * devices_together(),
            self.encoder.side,
            c.mask_share,
            c.mask_blocks,
            generator,
            z.device,
        )
        # blocks are masked in all frames of a window alike
        visible, masked = (own_share(each, B).repeat_interleave(T, dim=0) for each in places)
        seen = self.encoder(self._floats(batch.pixels.flatten(0, 1)), visible)
        told = self.masked_predictor(seen, visible, masked)
        target = z.flatten(0, 1).unflatten(-1, (self.tokens, self.width))
        return Losses(terms={"masked": losses.l1(told, picked(target, masked))}, latents=z.detach())

    def _acting(self, z: Tensor, actions: Tensor) -> Losses:
        """Stage 2: one step from what was there, and two of which the second begins where the
        first led."""
        predicted, target = self.teacher_forced(z, actions)
        terms = {
            "l1": losses.l1(predicted, target),
            "prediction": losses.prediction(predicted.detach(), target),
        }
        weights = {"prediction": 0.0}
        if self.config.rollout_weight:
            # every three frames in a row: the first, what follows it, and what follows that
            three = windows(z, 3).unflatten(-1, (self.tokens, self.width))
            blocks = windows(actions, 2)
            first = self.predict(three[:, :1], blocks[:, :1])
            both = torch.cat([three[:, :1], first], dim=1)[:, -self.context :]
            second = self.predict(both, blocks[:, -both.shape[1] :], last=True)
            terms["rollout"] = losses.l1(torch.cat([first, second], dim=1), three[:, 1:])
            weights["rollout"] = self.config.rollout_weight
        return Losses(terms, weights, latents=z.detach())

    def follow(self, update: int, total: int) -> None:
        """In stage 1 let the target follow the encoder; after its last update note that it is
        over. In stage 2 nothing moves."""
        if self._second:
            return
        follow(self.target, self.encoder, self.config.ema)
        if update + 1 >= self._first_stage(total):
            self.pretrained.fill_(1)
            self._second = True

    def stage(self, update: int, total: int) -> tuple[int, int]:
        """See `contracts.Staged`: a warm-up and a cosine for the encoder, then for the
        predictor."""
        first = self._first_stage(total)
        return (update, first) if update < first else (update - first, total - first)

    def _first_stage(self, total: int) -> int:
        """Updates of stage 1; one is left to each stage, where there are two."""
        share = self.config.first_stage
        return min(max(1, round(share * total)), max(1, total - 1)) if share else 0

    def _know_the_stage(self) -> None:
        """Read the buffer once: an accelerator would have to be waited for at every update."""
        if not self.pretrained.is_meta:
            self._second = bool(self.pretrained)

    def _floats(self, pixels: Tensor) -> Tensor:
        return normalised(pixels, self.pixel_mean, self.pixel_std)
