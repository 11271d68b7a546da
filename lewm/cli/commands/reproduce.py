"""`lewm reproduce RECIPE`: carry out a named experiment, from its data to its numbers."""

from collections.abc import Sequence
from pathlib import Path

import tyro
from tyro.conf import Positional

from lewm.cli import console
from lewm.experiments import recipes, reproduce
from lewm.experiments.methods import METHODS
from lewm.files import write_json


def main(words: Sequence[str]) -> None:
    if words and words[0] in ("-l", "--list"):
        known = [recipes.load(name) for name in recipes.RECIPES]
        rows = [(e.recipe, e.hardware, e.cost, e.expected, e.source) for e in known]
        console.table(("recipe", "hardware", "cost", "expect", "source"), rows, 5)
        console.say(f"RECIPE+METHOD does it with another model: {', '.join(METHODS)}")
    else:
        tyro.cli(run, args=words, prog="lewm reproduce")


def run(
    recipe: Positional[str],
    out: Path | None = None,
    seed: int = 0,
    pairs: int = 200,
    short: bool = False,
    minutes: float | None = None,
    json: Path | None = None,
) -> None:
    """Collect a recipe's data, train, evaluate beside the floors, probe beside the controls. The
    same command continues.

    Args:
        recipe: name of the experiment; `lewm reproduce --list` shows all, with hardware, cost and
            what to expect.
        out: folder for everything; by default runs/RECIPE-SEED.
        seed: of data, weights and evaluation.
        pairs: start/goal pairs; the paper takes 50, and its intervals are wide.
        short: a much smaller one, to see that all of it works; its numbers mean nothing.
        minutes: train for this long in place of the recipe's updates; collecting and evaluating
            take their own time.
        json: write the result there as well.
    """
    out = out or Path("runs") / f"{recipe}-{seed}"
    try:
        with console.Bars() as bars:
            result = reproduce.reproduce(recipe, out, seed, pairs, short, bars.update, minutes)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"What was complete is kept in {out}, and the same command goes on from there."
        ) from None
    console.say((out / "result.md").read_text(encoding="utf-8"))
    if result["alarm"]:
        console.alarm(result["alarm"])
    if json:
        write_json(json, result)
