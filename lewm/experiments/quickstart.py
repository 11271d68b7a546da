"""From nothing to an agent that plans, and a page that shows it: a reproduction in two minutes.

out/
  quickstart.json    what the folder holds, and how long its stages took
  episodes.h5, run/, result.json   as `pipeline` says
  report.html        for people
  lab.html           the model itself in a browser, where a page can hold it
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from lewm.contracts import Progress, Report, silent
from lewm.evaluation.tasks import Task
from lewm.experiments import recipes
from lewm.experiments.book import Book
from lewm.experiments.pipeline import Scope, carry_out, result_of, seeded, shortened
from lewm.files import hold, read_json, write_atomically, write_json
from lewm.lab import PAGE_NAME
from lewm.lab import page as lab_page
from lewm.report.page import render
from lewm.report.record import record_of
from lewm.runs.run import Run

__all__ = ["run"]

RECIPE, PUBLISHED = "two-room-tiny", "two-room-paper"
PAIRS, OTHER_ROOM_PAIRS = 200, 100
SHORT_EPISODES, SHORT_UPDATES, SHORT_FIT_UPDATES, SHORT_PAIRS = 100, 40, 200, 100

ANALYSES = {
    "planning": {"pairs": 24},
    "probing": {"mlp": False, "rollouts": 64},
    "surprise": {"episodes": 60},
    "geometry": {"episodes": 40, "gaussians": 100, "pairs": 20, "draws": 150},
    "economy": {"paper_plans": 0},
}
"""Those that a quickstart can afford, and in which settings. `lewm analyse` asks all of them in
full, and the decoder too."""


def run(
    out: Path | str, seed: int = 0, short: bool = False, report: Report = silent
) -> dict[str, Any]:
    """Do everything that is not done yet in `out`, and return what `result.json` then holds.

    Args:
        out: folder. One that was interrupted is continued, a finished one is left alone and its
            result returned.
        seed: of data, weights, pairs, search and analyses.
        short: much less of everything, to see that it works; the result says so.
        report: called as stages proceed.

    Raises:
        ValueError: `out` holds a quickstart with other settings, or another process writes to it.
        KeyboardInterrupt: Ctrl-C; what was complete stays.
    """
    with hold(out):
        return _run(Path(out), seed, short, report)


def _run(out: Path, seed: int, short: bool, report: Report) -> dict[str, Any]:
    book = Book.open(out / "quickstart.json", {"recipe": RECIPE, "seed": seed, "short": short})
    if (out / "result.json").exists() and (out / "report.html").exists():
        report(Progress("report", 1, 1, "finished before"))
        return read_json(out / "result.json")
    experiment = seeded(recipes.load(RECIPE), seed)
    tasks = [Task.along(episodes=SHORT_PAIRS if short else PAIRS, seed=seed)]
    if short:
        experiment = shortened(experiment, SHORT_EPISODES, SHORT_UPDATES, SHORT_FIT_UPDATES)
    else:
        tasks.append(Task.to_other_room(OTHER_ROOM_PAIRS, seed))
    outcome = carry_out(experiment, Scope(tuple(tasks), ANALYSES), out, book, seed, report)
    command = f"lewm quickstart --out {shlex.quote(str(out))} --seed {seed}"
    with outcome.run.episodes, book.timed("report"):
        report(Progress("report", 0, 1))
        result = result_of(outcome, book, seed, short, command + (" --short" if short else ""))
        result["published"] = _published()
        lab = _lab(out, outcome.run)
        page = render([record_of(out / "run", result)], result["command"], lab=lab)
    result["seconds"] = book.seconds  # now with those of drawing the page
    write_atomically(out / "report.html", page.encode())
    write_json(out / "result.json", result)
    report(Progress("report", 1, 1))
    return result


def _lab(out: Path, run: Run) -> str | None:
    """Write the page that runs this model, and return its name; None where no page can hold it."""
    words = ["lewm", "lab", str(out / "run"), "--out", str(out / PAGE_NAME)]
    try:
        page = lab_page.render(run, "quickstart", shlex.join(words))
    except ValueError:  # `lewm lab` says why; a quickstart is whole without
        return None
    write_atomically(out / PAGE_NAME, page.encode())
    return PAGE_NAME


def _published() -> dict[str, str]:
    """What the paper reports at its size, in the words of that recipe."""
    paper = recipes.load(PUBLISHED)
    return {"recipe": paper.recipe, "result": paper.expected, "source": paper.source}
