"""Does the agent get there? Success on held-out start/goal pairs, floors on the same pairs, an
interval on every rate."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from lewm.contracts import World, WorldModel
from lewm.data.episodes import Episodes
from lewm.evaluation.tasks import (
    DO_NOTHING,
    Actor,
    Pairs,
    Task,
    Unavailable,
    attempt,
    draw_pairs,
    follow,
    padded,
)
from lewm.planning.agent import Agent, Effort, PlanningConfig, Replan
from lewm.registry import choose
from lewm.stats import Paired, bootstrap_mean, p_value, paired, rate_with_interval, wilson

AGENT = "agent"
FLOORS = (DO_NOTHING, "random", "straight-line")
"""Shown beside every success rate. "straight-line" walks straight to the goal and knows the state;
not every world has it."""

Progress = Callable[[str, int, int], None]
"""Called with the task and policy being played, the env steps played and the most there can be."""

COLUMNS = (
    "task",
    "policy",
    "paper's protocol",
    "strict",
    "solved at start",
    "median steps",
    "ms per plan",
    "p against agent",
)
"""Names of what a row of results holds; p is that of McNemar's exact test on the strict pairs."""

# ------------------------------------------------------------------------------------------ records


@dataclass(frozen=True)
class Score:
    """Success of one policy under one way of counting.

    Attributes:
        rate, low, high: share of successes and its 95% Wilson interval, as if every pair were
            independent.
        episode_low, episode_high: 95% interval of a bootstrap over held-out episodes: pairs may be
            parts of one trajectory. It shrinks to a point where all succeed or none, which Wilson's
            does not.
        median_steps: env steps to the first success, among the successes that did not begin solved;
            None without any.
    """

    episodes: int
    successes: int
    rate: float
    low: float
    high: float
    episode_low: float
    episode_high: float
    median_steps: float | None

    def __str__(self) -> str:
        return f"{rate_with_interval(self.rate, self.low, self.high)} of {self.episodes}"


