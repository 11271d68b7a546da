"""Two-Room, step and render: the batched world against one environment written as plainly as it can
be.

The reference moves one dot in short straight bits and draws every picture by blending the dot over
the whole frame, as one would write it first and as the published environment does; its empty room
is drawn once and kept, to be fair. It also serves the tests as the slow, obvious twin of dynamics
and rendering. The two alternate (A B A B ...) in one run and the ratio is the median of the
pairwise ratios, so that another process which slows the machine down for a while slows both.
Everything is elementwise numpy, which runs on one thread.
"""

from __future__ import annotations

import functools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from lewm.worlds.two_room import TwoRoom

BATCH = 64
Layout = tuple[int, int, int]
PUBLISHED: Layout = (112, 49, 1)  # middle of wall and door, and whether the wall stands upright


def run(quick: bool = False) -> dict[str, Any]:
    """Compare frames per second, stepping and rendering included; `quick` takes fewer and shorter
    pairs.

    Returns:
        `rows` of {case, ours, reference, unit, ratio}; ratio = ours / reference, above 1 if ours is
        faster.
    """
    pairs, seconds = (3, 0.05) if quick else (15, 0.3)
    rows = []
    for image_size in (64, 224):
        ours, reference = _batched(image_size), _plain(image_size)
        rates = [(_rate(ours, seconds), _rate(reference, seconds)) for _ in range(pairs)]
        rows.append(
            {
                "case": f"{image_size} px, ours {BATCH} together, reference one by one",
                "ours": statistics.median(a for a, _ in rates),
                "reference": statistics.median(b for _, b in rates),
                "unit": "frames/s",
                "ratio": statistics.median(a / b for a, b in rates),
            }
        )
    return {
        "name": "two-room",
        "what": "step + render, random actions, one thread",
        "pairs": pairs,
        "rows": rows,
    }


def reference_can_stand(x: float, y: float, layout: Layout = PUBLISHED) -> bool:
    """May the centre of the dot be here? Numbers spelt out from the published geometry, in px of
    the 224 px picture."""
    in_border = x < 14 + 7 or x > 210 - 7 or y < 14 + 7 or y > 210 - 7
    wall, door, vertical = layout
    across, along = (x, y) if vertical else (y, x)
    in_wall = wall - 5 - 7.5 < across < wall + 5 + 7.5
    in_door = door - 14 - 1.75 <= along <= door + 14 + 1.75
    return not in_border and (not in_wall or in_door)


def reference_step(
    state: np.ndarray,
    action: np.ndarray,
    speed: float = 5.0,
    bit_px: float = 1.0,
    layout: Layout = PUBLISHED,
) -> np.ndarray:
    """Move in bits of at most `bit_px`, trying each axis on its own, so that a blocked axis leaves
    the other free to slide."""
    x, y = map(float, state)
    dx, dy = (speed * min(max(float(a), -1.0), 1.0) for a in action)
    bits = max(1, math.ceil(math.hypot(dx, dy) / bit_px))
    for _ in range(bits):
        if reference_can_stand(x + dx / bits, y, layout):
            x += dx / bits
        if reference_can_stand(x, y + dy / bits, layout):
            y += dy / bits
    return np.array([x, y], np.float32)


@functools.cache
def reference_background(image_size: int, layout: Layout = PUBLISHED) -> np.ndarray:
    """(h, w, 3) float: the published picture pixel by pixel, each blown up and averaged down to the
    size asked for."""
    picture = np.full((224, 224, 3), 255.0)
    wall, door, vertical = layout
    drawn = picture if vertical else picture.swapaxes(0, 1)
    drawn[:, wall - 5 : wall + 6] = 0  # the wall, from edge to edge
    drawn[door - 14 : door + 15, wall - 5 : wall + 6] = 255  # its door
    for line in (slice(10, 14), slice(210, 214)):
        picture[line] = 0
        picture[:, line] = 0
    common = math.lcm(224, image_size)
    fine = picture.repeat(common // 224, axis=0).repeat(common // 224, axis=1)
    return fine.reshape(image_size, common // image_size, image_size, common // image_size, 3).mean(
        axis=(1, 3)
    )


def reference_render(
    state: np.ndarray,
    image_size: int,
    color: tuple[int, int, int] = (255, 0, 0),
    layout: Layout = PUBLISHED,
) -> np.ndarray:
    """(h, w, 3) uint8: a Gaussian of 7 px, widened by the size of a pixel, blended over the whole
    picture."""
    pixel = 224 / image_size
    middles = (
        np.arange(image_size) + 0.5
    ) * pixel - 0.5  # of our pixels, in px of the 224 px picture
    x, y = np.meshgrid(middles, middles)
    variance = 7**2 + (pixel**2 - 1) / 12
    alpha = 7**2 / variance * np.exp(-((x - state[0]) ** 2 + (y - state[1]) ** 2) / (2 * variance))
    picture = reference_background(image_size, layout).copy()
    for channel in range(3):
        picture[..., channel] = picture[..., channel] * (1 - alpha) + color[channel] * alpha
    return np.rint(picture).astype(np.uint8)


def _batched(image_size: int) -> Callable[[], int]:
    """Something to call again and again that returns how many frames it made."""
    world = TwoRoom.batched(BATCH, image_size=image_size)
    act = world.policy("random", range(BATCH))

    def frames() -> int:
        world.step(act())
        return len(world.render())

    return frames


def _plain(image_size: int) -> Callable[[], int]:
    state, generator = np.array([60.0, 112.0], np.float32), np.random.default_rng(0)

    def frames() -> int:
        nonlocal state
        state = reference_step(state, generator.uniform(-1, 1, 2))
        reference_render(state, image_size)
        return 1

    return frames


def _rate(frames: Callable[[], int], seconds: float) -> float:
    frames()
    made, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        made += frames()
    return made / passed


if __name__ == "__main__":
    print(json.dumps(run(quick="--quick" in sys.argv), indent=2))
