"""Does the agent get there? Success on held-out start/goal pairs, floors on the same pairs, an interval on every rate."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from lewm.contracts import World, WorldModel
from lewm.data import Episodes
from lewm.planning import Agent, Effort, PlanningConfig, Replan
from lewm.stats import wilson
from lewm.tasks import Pairs, Protocol, Unavailable, draw_pairs, padded, place, standard_protocols

AGENT = "agent"
DO_NOTHING = "do-nothing"
FLOORS = (DO_NOTHING, "random", "straight-line")
"""Shown beside every success rate. "straight-line" walks straight to the goal and knows the state; not every world has it."""

Actor = Callable[[np.ndarray], np.ndarray]
"""(B,) which environments are still unsolved -> (B, a) env actions; what the solved ones do changes nothing."""

Progress = Callable[[str, int, int], None]
"""Called with the task and policy being played, the env steps played and the most there can be."""

COLUMNS = ("task", "policy", "paper's protocol", "strict", "solved at start", "median steps", "ms per plan", "predictor calls")
"""Names of what a row of results holds."""

# ------------------------------------------------------------------------------------------------------------ records


@dataclass(frozen=True)
class Score:
    """Success of one policy under one way of counting.

    Attributes:
        rate, low, high: share of successes and its 95% Wilson interval.
        median_steps: env steps to the first success, among the successes that did not begin solved; None without any.
    """

    episodes: int
    successes: int
    rate: float
    low: float
    high: float
    median_steps: float | None

    def __str__(self) -> str:
        return f"{self.rate:.1%} [{self.low:.1%}, {self.high:.1%}] of {self.episodes}"


@dataclass(frozen=True)
class Evaluation:
    """What one task gave.

    Attributes:
        protocol: the task.
        pairs: the attempts.
        success_steps: policy -> (n,) env step of the first success: 0 if it began solved, -1 if it never came.
        effort: of the agent's planning.
        batch: environments stepped and planned together.
        seconds: wall time of the agent's attempts, and of everything.
        omitted: floor -> why it was left out.
    """

    protocol: Protocol
    pairs: Pairs
    success_steps: dict[str, np.ndarray]
    effort: Effort
    batch: int
    seconds: dict[str, float]
    omitted: dict[str, str]

    def score(self, policy: str = AGENT, strict: bool = False) -> Score:
        """Success of a policy under the paper's protocol, or without the pairs that begin solved."""
        steps = self.success_steps[policy][self.pairs.strict if strict else self.pairs.paper]
        successes, episodes = int((steps >= 0).sum()), len(steps)
        low, high = wilson(successes, episodes)
        moved = steps[steps > 0]
        return Score(episodes, successes, successes / episodes, low, high, float(np.median(moved)) if len(moved) else None)

    @property
    def solved_at_start(self) -> float:
        """Share of the paper's pairs that begin solved, and so count as successes whatever is done."""
        return float(self.pairs.solved_at_start[self.pairs.paper].mean())

    def to_json(self) -> dict[str, Any]:
        """Plain numbers only; `pairs` holds each attempt's outcome, for paired comparisons."""
        return {
            "task": self.protocol.name,
            "protocol": asdict(self.protocol),
            "paper": {policy: asdict(self.score(policy)) for policy in self.success_steps},
            "strict": {policy: asdict(self.score(policy, strict=True)) for policy in self.success_steps},
            "solved_at_start": self.solved_at_start,
            "planning": {
                **asdict(self.effort),
                "batch": self.batch,
                "seconds_per_plan": self.effort.seconds_per_plan,
                "predictor_calls_per_plan": self.effort.predictor_calls_per_plan,
            },
            "seconds": self.seconds,
            "omitted": self.omitted,
            "pairs": {
                **{name: values.tolist() for name, values in vars(self.pairs).items() if values.ndim == 1},
                "success_steps": {policy: steps.tolist() for policy, steps in self.success_steps.items()},
            },
        }

    def rows(self) -> list[tuple[str, ...]]:
        """One per policy, with a cell for each of `COLUMNS`."""
        rows: list[tuple[str, ...]] = []
        for policy in self.success_steps:
            steps = self.score(policy, strict=True).median_steps
            rows.append(
                (
                    self.protocol.name,
                    policy,
                    str(self.score(policy)),
                    str(self.score(policy, strict=True)),
                    f"{self.solved_at_start:.1%}",
                    "-" if steps is None else f"{steps:g}",
                    f"{1e3 * self.effort.seconds_per_plan:.1f}" if policy == AGENT else "-",
                    f"{self.effort.predictor_calls_per_plan:,.0f}" if policy == AGENT else "-",
                )
            )
        return rows

    def markdown(self) -> str:
        return _markdown(self.rows())


