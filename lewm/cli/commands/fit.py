"""`lewm fit`: small networks on a run's frozen latents, for planning further and faster."""

from collections.abc import Sequence
from pathlib import Path

import tyro
from tyro.conf import Positional

from lewm import registry
from lewm.cli import console
from lewm.files import write_json
from lewm.runs.run import open_run
from lewm.training.fit import FittingConfig, fit_heads


def main(words: Sequence[str]) -> None:
    tyro.cli(run, args=words, prog="lewm fit")


def run(
    run: Positional[Path],
    names: Positional[tuple[str, ...]] = (),
    data: Path | None = None,
    updates: int = FittingConfig.updates,
    reach: int = FittingConfig.reach,
    max_frames: int = FittingConfig.max_frames,
    seed: int = FittingConfig.seed,
    device: str = "auto",
    json: Path | None = None,
) -> None:
    """Fit heads to a trained run and store them in it; the world model stays as it is. A minute
    each.

    `temporal` learns how many env steps lie between two latents: an objective for distant goals.
    `amortised` learns what was done on the way: a plan in one pass. Both learn from what is on
    record, so they are as good as the policy that was recorded. `map` keeps frames that stand for
    all others, as waypoints.

    Args:
        run: run folder.
        names: of the heads; without any, all there are. One that the run already has is replaced.
        data: episode file; by default the one the run was trained on. Only episodes of its training
            are fitted to.
        updates: optimiser steps per head.
        reach: env steps of the most distant goals.
        max_frames: frames that are looked at, at most.
        seed: of weights and pairs.
        device: cpu, cuda, ... or auto.
        json: write the numbers there.
    """
    chosen = [
        registry.choose("head", name.replace("_", "-"), registry.names("heads")) for name in names
    ]
    fitting = FittingConfig(updates=updates, reach=reach, max_frames=max_frames, seed=seed)
    opened = open_run(run, data, device)
    with console.Bars() as bars:
        found = fit_heads(
            run,
            opened.model,
            opened.episodes,
            opened.fit_ids,
            opened.test_ids,
            chosen or None,
            fitting,
            bars.update,
        )
    columns = (
        "loss",
        "heldout_loss",
        "rank_correlation",
        "l2_rank_correlation",
        "frames",
        "seconds",
    )
    rows = [
        (name, *(console.number(metrics.get(column)) for column in columns))
        for name, metrics in found.items()
    ]
    console.table(
        ("head", *(column.replace("_", " ") for column in columns)), rows, title=f"heads of {run}"
    )
    if json:
        write_json(json, {"run": str(run), "data": str(opened.episodes.path), "heads": found})
