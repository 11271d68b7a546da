"""What a result looks like: its panels, its attempts as animations, and both as files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lewm.analyses.probes.attempts import recordings_of
from lewm.contracts import Result
from lewm.files import write_atomically
from lewm.report import sections
from lewm.report.animation import View, draw_episode, encode_animation
from lewm.report.canvas import Panel

__all__ = ["Clip", "clips_of", "panels_of", "slug", "write_figures"]


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


@dataclass(frozen=True)
class Clip:
    """One planned episode.

    Attributes:
        caption: what is to be seen, in a few words.
        solved: whether it reached its goal.
        animation, still: WebP; the still is for print and for readers who asked their system for
            less motion.
    """

    caption: str
    solved: bool
    animation: bytes
    still: bytes


def clips_of(planning: Result, most: int | None = None) -> list[Clip]:
    """The attempts that an analysis of planning recorded, as animations; at most so many, evenly
    spaced."""
    values = planning.values
    view = None
    if values["picture_extent"] is not None and values["tolerance"] is not None:
        view = View(np.asarray, values["picture_extent"], values["tolerance"])
    clips = []
    pairs = list(zip(recordings_of(planning), values["attempts"], strict=True))
    chosen = np.unique(
        np.linspace(0, len(pairs) - 1, min(most or len(pairs), len(pairs))).round().astype(int)
    )
    for recording, attempt in (pairs[k] for k in chosen):
        frames = draw_episode(recording, values["budget"], view)
        where = {True: "into the other room, ", False: "within one room, ", None: ""}[
            attempt["other_region"]
        ]
        steps = f"{attempt['steps']} steps" + ("" if attempt["reached"] else " were not enough")
        moving, still = (encode_animation(some, ".webp") for some in (frames, frames[-1:]))
        clips.append(Clip(where + steps, attempt["reached"], moving, still))
    return clips


def panels_of(result: Result) -> list[Panel]:
    """Everything there is to draw of a result, animations included."""
    clips = clips_of(result) if result.name == "planning" else []
    moving = [
        Panel(f"attempt {k}", webp=clip.animation, still=clip.still)
        for k, clip in enumerate(clips, 1)
    ]
    return [*sections.draw(result), *moving]


def slug(title: str) -> str:
    """A title as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "panel"
