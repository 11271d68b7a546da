"""Recordings as others keep them -> episode files. A format (`formats/*.py`) knows a layout; what becomes of it is said here.

Nothing is guessed that would change what a model learns: which of several cameras, whether to cut what is not square, and which
columns are the state are asked for where a format's own conventions do not say.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

import lewm
from lewm import registry
from lewm.data import Episode, Episodes
from lewm.files import MAX_EXPANSION, fetch, is_archive, unpack
from lewm.provenance import Provenance
from lewm.recording import EpisodeWriter

__all__ = ["Selection", "Source", "convert", "describe", "verify"]

CROPS, STANDARD_CAMERA = ("center", "pad"), "pixels"


class Source(Protocol):
    """Recordings that a format has opened: what a plug-in of `formats` is, built as `plugin(path)`.

    Opening checks the index and raises ValueError, naming the file, for what cannot be read. Numbers are handed over as they
    were recorded. Row t of an action column is taken *from* observation t: a format in which it led to observation t must shift
    it. An episode of L observations may have L such rows, the last of which is then dropped, or L-1.

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
        crop: what to do with pictures that are not square: "center" cuts the longer side equally at both ends, "pad" adds black
            to the shorter; None refuses them.
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
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"expected an image size of at least 1, got {self.image_size}.")


def convert(
    source: Path | str,
    out: Path | str,
    selection: Selection = Selection(),
    world: str | None = None,
    episodes: int | None = None,
    compression: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Episodes:
    """Write recordings of any known format as an episode file; go on where an interrupted call with the same arguments ended.

    An archive is unpacked into a temporary folder beside `out`. What was taken from where is kept in the file's provenance.

    Args:
        source: a file, a folder or `hf:user/name`.
        out: the episode file.
        world: that was recorded; needed where evaluation is to open it and the recordings do not say.
        episodes: convert the first so many; None converts all.
        compression: see `EpisodeWriter`.
        progress: called with (episodes converted, episodes).

    Returns:
        The opened and verified file.

    Raises:
        ValueError: recordings that cannot be converted, named with what was expected, what was found, and the cure.
        ImportError: a package is missing; the message names the extra to install.
    """
    out = Path(out)
    if episodes is not None and episodes < 1:
        raise ValueError(f"expected to convert at least 1 episode, got {episodes}.")
    with _opened(source, selection, out.parent) as (format, recordings):
        camera = _camera(recordings, selection.camera)
        total = min(len(recordings.lengths), episodes or len(recordings.lengths))
        name = str(source) if str(source).startswith("hf:") else Path(source).name
        told = {"source": name, "format": format, "camera": camera}
        provenance = _noted(_provenance(recordings, selection, world, total), told)
        with EpisodeWriter(out, provenance, compression) as writer:
            while (i := len(writer)) < total:
                writer.append(_episode(recordings, i, camera, selection))
                if progress:
                    progress(i + 1, total)
    return Episodes.open(out)


def describe(source: Path | str, selection: Selection = Selection()) -> dict[str, Any]:
    """Describe recordings of any known format in JSON-ready values; "missing" says what training and evaluation lack."""
    with _opened(source, selection) as (format, recordings):
        stated = selection.state_columns or recordings.states
        lacking = [] if stated else ["states, which probes and world resets need (--state-columns when converting)"]
        if recordings.provenance.world is None:
            lacking.append("the name of a world to act in (--world when converting)")
        if not recordings.unfit:
            with Episodes.open(recordings.path) as episodes:
                return {**episodes.summary(), "path": str(source), "format": format, "missing": {"evaluation": lacking}}
        lengths, named = recordings.lengths, selection.action_columns or recordings.actions
        columns = _columns(recordings, selection)[0] if named else ()
        rows = [_numbers(recordings, i, columns)[: n - 1] for i, n in enumerate(lengths)] if columns else [np.empty((0, 0))]
        actions, sizes = np.concatenate(rows).astype(np.float64), {}
        for camera in recordings.cameras:
            for picture in itertools.islice(recordings.pictures(0, camera), 1):
                height, width, _ = _decoded(picture, recordings.origin(0)).shape
                sizes[camera] = f"{width} x {height}"
        return {
            "path": str(source),
            "format": format,
            "episodes": len(lengths),
            "steps": int(lengths.sum()),
            "lengths": {f"{q:.0%}": float(np.quantile(lengths, q)) for q in (0, 0.25, 0.5, 0.75, 1)},
            "cameras": sizes,
            "columns": dict(recordings.columns),
            "actions": {f: getattr(actions, f)(axis=0).tolist() for f in ("min", "max", "mean", "std") if len(actions)},
            "missing": {"training": [recordings.unfit], "evaluation": lacking},
        }


def verify(
    source: Path | str, selection: Selection = Selection(), progress: Callable[[int, int], None] | None = None
) -> dict[str, int]:
    """Read everything, as `Episodes.verify` does; a ValueError names what is missing, does not decode or does not fit."""
    with _opened(source, selection) as (_, recordings):
        if not recordings.unfit:
            with Episodes.open(recordings.path) as episodes:
                return episodes.verify(progress)
        blank, nonfinite, total = 0, 0, len(recordings.lengths)
        square = replace(selection, crop=selection.crop or "center")  # a picture that is not is sound all the same
        several = len(recordings.cameras) > 1 and not selection.camera
        for i in range(total):
            for camera in recordings.cameras if several else [_camera(recordings, selection.camera)]:
                episode = _episode(recordings, i, camera, square)
                flat = episode.pixels.reshape(len(episode), -1, 3)
                blank += int((flat == flat[:, :1]).all(axis=(1, 2)).sum())
            nonfinite += 0 if episode.states is None else int((~np.isfinite(episode.states)).any(axis=1).sum())
            if progress:
                progress(i + 1, total)
        return {"episodes": total, "steps": int(recordings.lengths.sum()), "blank_frames": blank, "nonfinite_states": nonfinite}


# -------------------------------------------------------------------------------------------------------------- opening


@contextmanager
def _opened(source: Path | str, selection: Selection, beside: Path | None = None) -> Iterator[tuple[str, Source]]:
    """The format's name and the opened recordings: fetched, unpacked into a temporary folder and recognised where need be."""
    path = fetch(source)
    with ExitStack() as stack:
        archives = [entry for entry in path.iterdir() if is_archive(entry)] if path.is_dir() else []
        if len(archives) == 1 and not _recognised(path)[0]:  # a repository of the hub that holds one
            path = archives[0]
        if is_archive(archive := path):
            parent = beside or path.parent
            parent.mkdir(parents=True, exist_ok=True)
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f".{archive.name}.", dir=parent)))
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
        raise ValueError(str(error).replace(f"{folder}{os.sep}", f"{archive}: ").replace(str(folder), str(archive))) from error


