"""`lewm analyse`: what does a trained model know? Ask any or all analyses; the answers stay in the
run."""

from collections.abc import Sequence
from pathlib import Path

import tyro
from tyro.conf import Positional

from lewm.cli import console
from lewm.files import read_json, write_json
from lewm.report.figures import write_figures
from lewm.runs.answers import ANALYSES, REFUSAL, RESULT, analyse, analyses
from lewm.runs.results import Result
from lewm.runs.run import Unsupported, open_run

LONG_WORDS = 80
"""Characters of a cell."""


def main(words: Sequence[str]) -> None:
    tyro.cli(run, args=words, prog="lewm analyse")


def run(
    run: Positional[Path],
    names: Positional[tuple[str, ...]] = (),
    data: Path | None = None,
    again: bool = False,
    seed: int = 0,
    device: str = "auto",
    json: Path | None = None,
) -> None:
    """Ask analyses about a trained run: numbers, tables and figures go into RUN/analyses, the
    tables to the terminal.

    Those that are there already are kept, if they are about the same weights and data. `lewm report
    RUN` shows all on a page.

    Args:
        run: run folder.
        names: of the analyses; without any, all there are, but for those that the run or its data
            do not allow.
        data: episode file; by default the one the run was trained on. Numbers are measured on
            episodes it never saw.
        again: ask even what was answered.
        seed: of what is drawn at random.
        device: cpu, cuda, ... or auto.
        json: write the numbers there as well.
    """
    analyses(names or None)  # a misspelt name is said before anything is opened
    opened = open_run(run, data, device)
    if opened.remark:
        console.say(opened.remark)
    try:
        with console.Bars() as bars:
            answers = analyse(opened, names or None, bars.update, again, seed, draw=write_figures)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"What was complete is kept in {run / ANALYSES}, and the same command goes on from "
            "there."
        ) from None
    for name, answer in answers.items():
        if isinstance(answer, Result):
            _show(name, answer)
    refused = {name: answer for name, answer in answers.items() if isinstance(answer, Unsupported)}
    if json:
        told = {
            name: read_json(run / ANALYSES / name / (REFUSAL if name in refused else RESULT))
            for name in answers
        }
        write_json(json, {"run": str(run), "data": str(opened.episodes.path), "analyses": told})
    if refused and names:
        raise Unsupported(" ".join(f"{name}: {why}" for name, why in refused.items()))
    for name, why in refused.items():
        console.say(f"{name} is not possible for this run. {why}")
    if len(refused) < len(answers):
        console.say(
            f"\nFigures and numbers are in {run / ANALYSES}. For all of it on one page: lewm "
            f"report {run}"
        )


def _show(name: str, result: Result) -> None:
    """Its tables; one with long words, which columns would wrap into ribbons, row by row."""
    for caption, rows in result.tables().items():
        title = f"{name}: {caption}"
        if any(len(str(value)) > LONG_WORDS for row in rows for value in row.values()):
            console.say(title)
            for row in rows:
                console.facts(row)
        elif rows:
            console.table(
                list(rows[0]),
                [[console.number(value) for value in row.values()] for row in rows],
                title=title,
            )
        console.say("")
