"""Reacher: an arm with two joints, seen from above, must take up a pose.

The world is DeepMind Control's: torques in [-1, 1] on shoulder and wrist, the wrist limited to 160
degrees either way, physics steps of 0.02 s. As published, one environment step is two of them (0.04
s) and the target sphere of the original task is not drawn: the goal is a pose, given as a picture.
A state is (shoulder, wrist, shoulder velocity, wrist velocity), the published columns `qpos` and
`qvel`; the shoulder turns freely and its angle counts full turns.

Success is each joint within 0.05 rad of its goal, velocities aside. The published test compares the
angles as they stand, so a shoulder that stands right but went round once more fails; ours wraps the
difference. The other is the criterion "unwrapped".

Source: `dm_control.suite.reacher`; LeWorldModel, sec. 4, and the public environment
`swm/ReacherDMControl-v0`, task `qpos_match`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import dm_control
import gymnasium
import mujoco
import numpy as np

from lewm.contracts import Policy, WorldSpec
from lewm.registry import choose
from lewm.worlds.kit.looks import read_look, turned_color
from lewm.worlds.kit.offscreen import LOOKS, open_scene
from lewm.worlds.kit.single import Single, finite_rows, generators

__all__ = ["Reacher", "ReacherWorld"]

SUCCESS_RAD = 0.05
WRIST_LIMIT_RAD = np.deg2rad(160.0)
# of 0.02 s each; Source: `DMControlWrapper.action_repeat` of the public code, its data set
PHYSICS_STEPS, MAX_STEPS = 2, 200
STATE_NAMES = ("shoulder", "wrist", "shoulder velocity", "wrist velocity")
# what can be painted: its colour, and what has it
COLORS, MATERIALS = {"arm": "b3804d"}, {"arm": ("self", "effector")}


def load_model() -> mujoco.MjModel:
    """DeepMind Control's arm without its target sphere."""
    model = mujoco.MjModel.from_xml_path(
        str(Path(dm_control.__path__[0]) / "suite" / "reacher.xml")
    )
    model.geom("target").group = 5  # a group that is not drawn
    return model


def wrapped(angles: np.ndarray) -> np.ndarray:
    """Angles in [-pi, pi)."""
    return (angles + np.pi) % (2 * np.pi) - np.pi


