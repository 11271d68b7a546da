"""Pictures of flat worlds: rigid bodies of boxes and discs, drawn in numpy with soft edges, many
pictures together.

A pixel takes of a shape's colour about the share of its area that the shape covers, so that motion
by a fraction of a pixel shows, which is what a model of small pictures has to see. The share comes
from the distance of the pixel's middle to the edge: exact for a box along the axes of the picture,
off by a twentieth at most along an edge that is turned. All arithmetic is elementwise: what else is
drawn in the same call never changes a picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

__all__ = ["Box", "Disc", "Part", "paint", "rgb"]

CACHED_PIXELS = 1 << 15
"""Pixels worked on together, few enough to stay in a core's cache."""


@dataclass(frozen=True)
class Box:
    """A box along the axes of its body: the middle and half the sides, in units of the world."""

    x: float
    y: float
    half_width: float
    half_height: float

    @property
    def reach(self) -> float:
        """Distance of the farthest point from the body's origin."""
        return math.hypot(abs(self.x) + self.half_width, abs(self.y) + self.half_height)

    def cover(self, x: np.ndarray, y: np.ndarray, grow: float, pixel: float) -> np.ndarray:
        """Share of each pixel inside the box grown by `grow` on all sides; `x` and `y` are pixels'
        places in pixels."""
        sides = ((x, self.x, self.half_width), (y, self.y, self.half_height))
        across, along = (
            _share((half + grow) / pixel, np.abs(place - np.float32(mid / pixel)))
            for place, mid, half in sides
        )
        return np.multiply(across, along, out=across)


@dataclass(frozen=True)
class Disc:
    """A disc about the origin of its body, in units of the world."""

    radius: float

    @property
    def reach(self) -> float:
        return self.radius

    def cover(self, x: np.ndarray, y: np.ndarray, grow: float, pixel: float) -> np.ndarray:
        """As `Box.cover`."""
        return _share((self.radius + grow) / pixel, np.sqrt(x * x + y * y))


@dataclass(frozen=True)
class Part:
    """One shape of a body and its colours.

    Attributes:
        color: six hexadecimal digits, rrggbb.
        rim: half width of a line drawn along the edge in `color`, the inside being a fifth lighter;
            0 fills flatly.
    """

    shape: Box | Disc
    color: str
    rim: float = 0.0


def paint(pictures: np.ndarray, poses: np.ndarray, parts: Sequence[Part], extent: float) -> None:
    """Draw a body into each picture, in place, over what is there.

    Args:
        pictures: (n, h, h, 3) uint8, contiguous.
        poses: (n, 3) x, y (of the body's origin, in units of the world, from the picture's corner)
            and angle, in radians, that takes the body's x axis towards its y axis; y points down.
        parts: of the body, which may touch each other but should not overlap.
        extent: width of the picture in units of the world.
    """
    size = pictures.shape[1]
    pixel = extent / size
    reach = max(part.shape.reach + part.rim for part in parts)
    patch = min(size, 2 * math.ceil(reach / pixel + 0.5) + 1)
    together = max(1, CACHED_PIXELS // patch**2)
    windows = sliding_window_view(pictures, (patch, patch), axis=(1, 2), writeable=True)
    for start in range(0, len(poses), together):
        chunk = poses[start : start + together].astype(np.float64)
        centres = chunk[:, :2] / pixel
        corners = np.clip(np.rint(centres - patch / 2), 0, size - patch).astype(np.intp)
        offsets = (corners - centres)[:, :, None] + (np.arange(patch) + 0.5)
        right, down = offsets.astype(np.float32).transpose(1, 0, 2)
        right, down = right[:, None, :], down[:, :, None]
        cos, sin = (
            np.cos(chunk[:, 2, None, None]).astype(np.float32),
            np.sin(chunk[:, 2, None, None]).astype(np.float32),
        )
        x, y = cos * right + sin * down, cos * down - sin * right

        where = (np.arange(start, start + len(chunk)), corners[:, 1], corners[:, 0])
        left = np.ones_like(x)  # share of each pixel that no part has taken yet
        inks: list[tuple[np.ndarray, np.ndarray]] = []
        for part in parts:
            # Parts that touch share the pixels along their seam: each takes what is left, so that
            # no floor shines through.
            cover = np.minimum(part.shape.cover(x, y, part.rim, pixel), left)
            left -= cover
            edge = rgb(part.color)
            inks.append((cover, edge))
            if part.rim:
                inside = np.minimum(part.shape.cover(x, y, -part.rim, pixel), cover)
                inks.append((inside, np.minimum(edge * np.float32(1.2), 255) - edge))
        canvas = windows[where] * left[:, None]
        for share, color in inks:
            for channel in range(3):
                if color[channel]:
                    canvas[:, channel] += share * color[channel]
        canvas += np.float32(0.5)
        windows[where] = canvas.astype(np.uint8)


def rgb(color: str) -> np.ndarray:
    """(3,) float32 of six hexadecimal digits."""
    return np.array([*bytes.fromhex(color)], np.float32)


def _share(half: float, distance: np.ndarray) -> np.ndarray:
    """Share of a pixel that lies within `half` pixels of a line or point, from the distance of its
    middle; in place."""
    np.subtract(np.float32(half + 0.5), distance, out=distance)
    # a thin shape covers no pixel wholly
    return np.clip(distance, 0, min(1.0, 2 * half), out=distance)
