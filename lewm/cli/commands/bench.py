"""`lewm bench`: our implementations against plain ones."""

import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path

import tyro
from tyro.conf import Positional

from lewm import benchmarks
from lewm.cli import console
from lewm.files import write_json
from lewm.registry import choose

COLUMNS = ("case", "ours", "reference", "unit", "ratio")


def main(words: Sequence[str]) -> None:
    tyro.cli(run, args=words, prog="lewm bench")


def run(
    names: Positional[tuple[str, ...]] = (),
    quick: bool = False,
    json: Path | None = None,
    runs: tuple[Path, ...] = (),
    pairs: int = 400,
    only: tuple[str, ...] = (),
    offsets: tuple[int, ...] = (25, 75),
    out: Path | None = None,
) -> None:
    """Compare the speed of our implementations with plain ones, each pair in one process. A ratio above 1 speaks for ours.

    `lewm bench plan --runs RUN` compares planners on trained models: success on the same pairs, time, cost reached.

    Args:
        names: of benchmarks; all of them by default.
        quick: shorter, and less sure of its numbers.
        json: write the numbers there.
        runs: for "plan": run folders with their heads (`lewm fit RUN`).
        pairs: for "plan": strict start/goal pairs per task.
        only: for "plan": planners whose names hold one of these words, beside the paper's search.
        offsets: for "plan": env steps to the goals, a task each.
        out: for "plan": folder for its numbers and figures.
    """
    known = {module.name.replace("_", "-"): module.name for module in pkgutil.iter_modules(benchmarks.__path__)}
    chosen = [choose("benchmark", name.replace("_", "-"), known) for name in names]
    if runs and chosen != ["plan"]:
        raise ValueError(
            f"expected --runs with the benchmark 'plan' alone, got {', '.join(chosen) or 'all'}. Use: lewm bench plan."
        )
    results = []
    for name in chosen or known:
        module = importlib.import_module(f"{benchmarks.__name__}.{known[name]}")
        if runs:
            with console.Bars() as bars:
                result = module.run(quick, runs, pairs, only, out, offsets, progress=bars.update)
            results.append(result)
            console.table(result["columns"], result["rows"], 2, title=f"{result['name']}: {result['what']}")
        elif hasattr(module, "run"):
            results.append(module.run(quick=quick))
            columns, rows = results[-1].get("columns", COLUMNS), results[-1]["rows"]
            if columns is COLUMNS:
                rows = [[console.number(row[column]) for column in COLUMNS] for row in rows]
            console.table(columns, rows, title=f"{results[-1]['name']}: {results[-1].get('what', '')}")
        elif chosen:
            raise ValueError(f"'{name}' is no comparison of speeds. Run it with: python -m {module.__name__}")
    if json:
        write_json(json, {"benchmarks": results})
