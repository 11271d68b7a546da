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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  importing it is what lets HDF5 open compressed files
import numpy as np

from lewm.contracts import Progress, Report, silent
from lewm.data.provenance import Provenance

__all__ = ["Episode", "Episodes", "Provenance", "check_fits"]

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
        self._handle, self._pid = _open(self.path), os.getpid()
        try:
            self._verify_layout()
            self.lengths = self._file["ep_len"][:].astype(np.int64)
            self.offsets = self._file["ep_offset"][:].astype(np.int64)
            self._actions = self._file["action"][:].astype(np.float32)
            self._verify_episodes()
            self.provenance = Provenance.read(self._file.attrs)
            self.image_size, self.every = self._file["pixels"].shape[1], self.provenance.every
            self.action_dim = self._verified_action_dim()
            state = self._file.get("state")
            self.has_states = state is not None and state.ndim == 2 and len(state) == self.steps
            names, width = self.provenance.state_names, state.shape[1] if self.has_states else 0
            self.state_names = (
                names if len(names) == width else tuple(f"state {k}" for k in range(width))
            )
        except BaseException:
            self._handle.close()
            raise

    @classmethod
    def open(cls, path: Path | str) -> Episodes:
        """Open and verify a file: its layout, its index, and that every action but the last of an
        episode is a number.

        Else a ValueError says in one paragraph the file, what was expected, what was found, and the
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
        dtype = np.float32 if np.issubdtype(source.dtype, np.floating) else source.dtype
        found = np.empty((len(indices), *source.shape[1:]), dtype)
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
            except OSError as error:
                got, cure = (
                    f"an error in rows {first} to {last} ({error})",
                    "Fetch or collect it again",
                )
                raise unfit(self.path, f"'{column}' to decode", got, cure) from None
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
                filters.get_filter(k)[3].decode() for k in range(filters.get_nfilters())
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

        Rows that are missing or cannot be decoded, or an index that contradicts the episodes, raise
        ValueError.
        """
        self.verify_index()
        blank = nonfinite = 0
        for i in range(len(self)):
            episode = self.episode(i)
            flat = episode.pixels.reshape(len(episode), -1, 3)
            blank += int((flat == flat[:, :1]).all(axis=(1, 2)).sum())
            nonfinite += (
                0
                if episode.states is None
                else int((~np.isfinite(episode.states)).any(axis=1).sum())
            )
            report(Progress("verify", i + 1, len(self)))
        return {
            "episodes": len(self),
            "steps": self.steps,
            "blank_frames": blank,
            "nonfinite_states": nonfinite,
        }

    def verify_index(self) -> None:
        """Check that every row is on disk, and that `step_idx` and `ep_idx`, where present, count
        as the episodes do.

        Else ValueError. HDF5 answers rows that never reached the disk with zeros: a torn file would
        read as black frames.
        """
        cure = "The file was torn, perhaps by a killed process. Fetch or collect it again"
        for name, column in self._columns().items():
            if column.chunks:
                missing = set(range(0, len(column), column.chunks[0]))
                column.id.chunk_iter(
                    lambda chunk, missing=missing: missing.discard(chunk.chunk_offset[0])
                )
                if missing:
                    raise unfit(
                        self.path,
                        f"all rows of '{name}' on disk",
                        f"none at row {min(missing)}",
                        cure,
                    )
        counts = {"step_idx": np.arange(self.steps) - np.repeat(self.offsets, self.lengths)}
        counts["ep_idx"] = counts["episode_idx"] = np.repeat(np.arange(len(self)), self.lengths)
        for name in counts.keys() & self._file.keys():
            wrong = np.flatnonzero(self._file[name][:] != counts[name])
            if len(wrong):
                got = f"{self._file[name][wrong[0]]} in row {wrong[0]}"
                raise unfit(
                    self.path,
                    f"'{name}' to count along the episodes ({counts[name][wrong[0]]})",
                    got,
                    cure,
                )

    def _range(self, i: int) -> range:
        if not 0 <= i < len(self):
            raise ValueError(f"{self.path}: episodes are numbered 0..{len(self) - 1}, got {i}.")
        return range(int(self.offsets[i]), int(self.offsets[i] + self.lengths[i]))

    @property
    def _file(self) -> h5py.File:
        if self._pid != os.getpid():  # in a worker: no two processes may share a handle
            self._handle, self._pid = _open(self.path), os.getpid()
        return self._handle

    def _columns(self) -> dict[str, h5py.Dataset]:
        return {
            name: column for name, column in self._file.items() if isinstance(column, h5py.Dataset)
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None, "_pid": None}

    def _verify_layout(self) -> None:
        file = self._file
        if missing := [name for name in REQUIRED if not isinstance(file.get(name), h5py.Dataset)]:
            got = f"no {', '.join(missing)} among {sorted(file) or 'none'}"
            cure = (
                "If it holds episodes in another layout, rename or convert its columns; else "
                "give another file"
            )
            raise unfit(self.path, f"the columns {', '.join(REQUIRED)}", got, cure)
        shape, dtype = file["pixels"].shape, file["pixels"].dtype
        if len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3 or dtype != np.uint8:
            cure = "Store square RGB, colour last, 0 to 255"
            raise unfit(
                self.path, "pixels (N, h, h, 3) of type uint8", f"{shape} of type {dtype}", cure
            )
        if len(got := file["action"].shape) != 2 or got[0] != shape[0]:
            cure = "Each observation needs a row of actions; the last of an episode is NaN"
            raise unfit(
                self.path,
                f"'action' of shape ({shape[0]}, a), as many rows as pixels",
                str(got),
                cure,
            )

    def _verified_action_dim(self) -> int:
        width = self._file["action"].shape[1]
        if self.every < 1 or width % self.every or not width:
            expected = (
                f"actions of {self.every} env steps side by side, as its attribute 'every' says"
            )
            raise unfit(
                self.path,
                expected,
                f"rows of {width} numbers",
                "Correct the attribute, or collect the file again",
            )
        return width // self.every

    def _verify_episodes(self) -> None:
        lengths, offsets, steps = self.lengths, self.offsets, self.steps
        cure = "The index does not belong to these rows. Fetch or collect the file again"
        if (
            not lengths.size
            or lengths.ndim != 1
            or lengths.shape != offsets.shape
            or lengths.min() < 1
        ):
            got = f"shapes {lengths.shape} and {offsets.shape}, shortest {lengths.min(initial=0)}"
            raise unfit(
                self.path,
                "ep_len and ep_offset with one entry per episode, each longer than 0",
                got,
                cure,
            )
        if lengths.sum() != steps or (np.cumsum(lengths) - lengths != offsets).any():
            got = (
                f"lengths that sum to {lengths.sum()} and offsets {offsets[:3].tolist()}.. to "
                f"{offsets[-1]}"
            )
            raise unfit(self.path, f"episodes end to end over {steps} rows", got, cure)
        inner = np.delete(np.arange(steps), offsets + lengths - 1)
        self._refuse_nonfinite(
            "finite actions but for the last row of an episode", self._actions[inner], inner
        )

    def _refuse_nonfinite(self, expected: str, values: np.ndarray, rows: np.ndarray) -> None:
        bad = ~np.isfinite(values).all(axis=1)
        if bad.any():
            first = int(np.argmax(bad))
            i = int(np.searchsorted(self.offsets, rows[first], side="right")) - 1
            got = (
                f"{values[first].tolist()} at step {rows[first] - self.offsets[i]} of episode {i} "
                f"({bad.sum()} such rows)"
            )
            raise unfit(self.path, expected, got, "Cut or drop what is not a number")


def unfit(path: Path, expected: str, got: str, cure: str) -> ValueError:
    return ValueError(f"{path}: expected {expected}, got {got}. {cure}.")


def _open(path: Path) -> h5py.File:
    if not path.is_file():
        got = "a folder" if path.is_dir() else "no such file"
        raise unfit(path, "an episode file", got, "Check the path, or make one with `lewm collect`")
    if not h5py.is_hdf5(path):
        got = "an empty file" if not path.stat().st_size else "something else"
        raise unfit(
            path,
            "an HDF5 file",
            got,
            "If it is an archive (.tar.zst), unpack it; a download may have failed",
        )
    try:
        return h5py.File(path, "r")
    except BlockingIOError:
        raise unfit(
            path, "a finished file", "one that another process is writing", "Wait for it"
        ) from None
    except OSError as error:
        cure = "It was cut short while being copied or written. Fetch or collect it again"
        raise unfit(path, "a whole HDF5 file", f"one that does not open ({error})", cure) from None


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
