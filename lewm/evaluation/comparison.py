"""Results side by side: several tasks and seeds of one agent, two agents on the same pairs, several
runs of one recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from lewm.contracts import Report, World, WorldModel, silent
from lewm.data.episodes import Episodes
from lewm.evaluation.evaluate import FLOORS, evaluate
from lewm.evaluation.outcome import AGENT, Evaluation
from lewm.evaluation.tables import COLUMNS, markdown_table
from lewm.evaluation.tasks import Task, Unavailable, standard_tasks
from lewm.planning.config import PlanningConfig
from lewm.stats import Paired, p_value

COMPARISON_COLUMNS = ("task", "first", "second", "difference", "only first", "only second", "p")
"""Names of what a row of a comparison holds; rates are those of the strict pairs, p that of
McNemar's exact test."""

SPREAD_COLUMNS = ("task", "policy", "runs", "paper's protocol", "strict")
"""Names of what a row about several runs holds: the mean over them, the least and the most."""


@dataclass(frozen=True)
class Suite:
    """Several tasks, each over all of its seeds, and why others were left out."""

    evaluations: tuple[Evaluation, ...]
    omitted: dict[str, str]

    def __getitem__(self, task: str) -> Evaluation:
        return {evaluation.protocol.name: evaluation for evaluation in self.evaluations}[task]

    def __contains__(self, task: object) -> bool:
        return any(evaluation.protocol.name == task for evaluation in self.evaluations)

    def to_json(self) -> dict[str, Any]:
        return {
            "tasks": [evaluation.to_json() for evaluation in self.evaluations],
            "omitted": self.omitted,
        }

    def rows(self) -> list[tuple[str, ...]]:
        """Those of all tasks."""
        return [row for evaluation in self.evaluations for row in evaluation.rows()]

    def remarks(self) -> list[str]:
        """Sentences about each task, and one for each that was left out."""
        told = [remark for evaluation in self.evaluations for remark in evaluation.remarks()]
        return told + [
            f"Not evaluated: {task}, because {reason}" for task, reason in self.omitted.items()
        ]

    def markdown(self) -> str:
        return "\n\n".join([markdown_table(COLUMNS, self.rows()), *self.remarks()])


def evaluate_suite(
    model: WorldModel,
    config: PlanningConfig,
    world: World,
    episodes: Episodes,
    held_out: Sequence[int],
    protocols: Sequence[Task] = standard_tasks(),
    floors: Sequence[str] = FLOORS,
    report: Report = silent,
    seeds: int = 1,
    like: Suite | None = None,
) -> Suite:
    """Play several tasks; one that this world or these data cannot set is left out, with the
    reason.

    Args:
        seeds: how often each task is played and pooled: with its own seed, the next one, and so on.
            Pairs, search and the random floor are all drawn anew.
        like: the same tasks and seeds as another agent played them: pairs and floors are taken
            over.
    """
    evaluations, omitted = [], {}
    for protocol in protocols:
        if like is not None and protocol.name in like.omitted:
            omitted[protocol.name] = like.omitted[protocol.name]
            continue
        earlier: Sequence[Evaluation | None] = [None] * seeds
        if like is not None:
            earlier = like[protocol.name].parts or (like[protocol.name],)
        parts = []
        try:
            for number, other in enumerate(earlier):
                seeded = replace(protocol, seed=protocol.seed + number)
                told = report if seeds == 1 else _prefixed(report, f"seed {seeded.seed}, ")
                parts.append(
                    evaluate(model, config, world, episodes, held_out, seeded, floors, told, other)
                )
        except Unavailable as error:
            omitted[protocol.name] = str(error)
        else:
            evaluations.append(parts[0] if seeds == 1 else Evaluation.pooled(parts))
    return Suite(tuple(evaluations), omitted)


def _prefixed(report: Report, prefix: str) -> Report:
    return lambda progress: report(replace(progress, stage=prefix + progress.stage))


# ----------------------------------------------------------------------- two agents, the same pairs


