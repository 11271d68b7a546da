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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import dm_control
import gymnasium
import numpy as np

from lewm.contracts import Policy
from lewm.worlds.kit.batched import BatchedWorld
from lewm.worlds.kit.looks import color
from lewm.worlds.kit.offscreen import SceneLook, open_scene, opengl_explained
from lewm.worlds.kit.single import Single

with opengl_explained():
    import mujoco

__all__ = ["Reacher", "ReacherWorld"]

SUCCESS_RAD = 0.05
WRIST_LIMIT_RAD = np.deg2rad(160.0)
# of 0.02 s each; Source: `DMControlWrapper.action_repeat` of the public code, its data set
PHYSICS_STEPS, MAX_STEPS = 2, 200
STATE_NAMES = ("shoulder", "wrist", "shoulder velocity", "wrist velocity")


@dataclass(frozen=True)
class Factors(SceneLook):
    """What may be varied: how it is drawn, and the colour of the arm."""

    world: ClassVar[str] = "reacher"
    paints: ClassVar[Mapping[str, Sequence[str]]] = {"arm": ("arm_color",)}
    painted: ClassVar[Mapping[str, Sequence[str]]] = {"arm": ("self", "effector")}

    arm_color: str = color("b3804d")


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


class ReacherWorld(BatchedWorld):
    """B arms.

    Args:
        num_envs: B.
        image_size: height and width of the pictures, 16 or more.
        look: one of `offscreen.LOOKS`, or with another colour of the arm: "fast,arm_color=0000ff".
    """

    policies: ClassVar[tuple[str, ...]] = ("expert", "random")
    factors: Factors

    def __init__(self, num_envs: int, image_size: int = 224, look: str = "published") -> None:
        super().__init__(
            num_envs,
            image_size,
            Factors.parse(look),
            action_dim=2,
            state_names=STATE_NAMES,
            state_units=("rad", "rad", "rad/s", "rad/s"),
            max_steps=MAX_STEPS,
            criteria=("success", "unwrapped"),
        )
        self._scene = open_scene(
            load_model, image_size, "fixed", self.factors.drawing, self.factors.paint
        )
        self._model = load_model()
        self._arms = [mujoco.MjData(self._model) for _ in range(num_envs)]
        self.reset(range(num_envs))

    @property
    def states(self) -> np.ndarray:
        """(B, 4) float32 angles and velocities, a copy."""
        return np.array([[*arm.qpos, *arm.qvel] for arm in self._arms], np.float32)

    def reset(self, seeds: Sequence[int]) -> None:
        """Draw start and goal of environment i from `seeds[i]` alone: poses uniform, at rest, two
        tolerances apart or more."""
        states = np.zeros((self.num_envs, 4), np.float32)
        self._goals = np.zeros_like(states)
        for i, generator in enumerate(self._generators("reset", seeds, self.num_envs)):
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

    def _move(self, actions: np.ndarray) -> None:
        """Apply torques for 0.04 s."""
        for arm, action in zip(self._arms, actions, strict=True):
            arm.ctrl = action
            mujoco.mj_step(self._model, arm, PHYSICS_STEPS)

    def _draw(self, states: np.ndarray) -> np.ndarray:
        return self._scene.pictures(states[:, :2])

    def _met(self, criterion: str) -> np.ndarray:
        """Is each joint within 0.05 rad of its goal? Full turns count for "unwrapped" only, and
        velocities are never asked for."""
        apart = self.states[:, :2].astype(np.float64) - self._goals[:, :2]
        apart = apart if criterion == "unwrapped" else wrapped(apart)
        return np.asarray((np.abs(apart) < SUCCESS_RAD).all(axis=1))

    def _policy(self, name: str, drawing: list[np.random.Generator]) -> Policy:
        """ "expert" takes up the goal pose, then poses of its own choice, under noise of varying
        strength. "random" is the published data policy."""
        return _Expert(self, drawing)

    def _elsewhere(
        self, state: np.ndarray, things: Sequence[str], generator: np.random.Generator
    ) -> np.ndarray:
        """The "arm" in a pose that is uniform over all but the nearest, at rest."""
        poses = _poses(generator, 16)
        apart = np.abs(wrapped(poses - state[:2])).max(axis=1) >= 2 * SUCCESS_RAD
        return np.array([*poses[int(apart.argmax())], 0, 0])


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
    looks: ClassVar[tuple[str, ...]] = tuple(Factors.named)


def _poses(generator: np.random.Generator, count: int) -> np.ndarray:
    """(count, 2) angles, uniform over all poses: the original task's starts."""
    return generator.uniform(-1, 1, (count, 2)) * [np.pi, WRIST_LIMIT_RAD]


gymnasium.register(
    "lewm/Reacher-v1", entry_point="lewm.worlds.reacher:Reacher", max_episode_steps=MAX_STEPS
)
