"""Methods side by side: what a study found of each, in a table, two figures and plain sentences.

A study's file holds its rows, one per run, and what each method is. Nothing is measured here.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lewm.files import read_json
from lewm.report import canvas
from lewm.report.canvas import THEME, Panel
from lewm.report.words import percent
from lewm.stats import Paired, p_value, paired, wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "RANKED_BY",
    "Standing",
    "Study",
    "Swamp",
    "figures",
    "has_collapsed",
    "study_of",
    "to_markdown",
]

Row = Mapping[str, Any]

REFERENCE = "lewm"
"""The method that all are compared with."""

RANKED_BY, GOOD = "far", 0.9
"""The task by which methods are ranked, said before anything was run; and the share of the best
result that counts as reaching it."""

TASK_TITLES = {"near": "25 steps", "far": "75 steps", "across": "other room"}


@dataclass(frozen=True)
class Study:
    """Rows of a study, and what its methods are.

    Attributes:
        methods: name -> `title`, `way`, `knobs`, `source`, `objection`, `answer`, `control`.
        rates: learning rates that each was tried with.
        rows: of all runs, those that failed included.
    """

    methods: Mapping[str, Mapping[str, Any]]
    rates: tuple[float, ...]
    rows: tuple[Row, ...]

    @property
    def worlds(self) -> list[str]:
        return list(dict.fromkeys(row["world"] for row in self.rows))

    @cached_property
    def groups(self) -> dict[str, Sequence[int]]:
        """Pairs, by their digest -> the episode of each."""
        return {
            task["drawn"]: task["episodes"]
            for row in self.rows
            for task in row.get("tasks", {}).values()
            if "episodes" in task
        }

    def runs(self, world: str, method: str) -> list[Row]:
        """With the method's own settings, that did not fail."""
        return [
            row
            for row in self.rows
            if (row["world"], row["method"], row["draw"]) == (world, method, None)
            and "error" not in row
        ]

    def failed(self, world: str) -> list[Row]:
        return [row for row in self.rows if row["world"] == world and "error" in row]

    def standings(self, world: str) -> list[Standing]:
        """Of all methods with a run, best first, controls among them."""
        found = []
        for name in self.methods:
            if runs := self.runs(world, name):
                found.append(Standing(self, world, name, runs))
        return sorted(found, key=lambda one: -one.mean(RANKED_BY))

    def swamp(self, world: str) -> list[Swamp]:
        """Of all methods whose settings were drawn."""
        best = max((_rate(row) for row in self.rows if row["world"] == world), default=0.0)
        found = []
        for name in self.methods:
            drawn = [
                row
                for row in self.rows
                if (row["world"], row["method"]) == (world, name) and row["draw"] is not None
            ]
            if drawn:
                found.append(Swamp(name, tuple(_rate(row) for row in drawn), best, tuple(drawn)))
        return found