class ReacherWorld:
    """B arms; fulfils the role `contracts.World`. Start, goal and policy noise of environment i
    come from its own seed.

    Args:
        num_envs: B.
        image_size: height and width of the pictures, 16 or more.
        look: one of `offscreen.LOOKS`, or with another colour of the arm: "fast,arm_color=0000ff".
    """

    policies: ClassVar[tuple[str, ...]] = ("expert", "random")

    def __init__(self, num_envs: int, image_size: int = 224, look: str = "published") -> None:
        if num_envs < 1 or image_size < 16:
            raise ValueError(
                f"expected num_envs >= 1 and image_size >= 16, got {num_envs} and {image_size}."
            )
        units = ("rad", "rad", "rad/s", "rad/s")
        look, named, painted = read_look("reacher", look, LOOKS, COLORS)
        self.spec = WorldSpec(
            "reacher", "1", image_size, (-1.0, -1.0), (1.0, 1.0), STATE_NAMES, units, MAX_STEPS,
            look, criteria=("success", "unwrapped"), things=tuple(COLORS),
        )  # fmt: skip
        self.num_envs = num_envs
        self._colors = COLORS | painted
        paint = tuple(
            (material, color) for thing, color in painted.items() for material in MATERIALS[thing]
        )
        self._scene = open_scene(load_model, image_size, "fixed", named, paint)
        self._model = load_model()
        self._arms = [mujoco.MjData(self._model) for _ in range(num_envs)]
        self._goals = np.zeros((num_envs, 4), np.float32)
        self.reset(range(num_envs))

    @property
    def states(self) -> np.ndarray:
        """(B, 4) float32 angles and velocities, a copy."""
        return np.array([[*arm.qpos, *arm.qvel] for arm in self._arms], np.float32)

    @property
    def goals(self) -> np.ndarray:
        """(B, 4) float32 goal states, a copy."""
        return self._goals.copy()

    def reset(self, seeds: Sequence[int]) -> None:
        """Draw start and goal of environment i from `seeds[i]` alone: poses uniform, at rest, two
        tolerances apart or more."""
        states = np.zeros((self.num_envs, 4), np.float32)
        self._goals = np.zeros_like(states)
        for i, generator in enumerate(self._generators("reset", seeds)):
            start, *others = _poses(generator, 16)
            apart = np.abs(wrapped(others - start)).max(axis=1) >= 2 * SUCCESS_RAD
            states[i, :2], self._goals[i, :2] = start, others[int(apart.argmax())]
        self.set_states(states)

    def set_states(self, states: np.ndarray) -> None:
        """Put the arms into (B, 4) finite states: a teleport."""
        for arm, state in zip(self._arms, self._rows("states", states, self.num_envs), strict=True):
            # also forgets where the constraint solver left off
            mujoco.mj_resetData(self._model, arm)
            arm.qpos, arm.qvel = state[:2], state[2:]

    def set_goals(self, goals: np.ndarray) -> None:
        """Set the goals to (B, 4) finite states; their velocities are kept and never asked for."""
        self._goals = self._rows("goals", goals, self.num_envs).copy()

    def step(self, actions: np.ndarray) -> None:
        """Apply torques for 0.04 s; (B, 2) actions are clipped to [-1, 1] and NaN counts as 0."""
        actions = np.asarray(actions, np.float64)
        if actions.shape != (self.num_envs, 2):
            raise ValueError(
                f"actions must have shape ({self.num_envs}, 2), one row per environment, got "
                f"{actions.shape}."
            )
        for arm, action in zip(
            self._arms, np.clip(np.nan_to_num(actions, nan=0.0), -1.0, 1.0), strict=True
        ):
            arm.ctrl = action
            mujoco.mj_step(self._model, arm, PHYSICS_STEPS)

    def render(self, states: np.ndarray | None = None) -> np.ndarray:
        """Draw (n, 4) given states, or the current ones: (n, h, w, 3) uint8, new memory each time.

        The current ones are drawn from `states`, rounded to float32, too: equal states give equal
        pictures.
        """
        states = self.states if states is None else self._rows("states", states)
        size = self.spec.image_size
        pictures = np.empty((len(states), size, size, 3), np.uint8)
        for picture, state in zip(pictures, states, strict=True):
            self._scene.draw(state[:2], picture)
        return pictures

    def success(self, criterion: str | None = None) -> np.ndarray:
        """(B,) bool: is each joint within 0.05 rad of its goal now? Full turns count for
        "unwrapped" only."""
        criterion = choose(
            "success criterion of reacher", criterion or self.spec.criteria[0], self.spec.criteria
        )
        apart = self.states[:, :2].astype(np.float64) - self._goals[:, :2]
        apart = apart if criterion == "unwrapped" else wrapped(apart)
        return np.asarray((np.abs(apart) < SUCCESS_RAD).all(axis=1))

    def policy(self, name: str, seeds: Sequence[int]) -> Policy:
        """A policy bound to this world, environment i driven by `seeds[i]` alone; make a new one
        for new episodes.

        "expert" takes up the goal pose, then poses of its own choice, under noise of varying
        strength. "random" is uniform over the action box, the published data policy.
        """
        generators = self._generators(choose("policy of reacher", name, self.policies), seeds)
        if name == "expert":
            return _Expert(self, generators)
        return lambda: np.stack([generator.uniform(-1, 1, 2) for generator in generators]).astype(
            np.float32
        )

    def regions(self, states: np.ndarray) -> None:
        """None: the arm's world has no regions."""

    def teleport(
        self, things: Sequence[str], states: np.ndarray, seeds: Sequence[int]
    ) -> np.ndarray:
        """The (n, 4) states with the "arm" in a pose that is uniform over all but the nearest, at
        rest."""
        states = self._rows("states", states, len(seeds)).copy()
        if not {choose("thing of reacher", thing, self.spec.things) for thing in things}:
            return states
        for i, generator in enumerate(
            generators(("reset", *self.policies, "teleport"), "teleport", seeds, len(states))
        ):
            poses = _poses(generator, 16)
            apart = np.abs(wrapped(poses - states[i, :2])).max(axis=1) >= 2 * SUCCESS_RAD
            states[i] = *poses[int(apart.argmax())], 0, 0
        return states

    def recoloured(self, thing: str, turn: float = 0.5) -> str:
        """The look of this world with another colour of the "arm"."""
        color = self._colors[choose("thing of reacher", thing, self.spec.things)]
        return f"{self.spec.look},{thing}_color={turned_color(color, turn)}"

    def _generators(self, purpose: str, seeds: Sequence[int]) -> list[np.random.Generator]:
        return generators(("reset", *self.policies), purpose, seeds, self.num_envs)

    def _rows(self, what: str, values: np.ndarray, rows: int | None = None) -> np.ndarray:
        return finite_rows(what, values, self.spec.state_names, rows)


