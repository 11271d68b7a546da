"""Reacher and Cube, step and render: the fast look against the published one, in one process.

The looks are drawn alternately (A B A B ...) by worlds that are otherwise equal, and the ratio is
the median of the pairwise ratios, so that another process which slows the machine down for a while
slows both. Mesa's software renderer takes as many threads as there are cores unless
`LP_NUM_THREADS` says otherwise.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from typing import Any

from lewm import registry
from lewm.contracts import World

BATCH = 4


def run(quick: bool = False) -> dict[str, Any]:
    """Compare steps per second at 64 px under random actions. A world that does not open is left
    out.

    Args:
        quick: fewer and shorter pairs.

    Returns:
        `rows` of {case, ours, reference, unit, ratio}, two for each world: the fast look against
        the published one, and steps without a picture against steps with one in the fast look.
        ratio = ours / reference.
    """
    pairs, seconds = (2, 0.2) if quick else (7, 1.0)
    rows = []
    for name in ("reacher", "cube"):
        try:
            plugin = registry.load("worlds", name)
            fast, published = (
                plugin.batched(BATCH, image_size=64, look=look) for look in ("fast", "published")
            )
        except (ImportError, ValueError):  # its extra is missing, or an OpenGL
            continue
        ways = ((fast, True), (published, True), (fast, False))
        rates = [[_rate(world, drawn, seconds) for world, drawn in ways] for _ in range(pairs)]
        rows += [
            _row(f"{name}, 64 px: fast look, published look", [(a, b) for a, b, _ in rates]),
            _row(f"{name}: no picture, 64 px in the fast look", [(c, a) for a, _, c in rates]),
        ]
    threads = os.environ.get("LP_NUM_THREADS", "one per core")
    what = f"steps/s, {os.environ.get('MUJOCO_GL', 'no GL')}, renderer threads: {threads}"
    return {"name": "mujoco-worlds", "what": what, "pairs": pairs, "rows": rows}


def _row(case: str, rates: list[tuple[float, float]]) -> dict[str, Any]:
    ours, reference = (statistics.median(rate) for rate in zip(*rates, strict=True))
    ratio = statistics.median(a / b for a, b in rates)
    return {"case": case, "ours": ours, "reference": reference, "unit": "steps/s", "ratio": ratio}


def _rate(world: World, render: bool, seconds: float) -> float:
    """Environment steps per second."""
    act = world.policy("random", range(world.num_envs))
    world.render()  # what is made on first use is not what is measured
    steps, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        world.step(act())
        if render:
            world.render()
        steps += world.num_envs
    return steps / (time.perf_counter() - begun)


if __name__ == "__main__":
    print(json.dumps(run(quick="--quick" in sys.argv), indent=2))
