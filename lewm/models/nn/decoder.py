"""From one latent to a picture, and the patches that this is learnt from. For looking only: no
model learns from a decoder, but in an ablation of LeWM."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lewm.models.nn.layers import MLP, sincos_2d

__all__ = ["Decoder", "Patches", "tiled"]

LARGEST_PATCH_PX, FEWEST_PATCHES = 16, 8
"""A patch is as large as it may be with so many of them to a side: 8 px of 64, 16 px of 224."""

UNIFORM_SHARE = 0.2
"""Of the patches that are drawn: those that are drawn whatever they show."""

PICTURES_AT_ONCE = 64


class Decoder(nn.Module):
    """Draws a picture from one latent, patch by patch, as what differs from the mean picture.

    Each patch has a learned query that attends to the latent. Over one key the softmax is of one
    number, so it is 1 whatever query and key are, and attention is its value projection: that is
    what stands here, the same for all patches. Query and value meet in residual MLPs, and a linear
    map makes pixels of what they say. Untrained it draws the mean picture.

    Attributes:
        queries: (P, width); they begin as the places of the patches.
        mean, scale: (P, pixels) mean picture, and the std of what deviates from it; pixels are in
            [0, 1].
        latent_mean, latent_std: (D,) with which latents are standardised, so that it does not
            matter which model they are of.

    Source: LeWorldModel, decoder for visualisation. The sizes and the mean picture are ours.
    """

    mean: Tensor
    scale: Tensor
    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, latent_dim: int, image_size: int, width: int = 128, depth: int = 3) -> None:
        super().__init__()
        patch = patch_px(image_size)
        self.queries = nn.Parameter(sincos_2d(image_size // patch, width))
        self.value = nn.Linear(latent_dim, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), MLP(width, 2 * width)) for _ in range(depth)
        )
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * patch**2)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.register_buffer("mean", torch.zeros(len(self.queries), 3 * patch**2))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("latent_mean", torch.zeros(latent_dim))
        self.register_buffer("latent_std", torch.ones(latent_dim))

    def forward(self, latents: Tensor, places: Tensor) -> Tensor:
        """(..., D) latents and (...) numbers of patches, broadcast -> (..., pixels) deviation from
        the mean picture in stds."""
        x = self.queries[places] + self.value((latents - self.latent_mean) / self.latent_std)
        for block in self.blocks:
            x = x + block(x)
        return self.out(self.norm(x))

    @property
    def places(self) -> Tensor:
        """(P,) numbers of all patches."""
        return torch.arange(len(self.queries), device=self.mean.device)

    @torch.no_grad()
    def draw(self, latents: np.ndarray) -> np.ndarray:
        """(..., D) latents -> (..., h, h, 3) uint8 pictures."""
        device, places = self.mean.device, self.places
        parts = (
            torch.from_numpy(latents.reshape(-1, latents.shape[-1])).float().split(PICTURES_AT_ONCE)
        )
        drawn = torch.cat([self._pixels(self(part[:, None].to(device), places)) for part in parts])
        return drawn.numpy().reshape(*latents.shape[:-1], *drawn.shape[1:])

    @property
    def mean_picture(self) -> np.ndarray:
        """(h, h, 3) uint8."""
        return self._pixels(torch.zeros_like(self.mean)[None]).numpy()[0]

    @classmethod
    def of(cls, weights: Mapping[str, np.ndarray]) -> Decoder:
        """The decoder whose `state_dict` this is, in evaluation mode."""
        size = math.isqrt(weights["mean"].size // 3)
        depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
        decoder = cls(len(weights["latent_mean"]), size, weights["queries"].shape[1], depth)
        decoder.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
        return decoder.eval()

    def _pixels(self, deviations: Tensor) -> Tensor:
        """(n, P, pixels) as of `forward`, all patches row by row -> (n, h, h, 3) uint8 on the
        CPU."""
        side, patch = math.isqrt(len(self.mean)), math.isqrt(self.mean.shape[1] // 3)
        pixels = ((self.mean + self.scale * deviations).clamp(0, 1) * 255).round().byte().cpu()
        return (
            pixels.view(-1, side, side, patch, patch, 3)
            .transpose(2, 3)
            .reshape(-1, side * patch, side * patch, 3)
        )


@dataclass(frozen=True)
class Patches:
    """Pictures cut up, to learn from patch by patch.

    Most patches of most pictures look as they always do, and a small thing that moves is found in
    few of them: a loss over whole pictures learns it late. So a patch is drawn the more often the
    more it deviates from the mean picture, and any one now and then, so that what is empty stays
    empty.

    Attributes:
        tiles: (F, side, side, patch, patch, 3) uint8, a view of the pictures.
        mean: (P, pixels) float32 in [0, 1].
        scale: std of what deviates from it.
        chances: (F * P,) cumulative weights of the patches.
    """

    tiles: np.ndarray
    mean: np.ndarray
    scale: float
    chances: np.ndarray

    @classmethod
    def of(cls, pixels: np.ndarray) -> Patches:
        """Cut up (F, h, h, 3) uint8 pictures.

        Cost: memory of a few numbers per patch; floats of the pixels are made in portions.
        """
        patch = patch_px(pixels.shape[1])
        side = pixels.shape[1] // patch
        tiles = pixels.reshape(-1, side, patch, side, patch, 3).swapaxes(2, 3)
        mean = (tiles.mean(axis=0) / 255).astype(np.float32)
        portions = np.array_split(tiles, -(-len(tiles) // PICTURES_AT_ONCE))
        squares = np.concatenate(
            [
                np.square(part / np.float32(255) - mean).mean(axis=(3, 4, 5)).ravel()
                for part in portions
            ]
        )
        deviation = np.sqrt(squares, dtype=np.float64)
        weights = UNIFORM_SHARE + (1 - UNIFORM_SHARE) * deviation / max(deviation.mean(), 1e-9)
        scale = max(float(squares.mean(dtype=np.float64)) ** 0.5, 1e-3)
        return cls(tiles, mean.reshape(side**2, -1), scale, np.cumsum(weights))

    def draw(
        self, count: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw (n,) numbers of frames, (n,) of patches, and (n, pixels) float32 of what is there,
        in stds from the mean."""
        drawn = np.searchsorted(
            self.chances, generator.random(count) * self.chances[-1], side="right"
        )
        frames, places = np.divmod(drawn.clip(max=len(self.chances) - 1), len(self.mean))
        rows, columns = np.divmod(places, self.tiles.shape[1])
        shown = self.tiles[frames, rows, columns].reshape(count, -1) / np.float32(255)
        return frames, places, (shown - self.mean[places]) / np.float32(self.scale)


def tiled(pixels: Tensor) -> Tensor:
    """(n, 3, h, w) of any kind -> (n, P, pixels), patches row by row as a decoder draws them."""
    patch = patch_px(pixels.shape[-1])
    patches = pixels.unfold(2, patch, patch).unfold(3, patch, patch)  # (n, 3, row, column, y, x)
    return patches.permute(0, 2, 3, 4, 5, 1).flatten(1, 2).flatten(2)


def patch_px(image_size: int) -> int:
    """Side of a patch in a picture of so many pixels; 1 where no larger one divides it."""
    sizes = range(1, min(LARGEST_PATCH_PX, image_size // FEWEST_PATCHES) + 1)
    return max((size for size in sizes if image_size % size == 0), default=1)
