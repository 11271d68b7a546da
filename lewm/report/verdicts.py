"""Whether a claim holds: numbers of runs, ablations and benchmarks in, a finding and its reasons
out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from lewm import registry
from lewm.contracts import DataSpec, Statistics
from lewm.report.record import Record
from lewm.report.rivals import RANKED_BY, Standing, Study
from lewm.runs.results import Result
from lewm.training.watch import FEWEST_DIRECTIONS, directions

R = TypeVar("R", bound=Result)

VERDICTS = HOLDS, PARTLY, FAILS, UNTESTED = (
    "holds",
    "holds in part",
    "does not hold",
    "not tested here",
)

ALIKE = 0.05
"""Difference in success below which settings count as alike: about one interval of 200 pairs at
95%."""


@dataclass(frozen=True)
class Evidence:
    """What was measured.

    Attributes:
        runs: with their analyses; several training seeds of a recipe count together.
        ablations: rows of `benchmarks.ablations`.
        benchmarks: results of `lewm bench --json` by name; of "plan", the results of all its files
            together.
        study: rows of `lewm study collapse`, if there are any.
        tunings: results of `lewm tune-lambda`.
    """

    runs: Sequence[Record] = ()
    ablations: Sequence[Mapping[str, Any]] = ()
    benchmarks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    study: Study | None = None
    tunings: Sequence[Mapping[str, Any]] = ()

    def standings(self, world: str) -> dict[str, Standing]:
        """Method -> how it stands, in the studied recipe of a world."""
        if self.study is None:
            return {}
        recipes = [name for name in self.study.worlds if name.startswith(world)]
        return {one.method: one for recipe in recipes[:1] for one in self.study.standings(recipe)}

    def answers(self, kind: type[R]) -> dict[str, list[R]]:
        """World -> the results of a kind of its runs, of those that have one."""
        found: dict[str, list[R]] = {}
        for run in self.runs:
            for answer in run.answers.values():
                if isinstance(answer.result, kind):
                    found.setdefault(str(run.experiment.get("world")), []).append(answer.result)
        return found

    def variant(self, name: str) -> list[Mapping[str, Any]]:
        """The rows of an ablation for which there is an unchanged twin of the same seed, or those
        twins."""
        seeds = {row["seed"] for row in self.ablations if row["variant"] == "base"}
        return [row for row in self.ablations if row["variant"] == name and row["seed"] in seeds]


@dataclass(frozen=True)
class Finding:
    """What was measured here, and what that says of a claim.

    Attributes:
        ours: numbers with intervals and how many were measured; "" where there are none.
        verdict: one of "holds", "holds in part", "does not hold" and "not tested here".
        why: what the verdict rests on, or what is missing.
    """

    ours: str
    verdict: str
    why: str


# --------------------------------------------------------------------------------------- judgements


def collapse(evidence: Evidence) -> Finding | None:
    base, bare = evidence.variant("base"), evidence.variant("lambda-0")
    if not bare:
        return None
    twins = _twins(bare, base)
    spreads = (
        f"directions that are predicted {_directions(bare)} without, {_directions(twins)} with"
    )
    ours = f"{spreads}; success {_rates(bare)} against {_rates(twins)}"
    why = (
        "The same recipe with lambda 0 and as it is; latent L2, 100 candidates x 5, strict "
        f"pairs. No other means against collapse is used. {_RULE}"
    )
    if not _judged([*bare, *twins]):
        return Finding(ours, UNTESTED, _UNJUDGED)
    collapsed = all(map(_collapsed, bare)) and not any(map(_collapsed, twins))
    return Finding(ours, HOLDS if collapsed else FAILS, why)


def linear(evidence: Evidence) -> Finding | None:
    rows = evidence.benchmarks.get("sigreg", {}).get("rows", ())
    times = {_batch(row["case"]): row["ours"] for row in rows if "time per frame" in row["case"]}
    norms = {
        row["case"].rpartition("latents x ")[2]: row["ours"]
        for row in rows
        if "largest gradient" in row["case"]
    }
    if not times or not norms:
        return None
    (small, first), (large, last) = min(times.items()), max(times.items())
    ours = (
        f"time per frame {first:.3g} us at B = {small}, {last:.3g} us at {large}; largest "
        "gradient of a latent "
        + ", ".join(f"{value:.2g} (latents x {scale})" for scale, value in norms.items())
    )
    farthest = max(norms, key=float)
    bounded = norms[farthest] <= 2 * max(
        value for scale, value in norms.items() if scale != farthest
    )
    why = "Forward and backward, one thread, D = 192, M = 1024. Curvature was not measured."
    return Finding(ours, PARTLY if last <= 1.2 * first and bounded else FAILS, why)


def knobs(evidence: Evidence) -> Finding | None:
    needed = ("base", "lambda-0.01", "lambda-0.2")
    kinds = ("slices-", "knots-", "lambda-")
    names = [
        n
        for n in dict.fromkeys(row["variant"] for row in evidence.ablations)
        if n.startswith(kinds) and n != "lambda-0"
    ]
    seeds = set.intersection(
        *({row["seed"] for row in evidence.variant(name)} for name in {*needed, *names})
    )
    if not seeds:
        return None
    rates = {
        name: [row for row in evidence.variant(name) if row["seed"] in seeds]
        for name in ("base", *names)
    }
    means = {name: _mean_rate(rows) for name, rows in rates.items()}
    knots = [name for name in names if not name.startswith("lambda-")]
    weights = [name for name in names if name.startswith("lambda-")]
    if not knots:
        return None
    flat = max(abs(means[name] - means["base"]) for name in knots)
    ours = "; ".join(f"{name} {means[name]:.1%}" for name in ("base", *knots, *weights))
    wide = min(means["lambda-0.01"], means["lambda-0.2"]) > 0.8
    why = (
        "Two-Room tiny, offset 25 (M = 1024, Q = 17 and lambda = 0.1 are the base), mean of "
        f"strict success over {len(seeds)} seed(s). M and Q change it by at most {100 * flat:.1f} "
        f"points; lambda may {'' if wide else 'not '}be anything from .01 to .2."
    )
    return Finding(ours, FAILS if flat > ALIKE else HOLDS if wide else PARTLY, why)


def batch_norm(evidence: Evidence) -> Finding | None:
    base, bare = evidence.variant("base"), evidence.variant("no-batch-norm")
    if not bare:
        return None
    twins = _twins(bare, base)
    ours = (
        f"with LayerNorm instead: directions that are predicted {_directions(bare)}, success "
        f"{_rates(bare)}; with batch norm {_directions(twins)}, {_rates(twins)}"
    )
    if not _judged([*bare, *twins]):
        return Finding(ours, UNTESTED, _UNJUDGED)
    stalls = all(map(_collapsed, bare)) and not any(map(_collapsed, twins))
    why = f"Batch norm in both projectors replaced by LayerNorm, nothing else changed. {_RULE}"
    return Finding(ours, HOLDS if stalls else FAILS, why)


def modulation(evidence: Evidence) -> Finding | None:
    base, bare = evidence.variant("base"), evidence.variant("no-zero-modulation")
    if not bare:
        return None
    worse = _mean_rate(base) - _mean_rate(bare) > ALIKE
    ours = (
        f"success {_rates(bare)} without, {_rates(base)} with; prediction loss "
        f"{_list(bare, 'prediction')} and {_list(base, 'prediction')}"
    )
    return Finding(
        ours,
        HOLDS if worse else FAILS,
        "The modulation begins as PyTorch draws it instead of at zero. At this size training is "
        "as stable without.",
    )


def far(evidence: Evidence) -> Finding | None:
    tables = [
        t
        for t in evidence.benchmarks.get("plan", {}).get("results", ())
        if t["world"] == "two-room"
    ]
    if not tables:
        return None
    rows = [row for row in tables[0]["rows"] if row["task"] == "other room"]
    paper, best = rows[0], max(rows, key=lambda row: row["rate"])
    ours = (
        f"other room, one model: {_cell(paper)} by {paper['planner']}; {_cell(best)} by "
        f"{best['planner']}"
    )
    why = (
        "The same frozen 192-d latents reach distant goals once the objective or the planner is "
        "another, so that the width is not what stops the paper's search there. At offset 25 a "
        "tiny model loses nothing. PLDM and DINO-WM were not run."
    )
    return Finding(ours, FAILS if best["rate"] - paper["rate"] >= 0.1 else HOLDS, why)


def parameters(_: Evidence) -> Finding:
    """Of the published configuration, counted without making it."""
    statistics = Statistics((0.5,) * 3, (0.5,) * 3, (0.0,) * 2, (1.0,) * 2)
    with torch.device("meta"):
        model = registry.load("models", "lewm")().build(DataSpec(224, 5, statistics))
    count = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in (*model.named_children(), ("all", model))
    }
    ours = ", ".join(
        f"{name.replace('_', ' ')} {number / 1e6:.2f} M" for name, number in count.items()
    )
    return Finding(
        ours,
        HOLDS,
        "The published configuration at a 10-d action block; the 15 M leave out both projectors.",
    )


def bisection(evidence: Evidence) -> Finding | None:
    """Lambda can be found by bisection in a logarithmic number of runs."""
    if not evidence.tunings:
        return None
    told, good = [], []
    for one in evidence.tunings:
        runs = len(one["tried"])
        if one["weight"] is None:
            told.append(f"no lambda after {runs} runs")
            good.append(False)
            continue
        rates = ", ".join(f"{task} {_cell(score)}" for task, score in one["confirmed"].items())
        told.append(
            f"lambda {one['weight']:.2g} after {runs} short runs (a grid: {one['grid']}); {rates}"
        )
        near = one["confirmed"].get("offset 25")
        good.append(near is not None and near["low"] > WORKS and runs < one["grid"])
    why = (
        "Two signals are bisected on log lambda, the collapse below and the roundness above; "
        "success is a noisy plateau. Halving the tolerance costs one run an edge; a grid over k "
        "knobs takes the k-th power of its runs."
    )
    verdict = HOLDS if all(good) else PARTLY if any(good) else FAILS
    return Finding("; ".join(told), verdict, why)


WORKS = 0.8
"""Success at offset 25 above which a lambda works: the paper's bound for the range on Push-T."""


