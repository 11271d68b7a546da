"""Recordings of any layout, opened: the role, and the choice of a layout, a camera and columns."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lewm import registry
from lewm.contracts import check_numbers
from lewm.data.archives import MAX_EXPANSION, is_archive, unpacked
from lewm.data.provenance import Provenance
from lewm.files import fetch

__all__ = [
    "Selection",
    "Source",
    "Telling",
    "chosen_episodes",
    "choose_camera",
    "choose_columns",
    "is_time",
    "open_source",
    "has_unit",
    "ranges",
    "seems_a_choice",
    "unfit",
]


CROPS, STANDARD_CAMERA = ("center", "pad"), "pixels"

MAX_SIZE = 4096
"""Of converted pictures; a model that sees more is none of ours."""

TIME_WORDS = {"clock", "datetime", "elapsed", "epoch", "stamp", "time", "timestamp", "timestamps"}

UNIT_WORDS = {
    *("t", "ts", "sec", "secs", "second", "seconds", "ms", "msec", "msecs", "millis"),
    *("millisecond", "milliseconds", "us", "usec", "usecs", "micros", "microsecond"),
    *("microseconds", "ns", "nsec", "nsecs", "nanos", "nanosecond", "nanoseconds"),
}

QUANTITY_WORDS = {
    *("mm", "cm", "km", "px", "pixel", "pixels", "deg", "degree", "degrees", "rad", "rads"),
    *("rpm", "pwm", "hz", "kg", "newton", "newtons", "nm", "volt", "volts", "mv", "ma", "amps"),
    *("percent", "pct", "mps", "kph", "kmh", "mph", "meter", "meters", "metre", "metres"),
    *("ticks", "counts", "radians"),
}
"""Last words of a name that make its numbers amounts. Units of one letter count in brackets only:
m may be a mode."""

FEW = 32
"""Whole numbers of fewer kinds than this, counted from 0, may be choices."""


class Source(Protocol):
    """Recordings that a format has opened: what a plug-in of `formats` is, built as `plugin(path)`.

    Opening checks the index and raises ValueError, naming the file, for what cannot be read.
    Numbers are handed over as they were recorded. Row t of an action column is taken *from*
    observation t: a format in which it led to observation t must shift it. An episode of L
    observations may have L such rows, the last of which is then dropped, or L-1.

    Attributes:
        path: what was opened.
        provenance: what the recordings say of their origin; `Provenance()` if nothing.
        lengths: (E,) observations of each episode, as the index says.
        cameras: the columns that hold pictures.
        columns: every other column that may be asked for -> its type in words.
        actions, states: the columns that hold them by the format's conventions, which may be none.
        unfit: what training lacks to read these files as they are; empty if nothing.
    """

    path: Path
    provenance: Provenance
    lengths: np.ndarray
    cameras: tuple[str, ...]
    columns: Mapping[str, str]
    actions: tuple[str, ...]
    states: tuple[str, ...]
    unfit: str

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether these are recordings of this format, judged by names and first bytes."""
        ...

    def names(self, column: str) -> tuple[str, ...]:
        """One per number in a row of the column; empty where unknown."""
        ...

    def origin(self, i: int) -> str:
        """Files and number of an episode, for errors."""
        ...

    def read(self, i: int, columns: Sequence[str]) -> Mapping[str, Any]:
        """Column -> its rows in episode i: numbers, or lists of equally many."""
        ...

    def pictures(self, i: int, camera: str) -> Iterator[np.ndarray | bytes]:
        """The frames of episode i, one by one: (H, W, 3) uint8, or the bytes of a JPEG, PNG or
        WebP."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class Telling(Protocol):
    """Recordings that know more of themselves than they are asked for."""

    def told(self, camera: str) -> Mapping[str, Any]:
        """What is to be kept in the provenance, JSON-ready: how pictures were found, say."""
        ...


@dataclass(frozen=True)
class Selection:
    """What is taken from recordings, and how it is brought into shape.

    Attributes:
        format: a plug-in of `formats`; None recognises it.
        camera: column of the pictures; None takes the only one there is, or "pixels".
        action_columns, state_columns: laid side by side in this order; empty are the format's own.
        image_size: height and width of the converted pictures; None leaves their size.
        crop: what to do with pictures that are not square: "center" cuts the longer side equally at
            both ends, "pad" adds black to the shorter; None refuses them.
        discrete_actions: how many choices an action has that is a choice, numbered from 0: it
            becomes as many columns, of which one is 1 and the others 0. 0 says that whole numbers
            are amounts, and leaves them. None refuses what seems to be a choice.
        max_expansion: an archive that holds more than this many times its own size is refused.
    """

    format: str | None = None
    camera: str | None = None
    action_columns: tuple[str, ...] = ()
    state_columns: tuple[str, ...] = ()
    image_size: int | None = None
    crop: str | None = None
    max_expansion: float = MAX_EXPANSION
    discrete_actions: int | None = None

    def __post_init__(self) -> None:
        if self.crop is not None:
            registry.choose("crop", self.crop, CROPS)
        check_numbers(
            self,
            least={"image_size": 1, "max_expansion": 1, "discrete_actions": 0},
            most={"image_size": MAX_SIZE, "discrete_actions": MAX_SIZE},
        )


@contextmanager
def open_source(
    source: Path | str, selection: Selection, beside: Path | None = None
) -> Iterator[tuple[str, Source]]:
    """The format's name and the opened recordings: fetched, unpacked into a temporary folder and
    recognised where need be."""
    path = fetch(source)
    if path.is_dir():
        _refuse_links(path)
    with ExitStack() as stack:
        archives = [entry for entry in path.iterdir() if is_archive(entry)] if path.is_dir() else []
        # a repository of the hub that holds one
        if len(archives) == 1 and not _recognised(path)[0]:
            path = archives[0]
        if is_archive(archive := path):
            copy = unpacked(archive, beside or path.parent, selection.max_expansion)
            path = stack.enter_context(copy)
            stack.enter_context(_naming(path, archive))
            while path.is_dir() and len(entries := _visible(path)) == 1:
                path = entries[0]
        format = _format(path, selection.format)
        recordings: Source = registry.load("formats", format)(path)
        stack.callback(recordings.close)
        yield format, recordings


def _visible(folder: Path) -> list[Path]:
    """What a folder holds, without what systems put there: .DS_Store, __MACOSX and their like."""
    return [entry for entry in folder.iterdir() if not entry.name.startswith((".", "__MACOSX"))]


def _refuse_links(folder: Path) -> None:
    """Refuse a folder with a link out of it: what is read must be what was given.

    A link may lead to elsewhere in the folder. One of the hub's cache, which consists of links, may
    lead to the files of the same repository. What begins with a dot is never read.
    """
    home = folder.resolve()
    allowed = [home]
    for parent in home.parents:
        if re.match("(datasets|models|spaces)--", parent.name) and "snapshots" in home.parts:
            allowed.append(parent / "blobs")
    for inside, folders, files in os.walk(home):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in (*folders, *files):
            entry = Path(inside, name)
            if name.startswith(".") or not entry.is_symlink():
                continue
            target = entry.resolve()
            if not any(target.is_relative_to(place) for place in allowed):
                cure = "Copy what it leads to into the folder, or give that place instead"
                shown = folder / entry.relative_to(home)
                raise unfit(
                    shown, "a file or a folder", f"a link out of {folder}, to {target}", cure
                )


@contextmanager
def _naming(folder: Path, archive: Path) -> Iterator[None]:
    """Let errors name the archive, not the temporary folder that nobody will find."""
    try:
        yield
    except ValueError as error:
        raise ValueError(
            str(error)
            .replace(f"{folder}{os.sep}", f"{archive}: ")
            .replace(str(folder), str(archive))
        ) from error


def _recognised(path: Path) -> tuple[list[str], list[str]]:
    """Names of the formats that recognise a path, and what is to be said of those that could not be
    asked."""
    names, missing = [], []
    for name in registry.names("formats"):
        try:
            plugin = registry.load("formats", name)
        except ImportError as error:
            missing.append(str(error))
            continue
        if plugin.recognises(path):
            names.append(name)
    return names, missing


def _format(path: Path, wanted: str | None) -> str:
    """The name of the one format that a path is in."""
    names, missing = _recognised(path)
    if wanted is not None:
        # an unknown one, or one that needs a package, is refused as such
        registry.load("formats", wanted)
        names = [name for name in names if name == wanted.replace("_", "-")]
    if len(names) == 1:
        return names[0]
    if not path.exists():
        cure = "Check the path, or make one with `lewm collect`"
        raise unfit(path, "an episode file", "no such file or folder of recordings", cure)
    if names:
        raise unfit(
            path, "recordings in one format", " and ".join(names), "Choose one with --format"
        )
    inside = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    got = f"a folder of {', '.join(inside[:5]) or 'nothing'}" if path.is_dir() else "another file"
    known = f"recordings in a known format ({wanted or ', '.join(registry.names('formats'))})"
    raise unfit(path, known, got, ". ".join(["docs/your-own-data.md shows the layouts", *missing]))


def choose_camera(recordings: Source, wanted: str | None) -> str:
    cameras = recordings.cameras
    if wanted is not None:
        return registry.choose(f"camera of {recordings.path}", wanted, cameras)
    if len(cameras) == 1 or STANDARD_CAMERA in cameras:
        return STANDARD_CAMERA if STANDARD_CAMERA in cameras else cameras[0]
    got, cure = (
        ", ".join(cameras) or "none",
        "Choose one with --camera" if cameras else "A world model learns from pictures",
    )
    raise unfit(recordings.path, "one column of pictures", got, cure)


def choose_columns(
    recordings: Source, selection: Selection
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The columns of actions and of states, all of which exist. A time is neither unless it is
    asked for."""
    states = selection.state_columns or recordings.states
    actions = selection.action_columns or tuple(
        name for name in recordings.actions if name not in states and not is_time(name)
    )
    for name in (*actions, *states):
        registry.choose(f"column of {recordings.path}", name, recordings.columns)
    if not actions:
        got = f"none among {', '.join(recordings.columns) or 'no numbers'}"
        raise unfit(recordings.path, "a column of actions", got, "Name some with --action-columns")
    return actions, states


