"""Recordings of any layout, opened: the role, and the choice of a layout, a camera and columns."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lewm import registry
from lewm.contracts import check_numbers
from lewm.data.archives import MAX_EXPANSION, is_archive, unpack
from lewm.data.provenance import Provenance
from lewm.files import fetch

__all__ = ["Selection", "Source", "choose_camera", "choose_columns", "open_source", "unfit"]


CROPS, STANDARD_CAMERA = ("center", "pad"), "pixels"


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
        """The frames of episode i, one by one: (H, W, 3) uint8, or the bytes of a JPEG or PNG."""
        ...

    def close(self) -> None: ...


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
        max_expansion: an archive that holds more than this many times its own size is refused.
    """

    format: str | None = None
    camera: str | None = None
    action_columns: tuple[str, ...] = ()
    state_columns: tuple[str, ...] = ()
    image_size: int | None = None
    crop: str | None = None
    max_expansion: float = MAX_EXPANSION

    def __post_init__(self) -> None:
        if self.crop is not None:
            registry.choose("crop", self.crop, CROPS)
        check_numbers(self, least={"image_size": 1, "max_expansion": 1}, most={"image_size": 10**4})


@contextmanager
def open_source(
    source: Path | str, selection: Selection, beside: Path | None = None
) -> Iterator[tuple[str, Source]]:
    """The format's name and the opened recordings: fetched, unpacked into a temporary folder and
    recognised where need be."""
    path = fetch(source)
    with ExitStack() as stack:
        archives = [entry for entry in path.iterdir() if is_archive(entry)] if path.is_dir() else []
        # a repository of the hub that holds one
        if len(archives) == 1 and not _recognised(path)[0]:
            path = archives[0]
        if is_archive(archive := path):
            parent = beside or path.parent
            parent.mkdir(parents=True, exist_ok=True)
            path = Path(
                stack.enter_context(
                    tempfile.TemporaryDirectory(prefix=f".{archive.name}.", dir=parent)
                )
            )
            stack.enter_context(_naming(path, archive))
            unpack(archive, path, selection.max_expansion)
            while path.is_dir() and len(entries := list(path.iterdir())) == 1:
                path = entries[0]
        format = _format(path, selection.format)
        recordings: Source = registry.load("formats", format)(path)
        stack.callback(recordings.close)
        yield format, recordings


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
    """The columns of actions and of states, all of which exist."""
    states = selection.state_columns or recordings.states
    actions = selection.action_columns or tuple(
        name for name in recordings.actions if name not in states
    )
    for name in (*actions, *states):
        registry.choose(f"column of {recordings.path}", name, recordings.columns)
    if not actions:
        got = f"none among {', '.join(recordings.columns) or 'no numbers'}"
        raise unfit(recordings.path, "a column of actions", got, "Name some with --action-columns")
    return actions, states


def unfit(where: object, expected: str, got: str, cure: str) -> ValueError:
    return ValueError(f"{where}: expected {expected}, got {got}. {cure}.")
