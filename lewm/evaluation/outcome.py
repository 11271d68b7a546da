"""What an evaluation gave: success by policy and criterion, its intervals, and what may be said of
it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from lewm.evaluation.tables import COLUMNS, markdown_table
from lewm.evaluation.tasks import Pairs, Task
from lewm.planning.trace import Effort
from lewm.registry import choose
from lewm.stats import Paired, bootstrap_mean, p_value, paired, rate_with_interval, wilson

AGENT = "agent"


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
        apart: (n,) bool, whether start and goal lie in two regions, of a task that is reported by
            that; None for others.
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
    apart: np.ndarray | None = None
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
            apart=_joined([part.apart for part in parts]),
            parts=tuple(parts),
        )

    @property
    def by_region(self) -> dict[str, Evaluation]:
        """The pairs within one room, and those that lead to another, as evaluations of their own;
        none where that is not reported, or one side has no strict pair."""
        if self.apart is None:
            return {}
        sides = {"same room": ~self.apart, "other room": self.apart}
        if not all((self.pairs.strict & chosen).any() for chosen in sides.values()):
            return {}
        return {name: self._of(chosen) for name, chosen in sides.items()}

    def _of(self, chosen: np.ndarray) -> Evaluation:
        """Some of the pairs."""
        return replace(
            self,
            pairs=self.pairs[chosen],
            success_steps={p: steps[chosen] for p, steps in self.success_steps.items()},
            others={
                criterion: {p: steps[chosen] for p, steps in told.items()}
                for criterion, told in self.others.items()
            },
            apart=None,
            parts=(),
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
            **(
                {"by_region": {name: part._counts(self.criterion) for name, part in parts.items()}}
                if (parts := self.by_region)
                else {}
            ),
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
            return self._rows(self.protocol.name) + self._rows_by_region(self.protocol.name)
        name, seeds = self.protocol.name, [f"seed {part.protocol.seed}" for part in self.parts]
        single = [
            row
            for part, seed in zip(self.parts, seeds, strict=True)
            for row in part._rows(f"{name}, {seed}")
        ]
        pooled = f"{name}, {len(seeds)} seeds"
        return single + self._rows(pooled) + self._rows_by_region(pooled)

    def _rows_by_region(self, task: str) -> list[tuple[str, ...]]:
        return [
            row for name, part in self.by_region.items() for row in part._rows(f"{task}, {name}")
        ]

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


def _joined(several: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """One after the other; None where one is not there."""
    known = [each for each in several if each is not None]
    return np.concatenate(known) if len(known) == len(several) else None


def _plain(steps: dict[str, np.ndarray]) -> dict[str, list[int]]:
    return {policy: values.tolist() for policy, values in steps.items()}
