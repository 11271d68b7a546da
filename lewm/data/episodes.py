"""Episode files: open them only when they are sound, read single rows, split and summarise them.

The layout is the published one, so that those files train here unchanged and ours open elsewhere.
Root-level HDF5 data sets hold one row per observation, episodes end to end:

    pixels (N,h,w,3) uint8, one frame per chunk     action (N,a) float32     state (N,S) float32,
    where it is known
    step_idx (N,) int64     ep_idx (N,) int64       ep_len (E,) int32        ep_offset (E,) int64

Row t of `action` is the action taken *from* observation t, so an episode of L observations has L-1
actions and its last row is NaN. That row marks the end and is never an input to anything. `writing`
writes these files.

A file may hold one row per block of `every` env steps (an attribute of its root; 1 where it does
not say). Row t then shows the world after t * every steps, and its action row, (every*a,), is the
`every` env actions taken from there on, side by side. To a reader that knows nothing of `every`
such a file is a sound one of a world with wider actions; `step_idx` counts rows.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lewm.contracts import Progress, Report, silent
from lewm.data.provenance import Provenance
from lewm.data.soundness import (
    FETCH,
    OtherLayout,
    open_hdf5,
    prove_chunks,
    prove_written,
    read_rows,
    reading,
    unfit,
)

__all__ = [
    "Episode",
    "Episodes",
    "Provenance",
    "check_fits",
    "read_index",
    "refuse_one_colour",
    "single_colours",
    "unfit",
]

EPISODE_COLUMNS = ("ep_len", "ep_offset")
"""One row per episode; every other column has one row per observation."""

REQUIRED = ("pixels", "action", *EPISODE_COLUMNS)

LONG_RUN = 16
"""Neighbouring rows from which on it pays to decode them straight into their place."""


@dataclass(frozen=True)
class Episode:
    """One episode of L observations.

    Attributes:
        pixels: (L, h, h, 3) uint8.
        actions: (L, every*a) float32 in the env's units; row t is taken from observation t on, the
            last row is NaN.
        states: (L, S) float32 ground truth, or None where it is unknown.
    """

    pixels: np.ndarray
    actions: np.ndarray
    states: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.pixels)


class Episodes:
    """An episode file that was opened and found sound. Worker processes may be given it: each opens
    the file for itself.

    Attributes:
        lengths, offsets: (E,) int64 observations of each episode, and the row of its first.
        image_size: height and width of the pixels.
        every: env steps from one row to the next; `lengths` and `offsets` count rows.
        action_dim: a, width of one env action; the rows of `action` are `every` times as wide.
        has_states: whether the file knows the ground truth.
        state_names: one per state variable; numbered where the file does not name them.
        provenance: what the file says of its origin.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._handle, self._pid = open_hdf5(self.path), os.getpid()
        self._proven: dict[str, set[int]] = {}  # column -> its chunks that were seen to be sound
        try:
            with reading(self.path):
                self._prove()
        except BaseException:
            self._handle.close()
            raise

    @classmethod
    def open(cls, path: Path | str) -> Episodes:
        """Open a file and prove that it is a sound one of episodes, whoever asks. No picture is
        read.

        - What `soundness.open_hdf5` proves of any HDF5 file: nothing lies outside it, nothing
          declares more than is there, no row is missing.
        - Its columns have the layout's names, shapes and kinds: pixels are uint8, actions and
          states numbers, indexes integers. Whole numbers as actions are refused unless the
          column's attribute `discrete` is False: they may number choices.
        - Episodes lie end to end over all rows, none is empty, and `step_idx`, `ep_idx` and
          `episode_idx`, where present, say the same.
        - The last row of `action` of an episode is NaN, and no other holds one or an infinity.
        - A row of actions is a whole number of env actions.

        Left to `verify`, which reads everything: that pictures decode and differ from each other,
        and that states are finite. A picture that was never written, or does not decode, is
        refused by whoever reads it.

        Raises:
            ValueError: says in one paragraph the file, what was expected, what was found, and the
                cure.
        """
        return cls(path)

    def close(self) -> None:
        if self._pid == os.getpid():
            self._handle.close()

    def __enter__(self) -> Episodes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """E, the number of episodes."""
        return len(self.lengths)

    @property
    def steps(self) -> int:
        """N, the number of rows: observations of all episodes."""
        return len(self._actions)

    @property
    def complete(self) -> bool:
        """Whether the file holds all episodes that were requested of it (True where it does not
        say)."""
        return self.provenance.requested_episodes in (None, len(self))

    def rows(self, column: str, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Read single rows of one column: (n,) row numbers in any order, with repeats -> (n, ...)
        in that order.

        One by one, which beats a window's whole range when only every fifth row is wanted;
        neighbours share one read.
        """
        indices = np.asarray(indices, np.int64)
        order = np.argsort(indices, kind="stable")
        ascending = indices[order]
        if len(indices) and not 0 <= ascending[0] <= ascending[-1] < self.steps:
            raise ValueError(
                f"{self.path}: rows must lie in 0..{self.steps - 1}, got "
                f"{ascending[0]}..{ascending[-1]}."
            )
        source = self._file[column]
        dtype = np.uint8 if column == "pixels" else np.float32
        found = np.empty((len(indices), *source.shape[1:]), dtype)
        prove_chunks(self.path, source, ascending, self._proven.setdefault(column, set()))
        starts = np.flatnonzero(np.diff(ascending, prepend=-2) > 1)
        for start, stop in zip(starts, [*starts[1:], len(indices)]):
            first, last = int(ascending[start]), int(ascending[stop - 1])
            wanted = order[start:stop]
            try:
                # A long run that is wanted as it lies is decoded into its place; any other takes a
                # copy.
                if stop - start == last + 1 - first >= LONG_RUN and (np.diff(wanted) == 1).all():
                    source.read_direct(
                        found, np.s_[first : last + 1], np.s_[int(wanted[0]) : int(wanted[-1]) + 1]
                    )
                else:
                    found[wanted] = source[first : last + 1][ascending[start:stop] - first]
            except (OSError, RuntimeError, MemoryError) as error:
                got = f"an error in rows {first} to {last} ({error})"
                raise unfit(self.path, f"'{column}' to decode", got, FETCH) from None
        prove_written(self.path, source, indices, found)
        return found

    def pixels_at(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n,) row numbers -> (n, h, h, 3) uint8."""
        return self.rows("pixels", rows)

    def episode(self, i: int) -> Episode:
        """Read episode i whole."""
        rows = self._range(i)
        return Episode(
            self.pixels_at(rows),
            self.actions(i),
            self.rows("state", rows) if self.has_states else None,
        )

    def actions(self, i: int) -> np.ndarray:
        """(L, every*a) float32 env actions of episode i, one block per row; the last row is not an
        action."""
        rows = self._range(i)
        return self._actions[rows.start : rows.stop].copy()

    def states(self, i: int) -> np.ndarray:
        """(L, S) float32 ground truth of episode i, refused if there is a row that is not
        finite."""
        if not self.has_states:
            raise unfit(
                self.path,
                "a column 'state'",
                "none",
                "Probes and world resets need a file that has the ground truth",
            )
        states = self.rows("state", self._range(i))
        self._refuse_nonfinite("finite states", states, np.asarray(self._range(i)))
        return states

    def summary(self) -> dict[str, Any]:
        """Describe the file in JSON-ready values, without reading its pixels."""
        filters = self._file["pixels"].id.get_create_plist()
        actions = (
            self._actions[np.isfinite(self._actions).all(axis=1)]
            .astype(np.float64)
            .reshape(-1, self.action_dim)
        )
        return {
            "path": str(self.path),
            "bytes": self.path.stat().st_size,
            "episodes": len(self),
            "complete": self.complete,
            "steps": self.steps,
            "every": self.every,
            "lengths": {
                f"{q:.0%}": float(np.quantile(self.lengths, q)) for q in (0, 0.25, 0.5, 0.75, 1)
            },
            "image_size": self.image_size,
            "compression": [
                filters.get_filter(k)[3].decode(errors="replace")
                for k in range(filters.get_nfilters())
            ]
            or None,
            "columns": {
                name: [str(column.dtype), *column.shape] for name, column in self._columns().items()
            },
            "actions": {
                f: getattr(actions, f)(axis=0).tolist()
                for f in ("min", "max", "mean", "std")
                if len(actions)
            },
            "state_names": list(self.state_names),
            "provenance": {
                name: value
                for name, value in asdict(self.provenance).items()
                if value not in (None, ())
            },
        }

    def verify(self, report: Report = silent) -> dict[str, int]:
        """Read everything, reporting each episode ("verify"); count frames of one colour
        and states with a NaN.

        Rows that are missing or cannot be decoded, or pictures that are all of one and the same
        colour, raise ValueError.
        """
        nonfinite, colours = 0, Counter[bytes | None]()
        for i in range(len(self)):
            episode = self.episode(i)
            colours.update(single_colours(episode.pixels))
            nonfinite += (
                0
                if episode.states is None
                else int((~np.isfinite(episode.states)).any(axis=1).sum())
            )
            report(Progress("verify", i + 1, len(self)))
        refuse_one_colour(self.path, colours)
        return {
            "episodes": len(self),
            "steps": self.steps,
            "blank_frames": colours.total() - colours[None],
            "nonfinite_states": nonfinite,
        }

    def _range(self, i: int) -> range:
        if not 0 <= i < len(self):
            raise ValueError(f"{self.path}: episodes are numbered 0..{len(self) - 1}, got {i}.")
        return range(int(self.offsets[i]), int(self.offsets[i] + self.lengths[i]))

    @property
    def _file(self) -> h5py.File:
        if self._pid != os.getpid():  # in a worker: no two processes may share a handle
            self._handle, self._pid, self._proven = open_hdf5(self.path), os.getpid(), {}
        return self._handle

    def _columns(self) -> dict[str, h5py.Dataset]:
        return {
            name: column for name, column in self._file.items() if isinstance(column, h5py.Dataset)
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None, "_pid": None, "_proven": {}}

    def _prove(self) -> None:
        """What `open` promises."""
        file = self._file
        if missing := [name for name in REQUIRED if not isinstance(file.get(name), h5py.Dataset)]:
            got = f"no {', '.join(missing)} among {sorted(file) or 'none'}"
            cure = (
                "If it holds episodes in another layout, rename or convert its columns; else "
                "give another file"
            )
            raise unfit(self.path, f"the columns {', '.join(REQUIRED)}", got, cure, OtherLayout)
        pixels = file["pixels"]
        shape, rows = pixels.shape, len(pixels) if pixels.shape else 0
        square = len(shape) == 4 and shape[1] == shape[2] >= 1 and shape[3] == 3
        if not square or pixels.dtype != np.uint8:
            expected, cure = "pixels (N, h, h, 3) of type uint8", "Store square RGB, 0 to 255"
            raise unfit(self.path, expected, f"{shape} of type {pixels.dtype}", cure, OtherLayout)
        self._prove_numbers("action", rows)
        self.has_states = "state" in file
        if self.has_states:
            self._prove_numbers("state", rows)
        self.lengths, self.offsets = read_index(self.path, file, rows)
        self.provenance = Provenance.read(file.attrs)
        self.image_size, self.every = shape[1], self.provenance.every
        self.action_dim = self._proven_action_dim()
        self._actions = self._proven_actions()
        names, width = self.provenance.state_names, file["state"].shape[1] if self.has_states else 0
        self.state_names = (
            names if len(names) == width else tuple(f"state {k}" for k in range(width))
        )

    def _prove_numbers(self, name: str, rows: int) -> None:
        column = self._file[name]
        if not isinstance(column, h5py.Dataset) or column.dtype.kind not in "fiub":
            got = f"type {column.dtype}" if isinstance(column, h5py.Dataset) else "a group"
            cure = "Store them as float32"
            raise unfit(self.path, f"'{name}' of numbers", got, cure, OtherLayout)
        if len(column.shape) != 2 or column.shape[0] != rows:
            expected = f"'{name}' of shape ({rows}, width), as many rows as pixels"
            cure = "Each observation needs a row; the last of an episode's actions is NaN"
            raise unfit(self.path, expected, str(column.shape), cure, OtherLayout)

    def _proven_action_dim(self) -> int:
        width = self._file["action"].shape[1]
        if self.every < 1 or width % self.every or not width:
            expected = (
                f"actions of {self.every} env steps side by side, as its attribute 'every' says"
            )
            cure = "Correct the attribute, or collect the file again"
            raise unfit(self.path, expected, f"rows of {width} numbers", cure)
        return width // self.every

    def _proven_actions(self) -> np.ndarray:
        column, last = self._file["action"], self.offsets + self.lengths - 1
        if column.dtype.kind != "f":
            said = column.attrs.get("discrete")
            if not isinstance(said, bool | np.bool_ | np.integer) or said:
                cure = (
                    "If they number choices, `lewm data convert` says what to do; if they are "
                    "quantities, set the column's attribute 'discrete' to False"
                )
                expected, got = "'action' of floating-point numbers", f"type {column.dtype}"
                raise unfit(self.path, expected, got, cure, OtherLayout)
        values = read_rows(self.path, column)
        with np.errstate(over="ignore"):  # becomes infinite, and is refused as such
            actions = values.astype(np.float32)
        if column.dtype.kind != "f" and (actions != values).any():
            cure = "Store them as float32, in a smaller unit"
            raise unfit(self.path, "actions that float32 holds", f"{np.abs(values).max()}", cure)
        inner = np.delete(np.arange(len(actions)), last)
        expected = "finite actions but for the last row of an episode"
        self._refuse_nonfinite(expected, actions[inner], inner)
        marked = np.isnan(actions[last]).all(axis=1)
        if column.dtype.kind == "f" and not marked.all():
            i = int(np.argmin(marked))
            got = f"{actions[last[i]].tolist()} in episode {i} ({(~marked).sum()} such episodes)"
            cure = "Nothing is done after its last picture: mark that row, or convert the file"
            expected = "a last row of 'action' that is NaN in every episode"
            raise unfit(self.path, expected, got, cure, OtherLayout)
        actions[last] = np.nan  # whole numbers cannot say so
        return actions

    def _refuse_nonfinite(self, expected: str, values: np.ndarray, rows: np.ndarray) -> None:
        bad = ~np.isfinite(values).all(axis=1)
        if bad.any():
            first = int(np.argmax(bad))
            i = int(np.searchsorted(self.offsets, rows[first], side="right")) - 1
            got = (
                f"{values[first].tolist()} at step {rows[first] - self.offsets[i]} of episode {i} "
                f"({bad.sum()} such rows)"
            )
            cure = "Cut or drop what is not a number"
            raise unfit(self.path, expected, got, cure, OtherLayout)


INDEX = ("step_idx", "ep_idx", "episode_idx")
"""Row by row what `ep_len` and `ep_offset` say; a file need not have them."""

WRONG_INDEX = "The index does not belong to these rows. Fetch or collect the file again"


def read_index(
    path: Path, file: h5py.File, rows: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(E,) lengths and offsets of the episodes, which lie end to end over all rows, as the other
    indexes of the file confirm. How many rows, `ep_len` says unless it is given.

    Else a ValueError that names the column.
    """
    lengths, offsets = (_whole_numbers(path, file, name) for name in EPISODE_COLUMNS)
    if not lengths.size or lengths.shape != offsets.shape or lengths.min() < 1:
        expected = "ep_len and ep_offset with one entry per episode, each longer than 0"
        got = f"shapes {lengths.shape} and {offsets.shape}, shortest {lengths.min(initial=0)}"
        raise unfit(path, expected, got, WRONG_INDEX)
    # a sum in Python's integers does not overflow
    total = sum(lengths.tolist())
    rows = total if rows is None else rows
    if total != rows or (np.cumsum(lengths) - lengths != offsets).any():
        got = f"lengths that sum to {total} and offsets {offsets[:3].tolist()}.. to {offsets[-1]}"
        raise unfit(path, f"episodes end to end over {rows} rows", got, WRONG_INDEX)
    for name in INDEX:
        if name not in file:
            continue
        if len(values := _whole_numbers(path, file, name)) != rows:
            expected = f"{rows} rows in every column"
            raise unfit(path, expected, f"{len(values)} in '{name}'", WRONG_INDEX)
        if name == "step_idx":
            expected, right = (
                "count along the episodes",
                np.arange(rows) - np.repeat(offsets, lengths),
            )
        else:  # a file that holds a choice of episodes may keep their numbers
            expected, numbers = "number the episodes", values[offsets]
            right = np.repeat(numbers, lengths)
            if len(np.unique(numbers)) < len(numbers):
                raise unfit(path, f"'{name}' to {expected}", "a number twice", WRONG_INDEX)
        if len(wrong := np.flatnonzero(values != right)):
            got = f"{values[wrong[0]]} in row {wrong[0]}"
            raise unfit(path, f"'{name}' to {expected} ({right[wrong[0]]})", got, WRONG_INDEX)
    return lengths, offsets


def _whole_numbers(path: Path, file: h5py.File, name: str) -> np.ndarray:
    """(n,) int64 of a column of indexes."""
    column = file.get(name)
    kind = f"type {column.dtype}" if isinstance(column, h5py.Dataset) else "no column"
    if not isinstance(column, h5py.Dataset) or column.dtype.kind not in "iu" or column.ndim != 1:
        shape = f" and shape {column.shape}" if isinstance(column, h5py.Dataset) else ""
        raise unfit(path, f"'{name}' of whole numbers", kind + shape, WRONG_INDEX)
    values = read_rows(path, column)
    if len(values) and not 0 <= int(values.min()) <= int(values.max()) < 1 << 62:
        got = f"{values.min()} to {values.max()}"
        raise unfit(path, f"'{name}' to count rows or episodes", got, WRONG_INDEX)
    return values.astype(np.int64)


def single_colours(pixels: np.ndarray) -> list[bytes | None]:
    """(L, h, w, 3) -> the colour of each frame that has but one, None for any other."""
    flat = pixels.reshape(len(pixels), -1, 3)
    blank = (flat == flat[:, :1]).all(axis=(1, 2))
    return [frame[0].tobytes() if single else None for frame, single in zip(flat, blank)]


def refuse_one_colour(
    path: Path, colours: Collection[bytes | None], camera: str = "pixels"
) -> None:
    """Refuse recordings of which no frame shows anything, as `single_colours` says of all."""
    if len(colours) == 1 and None not in colours:
        got = "one and the same colour in every pixel of every frame"
        cure = "Record again: the camera or the drawing did not work"
        raise unfit(path, f"pictures of something in '{camera}'", got, cure)


def check_fits(
    episodes: Episodes, image_size: int | None = None, action_dim: int | None = None
) -> None:
    """Refuse, before any work, a file whose pictures or actions are not those that a run needs;
    None is no need."""
    got = episodes.image_size
    if image_size not in (None, got):
        cure = f"Collect data at {image_size} px, or use a run that was trained at {got} px"
        raise unfit(
            episodes.path, f"pictures of {image_size} x {image_size} px", f"{got} x {got}", cure
        )
    if action_dim not in (None, episodes.action_dim):
        cure = "Use the data of the world that the run was trained on"
        raise unfit(
            episodes.path, f"actions of {action_dim} numbers", f"{episodes.action_dim}", cure
        )