@dataclass(frozen=True)
class Suite:
    """Several tasks, and why others were left out."""

    evaluations: tuple[Evaluation, ...]
    omitted: dict[str, str]

    def __getitem__(self, task: str) -> Evaluation:
        return {evaluation.protocol.name: evaluation for evaluation in self.evaluations}[task]

    def to_json(self) -> dict[str, Any]:
        return {"tasks": [evaluation.to_json() for evaluation in self.evaluations], "omitted": self.omitted}

    def rows(self) -> list[tuple[str, ...]]:
        """Those of all tasks."""
        return [row for evaluation in self.evaluations for row in evaluation.rows()]

    def remarks(self) -> list[str]:
        """A sentence for each task that was left out."""
        return [f"Not evaluated: {task}, because {reason}" for task, reason in self.omitted.items()]

    def markdown(self) -> str:
        return "\n\n".join([_markdown(self.rows()), *self.remarks()])


@dataclass(frozen=True)
class Recording:
    """One attempt, frame by frame, for an animation; t is the number of env steps it lasted.

    Attributes:
        pixels: (t+1, h, w, 3) uint8.
        goal_pixels: (h, w, 3) uint8.
        states: (t+1, S).
        goal_state: (S,).
        actions: (t, a) env units; action i leads from frame i to frame i+1.
        success_step: env step of the success, with which the recording ends; None if it never came.
        replans: what was planned, with the latents in which candidates were imagined to end; see `planning.Replan`.
    """

    pixels: np.ndarray
    goal_pixels: np.ndarray
    states: np.ndarray
    goal_state: np.ndarray
    actions: np.ndarray
    success_step: int | None
    replans: tuple[Replan, ...]


# ----------------------------------------------------------------------------------------------------------- attempts


def evaluate(
    model: WorldModel,
    config: PlanningConfig,
    world: World,
    episodes: Episodes,
    held_out: Sequence[int],
    protocol: Protocol = Protocol(),  # noqa: B008  frozen
    floors: Sequence[str] = FLOORS,
    progress: Progress | None = None,
) -> Evaluation:
    """Play one task with the agent and with the floors, on the same pairs.

    Args:
        world: `num_envs` attempts are stepped and planned together; results do not depend on that number.
        episodes, held_out: starts and goals come from these episodes; the agent is shown the goal as its recorded picture.

    Raises:
        Unavailable: the task cannot be set; see `tasks.draw_pairs`.
        ValueError: model, world and data do not fit each other.
    """
    began = time.perf_counter()
    pairs = draw_pairs(episodes, held_out, world, protocol)
    agents: list[Agent] = []

    def planning(part: Pairs) -> Actor:
        agent, goal_pixels = _agent(model, config, world, episodes, part, protocol.seed)
        agents.append(agent)
        return lambda active: agent.act(world.render() if agent.observes else None, goal_pixels, active)

    def floor(name: str, part: Pairs) -> Actor:
        return _floor(name, world, _seeds(world, part, protocol.seed))

    success_steps = {AGENT: _play(world, pairs, protocol, planning, AGENT, progress)}
    agent_seconds = time.perf_counter() - began
    omitted = {}
    for name in floors:
        try:
            success_steps[name] = _play(world, pairs, protocol, partial(floor, name), name, progress)
        except Unavailable as error:
            omitted[name] = str(error)
    return Evaluation(
        protocol=protocol,
        pairs=pairs,
        success_steps=success_steps,
        effort=sum((agent.effort for agent in agents), Effort()),
        batch=world.num_envs,
        seconds={"agent": agent_seconds, "total": time.perf_counter() - began},
        omitted=omitted,
    )


def evaluate_suite(
    model: WorldModel,
    config: PlanningConfig,
    world: World,
    episodes: Episodes,
    held_out: Sequence[int],
    protocols: Sequence[Protocol] = standard_protocols(),
    floors: Sequence[str] = FLOORS,
    progress: Progress | None = None,
) -> Suite:
    """Play several tasks; one that this world or these data cannot set is left out, with the reason."""
    evaluations, omitted = [], {}
    for protocol in protocols:
        try:
            evaluations.append(evaluate(model, config, world, episodes, held_out, protocol, floors, progress))
        except Unavailable as error:
            omitted[protocol.name] = str(error)
    return Suite(tuple(evaluations), omitted)


