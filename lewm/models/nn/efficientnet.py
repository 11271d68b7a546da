"""EfficientNet-Lite0, an ImageNet classifier for phones, up to its last stage of stride 16.

Inverted residuals: 1 x 1 convolution to six times the channels, one 3 x 3 or 5 x 5 convolution per
channel, 1 x 1 back; added to what came in where the shapes agree. "Lite" has ReLU6 and no
squeeze-and-excite. Source: Tan & Le, arXiv 1905.11946, and the Lite variants of its repository.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["EfficientNetLite0"]

EPSILON = 1e-3
"""Of the batch norms. Source: the published code."""

BLOCKS = (
    (16, 3, 1, 1),
    *((24, 3, 2, 6), (24, 3, 1, 6)),
    *((40, 5, 2, 6), (40, 5, 1, 6)),
    *((80, 3, 2, 6), (80, 3, 1, 6), (80, 3, 1, 6)),
    *((112, 5, 1, 6), (112, 5, 1, 6), (112, 5, 1, 6)),
)
"""Channels, kernel, stride and expansion of each; the stem of 32 channels has stride 2 as well."""


def convolve_same(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """A convolution whose output has ceil(size / stride) rows and columns, as TensorFlow pads: what
    cannot be split evenly goes below and to the right."""
    (kernel, _), (stride, _) = layer.kernel_size, layer.stride
    height, width = (
        max(0, (-(-size // stride) - 1) * stride + kernel - size) for size in x.shape[2:]
    )
    if height or width:
        x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
    return layer(x)


class InvertedResidual(nn.Module):
    """One block, (n, c, h, w) -> (n, c', h/stride, w/stride)."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = before * expansion
        self.residual = stride == 1 and before == after
        self.expand: nn.Conv2d | None = None
        if expansion > 1:
            self.expand = nn.Conv2d(before, inner, 1, bias=False)
            self.norm0 = nn.BatchNorm2d(inner, EPSILON)
        self.depthwise = nn.Conv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self.norm1 = nn.BatchNorm2d(inner, EPSILON)
        self.project = nn.Conv2d(inner, after, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        inner = x if self.expand is None else F.relu6(self.norm0(self.expand(x)))
        inner = F.relu6(self.norm1(convolve_same(inner, self.depthwise)))
        inner = self.norm2(self.project(inner))
        return x + inner if self.residual else inner


class EfficientNetLite0(nn.Module):
    """(n, 3, h, w) pixels in [-1, 1] -> (n, P, 112), P = ceil(h/16) * ceil(w/16), row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, bias=False)
        self.norm = nn.BatchNorm2d(32, EPSILON)
        before = (32, *(channels for channels, *_ in BLOCKS))
        self.blocks = nn.ModuleList(
            InvertedResidual(width, *sizes) for width, sizes in zip(before, BLOCKS)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        x = F.relu6(self.norm(convolve_same(pixels, self.stem)))
        for block in self.blocks:
            x = block(x)
        return x.flatten(2).transpose(1, 2)
