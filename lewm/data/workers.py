"""Recording episodes, in this process or in several: who does it, and how episodes come back."""

from __future__ import annotations

import inspect
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np

from lewm.contracts import Ending, Policy, World
from lewm.data.episodes import Episode
from lewm.worlds.kit.gym import Env, GymWorld, named
from lewm.worlds.kit.opening import open_world

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LP_NUM_THREADS")
"""Threads that numerical libraries, and Mesa's renderer in software, start in a process: 1 where
processes share the cores."""


Acting = Callable[..., np.ndarray]
"""A policy of the user's: what one environment observes -> (a,) action. Where it takes a second
argument, that is a NumPy generator of its own per episode. The observation is what a plain
Gymnasium environment returns; of any other world it is the picture, (h, w, 3) uint8."""


@dataclass
class Recorder:
    """Records the episodes it is asked for, in a world that stays open from one call to the next.

    Attributes:
        kind: name, class or factory of the world.
        options: that it is opened with.
        policy: by name, or a function.
        world: an open one, to begin with.
    """

    kind: str | Callable[..., Env]
    options: Mapping[str, Any]
    policy: str | Acting
    seed: int
    every: int
    world: World | None = None

    def __call__(self, numbers: Sequence[int]) -> list[Episode]:
        """Run one episode in each environment. All last `spec.max_steps`, but in a world that may
        end them earlier: there each has its own length, of whole rows.

        Raises:
            ValueError: an episode is over before its first row of actions.
        """
        if self.world is None or self.world.num_envs != len(numbers):
            self.world = open_world(self.kind, len(numbers), **self.options)
        world, spec, every = self.world, self.world.spec, self.every
        drawn = np.array(
            [
                np.random.SeedSequence((self.seed, number)).generate_state(2, np.uint64) >> 1
                for number in numbers
            ]
        )
        world.reset(drawn[:, 0].tolist())
        act = policy_in(world, self.policy, drawn[:, 1].tolist())
        B, L, size = world.num_envs, spec.max_steps // every + 1, spec.image_size
        pixels = np.empty((B, L, size, size, 3), np.uint8)
        states = np.empty((B, L, len(spec.state_names)), np.float32)
        actions = np.full((B, L, every, len(spec.action_low)), np.nan, np.float32)
        lengths, ending = np.full(B, L), isinstance(world, Ending)
        for row in range(L):
            states[:, row], pixels[:, row] = world.states, world.render()
            for step in range(every if row < L - 1 else 0):
                # What is recorded is what the world executes: an action outside its box would teach
                # a wrong effect.
                actions[:, row, step] = np.clip(act(), spec.action_low, spec.action_high)
                world.step(actions[:, row, step])
                if ending:
                    assert isinstance(world, Ending)
                    # a block that the end cut short is no row; one that it completes is
                    whole = row + 2 if step == every - 1 else row + 1
                    lengths = np.where(world.ended, np.minimum(lengths, whole), lengths)
            if (lengths <= row + 1).all():
                break
        if (lengths < 2).any():
            number = numbers[int(np.argmax(lengths < 2))]
            raise ValueError(
                f"world '{spec.name}': expected episodes of at least {every} steps, one row of "
                f"actions, got one that was over before (episode {number}). Record every step "
                "(every=1), or let episodes last longer."
            )
        rows = actions.reshape(B, L, -1)
        for i, length in enumerate(lengths):
            rows[i, length - 1] = np.nan  # what was done after the end
        return [
            Episode(pixels[i, :n], rows[i, :n], states[i, :n] if spec.state_names else None)
            for i, n in enumerate(lengths)
        ]


def policy_in(world: World, policy: str | Acting, seeds: Sequence[int]) -> Policy:
    """A policy of the world by name, or a user's function as one.

    Raises:
        ValueError: the world has no such policy, or the function returns no finite (a,) numbers.
    """
    if isinstance(policy, str):
        return world.policy(policy, seeds)
    function, width = policy, len(world.spec.action_low)
    drawing = [np.random.default_rng(int(seed)) for seed in seeds]
    takes_two = len(inspect.signature(function).parameters) > 1

    def act() -> np.ndarray:
        observations = world.observations if isinstance(world, GymWorld) else world.render()
        actions = [
            np.asarray(function(o, drawn) if takes_two else function(o), np.float32)
            for o, drawn in zip(observations, drawing, strict=True)
        ]
        for action in actions:
            if action.shape != (width,) or not np.isfinite(action).all():
                raise ValueError(
                    f"policy '{named(policy)}': expected a finite action of shape ({width},), got "
                    f"{action.tolist()}."
                )
        return np.stack(actions)

    return act


def record(recorder: Recorder, tasks: Sequence[range], processes: int) -> Generator[Episode]:
    """Give the episodes of the tasks in order. Several processes are dealt the tasks like cards.

    Each process has a pipe of its own and waits in it until its turn comes, so that it holds one
    finished task at most. No pool of the standard library does: one waits for ever for a worker
    that died, the other may, if it died while it was handing over an answer as large as ours.
    Processes are spawned, because a graphics context does not survive a fork. They are told classes
    and functions by name, and import them.

    Raises:
        ValueError: several processes, and a world or a policy that cannot be imported by its name.
    """
    if processes < 2:
        for numbers in tasks:
            yield from recorder(numbers)
        return
    interactive = not hasattr(sys.modules["__main__"], "__file__")
    for defined in (recorder.kind, recorder.policy):
        if interactive and getattr(defined, "__module__", None) == "__main__":
            raise ValueError(
                "several processes import the world and the policy by name: expected them in a "
                "module, got one that is defined in a notebook or at a prompt. Move it to a .py "
                "file, or use processes=1."
            )
    try:
        ForkingPickler.dumps(recorder)
    except Exception as error:
        raise ValueError(
            "several processes import the world and the policy by name, and at least one has none: "
            f"{error}. Define them at the top of a module, or use processes=1."
        ) from None
    context = multiprocessing.get_context("spawn")
    workers = []
    try:
        with _quiet_children():
            for k in range(processes):
                reader, writer = context.Pipe(duplex=False)
                process = context.Process(
                    target=_record_apart, args=(recorder, tasks[k::processes], writer), daemon=True
                )
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
                    "a recording process ended before its episode did (exit code "
                    f"{process.exitcode}). The complete episodes are kept, and the same command "
                    "goes on; with fewer processes, if memory ran out."
                ) from None
            if isinstance(answer, Exception):
                raise answer
            yield from answer
    finally:
        for process, reader in workers:
            process.terminate()
            process.join()
            reader.close()


def _record_apart(recorder: Recorder, tasks: Sequence[range], writer: Connection) -> None:
    """What a recording process runs: answer each task with its episodes, or with the exception that
    it raised."""
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
    """Processes started within leave the cores to each other and Ctrl-C to this one, from their
    first instruction on."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    mask = (
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        if hasattr(signal, "pthread_sigmask")
        else None
    )
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
