"""Two-Room: a dot walks between two rooms that share a wall with one door, and must get close to a
goal position.

The world is the published one at 224 px: white floor, black border and wall, a red Gaussian dot, a
vertical wall at x = 112 with a door around y = 49. A state is the dot's centre (x, y) in px of that
picture, whole numbers being the middle of a pixel, x to the right and y down. Any other image size
shows the same world resized, so a state means the same at every size.

As published, the centre keeps a body radius away from border and wall, while the door is *not*
narrowed by the radius (the dot's soft rim overlaps the frame), which leaves a comfortable passage
of 31.5 px. Unlike the published code, which looks at the end point of a step only and throws a dot
that rubs along the door frame back out, our motion is swept and slides along what it touches; start
and goal are always legal and never already solved; and pictures are rounded, not truncated.

Source: LeWorldModel, sec. 4, and the public environment `swm/TwoRoom-v1` for geometry and colours.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from lewm.contracts import Policy
from lewm.worlds.kit.batched import BatchedWorld
from lewm.worlds.kit.looks import Look, color, number
from lewm.worlds.kit.single import Single

__all__ = ["TwoRoom", "TwoRoomWorld"]

# Source of every number without another note: the public environment, at 224 px.
WORLD_PX = 224
BORDER_PX, BORDER_LINE_PX = 14, 4  # the line lies outside of the border
WALL_X_PX, WALL_HALF_PX = 112, 5  # a "width" of 10 draws columns 107 to 117, both included
DOOR_Y_PX, DOOR_HALF_PX = 49, 14
DOT_PX = 7  # body radius, and standard deviation of the drawn Gaussian
SUCCESS_PX, MAX_STEPS = 16.0, 100

# where the centre may be, on both axes
LOW_PX, HIGH_PX = BORDER_PX + DOT_PX, WORLD_PX - BORDER_PX - DOT_PX
# the wall for the centre, either side of WALL_X_PX; touching keeps half a pixel away
REACH_PX = WALL_HALF_PX + DOT_PX + 0.5
PASSAGE_PX = DOOR_HALF_PX + 1.75  # the door for the centre, either side of DOOR_Y_PX


@dataclass(frozen=True)
class Factors(Look):
    """What may be varied. The defaults are the published world."""

    world: ClassVar[str] = "two-room"
    paints: ClassVar[Mapping[str, Sequence[str]]] = {"agent": ("agent_color",)}

    agent_color: str = color("ff0000")
    wall_color: str = color("000000")
    floor_color: str = color("ffffff")
    # px of the 224 world that an action of 1 moves per step; the published range ends at 10.5
    speed: float = number(
        5.0, "a positive number of px per step", sys.float_info.min, sys.float_info.max
    )


def slide(positions: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Move points through the world; what they touch takes away only the part of the motion that
    points into it.

    Exact at any speed. The free space is three rectangles, room, passage and room, and inside a
    rectangle sliding is clipping each axis; so it remains to find *when* a point enters the passage
    and when it leaves it. A point that slides along the wall while pushing against it falls into
    the door as it comes by. One that starts inside a wall starts from the face beside it.

    Args:
        positions: (n, 2) x and y in px.
        moves: (n, 2) the motion of one step in px, finite.

    Returns:
        (n, 2) float32 positions, always legal.
    """
    x, y = np.clip(np.asarray(positions, np.float64), LOW_PX, HIGH_PX).T - [
        [WALL_X_PX],
        [DOOR_Y_PX],
    ]
    dx, dy = np.asarray(moves, np.float64).T
    x = np.where((np.abs(x) < REACH_PX) & (np.abs(y) > PASSAGE_PX), np.copysign(REACH_PX, x), x)
    # The world is its own mirror image about the wall: flip what moves left, and all go from near
    # room to passage to far room.
    flip = np.where(dx < 0, -1.0, 1.0)
    x, dx = x * flip, np.abs(dx)
    near, far = x <= -REACH_PX, x >= REACH_PX

    meets_wall = _time(-REACH_PX - x, dx)
    meets_door = np.where(
        np.abs(y) <= PASSAGE_PX, 0.0, _time(np.abs(y) - PASSAGE_PX, -np.sign(y) * dy)
    )
    misses_door = _time(PASSAGE_PX - np.sign(dy) * y, np.abs(dy))
    enter = np.where(near, np.maximum(meets_wall, meets_door), 0.0)
    enter = np.where(near & (enter > np.minimum(misses_door, 1.0)), np.inf, enter)
    leave = np.where(far, 0.0, enter + _time(REACH_PX - np.maximum(x, -REACH_PX), dx))

    end_x, low_y, high_y = HIGH_PX - WALL_X_PX, LOW_PX - DOOR_Y_PX, HIGH_PX - DOOR_Y_PX
    for start, stop, visits, x_range, y_range in (
        (0.0, enter, near, (-end_x, -REACH_PX), (low_y, high_y)),
        (enter, leave, (enter <= 1) & ~far, (-REACH_PX, REACH_PX), (-PASSAGE_PX, PASSAGE_PX)),
        (leave, 1.0, leave <= 1, (REACH_PX, end_x), (low_y, high_y)),
    ):
        stay = np.minimum(stop, 1.0) - np.minimum(start, 1.0)
        x = np.where(visits, np.clip(x + dx * stay, *x_range), x)
        y = np.where(visits, np.clip(y + dy * stay, *y_range), y)
    return np.stack([x * flip + WALL_X_PX, y + DOOR_Y_PX], axis=1).astype(np.float32)


