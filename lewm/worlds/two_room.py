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

In the look "walls" every episode has a layout of its own, drawn from its seed: the wall stands
upright or lies across, at another place, with its door elsewhere. All else is as published. The
layout is part of the state, which is then (x, y, wall, door, vertical): the middle of the wall, and
of the door along it, in whole px, and 1 for an upright wall, 0 for one that lies across. It never
changes within an episode, and a goal has the layout of its start. The published one is 112, 49, 1.

Source: LeWorldModel, sec. 4, and the public environment `swm/TwoRoom-v1` for geometry and colours.
"""

from __future__ import annotations

import math
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from lewm.contracts import Policy
from lewm.worlds.kit.batched import BatchedWorld
from lewm.worlds.kit.looks import Look, choice, color, number
from lewm.worlds.kit.single import Single

__all__ = ["TwoRoom", "TwoRoomWorld"]

# Source of every number without another note: the public environment, at 224 px.
WORLD_PX = 224
BORDER_PX, BORDER_LINE_PX = 14, 4  # the line lies outside of the border
WALL_HALF_PX = 5  # a "width" of 10 draws columns 107 to 117, both included
DOOR_HALF_PX = 14
DOT_PX = 7  # body radius, and standard deviation of the drawn Gaussian
SUCCESS_PX, MAX_STEPS = 16.0, 100

# where the centre may be, on both axes
LOW_PX, HIGH_PX = BORDER_PX + DOT_PX, WORLD_PX - BORDER_PX - DOT_PX
# the wall for the centre, either side of its middle; touching keeps half a pixel away
REACH_PX = WALL_HALF_PX + DOT_PX + 0.5
PASSAGE_PX = DOOR_HALF_PX + 1.75  # the door for the centre, either side of its middle

# A layout: middle of the wall, of the door along it, and whether the wall stands upright.
LAYOUT = ("wall", "door", "vertical")
PUBLISHED = np.array([112.0, 49.0, 1.0])
# What layouts are drawn from, both ends included. Ours: the narrow room keeps 30 px for the centre,
# and the frame of the door never meets the border.
WALLS_PX, DOORS_PX = (64, 160), (37, 187)
KEPT_BYTES = 2**26  # of empty worlds, drawn once per layout


@dataclass(frozen=True)
class Factors(Look):
    """What may be varied. The defaults are the published world; in "walls" every episode has a
    layout of its own."""

    world: ClassVar[str] = "two-room"
    named: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "published": {},
        "walls": {"walls": "varied"},
    }
    paints: ClassVar[Mapping[str, Sequence[str]]] = {"agent": ("agent_color",)}

    agent_color: str = color("ff0000")
    wall_color: str = color("000000")
    floor_color: str = color("ffffff")
    # px of the 224 world that an action of 1 moves per step; the published range ends at 10.5
    speed: float = number(
        5.0, "a positive number of px per step", sys.float_info.min, sys.float_info.max
    )
    # whether the layout is the published one, or drawn for each episode
    walls: str = choice("published", ("published", "varied"))


def slide(positions: np.ndarray, moves: np.ndarray, layouts: np.ndarray = PUBLISHED) -> np.ndarray:
    """Move points through the world; what they touch takes away only the part of the motion that
    points into it.

    Exact at any speed. The free space is three rectangles, room, passage and room, and inside a
    rectangle sliding is clipping each axis; so it remains to find *when* a point enters the passage
    and when it leaves it. A point that slides along the wall while pushing against it falls into
    the door as it comes by. One that starts inside a wall starts from the face beside it.

    Args:
        positions: (n, 2) x and y in px.
        moves: (n, 2) the motion of one step in px, finite.
        layouts: (n, 3) wall, door and vertical of each point, or (3,) of all.

    Returns:
        (n, 2) float32 positions, always legal.
    """
    wall, door, _ = layouts.T.astype(np.float64)
    # x goes across the wall and y along it, from the middle of the door
    x, y = _turned(np.clip(np.asarray(positions, np.float64), LOW_PX, HIGH_PX), layouts).T
    x, y = x - wall, y - door
    dx, dy = _turned(np.asarray(moves, np.float64), layouts).T
    x = np.where((np.abs(x) < REACH_PX) & (np.abs(y) > PASSAGE_PX), np.copysign(REACH_PX, x), x)
    # Seen from the wall, a motion to the left is one to the right in the mirror: flip what moves
    # left, and all go from near room to passage to far room.
    left = dx < 0
    flip = np.where(left, -1.0, 1.0)
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

    near_end = np.where(left, wall - HIGH_PX, LOW_PX - wall)
    far_end = near_end + (HIGH_PX - LOW_PX)
    along = LOW_PX - door, HIGH_PX - door
    for start, stop, visits, x_range, y_range in (
        (0.0, enter, near, (near_end, -REACH_PX), along),
        (enter, leave, (enter <= 1) & ~far, (-REACH_PX, REACH_PX), (-PASSAGE_PX, PASSAGE_PX)),
        (leave, 1.0, leave <= 1, (REACH_PX, far_end), along),
    ):
        stay = np.minimum(stop, 1.0) - np.minimum(start, 1.0)
        x = np.where(visits, np.clip(x + dx * stay, *x_range), x)
        y = np.where(visits, np.clip(y + dy * stay, *y_range), y)
    ends = np.stack([x * flip + wall, y + door], axis=1)
    return _turned(ends, layouts).astype(np.float32)


def background(
    factors: Factors, image_size: int, layout: Sequence[float] | np.ndarray = PUBLISHED
) -> np.ndarray:
    """(h, w, 3) float32 picture of the empty world: the published 224 px pixels, averaged over the
    area of each of ours."""
    wall_px, door_px, vertical = layout
    line = np.arange(WORLD_PX)
    in_wall = np.abs(line - wall_px) <= WALL_HALF_PX
    in_door = np.abs(line - door_px) <= DOOR_HALF_PX
    depth = np.minimum(line, WORLD_PX - 1 - line)  # px from the nearest edge of the picture
    in_line = (depth >= BORDER_PX - BORDER_LINE_PX) & (depth < BORDER_PX)
    divides = in_wall[None, :] & ~in_door[:, None]
    solid = (in_line[:, None] | in_line[None, :]) | (divides if vertical else divides.T)
    edges = np.arange(image_size + 1) * WORLD_PX / image_size
    overlap = np.minimum(edges[1:, None], line + 1) - np.maximum(edges[:-1, None], line)
    # (image_size, 224), every row sums to 1
    average = np.clip(overlap, 0, None) * image_size / WORLD_PX
    cover = (average @ solid @ average.T)[..., None]
    wall, floor = (
        np.array([*bytes.fromhex(color)]) for color in (factors.wall_color, factors.floor_color)
    )
    return (cover * wall + (1 - cover) * floor).astype(np.float32)


class _EmptyWorlds:
    """Pictures of empty worlds, each drawn when its layout is first asked for. A batch in the
    middle of its episodes asks for the same ones again and again, and gets the same arrays."""

    def __init__(self, factors: Factors, image_size: int, patch: int) -> None:
        self.factors, self.image_size, self.patch = factors, image_size, patch
        self.most = max(1, KEPT_BYTES // (4 * 3 * image_size**2))
        self.kept: OrderedDict[tuple[float, ...], np.ndarray] = OrderedDict()
        self.key = b"", 0
        self.which = np.zeros(0, np.intp)
        self.patches = self.rounded = np.zeros(0)

    def __call__(self, layouts: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Find the empty worlds of n states: (n, 3) layouts, or (3,) of all.

        Returns:
            (n,) which of L pictures each has; all patches of the exact pictures, (L, rows, columns,
            patch, 3 patch) float32; and the rounded pictures, (L, h, 3 w) uint8. Rows interleave r,
            g, b: a row of a patch is then contiguous memory.
        """
        if (key := (layouts.tobytes(), n)) != self.key:
            each = np.broadcast_to(layouts, (n, len(LAYOUT)))
            different, which = np.unique(each, axis=0, return_inverse=True)
            self.which = which.reshape(-1)
            exact = np.stack([self._drawn(tuple(one)) for one in different.tolist()])
            self.patches = sliding_window_view(exact, (self.patch, 3 * self.patch), axis=(1, 2))
            self.rounded = np.rint(exact).astype(np.uint8)
            self.key = key
        return self.which, self.patches, self.rounded

    def _drawn(self, layout: tuple[float, ...]) -> np.ndarray:
        if layout not in self.kept:
            picture = background(self.factors, self.image_size, layout)
            self.kept[layout] = picture.reshape(self.image_size, -1)
        self.kept.move_to_end(layout)
        if len(self.kept) > self.most:
            self.kept.popitem(last=False)
        return self.kept[layout]


