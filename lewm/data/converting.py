"""Recordings as others keep them -> episode files. A format (`formats/*.py`) knows a layout; what
becomes of it is said here.

Nothing is guessed that would change what a model learns: which of several cameras, whether to cut
what is not square, and which columns are the state are asked for where a format's own conventions
do not say.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import lewm
from lewm.contracts import Progress, Report, silent
from lewm.data import pictures
from lewm.data.episodes import Episode, Episodes, refuse_one_colour, single_colours
from lewm.data.provenance import Provenance
from lewm.data.sources import (
    FEW,
    Selection,
    Source,
    Telling,
    choose_camera,
    choose_columns,
    chosen_episodes,
    is_time,
    open_source,
    seems_a_choice,
    unfit,
)
from lewm.data.writing import EpisodeWriter

__all__ = ["convert", "describe", "verify"]

UNEVEN = 0.5
"""Share of the usual step between two rows' times by which another is longer or shorter: a frame
was dropped."""


def convert(
    source: Path | str,
    out: Path | str,
    selection: Selection = Selection(),
    world: str | None = None,
    episodes: int | str | None = None,
    compression: str | None = None,
    report: Report = silent,
    skip_episodes: str = "",
) -> Episodes:
    """Write recordings of any known format as an episode file; go on where an interrupted call with
    the same arguments ended.

    An archive is unpacked into a temporary folder beside `out`. What was taken from where, as
    action and as state, is kept in the file's provenance. Dropped frames, and what was left out,
    are warned of.

    Args:
        source: a file, a folder or `hf:user/name`.
        out: the episode file.
        world: that was recorded; needed where evaluation is to open it and the recordings do not
            say.
        episodes: convert the first so many; or ranges of their numbers, such as "0-9,12"; None
            converts all.
        compression: see `EpisodeWriter`.
        report: called as episodes are converted ("convert").
        skip_episodes: ranges of those to leave out.

    Returns:
        The opened and verified file.

    Raises:
        ValueError: recordings that cannot be converted, named with what was expected, what was
            found, and the cure.
        ImportError: a package is missing; the message names the extra to install.
    """
    out = Path(out)
    with open_source(source, selection, out.parent) as (format, recordings):
        chosen = chosen_episodes(recordings, episodes, skip_episodes)
        camera = choose_camera(recordings, selection.camera)
        name = str(source) if str(source).startswith("hf:") else Path(source).name
        told = {"source": name, "format": format, "camera": camera}
        if len(chosen) < len(recordings.lengths):
            told["episodes"] = _compact(chosen)
        if isinstance(recordings, Telling):
            told |= recordings.told(camera)
        columns, _ = choose_columns(recordings, selection)
        choices = _choices(recordings, chosen, columns, selection)
        provenance = _provenance(recordings, selection, world, chosen, choices)
        if not out.exists():  # what is there was begun after this was asked
            _refuse_one_colour(recordings, chosen, camera, selection, choices)
        with EpisodeWriter(out, _noted(provenance, told), compression) as writer:
            while (done := len(writer)) < len(chosen):
                episode = _episode(recordings, chosen[done], camera, selection, choices)
                try:
                    writer.append(episode)
                except ValueError as error:
                    raise _other(recordings, chosen[done], str(error)) from None
                report(Progress("convert", done + 1, len(chosen)))
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
            [_numbers(recordings, i, columns)[: max(0, n - 1)] for i, n in enumerate(lengths)]
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
        nonfinite, total = 0, len(recordings.lengths)
        # a picture that is not is sound all the same
        square = replace(selection, crop=selection.crop or "center")
        several = len(recordings.cameras) > 1 and not selection.camera
        cameras = recordings.cameras if several else [choose_camera(recordings, selection.camera)]
        shapes: dict[str, tuple[Any, ...]] = {}
        colours: dict[str, Counter[bytes | None]] = {camera: Counter() for camera in cameras}
        for i in range(total):
            for camera in cameras:
                episode = _episode(recordings, i, camera, square)
                width = None if episode.states is None else episode.states.shape[1]
                shape = (episode.pixels.shape[1:], episode.actions.shape[1], width)
                if shapes.setdefault(camera, shape) != shape:
                    raise _other(recordings, i, f"{shape} and not {shapes[camera]}")
                colours[camera].update(single_colours(episode.pixels))
                nonfinite += (
                    0
                    if episode.states is None
                    else int((~np.isfinite(episode.states)).any(axis=1).sum())
                )
            report(Progress("verify", i + 1, total))
        for camera, seen in colours.items():
            refuse_one_colour(recordings.path, seen, camera)
        return {
            "episodes": total,
            "steps": int(recordings.lengths.sum()),
            "blank_frames": sum(seen.total() - seen[None] for seen in colours.values()),
            "nonfinite_states": nonfinite,
        }


def _refuse_one_colour(
    recordings: Source,
    chosen: Sequence[int],
    camera: str,
    selection: Selection,
    choices: Mapping[str, int],
) -> None:
    """Refuse what `verify` would call unsound, before anything is written. The first episode that
    shows something ends the search, so of most recordings one is read."""
    seen: Counter[bytes | None] = Counter()
    for i in chosen:
        seen.update(single_colours(_episode(recordings, i, camera, selection, choices).pixels))
        if len(seen) > 1 or None in seen:
            return
    refuse_one_colour(recordings.path, seen, camera)


def _other(recordings: Source, i: int, what: str) -> ValueError:
    return unfit(
        recordings.origin(i),
        "episodes that are all alike",
        f"another one ({what})",
        f"--image-size scales pictures to one size; to convert the others: --skip-episodes {i}",
    )


# --------------------------------------------------------------------------------------- provenance


def _provenance(
    recordings: Source,
    selection: Selection,
    world: str | None,
    chosen: Sequence[int],
    choices: Mapping[str, int],
) -> Provenance:
    """What the recordings say of their origin, and what is said of them now."""
    known, (actions, states) = recordings.provenance, choose_columns(recordings, selection)
    if known.every < 1:
        raise unfit(
            recordings.path,
            "an attribute 'every' that counts the env steps of a row",
            "another value",
            "Correct it, or remove it where a row is one step",
        )
    if world and known.world not in (None, world):
        raise unfit(
            recordings.path,
            f"recordings of world '{world}'",
            f"some of '{known.world}'",
            "Leave --world out",
        )
    names = _names(recordings, chosen[0], states)
    units = (
        known.state_units
        if not selection.state_columns and len(known.state_units) == len(names)
        else ()
    )
    options = {
        name: value
        for name, value in asdict(selection).items()
        if value not in (None, ()) and name != "max_expansion"
    }
    options["taken"] = {
        "action": _names(recordings, chosen[0], actions, choices),
        "state": names,
    }
    if uneven := _uneven(recordings, chosen):
        options["uneven"] = uneven
    return replace(
        _noted(known, options),
        world=world or known.world,
        state_names=tuple(names),
        state_units=units,
        lewm_version=lewm.__version__,
        requested_episodes=len(chosen),
    )


def _names(
    recordings: Source, i: int, columns: Sequence[str], choices: Mapping[str, int] | None = None
) -> list[str]:
    """One per number in a row of some columns; a choice has one per alternative."""
    names: list[str] = []
    for column in columns:
        width, given = _numbers(recordings, i, [column]).shape[1], recordings.names(column)
        own = (
            list(given)
            if len(given) == width
            else [f"{column} {k}" if width > 1 else column for k in range(width)]
        )
        if choices and column in choices:
            own = [f"{name} = {k}" for name in own for k in range(choices[column])]
        names += own
    return names


def _compact(numbers: Sequence[int]) -> str:
    """0, 1, 2, 5 -> "0-2,5"."""
    spans = np.split(np.array(numbers), np.flatnonzero(np.diff(numbers) > 1) + 1)
    return ",".join(f"{s[0]}-{s[-1]}" if len(s) > 1 else f"{s[0]}" for s in spans)


def _uneven(recordings: Source, chosen: Sequence[int]) -> str:
    """Say in a sentence where the times of rows are not evenly spaced, and warn of it; empty if
    nowhere."""
    said = []
    for column in filter(is_time, recordings.columns):
        odd: list[str] = []
        for i in chosen:
            # what is no number is a date, or said so when it is asked for
            with contextlib.suppress(ValueError):
                steps = np.diff(_numbers(recordings, i, [column])[:, 0])
                usual = float(np.median(steps)) if len(steps) else 0.0
                wrong = np.flatnonzero(~(np.abs(steps - usual) <= UNEVEN * abs(usual)))
                odd += [f"{steps[k]:.6g} at step {k} of episode {i}" for k in wrong]
                if len(odd) == len(wrong) > 0:
                    odd[0] += f", where most are {usual:.6g}"
        if odd:
            said.append(f"'{column}' has {len(odd)} uneven steps, the first {odd[0]}")
    if said:
        warnings.warn(
            f"{recordings.path}: {'; '.join(said)}. Frames may have been dropped; --skip-episodes "
            "leaves episodes out",
            stacklevel=4,
        )
    return "; ".join(said)


def _noted(provenance: Provenance, more: dict[str, Any]) -> Provenance:
    """With more options than it has; those of another project may be no JSON, and give way."""
    try:
        options = dict(json.loads(provenance.options or "{}"))
    except (ValueError, TypeError, RecursionError):
        options = {}
    return replace(provenance, options=json.dumps({**options, **more}, sort_keys=True))


# ----------------------------------------------------------------------------------------- episodes


def _episode(
    recordings: Source,
    i: int,
    camera: str,
    selection: Selection,
    choices: Mapping[str, int] | None = None,
) -> Episode:
    """Episode i in the shape that `writing` takes, or a ValueError that names its files and a way
    out."""
    with _way_out(i):
        return _read(recordings, i, camera, selection, choices or {})


@contextlib.contextmanager
def _way_out(i: int) -> Iterator[None]:
    """Let what is wrong with episode i say how to convert the others, unless it names a flag that
    mends it."""
    try:
        yield
    except ValueError as error:
        if re.search("--(skip|image|crop|discrete)", str(error)):
            raise
        raise ValueError(f"{error} To convert the others: --skip-episodes {i}.") from None


def _read(
    recordings: Source, i: int, camera: str, selection: Selection, choices: Mapping[str, int]
) -> Episode:
    length, origin = int(recordings.lengths[i]), recordings.origin(i)
    action_columns, state_columns = choose_columns(recordings, selection)
    actions = _actions(recordings, i, action_columns, choices)
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
    frames: list[np.ndarray] = []
    for picture in recordings.pictures(i, camera):
        if len(frames) == length:
            raise unfit(
                origin,
                f"{length} frames for its {length} rows",
                "more that decode",
                "Rows are missing, or the recording went on after them",
            )
        frames.append(_shaped(_decoded(picture, origin), selection, origin))
    if len(frames) != length or not frames:
        cure = "The recording is incomplete: fetch it again"
        raise unfit(
            origin, f"{length} frames for its {length} rows", f"{len(frames)} that decode", cure
        )
    if len(sizes := {frame.shape[:2] for frame in frames}) > 1:
        got = " and ".join(f"{width} x {height}" for height, width in sorted(sizes)[:3])
        raise unfit(origin, "pictures of one size", got, "--image-size scales them to one")
    return Episode(np.stack(frames), actions, None if states is None else states.astype(np.float32))


def _numbers(recordings: Source, i: int, columns: Sequence[str]) -> np.ndarray:
    """(rows, width) float64 of some columns side by side."""
    with _way_out(i):
        found = recordings.read(i, columns)
    return _side_by_side(recordings, i, found)


def _side_by_side(recordings: Source, i: int, found: Mapping[str, Sequence[Any]]) -> np.ndarray:
    """(rows, width) float64 of columns of episode i that were read."""
    try:
        arrays = [_plain(rows) for rows in found.values()]
        return np.concatenate([array.reshape(len(array), -1) for array in arrays], axis=1)
    except (ValueError, TypeError, OverflowError) as error:
        expected, cure = (
            f"equally many numbers in every row of {', '.join(found)}",
            "Choose others with --action-columns and --state-columns, or mend these",
        )
        raise unfit(recordings.origin(i), expected, f"others ({error})", cure) from None


def _plain(rows: Any) -> np.ndarray:
    """float64 of what are numbers; nothing that is not is cast, but None is NaN."""
    array = np.asarray(rows)
    if array.dtype.kind == "O" and all(
        value is None or isinstance(value, int | float) for value in array.ravel()
    ):
        return array.astype(np.float64)
    if array.dtype.kind not in "iufb":
        raise ValueError(f"values of type {array.dtype}")
    return array.astype(np.float64)


# ------------------------------------------------------------------------------- actions as choices


def _actions(
    recordings: Source, i: int, columns: Sequence[str], choices: Mapping[str, int]
) -> np.ndarray:
    """(rows, a) float32; a column that is a choice becomes one per alternative."""
    parts = []
    for column in columns:
        rows = _numbers(recordings, i, [column])
        if column in choices:
            alternatives = np.arange(choices[column])
            known = np.isfinite(rows)  # the last row may be a mark
            wrong = (known & ~np.isin(rows, alternatives)).any(axis=1)
            if wrong.any():
                t = int(np.argmax(wrong))
                raise unfit(
                    recordings.origin(i),
                    f"choices from 0 to {alternatives[-1]} in '{column}'",
                    f"{rows[t].tolist()} at step {t}",
                    "Give how many there are with --discrete-actions",
                )
            made = np.where(known[..., None], rows[..., None] == alternatives, np.nan)
            rows = made.reshape(len(rows), -1)
        parts.append(rows)
    with np.errstate(over="ignore"):  # infinity is refused with its step
        return np.concatenate(parts, axis=1).astype(np.float32)


def _choices(
    recordings: Source, chosen: Sequence[int], columns: Sequence[str], selection: Selection
) -> dict[str, int]:
    """Columns that are choices -> how many alternatives each has.

    Such a column seems to be one, see `seems_a_choice`; or it was said that there are N, and it
    holds different whole numbers below N. Rows that are one-hot already are none.

    Raises:
        ValueError: there is one, and it was not said what to make of it; or it was, and there is
            none.
    """
    found: dict[str, int] = {}
    count = selection.discrete_actions
    for column in columns if count != 0 else ():
        typed, alone = bool(re.match(r"u?int|bool", recordings.columns[column])), True
        values: set[float] = set()
        one_hot = True
        for i in chosen:
            with _way_out(i):
                found_rows = recordings.read(i, [column])
            typed |= np.asarray(found_rows[column]).dtype.kind in "iub"
            rows = _side_by_side(recordings, i, found_rows)
            rows, alone = rows[np.isfinite(rows).all(axis=1)], alone and rows.shape[1] == 1
            values |= {*np.unique(rows).tolist()}
            one_hot &= not alone and values <= {0.0, 1.0} and bool((rows.sum(axis=1) == 1).all())
            if len(values) > max(FEW, count or 0) or any(v < 0 or v % 1 for v in values):
                break
        whole = len(values) > 1 and not any(v < 0 or v % 1 for v in values)
        said = count is not None and whole and (typed or alone) and max(values) < count
        if one_hot or not (said or seems_a_choice(column, values, typed, alone)):
            continue
        if count is None:
            shown = ", ".join(f"{value:g}" for value in sorted(values)[:5])
            shown, most = shown + ", ..." * (len(values) > 5), int(max(values))
            raise unfit(
                recordings.path,
                "actions that are amounts",
                f"whole numbers in '{column}' ({shown}), which seem to be choices",
                f"--discrete-actions {most + 1} makes a column of each choice, "
                "--discrete-actions 0 takes them as amounts, --action-columns names others",
            )
        found[column] = count
    if count and not found:
        raise unfit(
            recordings.path,
            f"an action that is one of {count} choices, numbered from 0",
            f"none in {', '.join(columns)}",
            "Leave --discrete-actions out, or name the column with --action-columns",
        )
    return found


# ----------------------------------------------------------------------------------------- pictures


def _decoded(picture: np.ndarray | bytes, origin: str) -> np.ndarray:
    """(H, W, 3) uint8 of a frame."""
    if isinstance(picture, bytes):
        try:
            return pictures.rgb(picture)
        except ValueError as error:
            raise unfit(
                origin, "pictures that decode", str(error), "Fetch or write them again"
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
