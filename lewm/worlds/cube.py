"""Cube: a robot arm with a gripper must put a cube where the goal picture shows it.

The world is OGBench's `cube-single`: a UR5e arm over a table, 20 control steps per second. An
action is (x, y, z, yaw, gripper) in [-1, 1]: the wanted motion of the gripper, in units of 5 cm,
0.3 rad and its whole opening. As the LeWorldModel data show it, the camera is `front_pixels`, the
arm opaque, the gripper purple, and no mark on the table shows the target.

A state is MuJoCo's `qpos` and `qvel`, the published columns of these names, then six variables that
follow from them and are there to be read and probed (`set_states` ignores them): effector x, y, z
and yaw, gripper opening, block yaw. Not in a state: the joint targets of the step before, which
each action replaces, and the contact solver's warm start. A state set anew is drawn exactly and
goes on as before to within the solver's tolerance.

Success is the block within 0.04 m of its place in the goal state, whatever its yaw and wherever the
arm is.

Source: OGBench (2410.20092), `ogbench.manipspace`; LeWorldModel, sec. 4, and the public environment
`swm/OGBCube-v0`.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np

from lewm.contracts import Policy
from lewm.worlds.kit.batched import BatchedWorld
from lewm.worlds.kit.looks import color
from lewm.worlds.kit.offscreen import (
    SceneLook,
    find_backend,
    once_per_thread,
    open_scene,
    opengl_explained,
)
from lewm.worlds.kit.single import Single

with opengl_explained():
    import mujoco

__all__ = ["Cube", "CubeWorld"]

# it is imported later, when a GL is chosen: it looks for one on import
if importlib.util.find_spec("ogbench") is None:
    raise ModuleNotFoundError("No module named 'ogbench'", name="ogbench")

SUCCESS_M, MAX_STEPS = 0.04, 200
GRIPPER_RAD = 0.8  # of the driver joint, fully closed; Source: `ManipSpaceEnv.compute_ob_info`
CONTACT_N = 50.0  # force on a finger pad that counts as 1; Source: the same

ARM = ("shoulder pan", "shoulder lift", "elbow", "wrist 1", "wrist 2", "wrist 3")
GRIPPER = tuple(
    f"{side} {joint}"
    for side in ("right", "left")
    for joint in ("driver", "coupler", "spring link", "follower")
)
QPOS = (
    *ARM,
    *GRIPPER,
    "block x",
    "block y",
    "block z",
    "block qw",
    "block qx",
    "block qy",
    "block qz",
)
QVEL = (
    *(f"{joint} velocity" for joint in (*ARM, *GRIPPER)),
    *(f"block {kind}{axis}" for kind in "vw" for axis in "xyz"),
)
READ = ("effector x", "effector y", "effector z", "effector yaw", "gripper opening", "block yaw")
STATE_NAMES = (*QPOS, *QVEL, *READ)
STATE_UNITS = (
    *("rad",) * 14, *("m",) * 3, *("1",) * 4,
    *("rad/s",) * 14, *("m/s",) * 3, *("rad/s",) * 3,
    *("m",) * 3, "rad", "1", "rad",
)  # fmt: skip
NQ, NQV = len(QPOS), len(QPOS) + len(QVEL)
BLOCK = slice(14, 17)  # where `qpos` has the block's position; its quaternion follows
# where `qpos` and `qvel` have them
JOINTS = {"arm": (slice(0, 14), slice(0, 14)), "block": (slice(14, 21), slice(14, 20))}
# between block and gripper after a teleport; the open gripper's fingers are some 5 cm away from its
# middle
CLEAR_M = 0.1


@dataclass(frozen=True)
class Factors(SceneLook):
    """What may be varied: how it is drawn, and colours; of the arm that of its gripper, as in the
    public environment."""

    world: ClassVar[str] = "cube"
    paints: ClassVar[Mapping[str, Sequence[str]]] = {
        "arm": ("arm_color",),
        "block": ("block_color",),
    }
    painted: ClassVar[Mapping[str, Sequence[str]]] = {
        "arm": ("ur5e/robotiq/black", "ur5e/robotiq/pad_gray"),
        "block": ("object_0",),
    }

    arm_color: str = color("9c47d1")
    block_color: str = color("f54254")


class Simulator:
    """OGBench's environment as a library: the compiled model, inverse kinematics, and what can be
    read off an `mujoco.MjData`.

    It acts on whatever data it is pointed at, so one serves all worlds of a thread (compiling takes
    seconds).
    """

    def __init__(self) -> None:
        find_backend()
        from ogbench.manipspace.envs.cube_env import CubeEnv

        self._env = CubeEnv(
            "single", ob_type="states", mode="data_collection", visualize_info=False
        )
        self._env.reset(seed=0)  # compiles
        self.model = self._env.model
        # Source: `agent.color` of the public environment's `CubeEnv`
        for material in ("black", "pad_gray"):
            self.model.material(f"ur5e/robotiq/{material}").rgba[:3] = self._env._colors["purple"][
                :3
            ]
        self.arm_bounds, self.block_bounds = (
            self._env._arm_sampling_bounds,
            self._env._target_sampling_bounds,
        )
        self._pinch, self._pad = (
            self._env._pinch_site_id,
            self.model.body("ur5e/robotiq/right_pad").id,
        )
        self._scratch = mujoco.MjData(self.model)

    def place(self, data: mujoco.MjData, qpos: np.ndarray, qvel: np.ndarray) -> None:
        """Put `data` into a state, as if nothing had happened before."""
        mujoco.mj_resetData(self.model, data)
        data.qpos, data.qvel = qpos, qvel
        mujoco.mj_forward(self.model, data)
        mujoco.mj_rnePostConstraint(self.model, data)  # contact forces, which the oracle feels

    def step(self, data: mujoco.MjData, action: np.ndarray) -> None:
        """Advance `data` by 0.05 s towards a gripper pose relative to where it is."""
        self._env._data = data
        self._env.set_control(action)
        mujoco.mj_step(self.model, data, self._env._n_steps)
        mujoco.mj_rnePostConstraint(self.model, data)

    def draw_qpos(self, generator: np.random.Generator) -> np.ndarray:
        """(21,) a random gripper pose above the table, open, and the block anywhere on the table:
        the benchmark's starts."""
        mujoco.mj_resetData(self.model, self._scratch)
        self._env._data, self._env.np_random = self._scratch, generator
        self._scratch.qpos[:6] = self._env._home_qpos
        mujoco.mj_kinematics(self.model, self._scratch)
        self._env.initialize_arm()
        qpos = self._scratch.qpos.copy()
        qpos[BLOCK], yaw = self.draw_target(generator)
        qpos[BLOCK.stop :] = np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)
        return qpos

    def draw_target(self, generator: np.random.Generator) -> tuple[np.ndarray, float]:
        """A place on the table, (x, y, z), and a yaw, both uniform."""
        x, y = generator.uniform(*self.block_bounds)
        return np.array([x, y, 0.02]), generator.uniform(0, 2 * np.pi)

    def state(self, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        """(47,) float32 state. What is read off it follows from the rounded `qpos`, so equal `qpos`
        give equal states."""
        state = np.concatenate([qpos, qvel, np.zeros(len(READ))]).astype(np.float32)
        self._scratch.qpos = state[:NQ]
        mujoco.mj_kinematics(self.model, self._scratch)
        sensed = self.sense(self._scratch)
        state[NQV:] = (
            *sensed["effector_pos"],
            sensed["effector_yaw"],
            sensed["gripper_opening"],
            sensed["block_yaw"],
        )
        return state

    def sense(self, data: mujoco.MjData) -> dict[str, Any]:
        """What the oracle asks for, from data whose kinematics are computed."""
        turned = data.site_xmat[self._pinch]
        qw, qx, qy, qz = data.qpos[BLOCK.stop : NQ]
        return {
            "effector_pos": data.site_xpos[self._pinch].copy(),
            "effector_yaw": np.arctan2(turned[3], turned[0]),
            "gripper_opening": np.clip(data.qpos[6] / GRIPPER_RAD, 0, 1),
            "gripper_contact": np.clip(np.linalg.norm(data.cfrc_ext[self._pad]) / CONTACT_N, 0, 1),
            "block_pos": data.qpos[BLOCK].copy(),
            "block_yaw": np.arctan2(2 * (qw * qz + qx * qy), 1 - 2 * (qy**2 + qz**2)),
        }


simulator = once_per_thread(Simulator)


def load_model() -> mujoco.MjModel:
    """A copy of the compiled model, for drawing."""
    return copy.deepcopy(simulator().model)


class CubeWorld(BatchedWorld):
    """B tables with an arm and a cube.

    Args:
        num_envs: B.
        image_size: height and width of the pictures, 16 or more.
        look: one of `offscreen.LOOKS`, or with another colour of gripper or block:
            "fast,arm_color=0000ff,block_color=00ff00".
    """

    policies: ClassVar[tuple[str, ...]] = ("expert", "random")
    factors: Factors

    def __init__(self, num_envs: int, image_size: int = 224, look: str = "published") -> None:
        super().__init__(
            num_envs,
            image_size,
            Factors.parse(look),
            action_dim=5,
            state_names=STATE_NAMES,
            state_units=STATE_UNITS,
            max_steps=MAX_STEPS,
        )
        self.simulator = simulator()
        self.tables = [mujoco.MjData(self.simulator.model) for _ in range(num_envs)]
        self._scene = open_scene(
            load_model, image_size, "front_pixels", self.factors.drawing, self.factors.paint
        )
        self.reset(range(num_envs))

    @property
    def states(self) -> np.ndarray:
        """(B, 47) float32 states, a copy."""
        return np.stack([self.simulator.state(table.qpos, table.qvel) for table in self.tables])

    def reset(self, seeds: Sequence[int]) -> None:
        """Draw start and goal of environment i from `seeds[i]` alone: at rest, the block two
        tolerances away or more.

        A goal is a whole state: the block at its goal, the arm elsewhere in the air.
        """
        goals = []
        for table, generator in zip(
            self.tables, self._generators("reset", seeds, self.num_envs), strict=True
        ):
            start, goal = (self.simulator.draw_qpos(generator) for _ in range(2))
            while np.linalg.norm(goal[BLOCK] - start[BLOCK]) < 2 * SUCCESS_M:
                goal = self.simulator.draw_qpos(generator)
            self.simulator.place(table, start.astype(np.float32), np.zeros(len(QVEL)))
            goals.append(self.simulator.state(goal, np.zeros(len(QVEL))))
        self._goals = np.stack(goals)

    def set_states(self, states: np.ndarray) -> None:
        """Put the tables into (B, 47) finite states: a teleport. The variables after `qvel` follow
        and are not looked at."""
        for table, state in zip(
            self.tables, self._rows("states", states, self.num_envs), strict=True
        ):
            self.simulator.place(table, state[:NQ], state[NQ:NQV])

    def _move(self, actions: np.ndarray) -> None:
        """Move for 0.05 s."""
        for table, action in zip(self.tables, actions, strict=True):
            self.simulator.step(table, action)

    def render(self, states: np.ndarray | None = None) -> np.ndarray:
        """Draw (n, 47) given states, or the current ones: (n, h, w, 3) uint8, new memory each
        time."""
        if states is not None:
            return super().render(states)
        # rounded as in a state: the same picture, without what is read off a state
        return self._draw(np.array([table.qpos for table in self.tables], np.float32))

    def _draw(self, states: np.ndarray) -> np.ndarray:
        return self._scene.pictures(states[:, :NQ])

    def _met(self, criterion: str) -> np.ndarray:
        """Is the block within 0.04 m of its place in the goal state? Nothing else is looked at."""
        blocks = np.array([table.qpos[BLOCK] for table in self.tables], np.float32).astype(
            np.float64
        )
        return np.linalg.norm(blocks - self._goals[:, BLOCK], axis=1) <= SUCCESS_M

    def _policy(self, name: str, drawing: list[np.random.Generator]) -> Policy:
        """ "expert" is the benchmark's oracle with its noise: it brings the block to the goal, then
        to places of its own choice."""
        return _Expert(self, drawing)

    def _elsewhere(
        self, state: np.ndarray, things: Sequence[str], generator: np.random.Generator
    ) -> np.ndarray:
        """ "arm", "block" or both elsewhere, as the benchmark draws starts.

        The gripper is then in the air and open, a moved block lies on the table. Each is 8 cm or
        more from where it was, and block and gripper are 10 cm apart.
        """
        effector = slice(NQV, NQV + 3)
        while True:
            drawn = self.simulator.draw_qpos(generator)
            qpos, qvel = state[:NQ].copy(), state[NQ:NQV].copy()
            for positions, velocities in (JOINTS[thing] for thing in things):
                qpos[positions], qvel[velocities] = drawn[positions], 0.0
            after = self.simulator.state(qpos, qvel)
            ways = {
                "arm": after[effector] - state[effector],
                "block": after[BLOCK] - state[BLOCK],
            }
            if np.linalg.norm(after[effector] - after[BLOCK]) >= CLEAR_M and all(
                np.linalg.norm(ways[thing]) >= 2 * SUCCESS_M for thing in things
            ):
                return after


class _Expert:
    """OGBench's `CubeMarkovOracle` for each environment: closed loop, with Gaussian noise whose
    strength an episode draws.

    Having carried the block to its target and drawn back, it takes a new target, as the benchmark's
    data script does.
    """

    # Source: the public `ExpertPolicy`, as the next
    noise_std, noise_scale = 0.1, np.array([1.0, 1.0, 1.0, 3.0, 10.0])
    least_motion = 0.4  # m: shorter ways are gone as fast as if they were this long
    patience = 200  # steps until a target is given up

    def __init__(self, world: CubeWorld, generators: list[np.random.Generator]) -> None:
        from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle

        self.world, self.generators = world, generators
        self.oracles = [CubeMarkovOracle(env=None, min_norm=self.least_motion) for _ in generators]
        self.noise = [
            generator.uniform(0, self.noise_std) * self.noise_scale for generator in generators
        ]
        self.goals = np.full(world.goals.shape, np.nan)
        self.targets: list[tuple[np.ndarray, float]] = [(np.zeros(3), 0.0)] * len(generators)

    def __call__(self) -> np.ndarray:
        goals = self.world.goals
        actions = [
            self._act(i, goals[i], (goals[i] != self.goals[i]).any()) for i in range(len(goals))
        ]
        self.goals = goals
        return np.array(actions, np.float32)

    def _act(self, i: int, goal: np.ndarray, goal_is_new: bool) -> np.ndarray:
        oracle, generator, sim = self.oracles[i], self.generators[i], self.world.simulator
        if goal_is_new or oracle.done:
            self.targets[i] = (goal[BLOCK], goal[-1]) if goal_is_new else sim.draw_target(generator)
            # What `oracle.reset` does, but for its global random numbers: where to go when the
            # block is in place.
            oracle._done, oracle._step, oracle._max_step = False, 0, self.patience
            oracle._final_pos = generator.uniform(*sim.arm_bounds)
            oracle._final_yaw = generator.uniform(-np.pi, np.pi)
        sensed, (place, yaw) = sim.sense(self.world.tables[i]), self.targets[i]
        info = {
            "proprio/effector_pos": sensed["effector_pos"],
            "proprio/effector_yaw": [sensed["effector_yaw"]],
            "proprio/gripper_opening": sensed["gripper_opening"],
            "proprio/gripper_contact": sensed["gripper_contact"],
            "privileged/target_block": 0,
            "privileged/block_0_pos": sensed["block_pos"],
            "privileged/block_0_yaw": [sensed["block_yaw"]],
            "privileged/target_block_pos": place,
            "privileged/target_block_yaw": [yaw],
        }
        return np.clip(oracle.select_action(None, info) + generator.normal(0, self.noise[i]), -1, 1)


class Cube(Single):
    """One table: a batch of one behind the Gymnasium interface. Options as in `CubeWorld`.

    Observation: (h, w, 3) uint8 picture. Action: (5,) float32 in [-1, 1]: motion along x, y and z,
    of yaw and of the gripper (1 closes). Reward: 1.0 on a step that ends with the block within 0.04
    m of its goal, which also terminates the episode, else 0.0. `info` holds "state" and "goal",
    (47,) float32 each, and "success".
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (gymnasium declares it an instance variable)
    world_class = CubeWorld
    policies: ClassVar[tuple[str, ...]] = CubeWorld.policies
    looks: ClassVar[tuple[str, ...]] = tuple(Factors.named)


gymnasium.register("lewm/Cube-v1", entry_point="lewm.worlds.cube:Cube", max_episode_steps=MAX_STEPS)
