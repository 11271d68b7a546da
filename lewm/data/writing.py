"""Write episode files such that none can half-exist: whole episodes, appended one by one, whatever
interrupts them.

The layout is described in `episodes`, which reads it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from errno import ENOSPC
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np

from lewm.data.episodes import EPISODE_COLUMNS, Episode, Episodes, Provenance
from lewm.data.soundness import open_hdf5
from lewm.files import hold, require_own, sync
from lewm.registry import choose

__all__ = ["EpisodeWriter"]

COMPRESSIONS = {"blosc": hdf5plugin.Blosc(cname="lz4"), "zstd": hdf5plugin.Zstd(clevel=3)}

INDEX_BYTES_PER_FRAME = 256
"""HDF5's index entry of one pixel chunk. Ours: 66 to 88 measured."""

CHUNK_BYTES = 1 << 14
"""Of the narrow columns, so that many of their rows share one read and one index entry."""

CLOSING_BYTES = 1 << 20
"""What HDF5 may write beyond an episode's rows: headers, new index nodes, begun chunks. Ours: up to
0.07 MB measured."""

HOLE_BYTES = 1 << 28
"""More than one episode takes; a hole needs no space."""


class EpisodeWriter:
    """Append whole episodes to a file that is complete, resumable or absent, but never broken.

    Rows go to `<path>.partial`, which takes the name `path` when the writer closes, whether in the
    ordinary way or because of an error (Ctrl-C and a full disk included): the file is then cut to
    its complete episodes and says how many were requested. A later writer with the same provenance
    goes on after `len(writer)` episodes.

    HDF5 does not survive a failed write: the file can then be neither trimmed nor closed. So the
    disk is asked for the space of an episode *before* HDF5 sees it. After `kill -9` nobody closes
    the file; the next writer keeps what it holds if its index is sound, and else (it was killed in
    the instant in which HDF5 rewrites the index) discards it with a warning.

    Args:
        path: of the finished file; missing folders are made.
        provenance: of all its episodes; `requested_episodes` says when the file is complete,
            `every` how many env actions a row of actions holds.
        compression: of the pixels: None (as published, and the quickest to read), "blosc" or
            "zstd".

    Raises:
        ValueError: `path` holds other episodes than these (the differences are named), or another
            process is writing it.
    """

    def __init__(self, path: Path | str, provenance: Provenance, compression: str | None = None):
        with contextlib.ExitStack() as stack:
            stack.enter_context(hold(path, folder=False))
            self._begin_with(Path(path), provenance, compression)
            self._held = stack.pop_all()

    def _begin_with(self, path: Path, provenance: Provenance, compression: str | None) -> None:
        """Find out what is there of the file."""
        self.path, self.partial = path, Path(f"{path}.partial")
        require_own(self.path)
        require_own(self.partial)
        self.provenance = provenance
        self._filter: Any = (
            {}
            if compression is None
            else COMPRESSIONS[choose("compression", compression, COMPRESSIONS)]
        )
        # opened by the first append, so that a complete file is never touched
        self._file: h5py.File | None = None
        # its columns: looking one up costs as much as writing to it
        self._open: dict[str, h5py.Dataset] = {}
        self._episodes = self._rows = 0
        if self.partial.exists():
            self._salvage()
        if self.path.exists():
            with Episodes.open(self.path) as present:
                if differences := present.provenance.differences(provenance):
                    raise ValueError(
                        f"{path}: expected to go on with the episodes that were requested now, "
                        f"got a file that differs in {differences}. Write to another path, or "
                        "delete that file."
                    )
                self._episodes, self._rows = len(present), present.steps

    def __len__(self) -> int:
        """Complete episodes, those of earlier writers included."""
        return self._episodes

    def append(self, episode: Episode) -> None:
        """Add one episode: it is in the file once this returns, and not at all if this raises.

        Raises:
            ValueError: arrays that do not belong together or do not resemble the file's earlier
                episodes.
            OSError: the disk is full, or a quota is reached.
        """
        first, length = self._rows, len(episode)
        columns = _columns(episode, self._episodes, self.provenance.every)
        file = self._file or self._begin(columns)
        expected = {
            name: column.shape[1:]
            for name, column in self._open.items()
            if name not in EPISODE_COLUMNS
        }
        if (got := {name: rows.shape[1:] for name, rows in columns.items()}) != expected:
            raise ValueError(
                f"{self.path}: expected rows of the shapes {expected}, got {got}. All episodes "
                "must be alike."
            )
        self._reserve(
            sum(rows.nbytes for rows in columns.values()) + INDEX_BYTES_PER_FRAME * length
        )
        for name, rows in columns.items():
            self._open[name].resize(first + length, axis=0)
            self._open[name][first:] = rows
        # Two flushes, in this order: a process killed between them leaves an index that names
        # nothing but what is on disk.
        file.flush()
        for name, value in (("ep_len", length), ("ep_offset", first)):
            self._open[name].resize(self._episodes + 1, axis=0)
            self._open[name][-1] = value
        file.flush()
        self._episodes, self._rows = self._episodes + 1, first + length

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cut to the complete episodes and give the file its name; if there is not one, leave
        nothing behind."""
        with self._held:
            self._close()

    def _close(self) -> None:
        if self._file is None:
            return
        with contextlib.suppress(OSError):  # on a full disk, what is still reserved must do
            self._reserve(0)
        file, self._file, self._open = self._file, None, {}
        _trim(file, self._episodes, self._rows)
        file.attrs["complete"] = self._episodes == self.provenance.requested_episodes
        file.flush()
        # hand back what was reserved and not needed
        os.truncate(self.partial, file.id.get_filesize())
        file.close()
        if self._episodes:
            self._publish()
        else:
            self.partial.unlink()

    def _begin(self, columns: dict[str, np.ndarray]) -> h5py.File:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            os.replace(self.path, self.partial)
            self._file = file = open_hdf5(self.partial, "r+")
            self._open = dict(file.items())
            return file
        self.partial.touch()
        try:
            self._reserve(0)
        except OSError:
            self.partial.unlink()
            raise
        self._file = file = h5py.File(self.partial, "w")
        file.attrs["complete"] = False
        self.provenance.write(file.attrs)
        for name, rows in columns.items():
            shape, chunk, extra = rows.shape[1:], max(1, CHUNK_BYTES // rows[0].nbytes), {}
            if name == "pixels":
                chunk, extra = 1, self._filter
            file.create_dataset(
                name,
                (0, *shape),
                rows.dtype,
                maxshape=(None, *shape),
                chunks=(chunk, *shape),
                **extra,
            )
        for name, dtype in zip(EPISODE_COLUMNS, (np.int32, np.int64)):
            file.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(1024,))
        self._open = dict(file.items())
        return file

    def _reserve(self, nbytes: int) -> None:
        """Make sure that the file can grow by `nbytes` and close, or raise OSError while it is
        still sound."""
        nbytes += CLOSING_BYTES
        if not hasattr(os, "posix_fallocate"):  # macOS and Windows: asking is the next best thing
            if shutil.disk_usage(self.partial.parent).free < nbytes:
                raise OSError(ENOSPC, os.strerror(ENOSPC), str(self.partial))
            return
        descriptor = os.open(self.partial, os.O_WRONLY)
        try:
            end = self._file.id.get_filesize() if self._file else os.fstat(descriptor).st_size
            os.posix_fallocate(descriptor, end, nbytes)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.partial)) from None
        finally:
            os.close(descriptor)

    def _publish(self) -> None:
        """Give the partial file its name, in an order that a power cut cannot turn into a named but
        empty file."""
        sync(self.partial)
        os.replace(self.partial, self.path)
        sync(self.path.parent)

    def _salvage(self) -> None:
        """Turn what a killed process left behind into an interrupted file, if it is sound."""
        if self.path.exists():
            raise ValueError(
                f"expected one of {self.path} and {self.partial}, got both. Move one of them away."
            )
        try:
            # HDF5 opens no file that is shorter than it was to become, which a process killed while
            # trimming may leave. So it is lengthened by a hole, and none of the rows may lie in
            # there.
            size = self.partial.stat().st_size
            os.truncate(self.partial, size + HOLE_BYTES)
            with open_hdf5(self.partial, "r+", torn=True) as file:
                lengths = file["ep_len"][: len(file["ep_offset"])].tolist()
                if sum(lengths) > len(file["pixels"]):
                    raise ValueError(
                        f"its index names {sum(lengths)} rows of {len(file['pixels'])}"
                    )
                _trim(file, len(lengths), sum(lengths))
                ends: list[int] = []
                for column in file.values():
                    column.id.chunk_iter(lambda chunk: ends.append(chunk.byte_offset + chunk.size))
                if max(ends, default=0) > size:
                    raise ValueError("its last rows are cut off")
                # it may lack nothing but this mark
                file.attrs["complete"] = len(lengths) == self.provenance.requested_episodes
            Episodes.open(self.partial).close()
        except Exception as error:  # whatever HDF5 makes of a torn file
            warnings.warn(
                f"discarding {self.partial}, which a killed process left in no usable state: "
                f"{error}",
                stacklevel=3,
            )
            self.partial.unlink()
        else:
            self._publish()


def _columns(episode: Episode, number: int, every: int) -> dict[str, np.ndarray]:
    """The rows of one episode, checked: the file must open again."""
    pixels, actions, states = episode.pixels, episode.actions, episode.states
    length, shape = len(pixels), pixels.shape
    if (
        pixels.dtype != np.uint8
        or len(shape) != 4
        or shape[1] != shape[2]
        or shape[3] != 3
        or not length
    ):
        raise ValueError(
            f"episode {number}: expected pixels (L, h, h, 3) uint8, got {shape} {pixels.dtype}. "
            "Pass square RGB."
        )
    for name, rows in (("actions", actions), ("states", states)):
        if rows is not None and (rows.ndim != 2 or len(rows) != length):
            raise ValueError(
                f"episode {number}: expected {name} ({length}, width), got {rows.shape}. Pass one "
                "per frame."
            )
        if rows is not None and rows.dtype.kind not in "fiub":
            raise ValueError(
                f"episode {number}: expected {name} of numbers, got {rows.dtype}. Pass float32."
            )
    if actions.shape[1] % every:
        got = f"rows of {actions.shape[1]} numbers"
        raise ValueError(
            f"episode {number}: expected the actions of {every} env steps per row, got {got}. "
            "Pass whole blocks."
        )
    with np.errstate(over="ignore"):  # what float32 does not hold becomes infinite
        actions = actions.astype(np.float32)
    if not np.isfinite(actions[:-1]).all() or not np.isnan(actions[-1]).all():
        raise ValueError(
            f"episode {number}: expected finite actions and a last row of NaN, got others. "
            "Nothing is done after it."
        )
    columns = {
        "pixels": pixels,
        "action": actions,
        "step_idx": np.arange(length, dtype=np.int64),
        "ep_idx": np.full(length, number, np.int64),
    }
    return columns if states is None else {**columns, "state": states.astype(np.float32)}


def _trim(file: h5py.File, episodes: int, rows: int) -> None:
    for name, column in file.items():
        wanted = episodes if name in EPISODE_COLUMNS else rows
        if len(column) != wanted:
            column.resize(wanted, axis=0)