@dataclass(frozen=True)
class Standing:
    """A method in a world: its runs with the best learning rate, one per seed."""

    study: Study
    world: str
    method: str
    runs: Sequence[Row]

    @property
    def about(self) -> Mapping[str, Any]:
        return self.study.methods[self.method]

    @cached_property
    def tuned(self) -> dict[float, float]:
        """Learning rate -> success on the ranking task, of the first seed."""
        first = min(row["seed"] for row in self.runs)
        rows = {row["rate"]: _rate(row) for row in self.runs if row["seed"] == first}
        return dict(sorted(rows.items()))

    @cached_property
    def rate(self) -> float:
        """The best learning rate."""
        return max(self.tuned, key=lambda rate: self.tuned[rate])

    @cached_property
    def best(self) -> list[Row]:
        """A run per seed, by seed."""
        return sorted(
            (row for row in self.runs if row["rate"] == self.rate), key=lambda row: row["seed"]
        )

    def rates(self, task: str) -> list[float]:
        """Success of each seed; empty where the world has no such task."""
        return [row["tasks"][task]["rate"] for row in self.best if task in row["tasks"]]

    def mean(self, task: str) -> float:
        known = self.rates(task) or [_rate(row) for row in self.best]
        return float(np.mean(known))

    def interval(self, task: str) -> tuple[float, float]:
        """Wilson's, over the pairs of all seeds."""
        told = [row["tasks"][task] for row in self.best if task in row["tasks"]]
        n = sum(one["pairs"] for one in told)
        return wilson(round(sum(one["rate"] * one["pairs"] for one in told)), n)

    def middle(self, name: str) -> float | None:
        """The median of a number over seeds."""
        known = [row[name] for row in self.best if row.get(name) is not None]
        return float(np.median(known)) if known else None

    def share(self, name: str, block: str) -> float | None:
        """The same, of one that is known by block ahead."""
        known = [row[name][block] for row in self.best if row.get(name, {}).get(block) is not None]
        return float(np.median(known)) if known else None

    @property
    def plan_ms(self) -> float:
        return float(np.median([row["plan_ms"] for row in self.best]))

    def against(self, other: Standing, task: str) -> Paired | None:
        """Both on the same pairs, of the seeds that both have; None where there are none."""
        mine, theirs, groups = [], [], []
        rivals = {row["seed"]: row for row in other.best}
        for row in self.best:
            rival = rivals.get(row["seed"])
            a, b = (one["tasks"].get(task) if one else None for one in (row, rival))
            if not a or not b or a["drawn"] != b["drawn"] or a["drawn"] not in self.study.groups:
                continue
            mine.append(_solved(a))
            theirs.append(_solved(b))
            groups.append([f"{row['seed']}/{i}" for i in self.study.groups[a["drawn"]]])
        if not mine:
            return None
        return paired(*(np.concatenate(each) for each in (mine, theirs, groups)))

    @property
    def collapsed(self) -> bool:
        """Probes read no more than from a random encoder, and the latents lie on a line or in a
        point."""
        floor = [(row.get("probe_controls") or {}).get("random encoder") for row in self.best]
        r, rank, std = (self.middle(n) for n in ("probe_r", "effective_rank", "latent_std"))
        known = [value for value in floor if value is not None]
        if rank is None or std is None:
            return False
        return has_collapsed(r, float(np.median(known)) if known else None, rank, std)


def has_collapsed(r: float | None, floor: float | None, rank: float, std: float) -> bool:
    """Probes read no more than from random weights, and latents lie in a point or on a line. One
    of these alone misleads: what plans well may have a std of .15, and what plans badly one of 1.

    Args:
        r: worst of the probes; None where nothing can be read.
        floor: the same of an encoder with random weights; None where it is not known.
        rank, std: effective rank and standard deviation of held-out latents.

    Source: ours, said before the study was run.
    """
    blind = r is None or (floor is not None and r <= floor)
    return blind and (rank < FLAT_RANK or std < FLAT_STD)


FLAT_RANK, FLAT_STD = 1.5, 0.02


@dataclass(frozen=True)
class Swamp:
    """How much of the room of settings works.

    Attributes:
        rates: success of each draw; 0 of one that failed.
        reference: the best that any run of any method reached.
        rows: of the draws.
    """

    method: str
    rates: tuple[float, ...]
    reference: float
    rows: tuple[Row, ...]

    def hits(self, reference: float | None = None) -> int:
        """Draws that reach 90% of a reference, the best of all methods by default."""
        needed = GOOD * (self.reference if reference is None else reference)
        return sum(rate >= needed for rate in self.rates)

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.hits(), len(self.rates))

    def expected_best(self, n: int) -> float:
        """The mean best of n draws without replacement out of those there are."""
        ordered, total = sorted(self.rates), len(self.rates)
        ways = math.comb(total, n)
        return sum(rate * math.comb(k, n - 1) for k, rate in enumerate(ordered)) / ways

    @property
    def needed(self) -> int | None:
        """Draws until the expected best reaches 90% of the reference; None if not even all do."""
        for n in range(1, len(self.rates) + 1):
            if self.expected_best(n) >= GOOD * self.reference:
                return n
        return None


def study_of(path: Path) -> Study:
    """Read a study's file, as `lewm study` writes it.

    Raises:
        ValueError: it is damaged, or no such file.
    """
    told = read_json(path)
    try:
        rows = tuple(dict(row) for row in told["rows"])
        for row in rows:
            _ = row["name"], row["world"], row["method"], row["draw"], row["seed"], row["rate"]
            if "error" not in row:
                _ = _rate(row), row["draw"] is not None or float(row["plan_ms"])
        methods = {str(name): dict(about) for name, about in told["methods"].items()}
        for row in rows:
            _ = methods[row["method"]]["title"]
        return Study(methods, tuple(float(rate) for rate in told["rates"]), rows)
    except (KeyError, TypeError, AttributeError, ValueError, StopIteration) as error:
        raise ValueError(
            f"{path} is damaged: expected rows and methods of a study, got {error!r}. Give a file "
            "that `lewm study` wrote."
        ) from None


