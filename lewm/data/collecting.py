"""A policy that acts in a world, recorded: episode files, filled in this process or in several."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

import lewm
from lewm.contracts import Ending, Progress, Report, World, silent
from lewm.data.episodes import Episodes, Provenance
from lewm.data.workers import Acting, Recorder, policy_in, record
from lewm.data.writing import EpisodeWriter
from lewm.worlds.kit.gym import Env, GymWorld, named
from lewm.worlds.kit.opening import Looped, open_world

__all__ = ["collect", "cores"]

BUFFER_BYTES = 256 << 20
"""Pixels of the episodes that are under way together, unless the caller sets a batch size."""

MOST_TOGETHER = 64
"""Environments stepped together by default: past this a batch of small worlds gains no more
speed."""

TRIALS = 8
"""Episodes of which one must last longer than a step."""

PATIENCE_S = 20.0
"""A recording that takes one process longer than this is worth starting others for, at some 3 s
each. Nor do episodes take longer that are recorded together by default: they are lost to a Ctrl-C
together, and progress waits for them."""


def collect(
    world: str | Callable[..., Env],
    path: Path | str,
    episodes: int,
    policy: str | Acting | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    image_size: int | None = None,
    report: Report = silent,
    compression: str | None = None,
    *,
    every: int = 1,
    processes: int | None = 1,
    **options: Any,
) -> Episodes:
    """Let a policy act in a world and record it; go on where an interrupted call with the same
    arguments left off.

    Episode i is drawn from (seed, i) alone: neither `batch_size`, `processes` nor an interruption
    changes what is recorded. Each lasts `spec.max_steps` actions, however early its goal is
    reached: training and evaluation need long episodes, and an expert finds itself something else
    to do. A plain Gymnasium environment may end it earlier, and then it is that much shorter. It
    has one observation more than rows of actions.

    Args:
        world: name of a world plug-in, "gym:" and a registered Gymnasium id, or a Gymnasium class
            or factory; see `open_world`.
        path: of the episode file.
        episodes: to record in all.
        policy: one that the world offers, by default "expert" where it has that, else its first. Or
            a function of an observation, see `workers.Acting`; what it remembers or draws without
            the generator it is given is not a function of (seed, i).
        batch_size: environments stepped together in one process; None takes what fits in a moderate
            buffer and is soon done, and one where the world has no batched form.
        image_size: height and width of the pixels; None leaves it to the world.
        report: called as episodes are recorded ("collect").
        compression: see `EpisodeWriter`.
        every: env steps from one row to the next, see `Provenance`; nothing is drawn in between.
            What remains of `max_steps` behind the last whole block is cut, with a warning.
        processes: that record side by side, each in a world of its own; None takes one per core if
            the world turns out to be so slow that one process would be at it for more than
            `PATIENCE_S`, and 1 for a class or a function: others have to import those. A script
            that is to use several must call this under `if __name__ == "__main__":`, as they import
            it.
        options: more of the world's options.

    Returns:
        The opened and verified file.

    Raises:
        ValueError: unknown world, policy or option, `every` longer than an episode, a world whose
            episodes end at once, or `path` holds other episodes than these.
        OSError: the disk is full, or one of several processes ended (ChildProcessError); complete
            episodes are kept.
        KeyboardInterrupt: Ctrl-C, likewise.
    """
    counts = {
        "episodes": episodes,
        "batch_size": batch_size,
        "every": every,
        "processes": processes,
    }
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}.")
    # open the world and refuse, before anything is written, what cannot be recorded
    if image_size is not None:
        options["image_size"] = image_size
    opened = open_world(world, 1, **options)
    if policy is None:
        policy = "expert" if "expert" in opened.policies else opened.policies[0]
    policy_in(opened, policy, [0])
    spec = opened.spec
    if every > spec.max_steps:
        raise ValueError(
            f"expected a row every {spec.max_steps} env steps or fewer, an episode's length, got "
            f"{every}."
        )
    if left := spec.max_steps % every:
        warnings.warn(
            f"episodes of {spec.max_steps} steps are cut by {left}: rows are {every} steps apart",
            stacklevel=2,
        )
    _try_out(opened)

    # say where the episodes come from
    provenance = Provenance(
        world=spec.name,
        version=spec.version,
        policy=policy if isinstance(policy, str) else named(policy),
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
        # time a row of the world: so many processes and so many episodes at a time pay
        missing, rows = range(len(writer), episodes), spec.max_steps // every + 1
        episode_s = rows * _seconds_per_row(opened, policy, every) if missing else 0.0
        if processes is None:
            by_name = isinstance(world, str) and isinstance(policy, str)
            processes = cores() if by_name and episode_s * len(missing) > PATIENCE_S else 1
        if batch_size is None:
            fitting = BUFFER_BYTES // (processes * rows * 3 * spec.image_size**2)
            together = min(
                MOST_TOGETHER,
                fitting,
                -(-len(missing) // processes),
                PATIENCE_S // max(episode_s, 1e-9),
            )
            batch_size = 1 if isinstance(opened, Looped | GymWorld) else max(1, int(together))

        # record what is missing, in its order
        tasks = [
            missing[first : first + batch_size] for first in range(0, len(missing), batch_size)
        ]
        processes = min(processes, len(tasks))
        recorder = Recorder(world, options, policy, seed, every, opened if processes < 2 else None)
        with closing(record(recorder, tasks, processes)) as recorded:
            for episode in recorded:
                writer.append(episode)
                report(Progress("collect", len(writer), episodes))
    return Episodes.open(path)


def _try_out(world: World) -> None:
    """Refuse a world whose episodes end at once, and warn of one that does not keep to its seed."""
    if not isinstance(world, Ending):
        return
    lasting, pictures = 0, []
    for seed in (*range(TRIALS), 0):
        world.reset([seed])
        pictures.append(world.render())
        world.step(world.policy("random", [seed])())
        lasting += not world.ended[0]
    if not lasting:
        raise ValueError(
            f"world '{world.spec.name}': expected episodes of several steps, got {len(pictures)} "
            "that were over after the first. Look at what its `step` returns as terminated and "
            "truncated."
        )
    if (pictures[0] != pictures[-1]).any():
        warnings.warn(
            f"world '{world.spec.name}' began seed 0 with another picture than before: what is "
            "recorded cannot be repeated. Draw from `self.np_random`, after "
            "`super().reset(seed=seed)`",
            stacklevel=3,
        )


def _seconds_per_row(world: World, policy: str | Acting, every: int) -> float:
    """How long the world takes for one row, once it is warm. Its episode is disturbed."""
    act = policy_in(world, policy, [0] * world.num_envs)
    for _ in range(2):
        begun = time.perf_counter()
        for _ in range(every):
            world.step(np.clip(act(), world.spec.action_low, world.spec.action_high))
        world.render()
    return time.perf_counter() - begun


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
