"""`lewm quickstart`: from nothing to an agent that plans, and a page that shows it."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from lewm.cli import console
from lewm.experiments import quickstart
from lewm.files import write_json
from lewm.lab import PAGE_NAME
from lewm.stats import rate_with_interval


def main(words: Sequence[str]) -> None:
    tyro.cli(run, args=words, prog="lewm quickstart")


def run(
    out: Path = Path("quickstart"), seed: int = 0, short: bool = False, json: Path | None = None
) -> None:
    """Collect episodes, train a small world model, evaluate, probe, and write a report: two minutes
    on a laptop.

    Args:
        out: folder for everything; an unfinished quickstart in it is continued.
        seed: of data, weights and evaluation.
        short: a much smaller one, to see that all of it works; its numbers mean little.
        json: write the result there as well.
    """
    try:
        with console.Bars() as bars:
            result = quickstart.run(out, seed, short, bars.update)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"What was complete is kept in {out}, and the same command goes on from there."
        ) from None
    _show(result)
    console.say(f"\nOpen {(out / 'report.html').resolve()} in a browser.")
    if (out / PAGE_NAME).exists():
        console.say(f"Drag the model's goal in {(out / PAGE_NAME).resolve()}.")
    else:
        console.say(
            f"No page holds this model; why, says: lewm lab {shlex.quote(str(out / 'run'))}"
        )
    if json:
        write_json(json, result)


def _show(result: dict[str, Any]) -> None:
    def interval(score: dict[str, float]) -> str:
        return rate_with_interval(score["rate"], score["low"], score["high"])

    rows = [("agent", interval(result["success"]), interval(result["strict"]))]
    rows += [
        (name.replace("_", " "), interval(score), interval(score["strict"]))
        for name, score in result["floors"].items()
    ]
    console.table(
        ("policy", "success", "of what does not begin solved"),
        rows,
        title=f"{result['success']['episodes']} goals",
    )
    console.facts({"probe r": result["probe_r"], "seconds": result["seconds"]})
    if result["alarm"]:
        console.alarm(result["alarm"])
