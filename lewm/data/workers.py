"""Recording episodes, in this process or in several: who does it, and how episodes come back."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from lewm.contracts import World
from lewm.data.episodes import Episode
from lewm.worlds.kit.opening import open_world

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LP_NUM_THREADS")
"""Threads that numerical libraries, and Mesa's renderer in software, start in a process: 1 where
processes share the cores."""


@dataclass
class Recorder:
    """Records the episodes it is asked for, in a world that stays open from one call to the
    next."""

    world_name: str
    options: Mapping[str, Any]
    policy: str
    seed: int
    every: int
    world: World | None = None

    def __call__(self, numbers: Sequence[int]) -> list[Episode]:
        """Run one episode in each environment: all of them equally long, so that no environment
        ever waits for another."""
        if self.world is None or self.world.num_envs != len(numbers):
            self.world = open_world(self.world_name, len(numbers), **self.options)
        world, spec, every = self.world, self.world.spec, self.every
        drawn = np.array(
            [
                np.random.SeedSequence((self.seed, number)).generate_state(2, np.uint64) >> 1
                for number in numbers
            ]
        )
        world.reset(drawn[:, 0].tolist())
        act = world.policy(self.policy, drawn[:, 1].tolist())
        B, L, size = world.num_envs, spec.max_steps // every + 1, spec.image_size
        pixels = np.empty((B, L, size, size, 3), np.uint8)
        states = np.empty((B, L, len(spec.state_names)), np.float32)
        actions = np.full((B, L, every, len(spec.action_low)), np.nan, np.float32)
        for row in range(L):
            states[:, row], pixels[:, row] = world.states, world.render()
            for step in range(every if row < L - 1 else 0):
                # What is recorded is what the world executes: an action outside its box would teach
                # a wrong effect.
                actions[:, row, step] = np.clip(act(), spec.action_low, spec.action_high)
                world.step(actions[:, row, step])
        return [Episode(*arrays) for arrays in zip(pixels, actions.reshape(B, L, -1), states)]


def record(recorder: Recorder, tasks: Sequence[range], processes: int) -> Generator[Episode]:
    """Give the episodes of the tasks in order. Several processes are dealt the tasks like cards.

    Each process has a pipe of its own and waits in it until its turn comes, so that it holds one
    finished task at most. No pool of the standard library does: one waits for ever for a worker
    that died, the other may, if it died while it was handing over an answer as large as ours.
    Processes are spawned, because a graphics context does not survive a fork.
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
