"""Push-T, step and render: the batched world against one environment written as plainly as it can
be.

The reference builds the block as the published environment does, from pymunk's own moments and
centres, moves the agent step by step, and draws every picture whole by asking of 16 points in each
pixel which shape they lie in. It also serves the tests as the slow, obvious twin of dynamics and
rendering. The two alternate (A B A B ...) in one run and the ratio is the median of the pairwise
ratios. Time is that of the process, not the clock's: rates are those of a core of one's own.

`coverage` says how much a data policy moves the block: `python -m lewm.benchmarks.push_t
--coverage`.
"""

from __future__ import annotations

import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pymunk

from lewm.worlds.kit.pushing import AGENT_RADIUS, clearance, gravity_centre, wrap
from lewm.worlds.push_t import PushT

BATCH = 64


def run(quick: bool = False) -> dict[str, Any]:
    """Compare frames per second, stepping and rendering included; `quick` takes fewer and shorter
    pairs.

    Returns:
        `rows` of {case, ours, reference, unit, ratio}; ratio = ours / reference, above 1 if ours is
        faster.
    """
    pairs, seconds = (3, 0.1) if quick else (11, 0.5)
    rows = []
    for look, image_size in (("tiny", 64), ("published", 64), ("published", 224)):
        ours, reference = _batched(look, image_size), _plain(look, image_size)
        rates = [(_rate(ours, seconds), _rate(reference, seconds)) for _ in range(pairs)]
        rows.append(
            {
                "case": f"{look} look, {image_size} px, {BATCH} together against one by one",
                "ours": statistics.median(a for a, _ in rates),
                "reference": statistics.median(b for _, b in rates),
                "unit": "frames/s",
                "ratio": statistics.median(a / b for a, b in rates),
            }
        )
    return {
        "name": "push-t",
        "what": "expert + step + render, one thread; reference without expert",
        "pairs": pairs,
        "rows": rows,
    }


def coverage(policy: str, look: str, episodes: int = BATCH, steps: int = 200) -> dict[str, float]:
    """How much a policy touches, moves and turns the block, over all pairs of frames so many steps
    apart.

    Returns:
        share of frames in contact; median turn in degrees per 15 and 25 steps, and of the 15 only
        where the agent touches the block in more than half; median way of the centre of gravity in
        units; share of pairs 25 apart between which the block moved beyond the tolerance (20 units
        or 20 degrees); share of episodes that meet each criterion at some time.
    """
    world = PushT.batched(episodes, image_size=16, look=look)
    world.reset(range(episodes))
    act = world.policy(policy, range(episodes))
    states, met = [world.states], {name: world.success(name) for name in world.spec.criteria}
    for _ in range(steps):
        world.step(act())
        states.append(world.states)
        met = {name: before | world.success(name) for name, before in met.items()}
    touching = np.stack([clearance(s, s[:, None, :2])[:, 0] < AGENT_RADIUS + 1 for s in states])
    angles, places = (
        np.stack(states)[:, :, 4].astype(np.float64),
        np.stack([gravity_centre(s) for s in states]),
    )
    origins = np.stack(states)[:, :, 2:4]
    turns = {k: np.degrees(np.abs(wrap(angles[k:] - angles[:-k]))) for k in (15, 25)}
    moves = {k: np.linalg.norm(places[k:] - places[:-k], axis=-1) for k in (15, 25)}
    pushed = np.stack([touching[t : t + 16].mean(axis=0) > 0.5 for t in range(len(states) - 15)])
    beyond = (np.linalg.norm(origins[25:] - origins[:-25], axis=-1) >= 20) | (turns[25] >= 20)
    found = {
        "in contact": touching.mean(),
        **{f"median turn per {k} steps, degrees": np.median(turn) for k, turn in turns.items()},
        **{f"median way per {k} steps, units": np.median(move) for k, move in moves.items()},
        "median turn per 15 steps while pushing, degrees": np.median(turns[15][pushed])
        if pushed.any()
        else np.nan,
        "moved beyond tolerance in 25 steps": beyond.mean(),
        **{name: share.mean() for name, share in met.items()},
    }
    return {name: round(float(value), 3) for name, value in found.items()}


class ReferencePushT:
    """One environment, step by step; the walls are the published thin ones.

    Args:
        state: (7,) in the order of `WorldSpec.state_names`.
        table: side of the table in units.
    """

    def __init__(self, state: np.ndarray, table: float = 512.0) -> None:
        self.space, self.table = pymunk.Space(), table
        self.space.gravity, self.space.damping = (0, 0), 0
        far = table - 6
        for start, end in (
            ((5, far), (5, 5)),
            ((5, 5), (far, 5)),
            ((far, 5), (far, far)),
            ((5, far), (far, far)),
        ):
            self.space.add(pymunk.Segment(self.space.static_body, start, end, 2))
        self.agent = pymunk.Body(body_type=pymunk.Body.KINEMATIC)
        bar = [(-60, 30), (60, 30), (60, 0), (-60, 0)]
        stem = [(-15, 30), (-15, 120), (15, 120), (15, 30)]
        self.block = pymunk.Body(1, 2 * pymunk.moment_for_poly(1, bar))
        bar_shape, stem_shape = pymunk.Poly(self.block, bar), pymunk.Poly(self.block, stem)
        self.block.center_of_gravity = (
            bar_shape.center_of_gravity + stem_shape.center_of_gravity
        ) / 2
        self.space.add(self.agent, pymunk.Circle(self.agent, 15), self.block, bar_shape, stem_shape)
        x, y, block_x, block_y, angle, velocity_x, velocity_y = map(float, state)
        self.agent.position, self.agent.velocity = (x, y), (velocity_x, velocity_y)
        self.block.angle = angle
        self.block.position = (block_x, block_y)

    def step(self, action: np.ndarray) -> np.ndarray:
        """(7,) the state after one step of 0.1 s."""
        target = [
            min(max(p + 100 * min(max(float(a), -1), 1), 15), self.table - 15)
            for p, a in zip(self.agent.position, action)
        ]
        for _ in range(10):
            (x, y), (vx, vy) = self.agent.position, self.agent.velocity
            ax, ay = 100 * (target[0] - x) - 20 * vx, 100 * (target[1] - y) - 20 * vy
            self.agent.velocity = (vx + ax * 0.01, vy + ay * 0.01)
            self.space.step(0.01)
        angle = self.block.angle % (2 * np.pi)
        return np.array(
            [*self.agent.position, *self.block.position, angle, *self.agent.velocity], np.float32
        )


