"""Push-T: a round agent pushes a T-shaped block over a table to a goal pose, and must end near its
own goal place as well.

The world is the diffusion-policy one as world models use it: a table of 512 units between four
walls; an agent that follows its target under PD control and that no contact can stop; a block that
moves only while it is pushed (nothing slides on, nothing rubs). An action is the target's place
relative to the agent, in hundreds of units; a step is 0.1 s, ten steps of physics.

A state is (agent x, agent y, block x, block y, block angle, agent velocity x, agent velocity y), x
to the right and y down. The block's place is its body origin, in the middle of the bar's outer edge
and 45 units from its centre of gravity, about which it turns; its angle is in [0, 2 pi), 0 with the
stem pointing down. What a state does not hold is the velocity of a block that is being pushed,
which lives for one hundredth of a second, and the forces of its contacts: `set_states` puts it to
rest. Replays from frames of the expert's episodes are within 0.4 units after 25 steps in 90% of the
cases; one in a hundred is far off.

Unlike the published code, the agent's target is kept on the table, so that the agent is always in
the picture; `set_states` restores a state exactly instead of running physics for a moment; and
start and goal never overlap a wall or each other.

Source: the public environment `swm/PushT`; for the block of 30 units, DINO-WM's before it, which
the published data come from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pymunk

from lewm.contracts import Policy
from lewm.worlds.kit import pushing
from lewm.worlds.kit.batched import BatchedWorld
from lewm.worlds.kit.looks import Look, color, number
from lewm.worlds.kit.pushing import AGENT_RADIUS, BAR, GRAVITY_CENTRE, STEM, gravity_centre
from lewm.worlds.kit.raster import Box, Disc, Part, paint, rgb
from lewm.worlds.kit.single import Single

__all__ = ["PushT", "PushTWorld"]

# Source of every number without another note: the public environment. Lengths in units of the 512
# table.
WALL_NEAR, WALL_FAR, WALL_RADIUS = 5.0, 6.0, 2.0  # wall lines at 5 and at table - 6
# the radius that physics sees, outwards of the inner faces that are drawn; see `_Table`
WALL_PHYSICS = 100.0
GAIN, DAMPING = 100.0, 20.0  # of the PD control
PHYSICS_S, SUBSTEPS = 0.01, 10
SUCCESS, SUCCESS_RAD = 20.0, math.pi / 9
MAX_STEPS = 200  # published episodes have 196 on average


@dataclass(frozen=True)
class Factors(Look):
    """What may be varied. The defaults are the published world; "tiny" is a world that small models
    can read."""

    world: ClassVar[str] = "push-t"
    named: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "published": {},
        "tiny": {
            "agent_color": "00c8ff",
            "bar_color": "ff28c8",
            "stem_color": "ffd200",
            "goal_color": "none",
            "outline": 0.0,
            "halo": 30.0,
            "table": 320.0,
        },
    }
    paints: ClassVar[Mapping[str, Sequence[str]]] = {
        "agent": ("agent_color",),
        "block": ("bar_color", "stem_color"),
    }

    agent_color: str = color("4169e1")
    bar_color: str = color("778899")
    stem_color: str = color("778899")
    # of the T painted on the table, which is decoration and not the goal
    goal_color: str = color("90ee90", absent=True)
    wall_color: str = color("d3d3d3")
    floor_color: str = color("ffffff")
    # half width of the darker rim; 0 draws flat colours
    outline: float = number(2.0, "a number of units from 0 to 10", 0, 10)
    # radius of a paler disc around the agent, drawn under the block, so that it is not overlooked
    halo: float = number(0.0, "a number of units from 0 to 100", 0, 100)
    # side of the table; agent and block keep their size
    table: float = number(512.0, "a number of units from 256 to 4096", 256, 4096)


class _Table:
    """The physics of one environment. A new one for every state that is set, so that nothing of the
    past can matter."""

    def __init__(self, size: float, state: np.ndarray) -> None:
        self.space = pymunk.Space()
        # of the velocity that is left after a second: the block never slides on
        self.space.damping = 0.0
        # Inner faces as published, but thick: the agent, which nothing stops, could press the block
        # through thin ones.
        low, high = (
            WALL_NEAR + WALL_RADIUS - WALL_PHYSICS,
            size - WALL_FAR - WALL_RADIUS + WALL_PHYSICS,
        )
        corners = [(low, low), (high, low), (high, high), (low, high)]
        for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
            self.space.add(pymunk.Segment(self.space.static_body, start, end, WALL_PHYSICS))
        self.agent = pymunk.Body(body_type=pymunk.Body.KINEMATIC)
        self.block = pymunk.Body(1.0, pushing.INERTIA)
        self.block.center_of_gravity = (0.0, GRAVITY_CENTRE)
        agent_x, agent_y, block_x, block_y, angle, velocity_x, velocity_y = map(float, state)
        self.agent.position, self.agent.velocity = (agent_x, agent_y), (velocity_x, velocity_y)
        # The angle first: turning goes about the centre of gravity and moves the origin.
        self.block.angle = angle
        self.block.position = (block_x, block_y)
        self.space.add(self.agent, pymunk.Circle(self.agent, AGENT_RADIUS))
        parts = [
            pymunk.Poly(
                self.block, [(x - w, y - h), (x + w, y - h), (x + w, y + h), (x - w, y + h)]
            )
            for x, y, w, h in (BAR, STEM)
        ]
        self.space.add(self.block, *parts)

    def step(self, velocities: Sequence[Sequence[float]]) -> tuple[float, ...]:
        """Let the agent move at each of these velocities for one step of physics. Returns the new
        state, angle not wrapped."""
        agent, step = self.agent, self.space.step
        for velocity in velocities:
            agent.velocity = velocity  # type: ignore[assignment]
            step(PHYSICS_S)
        return (*agent.position, *self.block.position, self.block.angle, *agent.velocity)


class PushTWorld(BatchedWorld):
    """B Push-T environments stepped and drawn together.

    Args:
        num_envs: B.
        image_size: height and width of the pictures, 16 or more.
        look: "published", "tiny", or changed factors as in `WorldSpec.look`.
        max_steps: env steps at which collection cuts an episode.
        factors: changed factors by name, such as `agent_color="0000ff"`.
    """

    policies: ClassVar[tuple[str, ...]] = ("expert", "random", "weak")
    factors: Factors

    def __init__(
        self,
        num_envs: int,
        image_size: int = 224,
        look: str = "published",
        max_steps: int = MAX_STEPS,
        **factors: Any,
    ) -> None:
        super().__init__(
            num_envs,
            image_size,
            Factors.parse(look, **factors),
            action_dim=2,
            state_names=(
                "agent x",
                "agent y",
                "block x",
                "block y",
                "block angle",
                "agent velocity x",
                "agent velocity y",
            ),
            state_units=("unit", "unit", "unit", "unit", "rad", "unit/s", "unit/s"),
            max_steps=max_steps,
            criteria=("success", "block pose"),
        )
        self._painter = _Painter(self.factors, image_size)
        self._states = np.zeros((num_envs, 7), np.float32)
        self._tables: list[_Table] = []
        self.reset(range(num_envs))

    @property
    def states(self) -> np.ndarray:
        """(B, 7) float32, a copy; the order is that of `spec.state_names`."""
        return self._states.copy()

    def reset(self, seeds: Sequence[int]) -> None:
        """Draw start and goal of environment i from `seeds[i]` alone: at rest, nothing touching, no
        criterion met."""
        states = np.zeros((self.num_envs, 7), np.float32)
        for i, generator in enumerate(self._generators("reset", seeds, self.num_envs)):
            drawn = _wrapped(
                pushing.draw_states(generator, self.factors.table, count=64, margin=10)
            )
            met = _criteria(drawn, drawn[:1])["block pose"]
            states[i], self._goals[i] = drawn[0], drawn[int((~met).argmax())]
        self.set_states(states)

    def set_states(self, states: np.ndarray) -> None:
        """Restore (B, 7) finite states, the block at rest: what follows depends on them and on the
        actions alone."""
        self._states = self._rows("states", states, self.num_envs)
        self._tables = [_Table(self.factors.table, state) for state in self._states]

    def _move(self, actions: np.ndarray) -> None:
        """Send every agent towards its target for 0.1 s."""
        low, high = pushing.agent_range(self.factors.table)
        position, velocity = (
            self._states[:, :2].astype(np.float64),
            self._states[:, 5:].astype(np.float64),
        )
        targets = np.clip(
            position + pushing.REACH * actions,
            low,
            high,
        )
        # No contact moves the agent, so its motion is known before the physics runs.
        velocities = np.empty((self.num_envs, SUBSTEPS, 2))
        for k in range(SUBSTEPS):
            velocity = velocity + PHYSICS_S * (GAIN * (targets - position) - DAMPING * velocity)
            position = position + PHYSICS_S * velocity
            velocities[:, k] = velocity
        after = [
            table.step(way) for table, way in zip(self._tables, velocities.tolist(), strict=True)
        ]
        self._states = _wrapped(np.array(after))

    def _draw(self, states: np.ndarray) -> np.ndarray:
        return self._painter(states)

    def _met(self, criterion: str) -> np.ndarray:
        """ "success", the published one: (agent x, agent y, block x, block y) is less than 20 units
        from the goal's, which is one distance in four dimensions, and the angle, the short way
        round, less than 20 degrees. "block pose": the same of the block alone, wherever the agent
        is. Velocities play no part."""
        return _criteria(self._states, self._goals)[criterion]

    def _policy(self, name: str, drawing: list[np.random.Generator]) -> Policy:
        """ "expert" pushes the block to the goal pose and walks to its own goal place, then goes on
        to poses of its own choice; see `pushing.Expert`. "weak", a published data policy: uniform
        targets, kept within 100 units of the block on each axis."""
        if name == "expert":
            return pushing.Expert(self, drawing, self.factors.table)

        def weak() -> np.ndarray:
            actions = np.stack([generator.uniform(-1, 1, 2) for generator in drawing])
            return pushing.weak(self._states, actions).astype(np.float32)

        return weak

    def _elsewhere(
        self, state: np.ndarray, things: Sequence[str], generator: np.random.Generator
    ) -> np.ndarray:
        """ "agent", "block" or both 40 units or more away, a moved block turned anyhow.

        Uniform over what is legal: on the table, and the two do not touch.
        """
        while True:
            drawn = pushing.draw_states(generator, self.factors.table, count=64, margin=10)
            apart = drawn[:, :4] - state[:4]
            legal = np.ones(len(drawn), bool)
            for thing, place, whole in (
                ("agent", [0, 1], [0, 1, 5, 6]),
                ("block", [2, 3], [2, 3, 4]),
            ):
                if thing in things:
                    legal &= np.hypot(*apart[:, place].T) >= 2 * SUCCESS
                else:
                    drawn[:, whole] = state[whole]
            legal &= pushing.clearance(drawn, drawn[:, None, :2])[:, 0] > pushing.TOUCHING
            if legal.any():
                return _wrapped(drawn[legal][:1].astype(np.float32))[0]

    def _rows(self, what: str, values: np.ndarray, rows: int | None = None) -> np.ndarray:
        return _wrapped(super()._rows(what, values, rows))


class _Painter:
    """Draws states: the empty table, then the block, then the agent."""

    def __init__(self, factors: Factors, image_size: int) -> None:
        rim, self.extent = factors.outline, factors.table
        self.block = _tee(factors.bar_color, factors.stem_color, rim)
        pale = bytes(
            (int(ink) + int(floor)) // 2
            for ink, floor in zip(rgb(factors.agent_color), rgb(factors.floor_color))
        )
        self.halo = [Part(Disc(factors.halo), pale.hex())] if factors.halo else []
        self.agent = [Part(Disc(AGENT_RADIUS - rim), factors.agent_color, rim)]
        self.empty = np.empty((1, image_size, image_size, 3), np.uint8)
        self.empty[:] = rgb(factors.floor_color)
        if factors.goal_color != "none":
            pose = np.array([[0, 0, factors.table / 2, factors.table / 2, math.pi / 4]])
            paint(
                self.empty,
                _block_poses(pose),
                _tee(factors.goal_color, factors.goal_color),
                self.extent,
            )
        low, high = WALL_NEAR, factors.table - WALL_FAR
        middle, half = (low + high) / 2, (high - low) / 2 + WALL_RADIUS
        walls = [Box(line, middle, WALL_RADIUS, half) for line in (low, high)]
        walls += [Box(middle, line, half, WALL_RADIUS) for line in (low, high)]
        paint(
            self.empty,
            np.zeros((1, 3)),
            [Part(wall, factors.wall_color) for wall in walls],
            self.extent,
        )

    def __call__(self, states: np.ndarray) -> np.ndarray:
        pictures = np.repeat(self.empty, len(states), axis=0)
        agents = np.pad(states[:, :2], ((0, 0), (0, 1)))
        if self.halo:
            paint(pictures, agents, self.halo, self.extent)
        paint(pictures, _block_poses(states), self.block, self.extent)
        paint(pictures, agents, self.agent, self.extent)
        return pictures


class PushT(Single):
    """One Push-T environment: a batch of one behind the Gymnasium interface. Options as in
    `PushTWorld`.

    Observation: (h, w, 3) uint8 picture. Action: (2,) float32 in [-1, 1], the target's place
    relative to the agent, x right and y down, in hundreds of units. Reward: 1.0 on a step that ends
    in success, which also terminates the episode, else 0.0. `info` holds "state" and "goal", (7,)
    float32 each, "success" and "criteria".
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (gymnasium declares it an instance variable)
    world_class = PushTWorld
    policies: ClassVar[tuple[str, ...]] = PushTWorld.policies
    looks: ClassVar[tuple[str, ...]] = tuple(Factors.named)