def _recognised(path: Path) -> tuple[list[str], list[str]]:
    """Names of the formats that recognise a path, and what is to be said of those that could not be asked."""
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
        registry.load("formats", wanted)  # an unknown one, or one that needs a package, is refused as such
        names = [name for name in names if name == wanted.replace("_", "-")]
    if len(names) == 1:
        return names[0]
    if not path.exists():
        cure = "Check the path, or make one with `lewm collect`"
        raise _unfit(path, "an episode file", "no such file or folder of recordings", cure)
    if names:
        raise _unfit(path, "recordings in one format", " and ".join(names), "Choose one with --format")
    inside = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    got = f"a folder of {', '.join(inside[:5]) or 'nothing'}" if path.is_dir() else "another file"
    known = f"recordings in a known format ({wanted or ', '.join(registry.names('formats'))})"
    raise _unfit(path, known, got, ". ".join(["docs/your-own-data.md shows the layouts", *missing]))


def _camera(recordings: Source, wanted: str | None) -> str:
    cameras = recordings.cameras
    if wanted is not None:
        return registry.choose(f"camera of {recordings.path}", wanted, cameras)
    if len(cameras) == 1 or STANDARD_CAMERA in cameras:
        return STANDARD_CAMERA if STANDARD_CAMERA in cameras else cameras[0]
    got, cure = ", ".join(cameras) or "none", "Choose one with --camera" if cameras else "A world model learns from pictures"
    raise _unfit(recordings.path, "one column of pictures", got, cure)


