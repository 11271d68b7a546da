"""`lewm economy`: what a frame and a plan cost, as a picture with one dot per token."""

from collections.abc import Sequence
from pathlib import Path

import tyro
from tyro.conf import Positional

from lewm.analyses.economy import Economy, Others
from lewm.cli import console
from lewm.files import write_atomically, write_json
from lewm.registry import choose
from lewm.report.sections.economy import draw
from lewm.runs.run import open_run

FORMATS = (".svg",)


def main(words: Sequence[str]) -> None:
    tyro.cli(run, args=words, prog="lewm economy")


def run(
    run: Positional[Path | None] = None,
    out: Path = Path("economy.svg"),
    data: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    json: Path | None = None,
) -> None:
    """Tokens, arithmetic, time and bytes of a run, measured here, beside the models of others, as
    they were published.

    Without a run, the published ones alone. Where nobody published a number it is a dash, or an
    estimate that is called one.

    Args:
        run: run folder.
        out: picture to write, a field of dots per model with one dot per token of a frame: .svg.
        data: episode file; by default the one the run was trained on, of which only held-out
            episodes are planned in.
        seed: of the observations that are planned from.
        device: cpu, cuda, ... or auto.
        json: write the numbers there.
    """
    choose("picture format", out.suffix.lower(), FORMATS)
    if run is None:
        result = Others()
    else:
        opened = open_run(run, data, device)
        with console.Bars() as bars:
            result = Economy(seed=seed).run(opened, bars.update)
    for caption, rows in result.tables().items():
        in_words = "remark" in rows[0]
        console.table(
            tuple(rows[0]),
            [tuple(row.values()) for row in rows],
            len(rows[0]) if in_words else 1,
            title=caption,
        )
    write_atomically(out, draw(result)[0].svg.encode())
    console.say(str(out.resolve()))
    if json:
        write_json(json, {"run": None if run is None else str(run), **result.to_json()})
