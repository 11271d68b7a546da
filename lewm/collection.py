"""Worlds stepped in batches, and policies that fill episode files with them, in this process or in several."""

from __future__ import annotations

import inspect
import json
import multiprocessing
import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

import lewm
from lewm import registry
from lewm.contracts import EnvSpec, Policy, World
from lewm.data import Episode, Episodes, Provenance
from lewm.recording import EpisodeWriter

__all__ = ["Looped", "collect", "cores", "open_world"]

BUFFER_BYTES = 256 << 20
"""Pixels of the episodes that are under way together, unless the caller sets a batch size."""

MOST_TOGETHER = 64
"""Environments stepped together by default: past this a batch of small worlds gains no more speed."""

PATIENCE_S = 20.0
"""A recording that takes one process longer than this is worth starting others for, at some 3 s each. Nor do episodes take
longer that are recorded together by default: they are lost to a Ctrl-C together, and progress waits for them."""

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LP_NUM_THREADS")
"""Threads that numerical libraries, and Mesa's renderer in software, start in a process: 1 where processes share the cores."""


class Looped:
    """The role `World` over single Gymnasium environments, for plug-ins that have no batched form.

    Args:
        envs: equal environments after the contract of an env plug-in: `env_spec`, `reset(seed=, options=)` with `info` holding
            "state", "goal" and "success", `step`, `render_state(state)` and `policy(name, seed)`; `regions(states)` if it
            has any. One with several success criteria has them all in `info["criteria"]`, by name. One whose spec names
            things has `teleport(things, state, seed)` and `recoloured(thing, turn)`. Where drawing is slow, `advance(action)`
            may do what `step` does but draw, and return the `info`: not every step is looked at.
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
        self._infos = [
            env.advance(action) if hasattr(env, "advance") else env.step(action)[4]
            for env, action in zip(self.envs, clipped, strict=True)
        ]

    def render(self, states: np.ndarray | None = None) -> np.ndarray:
        if states is None:
            return np.stack([env.render() for env in self.envs])
        return np.stack([self.envs[0].render_state(state) for state in states])

    def success(self, criterion: str | None = None) -> np.ndarray:
        first, name = self.spec.criteria[0], self.spec.criteria[0] if criterion is None else criterion
        registry.choose(f"success criterion of {self.spec.name}", name, self.spec.criteria)
        return np.array([bool(info["success"] if name == first else info["criteria"][name]) for info in self._infos])

    def policy(self, name: str, seeds: Sequence[int]) -> Policy:
        registry.choose(f"policy of {self.spec.name}", name, self.policies)
        policies = [env.policy(name, int(seed)) for env, seed in zip(self.envs, seeds, strict=True)]
        return lambda: np.stack([policy() for policy in policies]).astype(np.float32)

    def regions(self, states: np.ndarray) -> np.ndarray | None:
        return self.envs[0].regions(states) if hasattr(self.envs[0], "regions") else None

    def teleport(self, things: Sequence[str], states: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        moved = [self.envs[0].teleport(things, state, int(seed)) for state, seed in zip(states, seeds, strict=True)]
        return np.stack(moved).astype(np.float32)

    def recoloured(self, thing: str, turn: float = 0.5) -> str:
        return str(self.envs[0].recoloured(thing, turn))

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
        ValueError: no such world or option; the nearest names are offered.
        ImportError: the world needs a package that is missing; the message names the extra to install.
    """
    plugin = registry.load("envs", name)
    batched = hasattr(plugin, "batched")
    # A `single.Single` takes any option and hands it on: its world is asked.
    parameters = inspect.signature(getattr(plugin, "world_class", plugin)).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        known = [parameter for parameter in parameters if parameter != "num_envs"]
        for option in options:
            registry.choose(f"option of world '{name}'", option, known)
    return plugin.batched(num_envs, **options) if batched else Looped([plugin(**options) for _ in range(num_envs)])


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
    *,
    every: int = 1,
    processes: int | None = 1,
    **options: Any,
) -> Episodes:
    """Let a policy act in a world and record it; go on where an interrupted call with the same arguments left off.

    Episode i is drawn from (seed, i) alone: neither `batch_size`, `processes` nor an interruption changes what is recorded.
    Each lasts `spec.max_steps` actions, however early its goal is reached: training and evaluation need long episodes, and an
    expert finds itself something else to do. It has one observation more than rows of actions.

    Args:
        world_name: of an env plug-in.
        path: of the episode file.
        episodes: to record in all.
        policy: one that the world offers.
        batch_size: environments stepped together in one process; None takes what fits in a moderate buffer and is soon
            done, and one where the world has no batched form.
        image_size: height and width of the pixels; None leaves it to the world.
        progress: called with (episodes recorded, episodes).
        compression: see `EpisodeWriter`.
        every: env steps from one row to the next, see `Provenance`; nothing is drawn in between. What remains of `max_steps`
            behind the last whole block is cut, with a warning.
        processes: that record side by side, each in a world of its own; None takes one per core if the world turns out to be
            so slow that one process would be at it for more than `PATIENCE_S`. A script that is to use several must call this
            under `if __name__ == "__main__":`, as they import it.
        options: more of the world's options.

    Returns:
        The opened and verified file.

    Raises:
        ValueError: unknown world, policy or option, `every` longer than an episode, or `path` holds other episodes than these.
        OSError: the disk is full, or one of several processes ended (ChildProcessError); complete episodes are kept.
        KeyboardInterrupt: Ctrl-C, likewise.
    """
    counts = {"episodes": episodes, "batch_size": batch_size, "every": every, "processes": processes}
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}.")
    if image_size is not None:
        options["image_size"] = image_size
    world = open_world(world_name, 1, **options)
    world.policy(policy, [0])  # an unknown one is refused before anything is written
    spec = world.spec
    if every > spec.max_steps:
        raise ValueError(f"expected a row every {spec.max_steps} env steps or fewer, an episode's length, got {every}.")
    if left := spec.max_steps % every:
        warnings.warn(f"episodes of {spec.max_steps} steps are cut by {left}: rows are {every} steps apart", stacklevel=2)
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
        every=every,
    )
    with EpisodeWriter(path, provenance, compression) as writer:
        missing, rows = range(len(writer), episodes), spec.max_steps // every + 1
        episode_s = rows * _seconds_per_row(world, policy, every) if missing else 0.0
        if processes is None:
            processes = cores() if episode_s * len(missing) > PATIENCE_S else 1
        if batch_size is None:
            fitting = BUFFER_BYTES // (processes * rows * 3 * spec.image_size**2)
            together = min(MOST_TOGETHER, fitting, -(-len(missing) // processes), PATIENCE_S // max(episode_s, 1e-9))
            batch_size = 1 if isinstance(world, Looped) else max(1, int(together))
        tasks = [missing[first : first + batch_size] for first in range(0, len(missing), batch_size)]
        processes = min(processes, len(tasks))
        recorder = _Recorder(world_name, options, policy, seed, every, world if processes < 2 else None)
        with closing(_recorded(recorder, tasks, processes)) as recorded:
            for episode in recorded:
                writer.append(episode)
                if progress:
                    progress(len(writer), episodes)
    return Episodes.open(path)


@dataclass
class _Recorder:
    """Records the episodes it is asked for, in a world that stays open from one call to the next."""

    world_name: str
    options: Mapping[str, Any]
    policy: str
    seed: int
    every: int
    world: World | None = None

    def __call__(self, numbers: Sequence[int]) -> list[Episode]:
        """Run one episode in each environment: all of them equally long, so that no environment ever waits for another."""
        if self.world is None or self.world.num_envs != len(numbers):
            self.world = open_world(self.world_name, len(numbers), **self.options)
        world, spec, every = self.world, self.world.spec, self.every
        drawn = np.array([np.random.SeedSequence((self.seed, number)).generate_state(2, np.uint64) >> 1 for number in numbers])
        world.reset(drawn[:, 0].tolist())
        act = world.policy(self.policy, drawn[:, 1].tolist())
        B, L, size = world.num_envs, spec.max_steps // every + 1, spec.image_size
        pixels = np.empty((B, L, size, size, 3), np.uint8)
        states = np.empty((B, L, len(spec.state_names)), np.float32)
        actions = np.full((B, L, every, len(spec.action_low)), np.nan, np.float32)
        for row in range(L):
            states[:, row], pixels[:, row] = world.states, world.render()
            for step in range(every if row < L - 1 else 0):
                # What is recorded is what the world executes: an action outside its box would teach a wrong effect.
                actions[:, row, step] = np.clip(act(), spec.action_low, spec.action_high)
                world.step(actions[:, row, step])
        return [Episode(*arrays) for arrays in zip(pixels, actions.reshape(B, L, -1), states)]


def _recorded(recorder: _Recorder, tasks: Sequence[range], processes: int) -> Generator[Episode]:
    """Give the episodes of the tasks in order. Several processes are dealt the tasks like cards.

    Each process has a pipe of its own and waits in it until its turn comes, so that it holds one finished task at most. No
    pool of the standard library does: one waits for ever for a worker that died, the other may, if it died while it was
    handing over an answer as large as ours. Processes are spawned, because a graphics context does not survive a fork.
    """
    if processes < 2:
        for numbers in tasks:
            yield from recorder(numbers)
        return
    context = multiprocessing.get_context("spawn")
    workers = []
    try:
        with _quiet_children():
            for k in range(processes):
                reader, writer = context.Pipe(duplex=False)
                process = context.Process(target=_record_apart, args=(recorder, tasks[k::processes], writer), daemon=True)
                process.start()
                writer.close()  # the only other end is the worker's: if it dies, reading ends
                workers.append((process, reader))
        for number in range(len(tasks)):
            process, reader = workers[number % processes]
            try:
                answer = reader.recv()
            except (EOFError, OSError):
                process.join(1)
                raise ChildProcessError(
                    f"a recording process ended before its episode did (exit code {process.exitcode}). The complete episodes "
                    "are kept, and the same command goes on; with fewer processes, if memory ran out."
                ) from None
            if isinstance(answer, Exception):
                raise answer
            yield from answer
    finally:
        for process, reader in workers:
            process.terminate()
            process.join()
            reader.close()


def _record_apart(recorder: _Recorder, tasks: Sequence[range], writer: Connection) -> None:
    """What a recording process runs: answer each task with its episodes, or with the exception that it raised."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(BrokenPipeError):  # who asked is gone
        for numbers in tasks:
            answer: list[Episode] | Exception
            try:
                answer = recorder(numbers)
            except Exception as error:
                error.add_note(f"In a recording process:\n{traceback.format_exc()}")
                answer = error
            writer.send(answer)


@contextmanager
def _quiet_children() -> Iterator[None]:
    """Processes started within leave the cores to each other and Ctrl-C to this one, from their first instruction on."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if hasattr(signal, "pthread_sigmask") else None
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _seconds_per_row(world: World, policy: str, every: int) -> float:
    """How long the world takes for one row, once it is warm. Its episode is disturbed."""
    act = world.policy(policy, [0] * world.num_envs)
    for _ in range(2):
        begun = time.perf_counter()
        for _ in range(every):
            world.step(np.clip(act(), world.spec.action_low, world.spec.action_high))
        world.render()
    return time.perf_counter() - begun


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
