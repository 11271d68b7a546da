"""The parts of LeWorldModel: an encoder that makes one latent of a frame, and a predictor that is
told the action. What they are trained for is the model's own.

Rivals that differ in the loss alone share them, so that they are compared at one size and by one
planner.

z_t      = projector(ViT(o_t))                                      encode
zhat_t+1 = projector(Transformer(z_{t-K+1..t}; AdaLN(a_{t-K+1..t})))  predict
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from torch import Generator, Tensor, nn

from lewm import devices
from lewm.contracts import Batch, DataSpec, Losses, Rollout, check_numbers
from lewm.models.nn import engine
from lewm.models.nn.frozen import require_evaluation_mode
from lewm.models.nn.layers import ActionEncoder, Predictor, Projector, ViT
from lewm.models.nn.mixers import MIXERS, Recurrence, matched_mlp_dim
from lewm.models.nn.pixels import normalised, require_pictures
from lewm.registry import choose

__all__ = ["Trunk", "TrunkConfig", "windows"]

MOST_WEIGHTS = 10**10
"""Of a model, five hundred times as many as the paper's has: more is a slip of the hand."""


@dataclass(frozen=True)
class TrunkConfig:
    """Sizes of the parts. The defaults are LeWorldModel's full size: 18,034,478 parameters at A =
    10.

    Attributes:
        patch_size, encoder_width, encoder_depth, encoder_heads: the ViT; its MLP is four times as
            wide.
        position, overlap: "learned" and False in the paper; "sincos" and True for small models, see
            `layers.ViT`.
        stem: "patch" in the paper; "conv" puts three strided convolutions in its place, see
            `layers.ViT`.
        latent_dim: D.
        projector_dim: hidden width of both projectors.
        projector_norm: batch norm in the projectors. False puts a LayerNorm there: an ablation that
            collapses.
        context: K, the most latents the predictor looks at.
        predictor_width, predictor_depth, predictor_heads: of the predictor.
        predictor_head_dim, predictor_mlp_dim, dropout: likewise.
        zero_modulation: let the actions' modulation begin at zero (AdaLN-zero), as in the paper.
            False is an ablation.
        predictor_mixer: "attention" in the paper, or a recurrence in its place: "mamba" or
            "titans", see `nn.mixers`. `predictor_mlp_dim` is then that of the model with attention:
            the MLP is made narrower or wider until both have as many parameters. `context` is how
            many observed frames prime the state, and how long the windows are in which it is
            trained; the state goes on past them, where attention looks at the last K. So train a
            recurrence with the context that the windows allow, T-1.
    """

    patch_size: int = 14
    encoder_width: int = 192
    encoder_depth: int = 12
    encoder_heads: int = 3
    position: str = "learned"
    overlap: bool = False
    stem: str = "patch"
    latent_dim: int = 192
    projector_dim: int = 2048
    projector_norm: bool = True
    context: int = 3
    predictor_width: int = 192
    predictor_depth: int = 6
    predictor_heads: int = 16
    predictor_head_dim: int = 64
    predictor_mlp_dim: int = 2048
    dropout: float = 0.1
    zero_modulation: bool = True
    predictor_mixer: str = "attention"

    def __post_init__(self) -> None:
        choose("position", self.position, ("learned", "sincos"))
        choose("stem", self.stem, ("patch", "conv"))
        choose("mixer", self.predictor_mixer, MIXERS)
        sizes = [
            *("patch_size", "encoder_width", "encoder_depth", "encoder_heads", "latent_dim"),
            *("projector_dim", "context", "predictor_width", "predictor_depth"),
            *("predictor_heads", "predictor_head_dim", "predictor_mlp_dim"),
        ]
        depths = {"encoder_depth": 1000, "predictor_depth": 1000, "context": 10_000}
        check_numbers(
            self,
            least=dict.fromkeys(sizes, 1),
            most=dict.fromkeys(sizes, 10**6) | depths,
            below={"dropout": 1},
        )
        if self.encoder_width % self.encoder_heads:
            raise ValueError(
                f"heads must divide the encoder's width, got {self.encoder_heads} and "
                f"{self.encoder_width}. Change one of the two."
            )
        if self.weights_about > MOST_WEIGHTS:
            raise ValueError(
                f"expected a model of at most {MOST_WEIGHTS:.0e} weights, got sizes that make "
                f"about {self.weights_about:.0e}. Lower its widths, or depths."
            )
        matched_mlp_dim(
            self.predictor_mixer,
            self.predictor_width,
            self.predictor_heads,
            self.predictor_head_dim,
            self.predictor_mlp_dim,
        )

    @property
    def weights_about(self) -> int:
        """How many numbers the largest of its matrices hold together."""
        w, p, inner = (
            self.encoder_width,
            self.predictor_width,
            self.predictor_heads * self.predictor_head_dim,
        )
        pixels = 3 * (self.patch_size * (1 + self.overlap)) ** 2
        return (
            w * pixels
            + self.encoder_depth * 12 * w**2
            + self.predictor_depth * (6 * p**2 + 4 * p * inner + 2 * p * self.predictor_mlp_dim)
            + self.projector_dim * (w + p + 2 * self.latent_dim)
            + self.latent_dim * (self.context + p)
        )

    @classmethod
    def paper(cls) -> Self:
        """The published configuration: 224 px, 18.03 M parameters."""
        return cls()

    @classmethod
    def tiny(cls) -> Self:
        """Half a million parameters for 64 px and a CPU.

        Ours: sizes found on Two-Room; how pixels and positions enter is what makes it learn (see
        `layers.ViT`).
        """
        return cls(
            patch_size=8,
            encoder_width=64,
            encoder_depth=2,
            encoder_heads=2,
            position="sincos",
            overlap=True,
            projector_dim=256,
            context=1,
            predictor_width=64,
            predictor_depth=3,
            predictor_heads=4,
            predictor_head_dim=16,
            predictor_mlp_dim=256,
            dropout=0.0,
        )