def is_time(name: str) -> bool:
    """Whether a column is named as one that says when a row was recorded: timestamp, t, Time_s,
    simTime, "time [ms]", header.stamp, nanoseconds."""
    words = re.findall("[a-z]+|[0-9]+", re.sub("([a-z0-9])([A-Z])", r"\1 \2", name).lower())
    return bool(TIME_WORDS & {*words}) or (
        bool(words) and words[0] in UNIT_WORDS and UNIT_WORDS | {"s"} >= {*words}
    )


def seems_a_choice(name: str, values: Set[float], typed: bool, alone: bool) -> bool:
    """Whether an action column numbers choices, so that 3 is not more than 1. Whoever reads
    recordings of whatever layout asks here.

    It does where its values are few small ids: whole numbers from 0 on, at least two and fewer than
    `FEW` different ones, and most of those up to the largest. It does not where

    - any is negative, or no whole number;
    - its name bears a unit: "speed [mm]", dx_px, angle_deg;
    - the numbers are floats by their type, several a row.

    Args:
        values: the different ones that were recorded, NaN apart.
        typed: they are whole numbers or booleans by their type, as a CSV does not say.
        alone: it has one number a row.
    """
    return (
        (typed or alone)
        and 2 <= len(values) < FEW
        and all(value >= 0 and float(value).is_integer() for value in values)
        and 2 * len(values) > max(values) + 1  # amounts leave gaps
        and not has_unit(name)
    )