@dataclass(frozen=True)
class Evaluation:
    """What one task gave.

    Attributes:
        protocol: the task.
        pairs: the attempts.
        success_steps: policy -> (n,) env step of the first success: 0 if it began solved, -1 if it
            never came.
        effort: of the agent's planning.
        batch: environments stepped and planned together.
        seconds: wall time of the agent's attempts, and of everything.
        omitted: floor -> why it was left out.
        criterion: by which `success_steps` counts, the first of the world's.
        others: each further criterion of the world -> its steps, as `success_steps`. An attempt
            goes on until all were met.
        parts: the evaluations that were pooled, one per seed; empty where there is one seed.
    """

    protocol: Task
    pairs: Pairs
    success_steps: dict[str, np.ndarray]
    effort: Effort
    batch: int
    seconds: dict[str, float]
    omitted: dict[str, str]
    criterion: str = "success"
    others: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    parts: tuple[Evaluation, ...] = ()

    @classmethod
    def pooled(cls, parts: Sequence[Evaluation]) -> Evaluation:
        """One task played with several seeds, as one: all their pairs, some perhaps drawn twice;
        only `episode_low` knows."""
        first = parts[0]

        def together(criterion: str) -> dict[str, np.ndarray]:
            return {
                policy: np.concatenate([p.steps(policy, criterion) for p in parts])
                for policy in first.success_steps
            }

        return replace(
            first,
            pairs=Pairs.joined([part.pairs for part in parts]),
            success_steps=together(first.criterion),
            effort=sum((part.effort for part in parts), Effort()),
            seconds={name: sum(part.seconds[name] for part in parts) for name in first.seconds},
            others={criterion: together(criterion) for criterion in first.others},
            parts=tuple(parts),
        )

    @property
    def criteria(self) -> tuple[str, ...]:
        """Those of the world, the benchmark's first."""
        return self.criterion, *self.others

    def steps(self, policy: str = AGENT, criterion: str | None = None) -> np.ndarray:
        """(n,) env step at which a criterion was first met, as `success_steps`; None is the
        benchmark's."""
        criterion = choose("criterion", criterion or self.criterion, self.criteria)
        return (self.success_steps if criterion == self.criterion else self.others[criterion])[
            policy
        ]

    def score(
        self, policy: str = AGENT, strict: bool = False, criterion: str | None = None
    ) -> Score:
        """Success of a policy under the paper's protocol, or without the pairs that begin solved by
        any criterion."""
        counted = self.pairs.strict if strict else self.pairs.paper
        steps = self.steps(policy, criterion)[counted]
        successes, episodes = int((steps >= 0).sum()), len(steps)
        moved = steps[steps > 0]
        return Score(
            episodes,
            successes,
            successes / episodes,
            *wilson(successes, episodes),
            *bootstrap_mean(steps >= 0, self.pairs.start_episodes[counted]),
            float(np.median(moved)) if len(moved) else None,
        )

    def against(self, rival: str | Evaluation, criterion: str | None = None) -> Paired:
        """The agent beside a floor, or beside the agent of another evaluation of the same pairs: on
        the strict pairs."""
        theirs = (
            self.steps(rival, criterion)
            if isinstance(rival, str)
            else rival.steps(AGENT, criterion)
        )
        strict = self.pairs.strict
        return paired(
            self.steps(AGENT, criterion)[strict] >= 0,
            theirs[strict] >= 0,
            self.pairs.start_episodes[strict],
        )

    @property
    def solved_at_start(self) -> float:
        """Share of the paper's pairs that begin solved, and so count as successes whatever is
        done."""
        return self.share_solved_at_start()

    def share_solved_at_start(self, criterion: str | None = None) -> float:
        """The same, by any criterion."""
        return float((self.steps(AGENT, criterion)[self.pairs.paper] == 0).mean())

    def to_json(self) -> dict[str, Any]:
        """Plain numbers only; `pairs` holds each attempt's outcome, for paired comparisons. A pool
        has its seeds instead."""
        pairs = {
            **{
                name: values.tolist()
                for name, values in vars(self.pairs).items()
                if values.ndim == 1
            },
            "success_steps": _plain(self.success_steps),
            "others": {criterion: _plain(steps) for criterion, steps in self.others.items()},
        }
        return {
            "task": self.protocol.name,
            "protocol": asdict(self.protocol),
            "criterion": self.criterion,
            **self._counts(self.criterion),
            "others": {criterion: self._counts(criterion) for criterion in self.others},
            "planning": {
                **asdict(self.effort),
                "batch": self.batch,
                "seconds_per_plan": self.effort.seconds_per_plan,
                "predictor_calls_per_plan": self.effort.predictor_calls_per_plan,
            },
            "seconds": self.seconds,
            "omitted": self.omitted,
            **(
                {"seeds": [part.to_json() for part in self.parts]}
                if self.parts
                else {"pairs": pairs}
            ),
        }

    def _counts(self, criterion: str) -> dict[str, Any]:
        policies = list(self.success_steps)
        against = {floor: self.against(floor, criterion) for floor in policies if floor != AGENT}
        return {
            "paper": {
                policy: asdict(self.score(policy, criterion=criterion)) for policy in policies
            },
            "strict": {policy: asdict(self.score(policy, True, criterion)) for policy in policies},
            "solved_at_start": self.share_solved_at_start(criterion),
            "against": {
                floor: {**asdict(beside), "better": beside.better}
                for floor, beside in against.items()
            },
        }

    def rows(self) -> list[tuple[str, ...]]:
        """One per policy and criterion, with a cell for each of `COLUMNS`; those of single seeds
        before their pool."""
        if not self.parts:
            return self._rows(self.protocol.name)
        name, seeds = self.protocol.name, [f"seed {part.protocol.seed}" for part in self.parts]
        single = [
            row
            for part, seed in zip(self.parts, seeds, strict=True)
            for row in part._rows(f"{name}, {seed}")
        ]
        return single + self._rows(f"{name}, {len(seeds)} seeds")

    def _rows(self, task: str) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = []
        for criterion in self.criteria:
            for policy in self.success_steps:
                steps = self.score(policy, True, criterion).median_steps
                rows.append(
                    (
                        task,
                        policy if criterion == self.criterion else f"{policy}, {criterion}",
                        str(self.score(policy, criterion=criterion)),
                        str(self.score(policy, True, criterion)),
                        f"{self.share_solved_at_start(criterion):.1%}",
                        "-" if steps is None else f"{steps:g}",
                        f"{1e3 * self.effort.seconds_per_plan:.1f}" if policy == AGENT else "-",
                        "-" if policy == AGENT else p_value(self.against(policy, criterion).p),
                    )
                )
        return rows

    def remarks(self) -> list[str]:
        """Sentences: whether the agent is better than its floors, and what a table has no room
        for."""
        name, told = self.protocol.name, []
        for criterion in self.criteria:
            what = name if criterion == self.criterion else f"{name}, {criterion}"
            score = self.score(AGENT, True, criterion)
            against = {
                floor: self.against(floor, criterion)
                for floor in self.success_steps
                if floor != AGENT
            }
            beside = [
                f"; {verdict} {', '.join(floors)}"
                for sign, verdict in (
                    (1, "significantly better than"),
                    (0, "not shown to differ from"),
                    (-1, "worse than"),
                )
                if (floors := [floor for floor, paired in against.items() if paired.better == sign])
            ]
            count = len(np.unique(self.pairs.start_episodes[self.pairs.strict]))
            interval = (
                f"[{score.episode_low:.1%}, {score.episode_high:.1%}] over {count} episodes drawn "
                "anew"
            )
            if (
                score.episode_low == score.episode_high
            ):  # a bootstrap of what never differs claims certainty
                interval = f"{score.rate:.1%} in every one of {count} episodes"
            enough = all(paired.enough for paired in against.values())
            told.append(
                f"{what}: agent, strict "
                f"{interval}{''.join(beside) if enough else ', too few to tell more'}."
            )
        return told + [
            f"{name}: without {floor}, because {reason}" for floor, reason in self.omitted.items()
        ]

    def markdown(self) -> str:
        return "\n\n".join([markdown_table(COLUMNS, self.rows()), *self.remarks()])


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
        replans: what was planned, with the latents in which candidates were imagined to end; see
            `agent.Replan`.
    """

    pixels: np.ndarray
    goal_pixels: np.ndarray
    states: np.ndarray
    goal_state: np.ndarray
    actions: np.ndarray
    success_step: int | None
    replans: tuple[Replan, ...]


# ----------------------------------------------------------------------------------------- attempts


def evaluate(
    model: WorldModel,
    config: PlanningConfig,
    world: World,
    episodes: Episodes,
    held_out: Sequence[int],
    protocol: Task = Task(),  # noqa: B008  frozen
    floors: Sequence[str] = FLOORS,
    progress: Progress | None = None,
    like: Evaluation | None = None,
) -> Evaluation:
    """Play one task with the agent and with the floors, on the same pairs.

    Args:
        world: `num_envs` attempts are stepped and planned together; results do not depend on that
            number.
        episodes, held_out: starts and goals come from these episodes; the agent is shown the goal
            as its recorded picture.
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
        agent, goal_pixels = _agent(model, config, world, episodes, part, protocol.seed)
        agents.append(agent)
        return lambda active: agent.act(
            world.render() if agent.observes else None, goal_pixels, active
        )

    def floor(name: str, part: Pairs) -> Actor:
        return follow(name, world, part.seeds(world.num_envs, protocol.seed))

    played = {AGENT: _play(world, pairs, protocol, planning, AGENT, progress)}
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
            played[name] = _play(world, pairs, protocol, partial(floor, name), name, progress)
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
        others={
            criterion: {p: steps[k] for p, steps in played.items()}
            for k, criterion in enumerate(others, 1)
        },
    )