class _Expert:
    """Ours: a proportional-derivative controller that takes up the goal pose, then poses of its own
    choice, noisily.

    The shoulder takes the shorter way round. Each errand draws its own noise, white, of a std
    uniform in [0, `noise_std`]: the calm ones show precise arrivals, the wild ones what any torque
    does anywhere.
    """

    # action per rad and per rad/s, for shoulder and wrist
    gains = np.array([[3.0, 1.5], [0.45, 0.02]])
    noise_std = 1.0

    def __init__(self, world: ReacherWorld, generators: list[np.random.Generator]) -> None:
        self.world, self.generators = world, generators
        self.goals = np.full((world.num_envs, 2), np.nan)
        self.errands = np.zeros((world.num_envs, 2))
        self.noise = np.zeros((world.num_envs, 1))

    def __call__(self) -> np.ndarray:
        states, goals = self.world.states.astype(np.float64), self.world.goals[:, :2]
        new_goal = (goals != self.goals).any(axis=1)
        self.goals = goals
        self.errands = np.where(new_goal[:, None], goals, self.errands)
        arrived = (np.abs(self._ahead(states)) < SUCCESS_RAD).all(axis=1) & ~new_goal
        white = np.empty((len(states), 2))
        for i, generator in enumerate(self.generators):
            if arrived[i]:
                self.errands[i] = _poses(generator, 1)[0]
            if arrived[i] or new_goal[i]:
                self.noise[i] = generator.uniform(0, self.noise_std)
            white[i] = generator.standard_normal(2)
        wanted = self.gains[0] * self._ahead(states) - self.gains[1] * states[:, 2:]
        return np.clip(wanted + self.noise * white, -1, 1).astype(np.float32)

    def _ahead(self, states: np.ndarray) -> np.ndarray:
        """(B, 2) angles from here to the errand; the wrist has stops and cannot go the other way
        round."""
        ahead = self.errands - states[:, :2]
        return np.stack([wrapped(ahead[:, 0]), ahead[:, 1]], axis=1)


class Reacher(Single):
    """One arm: a batch of one behind the Gymnasium interface. Options as in `ReacherWorld`.

    Observation: (h, w, 3) uint8 picture. Action: (2,) float32 torques of shoulder and wrist in [-1,
    1]. Reward: 1.0 on a step that ends with each joint within 0.05 rad of the goal, which also
    terminates the episode, else 0.0. `info` holds "state" and "goal", (4,) float32 each, "success"
    and "criteria".
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012 (gymnasium declares it an instance variable)
    world_class = ReacherWorld
    policies: ClassVar[tuple[str, ...]] = ReacherWorld.policies
    looks: ClassVar[tuple[str, ...]] = LOOKS


def _poses(generator: np.random.Generator, count: int) -> np.ndarray:
    """(count, 2) angles, uniform over all poses: the original task's starts."""
    return generator.uniform(-1, 1, (count, 2)) * [np.pi, WRIST_LIMIT_RAD]


gymnasium.register(
    "lewm/Reacher-v1", entry_point="lewm.worlds.reacher:Reacher", max_episode_steps=MAX_STEPS
)
