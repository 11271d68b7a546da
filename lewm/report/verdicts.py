"""Whether a claim holds: numbers of runs, ablations and benchmarks in, a finding and its reasons
out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lewm import registry
from lewm.contracts import DataSpec, Result, Statistics
from lewm.report.record import Record
from lewm.stats import p_value

VERDICTS = HOLDS, PARTLY, FAILS, UNTESTED = (
    "holds",
    "holds in part",
    "does not hold",
    "not tested here",
)

SIGNIFICANT = 0.01
"""p of the paper's test of surprise."""

READABLE = 0.95
"""r above which a variable counts as readable."""

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
    """

    runs: Sequence[Record] = ()
    ablations: Sequence[Mapping[str, Any]] = ()
    benchmarks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def answers(self, analysis: str) -> dict[str, list[Result]]:
        """World -> that analysis of its runs, of those that have it."""
        found: dict[str, list[Result]] = {}
        for run in self.runs:
            if (answer := run.answers.get(analysis)) and answer.result:
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
    collapsed = all(
        row["latent_std"] < 0.1 < twin["latent_std"] for row, twin in zip(bare, base, strict=False)
    )
    spreads = f"latent std {_list(bare, 'latent_std')} without, {_list(base, 'latent_std')} with"
    ours = f"{spreads}; success {_rates(bare)} against {_rates(base)}"
    why = (
        "The same recipe with lambda 0 and as it is; latent L2, 100 candidates x 5, strict "
        "pairs. No other means against collapse is used."
    )
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
    stalls = all(row["latent_std"] < 0.1 for row in bare)
    ours = (
        f"with LayerNorm instead: latent std {_list(bare, 'latent_std')}, success {_rates(bare)}; "
        f"with batch norm {_list(base, 'latent_std')}, {_rates(base)}"
    )
    return Finding(
        ours,
        HOLDS if stalls else FAILS,
        "Batch norm in both projectors replaced by LayerNorm, nothing else changed.",
    )


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


def probes(evidence: Evidence) -> Finding | None:
    if not (answers := evidence.answers("probing")):
        return None
    told, worst, least_read = [], 1.0, ""
    for world, results in answers.items():
        variables = {}
        for name in results[0].values["variables"]:
            scores = [r.values["variables"][name] for r in results]
            best = [score.get("mlp", score)["r"] for score in scores]
            if min(best) < worst:
                worst, least_read = min(best), f"{name} in {world}"
            random = [
                score["controls"]["random encoder"]["r"] for score in scores if "controls" in score
            ]
            control = f" (random encoder {_range(random, '.2f')})" if random else ""
            variables[name] = (
                f"{name} {_range([s['r'] for s in scores], '.3f')} / {_range(best, '.3f')}{control}"
            )
        told.append(f"{world}: {', '.join(variables.values())}")
    why = (
        "r of linear / MLP probe on held-out episodes, least to most over seeds. Readable is "
        f"taken as r of at least {READABLE} by the MLP; the worst is {worst:.3f}, {least_read}. "
        "Where a random encoder is read as well, as in Two-Room, that is no merit of training."
    )
    return Finding("; ".join(told), HOLDS if worst >= READABLE else PARTLY, why)


def straight(evidence: Evidence) -> Finding | None:
    if not (answers := evidence.answers("geometry")):
        return None
    told, rises = [], []
    for world, results in answers.items():
        found = [r.values["straightness"] for r in results]
        final = ", ".join(
            f"{s['value']:.2f} [{s['interval'][0]:.2f}, {s['interval'][1]:.2f}]" for s in found
        )
        curves = [[value for _, value in s["curve"]] for s in found if s["curve"]]
        rises += [curve[-1] > curve[0] for curve in curves]
        ends = (
            [", ".join(f"{curve[end]:.2f}" for curve in curves) for end in (0, -1)]
            if curves
            else []
        )
        path = f", while training from {' to '.join(ends)}" if curves else ""
        random = [s["random_encoder"]["value"] for s in found if s.get("random_encoder")]
        told.append(
            f"{world}: {final}{path}"
            + (f", random encoder {_range(random, '.2f')}" if random else "")
        )
    verdict = PARTLY if rises and all(rises) else FAILS if rises else UNTESTED
    why = (
        "Mean cosine of consecutive latent velocities, frames one action block apart, held-out "
        "episodes. It rises while training; how far depends on how straight the recorded paths "
        "are (docs/log). PLDM was not run."
    )
    return Finding("; ".join(told), verdict, why)


def surprise(evidence: Evidence) -> Finding | None:
    if not (answers := evidence.answers("surprise")):
        return None
    told: list[str] = []
    teleports: list[Mapping[str, Any]] = []
    colours: list[Mapping[str, Any]] = []
    for world, results in answers.items():
        for name in results[0].values["edits"]:
            edits = [r.values["edits"][name] for r in results if name in r.values["edits"]]
            kind = edits[0]["kind"]
            (teleports if kind == "teleport" else colours).extend(edits)
            largest = max(edit["t_p"] for edit in edits)
            told.append(
                f"{world}, {name}: p {p_value(largest)}, d "
                f"{_range([e['effect_size'] for e in edits], '.2f')}, AUC "
                f"{_range([e['auc'] for e in edits], '.2f')}"
            )
    spikes = all(edit["t_p"] < SIGNIFICANT and edit["mean_difference"] > 0 for edit in teleports)
    quiet = all(edit["t_p"] >= SIGNIFICANT for edit in colours)
    seen = "A change to the opposite colour is " + (
        "not significant." if quiet else "significant as well; how much depends on the colour."
    )
    n = min(edit["n"] for edit in (*teleports, *colours))
    why = (
        "Paired t-test of surprise at the edit against the same episode unedited, n of at least "
        f"{n}; the largest p and the range of Cohen's d over seeds. {seen}"
    )
    return Finding("; ".join(told), HOLDS if spikes and quiet else PARTLY if spikes else FAILS, why)


def compounding(evidence: Evidence) -> Finding | None:
    if not (answers := evidence.answers("geometry")):
        return None
    told, grows = [], []
    for world, results in answers.items():
        blocks = [r.values["open_loop"] for r in results if r.values.get("open_loop")]
        first, last = (
            [b[key]["error"] / b[key]["random"] for b in blocks]
            for key in (min(blocks[0], key=int), max(blocks[0], key=int))
        )
        grows += [b > a for a, b in zip(first, last, strict=True)]
        told.append(
            f"{world}: {_range(first, '.1%')} after 1 block, {_range(last, '.1%')} after "
            f"{max(blocks[0], key=int)}"
        )
    for table in evidence.benchmarks.get("plan", {}).get("results", ()):
        rows = [row for row in table["rows"] if row["planner"].startswith("paper")]
        told.append(
            f"{table['world']}, success of the paper's search: "
            + ", ".join(f"{row['task']} {row['rate']:.1%}" for row in rows)
        )
    why = (
        "Open-loop squared error as a share of the distance of two unrelated frames. It "
        "compounds; that long horizons fail *because* of it does not follow: in Two-Room the "
        "same model reaches them with another objective (12)."
    )
    return Finding("; ".join(told), PARTLY if all(grows) else FAILS, why)


def decoder(evidence: Evidence) -> Finding | None:
    if not (answers := evidence.answers("decoding")):
        return None
    told = []
    for world, results in answers.items():
        drawn = [r.values["reconstruction"]["decoder"] for r in results]
        shares, peaks = (
            _range([d["share"] for d in drawn], ".3f"),
            _range([d["psnr"] for d in drawn], ".1f"),
        )
        told.append(f"{world}: {shares} of the error of the mean picture, PSNR {peaks} dB")
    why = (
        "By construction: the decoder is fitted to frozen latents, and a test holds the weights "
        "bit-identical. What a reconstruction loss in training would cost was not run."
    )
    return Finding("; ".join(told), PARTLY, why)


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


def tokens(evidence: Evidence) -> Finding | None:
    if not (answers := evidence.answers("economy")):
        return None
    told = []
    for world, results in answers.items():
        plans = results[0].values["plans"]
        told.append(
            f"{world}: "
            + ", ".join(f"{name} {1e3 * plan['seconds']:.3g} ms" for name, plan in plans.items())
        )
    why = (
        "One token per frame is a fact of the architecture, and the arithmetic of (9) follows "
        "from it. The seconds of other models are published and of other hardware; none was run "
        "beside ours, so that how much of 48x is the tokens' is not known. A tiny model's plan "
        "is no match for one at full size."
    )
    return Finding("; ".join(told), PARTLY, why)


def product(evidence: Evidence) -> Finding | None:
    if not (answers := evidence.answers("economy")):
        return None
    scaling = [r.values["scaling"] for results in answers.values() for r in results]
    wider, longer = [s["candidates"] for s in scaling], [s["horizon"] for s in scaling]
    holds = all(abs(factor - 2) < 0.1 for factor in (*wider, *longer))
    ours = (
        f"FLOPs of a round with twice the candidates {_range(wider, '.2f')}x, with twice the "
        f"horizon {_range(longer, '.2f')}x"
    )
    why = (
        "Counted by PyTorch on the engine that plans. A longer horizon costs more than in "
        "proportion while the window still grows to K."
        if not holds
        else "Counted by PyTorch on the engine that plans."
    )
    return Finding(ours, HOLDS if holds else PARTLY, why)


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
        why = (
            "Ours are tiny models, with our planner and our data; the rivals were not run, and "
            "no GPU was at hand for full size."
        )
        return Finding("; ".join(told), UNTESTED, why)

    return judge


def said(ours: str, verdict: str, why: str) -> Callable[[Evidence], Finding]:
    return lambda _: Finding(ours, verdict, why)


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


def _range(values: Sequence[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"