def record_episodes(
    model: WorldModel,
    config: PlanningConfig,
    world: World,
    episodes: Episodes,
    pairs: Pairs,
    protocol: Task,
) -> list[Recording]:
    """Play some attempts once more with everything kept. The same model, pairs and protocol give
    the attempts that were scored.

    They end with the benchmark's success, whatever else there is to meet.

    Args:
        world: every frame of all of them is kept, and a traced replan is large; a few environments
            are enough.
        pairs: those to be played, for instance `evaluation.pairs[:4]`, of one seed.
    """
    return [
        recording
        for part in pairs.portions(world.num_envs)
        for recording in _record(model, config, world, episodes, part, protocol)
    ]


def _record(
    model: WorldModel,
    config: PlanningConfig,
    world: World,
    episodes: Episodes,
    pairs: Pairs,
    protocol: Task,
) -> list[Recording]:
    agent, goal_pixels = _agent(model, config, world, episodes, pairs, protocol.seed, trace=True)
    pixels, states, actions = [], [], []

    def act(active: np.ndarray) -> np.ndarray:
        seen = world.render()
        pixels.append(seen[: len(pairs)])
        states.append(world.states)
        actions.append(agent.act(seen, goal_pixels, active))
        return actions[-1]

    first = attempt(world, pairs, protocol.budget, act, world.spec.criteria[:1])[0]
    frames, places = (
        np.stack([*pixels, world.render()[: len(pairs)]]),
        np.stack([*states, world.states]),
    )
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
    world: World,
    pairs: Pairs,
    protocol: Task,
    actor: Callable[[Pairs], Actor],
    policy: str,
    progress: Progress | None,
) -> np.ndarray:
    """Play all pairs, `num_envs` at a time -> (C, n) as `tasks.attempt`."""
    parts = list(pairs.portions(world.num_envs))
    steps = []
    for number, part in enumerate(parts):

        def report(step: int, before: int = number * protocol.budget) -> None:
            if progress is not None:
                progress(f"{protocol.name}, {policy}", before + step, len(parts) * protocol.budget)

        steps.append(
            attempt(world, part, protocol.budget, actor(part), world.spec.criteria, report)
        )
    return np.concatenate(steps, axis=1)


def _agent(
    model: WorldModel,
    config: PlanningConfig,
    world: World,
    episodes: Episodes,
    pairs: Pairs,
    seed: int,
    trace: bool = False,
) -> tuple[Agent, np.ndarray]:
    """An agent for the pairs, and the (B, h, w, 3) recorded pictures of their goals."""
    goal_pixels = episodes.rows("pixels", pairs.goal_rows)[padded(len(pairs), world.num_envs)]
    return Agent(model, config, world.spec, pairs.seeds(world.num_envs, seed), trace), goal_pixels


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: a line of names, one of dashes, and one per row."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows))


def _plain(steps: dict[str, np.ndarray]) -> dict[str, list[int]]:
    return {policy: values.tolist() for policy, values in steps.items()}
