"""What a terminal shows: progress on stderr, results on stdout. Nothing here computes, and no other
module draws text.

Names come from files, and files from strangers: all text passes `legible`, so that none of it
steers the terminal.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import progress as bars
from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from lewm.files import legible

if TYPE_CHECKING:  # it imports torch, and `lewm --help` answers at once
    from lewm.contracts import Progress

__all__ = ["Bars", "alarm", "complain", "facts", "number", "say", "table"]

PLAIN_WIDTH = 160
"""Columns where there is no terminal to ask: tables in files and logs are read unwrapped."""

PLAIN_SECONDS = 10.0
"""Between two lines of progress where there is no terminal to draw a bar on."""


class Bars:
    """One bar per stage with elapsed and remaining time, a line of numbers below, and a red one if
    there is cause for alarm.

    Where stderr is no terminal, a plain line now and then. Use as a context.

    Python swallows a Ctrl-C that happens to arrive inside a destructor, of which HDF5 has many. So
    within the context it is also noted, and if the work goes on all the same, the next update
    raises it again; the swallowed one is not shown.
    """

    def __init__(self) -> None:
        self._console = _console(stderr=True)
        self._progress = bars.Progress(
            TextColumn("{task.description}", markup=False),  # a file name may hold square brackets
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            expand=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._note = self._alarm = ""
        self._live = Live(get_renderable=self._picture, console=self._console, refresh_per_second=4)
        self._said = time.monotonic()
        self._interrupted = False
        self._handler: Any = None
        self._hook: Any = None

    def __enter__(self) -> Bars:
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._handler = signal.signal(signal.SIGINT, self._interrupt)
            self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            sys.unraisablehook = self._hook

    def update(self, progress: Progress) -> None:
        """Show how far a stage is; its first call is where its clock starts. A call without a note
        leaves note and alarm."""
        if self._interrupted:
            raise KeyboardInterrupt
        stage, done, total = legible(progress.stage, lines=False), progress.done, progress.total
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total, completed=done)
            self._note = self._alarm = ""
        self._progress.update(self._tasks[stage], completed=done, total=total)
        if progress.note:
            self._note, self._alarm = (
                legible(text, lines=False) for text in (progress.note, progress.alarm)
            )
        now = time.monotonic()
        if not self._console.is_terminal and (now - self._said > PLAIN_SECONDS or done == total):
            self._said = now
            self._console.print(
                Text(f"{stage}: {done}/{total} {self._note} {self._alarm}".rstrip()), soft_wrap=True
            )

    def _interrupt(self, signum: int, frame: Any) -> None:
        self._interrupted = True
        raise KeyboardInterrupt

    def _unraisable(self, unraisable: Any) -> None:
        if unraisable.exc_type is not KeyboardInterrupt:
            self._hook(unraisable)

    def _picture(self) -> Group:
        lines = [Text(self._note, style="dim")] * bool(self._note) + [
            Text(self._alarm, style="bold red")
        ] * bool(self._alarm)
        return Group(self._progress, *lines)


def say(text: str) -> None:
    """A line on stdout."""
    _console().print(Text(legible(text)), soft_wrap=True)


def alarm(text: str) -> None:
    """A red line on stderr."""
    _console(stderr=True).print(Text(legible(text), style="bold red"), soft_wrap=True)


def complain(text: str) -> None:
    """A paragraph on stderr, from one of the processes of a training on several devices of a
    machine: all of them meet the same trouble."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(legible(text), file=sys.stderr)


def table(
    header: Sequence[str], rows: Iterable[Sequence[Any]], numbers_from: int = 1, title: str = ""
) -> None:
    """A table on stdout; columns from `numbers_from` on are aligned right."""
    console = _console()
    if title:
        console.print(Text(legible(title), style="bold"), soft_wrap=True)
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for place, name in enumerate(header):
        grid.add_column(
            Text(legible(name, lines=False)), justify="right" if place >= numbers_from else "left"
        )
    for row in rows:
        grid.add_row(*(Text(legible(str(cell), lines=False)) for cell in row))
    console.print(grid)


def facts(values: Mapping[str, Any], title: str = "") -> None:
    """Names and values on stdout, one pair a line; nested ones under their joined names, such as
    "success rate"."""
    console = _console()
    if title:
        console.print(Text(legible(title), style="bold"), soft_wrap=True)
    lines = [tuple(legible(word, lines=False) for word in pair) for pair in _lines(values)]
    width = max((len(name) for name, _ in lines), default=0)
    for name, value in lines:
        console.print(Text.assemble((f"  {name:<{width}}  ", "dim"), value), soft_wrap=True)


def number(value: Any) -> str:
    """A value as people read it: four digits of a number, a dash for None."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _lines(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _lines(item, f"{name} {key}".strip())
    elif isinstance(value, list | tuple):
        yield name, ", ".join(map(number, value)) or "-"
    else:
        yield name, number(value)


def _console(stderr: bool = False) -> Console:
    """A console, silent in the further processes of a training on several devices: their launchers
    number them."""
    helper = any(os.environ.get(name, "0") != "0" for name in ("LOCAL_RANK", "RANK"))
    console = Console(stderr=stderr, highlight=False, quiet=helper)
    return (
        console
        if console.is_terminal
        else Console(stderr=stderr, highlight=False, quiet=helper, width=PLAIN_WIDTH)
    )
