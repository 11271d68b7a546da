"""Plain Gymnasium environments as a world: enough to record, to train on and to plan in.

Such an environment has pictures and actions. It has no states that can be set, no goals and no
success: what needs those is refused, in words that say what to add.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, Protocol, TypeAlias, runtime_checkable

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from lewm.contracts import Policy, SingleWorld, Specified, WorldSpec, missing
from lewm.registry import choose
from lewm.worlds.kit.batched import generators

__all__ = ["OPTIONS", "PREFIX", "Env", "GymWorld", "make_envs", "named", "registered"]

PREFIX = "gym:"
"""Before a registered Gymnasium id, it makes the name of a world: "gym:Pendulum-v1"."""

OPTIONS = ("image_size", "crop", "max_steps")
"""What any plain environment can be opened with, see `GymWorld`."""

CROPS = ("center",)

MAX_SIZE = 4096
"""Height and width of a picture; a model that sees more is none of ours."""

TOLD = ("state", "goal", "success")
"""Entries of a world plug-in's `info` that a plain environment may lack."""


Env: TypeAlias = gymnasium.Env[Any, Any]
"""Any environment; one that does not derive from it may do, see `Steppable`."""

Space: TypeAlias = gymnasium.Space[Any]


@runtime_checkable
class Steppable(Protocol):
    """What is asked of any Gymnasium environment, derived from `gymnasium.Env` or not."""

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]: ...

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]: ...

    @property
    def action_space(self) -> Space: ...

    @property
    def observation_space(self) -> Space: ...