# ---------------------------------------------------------------------------------------- the table


def table(study: Study, world: str) -> list[dict[str, str]]:
    """A line per method, best first, as people read it."""
    standings = study.standings(world)
    reference = next((one for one in standings if one.method == REFERENCE), None)
    return [_line(one, reference) for one in standings]


def _line(one: Standing, reference: Standing | None) -> dict[str, str]:
    tasks = {
        f"{TASK_TITLES[task]}, %": _seeds(one, task)
        for task in TASK_TITLES
        if any(task in row["tasks"] for row in one.study.rows if "tasks" in row)
    }
    return {
        "method": one.about["title"] + (" (control)" if one.about["control"] else ""),
        "knobs": str(one.about["knobs"]),
        **tasks,
        "against LeWM": _judged(one, reference),
        "worst r": _said(one.middle("probe_r"), ".4f"),
        "std": _said(one.middle("latent_std"), ".2f"),
        "rank": _said(one.middle("effective_rank"), ".1f") + ("*" if one.collapsed else ""),
        "error / copying, 1 and 5 blocks": " / ".join(
            _said(one.share("error_of_copying", block), ".2f") for block in ("1", "5")
        ),
        "cost's rank": _said(one.middle("cost_rank_states"), ".2f"),
        "S": _said(one.middle("straightness"), ".2f"),
        "tokens": str(one.best[0]["tokens"]),
        "parameters": f"{one.best[0]['parameters'] / 1e6:.2f} M",
        "train, cpu-s": _said(one.middle("train_cpu_s"), ".0f"),
        "plan, ms": _said(one.plan_ms, ".0f"),
        "best rate": f"{one.rate:g}",
    }


def _seeds(one: Standing, task: str) -> str:
    """Mean over seeds and its interval, and each seed."""
    rates = one.rates(task)
    if not rates:
        return "-"
    low, high = one.interval(task)
    each = ", ".join(f"{100 * rate:.1f}" for rate in rates)
    mean = f"{100 * np.mean(rates):.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    return mean if len(rates) == 1 else f"{mean}: {each}"


def _judged(one: Standing, reference: Standing | None) -> str:
    if reference is None or one.method == REFERENCE:
        return "-"
    found = one.against(reference, RANKED_BY)
    if found is None:
        return "other pairs"
    word = {1: "better", -1: "worse", 0: "not shown to differ"}[found.better]
    return f"{100 * found.difference:+.1f}, {word} (p {p_value(found.p)})"


