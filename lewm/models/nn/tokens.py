"""World models in which P tokens stand for a frame: the predictor over them, and their rollout.

A latent is all tokens of a frame in a row, D = P x d, so that planning and the analyses see
what they see of any model. Inside, tokens stay apart: (n, k, P, d), k frames, the oldest first.

tokens of frame t + 1 = out(Transformer(in(tokens of frames <= t)))

The mask is causal by frames: a token sees every token of its own frame and of earlier ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from lewm import devices
from lewm.contracts import Batch, DataSpec, Losses, Settings
from lewm.models.nn.engine import require_blocks_between
from lewm.models.nn.layers import MLP, EncoderBlock, sincos_2d
from lewm.models.nn.pixels import require_pictures
from lewm.models.nn.trunk import windows

__all__ = [
    "FrameTransformer",
    "MaskedPredictor",
    "PatchViT",
    "TokenModel",
    "bytes_to_roll_out",
    "draw_masks",
    "frame_causal",
    "picked",
]

TOKENS_AT_ONCE, TOKENS_AT_ONCE_CUDA = 2**13, 2**19
"""Tokens that a rollout predicts together. Bounds memory. On a CPU it is also faster, because the
activations of so many still fit the caches."""


class FrameAttention(nn.Module):
    """Self-attention over tokens of several frames, (n, k, S, width) -> the same, causal by frames.

    Args:
        head_dim: width of one head; heads * head_dim may differ from `width`.
    """

    def __init__(self, width: int, heads: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width)

    def forward(self, x: Tensor, last: bool = False) -> Tensor:
        """Mix tokens; with `last`, return those of the last frame alone, and spend nothing on the
        others' outputs."""
        n, k, S, _ = x.shape
        asked = x[:, -1:] if last else x
        inner = self.out.in_features
        if last and k > 1:
            q = F.linear(asked, self.qkv.weight[:inner])
            keys, v = F.linear(x, self.qkv.weight[inner:]).chunk(2, dim=-1)
        else:
            q, keys, v = self.qkv(x).chunk(3, dim=-1)
        q, keys, v = (
            part.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (q, keys, v)
        )
        # one frame, or the last of them, sees all there is
        mask = None if k == 1 or last else frame_causal(k, S, x.device)
        mixed = F.scaled_dot_product_attention(
            q, keys, v, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0
        )
        mixed = mixed.transpose(1, 2).reshape(n, asked.shape[1], S, inner)
        return F.dropout(self.out(mixed), self.dropout, self.training)


class FrameBlock(nn.Module):
    """Pre-LayerNorm transformer block, causal by frames."""

    def __init__(self, width: int, heads: int, head_dim: int, mlp_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = FrameAttention(width, heads, head_dim, dropout)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_dim, dropout)

    def forward(self, x: Tensor, last: bool = False) -> Tensor:
        mixed = self.attention(self.norm_attention(x), last)
        x = (x[:, -1:] if last else x) + mixed
        return x + self.mlp(self.norm_mlp(x))