# ------------------------------------------------------------------------------------------ wording


def success(*worlds: str) -> Callable[[Evidence], Finding | None]:
    """A claim about success at full size beside methods that are not here: our tiny numbers, and no
    verdict."""

    def judge(evidence: Evidence) -> Finding | None:
        told = []
        for run in evidence.runs:
            if run.experiment.get("world") in worlds and run.outcomes:
                score = run.outcomes[0].counts["strict"]["agent"]
                told.append(f"{run.label} {_cell(score)}")
        if (beside := against_rivals(evidence, worlds[0])) is not None:
            return Finding("; ".join([*told, beside.ours]), beside.verdict, beside.why)
        why = (
            "Ours are tiny models, with our planner and our data; the rivals were not run, and "
            "no GPU was at hand for full size."
        )
        return Finding("; ".join(told), UNTESTED, why)

    return judge


RIVALS = ("pldm", "pldm-wall", "pldm-lewm", "dino-wm")
"""Methods that the paper compares with."""


def against_rivals(evidence: Evidence, world: str) -> Finding | None:
    """LeWM beside the rivals of its paper, on the same data and pairs, in one search."""
    standings = evidence.standings(world)
    ours = standings.get("lewm")
    rivals = [standings[name] for name in RIVALS if name in standings]
    if ours is None or not rivals:
        return None
    compared = [(one, ours.against(one, RANKED_BY)) for one in rivals]
    told = [
        f"{one.about['title']} {one.mean(RANKED_BY):.1%}"
        + ("" if found is None else f" ({100 * found.difference:+.1f} for LeWM)")
        for one, found in compared
    ]
    signs = [0 if found is None else found.better for _, found in compared]
    verdict = FAILS if min(signs) < 0 else HOLDS if min(signs) > 0 else PARTLY
    seeds = len(ours.best)
    why = (
        f"One data set, one size, one search on each method's own distance, its best of several "
        f"learning rates, {seeds} seed(s), the same pairs (docs/rivals.md). LeWM is "
        f"{'shown to be worse than one of them' if min(signs) < 0 else 'not shown to be worse'}. "
        "At this size; nothing was run at the published one."
    )
    return Finding(f"LeWM {ours.mean(RANKED_BY):.1%}; {'; '.join(told)}", verdict, why)