def _said(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


# ------------------------------------------------------------------------------------------ figures


def figures(study: Study, world: str) -> list[Panel]:
    """Success against planning time, and where settings were drawn against them."""
    standings = study.standings(world)
    drawn = [_time_panel(standings, world)] if standings else []
    if swamp := study.swamp(world):
        drawn.append(_swamp_panel(study, swamp, world))
    return drawn


def _time_panel(standings: Sequence[Standing], world: str) -> Panel:
    times = [one.plan_ms for one in standings]
    middle = math.sqrt(min(times) * max(times))
    numbered = list(enumerate(standings, 1))
    sides = [
        [(number, one) for number, one in numbered if (one.plan_ms > middle) is slow]
        for slow in (False, True)
    ]

    def draw(axes: Axes) -> None:
        for side in filter(None, sides):
            heights = _apart([100 * one.mean(RANKED_BY) for _, one in side], NUMBER_GAP)
            column = 1.4 * max(one.plan_ms for _, one in side)
            for (number, one), height in zip(side, heights, strict=True):
                place = one.plan_ms, 100 * one.mean(RANKED_BY)
                ours, control = one.method == REFERENCE, one.about["control"]
                colour = THEME["accent" if ours else "floor" if control else "warm"]
                axes.annotate(
                    str(number),
                    place,
                    (column, height),
                    va="center",
                    fontsize=9,
                    color=THEME["ink"],
                    arrowprops={
                        "arrowstyle": "-",
                        "relpos": (0, 0.5),
                        "color": THEME["line"],
                        "linewidth": 0.8,
                    },
                )
                ends = [100 * end for end in one.interval(RANKED_BY)]
                axes.plot([one.plan_ms] * 2, ends, color=colour, linewidth=1.2)
                axes.plot(*place, marker="o", markersize=5, color=colour)
        axes.set_xscale("log")
        axes.set_xlim(min(times) / 2, 2.5 * max(times))  # what is alike looks alike
        canvas.plain_decades(axes.xaxis)
        axes.set_ylim(0, 101)
        axes.set_xlabel("ms per plan, of the processor")
        axes.set_ylabel("success, 75 steps ahead, %")
        axes.grid(axis="y", color=THEME["line"], linewidth=0.8)
        key = "\n".join(f"{n} {one.about['title']}" for n, one in numbered)
        axes.text(0, -0.3, key, transform=axes.transAxes, va="top", fontsize=9, color=THEME["ink"])

    return canvas.draw(f"success and planning time, {world}", draw, 3.6 + 0.2 * len(standings))


NUMBER_GAP = 5.5
"""Per cent between two numbers beside the points, a line of text."""


def _apart(values: Sequence[float], gap: float, most: float = 100.0) -> list[float]:
    """Where labels of values stand that must not overlap: as near them as that allows, in their
    order, the lowest at `gap` / 2 and the highest at `most` at the furthest."""
    order = sorted(range(len(values)), key=lambda i: -values[i])
    places, ceiling = list(values), most
    for i in order:
        places[i] = min(values[i], ceiling)
        ceiling = places[i] - gap
    floor = gap / 2
    for i in reversed(order):
        places[i] = max(places[i], floor)
        floor = places[i] + gap
    return places


def _swamp_panel(study: Study, swamp: Sequence[Swamp], world: str) -> Panel:
    def draw(axes: Axes) -> None:
        for place, one in enumerate(swamp):
            rates = 100 * np.sort(one.rates)
            ours = THEME["accent" if one.method == REFERENCE else "warm"]
            spread = np.linspace(-0.3, 0.3, len(rates))
            axes.plot(rates, place + spread, "o", markersize=3, color=ours, linestyle="")
            axes.text(
                -2, place, study.methods[one.method]["title"], ha="right", va="center", fontsize=9,
                color=THEME["ink"],
            )  # fmt: skip
            share = f"{one.hits()} of {len(one.rates)}"  # 2 draws make no per cent
            axes.text(104, place, share, ha="left", va="center", color=THEME["ink"])
        axes.axvline(100 * GOOD * swamp[0].reference, color=THEME["muted"], linewidth=1)
        axes.set_xlim(0, 101)
        axes.set_ylim(len(swamp) - 0.5, -0.5)
        axes.set_yticks([])
        axes.set_xlabel("success of each draw, 75 steps ahead, %")
        axes.grid(axis="x", color=THEME["line"], linewidth=0.8)

    height = 1.4 + 0.36 * len(swamp)
    return canvas.draw(f"settings within a decade of the published ones, {world}", draw, height)


# ------------------------------------------------------------------------------------------ wording


def result_in_words(study: Study, world: str) -> list[str]:
    """What came out, also where LeWM does not win."""
    standings = study.standings(world)
    if not standings:
        return ["Nothing was run yet."]
    told = []
    real = [one for one in standings if not one.about["control"]]
    first = real[0] if real else standings[0]
    seeds = len(first.best)
    told.append(
        f"Best 75 steps ahead: {first.about['title']}, {percent(first.mean(RANKED_BY))} "
        f"({seeds} seed{'s' if seeds > 1 else ''})."
    )
    ours = next((one for one in standings if one.method == REFERENCE), None)
    if ours is None:
        return told
    if ours is not first:
        place = real.index(ours) + 1
        told.append(f"LeWM is number {place} of {len(real)}: {percent(ours.mean(RANKED_BY))}.")
    judged: dict[int, list[str]] = {1: [], 0: [], -1: []}
    for one in standings:
        if one is not ours and (found := one.against(ours, RANKED_BY)) is not None:
            judged[found.better].append(one.about["title"])
    for sign, words in (
        (1, "Shown to be better than LeWM"),
        (0, "Not shown to differ from LeWM"),
        (-1, "Shown to be worse than LeWM"),
    ):
        if judged[sign]:
            told.append(f"{words}: {_listed(judged[sign])}.")
    if collapsed := [one.about["title"] for one in standings if one.collapsed]:
        told.append(f"Collapsed, by the rule above: {_listed(collapsed)}.")
    for swamp in study.swamp(world):
        low, high = swamp.interval
        needed = "more than there were" if swamp.needed is None else str(swamp.needed)
        told.append(
            f"{study.methods[swamp.method]['title']}: {swamp.hits()} of {len(swamp.rates)} draws "
            f"({percent(low)} to {percent(high)}) reach 90% of the best; draws until the expected "
            f"best does: {needed}."
        )
    return told


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words)


