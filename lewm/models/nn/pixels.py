"""Pictures on their way into a model: what is taken, and what an encoder is given."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["normalised", "require_pictures"]


def require_pictures(pixels: Tensor, size: int) -> None:
    """Refuse what is not (B, T, 3, size, size) uint8, with a ValueError."""
    if pixels.dtype != torch.uint8 or pixels.shape[2:] != (3, size, size):
        raise ValueError(
            f"pixels must be uint8 of shape (B, T, 3, {size}, {size}), got {pixels.dtype} "
            f"{tuple(pixels.shape)}. Resize the pictures, or train a model at their size."
        )


def normalised(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(n, 3, h, w) uint8 -> the same shape: less the mean of each colour, over its std."""
    # in place: pictures are the largest numbers that there are in a model
    return pixels.float().div_(255).to(mean.dtype).sub_(mean).div_(std)