def background(factors: Factors, image_size: int) -> np.ndarray:
    """(h, w, 3) float32 picture of the empty world: the published 224 px pixels, averaged over the
    area of each of ours."""
    line = np.arange(WORLD_PX)
    in_wall = np.abs(line - WALL_X_PX) <= WALL_HALF_PX
    in_door = np.abs(line - DOOR_Y_PX) <= DOOR_HALF_PX
    depth = np.minimum(line, WORLD_PX - 1 - line)  # px from the nearest edge of the picture
    in_line = (depth >= BORDER_PX - BORDER_LINE_PX) & (depth < BORDER_PX)
    solid = (in_line[:, None] | in_line[None, :]) | (in_wall[None, :] & ~in_door[:, None])
    edges = np.arange(image_size + 1) * WORLD_PX / image_size
    overlap = np.minimum(edges[1:, None], line + 1) - np.maximum(edges[:-1, None], line)
    # (image_size, 224), every row sums to 1
    average = np.clip(overlap, 0, None) * image_size / WORLD_PX
    cover = (average @ solid @ average.T)[..., None]
    wall, floor = (
        np.array([*bytes.fromhex(color)]) for color in (factors.wall_color, factors.floor_color)
    )
    return (cover * wall + (1 - cover) * floor).astype(np.float32)