class Trunk(nn.Module, ABC):
    """Encoder, predictor, two projectors and an action encoder. Pixels come in as uint8, actions
    normalised.

    The data's statistics are part of `spec`, which is stored beside the weights; those of pixels
    are buffers as well, so that they follow the model to its device.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: TrunkConfig, spec: DataSpec) -> None:
        super().__init__()
        c = self.config = config
        self.spec, self.context, self.latent_dim = spec, c.context, c.latent_dim
        self.encoder = ViT(
            spec.image_size,
            c.patch_size,
            c.encoder_width,
            c.encoder_depth,
            c.encoder_heads,
            4 * c.encoder_width,
            c.position,
            c.overlap,
            c.stem,
        )
        self.projector = Projector(c.encoder_width, c.projector_dim, c.latent_dim, c.projector_norm)
        self.action_encoder = ActionEncoder(spec.block_dim, c.predictor_width)
        self.predictor = Predictor(
            c.latent_dim,
            c.context,
            c.predictor_width,
            c.predictor_depth,
            c.predictor_heads,
            c.predictor_head_dim,
            c.predictor_mlp_dim,
            c.dropout,
            c.zero_modulation,
            c.predictor_mixer,
        )
        self.predictor_projector = Projector(
            c.predictor_width, c.projector_dim, c.latent_dim, c.projector_norm
        )
        self.register_buffer(
            "pixel_mean", torch.tensor(spec.statistics.pixel_mean).view(3, 1, 1), persistent=False
        )
        self.register_buffer(
            "pixel_std", torch.tensor(spec.statistics.pixel_std).view(3, 1, 1), persistent=False
        )

    @abstractmethod
    def loss(self, batch: Batch, generator: Generator | None = None) -> Losses:
        """What the parts are trained for, see `WorldModel.loss`."""

    def encode(self, pixels: Tensor) -> Tensor:
        """Turn each observation into one latent, independently of its neighbours.

        Args:
            pixels: (B, T, 3, h, w) uint8.

        Returns:
            (B, T, D) latents.

        Raises:
            ValueError: the pictures are not uint8 or not of the size the model was built for.

        Source: LeWorldModel, sec. 3.1.
        """
        require_pictures(pixels, self.spec.image_size)
        latents = self.projector(self.encoder(self.normalised(pixels.flatten(0, 1))))
        return self.finish(latents).unflatten(0, pixels.shape[:2])

    def normalised(self, pixels: Tensor) -> Tensor:
        """(n, 3, h, w) uint8 -> the same shape, as the encoder takes them."""
        return normalised(pixels, self.pixel_mean, self.pixel_std)

    @staticmethod
    def finish(latents: Tensor) -> Tensor:
        """What is done to every latent last, seen or predicted: nothing, unless a model says
        otherwise. It has no weights."""
        return latents

    def predict(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Predict the latent after each of at most K consecutive latents, causally.

        Args:
            latents: (B, k, D) with k <= K, oldest first.
            actions: (B, k, A) normalised blocks; block i is executed *from* latent i.

        Returns:
            (B, k, D); entry i is the latent that follows latent i.

        Source: LeWorldModel, sec. 3.2.
        """
        hidden = self.predictor(latents, self.action_encoder(actions))
        predicted = self.predictor_projector(hidden.flatten(0, 1))
        return self.finish(predicted).unflatten(0, hidden.shape[:2])

    def rollout(self, context: Tensor, past_actions: Tensor, actions: Tensor) -> Tensor:
        """Predict the latents that follow `context` if `actions` are executed.

        Autoregressive: each step sees at most the last K latents, predicted ones among them, and
        the blocks leaving them. A recurrent predictor sees all: the context primes its state, and
        every candidate carries it on.

        Args:
            context: (B, k, D) latents, oldest first; k may be smaller than K when the episode has
                just begun.
            past_actions: (B, k-1, A) executed blocks, normalised; block i is the one leaving
                context latent i.
            actions: (B, N, H, A) candidate blocks, normalised; block 0 leaves the last context
                latent.

        Returns:
            (B, N, H, D) predicted latents; index h is the latent after block h.

        Raises:
            ValueError: the model is in training mode, or `past_actions` does not hold k-1 blocks.

        Cost: H predictor calls of batch B*N.
        Source: LeWorldModel, sec. 3.3.
        """
        if self.training:
            raise ValueError(
                "a model must not plan in training mode: dropout and batch statistics corrupt "
                "it. Call .eval()."
            )
        engine.require_blocks_between(context, past_actions)
        if self.predictor.recurrent:
            return self._carried(context, past_actions, actions)
        (B, k, _), (_, N, _, A) = context.shape, actions.shape
        latents = context[:, None].expand(B, N, k, -1).flatten(0, 1)
        blocks = torch.cat([past_actions[:, None].expand(B, N, k - 1, A), actions], dim=2).flatten(
            0, 1
        )
        return self.open_loop(latents, blocks).unflatten(0, (B, N))

    def open_loop(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Predict on from the first latents alone: what was predicted is what is predicted from.

        Args:
            latents: (n, k, D), oldest first.
            actions: (n, k-1+H, A) blocks, of which the first k-1 lie between the latents.

        Returns:
            (n, H, D).
        """
        k = latents.shape[1]
        if self.predictor.recurrent:
            return self._carried(latents, actions[:, : k - 1], actions[:, None, k - 1 :])[:, 0]
        for present in range(k, actions.shape[1] + 1):
            oldest = max(0, present - self.context)
            following = self.predict(latents[:, oldest:], actions[:, oldest:present])[:, -1:]
            latents = torch.cat([latents, following], dim=1)
        return latents[:, k:]

    @property
    def _carried(self) -> engine.Carried:
        """A rollout that carries the state of a recurrent predictor."""
        return engine.Carried(
            self.action_encoder, self.predictor, self.predictor_projector, self.finish
        )

    @property
    def undecayed(self) -> frozenset[str]:
        """Parameters that weight decay leaves alone, see `contracts.Undecayed`."""
        return frozenset(
            f"{place}.{name}"
            for place, part in self.named_modules()
            if isinstance(part, Recurrence)
            for name in part.undecayed
        )

    def engine(self, precision: str = "float32") -> Rollout:
        """Make a faster `rollout` out of the weights as they are now.

        What is made has copies of the weights: it never changes the model, and training the model
        on does not change it.

        Args:
            precision: "float32" differs from `rollout` by rounding alone, and gradients reach the
                actions. "bfloat16" and "int8" differ by about half a percent and a few percent of
                the latents' spread; see `models.nn.engine`. A recurrent predictor has "float32"
                alone, and takes as long as `rollout`.

        Raises:
            ValueError: the model is in training mode, or this machine gains nothing by the
                precision or does not have it.

        Cost: some 50 ms at full size.
        Source: Ours; the arithmetic that is saved is listed in `models.nn.engine`.
        """
        require_evaluation_mode(self)
        if self.predictor.recurrent:
            parts = self.action_encoder, self.predictor, self.predictor_projector
            return engine.Carried.engine(
                self.config.predictor_mixer, precision, self.finish, *parts
            )
        device = self.pixel_mean.device
        if precision == "bfloat16" and devices.fastest_precision(device) != "bf16-mixed":
            raise ValueError(
                f"expected a device that multiplies faster in bfloat16, got {device}, which does "
                "not. Use 'float32'."
            )
        return engine.Engine(self.state_dict(), self.config.predictor_heads, precision, self.finish)

    def transitions(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Encode a batch and predict, teacher-forced, what follows in each of its windows of K.

        A window of T frames holds T-K overlapping contexts of K (the paper's K=3, T=4 gives one);
        within each the predictor answers after 1..K latents, so short contexts are trained as well.

        Args:
            batch: (B, T, 3, h, w) pixels and (B, T-1, A) blocks, T > K.

        Returns:
            (B, T, D) latents; (B*(T-K), K, D) predictions; latents of the frames that they are of.

        Raises:
            ValueError: the windows are not longer than the context.
        """
        z = self.encode(batch.pixels)
        predicted = self.predict_windows(z, batch.actions)
        return z, predicted, windows(z[:, 1:], self.context)

    def predict_windows(self, latents: Tensor, actions: Tensor) -> Tensor:
        """(B, T, D) latents and (B, T-1, A) blocks -> (B*(T-K), K, D), see `transitions`."""
        T, K = latents.shape[1], self.context
        if T <= K:
            raise ValueError(
                f"windows must be longer than the context K={K}, got T={T} frames. Lengthen the "
                "windows."
            )
        return self.predict(windows(latents[:, :-1], K), windows(actions, K))


def windows(x: Tensor, length: int) -> Tensor:
    """(B, n, d) -> (B * (n - length + 1), length, d), all runs of `length` consecutive entries."""
    return x.unfold(1, length, 1).movedim(-1, 2).flatten(0, 1)