PALETTES = {
    "published": {
        "agent": "4169e1",
        "bar": "778899",
        "stem": "778899",
        "wall": "d3d3d3",
        "goal": "90ee90",
    },
    "tiny": {
        "agent": "00c8ff",
        "halo": "7fe3ff",
        "bar": "ff28c8",
        "stem": "ffd200",
        "wall": "d3d3d3",
    },
}


@functools.cache
def _points(image_size: int, table: float) -> tuple[np.ndarray, np.ndarray]:
    """Places of 4 x 4 points in every pixel, in units."""
    middles = (np.arange(4 * image_size) + 0.5) * table / (4 * image_size)
    x, y = np.meshgrid(middles, middles)
    return x, y


def reference_render(state: np.ndarray, image_size: int, look: str = "published") -> np.ndarray:
    """(h, w, 3) uint8: 16 points in every pixel, each given the colour of the topmost shape it lies
    in, averaged."""
    palette = {name: np.array([*bytes.fromhex(color)]) for name, color in PALETTES[look].items()}
    table, rim = (512.0, 2) if look == "published" else (320.0, 0)
    x, y = _points(image_size, table)
    picture = np.full((*x.shape, 3), 255.0)

    def tee(
        block_x: float, block_y: float, angle: float, bar: np.ndarray, stem: np.ndarray, grow: float
    ) -> None:
        across = np.cos(angle) * (x - block_x) + np.sin(angle) * (y - block_y)
        along = np.cos(angle) * (y - block_y) - np.sin(angle) * (x - block_x)
        for color, middle, half_x, half_y in ((stem, 75, 15, 45), (bar, 15, 60, 15)):
            picture[(np.abs(across) < half_x + grow) & (np.abs(along - middle) < half_y + grow)] = (
                color
            )
            if grow:
                inside = (np.abs(across) < half_x - grow) & (np.abs(along - middle) < half_y - grow)
                picture[inside] = np.minimum(1.2 * color, 255)

    if "goal" in palette:
        tee(256, 256, np.pi / 4, palette["goal"], palette["goal"], 0)
    edge = np.minimum(
        np.minimum(np.abs(x - 5), np.abs(x - (table - 6))),
        np.minimum(np.abs(y - 5), np.abs(y - (table - 6))),
    )
    outside = (np.minimum(x, y) < 3) | (np.maximum(x, y) > table - 4)
    picture[(edge < 2) & ~outside] = palette["wall"]
    distance = np.hypot(x - state[0], y - state[1])
    if "halo" in palette:
        picture[distance < 30] = palette["halo"]
    tee(state[2], state[3], state[4], palette["bar"], palette["stem"], rim)
    picture[distance < 15] = palette["agent"]
    if rim:
        picture[distance < 11] = np.minimum(1.2 * palette["agent"], 255)
    return np.rint(picture.reshape(image_size, 4, image_size, 4, 3).mean(axis=(1, 3))).astype(
        np.uint8
    )


def _batched(look: str, image_size: int) -> Callable[[], int]:
    """Something to call again and again that returns how many frames it made."""
    world = PushT.batched(BATCH, image_size=image_size, look=look)
    act = world.policy("expert", range(BATCH))

    def frames() -> int:
        world.step(act())
        return len(world.render())

    return frames


def _plain(look: str, image_size: int) -> Callable[[], int]:
    env = ReferencePushT(
        np.array([100, 150, 160, 120, 1, 0, 0]), 512.0 if look == "published" else 320.0
    )
    generator = np.random.default_rng(0)

    def frames() -> int:
        reference_render(env.step(generator.uniform(-1, 1, 2)), image_size, look)
        return 1

    return frames


def _rate(frames: Callable[[], int], seconds: float) -> float:
    frames()
    made, start = 0, time.process_time()
    while (passed := time.process_time() - start) < seconds:
        made += frames()
    return made / passed


if __name__ == "__main__":
    if "--coverage" in sys.argv:
        cases = [(policy, look) for look in ("tiny", "published") for policy in PushT.policies]
        print(
            json.dumps(
                {f"{policy}, {look}": coverage(policy, look) for policy, look in cases}, indent=2
            )
        )
    else:
        print(json.dumps(run(quick="--quick" in sys.argv), indent=2))