def said(ours: str, verdict: str, why: str) -> Callable[[Evidence], Finding]:
    return lambda _: Finding(ours, verdict, why)


_RULE = (
    "Collapsed is what `lewm train`'s alarm calls so: rank x (1 - prediction / copying) below "
    f"{FEWEST_DIRECTIONS:g}."
)
_UNJUDGED = (
    "The ablations were made before `copying` was measured, without which a collapse cannot be "
    "told. Make them again, into a new folder."
)


def _twins(
    rows: Sequence[Mapping[str, Any]], base: Iterable[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Of each row the unchanged one of its seed; `Evidence.variant` sees that there is one."""
    by_seed = {row["seed"]: row for row in base}
    return [by_seed[row["seed"]] for row in rows]


def _judged(rows: Iterable[Mapping[str, Any]]) -> bool:
    return all({"prediction", "copying", "effective_rank"} <= row.keys() for row in rows)


def _collapsed(row: Mapping[str, Any]) -> bool:
    return directions(row) < FEWEST_DIRECTIONS


def _directions(rows: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{directions(row):.3g}" if _judged([row]) else "not known" for row in rows)


def _batch(case: str) -> int:
    return int(case.split()[0].removeprefix("B="))


def _cell(score: Mapping[str, Any]) -> str:
    return f"{score['rate']:.1%} [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"


def _rates(rows: Iterable[Mapping[str, Any]]) -> str:
    return ", ".join(_cell(row["success"]) for row in rows)


def _mean_rate(rows: Sequence[Mapping[str, Any]]) -> float:
    return sum(row["success"]["rate"] for row in rows) / max(len(rows), 1)


def _list(rows: Iterable[Mapping[str, Any]], name: str) -> str:
    return ", ".join(f"{row[name]:.3g}" for row in rows)


def spanned(values: Sequence[float], form: str) -> str:
    """Least to most, in one number where they look alike."""
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"