@dataclass(frozen=True)
class Comparison:
    """Two agents on the strict pairs of one task, by one criterion.

    Attributes:
        first, second: what they are called.
        first_rate, second_rate: their success.
        paired: where they differ; attempts are of `episodes` trajectories, over all seeds.
    """

    task: str
    criterion: str
    first: str
    second: str
    first_rate: float
    second_rate: float
    paired: Paired

    @property
    def verdict(self) -> str:
        """In plain words, cautiously; see `stats.Paired.better`."""
        if not self.paired.enough:
            return f"{self.paired.episodes} episodes cannot tell"
        return {1: f"{self.first} better", -1: f"{self.second} better", 0: "no difference shown"}[
            self.paired.better
        ]

    def __str__(self) -> str:
        told = (
            f"{self.first} {self.first_rate:.1%}, {self.second} {self.second_rate:.1%}, "
            f"difference {self._difference} points"
        )
        p = self.paired
        return (
            f"{self.task}: {self.verdict} ({told} over {p.episodes} episodes drawn anew, "
            f"McNemar's p {p_value(p.p)})."
        )

    @property
    def _difference(self) -> str:
        p = self.paired
        return f"{100 * p.difference:+.1f} [{100 * p.low:+.1f}, {100 * p.high:+.1f}]"

    def row(self) -> tuple[str, ...]:
        """A cell for each of `COMPARISON_COLUMNS`."""
        p = self.paired
        return (
            self.task,
            f"{self.first} {self.first_rate:.1%}",
            f"{self.second} {self.second_rate:.1%}",
            self._difference,
            str(p.only_first),
            str(p.only_second),
            p_value(p.p),
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


def compare(first: str, second: str, suites: tuple[Suite, Suite]) -> list[Comparison]:
    """Lay two agents side by side, task by task and criterion by criterion.

    Args:
        first, second: what to call them.
        suites: what they reached, the second one played `like` the first.

    Raises:
        ValueError: they did not play the same pairs.
    """
    return [
        _compared(first, second, a, suites[1][a.protocol.name], criterion)
        for a in suites[0].evaluations
        if a.protocol.name in suites[1]
        for criterion in a.criteria
    ]


def _compared(first: str, second: str, a: Evaluation, b: Evaluation, criterion: str) -> Comparison:
    one, other = a.pairs, b.pairs
    if not all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("start_rows", "goal_rows", "starts", "goals", "strict")
    ):
        raise ValueError(
            f"expected {first} and {second} to have played the same pairs of '{a.protocol.name}', "
            "got different ones. Evaluate both on the same episodes with the same seed, or the "
            "second one `like` the first."
        )
    first_rate, second_rate = (
        evaluation.score(AGENT, True, criterion).rate for evaluation in (a, b)
    )
    return Comparison(
        _titled(a, criterion),
        criterion,
        first,
        second,
        first_rate,
        second_rate,
        a.against(b, criterion),
    )


# ----------------------------------------------------------------------- several runs of one recipe


@dataclass(frozen=True)
class Spread:
    """One policy's success over several runs, each on its own pairs: (mean, least, most) under both
    ways of counting.

    No interval: with as few runs as people train, one would say more about its assumptions than
    about the runs.
    """

    task: str
    criterion: str
    policy: str
    runs: int
    paper: tuple[float, float, float]
    strict: tuple[float, float, float]

    def row(self) -> tuple[str, ...]:
        """A cell for each of `SPREAD_COLUMNS`."""
        cells = (
            f"{mean:.1%} ({least:.1%} to {most:.1%})"
            for mean, least, most in (self.paper, self.strict)
        )
        return (self.task, self.policy, str(self.runs), *cells)


def spread(suites: Sequence[Suite]) -> list[Spread]:
    """Sum up runs of different training seeds; a task or floor that some run lacks is summed up
    over those that have it."""
    tasks = list(dict.fromkeys(e.protocol.name for suite in suites for e in suite.evaluations))
    found = []
    for task in tasks:
        played = [suite[task] for suite in suites if task in suite]
        for criterion in played[0].criteria:
            for policy in dict.fromkeys(policy for e in played for policy in e.success_steps):
                those = [e for e in played if policy in e.success_steps]
                counts = (
                    _extent([e.score(policy, strict, criterion).rate for e in those])
                    for strict in (False, True)
                )
                found.append(
                    Spread(_titled(played[0], criterion), criterion, policy, len(those), *counts)
                )
    return found


def _extent(rates: Sequence[float]) -> tuple[float, float, float]:
    return float(np.mean(rates)), min(rates), max(rates)


def _titled(evaluation: Evaluation, criterion: str) -> str:
    name = evaluation.protocol.name
    return name if criterion == evaluation.criterion else f"{name}, {criterion}"
