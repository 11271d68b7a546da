"""A world that does not wait: the agent is asked for an action at a fixed rate, and what it has by
the deadline is taken.

Every env step has a period. Within it the world is drawn, the agent looks and plans, and the world
takes its step; what remains of the period is slept. The agent's search is anytime
(`agent.Agent.act`), so a plan is as good as the period allows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lewm.contracts import World
from lewm.planning.agent import Agent

__all__ = ["COLUMNS", "Drive", "Latency", "drive", "latencies"]

SPARE = 0.1
"""Share of the period that is not planned with: no two rounds of a search take equally long, and
sleep ends late."""

COLUMNS = ("steps", "count", "missed", "share", "p50 ms", "p90 ms", "p99 ms", "max ms")


@dataclass(frozen=True)
class Drive:
    """One attempt at a fixed rate; t is the number of env steps it lasted.

    Attributes:
        rate_hz: env steps per second that were asked for.
        latency_s: (t,) seconds from the moment a step was due to the agent's action: drawing,
            looking and planning.
        replanned: (t,) bool, steps at which a plan was made; the others only carry one out.
        cut_short: how many of the plans were stopped by their deadline.
        seconds: from the moment that the first step was due to the end of the last one's period.
        states: (t+1, S).
        actions: (t, a) env units; action i leads from state i to state i+1.
        success_step: env step of the first success, with which the drive ends: 0 if it began
            solved; None if it never came.
    """

    rate_hz: float
    latency_s: np.ndarray
    replanned: np.ndarray
    cut_short: int
    seconds: float
    states: np.ndarray
    actions: np.ndarray
    success_step: int | None

    @property
    def missed(self) -> np.ndarray:
        """(t,) bool: actions that came later than one period after their step was due."""
        return self.latency_s > 1 / self.rate_hz

    @property
    def plans(self) -> int:
        return int(self.replanned.sum())


@dataclass(frozen=True)
class Latency:
    """How late actions were, over some env steps.

    Attributes:
        steps: how many.
        missed: deadlines among them.
        p50_ms, p90_ms, p99_ms, max_ms: percentiles of the latency; None where there were no steps.
    """

    steps: int
    missed: int
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    max_ms: float | None

    @classmethod
    def of(cls, latency_s: np.ndarray, missed: np.ndarray) -> Latency:
        if not len(latency_s):
            return cls(0, 0, None, None, None, None)
        percentiles = (float(1e3 * p) for p in np.percentile(latency_s, (50, 90, 99, 100)))
        return cls(len(latency_s), int(missed.sum()), *percentiles)

    @property
    def missed_share(self) -> float | None:
        return self.missed / self.steps if self.steps else None

    def row(self, name: str) -> tuple[str, ...]:
        """A cell for each of `COLUMNS`."""
        share = "-" if self.missed_share is None else f"{self.missed_share:.1%}"
        times = (
            "-" if t is None else f"{t:.2f}"
            for t in (self.p50_ms, self.p90_ms, self.p99_ms, self.max_ms)
        )
        return name, str(self.steps), str(self.missed), share, *times


def latencies(drives: Sequence[Drive]) -> dict[str, Latency]:
    """Latency of "all" steps of some drives, and of the "replanning" ones alone: few, but they are
    what can be late."""
    latency_s, missed, replanned = (
        np.concatenate([getattr(drive, name) for drive in drives])
        for name in ("latency_s", "missed", "replanned")
    )
    return {
        "all": Latency.of(latency_s, missed),
        "replanning": Latency.of(latency_s[replanned], missed[replanned]),
    }


def drive(
    agent: Agent,
    world: World,
    goal_pixels: np.ndarray,
    rate_hz: float,
    budget: int,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Drive:
    """Let the agent control one environment in real time, until its first success or until the
    budget is used up.

    Before the first step one plan is made and forgotten: the first one of a process is slower by
    all that is set up for it. An action that comes late is still taken, and the steps after it are
    due one period later each, counted from when the next one could begin: the world waited, so one
    long plan is one missed deadline and not a train of them.

    Args:
        agent: of one environment, with the same clock; it is reset.
        world: standing at its start, with its goal set.
        goal_pixels: (1, h, w, 3) uint8.
        rate_hz: env steps per second.
        budget: env steps allowed.
        clock: seconds since some moment.
        sleep: let so many seconds pass.

    Raises:
        ValueError: several environments, or a rate that is not positive.
    """
    if (world.num_envs, agent.num_envs) != (1, 1):
        got = f"{world.num_envs} of the world and {agent.num_envs} of the agent"
        raise ValueError(f"real time is for one environment at a time, got {got}.")
    if not 0 < rate_hz < float("inf"):
        raise ValueError(
            f"expected a positive rate in env steps per second, got {rate_hz}. 20 is usual."
        )
    period = 1 / rate_hz
    agent.reset()
    agent.act(world.render(), goal_pixels, deadline_s=period)
    agent.reset()

    latency_s: list[float] = []
    replanned: list[bool] = []
    states, actions = [world.states[0]], list[np.ndarray]()
    stepping_s = 0.0
    success_step = 0 if world.success()[0] else None
    first = due = clock()
    while success_step is None and len(actions) < budget:
        replanned.append(agent.replans)
        pixels = world.render() if agent.observes else None
        left = due + (1 - SPARE) * period - stepping_s - clock()
        action = agent.act(pixels, goal_pixels, deadline_s=max(0.0, left))
        answered = clock()
        latency_s.append(answered - due)
        world.step(action)
        if world.success()[0]:
            success_step = len(latency_s)
        stepped = clock()
        # the longest of late, for the next period has to hold one too
        stepping_s = max(stepped - answered, 0.9 * stepping_s)
        states.append(world.states[0])
        actions.append(action[0])
        due = max(due + period, stepped)
        sleep(max(0.0, due - clock()))
    return Drive(
        rate_hz=rate_hz,
        latency_s=np.array(latency_s),
        replanned=np.array(replanned, bool),
        cut_short=agent.effort.cut_short,
        seconds=clock() - first,
        states=np.stack(states),
        actions=np.stack(actions) if actions else np.zeros((0, agent.action_dim), np.float32),
        success_step=success_step,
    )
