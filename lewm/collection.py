"""Worlds stepped in batches, and policies that fill episode files with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import lewm
from lewm import registry
from lewm.contracts import EnvSpec, Policy, World
from lewm.data import Episode, Episodes, Provenance
from lewm.recording import EpisodeWriter

__all__ = ["Looped", "collect", "open_world"]

BUFFER_BYTES = 256 << 20
"""Pixels of the episodes that are under way together, unless the caller sets a batch size."""

MOST_TOGETHER = 64
"""Environments stepped together by default: past this a batch of small worlds gains no more speed."""


class Looped:
    """The role `World` over single Gymnasium environments, for plug-ins that have no batched form.

    Args:
        envs: equal environments after the contract of an env plug-in: `env_spec`, `reset(seed=, options=)` with `info` holding
            "state", "goal" and "success", `step`, `render_state(state)` and `policy(name, seed)`; `regions(states)` if it
            has any.
    """

    def __init__(self, envs: Sequence[Any]):
        self.envs = list(envs)
        self.spec: EnvSpec = self.envs[0].env_spec
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
        self._infos = [env.reset(seed=int(seed))[1] for env, seed in zip(self.envs, seeds, strict=True)]

    def set_states(self, states: np.ndarray) -> None:
        self._set(states, self.goals)

    def set_goals(self, goals: np.ndarray) -> None:
        self._set(self.states, goals)

    def step(self, actions: np.ndarray) -> None:
        clipped = np.clip(actions, self.spec.action_low, self.spec.action_high).astype(np.float32)
        self._infos = [env.step(action)[4] for env, action in zip(self.envs, clipped, strict=True)]

    def render(self, states: np.ndarray | None = None) -> np.ndarray:
        if states is None:
            return np.stack([env.render() for env in self.envs])
        return np.stack([self.envs[0].render_state(state) for state in states])

    def success(self) -> np.ndarray:
        return np.array([bool(info["success"]) for info in self._infos])

    def policy(self, name: str, seeds: Sequence[int]) -> Policy:
        registry.choose(f"policy of {self.spec.name}", name, self.policies)
        policies = [env.policy(name, int(seed)) for env, seed in zip(self.envs, seeds, strict=True)]
        return lambda: np.stack([policy() for policy in policies]).astype(np.float32)

    def regions(self, states: np.ndarray) -> np.ndarray | None:
        return self.envs[0].regions(states) if hasattr(self.envs[0], "regions") else None

    def _set(self, states: np.ndarray, goals: np.ndarray) -> None:
        # By reset, not by set_state: only reset answers with an `info` that is true of the new state and goal.
        options = [{"state": state, "goal": goal} for state, goal in zip(states, goals, strict=True)]
        self._infos = [env.reset(options=option)[1] for env, option in zip(self.envs, options, strict=True)]


def open_world(name: str, num_envs: int, **options: Any) -> World:
    """Open `num_envs` environments of one kind to be stepped together.

    Args:
        name: of an env plug-in.
        options: of that plug-in, such as `image_size`.

    Raises:
        ValueError: no such world; the nearest names are offered.
        ImportError: the world needs a package that is missing; the message names the extra to install.
    """
    plugin = registry.load("envs", name)
    if hasattr(plugin, "batched"):
        return plugin.batched(num_envs, **options)
    return Looped([plugin(**options) for _ in range(num_envs)])


def collect(
    world_name: str,
    path: Path | str,
    episodes: int,
    policy: str = "expert",
    seed: int = 0,
    batch_size: int | None = None,
    image_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    compression: str | None = None,
    **options: Any,
) -> Episodes:
    """Let a policy act in a world and record it; go on where an interrupted call with the same arguments left off.

    Episode i is drawn from (seed, i) alone: neither `batch_size` nor an interruption changes what is recorded. Each has
    `spec.max_steps` actions and one observation more, however early its goal is reached: training and evaluation need
    long episodes, and an expert finds itself something else to do.

    Args:
        world_name: of an env plug-in.
        path: of the episode file.
        episodes: to record in all.
        policy: one that the world offers.
        batch_size: environments stepped together; None takes what fits in a moderate buffer.
        image_size: height and width of the pixels; None leaves it to the world.
        progress: called with (episodes recorded, episodes).
        compression: see `EpisodeWriter`.
        options: more of the world's options.

    Returns:
        The opened and verified file.

    Raises:
        ValueError: unknown world or policy, or `path` holds other episodes than these.
        OSError: the disk is full; the episodes recorded until then are kept.
        KeyboardInterrupt: Ctrl-C, likewise.
    """
    if episodes < 1 or (batch_size is not None and batch_size < 1):
        raise ValueError(f"expected at least 1 episode and a batch size of at least 1, got {episodes} and {batch_size}.")
    if image_size is not None:
        options["image_size"] = image_size
    world = open_world(world_name, 1, **options)
    world.policy(policy, [0])  # an unknown one is refused before anything is written
    spec = world.spec
    provenance = Provenance(
        world=spec.name,
        version=spec.version,
        policy=policy,
        seed=seed,
        look=spec.look,
        state_names=spec.state_names,
        state_units=spec.state_units,
        options=json.dumps({**options, "image_size": spec.image_size}, sort_keys=True, default=str),
        lewm_version=lewm.__version__,
        requested_episodes=episodes,
    )
    if batch_size is None:
        episode_bytes = 3 * spec.image_size**2 * (spec.max_steps + 1)
        batch_size = max(1, min(MOST_TOGETHER, BUFFER_BYTES // episode_bytes))
    with EpisodeWriter(path, provenance, compression) as writer:
        while (done := len(writer)) < episodes:
            numbers = range(done, min(done + batch_size, episodes))
            if world.num_envs != len(numbers):
                world = open_world(world_name, len(numbers), **options)
            for episode in _record(world, policy, seed, numbers):
                writer.append(episode)
                if progress:
                    progress(len(writer), episodes)
    return Episodes.open(path)


def _record(world: World, policy: str, seed: int, numbers: Sequence[int]) -> list[Episode]:
    """Run one episode in each environment: all of them equally long, so that no environment ever waits for another."""
    drawn = np.array([np.random.SeedSequence((seed, number)).generate_state(2, np.uint64) >> 1 for number in numbers])
    world.reset(drawn[:, 0].tolist())
    act = world.policy(policy, drawn[:, 1].tolist())
    B, L, size, spec = world.num_envs, world.spec.max_steps + 1, world.spec.image_size, world.spec
    pixels = np.empty((B, L, size, size, 3), np.uint8)
    states = np.empty((B, L, len(spec.state_names)), np.float32)
    actions = np.full((B, L, len(spec.action_low)), np.nan, np.float32)
    for t in range(L):
        states[:, t], pixels[:, t] = world.states, world.render()
        if t < L - 1:
            # What is recorded is what the world executes: an action outside its box would teach a wrong effect.
            actions[:, t] = np.clip(act(), spec.action_low, spec.action_high)
            world.step(actions[:, t])
    return [Episode(*arrays) for arrays in zip(pixels, actions, states)]