def has_unit(name: str) -> bool:
    """Whether a column's name ends in a unit: "speed [mm/s]", "angle (deg)", dx_px, throttle %."""
    words = re.findall("[a-z]+|%", re.sub("([a-z0-9])([A-Z])", r"\1 \2", name).lower())
    bracketed = re.search(r"[\[(]\s*[a-zA-Z%°µ][^\])]*[\])]\s*$", name)
    return bool(bracketed) or (len(words) > 1 and words[-1] in QUANTITY_WORDS) or "%" in words


def ranges(text: str) -> list[range]:
    """Read numbers and ranges of them: "0-9,12" -> 0 to 9, and 12.

    Raises:
        ValueError: the text is something else.
    """
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        parsed = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part)
        if not parsed or int(parsed[2] or parsed[1]) < int(parsed[1]):
            raise ValueError(
                f"expected numbers of episodes and ranges of them, such as 0-9,12, got '{part}'. "
                "They count from 0."
            )
        found.append(range(int(parsed[1]), int(parsed[2] or parsed[1]) + 1))
    return found


def chosen_episodes(
    recordings: Source, wanted: int | str | None = None, skipped: str = ""
) -> list[int]:
    """The numbers of episodes to take, in their order.

    Args:
        wanted: the first so many, or ranges such as "0-9,12"; None is all.
        skipped: ranges that are left out, before the first so many are counted.

    Raises:
        ValueError: no such episodes, or none are left.
    """
    total = len(recordings.lengths)
    if isinstance(wanted, str) and wanted.strip().isdecimal():
        wanted = int(wanted)
    if isinstance(wanted, int) and wanted < 1:
        raise ValueError(f"expected to convert at least 1 episode, got {wanted}.")
    spans = ranges(wanted) if isinstance(wanted, str) else []
    for span in (*spans, *ranges(skipped)):
        if span.stop > total:
            raise unfit(
                recordings.path, f"episodes 0 to {total - 1}", f"{span[-1]}", "They count from 0"
            )
    taken = {*range(total)} if not spans else {i for span in spans for i in span}
    left = sorted(taken - {i for span in ranges(skipped) for i in span})
    if not left:
        raise unfit(recordings.path, "an episode to convert", "none that is left", "Skip fewer")
    return left[:wanted] if isinstance(wanted, int) else left


def unfit(where: object, expected: str, got: str, cure: str) -> ValueError:
    return ValueError(f"{where}: expected {expected}, got {got}. {cure}.")
