"""Pushing a T over a table with a round agent: the T, what a push does to it, and policies that
push it about.

The mechanics is that of Push-T: contacts have no friction and the block keeps no speed. So a
contact that moves the block by d along the face's inward normal, at lever arm l about the centre of
gravity, turns it by d l / INERTIA. That is exact, and lets a policy choose contacts for what they
do.

What the data policies cover, in 64 episodes of 200 steps (`python -m lewm.benchmarks.push_t
--coverage`); turns and ways are medians over all pairs of frames so far apart, "pushing" over those
that touch in more than half of the frames between:

| policy, look      | touches | turns per 15 (pushing) / 25 | moves per 25 | beyond tolerance in 25
| meets goal / block pose |
|-------------------|---------|-----------------------------|--------------|------------------------|-------------------------|
| expert, tiny      | 38%     | 11 (29) / 20 degrees        | 35 units     | 73%
| 70% / 78%               |
| weak, tiny        | 34%     | 11 (21) / 17                | 59           | 85%
| 0 / 3%                  |
| random, tiny      | 9%      | 0 (27) / 1                  | 2            | 34%
| 0 / 0                   |
| expert, published | 38%     | 8 (25) / 16                 | 42           | 71%
| 66% / 78%               |
| weak, published   | 29%     | 10 (25) / 16                | 61           | 81%
| 0 / 0                   |
| random, published | 4%      | 0 (27) / 0                  | 0            | 16%
| 0 / 0                   |

Rows of states are (agent x, agent y, block x, block y, block angle, agent velocity x, agent
velocity y) in units, rad, units/s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lewm.contracts import World

__all__ = [
    "Expert",
    "agent_range",
    "clearance",
    "draw_states",
    "gravity_centre",
    "turned",
    "weak",
    "wrap",
]

# Source of every number without another note: the public environment. The block's own frame has its
# origin at `block x, y`.
AGENT_RADIUS = 15.0
BAR = (0.0, 15.0, 60.0, 15.0)  # middle x, y and half width, height
STEM = (0.0, 75.0, 15.0, 45.0)
# along the block's y: the mean of the two parts' middles, as published, not weighted by their areas
GRAVITY_CENTRE = 45.0
INERTIA = 3000.0  # at mass 1; as published, twice the bar's moment about the block's origin
REACH = 100.0  # distance of the agent's target at an action of 1

# units of distance that a radian counts as: the block's radius of gyration
TURN = math.sqrt(INERTIA)
STAND_OFF = AGENT_RADIUS + 6  # distance from the block at which an agent walks around it
TOUCHING = AGENT_RADIUS + 3  # one farther off passes by without a touch
CHOOSE, WALK, PUSH, HOME = range(4)


class Expert:
    """Push the block to a pose, by contacts chosen for it, then on to another; first of all to the
    goal. With noise.

    Of the places around the block the policy draws one whose push leads towards the aim and which
    is not far. It walks there around the block without touching it, and pushes for 12 to 32 steps,
    or until the block is there or (on the way to the goal) this push leads no nearer. 70% of the
    pushes keep to the place on the block, the others keep straight on and slip. When the block has
    met its goal the agent walks to its own goal place; after that, aims are poses of its own choice
    in the middle of the table, turned by 60 to 180 degrees. A quarter of the episodes are the weak
    policy's.

    All environments advance together, by elementwise arithmetic: one's actions depend on its own
    states and generator alone.

    Args:
        world: whose `states` and `goals` are rows as above.
        generators: one per environment.
        table: side of the table.
    """

    keeps_share, weak_share = 0.7, 0.25
    noise_std = 0.06
    block = 64  # steps of random numbers drawn at once, to call each generator rarely

    def __init__(self, world: World, generators: list[np.random.Generator], table: float) -> None:
        self.world, self.generators, self.table = world, generators, table
        B, self.step = world.num_envs, 0
        self.weak = np.array([generator.random() < self.weak_share for generator in generators])
        self.goals = np.full((B, 7), np.nan, np.float32)
        self.aims = np.zeros((B, 3))  # where the centre of gravity should be, and the angle
        self.to_goal = np.ones(B, bool)  # is the aim the goal's?
        self.mode = np.full(B, CHOOSE)
        self.left = np.zeros(B, np.intp)  # steps until the present walk or push is given up
        self.place, self.way_round = np.zeros((2, B), np.intp)  # where to push, and +1 or -1
        # how far ahead of the agent its target is: the agent's speed is five times that per second
        self.lead = np.zeros(B)
        self.keeps, self.heading = np.zeros(B, bool), np.zeros((B, 2))

    def __call__(self) -> np.ndarray:
        """(B, 2) float32 actions in [-1, 1]."""
        uniform, normal = self._draw()
        scene = Scene.of(self.world.states, self.table)
        self._notice_new_goals()
        self._finish(scene, uniform)
        self._choose(scene, uniform)
        walk = self._walk(scene)
        self._arrive(scene, uniform)
        steer = (
            np.where((self.mode == PUSH)[:, None], self._push(scene), walk) / REACH
            + self.noise_std * normal
        )
        bump = weak(self.world.states, 2 * uniform[:, 2:4] - 1)
        return np.clip(np.where(self.weak[:, None], bump, steer), -1, 1).astype(np.float32)

    def _draw(self) -> tuple[np.ndarray, np.ndarray]:
        """This step's (B, 8 + places) uniform and (B, 2) normal numbers."""
        k = self.step % self.block
        if k == 0:
            shape = (self.block, 8 + len(PLACES))
            self._uniform = np.stack(
                [generator.random(shape) for generator in self.generators], axis=1
            )
            self._normal = np.stack(
                [generator.standard_normal((self.block, 2)) for generator in self.generators],
                axis=1,
            )
        self.step += 1
        return self._uniform[k], self._normal[k]

    def _notice_new_goals(self) -> None:
        goals = self.world.goals
        changed = (goals != self.goals).any(axis=1)
        self.goals = goals
        self._aim_at(changed, np.column_stack([gravity_centre(goals), goals[:, 4]]), to_goal=True)

    def _aim_at(self, rows: np.ndarray, aims: np.ndarray, to_goal: bool) -> None:
        self.aims = np.where(rows[:, None], aims, self.aims)
        self.to_goal = np.where(rows, to_goal, self.to_goal)
        self.mode = np.where(rows, CHOOSE, self.mode)

    def _error(self, scene: Scene) -> np.ndarray:
        """(B, 3) what is missing to the aim: x, y and angle, all three in units of distance."""
        return np.column_stack(
            [self.aims[:, :2] - scene.centre, TURN * wrap(self.aims[:, 2] - scene.angle)]
        )

    def _finish(self, scene: Scene, uniform: np.ndarray) -> None:
        """End the walks and pushes that are over, and set new aims where the old ones are met."""
        error, spot, normal = (
            self._error(scene),
            scene.spots[scene.rows, self.place],
            scene.normals[scene.rows, self.place],
        )
        met = (np.hypot(error[:, 0], error[:, 1]) < 10) & (np.abs(error[:, 2]) < 10)
        self.left -= 1
        useless = (progress(error, normal, scene.agent - scene.centre) <= 0) & (
            self.to_goal | (self.left < 12)
        )
        slipped = _distance(spot, scene.agent) > 3 * AGENT_RADIUS
        pushed = (self.mode == PUSH) & ((self.left <= 0) | useless | slipped | met)
        lost = (self.mode == WALK) & (self.left <= 0)
        self.mode = np.where(pushed | lost, CHOOSE, self.mode)

        home = (self.mode == HOME) & (
            (_distance(scene.agent, self.goals[:, :2]) < 8) | (self.left <= 0)
        )
        there = (self.mode == CHOOSE) & met & self.to_goal
        places = 100 + (self.table - 200) * uniform[:, 4:6]
        turns = np.where(uniform[:, 6] < 0.5, -1, 1) * (1 / 3 + 2 / 3 * uniform[:, 7]) * math.pi
        next_aim = home | ((self.mode == CHOOSE) & met & ~self.to_goal)
        self._aim_at(next_aim, np.column_stack([places, scene.angle + turns]), to_goal=False)
        self.mode = np.where(there, HOME, self.mode)
        self.left = np.where(there, 40, self.left)

    def _choose(self, scene: Scene, uniform: np.ndarray) -> None:
        """Draw the next place to push at: the better its push, and the shorter the way around the
        block, the likelier."""
        rows = self.mode == CHOOSE
        error = self._error(scene)
        forward, back = scene.ways(1), scene.ways(-1)
        way = np.minimum(forward, back)
        gains = progress(error[:, None], scene.normals, scene.spots - scene.centre[:, None])
        gains = gains / np.maximum(np.sqrt((error * error).sum(axis=1)), 1e-9)[:, None]
        K = len(PLACES)
        score = (
            gains - 0.6 * way / K - np.where(PUSHABLE & scene.free, 0, 10) - np.where(way < K, 0, 5)
        )
        # the argmax is then a draw from the softmax
        gumbel = -np.log(-np.log(np.clip(uniform[:, 8:], 1e-12, 1 - 1e-12)))
        best = np.argmax(score + 0.08 * gumbel, axis=1)
        shorter = np.where(forward[scene.rows, best] <= back[scene.rows, best], 1, -1)
        self.place = np.where(rows, best, self.place)
        self.way_round = np.where(rows, shorter, self.way_round)
        self.left = np.where(rows, 40, self.left)
        self.keeps = np.where(rows, uniform[:, 0] < self.keeps_share, self.keeps)
        self.lead = np.where(rows, 20 + 25 * uniform[:, 1], self.lead)
        self.mode = np.where(rows, WALK, self.mode)

    def _walk(self, scene: Scene) -> np.ndarray:
        """(B, 2) where to, relative to the agent: straight on where nothing is in the way, else to
        the next place around."""
        homing, K = self.mode == HOME, len(PLACES)
        target = np.where(homing[:, None], self.goals[:, :2], scene.spots[scene.rows, self.place])
        ahead = (
            np.argmin(((scene.spots - target[:, None]) ** 2).sum(axis=2), axis=1) - scene.nearest
        ) % K
        way_round = np.where(homing, np.where(ahead <= K // 2, 1, -1), self.way_round)
        straight = _is_clear(scene.states, scene.agent, target)
        beside = scene.spots[scene.rows, (scene.nearest + way_round) % K]
        way = np.where(straight[:, None], target, beside) - scene.agent
        length = np.maximum(np.hypot(way[:, 0], way[:, 1]), 1e-9)
        pace = np.where(homing, 40.0, self.lead)
        # no halt at a place in passing
        return way * (np.where(straight, np.minimum(pace, length), pace) / length)[:, None]

    def _arrive(self, scene: Scene, uniform: np.ndarray) -> None:
        """Begin to push where the walk is over."""
        here = (self.mode == WALK) & (
            _distance(scene.spots[scene.rows, self.place], scene.agent) < 7
        )
        self.mode = np.where(here, PUSH, self.mode)
        self.left = np.where(here, 12 + (21 * uniform[:, 0]).astype(np.intp), self.left)
        self.lead = np.where(here, 8 + 22 * uniform[:, 1], self.lead)
        self.heading = np.where(here[:, None], scene.normals[scene.rows, self.place], self.heading)

    def _push(self, scene: Scene) -> np.ndarray:
        """(B, 2) where to, relative to the agent: along the normal and back to the chosen place, or
        straight on."""
        normal = scene.normals[scene.rows, self.place]
        back = scene.spots[scene.rows, self.place] - scene.agent
        back = back - normal * (back * normal).sum(axis=1, keepdims=True)
        return np.where(
            self.keeps[:, None],
            normal * self.lead[:, None] + back,
            self.heading * self.lead[:, None],
        )


@dataclass(frozen=True)
class Scene:
    """What the policy sees of the present states: where things are, and the K places around each
    block.

    Attributes:
        states: (B, 7) float64.
        agent, centre: (B, 2) the agent, and the block's centre of gravity.
        angle: (B,) of the block.
        spots, normals: (B, K, 2) the places, and the inward normals of the faces beside them, on
            the table.
        free: (B, K) is the place on the table?
        nearest: (B,) the place nearest to the agent.
    """

    states: np.ndarray
    agent: np.ndarray
    centre: np.ndarray
    angle: np.ndarray
    spots: np.ndarray
    normals: np.ndarray
    free: np.ndarray
    nearest: np.ndarray

    @classmethod
    def of(cls, states: np.ndarray, table: float) -> Scene:
        states = states.astype(np.float64)
        agent, angle, centre = states[:, :2], states[:, 4], gravity_centre(states)
        spots = centre[:, None] + turned(PLACES, angle)
        low, high = agent_range(table)
        free = ((spots >= low) & (spots <= high)).all(axis=2)
        nearest = np.argmin(((spots - agent[:, None]) ** 2).sum(axis=2), axis=1)
        return cls(states, agent, centre, angle, spots, turned(NORMALS, angle), free, nearest)

    @property
    def rows(self) -> np.ndarray:
        return np.arange(len(self.states))

    def ways(self, way_round: int) -> np.ndarray:
        """(B, K) places to go by to each place, this way round from the nearest; K where one on the
        way is off the table."""
        K = self.free.shape[1]
        around = (self.nearest[:, None] + way_round * np.arange(K)) % K
        passable = np.take_along_axis(self.free, around, axis=1)
        passable[:, 0] = True
        ways = np.empty(around.shape, np.intp)
        np.put_along_axis(
            ways, around, np.where(np.cumprod(passable, axis=1), np.arange(K), K), axis=1
        )
        return ways


def progress(error: np.ndarray, normals: np.ndarray, arms: np.ndarray) -> np.ndarray:
    """How far a push leads towards an aim: the block's motion per unit length of itself, times the
    error.

    Args:
        error: (..., 3) missing x, y and angle, the angle times `TURN`.
        normals: (..., 2) inward normals at the contacts; zero makes no push.
        arms: (..., 2) contacts relative to the centre of gravity, or any points on the line of the
            push.
    """
    lever = (arms[..., 0] * normals[..., 1] - arms[..., 1] * normals[..., 0]) / TURN
    length = np.sqrt((normals * normals).sum(axis=-1) + lever * lever)
    gain = error[..., 0] * normals[..., 0] + error[..., 1] * normals[..., 1] + error[..., 2] * lever
    return gain / np.maximum(length, 1e-9)


def weak(states: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Bend (n, 2) uniform actions as the published weak policy does: targets within 100 units of
    the block on each axis."""
    agent, block = states[:, :2].astype(np.float64), states[:, 2:4].astype(np.float64)
    targets = np.clip(agent + REACH * actions, block - 100, block + 100)
    return np.clip((targets - agent) / REACH, -1, 1)


def draw_states(
    generator: np.random.Generator, table: float, count: int, margin: float
) -> np.ndarray:
    """(count, 7) states at rest: the whole block `margin` or more from the table's edges, the agent
    free of it. Uniform."""
    corners = np.array(
        [[x + i * w, y + j * h] for x, y, w, h in (BAR, STEM) for i in (-1, 1) for j in (-1, 1)]
    )
    found = np.zeros((0, 7))
    while len(found) < count:
        drawn = np.zeros((4 * count, 7))
        drawn[:, :2] = generator.uniform(2 * AGENT_RADIUS, table - 2 * AGENT_RADIUS, (4 * count, 2))
        drawn[:, 2:4] = generator.uniform(margin, table - margin, (4 * count, 2))
        drawn[:, 4] = generator.uniform(0, 2 * math.pi, 4 * count)
        outline = drawn[:, None, 2:4] + turned(corners, drawn[:, 4])
        legal = ((outline > margin) & (outline < table - margin)).all(axis=(1, 2))
        legal &= clearance(drawn, drawn[:, None, :2])[:, 0] > TOUCHING
        found = np.concatenate([found, drawn[legal]])
    return found[:count]


def agent_range(table: float) -> tuple[float, float]:
    """Least and greatest x or y at which the agent is wholly on the table."""
    return AGENT_RADIUS, table - AGENT_RADIUS


def gravity_centre(states: np.ndarray) -> np.ndarray:
    """(n, 2) float64 centres of gravity of the blocks."""
    x, y, angle = states[:, 2:5].astype(np.float64).T
    return np.stack(
        [x - GRAVITY_CENTRE * np.sin(angle), y + GRAVITY_CENTRE * np.cos(angle)], axis=1
    )


def clearance(states: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(n, k) distances of (n, k, 2) points from the block of each state, 0 inside; the agent
    touches at `AGENT_RADIUS`."""
    x, y = (points - states[:, None, 2:4]).transpose(2, 0, 1)
    cos, sin = np.cos(states[:, 4])[:, None], np.sin(states[:, 4])[:, None]
    x, y = cos * x + sin * y, cos * y - sin * x
    return np.minimum(
        *(
            np.hypot(np.maximum(np.abs(x - a) - w, 0), np.maximum(np.abs(y - b) - h, 0))
            for a, b, w, h in (BAR, STEM)
        )
    )


def turned(points: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """(K, 2) points turned about the origin by each of (n,) angles: (n, K, 2)."""
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    x, y = points.T
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=2)


def wrap(angles: np.ndarray) -> np.ndarray:
    """The same angles in [-pi, pi)."""
    return (angles + math.pi) % (2 * math.pi) - math.pi


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.hypot(a[:, 0] - b[:, 0], a[:, 1] - b[:, 1])


def _is_clear(states: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """(n,) bool: can the agent walk straight from `start` to `end` without touching the block?"""
    share = np.linspace(0, 1, 16)[None, :, None]
    distance = clearance(states, start[:, None] * (1 - share) + end[:, None] * share)
    # one that stands closer already may leave
    leaves = distance >= np.minimum(TOUCHING, distance[:, :1] - 0.1)
    return leaves.all(axis=1) & (distance[:, -1] > AGENT_RADIUS)


def _places() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places around the block, in order: (K, 2) relative to its centre of gravity; inward normals;
    is there a face to push?"""
    off, corner = STAND_OFF, 0.75 * STAND_OFF  # past a corner a little less far out, diagonally
    right: list[tuple[float, float, int, int]] = [
        *((x, -off, 0, 1) for x in (0, 12, 24, 36, 48)),  # the bar's outer edge
        (60 + corner, -corner, 0, 0),
        *((60 + off, y, -1, 0) for y in (6, 15, 24)),  # the bar's end
        (60 + corner, 30 + corner, 0, 0),
        *((x, 30 + off, 0, -1) for x in (55, 46, 15 + off + 1)),  # the bar's inner edge
        *((15 + off, y, -1, 0) for y in (60, 72, 84, 96, 110)),  # the stem
        (15 + corner, 120 + corner, 0, 0),
        *((x, 120 + off, 0, -1) for x in (8, 0)),  # the stem's end
    ]
    left = [(-x, y, -nx, ny) for x, y, nx, ny in right[-2:0:-1]]
    places = np.array(right + left, np.float64)
    return places[:, :2] - [0, GRAVITY_CENTRE], places[:, 2:], np.abs(places[:, 2:]).sum(axis=1) > 0


PLACES, NORMALS, PUSHABLE = _places()
