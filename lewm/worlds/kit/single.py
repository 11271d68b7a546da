"""The single environment of a batched world: a batch of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import gymnasium
import numpy as np

from lewm.contracts import Policy, World
from lewm.registry import choose

__all__ = ["Single"]


class Single(gymnasium.Env):
    """One environment of a `contracts.World`; a world plug-in derives from it and says which world,
    see `worlds/reacher.py`.

    Reward: 1.0 on a step that ends in success by the first criterion, which also terminates the
    episode, else 0.0. Truncation is the business of a time limit (`env_spec.max_steps`;
    `gymnasium.make` adds one). `info` holds "state" and "goal", (S,) float32 each, and "success";
    where the world has several criteria also "criteria", which says of each whether it is met.

    Attributes:
        world_class: called as `world_class(num_envs, image_size=..., **options)`; its signature
            tells the world's options.
        policies: the names that `policy` knows.
        looks: named appearances, "published" first.
        world: the batch of one.
        env_spec: what is known of it.

    Args:
        image_size: height and width of the pictures.
        render_mode: as Gymnasium asks for it; pictures are arrays in any case.
        options: of the world.
    """

    world_class: ClassVar[Callable[..., World]]
    policies: ClassVar[tuple[str, ...]]
    looks: ClassVar[tuple[str, ...]]

    def __init__(
        self, image_size: int = 224, render_mode: str | None = "rgb_array", **options: Any
    ) -> None:
        self.world = self.batched(1, image_size=image_size, **options)
        self.env_spec = spec = self.world.spec
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(
            np.array(spec.action_low, np.float32), np.array(spec.action_high, np.float32)
        )

    @classmethod
    def batched(cls, num_envs: int, **options: Any) -> World:
        """B environments as one `contracts.World`; environment i with seed s equals a single one
        with seed s."""
        return cls.world_class(num_envs, **options)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Draw start and goal from `seed`; `options` may fix them with "state" and "goal", (S,)
        each."""
        super().reset(seed=seed)
        self.world.reset([int(self.np_random.integers(2**63)) if seed is None else seed])
        setters = {"state": self.set_state, "goal": self.set_goal}
        for key, value in (options or {}).items():
            setters[choose(f"reset option of {self.env_spec.name}", key, setters)](value)
        return self.render(), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Advance by one step; an action outside of its box is clipped to it, and NaN counts as
        0."""
        self.world.step(np.asarray(action)[None])
        info = self._info()
        return self.render(), float(info["success"]), info["success"], False, info

    def render(self) -> np.ndarray:  # type: ignore[override]
        """(h, w, 3) uint8 picture of the current state."""
        return self.world.render()[0]

    def render_state(self, state: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 picture of another state, such as a goal; the environment stays as it
        is."""
        return self.world.render(np.asarray(state)[None])[0]

    def set_state(self, state: np.ndarray) -> None:
        self.world.set_states(np.asarray(state)[None])

    def set_goal(self, state: np.ndarray) -> None:
        self.world.set_goals(np.asarray(state)[None])

    def policy(self, name: str, seed: int) -> Policy:
        """As the world's `policy`, for one environment: each call returns one (a,) action."""
        act = self.world.policy(name, [seed])
        return lambda: act()[0]

    def _info(self) -> dict[str, Any]:
        met = {name: bool(self.world.success(name)[0]) for name in self.env_spec.criteria}
        info = {
            "state": self.world.states[0],
            "goal": self.world.goals[0],
            "success": met[self.env_spec.criteria[0]],
        }
        return info | ({"criteria": met} if len(met) > 1 else {})
