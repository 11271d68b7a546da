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
    minutes: float | None = None,
    dry: bool = False,
    seed: int = 0,
) -> None:
    """Compare the speed of our implementations with plain ones, each pair in one process. A ratio
    above 1 speaks for ours.

    `lewm bench plan --runs RUN` compares planners on trained models: success on the same pairs,
    time, cost reached. `lewm bench gpu --minutes 9` proves and measures a GPU, and trains the
    published size on it, all within that time.

    Args:
        names: of benchmarks; all of them by default.
        quick: shorter, and less sure of its numbers.
        json: write the numbers there.
        runs: for "plan": run folders with their heads (`lewm fit RUN`).
        pairs: for "plan": strict start/goal pairs per task.
        only: for "plan": planners whose names hold one of these words, beside the paper's search.
            For "gpu": stages.
        offsets: for "plan": env steps to the goals, a task each.
        out: for "plan" and "gpu": folder for numbers, figures and weights; that of "gpu" is
            runs/gpu by default.
        minutes: for "gpu": for everything; 9 by default.
        dry: for "gpu": the same at tiny size on a CPU, in two minutes unless told otherwise.
        seed: for "gpu": of data, weights and pairs.
    """
    known = {
        module.name.replace("_", "-"): module.name
        for module in pkgutil.iter_modules(benchmarks.__path__)
    }
    chosen = [choose("benchmark", name.replace("_", "-"), known) for name in names]
    if runs and chosen != ["plan"]:
        raise ValueError(
            f"expected --runs with the benchmark 'plan' alone, got {', '.join(chosen) or 'all'}. "
            "Use: lewm bench plan."
        )
    if "gpu" in chosen:
        if chosen != ["gpu"]:
            raise ValueError(
                f"expected 'gpu' alone: its minutes are dear. Got {', '.join(chosen)}."
            )
        _on_gpu(out or Path("runs/gpu"), minutes or (2.0 if dry else 9.0), dry, seed, only, json)
        return
    if dry or minutes is not None:
        raise ValueError(
            "expected --minutes and --dry with the benchmark 'gpu' alone. Use: lewm bench gpu."
        )
    results = []
    for name in chosen or known:
        module = importlib.import_module(f"{benchmarks.__name__}.{known[name]}")
        if runs:
            with console.Bars() as bars:
                result = module.run(quick, runs, pairs, only, out, offsets, report=bars.update)
            results.append(result)
            console.table(
                result["columns"], result["rows"], 2, title=f"{result['name']}: {result['what']}"
            )
        elif isinstance(module, benchmarks.Comparison):
            results.append(module.run(quick=quick))
            columns, rows = results[-1].get("columns", COLUMNS), results[-1]["rows"]
            if columns is COLUMNS:
                rows = [[console.number(row[column]) for column in COLUMNS] for row in rows]
            console.table(
                columns, rows, title=f"{results[-1]['name']}: {results[-1].get('what', '')}"
            )
        elif chosen:
            raise ValueError(
                f"'{name}' is no comparison of speeds. Run it with: python -m {module.__name__}"
            )
    if json:
        write_json(json, {"benchmarks": results})


def _on_gpu(
    out: Path, minutes: float, dry: bool, seed: int, only: Sequence[str], json: Path | None
) -> None:
    """Run the benchmark of a GPU: its rows are shown as they are measured."""
    from lewm.benchmarks import gpu

    shown = 0

    def show(row: gpu.Row) -> None:
        nonlocal shown
        if not shown:
            console.say(" | ".join(gpu.ROW_COLUMNS))
        console.say(" | ".join(row.cells))
        shown += 1

    try:
        with console.Bars() as bars:
            result = gpu.measure(out, minutes, dry, seed, only, show, bars.update)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"What was measured is in {out}, and the same command goes on with its training."
        ) from None
    console.say(
        f"\n{result.get('success', '')}\n\nAll of it is in {out / 'result.md'}, after "
        f"{result['seconds']:.0f} s."
    )
    if json:
        write_json(json, result)
    if result["failed"]:
        raise ValueError(f"{', '.join(result['failed'])} failed: {out / 'result.json'} says where.")
