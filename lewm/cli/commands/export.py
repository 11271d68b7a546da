"""`lewm export`: write a run's weights so that other programs can use them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import Positional

from lewm.cli import console
from lewm.files import write_json
from lewm.registry import choose
from lewm.runs import checkpoints
from lewm.runs.pieces import save_pieces
from lewm.runs.published import export


def main(words: Sequence[str]) -> None:
    tyro.cli(run, args=words, prog="lewm export")


def run(
    run: Positional[Path],
    out: Path,
    format: str = "published",
    dialect: str = "first",
    json: Path | None = None,
) -> None:
    """Write a run's newest weights so that others can use them.

    Args:
        run: run folder.
        out: folder to make.
        format: published, the form of the published checkpoints with a config.json and the action
            statistics; or pieces, half precision in files of at most 15 MB, of which `lewm import`
            makes a run again.
        dialect: names of the encoder's layers: first, as in the published files, or second, as
            today's libraries build them.
        json: write what was exported there.
    """
    choose("format", format, ("published", "pieces"))
    if format == "pieces":
        files = save_pieces(run, out)
        megabytes = sum(file.stat().st_size for file in files) / 1e6
        facts: dict[str, Any] = {
            "weights": f"half precision, {megabytes:.1f} MB",
            "files": [file.name for file in files],
        }
    else:
        written = export(checkpoints.load(run), out, dialect)
        facts = {
            "weights": f"{len(written.tensors)} tensors, {dialect} dialect",
            "files": sorted(file.name for file in out.iterdir()),
        }
    console.facts(facts, title=f"{run} in {out}")
    if json:
        write_json(
            json, {"run": str(run), "out": str(out), "format": format, "dialect": dialect, **facts}
        )
