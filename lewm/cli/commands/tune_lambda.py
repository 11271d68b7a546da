"""`lewm tune-lambda RECIPE`: LeWM's one knob by bisection, with its bracket after each run."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from lewm.cli import console
from lewm.experiments.tuning import Search, tune_lambda
from lewm.files import write_json
from lewm.stats import rate_with_interval


def main(words: Sequence[str]) -> None:
    tyro.cli(run, args=words, prog="lewm tune-lambda")


def run(
    recipe: Positional[str] = "two-room-tiny",
    out: Path | None = None,
    seed: int = 0,
    search: OmitArgPrefixes[Search] = Search(),  # noqa: B008  frozen
    confirm: bool = True,
    json: Path | None = None,
) -> None:
    """Find the weight of SIGReg for a world in some ten short trainings, and confirm it by a full
    one. The same command continues.

    Args:
        recipe: whose world, data and sizes are used.
        out: folder for data and runs; by default runs/lambda-RECIPE-SEED.
        seed: of data and trainings.
        search: how it is looked for.
        confirm: train fully with what was found, and evaluate.
        json: write the result there as well.
    """
    out = out or Path("runs") / f"lambda-{recipe}-{seed}"
    try:
        with console.Bars() as bars:
            found = tune_lambda(recipe, out, search, seed, confirm, bars.update, console.say)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"Finished runs are kept in {out}, and the same command goes on from there."
        ) from None
    console.table(
        ("lambda", "seed", "state", "rank", "std", "error, 5 blocks", "worst r"),
        [
            (
                f"{one.weight:.3g}",
                str(one.seed),
                "collapsed" if one.collapsed else "alive",
                f"{one.rank:.2f}",
                f"{one.std:.3g}",
                "-" if one.error is None else f"{one.error:.3g}",
                "-" if one.probe_r is None else f"{one.probe_r:.4f}",
            )
            for one in sorted(found.tried, key=lambda one: one.weight)
        ],
        title=f"{found.runs} short runs; a grid to the same tolerance would take {found.grid}",
    )
    if found.weight is None:
        console.say("Every lambda collapsed: look at the data, or train longer with --updates.")
    else:
        edge = "not met" if found.upper is None else f"{found.upper[0]:.3g} to {found.upper[1]:.3g}"
        console.say(
            f"lambda {found.weight:.3g}; lower edge {found.lower[0]:.3g} to {found.lower[1]:.3g}, "
            f"upper edge {edge}."
        )
    for task, score in found.confirmed.items():
        rate = rate_with_interval(score["rate"], score["low"], score["high"])
        console.say(f"confirmed, {task}: {rate} of {score['pairs']}")
    if json:
        write_json(json, dataclasses.asdict(found))