class TwoRoomWorld(BatchedWorld):
    """B Two-Room environments stepped and drawn together.

    Args:
        num_envs: B.
        image_size: height and width of the pictures, 16 or more.
        look: "published", or changed factors as in `WorldSpec.look`.
        factors: the same by name, such as `agent_color="0000ff"`. To change a factor in the middle
            of an episode, draw the later states with a second world.
    """

    policies: ClassVar[tuple[str, ...]] = ("expert", "random", "straight-line")
    factors: Factors

    def __init__(
        self, num_envs: int, image_size: int = WORLD_PX, look: str = "published", **factors: Any
    ) -> None:
        super().__init__(
            num_envs,
            image_size,
            Factors.parse(look, **factors),
            action_dim=2,
            state_names=("x", "y"),
            state_units=("px", "px"),
            max_steps=MAX_STEPS,
            picture_extent=WORLD_PX,
            tolerance=SUCCESS_PX,
        )

        # Averaging the published picture over squares of `pixel` px adds the variance of that many
        # samples in a row to the dot.
        pixel = WORLD_PX / image_size
        spread = math.sqrt(DOT_PX**2 + (pixel**2 - 1) / 12)
        self._dot_std, self._dot_peak = spread / pixel, DOT_PX / spread
        # Past this radius the dot changes a pixel by less than half a grey level.
        self._patch = min(
            image_size, 2 * math.ceil(self._dot_std * math.sqrt(2 * math.log(2 * 255))) + 1
        )

        # Rows of interleaved r, g, b: a patch row is then contiguous memory.
        empty = background(self.factors, image_size).reshape(image_size, 3 * image_size)
        self._empty = np.rint(empty).astype(np.uint8)
        self._under_dot = sliding_window_view(empty, (self._patch, 3 * self._patch))
        self._ink = np.tile(
            np.array([*bytes.fromhex(self.factors.agent_color)], np.float32), self._patch
        )
        self._states = np.zeros((num_envs, 2), np.float32)
        self.reset(range(num_envs))

    @property
    def states(self) -> np.ndarray:
        """(B, 2) float32 dot centres, a copy."""
        return self._states.copy()

    def reset(self, seeds: Sequence[int]) -> None:
        """Draw start and goal of environment i from `seeds[i]` alone: uniform over both rooms, two
        tolerances apart or more."""
        for i, generator in enumerate(self._generators("reset", seeds, self.num_envs)):
            start, *others = _places(generator.random((16, 2)))
            apart = np.linalg.norm(others - start, axis=1) >= 2 * SUCCESS_PX
            self._states[i], self._goals[i] = start, others[int(apart.argmax())]

    def set_states(self, states: np.ndarray) -> None:
        """Put the dots at (B, 2) finite positions: a teleport. One inside a wall is left there
        until the next step frees it."""
        self._states = self._rows("states", states, self.num_envs).copy()

    def _move(self, actions: np.ndarray) -> None:
        """Move every dot by its action times `speed`."""
        self._states = slide(self._states, self.factors.speed * actions)

    def _draw(self, states: np.ndarray) -> np.ndarray:
        """A copy of the empty world and one small patch each: a Gaussian at its true sub-pixel
        place, a product of two profiles."""
        size, patch = self.spec.image_size, self._patch
        # in pixels of this picture
        centres = (states.astype(np.float64) + 0.5) * size / WORLD_PX - 0.5
        corners = np.clip(np.rint(centres) - patch // 2, 0, size - patch).astype(np.intp)
        offsets = (corners - centres)[:, :, None] + np.arange(patch)
        # (n, 2, patch)
        profiles = (self._dot_peak * np.exp(-0.5 * (offsets / self._dot_std) ** 2)).astype(
            np.float32
        )
        # (n, patch, 3 patch)
        alpha = profiles[:, 1, :, None] * np.repeat(profiles[:, 0], 3, axis=1)[:, None, :]
        column, row = 3 * corners[:, 0], corners[:, 1]
        under = self._under_dot[row, column]
        pictures = np.repeat(self._empty[None], len(states), axis=0)
        windows = sliding_window_view(pictures, (patch, 3 * patch), axis=(1, 2), writeable=True)
        windows[np.arange(len(states)), row, column] = (
            under + alpha * (self._ink - under) + 0.5
        ).astype(np.uint8)
        return pictures.reshape(len(states), size, size, 3)

    def _met(self, criterion: str) -> np.ndarray:
        """Is the dot closer to its goal than 16 px of 224?"""
        return np.linalg.norm(self._states - self._goals, axis=1) < SUCCESS_PX

    def _policy(self, name: str, drawing: list[np.random.Generator]) -> Policy:
        """ "expert" walks to the goal through the door, noisily, then on to places of its own
        choice, so that an episode may have any length and shows both rooms. "straight-line" knows
        the state and walks straight at the goal, walls or not: a floor that needs no planning."""
        return _Expert(self, drawing) if name == "expert" else self._straight_line

    def regions(self, states: np.ndarray) -> np.ndarray:
        """(n,) room of each state: 0 left, 1 right of the middle of the wall."""
        return (self._rows("states", states)[:, 0] >= WALL_X_PX).astype(np.int64)

    def _elsewhere(
        self, state: np.ndarray, things: Sequence[str], generator: np.random.Generator
    ) -> np.ndarray:
        """The dot ("agent", the only thing) two tolerances or more away, uniform over both
        rooms."""
        places = _places(generator.random((16, 2)))
        far = np.linalg.norm(places - state, axis=1) >= 2 * SUCCESS_PX
        return places[int(far.argmax())]

    def _straight_line(self) -> np.ndarray:
        steps = (self._goals - self._states) / self.factors.speed
        # as fast as the box allows without turning
        return steps / np.maximum(np.abs(steps).max(axis=1, keepdims=True), 1)


class _Expert:
    """The published data policy: a unit step towards the goal, through the door, under white noise
    that saturates most actions.

    An action that is not repeated from the step before is the direction of the next waypoint plus
    noise, clipped to the box; the dot makes headway at about a third of its speed. Ours: the
    waypoints, which keep it from rubbing along the door frame, and errands: having met its goal it
    heads for a place of its own choice, so an episode may have any length.
    """

    noise_std = 2.0  # Source: `collect_tworooms.py` of the public code, as the repetition
    repetition = 0.05  # chance per step that the action of the step before is taken again
    block = 128  # steps of random numbers drawn at once, to call each generator rarely

    def __init__(self, world: TwoRoomWorld, generators: list[np.random.Generator]) -> None:
        self.world, self.generators = world, generators
        self.step = 0
        self.goals = np.full((world.num_envs, 2), np.nan)
        self.errands = np.zeros((world.num_envs, 2))
        self.actions = np.zeros((world.num_envs, 2))

    def __call__(self) -> np.ndarray:
        if self.step % self.block == 0:
            self.normal = np.stack(
                [generator.standard_normal((self.block, 2)) for generator in self.generators],
                axis=1,
            )
            self.uniform = np.stack(
                [generator.random((self.block, 3)) for generator in self.generators], axis=1
            )
        normal, uniform = (
            self.normal[self.step % self.block],
            self.uniform[self.step % self.block].T,
        )

        states, goals = self.world.states.astype(np.float64), self.world.goals
        new_goal = (goals != self.goals).any(axis=1)
        self.goals = goals
        self.errands = np.where(new_goal[:, None], goals, self.errands)
        arrived = np.linalg.norm(states - self.errands, axis=1) < SUCCESS_PX / 2
        self.errands = np.where(arrived[:, None], _places(uniform[:2].T), self.errands)

        ahead = _waypoints(states, self.errands) - states
        heading = ahead / np.maximum(np.linalg.norm(ahead, axis=1, keepdims=True), 1e-8)
        fresh = np.clip(heading + self.noise_std * normal, -1, 1)
        repeats = (uniform[2] < self.repetition) & (self.step > 0)
        self.actions = np.where(repeats[:, None], self.actions, fresh)
        self.step += 1
        return self.actions.astype(np.float32)


class TwoRoom(Single):
    """One Two-Room environment: a batch of one behind the Gymnasium interface. Options as in
    `TwoRoomWorld`.

    Observation: (h, w, 3) uint8 picture. Action: (2,) float32 in [-1, 1], x right and y down, times
    `speed` px. Reward: 1.0 on a step that ends within 16 px of the goal, which also terminates the
    episode, else 0.0. `info` holds "state" and "goal", (2,) float32 each, and "success".
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (gymnasium declares it an instance variable)
    world_class = TwoRoomWorld
    policies: ClassVar[tuple[str, ...]] = TwoRoomWorld.policies
    looks: ClassVar[tuple[str, ...]] = tuple(Factors.named)

    def regions(self, states: np.ndarray) -> np.ndarray | None:
        return self.world.regions(states)


def _time(distance: np.ndarray, speed: np.ndarray) -> np.ndarray:
    """When a distance is covered, in steps: never (inf) at rest or moving away."""
    return np.divide(distance, speed, out=np.full_like(distance, np.inf), where=speed > 0)


def _places(uniform: np.ndarray) -> np.ndarray:
    """Map (n, 2) uniform numbers to positions uniform over the two rooms."""
    x, y = LOW_PX + uniform.T * [[HIGH_PX - LOW_PX - 2 * REACH_PX], [HIGH_PX - LOW_PX]]
    return np.stack([x + 2 * REACH_PX * (x > WALL_X_PX - REACH_PX), y], axis=1)


def _waypoints(states: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Where to head next: the target itself, or a point in front of the door, or one behind it when
    lined up with the door."""
    across, along = states[:, 0] - WALL_X_PX, states[:, 1] - DOOR_Y_PX
    here, there = np.where(across < 0, -1, 1), np.where(targets[:, 0] < WALL_X_PX, -1, 1)
    in_passage = np.abs(across) < REACH_PX
    lined_up = (np.abs(across) < REACH_PX + 12) & (np.abs(along) < PASSAGE_PX - 6)
    side = np.where(in_passage | lined_up, there, here)
    gates = np.stack([WALL_X_PX + side * (REACH_PX + 8), np.full(len(states), DOOR_Y_PX)], axis=1)
    return np.where((in_passage | (here != there))[:, None], gates, targets)


gymnasium.register(
    "lewm/TwoRoom-v1", entry_point="lewm.worlds.two_room:TwoRoom", max_episode_steps=MAX_STEPS
)