def record_episodes(
    model: WorldModel, config: PlanningConfig, world: World, episodes: Episodes, pairs: Pairs, protocol: Protocol
) -> list[Recording]:
    """Play some attempts once more with everything kept. The same model, pairs and protocol give the attempts that were scored.

    Args:
        world: every frame of all of them is kept, and a traced replan is large; a few environments are enough.
        pairs: those to be played, for instance `evaluation.pairs[:4]`.
    """
    return [
        recording
        for part in _portions(pairs, world.num_envs)
        for recording in _record(model, config, world, episodes, part, protocol)
    ]


def _record(
    model: WorldModel, config: PlanningConfig, world: World, episodes: Episodes, pairs: Pairs, protocol: Protocol
) -> list[Recording]:
    agent, goal_pixels = _agent(model, config, world, episodes, pairs, protocol.seed, trace=True)
    pixels, states, actions = [], [], []

    def act(active: np.ndarray) -> np.ndarray:
        seen = world.render()
        pixels.append(seen[: len(pairs)])
        states.append(world.states)
        actions.append(agent.act(seen, goal_pixels, active))
        return actions[-1]

    first = _attempt(world, pairs, protocol.budget, act)
    frames, places = np.stack([*pixels, world.render()[: len(pairs)]]), np.stack([*states, world.states])
    moves = np.array(actions).reshape(len(actions), world.num_envs, agent.action_dim)
    recordings = []
    for i, success in enumerate(first.tolist()):
        steps = len(moves) if success < 0 else success
        recordings.append(
            Recording(
                pixels=frames[: steps + 1, i],
                goal_pixels=goal_pixels[i],
                states=places[: steps + 1, i],
                goal_state=pairs.goals[i],
                actions=moves[:steps, i],
                success_step=None if success < 0 else success,
                replans=tuple(replan for each in agent.trace if (replan := each.of(i)) is not None),
            )
        )
    return recordings


def _play(
    world: World, pairs: Pairs, protocol: Protocol, actor: Callable[[Pairs], Actor], policy: str, progress: Progress | None
) -> np.ndarray:
    """Play all pairs, `num_envs` at a time -> (n,) as `_attempt`."""
    parts = list(_portions(pairs, world.num_envs))
    steps = []
    for number, part in enumerate(parts):

        def report(step: int, before: int = number * protocol.budget) -> None:
            if progress is not None:
                progress(f"{protocol.name}, {policy}", before + step, len(parts) * protocol.budget)

        steps.append(_attempt(world, part, protocol.budget, actor(part), report))
    return np.concatenate(steps)


def _attempt(world: World, pairs: Pairs, budget: int, act: Actor, report: Callable[[int], None] | None = None) -> np.ndarray:
    """Play at most `num_envs` pairs in one batch -> (n,) env step of the first success, 0 at the start, -1 for never."""
    place(world, pairs.starts, pairs.goals)
    first = np.where(world.success(), 0, -1)
    first[len(pairs) :] = 0  # padding has nothing to do
    for step in range(1, budget + 1):
        if (first >= 0).all():
            break
        world.step(act(first < 0))
        first[(first < 0) & world.success()] = step
        if report is not None:
            report(step)
    return first[: len(pairs)]


def _agent(
    model: WorldModel, config: PlanningConfig, world: World, episodes: Episodes, pairs: Pairs, seed: int, trace: bool = False
) -> tuple[Agent, np.ndarray]:
    """An agent for the pairs, and the (B, h, w, 3) recorded pictures of their goals."""
    goal_pixels = episodes.rows("pixels", pairs.goal_rows)[padded(len(pairs), world.num_envs)]
    return Agent(model, config, world.spec, _seeds(world, pairs, seed), trace), goal_pixels


def _floor(name: str, world: World, seeds: Sequence[int]) -> Actor:
    if name == DO_NOTHING:
        zeros = np.zeros((world.num_envs, len(world.spec.action_low)), np.float32)
        return lambda active: zeros
    if name not in world.policies:
        known = ", ".join(world.policies)
        raise Unavailable(f"world '{world.spec.name}' has no policy '{name}', only {known}.")
    policy = world.policy(name, seeds)
    return lambda active: policy()


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (COLUMNS, ["---"] * len(COLUMNS), *rows))


def _portions(pairs: Pairs, size: int) -> Iterable[Pairs]:
    return (pairs[first : first + size] for first in range(0, len(pairs), size))


def _seeds(world: World, pairs: Pairs, seed: int) -> list[int]:
    """One seed per environment, from (seed, place in the stream) alone, so that batching changes no attempt."""
    indices = pairs.index[padded(len(pairs), world.num_envs)]
    return [int(np.random.SeedSequence([seed, int(index)]).generate_state(1)[0]) for index in indices]
