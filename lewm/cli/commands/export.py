"""`lewm export`: write a run's weights so that other programs can use them."""

from collections.abc import Sequence
from pathlib import Path

import tyro
from tyro.conf import Positional

from lewm.cli import console
from lewm.files import write_json
from lewm.registry import choose
from lewm.runs import checkpoints
from lewm.runs.published import export


def main(words: Sequence[str]) -> None:
    tyro.cli(run, args=words, prog="lewm export")


def run(run: Positional[Path], out: Path, format: str = "published", dialect: str = "first", json: Path | None = None) -> None:
    """Write a run's newest weights in the form of the published checkpoints, with a config.json and the action statistics.

    Args:
        run: run folder.
        out: folder to make.
        format: published.
        dialect: names of the encoder's layers: first, as in the published files, or second, as today's libraries build them.
        json: write what was exported there.
    """
    choose("format", format, ("published",))
    written = export(checkpoints.load(run), out, dialect)
    facts = {
        "weights": f"{len(written.tensors)} tensors, {dialect} dialect",
        "files": sorted(file.name for file in out.iterdir()),
    }
    console.facts(facts, title=f"{run} in {out}")
    if json:
        write_json(json, {"run": str(run), "out": str(out), "format": format, "dialect": dialect, **facts})