class GymWorld:
    """The role `contracts.World` over plain Gymnasium environments, as far as they can fill it.

    Pixels are the observation where that is an (H, W, 3) uint8 picture, else what `render()`
    returns. States are `info["state"]` where the environment gives one, else the observation where
    that is a vector, else there are none. An environment whose episode is over stays as it is until
    the next reset, see `ended`.

    Args:
        envs: equal environments.
        name: of the world.
        image_size: height and width of `render`; by default those of the pictures as they come.
            Others are scaled by averaging over areas.
        crop: "center" cuts the longer side of pictures that are not square; None refuses them.
        max_steps: of an episode; by default what the environment's own spec says.

    Raises:
        ValueError: actions that are not a few numbers with finite bounds, no pictures or ones that
            are not square, or an episode of unknown length.
        ImportError: drawing needs a package that is missing.
    """

    policies = ("random",)

    def __init__(
        self,
        envs: Sequence[Env],
        name: str,
        image_size: int | None = None,
        crop: str | None = None,
        max_steps: int | None = None,
    ) -> None:
        self.envs, self.num_envs = list(envs), len(envs)
        self._crop = None if crop is None else choose("crop", crop, CROPS)
        self._name, self._size = name, image_size
        if image_size is not None and not 1 <= image_size <= MAX_SIZE:
            raise ValueError(
                f"world '{name}': expected pictures of 1 to {MAX_SIZE} px, got image_size="
                f"{image_size}. Give another --image-size."
            )
        first = self.envs[0]
        low, high = _bounds(name, first.action_space)
        self._sees_pictures = _is_picture(first.observation_space)
        self._steps = [first.reset(seed=0)]
        observation, info = self._steps[0]
        states = _state_names(first.observation_space, info)
        self._state_in_info = "state" in info
        picture = self._picture(first, observation)
        self.spec = WorldSpec(
            name=name,
            version=gymnasium.__version__ if name.startswith(PREFIX) else "",
            image_size=picture.shape[0],
            action_low=low,
            action_high=high,
            state_names=states,
            state_units=("",) * len(states),
            max_steps=_max_steps(name, first, max_steps),
        )
        self.reset(range(self.num_envs))

    @property
    def observations(self) -> list[Any]:
        """What each environment observes, as its own `step` returned it."""
        return [observation for observation, _ in self._steps]

    @property
    def ended(self) -> np.ndarray:
        """(B,) bool: is the episode over, terminated or truncated?"""
        return self._ended.copy()

    @property
    def states(self) -> np.ndarray:
        """(B, S) float32, S = 0 where nothing is known."""
        if not self.spec.state_names:
            return np.zeros((self.num_envs, 0), np.float32)
        if self._state_in_info and not all("state" in info for _, info in self._steps):
            raise ValueError(
                f"world '{self.spec.name}': expected `info['state']` from every `reset` and "
                "`step`, as its first reset gave one, got an info without. Put it into both."
            )
        rows = [info["state"] if self._state_in_info else o for o, info in self._steps]
        return np.stack([np.array(row, np.float32).ravel() for row in rows])

    def reset(self, seeds: Sequence[int]) -> None:
        """Begin episode i from `seeds[i]` alone, as far as the environment keeps to its seed."""
        self._steps = [
            env.reset(seed=int(seed)) for env, seed in zip(self.envs, seeds, strict=True)
        ]
        self._ended = np.zeros(self.num_envs, bool)

    def step(self, actions: np.ndarray) -> None:
        """Advance those that are not over; (B, a) actions are clipped, NaN counts as 0."""
        shape = (self.num_envs, len(self.spec.action_low))
        actions = np.asarray(actions, np.float64)
        if actions.shape != shape:
            raise ValueError(
                f"actions must have shape {shape}, one row per environment, got {actions.shape}."
            )
        actions = np.clip(np.nan_to_num(actions), self.spec.action_low, self.spec.action_high)
        for i in np.flatnonzero(~self._ended):
            action = actions[i].astype(self.envs[i].action_space.dtype)
            observation, _, terminated, truncated, info = self.envs[i].step(action)
            self._steps[i] = observation, info
            self._ended[i] = terminated or truncated

    def render(self, states: np.ndarray | None = None) -> np.ndarray:
        """(B, h, w, 3) uint8 pictures of the current states, new memory each time."""
        if states is not None:
            self._refuse("a picture of another state")
        return np.stack(
            [
                self._picture(env, observation)
                for env, observation in zip(self.envs, self.observations, strict=True)
            ]
        )

    def policy(self, name: str, seeds: Sequence[int]) -> Policy:
        """ "random" is uniform over the action box, environment i from `seeds[i]` alone."""
        choose(f"policy of {self.spec.name}", name, self.policies)
        low, high = np.array([self.spec.action_low, self.spec.action_high], np.float32)
        drawing = generators(self.policies, name, seeds, self.num_envs)
        return lambda: np.clip(
            np.stack([generator.uniform(low, high) for generator in drawing]).astype(np.float32),
            low,
            high,
        )

    def regions(self, states: np.ndarray) -> None:
        """None: nothing is known of rooms."""

    @property
    def goals(self) -> np.ndarray:
        self._refuse("a goal")

    def set_states(self, states: np.ndarray) -> None:
        self._refuse("setting its state")

    def set_goals(self, goals: np.ndarray) -> None:
        self._refuse("setting its goal")

    def success(self, criterion: str | None = None) -> np.ndarray:
        self._refuse("success")

    def teleport(
        self, things: Sequence[str], states: np.ndarray, seeds: Sequence[int]
    ) -> np.ndarray:
        self._refuse("a thing to move")

    def recoloured(self, thing: str, turn: float = 0.5) -> str:
        self._refuse("a thing to paint")

    def lacking(self, purpose: str) -> str:
        """Say in one paragraph why something is not possible, what to add, and what is possible."""
        env, info = self.envs[0].unwrapped, self._steps[0][1]
        lacking = [f"`{name}`" for name in missing(SingleWorld, env)]
        lacking += [f"`info[{name!r}]`" for name in TOLD if name not in info]
        return (
            f"{purpose} needs states that can be set, goals and success, and world "
            f"'{self.spec.name}' is a plain Gymnasium environment without {', '.join(lacking)}. "
            "Add them, and a `reset` that takes options={'state': ..., 'goal': ...}: "
            "docs/your-own-data.md shows a whole world. Without them, `lewm analyse RUN` answers "
            "what needs no setting of states, and `lewm.open_run(RUN).agent()` plans to goal "
            "pictures of yours."
        )

    def _refuse(self, what: str) -> NoReturn:
        raise ValueError(self.lacking(what))

    def _picture(self, env: Env, observation: Any) -> np.ndarray:
        """(h, w, 3) uint8: cropped and scaled as asked for, and nobody else's memory."""
        try:
            picture = observation if self._sees_pictures else env.render()
        except gymnasium.error.DependencyNotInstalled as error:
            raise ImportError(f"world '{self._name}' cannot draw here: {error}") from None
        if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.ndim != 3:
            got = (
                f"{picture.dtype} {picture.shape}"
                if isinstance(picture, np.ndarray)
                else repr(picture)
            )
            raise ValueError(
                f"world '{self._name}': expected pictures, uint8 (H, W, 3), as its observation or "
                f"from `render()`, got {got:.80}. Return one from `render()` in the render mode "
                "'rgb_array', and take `render_mode` as an argument."
            )
        height, width, colours = picture.shape
        if colours != 3 or not height or not width:
            raise ValueError(
                f"world '{self._name}': expected pictures in RGB, (H, W, 3), got {picture.shape}. "
                "Return three colours, the last axis, from `render()`."
            )
        if height != width and self._crop is None:
            raise ValueError(
                f"world '{self._name}': expected square pictures, got {width} x {height} (width x "
                "height). The option crop=center takes their middle (`lewm collect ... --option "
                "crop=center`), and --image-size then scales it. Or draw squares."
            )
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = picture[top : top + side, left : left + side]
        size = self._size or side
        if size == side:
            return square.copy()
        from PIL import Image  # heavy, and few worlds need it

        return np.array(Image.fromarray(square).resize((size, size), Image.Resampling.BOX))


