"""A recipe, carried out: the stages of `pipeline`, and its numbers as tables.

out/
  reproduction.json  what the folder holds, and how long its stages took
  episodes.h5, run/, result.json   as `pipeline` says
  result.md          the same as tables
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lewm.analyses.probing import ProbingResult, Variable
from lewm.contracts import Progress, Report, silent
from lewm.evaluation.outcome import Evaluation
from lewm.evaluation.tasks import Task
from lewm.experiments import recipes
from lewm.experiments.book import Book
from lewm.experiments.pipeline import Scope, carry_out, result_of, seeded, shortened
from lewm.files import hold, read_json, write_atomically, write_json
from lewm.runs import checkpoints

__all__ = ["reproduce"]

SHORT_EPISODES, SHORT_UPDATES, SHORT_PAIRS = 40, 20, 20


def reproduce(
    recipe: str,
    out: Path | str,
    seed: int = 0,
    pairs: int = 200,
    short: bool = False,
    report: Report = silent,
    minutes: float | None = None,
) -> dict[str, Any]:
    """Do everything of a recipe that is not done yet in `out`, and return what `result.json` then
    holds.

    Args:
        recipe: name of one of `recipes.RECIPES`.
        out: folder. One that was interrupted is continued, a finished one is left alone and its
            result returned.
        seed: of data, weights, pairs, search and probe.
        pairs: start/goal pairs of the paper's task (offset 25, budget 50).
        short: much less of everything, to see that it works; the result says so.
        report: called as stages proceed.
        minutes: train for this long in place of the recipe's updates, see `TrainingConfig`;
            collecting and evaluating take their own time beside it. The result says so.

    Raises:
        ValueError: no such recipe, `out` holds a reproduction with other settings, or another
            process writes to it.
        KeyboardInterrupt: Ctrl-C; what was complete stays.
    """
    with hold(out):
        return _reproduce(recipe, Path(out), seed, pairs, short, report, minutes)


def _reproduce(
    recipe: str,
    out: Path,
    seed: int,
    pairs: int,
    short: bool,
    report: Report,
    minutes: float | None,
) -> dict[str, Any]:
    experiment = seeded(recipes.load(recipe), seed)
    if short:
        experiment = shortened(experiment, SHORT_EPISODES, SHORT_UPDATES, SHORT_UPDATES)
        pairs = SHORT_PAIRS
    if minutes is not None:
        experiment = dataclasses.replace(
            experiment, training=dataclasses.replace(experiment.training, minutes=minutes)
        )
    name = experiment.recipe
    claim = {"recipe": name, "seed": seed, "pairs": pairs, "short": short, "minutes": minutes}
    book = Book.open(out / "reproduction.json", claim)
    if (out / "result.json").exists():
        report(Progress("analyse", 1, 1, "finished before"))
        return read_json(out / "result.json")
    scope = Scope((Task.along(episodes=pairs, seed=seed),), {"probing": {}})
    outcome = carry_out(experiment, scope, out, book, seed, report)
    command = f"lewm reproduce {name} --out {shlex.quote(str(out))} --seed {seed} "
    command += "--short" if short else f"--pairs {pairs}"
    command += "" if minutes is None else f" --minutes {minutes:g}"
    with outcome.run.episodes:
        result = result_of(outcome, book, seed, short, command)
    write_atomically(
        out / "result.md", _markdown(result, outcome.evaluations[0], outcome.probing).encode()
    )
    write_json(out / "result.json", result)
    return result


def _markdown(result: Mapping[str, Any], evaluation: Evaluation, probing: ProbingResult) -> str:
    """The numbers of a reproduction as tables: success beside the floors, probes beside their
    controls."""
    lines = [
        f"`{result['command']}`",
        "",
        evaluation.markdown(),
        "",
        *_probe_table(probing.variables),
    ]
    angles = [
        (
            f"mean error of {name}: {error:.1f} degrees by ridge, {probing.mlp_angles[name]:.1f} "
            "by MLP (90 if guessed)"
        )
        for name, error in probing.angles.items()
    ]
    seconds = ", ".join(f"{stage} {value:.0f} s" for stage, value in result["seconds"].items())
    budget = checkpoints.budget_in_words(result)
    trained = f"trained with a {budget}; " if budget else ""
    cost = (
        f"{trained}{result['parameters']:,} parameters; {seconds}; {result['machine']['cpus']} "
        "CPU cores."
    )
    return "\n".join([*lines, "", *angles, "", cost]) + "\n"


def _probe_table(variables: Mapping[str, Variable]) -> list[str]:
    rivals = list(next(iter(variables.values())).controls)
    columns = ["variable", "r, ridge", "95% interval", "r, MLP", *rivals, "RMSE", "unit"]
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, score in variables.items():
        ends = "-" if score.r_interval is None else "[{:.3f}, {:.3f}]".format(*score.r_interval)
        numbers = [
            score.r,
            score.mlp and score.mlp.r,
            *(score.controls[rival].r for rival in rivals),
        ]
        own, mlp, *controls = ("-" if r is None else f"{r:.3f}" for r in numbers)
        cells = [name, own, ends, mlp, *controls, f"{score.rmse:.3g}", score.unit]
        rows.append(f"| {' | '.join(cells)} |")
    return rows