class FrameTransformer(nn.Module):
    """(n, k, S, width) tokens of k <= K frames -> (n, k, S, width), causal by frames.

    A position embedding is learnt for each of the K x S places. Fewer frames use the first of
    them, so an episode may begin with a single one.

    Args:
        context: K.
        tokens: S, tokens per frame.
    """

    def __init__(
        self,
        context: int,
        tokens: int,
        width: int,
        depth: int,
        heads: int,
        head_dim: int,
        mlp_dim: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, context, tokens, width))
        self.blocks = nn.ModuleList(
            FrameBlock(width, heads, head_dim, mlp_dim, dropout) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.tokens, self.depth = tokens, depth
        self.bytes_per_token = 4 * (3 * width + 4 * heads * head_dim + 2 * mlp_dim)
        """Of one token on its way through one block, in float32."""

    def forward(self, x: Tensor, last: bool = False) -> Tensor:
        """Mix tokens; with `last`, return (n, 1, S, width), the last frame's alone."""
        x = x + self.position[:, : x.shape[1]]
        for block in self.blocks[:-1]:
            x = block(x)
        return self.norm(self.blocks[-1](x, last))


class TokenConfig(Settings, Protocol):
    """Of a plug-in."""

    @property
    def context(self) -> int: ...


class TokenModel(nn.Module, ABC):
    """A world model whose latent is P tokens of width d in a row.

    Args:
        config: of the plug-in; it names `context`.
        tokens, width: P and d.

    A plug-in gives it its `predictor`.
    """

    predictor: FrameTransformer

    def __init__(self, config: TokenConfig, spec: DataSpec, tokens: int, width: int) -> None:
        super().__init__()
        self.config, self.spec, self.context = config, spec, int(config.context)
        self.tokens, self.width, self.latent_dim = tokens, width, tokens * width

    @abstractmethod
    def features(self, pixels: Tensor) -> Tensor:
        """(n, 3, h, w) uint8 pictures -> (n, P, d) tokens, which are not trained any more."""

    @abstractmethod
    def predict(self, tokens: Tensor, actions: Tensor, last: bool = False) -> Tensor:
        """Predict the tokens of the frame after each of at most K consecutive ones, causally.

        Args:
            tokens: (n, k, P, d), k <= K, oldest first.
            actions: (n, k, A) normalised blocks; block i is executed *from* frame i.
            last: only of the frame after the last one, which costs less.

        Returns:
            (n, k, P, d), or (n, 1, P, d); entry i is of the frame that follows frame i.
        """

    @abstractmethod
    def loss(self, batch: Batch, generator: Generator | None = None) -> Losses:
        """What the parts are trained for, see `WorldModel.loss`."""

    def encode(self, pixels: Tensor) -> Tensor:
        """Turn each observation into one latent, independently of its neighbours.

        Args:
            pixels: (B, T, 3, h, w) uint8.

        Returns:
            (B, T, P * d), detached: nothing of it is trained with the predictor.

        Raises:
            ValueError: the pictures are not uint8 or not of the size the model was built for.
        """
        require_pictures(pixels, self.spec.image_size)
        with torch.no_grad():
            tokens = self.features(pixels.flatten(0, 1))
        return tokens.flatten(1).unflatten(0, pixels.shape[:2])

    def rollout(self, context: Tensor, past_actions: Tensor, actions: Tensor) -> Tensor:
        """Predict the latents that follow `context` if `actions` are executed.

        Autoregressive: each step sees at most the last K frames, predicted ones among them, and
        the blocks leaving them.

        Args:
            context: (B, k, D) latents, oldest first; k may be smaller than K.
            past_actions: (B, k-1, A) executed blocks, normalised.
            actions: (B, N, H, A) candidate blocks, normalised; block 0 leaves the last context
                latent.

        Returns:
            (B, N, H, D) predicted latents; index h is the latent after block h.

        Raises:
            ValueError: the model is in training mode, `past_actions` does not hold k-1 blocks, or
                the rollout would not fit the memory: how much it needs.

        Cost: H predictor calls of B*N*K*P tokens, in portions of `TOKENS_AT_ONCE`. Where gradients
        are asked for all of it is kept.
        """
        if self.training:
            raise ValueError(
                "a model must not plan in training mode: dropout corrupts it. Call .eval()."
            )
        require_blocks_between(context, past_actions)
        (B, k, _), (_, N, H, A) = context.shape, actions.shape
        kept = torch.is_grad_enabled() and (actions.requires_grad or context.requires_grad)
        _require_room(self, B, N, H, kept, context.device)
        frames = context.unflatten(-1, (self.tokens, self.width))
        frames = frames[:, None].expand(B, N, k, -1, -1).flatten(0, 1)
        blocks = torch.cat([past_actions[:, None].expand(B, N, k - 1, A), actions], dim=2)
        blocks = blocks.flatten(0, 1)
        parts = zip(
            *(x.split(self._portion(context.device)) for x in (frames, blocks)), strict=True
        )
        rolled = [self._roll_out(part, blocks_of_it, H) for part, blocks_of_it in parts]
        return torch.cat(rolled).flatten(2).unflatten(0, (B, N))

    def _roll_out(self, frames: Tensor, blocks: Tensor, horizon: int) -> Tensor:
        """(n, k, P, d) frames and (n, k-1+H, A) blocks -> (n, H, P, d)."""
        present, past = list(frames.unbind(1)), frames.shape[1]
        for now in range(past, past + horizon):
            oldest = max(0, now - self.context)
            seen = torch.stack(present[oldest:], dim=1)
            present.append(self.predict(seen, blocks[:, oldest:now], last=True)[:, 0])
        return torch.stack(present[past:], dim=1)

    def _portion(self, device: torch.device) -> int:
        """Sequences that are rolled out together."""
        tokens = TOKENS_AT_ONCE_CUDA if device.type == "cuda" else TOKENS_AT_ONCE
        return max(1, tokens // (self.context * self.tokens))

    def teacher_forced(self, latents: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Predict what follows in every window of K frames, each from what was really there.

        Args:
            latents: (B, T, D), T > K.
            actions: (B, T-1, A).

        Returns:
            (B*(T-K), K, P, d) predictions; tokens of the frames that they are of.

        Raises:
            ValueError: the windows are not longer than the context.
        """
        T, K = latents.shape[1], self.context
        if T <= K:
            raise ValueError(
                f"windows must be longer than the context K={K}, got T={T} frames. Lengthen the "
                "windows."
            )
        apart = (self.tokens, self.width)
        seen = windows(latents[:, :-1], K).unflatten(-1, apart)
        target = windows(latents[:, 1:], K).unflatten(-1, apart)
        return self.predict(seen, windows(actions, K)), target


def frame_causal(frames: int, tokens: int, device: torch.device | str | None = None) -> Tensor:
    """(k * S, k * S) bool: may token i (row) see token j? All of its frame and of earlier ones."""
    frame = torch.arange(frames, device=device).repeat_interleave(tokens)
    return frame[:, None] >= frame


def bytes_to_roll_out(
    model: TokenModel, sequences: int, horizon: int, kept: bool, device: torch.device
) -> int:
    """Memory that a rollout of so many sequences takes: its result, and a portion on its way.

    Args:
        kept: for gradients, every block of every step of every sequence is kept.
    """
    predictor = model.predictor
    tokens = predictor.tokens * model.context
    at_once = sequences if kept else min(sequences, model._portion(device))
    layers = predictor.depth * horizon if kept else 1
    result = 4 * sequences * horizon * model.latent_dim
    return 2 * result + at_once * tokens * layers * predictor.bytes_per_token


def _require_room(
    model: TokenModel, B: int, N: int, H: int, kept: bool, device: torch.device
) -> None:
    """Refuse a rollout that cannot fit, before the work."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return
    needed, free = bytes_to_roll_out(model, B * N, H, kept, device), devices.free_memory(device)
    if free is not None and needed > free:
        why = " with gradients, which keep every step," if kept else ""
        raise ValueError(
            f"expected a plan that fits the memory, got {B} x {N} sequences of {H} blocks and "
            f"{model.tokens} tokens{why} which need about {needed / 2**30:.3g} GiB, where "
            f"{free / 2**30:.3g} GiB are free. Take fewer candidates, fewer environments at once, "
            "a solver that samples, or a model with fewer tokens."
        )


class PatchViT(nn.Module):
    """Vision transformer that keeps its patches: (n, 3, h, w) normalised pixels -> (n, P, width)
    after the final LayerNorm. There is no CLS token.

    Args:
        position, overlap: as in `layers.ViT`.

    Raises:
        ValueError: the patch size does not divide the image size, or is odd with overlap.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        position: str = "sincos",
        overlap: bool = False,
    ) -> None:
        super().__init__()
        if image_size % patch_size or (overlap and patch_size % 2):
            raise ValueError(
                "expected a patch_size that divides image_size, and an even one with overlap, got "
                f"{patch_size} and {image_size}. Change one of them."
            )
        self.side, margin = image_size // patch_size, patch_size // 2 if overlap else 0
        self.tokens, self.width = self.side**2, width
        self.patches = nn.Conv2d(
            3, width, patch_size + 2 * margin, stride=patch_size, padding=margin
        )
        self.position = nn.Parameter(0.02 * torch.randn(1, self.tokens, width))
        if position == "sincos":
            with torch.no_grad():
                self.position[0] = sincos_2d(self.side, width)
        self.blocks = nn.ModuleList(EncoderBlock(width, heads, 4 * width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pixels: Tensor, visible: Tensor | None = None) -> Tensor:
        """Encode pictures; with `visible`, (n, m) places, only those patches, which see each other
        alone: (n, m, width)."""
        x = self.patches(pixels).flatten(2).transpose(1, 2) + self.position
        if visible is not None:
            x = picked(x, visible)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class MaskedPredictor(nn.Module):
    """Says what stands at masked places: a narrow transformer over the visible tokens and one
    learnt token per masked place."""

    def __init__(self, tokens: int, width: int, narrow: int, depth: int, heads: int) -> None:
        super().__init__()
        self.inward = nn.Linear(width, narrow)
        self.mask = nn.Parameter(0.02 * torch.randn(1, 1, narrow))
        self.position = nn.Parameter(torch.randn(1, tokens, narrow))
        self.blocks = nn.ModuleList(EncoderBlock(narrow, heads, 4 * narrow) for _ in range(depth))
        self.norm = nn.LayerNorm(narrow)
        self.outward = nn.Linear(narrow, width)

    def forward(self, seen: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """(n, m, width) tokens at `visible` places, (n, m) -> (n, r, width) at the (n, r) masked
        ones."""
        n = len(seen)
        position = self.position.expand(n, -1, -1)
        x = torch.cat(
            [self.inward(seen) + picked(position, visible), self.mask + picked(position, masked)],
            dim=1,
        )
        for block in self.blocks:
            x = block(x)
        return self.outward(self.norm(x[:, seen.shape[1] :]))


def picked(tokens: Tensor, places: Tensor) -> Tensor:
    """(n, P, d) tokens and (n, m) places -> (n, m, d)."""
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))


def draw_masks(
    n: int,
    side: int,
    share: float,
    blocks: int,
    generator: Generator | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Draw which patches of each of n pictures are masked: blocks, and exactly as many patches in
    every picture.

    The blocks are rectangles that together have the wanted area. Where they overlap, patches at
    random are added; where they are too large for the grid's steps, some are given back.

    Args:
        side: of the grid, in patches.
        share: of the patches that are masked; one at least is, and one at least is not.

    Returns:
        (n, P-m) visible and (n, m) masked places, ascending.

    Source: V-JEPA masks blocks of 15% or 70%; 60 to 70% in two blocks, and the exact count: ours,
    for a small grid.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    P = side**2
    count = min(max(1, round(share * P)), P - 1)
    # sides of the rectangles, of an area each and of an aspect between 3/4 and 4/3
    aspect = (0.75 + uniform(n, blocks) * (1 / 0.75 - 0.75)).sqrt()
    length = (share / blocks) ** 0.5 * side
    sizes = torch.stack([length * aspect, length / aspect], dim=-1).round().clamp(1, side)
    corners = (uniform(n, blocks, 2) * (side - sizes + 1)).floor()
    place = torch.arange(side, device=device)
    inside = (place >= corners[..., None]) & (place < (corners + sizes)[..., None])
    covered = (inside[:, :, 0, :, None] & inside[:, :, 1, None, :]).any(dim=1).flatten(1)
    order = (covered + 0.5 * uniform(n, P)).argsort(dim=1, descending=True)
    return order[:, count:].sort(dim=1).values, order[:, :count].sort(dim=1).values