class TwoRoomWorld(BatchedWorld):
    """B Two-Room environments stepped and drawn together.

    Args:
        num_envs: B.
        image_size: height and width of the pictures, 16 or more.
        look: "published", "walls", or changed factors as in `WorldSpec.look`.
        factors: the same by name, such as `agent_color="0000ff"`. To change a factor in the middle
            of an episode, draw the later states with a second world.
    """

    policies: ClassVar[tuple[str, ...]] = ("expert", "random", "straight-line")
    factors: Factors

    def __init__(
        self, num_envs: int, image_size: int = WORLD_PX, look: str = "published", **factors: Any
    ) -> None:
        varied = Factors.parse(look, **factors)
        layout = LAYOUT if varied.walls == "varied" else ()
        super().__init__(
            num_envs,
            image_size,
            varied,
            action_dim=2,
            state_names=("x", "y", *layout),
            state_units=("px", "px", "px", "px", "")[: 2 + len(layout)],
            max_steps=MAX_STEPS,
            picture_extent=WORLD_PX,
            tolerance=SUCCESS_PX,
            layout=layout,
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

        self._empty_worlds = _EmptyWorlds(varied, image_size, self._patch)
        self._ink = np.tile(
            np.array([*bytes.fromhex(self.factors.agent_color)], np.float32), self._patch
        )
        self._states = np.zeros((num_envs, 2 + len(layout)), np.float32)
        self.reset(range(num_envs))

    @property
    def states(self) -> np.ndarray:
        """(B, S) float32 dot centres, and layouts where they vary; a copy."""
        return self._states.copy()

    def reset(self, seeds: Sequence[int]) -> None:
        """Draw start, goal and, where it varies, layout of environment i from `seeds[i]` alone:
        uniform over both rooms, two tolerances apart or more."""
        for i, generator in enumerate(self._generators("reset", seeds, self.num_envs)):
            uniform = generator.random((16, 2))
            layout = _layout(generator) if self.spec.layout else PUBLISHED
            start, *others = _places(uniform, layout)
            apart = np.linalg.norm(others - start, axis=1) >= 2 * SUCCESS_PX
            self._states[i, 2:] = self._goals[i, 2:] = layout[: len(self.spec.layout)]
            self._states[i, :2], self._goals[i, :2] = start, others[int(apart.argmax())]

    def set_states(self, states: np.ndarray) -> None:
        """Put the dots at (B, S) finite positions: a teleport. One inside a wall is left there
        until the next step frees it."""
        self._states = self._rows("states", states, self.num_envs).copy()

    def _move(self, actions: np.ndarray) -> None:
        """Move every dot by its action times `speed`."""
        moves = self.factors.speed * actions
        self._states[:, :2] = slide(self._states[:, :2], moves, self._layouts(self._states))

    def _draw(self, states: np.ndarray) -> np.ndarray:
        """A copy of the empty world and one small patch each: a Gaussian at its true sub-pixel
        place, a product of two profiles."""
        size, patch = self.spec.image_size, self._patch
        which, patches, rounded = self._empty_worlds(self._layouts(states), len(states))
        # in pixels of this picture
        centres = (states[:, :2].astype(np.float64) + 0.5) * size / WORLD_PX - 0.5
        corners = np.clip(np.rint(centres) - patch // 2, 0, size - patch).astype(np.intp)
        offsets = (corners - centres)[:, :, None] + np.arange(patch)
        # (n, 2, patch)
        profiles = (self._dot_peak * np.exp(-0.5 * (offsets / self._dot_std) ** 2)).astype(
            np.float32
        )
        # (n, patch, 3 patch)
        alpha = profiles[:, 1, :, None] * np.repeat(profiles[:, 0], 3, axis=1)[:, None, :]
        column, row = 3 * corners[:, 0], corners[:, 1]
        under = patches[which, row, column]
        pictures = rounded.take(which, axis=0)
        windows = sliding_window_view(pictures, (patch, 3 * patch), axis=(1, 2), writeable=True)
        windows[np.arange(len(states)), row, column] = (
            under + alpha * (self._ink - under) + 0.5
        ).astype(np.uint8)
        return pictures.reshape(len(states), size, size, 3)

    def _met(self, criterion: str) -> np.ndarray:
        """Is the dot closer to its goal than 16 px of 224?"""
        return np.linalg.norm((self._states - self._goals)[:, :2], axis=1) < SUCCESS_PX

    def _policy(self, name: str, drawing: list[np.random.Generator]) -> Policy:
        """ "expert" walks to the goal through the door, noisily, then on to places of its own
        choice, so that an episode may have any length and shows both rooms. "straight-line" knows
        the state and walks straight at the goal, walls or not: a floor that needs no planning."""
        return _Expert(self, drawing) if name == "expert" else self._straight_line

    def regions(self, states: np.ndarray) -> np.ndarray:
        """(n,) room of each state: 0 left of the middle of its wall, or above it; 1 right of it,
        or below."""
        states = self._rows("states", states)
        layouts = self._layouts(states)
        return (_turned(states[:, :2], layouts)[:, 0] >= layouts.T[0]).astype(np.int64)

    def blocked(self, starts: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """(n,) bool: does the straight way from each of (n, S) starts to its goal meet the wall?
        Starts say the layouts."""
        starts, goals = self._rows("starts", starts), self._rows("goals", goals, len(starts))
        moves = goals[:, :2].astype(np.float64) - starts[:, :2]
        short = slide(starts[:, :2], moves, self._layouts(starts)) - goals[:, :2]
        return np.abs(short).max(axis=1) > 1e-3

    def _elsewhere(
        self, state: np.ndarray, things: Sequence[str], generator: np.random.Generator
    ) -> np.ndarray:
        """The dot ("agent", the only thing) two tolerances or more away, uniform over both
        rooms."""
        places = _places(generator.random((16, 2)), self._layouts(state))
        far = np.linalg.norm(places - state[:2], axis=1) >= 2 * SUCCESS_PX
        return np.concatenate([places[int(far.argmax())], state[2:]])

    def _layouts(self, states: np.ndarray) -> np.ndarray:
        """(..., S) states -> (..., 3) their layouts, or (3,) the published one."""
        return states[..., 2:] if self.spec.layout else PUBLISHED

    def _rows(self, what: str, values: np.ndarray, rows: int | None = None) -> np.ndarray:
        """As in every world; a layout must be one that can be built and drawn."""
        values = super()._rows(what, values, rows)
        if self.spec.layout:
            wall, door, vertical = values[:, 2:].T
            low, high = math.ceil(LOW_PX + REACH_PX), math.floor(HIGH_PX - REACH_PX)
            first, last = DOORS_PX
            fits = (low <= wall) & (wall <= high) & (first <= door) & (door <= last)
            fits &= (wall % 1 == 0) & (door % 1 == 0) & ((vertical == 0) | (vertical == 1))
            if not fits.all():
                row = int(fits.argmin())
                raise ValueError(
                    f"{what}: expected layouts with wall {low} to {high} and door {first} to "
                    f"{last} in whole px, and vertical 0 or 1, got {values[row, 2:].tolist()} in "
                    f"row {row}. Take the layout of a recorded state, or of `reset`."
                )
        return values

    def _straight_line(self) -> np.ndarray:
        steps = (self._goals - self._states)[:, :2] / self.factors.speed
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

        both, goals = self.world.states, self.world.goals[:, :2]
        states, layouts = both[:, :2].astype(np.float64), self.world._layouts(both)
        new_goal = (goals != self.goals).any(axis=1)
        self.goals = goals
        self.errands = np.where(new_goal[:, None], goals, self.errands)
        arrived = np.linalg.norm(states - self.errands, axis=1) < SUCCESS_PX / 2
        self.errands = np.where(arrived[:, None], _places(uniform[:2].T, layouts), self.errands)

        ahead = _waypoints(states, self.errands, layouts) - states
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
    episode, else 0.0. `info` holds "state" and "goal", (2,) float32 each, and "success"; in the
    look "walls" both are (5,), see above.
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


def _turned(points: np.ndarray, layouts: np.ndarray) -> np.ndarray:
    """(n, 2) x and y -> across the wall and along it, or back: swapped where the wall lies."""
    if layouts.ndim == 1:
        return points if layouts[2] else points[:, ::-1]
    return np.where(layouts[:, 2:] > 0, points, points[:, ::-1])


def _layout(generator: np.random.Generator) -> np.ndarray:
    """Draw a (3,) layout: place of the wall, of its door, and direction, each uniform."""
    low, high = np.transpose([WALLS_PX, DOORS_PX, (0, 1)])
    return generator.integers(low, high, endpoint=True).astype(np.float64)


def _places(uniform: np.ndarray, layouts: np.ndarray) -> np.ndarray:
    """Map (n, 2) uniform numbers to positions uniform over the two rooms of (n, 3) layouts, or of
    one."""
    x, y = LOW_PX + uniform.T * [[HIGH_PX - LOW_PX - 2 * REACH_PX], [HIGH_PX - LOW_PX]]
    x = x + 2 * REACH_PX * (x > layouts.T[0] - REACH_PX)
    return _turned(np.stack([x, y], axis=1), layouts)


def _waypoints(states: np.ndarray, targets: np.ndarray, layouts: np.ndarray) -> np.ndarray:
    """Where to head next: the target itself, or a point in front of the door, or one behind it when
    lined up with the door."""
    wall, door, _ = layouts.astype(np.float64).T
    x, y = _turned(states, layouts).T
    across, along = x - wall, y - door
    here, there = (
        np.where(across < 0, -1, 1),
        np.where(_turned(targets, layouts)[:, 0] < wall, -1, 1),
    )
    in_passage = np.abs(across) < REACH_PX
    lined_up = (np.abs(across) < REACH_PX + 12) & (np.abs(along) < PASSAGE_PX - 6)
    side = np.where(in_passage | lined_up, there, here)
    gates = np.stack([wall + side * (REACH_PX + 8), np.broadcast_to(door, len(states))], axis=1)
    headed = (in_passage | (here != there))[:, None]
    return np.where(headed, _turned(gates, layouts), targets)


gymnasium.register(
    "lewm/TwoRoom-v1", entry_point="lewm.worlds.two_room:TwoRoom", max_episode_steps=MAX_STEPS
)