def _block_poses(states: np.ndarray) -> np.ndarray:
    """(n, 3) x, y of the centre of gravity, about which parts are drawn, and the angle."""
    return np.column_stack([gravity_centre(states), states[:, 4]])


def _tee(bar_color: str, stem_color: str, rim: float = 0.0) -> list[Part]:
    colors = ((BAR, bar_color), (STEM, stem_color))
    return [Part(Box(x, y - GRAVITY_CENTRE, w, h), color, rim) for (x, y, w, h), color in colors]


def _criteria(states: np.ndarray, goals: np.ndarray) -> dict[str, np.ndarray]:
    apart = states[:, :4].astype(np.float64) - goals[:, :4]
    turned = np.abs(pushing.wrap(states[:, 4].astype(np.float64) - goals[:, 4])) < SUCCESS_RAD
    return {
        "success": (np.sqrt((apart * apart).sum(axis=1)) < SUCCESS) & turned,
        "block pose": (np.hypot(apart[:, 2], apart[:, 3]) < SUCCESS) & turned,
    }


def _wrapped(states: np.ndarray) -> np.ndarray:
    """A float32 copy whose block angles are in [0, 2 pi), also once they are rounded."""
    states = np.array(states, np.float64)
    states[:, 4] %= 2 * math.pi
    rounded = states.astype(np.float32)
    rounded[rounded[:, 4] >= np.float32(2 * math.pi), 4] = 0
    return rounded


gymnasium.register(
    "lewm/PushT-v1", entry_point="lewm.worlds.push_t:PushT", max_episode_steps=MAX_STEPS
)
