"""`lewm lab`: a page that runs a trained model in the browser."""

import shlex
import webbrowser
from collections.abc import Sequence
from pathlib import Path

import tyro
from tyro.conf import Positional

from lewm.cli import console
from lewm.files import hold, write_atomically
from lewm.lab import PAGE_NAME
from lewm.lab.page import render
from lewm.runs.run import open_run


def main(words: Sequence[str]) -> None:
    tyro.cli(run, args=words, prog="lewm lab")


def run(
    run: Positional[Path],
    out: Path = Path(PAGE_NAME),
    data: Path | None = None,
    seed: int = 0,
    open: bool = False,
) -> None:
    """Write one self-contained page in which this model sees, imagines and plans while you drag its
    goal.

    The page needs a browser and nothing else: no server, no network. It holds tiny models of
    Two-Room, with the heads that `lewm fit` makes.

    Args:
        run: run folder.
        out: page to write.
        data: episode file, if the one that the run names is elsewhere now.
        seed: of the frames that are drawn for the map, the probe and the cloud.
        open: show the page in the browser.
    """
    words = ["lewm", "lab", str(run), "--out", str(out)]
    words += ["--data", str(data)] if data else []
    words += ["--seed", str(seed)] if seed else []
    with hold(out, folder=False):
        opened = open_run(run, data)
        with opened.episodes:
            page = render(opened, run.resolve().name, shlex.join(words), seed).encode()
        write_atomically(out, page)
    console.say(f"Open {out.resolve()} in a browser. It has {len(page) / 1e6:.2f} MB.")
    if open:
        webbrowser.open_new_tab(out.resolve().as_uri())
