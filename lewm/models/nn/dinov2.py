"""DINOv2's vision transformer (arXiv 2304.07193), as far as its patch features need it.

x_0     = [CLS; patches W + b] + positions, bicubic to the grid
x_l+1   = x_l + scale_2 * MLP(LN(...)),  x_l + scale_1 * attention(LN(x_l))
tokens  = LN(x_L) without CLS                                       x_norm_patchtokens

It differs from `layers.ViT` in the two scales per block (LayerScale) and in the positions, which
were learned on a grid of 37 x 37 and are stretched to others.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["DINOv2"]

EPSILON = 1e-6
"""Of all layer norms. Source: DINOv2's code."""


class Block(nn.Module):
    """Pre-LayerNorm transformer block with a learned scale on either branch; (n, tokens, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, EPSILON)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.scale1 = nn.Parameter(torch.ones(width))
        self.norm2 = nn.LayerNorm(width, EPSILON)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.scale2 = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2)
        x = x + self.scale1 * self.out(mixed)
        return x + self.scale2 * self.fc2(F.gelu(self.fc1(self.norm2(x))))


class DINOv2(nn.Module):
    """(n, 3, h, w) normalised pixels, h and w multiples of the patch -> (n, P, width) tokens, row
    by row.

    Args:
        width, depth, heads, patch: the defaults are ViT-S/14: 22,056,192 numbers.
        side: of the grid of patches that the positions were learned on.
    """

    def __init__(
        self, width: int = 384, depth: int = 12, heads: int = 6, patch: int = 14, side: int = 37
    ) -> None:
        super().__init__()
        self.side = side
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, 1 + side**2, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, EPSILON)

    def positions(self, rows: int, columns: int) -> Tensor:
        """(1, 1 + rows * columns, width): CLS's own, then those of a grid."""
        if (rows, columns) == (self.side, self.side):
            return self.position
        grid = self.position[:, 1:].unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([self.position[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)

    def forward(self, pixels: Tensor) -> Tensor:
        grid = self.patches(pixels)
        x = torch.cat([self.cls.expand(len(grid), -1, -1), grid.flatten(2).transpose(1, 2)], dim=1)
        x = x + self.positions(*grid.shape[2:])
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 1:]
