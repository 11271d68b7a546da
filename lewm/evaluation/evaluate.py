"""Does the agent get there? Success on held-out start/goal pairs, floors on the same pairs, an
interval on every rate."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from lewm.contracts import Progress, Report, World, WorldModel, silent
from lewm.data.episodes import Episodes
from lewm.evaluation.outcome import AGENT, Evaluation
from lewm.evaluation.tasks import (
    DO_NOTHING,
    Actor,
    Pairs,
    Task,
    Unavailable,
    attempt,
    draw_pairs,
    follow,
    goal_pictures,
    padded,
)
from lewm.planning.agent import Agent
from lewm.planning.config import PlanningConfig
from lewm.planning.trace import Effort

FLOORS = (DO_NOTHING, "random", "straight-line")
"""Shown beside every success rate. "straight-line" walks straight to the goal and knows the state;
not every world has it."""


# ----------------------------------------------------------------------------------------- attempts


def evaluate(
    model: WorldModel,
    config: PlanningConfig,
    world: World,
    episodes: Episodes,
    held_out: Sequence[int],
    protocol: Task = Task(),  # noqa: B008  frozen
    floors: Sequence[str] = FLOORS,
    report: Report = silent,
    like: Evaluation | None = None,
) -> Evaluation:
    """Play one task with the agent and with the floors, on the same pairs.

    Args:
        world: `num_envs` attempts are stepped and planned together; results do not depend on that
            number.
        episodes, held_out: starts and goals come from these episodes; the agent is shown the goal
            as its recorded picture, or drawn, where the world drew the goal.
        report: called as each policy plays ("offset 25, agent"), in env steps of all there can be.
        like: the task as another agent played it: its pairs and its floors are taken over, and
            neither drawn nor played again.

    Raises:
        Unavailable: the task cannot be set; see `tasks.draw_pairs`.
        ValueError: model, world and data do not fit each other.
    """
    if like is not None and like.protocol != protocol:
        raise ValueError(f"expected an evaluation of {protocol}, got one of {like.protocol}.")
    began = time.perf_counter()
    pairs = draw_pairs(episodes, held_out, world, protocol) if like is None else like.pairs
    agents: list[Agent] = []

    def planning(part: Pairs) -> Actor:
        agent, goal_pixels = agent_for(model, config, world, episodes, part, protocol.seed)
        agents.append(agent)
        return lambda active: agent.act(
            world.render() if agent.observes else None, goal_pixels, active
        )

    def floor(name: str, part: Pairs) -> Actor:
        return follow(name, world, part.seeds(world.num_envs, protocol.seed))

    played = {AGENT: _play(world, pairs, protocol, planning, AGENT, report)}
    agent_seconds = time.perf_counter() - began
    omitted: dict[str, str] = {}
    if like is not None:
        omitted |= like.omitted
        played |= {
            p: np.stack([like.steps(p, c) for c in like.criteria])
            for p in like.success_steps
            if p != AGENT
        }
        floors = ()
    for name in floors:
        try:
            played[name] = _play(world, pairs, protocol, partial(floor, name), name, report)
        except Unavailable as error:
            omitted[name] = str(error)
    main, *others = world.spec.criteria
    return Evaluation(
        protocol=protocol,
        pairs=pairs,
        success_steps={policy: steps[0] for policy, steps in played.items()},
        effort=sum((agent.effort for agent in agents), Effort()),
        batch=world.num_envs,
        seconds={"agent": agent_seconds, "total": time.perf_counter() - began},
        omitted=omitted,
        criterion=main,
        apart=_apart(world, pairs) if protocol.anywhere and not protocol.across else None,
        others={
            criterion: {p: steps[k] for p, steps in played.items()}
            for k, criterion in enumerate(others, 1)
        },
    )


def _apart(world: World, pairs: Pairs) -> np.ndarray | None:
    """(n,) bool: do start and goal lie in two regions? None in a world without regions."""
    starts, goals = world.regions(pairs.starts), world.regions(pairs.goals)
    return None if starts is None or goals is None else starts != goals


def _play(
    world: World,
    pairs: Pairs,
    protocol: Task,
    actor: Callable[[Pairs], Actor],
    policy: str,
    report: Report,
) -> np.ndarray:
    """Play all pairs, `num_envs` at a time -> (C, n) as `tasks.attempt`."""
    parts = list(pairs.portions(world.num_envs))
    steps = []
    for number, part in enumerate(parts):

        def tick(step: int, before: int = number * protocol.budget) -> None:
            done, total = before + step, len(parts) * protocol.budget
            report(Progress(f"{protocol.name}, {policy}", done, total))

        steps.append(attempt(world, part, protocol.budget, actor(part), world.spec.criteria, tick))
    return np.concatenate(steps, axis=1)


def agent_for(
    model: WorldModel,
    config: PlanningConfig,
    world: World,
    episodes: Episodes,
    pairs: Pairs,
    seed: int,
    trace: bool = False,
) -> tuple[Agent, np.ndarray]:
    """An agent for the pairs, and the (B, h, w, 3) pictures of their goals."""
    goal_pixels = goal_pictures(world, episodes, pairs)[padded(len(pairs), world.num_envs)]
    return Agent(model, config, world.spec, pairs.seeds(world.num_envs, seed), trace), goal_pixels
