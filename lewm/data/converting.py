"""Recordings as others keep them -> episode files. A format (`formats/*.py`) knows a layout; what
becomes of it is said here.

Nothing is guessed that would change what a model learns: which of several cameras, whether to cut
what is not square, and which columns are the state are asked for where a format's own conventions
do not say.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import lewm
from lewm.contracts import Progress, Report, silent
from lewm.data.episodes import Episode, Episodes
from lewm.data.provenance import Provenance
from lewm.data.sources import Selection, Source, choose_camera, choose_columns, open_source, unfit
from lewm.data.writing import EpisodeWriter

__all__ = ["convert", "describe", "verify"]


def convert(
    source: Path | str,
    out: Path | str,
    selection: Selection = Selection(),
    world: str | None = None,
    episodes: int | None = None,
    compression: str | None = None,
    report: Report = silent,
) -> Episodes:
    """Write recordings of any known format as an episode file; go on where an interrupted call with
    the same arguments ended.

    An archive is unpacked into a temporary folder beside `out`. What was taken from where is kept
    in the file's provenance.

    Args:
        source: a file, a folder or `hf:user/name`.
        out: the episode file.
        world: that was recorded; needed where evaluation is to open it and the recordings do not
            say.
        episodes: convert the first so many; None converts all.
        compression: see `EpisodeWriter`.
        report: called as episodes are converted ("convert").

    Returns:
        The opened and verified file.

    Raises:
        ValueError: recordings that cannot be converted, named with what was expected, what was
            found, and the cure.
        ImportError: a package is missing; the message names the extra to install.
    """
    out = Path(out)
    if episodes is not None and episodes < 1:
        raise ValueError(f"expected to convert at least 1 episode, got {episodes}.")
    with open_source(source, selection, out.parent) as (format, recordings):
        camera = choose_camera(recordings, selection.camera)
        total = min(len(recordings.lengths), episodes or len(recordings.lengths))
        name = str(source) if str(source).startswith("hf:") else Path(source).name
        told = {"source": name, "format": format, "camera": camera}
        provenance = _noted(_provenance(recordings, selection, world, total), told)
        with EpisodeWriter(out, provenance, compression) as writer:
            while (i := len(writer)) < total:
                writer.append(_episode(recordings, i, camera, selection))
                report(Progress("convert", i + 1, total))
    return Episodes.open(out)


def describe(source: Path | str, selection: Selection = Selection()) -> dict[str, Any]:
    """Describe recordings of any known format in JSON-ready values; "missing" says what training
    and evaluation lack."""
    with open_source(source, selection) as (format, recordings):
        stated = selection.state_columns or recordings.states
        lacking = (
            []
            if stated
            else ["states, which probes and world resets need (--state-columns when converting)"]
        )
        if recordings.provenance.world is None:
            lacking.append("the name of a world to act in (--world when converting)")
        if not recordings.unfit:
            with Episodes.open(recordings.path) as episodes:
                return {
                    **episodes.summary(),
                    "path": str(source),
                    "format": format,
                    "missing": {"evaluation": lacking},
                }
        lengths, named = recordings.lengths, selection.action_columns or recordings.actions
        columns = choose_columns(recordings, selection)[0] if named else ()
        rows = (
            [_numbers(recordings, i, columns)[: n - 1] for i, n in enumerate(lengths)]
            if columns
            else [np.empty((0, 0))]
        )
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
            "lengths": {
                f"{q:.0%}": float(np.quantile(lengths, q)) for q in (0, 0.25, 0.5, 0.75, 1)
            },
            "cameras": sizes,
            "columns": dict(recordings.columns),
            "actions": {
                f: getattr(actions, f)(axis=0).tolist()
                for f in ("min", "max", "mean", "std")
                if len(actions)
            },
            "missing": {"training": [recordings.unfit], "evaluation": lacking},
        }


def verify(
    source: Path | str,
    selection: Selection = Selection(),
    report: Report = silent,
) -> dict[str, int]:
    """Read everything, as `Episodes.verify` does; a ValueError names what is missing, does not
    decode or does not fit."""
    with open_source(source, selection) as (_, recordings):
        if not recordings.unfit:
            with Episodes.open(recordings.path) as episodes:
                return episodes.verify(report)
        blank, nonfinite, total = 0, 0, len(recordings.lengths)
        # a picture that is not is sound all the same
        square = replace(selection, crop=selection.crop or "center")
        several = len(recordings.cameras) > 1 and not selection.camera
        for i in range(total):
            for camera in (
                recordings.cameras if several else [choose_camera(recordings, selection.camera)]
            ):
                episode = _episode(recordings, i, camera, square)
                flat = episode.pixels.reshape(len(episode), -1, 3)
                blank += int((flat == flat[:, :1]).all(axis=(1, 2)).sum())
            nonfinite += (
                0
                if episode.states is None
                else int((~np.isfinite(episode.states)).any(axis=1).sum())
            )
            report(Progress("verify", i + 1, total))
        return {
            "episodes": total,
            "steps": int(recordings.lengths.sum()),
            "blank_frames": blank,
            "nonfinite_states": nonfinite,
        }


# --------------------------------------------------------------------------------------- provenance


def _provenance(
    recordings: Source, selection: Selection, world: str | None, total: int
) -> Provenance:
    """What the recordings say of their origin, and what is said of them now."""
    known, (_, states) = recordings.provenance, choose_columns(recordings, selection)
    if world and known.world not in (None, world):
        raise unfit(
            recordings.path,
            f"recordings of world '{world}'",
            f"some of '{known.world}'",
            "Leave --world out",
        )
    names: list[str] = []
    for column in states:
        width, given = _numbers(recordings, 0, [column]).shape[1], recordings.names(column)
        names += (
            given
            if len(given) == width
            else [f"{column} {k}" if width > 1 else column for k in range(width)]
        )
    units = (
        known.state_units
        if not selection.state_columns and len(known.state_units) == len(names)
        else ()
    )
    chosen = {
        name: value
        for name, value in asdict(selection).items()
        if value and name != "max_expansion"
    }
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


# ----------------------------------------------------------------------------------------- episodes


def _episode(recordings: Source, i: int, camera: str, selection: Selection) -> Episode:
    """Episode i in the shape that `writing` takes, or a ValueError that names its files."""
    length, origin = int(recordings.lengths[i]), recordings.origin(i)
    action_columns, state_columns = choose_columns(recordings, selection)
    actions = _numbers(recordings, i, action_columns)
    if len(actions) not in (length - 1, length):
        cure = "Every frame needs a row of actions; the last may go without"
        raise unfit(
            origin,
            f"{length} rows of actions (or {length - 1}) for {length} frames",
            f"{len(actions)}",
            cure,
        )
    actions = np.concatenate(
        [actions[: length - 1], np.full((1, actions.shape[1]), np.nan, np.float32)]
    )
    bad = np.flatnonzero(~np.isfinite(actions[:-1]).all(axis=1))
    if len(bad):
        got = f"{actions[bad[0]].tolist()} at step {bad[0]} ({len(bad)} such rows)"
        raise unfit(
            origin, "finite actions but for the last row", got, "Cut or drop what is not a number"
        )
    states = _numbers(recordings, i, state_columns) if state_columns else None
    if states is not None and len(states) != length:
        raise unfit(
            origin,
            f"{length} rows of state, one per frame",
            f"{len(states)}",
            "Add the row of the last frame",
        )
    frames = [
        _shaped(_decoded(picture, origin), selection, origin)
        for picture in recordings.pictures(i, camera)
    ]
    if len(frames) != length or not frames:
        cure = "The recording is incomplete: leave the episode out, or fetch it again"
        raise unfit(
            origin, f"{length} frames for its {length} rows", f"{len(frames)} that decode", cure
        )
    if len(sizes := {frame.shape[:2] for frame in frames}) > 1:
        raise unfit(origin, "pictures of one size", f"{sorted(sizes)}", "Pass --image-size")
    return Episode(np.stack(frames), actions, states)


def _numbers(recordings: Source, i: int, columns: Sequence[str]) -> np.ndarray:
    """(rows, width) float32 of some columns side by side."""
    found = recordings.read(i, columns)
    try:
        arrays = [np.asarray(found[name], np.float32) for name in columns]
        return np.concatenate([array.reshape(len(array), -1) for array in arrays], axis=1)
    except (ValueError, TypeError) as error:
        expected, cure = (
            f"equally many numbers in every row of {', '.join(columns)}",
            "Choose other columns, or mend these",
        )
        raise unfit(recordings.origin(i), expected, f"others ({error})", cure) from None


def _decoded(picture: np.ndarray | bytes, origin: str) -> np.ndarray:
    """(H, W, 3) uint8 of a frame."""
    if isinstance(picture, bytes):
        try:
            with Image.open(io.BytesIO(picture)) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise unfit(
                origin, "pictures that decode", f"an error ({error})", "Fetch it again"
            ) from None
    if (
        not isinstance(picture, np.ndarray)
        or picture.ndim != 3
        or picture.shape[2] != 3
        or picture.dtype != np.uint8
    ):
        got = (
            f"{picture.shape} of type {picture.dtype}"
            if isinstance(picture, np.ndarray)
            else type(picture).__name__
        )
        raise unfit(
            origin, "pictures (H, W, 3) of type uint8", got, "Store RGB, colour last, 0 to 255"
        )
    return picture


def _shaped(picture: np.ndarray, selection: Selection, origin: str) -> np.ndarray:
    """(H, W, 3) -> (h, h, 3): made square as was asked for, then scaled with anti-aliasing."""
    height, width, _ = picture.shape
    size = selection.image_size
    if height == width and size in (None, height):
        return picture
    if height != width and selection.crop is None:
        cure = "--crop center cuts the longer side, --crop pad adds black to the shorter"
        raise unfit(origin, "square pictures", f"{width} x {height}", cure)
    side = max(height, width) if selection.crop == "pad" else min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    # beyond the edges it is black
    square = Image.fromarray(picture).crop((left, top, left + side, top + side))
    return np.asarray(
        square if size is None else square.resize((size, size), Image.Resampling.BILINEAR)
    )
