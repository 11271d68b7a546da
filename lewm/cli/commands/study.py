"""`lewm study collapse`: ways not to collapse, trained and planned with side by side."""

import multiprocessing
import shlex
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import tyro
from tyro.conf import OmitArgPrefixes, Positional

from lewm import registry
from lewm.cli import console
from lewm.contracts import Progress
from lewm.experiments.study import Plan, carry_out, exported, open_cells, rows_of
from lewm.files import write_atomically, write_json
from lewm.report.figures import slug
from lewm.report.rivals import figures, result_in_words, study_of, table, to_markdown

STUDIES = ("collapse",)
"""That there are: methods against collapse."""


def main(words: Sequence[str]) -> None:
    tyro.cli(run, args=words, prog="lewm study")


def run(
    study: Positional[str],
    out: Path = Path("runs/collapse"),
    plan: OmitArgPrefixes[Plan] = Plan(),  # noqa: B008  frozen
    workers: int = 1,
    known: tuple[Path, ...] = (),
    keep: bool = False,
    only_show: bool = False,
    export: Path | None = None,
    page: Path | None = None,
) -> None:
    """Train every method against collapse on the same data, at one size, plan with one search, and
    put the numbers side by side.

    One run is one row. The same command continues, several at once share the work, and rows that
    are there are never done again.

    Args:
        study: "collapse".
        out: folder for rows, runs and data.
        plan: what is studied.
        workers: processes that work side by side, on one thread each.
        known: files of rows, made by --export, that are not done again.
        keep: the run folders, which are otherwise removed once their row is there.
        only_show: train nothing; show, and export, the rows there are.
        export: file for all rows, which claims and report read.
        page: Markdown page, with its figures beside it.
    """
    registry.choose("study", study, STUDIES)
    if not only_show:
        _work(plan, out, known, keep, workers)
    rows = rows_of(out, *known)
    if not rows:
        raise ValueError(
            f"expected rows in {out} or in a file of --known, got none. Leave --only-show out."
        )
    told = exported(plan, rows)
    export = export or out / "study.rows.json"
    write_json(export, told)
    found = study_of(export)
    for world in found.worlds:
        lines = table(found, world)
        if lines:
            console.table(tuple(lines[0]), [tuple(line.values()) for line in lines], title=world)
        for line in result_in_words(found, world):
            console.say(line)
    if page:
        pictures: dict[str, list[str]] = {}
        for world in found.worlds:
            for panel in figures(found, world):
                name = f"{page.stem}-{slug(panel.title)}.svg"
                write_atomically(page.parent / name, panel.svg.encode())
                pictures.setdefault(world, []).append(name)
        command = f"lewm study {study} --only-show --known {shlex.quote(str(export))} --page PAGE"
        write_atomically(page, to_markdown(found, command, pictures).encode())
        console.say(str(page.resolve()))
    left = len(list(open_cells(plan, rows)))
    if left:
        console.say(f"{left} runs that can be begun now have no row yet")


def _work(plan: Plan, out: Path, known: Sequence[Path], keep: bool, workers: int) -> None:
    """Do all rows, in this process or in several beside it."""
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}. Raise it.")
    try:
        with console.Bars() as bars:
            if workers == 1:
                carry_out(plan, out, known, keep, bars.update)
                return
            context = multiprocessing.get_context("spawn")
            processes = [
                context.Process(target=_worker, args=(plan, out, tuple(known), keep), daemon=True)
                for _ in range(workers)
            ]
            for process in processes:
                process.start()
            try:
                there: list[Path] | None = None
                while any(process.is_alive() for process in processes):
                    if there != (now := sorted((out / "rows").glob("*.json"))):
                        there, rows = now, rows_of(out, *known)
                        left = len(list(open_cells(plan, rows)))
                        bars.update(Progress("rows", len(rows), len(rows) + left))
                    time.sleep(2)
            finally:
                for process in processes:
                    process.terminate()
                    process.join()
            if failed := [p.exitcode for p in processes if p.exitcode]:
                raise ValueError(
                    f"expected all workers to end well, got exit codes {failed}. Their messages "
                    "are above; rows that are there are kept."
                )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"Rows are kept in {out}, and the same command goes on from there."
        ) from None


def _worker(plan: Plan, out: Path, known: tuple[Path, ...], keep: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    torch.set_num_threads(1)
    carry_out(plan, out, known, keep)
