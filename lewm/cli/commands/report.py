"""`lewm report`: runs on one page, to look at."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import tyro
from tyro.conf import Positional

from lewm.cli import console
from lewm.files import hold, write_atomically
from lewm.lab import PAGE_NAME
from lewm.report.page import render
from lewm.report.record import record_of
from lewm.report.rivals import study_of


def main(words: Sequence[str]) -> None:
    tyro.cli(run, args=words, prog="lewm report")


def run(
    run: Positional[Path],
    others: Positional[tuple[Path, ...]] = (),
    out: Path = Path("report.html"),
    study: Path | None = None,
) -> None:
    """Write one self-contained page about a run, or several side by side, from what is in their
    folders.

    It asks nothing: what `lewm analyse`, `lewm evaluate` and the like have stored is shown, and
    what is missing is named with its command. It links to the `lab.html` of `lewm lab`, where that
    lies beside it.

    Args:
        run: run folder.
        others: more of them, to stand beside it.
        out: page to write.
        study: rows of `lewm study collapse --export`, shown on the page as well.
    """
    paths = (run, *others)
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError("expected runs that differ, got one of them twice. Name each once.")
    words = ["lewm", "report", *map(str, paths), "--out", str(out)]
    words += ["--study", str(study)] if study else []
    beside = study_of(study) if study else None
    with hold(out, folder=False):
        records = [record_of(path) for path in paths]
        lab = PAGE_NAME if len(paths) == 1 and (out.parent / PAGE_NAME).is_file() else None
        write_atomically(out, render(records, shlex.join(words), beside, lab).encode())
    for record in records:
        missing = [name for name, answer in record.answers.items() if answer.result is None]
        if missing:
            console.say(
                f"{record.path}: without {', '.join(missing)}. For these: lewm analyse "
                f"{record.quoted}"
            )
    console.say(f"Open {out.resolve()} in a browser.")
