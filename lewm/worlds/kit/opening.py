"""Worlds to be stepped together, by a name, a class or a factory: those with a batched form, single
environments in a loop, and plain Gymnasium environments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from lewm import registry
from lewm.contracts import (
    Advancing,
    Batched,
    Editable,
    Policy,
    Regioned,
    SingleWorld,
    Specified,
    World,
    WorldSpec,
    require,
)
from lewm.worlds.kit import gym
from lewm.worlds.kit.gym import Env
from lewm.worlds.kit.single import Single

__all__ = ["Looped", "can_open", "open_world", "world_name"]


class Looped:
    """The role `World` over single Gymnasium environments, for plug-ins that have no batched form.

    Args:
        envs: equal environments. Each may fill more roles: `Regioned`; `Editable`, where the spec
            names things; `Advancing`, where drawing is slow, since not every step is looked at.
    """

    def __init__(self, envs: Sequence[SingleWorld]):
        self.envs = list(envs)
        self.spec: WorldSpec = self.envs[0].env_spec
        self.num_envs = len(self.envs)
        self._infos = [env.reset(seed=0)[1] for env in self.envs]

    @property
    def policies(self) -> tuple[str, ...]:
        return tuple(self.envs[0].policies)

    @property
    def states(self) -> np.ndarray:
        return np.stack([np.array(info["state"], np.float32) for info in self._infos])

    @property
    def goals(self) -> np.ndarray:
        return np.stack([np.array(info["goal"], np.float32) for info in self._infos])

    def reset(self, seeds: Sequence[int]) -> None:
        self._infos = [
            env.reset(seed=int(seed))[1] for env, seed in zip(self.envs, seeds, strict=True)
        ]

    def set_states(self, states: np.ndarray) -> None:
        self._set(states, self.goals)

    def set_goals(self, goals: np.ndarray) -> None:
        self._set(self.states, goals)

    def step(self, actions: np.ndarray) -> None:
        clipped = np.clip(actions, self.spec.action_low, self.spec.action_high).astype(np.float32)
        self._infos = [
            env.advance(action) if isinstance(env, Advancing) else env.step(action)[4]
            for env, action in zip(self.envs, clipped, strict=True)
        ]

    def render(self, states: np.ndarray | None = None) -> np.ndarray:
        if states is None:
            return np.stack([self._fitting("render()", env.render()) for env in self.envs])
        return np.stack(
            [
                self._fitting("render_state(state)", self.envs[0].render_state(state))
                for state in states
            ]
        )

    def _fitting(self, method: str, picture: Any) -> np.ndarray:
        """A picture of the size that the world's spec promises, or a ValueError."""
        shape = (self.spec.image_size, self.spec.image_size, 3)
        if not isinstance(picture, np.ndarray) or (picture.shape, picture.dtype) != (shape, "u1"):
            got = (
                f"{picture.dtype} {picture.shape}"
                if isinstance(picture, np.ndarray)
                else f"{type(picture).__name__}"
            )
            raise ValueError(
                f"world '{self.spec.name}': expected uint8 {shape} from `{method}`, as "
                f"`env_spec.image_size` says, got {got}. Take `image_size` as an argument, as "
                "--image-size gives it, draw squares of that size, and put it into `env_spec`."
            )
        return picture

    def success(self, criterion: str | None = None) -> np.ndarray:
        first, name = (
            self.spec.criteria[0],
            self.spec.criteria[0] if criterion is None else criterion,
        )
        registry.choose(f"success criterion of {self.spec.name}", name, self.spec.criteria)
        return np.array(
            [
                bool(info["success"] if name == first else info["criteria"][name])
                for info in self._infos
            ]
        )

    def policy(self, name: str, seeds: Sequence[int]) -> Policy:
        registry.choose(f"policy of {self.spec.name}", name, self.policies)
        policies = [env.policy(name, int(seed)) for env, seed in zip(self.envs, seeds, strict=True)]
        return lambda: np.stack([policy() for policy in policies]).astype(np.float32)

    def regions(self, states: np.ndarray) -> np.ndarray | None:
        env = self.envs[0]
        return env.regions(states) if isinstance(env, Regioned) else None

    def teleport(
        self, things: Sequence[str], states: np.ndarray, seeds: Sequence[int]
    ) -> np.ndarray:
        env = self._editable()
        moved = [
            env.teleport(things, state, int(seed))
            for state, seed in zip(states, seeds, strict=True)
        ]
        return np.stack(moved).astype(np.float32)

    def recoloured(self, thing: str, turn: float = 0.5) -> str:
        return self._editable().recoloured(thing, turn)

    def _editable(self) -> Editable:
        env = self.envs[0]
        require(Editable, env, f"world '{self.spec.name}', whose things are to be edited,")
        return cast(Editable, env)

    def _set(self, states: np.ndarray, goals: np.ndarray) -> None:
        # By reset, not by set_state: only reset answers with an `info` that is true of the new
        # state and goal.
        options = [
            {"state": state, "goal": goal} for state, goal in zip(states, goals, strict=True)
        ]
        self._infos = [
            env.reset(options=option)[1] for env, option in zip(self.envs, options, strict=True)
        ]