def _columns(recordings: Source, selection: Selection) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The columns of actions and of states, all of which exist."""
    states = selection.state_columns or recordings.states
    actions = selection.action_columns or tuple(name for name in recordings.actions if name not in states)
    for name in (*actions, *states):
        registry.choose(f"column of {recordings.path}", name, recordings.columns)
    if not actions:
        got = f"none among {', '.join(recordings.columns) or 'no numbers'}"
        raise _unfit(recordings.path, "a column of actions", got, "Name some with --action-columns")
    return actions, states


def _provenance(recordings: Source, selection: Selection, world: str | None, total: int) -> Provenance:
    """What the recordings say of their origin, and what is said of them now."""
    known, (_, states) = recordings.provenance, _columns(recordings, selection)
    if world and known.world not in (None, world):
        raise _unfit(recordings.path, f"recordings of world '{world}'", f"some of '{known.world}'", "Leave --world out")
    names: list[str] = []
    for column in states:
        width, given = _numbers(recordings, 0, [column]).shape[1], recordings.names(column)
        names += given if len(given) == width else [f"{column} {k}" if width > 1 else column for k in range(width)]
    units = known.state_units if not selection.state_columns and len(known.state_units) == len(names) else ()
    chosen = {name: value for name, value in asdict(selection).items() if value and name != "max_expansion"}
    return replace(
        _noted(known, chosen),
        world=world or known.world,
        state_names=tuple(names),
        state_units=units,
        lewm_version=lewm.__version__,
        requested_episodes=total,
    )


def _noted(provenance: Provenance, more: dict[str, Any]) -> Provenance:
    """With more options than it has; those of another project may be no JSON, and give way."""
    try:
        options = dict(json.loads(provenance.options or "{}"))
    except (ValueError, TypeError):
        options = {}
    return replace(provenance, options=json.dumps({**options, **more}, sort_keys=True))


# ------------------------------------------------------------------------------------------------------------- episodes


def _episode(recordings: Source, i: int, camera: str, selection: Selection) -> Episode:
    """Episode i in the shape that `recording` writes, or a ValueError that names its files."""
    length, origin = int(recordings.lengths[i]), recordings.origin(i)
    action_columns, state_columns = _columns(recordings, selection)
    actions = _numbers(recordings, i, action_columns)
    if len(actions) not in (length - 1, length):
        cure = "Every frame needs a row of actions; the last may go without"
        raise _unfit(origin, f"{length} rows of actions (or {length - 1}) for {length} frames", f"{len(actions)}", cure)
    actions = np.concatenate([actions[: length - 1], np.full((1, actions.shape[1]), np.nan, np.float32)])
    bad = np.flatnonzero(~np.isfinite(actions[:-1]).all(axis=1))
    if len(bad):
        got = f"{actions[bad[0]].tolist()} at step {bad[0]} ({len(bad)} such rows)"
        raise _unfit(origin, "finite actions but for the last row", got, "Cut or drop what is not a number")
    states = _numbers(recordings, i, state_columns) if state_columns else None
    if states is not None and len(states) != length:
        raise _unfit(origin, f"{length} rows of state, one per frame", f"{len(states)}", "Add the row of the last frame")
    frames = [_shaped(_decoded(picture, origin), selection, origin) for picture in recordings.pictures(i, camera)]
    if len(frames) != length or not frames:
        cure = "The recording is incomplete: leave the episode out, or fetch it again"
        raise _unfit(origin, f"{length} frames for its {length} rows", f"{len(frames)} that decode", cure)
    if len(sizes := {frame.shape[:2] for frame in frames}) > 1:
        raise _unfit(origin, "pictures of one size", f"{sorted(sizes)}", "Pass --image-size")
    return Episode(np.stack(frames), actions, states)


def _numbers(recordings: Source, i: int, columns: Sequence[str]) -> np.ndarray:
    """(rows, width) float32 of some columns side by side."""
    found = recordings.read(i, columns)
    try:
        arrays = [np.asarray(found[name], np.float32) for name in columns]
        return np.concatenate([array.reshape(len(array), -1) for array in arrays], axis=1)
    except (ValueError, TypeError) as error:
        expected, cure = f"equally many numbers in every row of {', '.join(columns)}", "Choose other columns, or mend these"
        raise _unfit(recordings.origin(i), expected, f"others ({error})", cure) from None


def _decoded(picture: np.ndarray | bytes, origin: str) -> np.ndarray:
    """(H, W, 3) uint8 of a frame."""
    if isinstance(picture, bytes):
        try:
            with Image.open(io.BytesIO(picture)) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise _unfit(origin, "pictures that decode", f"an error ({error})", "Fetch it again") from None
    if not isinstance(picture, np.ndarray) or picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        got = f"{picture.shape} of type {picture.dtype}" if isinstance(picture, np.ndarray) else type(picture).__name__
        raise _unfit(origin, "pictures (H, W, 3) of type uint8", got, "Store RGB, colour last, 0 to 255")
    return picture


def _shaped(picture: np.ndarray, selection: Selection, origin: str) -> np.ndarray:
    """(H, W, 3) -> (h, h, 3): made square as was asked for, then scaled with anti-aliasing."""
    height, width, _ = picture.shape
    size = selection.image_size
    if height == width and size in (None, height):
        return picture
    if height != width and selection.crop is None:
        cure = "--crop center cuts the longer side, --crop pad adds black to the shorter"
        raise _unfit(origin, "square pictures", f"{width} x {height}", cure)
    side = max(height, width) if selection.crop == "pad" else min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    square = Image.fromarray(picture).crop((left, top, left + side, top + side))  # beyond the edges it is black
    return np.asarray(square if size is None else square.resize((size, size), Image.Resampling.BILINEAR))


def _unfit(where: object, expected: str, got: str, cure: str) -> ValueError:
    return ValueError(f"{where}: expected {expected}, got {got}. {cure}.")
