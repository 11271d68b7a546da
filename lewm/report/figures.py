"""What a result looks like, as files."""

from __future__ import annotations

import re
from pathlib import Path

from lewm.files import write_atomically
from lewm.report import sections
from lewm.report.canvas import Panel
from lewm.runs.results import Result

LONGEST = 120
"""Characters of a file name: a title may hold names of any length."""

__all__ = ["panels_of", "slug", "write_figures"]


def write_figures(result: Result, folder: Path) -> None:
    """Write the figures as files of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    for panel in panels_of(result):
        name = slug(panel.title)
        if panel.svg:
            write_atomically(folder / f"{name}.svg", panel.svg.encode())
        else:
            write_atomically(folder / f"{name}.webp", panel.webp)
            write_atomically(folder / f"{name}.still.webp", panel.still)


def panels_of(result: Result) -> list[Panel]:
    """Everything there is to draw of a result, animations included."""
    moving = [
        Panel(f"attempt {k}", webp=clip.animation, still=clip.still)
        for k, clip in enumerate(sections.clips(result), 1)
    ]
    return [*sections.draw(result), *moving]


def slug(title: str) -> str:
    """A title as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:LONGEST] or "panel"