def world_name(world: str | Callable[..., Env]) -> str:
    """The name of what `open_world` is given: a class has its module's before its own."""
    return world if isinstance(world, str) else gym.named(world)


def can_open(name: str) -> bool:
    """Whether a name says how to open its world: of a plug-in, or of a Gymnasium id. Of a class it
    does not: nothing that a file names is imported."""
    return name.startswith(gym.PREFIX) or name in registry.names("worlds")


def open_world(world: str | Callable[..., Env], num_envs: int = 1, **options: Any) -> World:
    """Open `num_envs` environments of one kind to be stepped together.

    Args:
        world: the name of a world plug-in; "gym:" and a registered Gymnasium id; or a Gymnasium
            class, or a function that makes an environment. An environment that keeps the promises
            of a world plug-in is opened as one, any other as a `gym.GymWorld`.
        options: of that world, such as `image_size`. Plain environments take `image_size`, `crop`
            and `max_steps`, and what their class or factory takes.

    Raises:
        ValueError: no such world or option, and the nearest names are offered; or an environment
            without pictures or without numbers for actions.
        ImportError: the world needs a package that is missing; the message names the extra to
            install.
    """
    if isinstance(world, str) and world.startswith(gym.PREFIX):
        make = gym.registered(world)
    elif isinstance(world, str):
        return _open_plugin(world, registry.load("worlds", world), num_envs, options)
    elif isinstance(world, Batched):
        return _open_plugin(world_name(world), world, num_envs, options)
    else:
        make = world
    name = world_name(world)
    envs, left = gym.make_envs(make, name, num_envs, options)
    if not isinstance(envs[0], Specified):
        return gym.GymWorld(envs, name, **left)
    for option in left:
        registry.choose(f"option of world '{name}'", option, options.keys() - left.keys())
    require(SingleWorld, envs[0], f"world '{name}'")
    return Looped(cast(Sequence[SingleWorld], envs))


def _open_plugin(
    name: str, plugin: Callable[..., SingleWorld], num_envs: int, options: dict[str, Any]
) -> World:
    # A `Single` takes any option and hands it on: its world is asked.
    asked: Callable[..., object] = plugin
    if isinstance(plugin, type) and issubclass(plugin, Single):
        asked = plugin.world_class
    parameters = inspect.signature(asked).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        known = [parameter for parameter in parameters if parameter != "num_envs"]
        for option in options:
            registry.choose(f"option of world '{name}'", option, known)
    if isinstance(plugin, Batched):
        return plugin.batched(num_envs, **options)
    envs = [plugin(**options) for _ in range(num_envs)]
    require(SingleWorld, envs[0], f"world '{name}'")
    return Looped(envs)