HEAD = """# Ways not to collapse, side by side

The page that LeWM implements says that every JEPA before it paid for not collapsing with a swamp of
knobs. Here each is trained on the same data, at one size, and planned with by one search. Nothing
on this page is written by hand. It is made by

    {command}

What is held equal:

- the world, the episodes and the split;
- the encoder, the predictor and their sizes, where a method has such parts;
- updates, frames per update, the optimiser and its schedule;
- three learning rates for each, of which its best counts;
- the search: CEM, 100 candidates, 5 iterations, 5 blocks, on the distance that the method was
  trained in;
- the start/goal pairs, which no method trained on. No head is fitted.

Methods are ranked by success 75 steps ahead, which was said before anything was run: at 25 steps
all that work look alike. A method has collapsed (*) if probes read no more from it than from an
encoder with random weights, and its latents have an effective rank below 1.5 or a standard
deviation below .02. Either number alone misleads.
"""


def to_markdown(study: Study, command: str, pictures: Mapping[str, Sequence[str]]) -> str:
    """The page.

    Args:
        command: that makes it.
        pictures: world -> addresses of its figures.
    """
    lines = [HEAD.format(command=command)]
    for world in study.worlds:
        lines += [f"## {world}", ""]
        lines += [line for one in result_in_words(study, world) for line in _item(one)] + [""]
        lines += [*_markdown(table(study, world)), ""]
        lines += [f"![]({address})" for address in pictures.get(world, ())] + [""]
        lines += [
            "Success 75 steps ahead by learning rate, seed 0:",
            "",
            *_tuning(study, world),
            "",
        ]
        if failed := study.failed(world):
            lines += ["Runs that failed:", ""]
            lines += [
                line for row in failed for line in _item(f"`{row['name']}`: {row['error']}")
            ] + [""]
    lines += ["## What their authors would say", "", "In italics: what was done here.", ""]
    for about in study.methods.values():
        if about["objection"]:
            said = f"**{about['title']}** ({about['source']}). {about['objection']}"
            lines += _item(f"{said} *{about['answer']}*" if about["answer"] else said)
    return "\n".join([*lines, "", *_legend()]) + "\n"


def _item(words: str) -> list[str]:
    """A line of a list, broken where a page of this project breaks."""
    return textwrap.wrap(
        words, 100, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False
    )


def _legend() -> list[str]:
    return [
        "## The columns",
        "",
        "- *worst r*: of a ridge probe, over the variables of the state.",
        "- *std*, *rank*: of held-out latents; the effective rank counts directions in use.",
        "- *error / copying*: squared error of open-loop predictions, as a share of what copying",
        "  the last frame errs.",
        "- *cost's rank*: Spearman's correlation of the planning cost with the distance of the",
        "  states.",
        "- *S*: straightness, the mean cosine of consecutive velocities.",
        "- *tokens*: that stand for a frame. *parameters*: those that are trained.",
        "- *train*, *plan*: of the processor, on one thread; plans are made 16 together.",
        "- *against LeWM*: difference in points 75 steps ahead on the same pairs; better or worse",
        "  only where an exact McNemar test and a bootstrap over episodes agree.",
        "- Success: mean over seeds, Wilson's 95% interval over all their pairs, then each seed.",
    ]


def _tuning(study: Study, world: str) -> list[str]:
    rows = [
        {
            "method": one.about["title"],
            **{f"{rate:g}": _said_percent(one.tuned.get(rate)) for rate in sorted(study.rates)},
        }
        for one in study.standings(world)
    ]
    return _markdown(rows)


def _said_percent(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.1f}"


def _markdown(rows: Sequence[Mapping[str, str]]) -> list[str]:
    if not rows:
        return []
    head = f"| {' | '.join(rows[0])} |"
    return [head, "|---" * len(rows[0]) + "|", *(f"| {' | '.join(r.values())} |" for r in rows)]


def _rate(row: Row) -> float:
    """Success on the ranking task, or on the world's first; 0 of a run that failed."""
    if "error" in row:
        return 0.0
    tasks = row["tasks"]
    return float((tasks.get(RANKED_BY) or next(iter(tasks.values())))["rate"])


def _solved(task: Mapping[str, Any]) -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(task["solved"]), np.uint8))
    return bits[: task["pairs"]].astype(bool)