def named(world: Callable[..., object]) -> str:
    """The name of a class or a factory: its module's and its own."""
    while isinstance(world, functools.partial):
        world = world.func
    known = world if inspect.isclass(world) or inspect.isroutine(world) else type(world)
    return f"{known.__module__}.{known.__qualname__}"


def registered(name: str) -> Callable[..., Env]:
    """What makes the environment of a registered id: "gym:Pendulum-v1".

    Raises:
        ValueError: the id names a module too. Gymnasium would import that, and names are read from
            files of strangers.
    """
    key = name.removeprefix(PREFIX)
    if ":" in key:
        raise ValueError(
            f"expected {PREFIX}ID with an id that is registered, got '{name}', for which a module "
            "would be imported. Import it in a program of yours and pass the class: "
            "lewm.collect(MyEnv, ...)."
        )

    def make(render_mode: str = "rgb_array", max_steps: int | None = None, **options: Any) -> Env:
        try:
            return gymnasium.make(
                key,
                max_episode_steps=max_steps,
                render_mode=render_mode,
                disable_env_checker=True,
                **options,
            )
        except gymnasium.error.DependencyNotInstalled as error:
            raise ImportError(f"world '{name}' cannot be opened here: {error}") from None
        except (gymnasium.error.Error, TypeError) as error:
            raise ValueError(
                f"world '{name}' cannot be opened: {error} Give another id or other options."
            ) from None

    return make


def make_envs(
    make: Callable[..., Env], name: str, num_envs: int, options: Mapping[str, Any]
) -> tuple[list[Env], dict[str, Any]]:
    """Call a class or a factory, with the options that it takes itself.

    Returns:
        The environments, and the options that are left for `GymWorld`. `max_steps` is never spent.

    Raises:
        ValueError: an option that nobody takes, or what is made is no environment.
    """
    if not callable(make):
        raise ValueError(
            f"expected the name of a world, a class or a function that makes environments, got "
            f"{make!r:.80}. Several are opened: pass the class, not one environment."
        )
    parameters = _parameters(make)
    any_option = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    given = {
        option: value
        for option, value in options.items()
        if option in parameters or (any_option and option not in OPTIONS)
    }
    for option in options.keys() - given.keys():
        choose(f"option of world '{name}'", option, [*dict.fromkeys([*parameters, *OPTIONS])])
    if "render_mode" in parameters:
        given.setdefault("render_mode", "rgb_array")
    envs = [make(**given) for _ in range(num_envs)]
    if lacking := missing(Steppable, envs[0]):
        raise ValueError(
            f"expected '{name}' to make a Gymnasium environment, got {envs[0]!r:.80} without "
            f"{', '.join(f'`{one}`' for one in lacking)}. Derive it from gymnasium.Env."
        )
    left = {
        option: value
        for option, value in options.items()
        if option not in given or (option in OPTIONS and not isinstance(envs[0], Specified))
    }
    return envs, left


def _parameters(make: Callable[..., object]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(make).parameters
    except ValueError:  # of a builtin
        return {}


def _bounds(name: str, space: Space) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Ends of the action box."""
    expected = f"world '{name}': expected actions that are a few numbers with finite bounds"
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
        raise ValueError(
            f"{expected}, a Box of shape (a,), got {space}. A search over actions needs numbers: "
            "wrap it (gymnasium.ActionWrapper) in one that turns numbers into its actions."
        )
    if not np.issubdtype(space.dtype, np.floating):
        raise ValueError(f"{expected}, a Box of floats, got {space}. Wrap it likewise.")
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ValueError(
            f"{expected}, got {space}. Wrap it: gymnasium.wrappers.RescaleAction, or a Box of "
            "yours."
        )
    return tuple(map(float, space.low)), tuple(map(float, space.high))


def _is_picture(space: Space) -> bool:
    return (
        isinstance(space, gymnasium.spaces.Box)
        and space.dtype == np.uint8
        and len(space.shape) == 3
        and space.shape[2] == 3
    )


def _state_names(space: Space, info: Mapping[str, Any]) -> tuple[str, ...]:
    if "state" in info:
        return tuple(f"state {k}" for k in range(np.size(info["state"])))
    if isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1:
        return tuple(f"observation {k}" for k in range(space.shape[0]))
    return ()


def _max_steps(name: str, env: Env, asked: int | None) -> int:
    if asked is not None and asked < 1:
        raise ValueError(f"max_steps must be at least 1, got {asked}.")
    spec = env.spec if isinstance(env, gymnasium.Env) else None
    known = asked or (spec.max_episode_steps if isinstance(spec, EnvSpec) else None)
    if not known:
        raise ValueError(
            f"world '{name}': expected to know how many steps an episode has, got nothing from "
            "its spec. Pass the option max_steps, such as max_steps=100."
        )
    return int(known)
