"""HDF5 in the published layout, plain or compressed: root-level columns, episodes end to end,
`ep_len` and `ep_offset`.

Other data sets than ours may be read too: pictures under other names or not square, states under
any name. Row t of the actions is the action taken from observation t; the last row of an episode is
a mark (NaN) and no action.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np

from lewm.data.episodes import EPISODE_COLUMNS, Episodes
from lewm.data.provenance import Provenance

__all__ = ["HDF5"]

SUFFIXES = (".h5", ".hdf5")

NOT_RECORDED = ("step_idx", "ep_idx", "episode_idx")
"""Columns that only number the rows."""

ROWS_AT_ONCE = 64


class HDF5:
    """An opened file, or the only one in a folder. See `sources.Source`."""

    @staticmethod
    def recognises(path: Path) -> bool:
        if path.is_dir():
            return bool(_files(path))
        return path.suffix.lower() in SUFFIXES or (path.is_file() and h5py.is_hdf5(path))

    def __init__(self, path: Path):
        if path.is_dir():
            files = _files(path)
            if len(files) > 1:
                raise ValueError(
                    f"{path}: expected one HDF5 file, got {', '.join(f.name for f in files)}. "
                    "Give one of them."
                )
            path = files[0]
        self.path, self.unfit = path, ""
        try:
            Episodes.open(path).close()
        except ValueError as error:
            # What lacks no more than our names or square pictures can be converted; all else stays
            # refused.
            if not path.is_file() or not _has_index(path):
                raise
            self.unfit = str(error)
        self._file = h5py.File(path, "r")
        self.provenance = Provenance.read(self._file.attrs)
        self.lengths = self._file["ep_len"][:].astype(np.int64)
        self._offsets = self._file["ep_offset"][:].astype(np.int64)
        rows = self.lengths.sum()
        if (
            len(self.lengths) != len(self._offsets)
            or (np.cumsum(self.lengths) - self.lengths != self._offsets).any()
        ):
            self.close()
            raise ValueError(
                f"{path}: expected episodes end to end, got an index with gaps. Fetch or collect "
                "the file again."
            )
        if short := [name for name, column in self._rows.items() if len(column) != rows]:
            self.close()
            raise ValueError(
                f"{path}: expected {rows} rows in every column, got {short} of another length. "
                "Fetch it again."
            )

    def close(self) -> None:
        self._file.close()

    @cached_property
    def _rows(self) -> dict[str, h5py.Dataset]:
        return {
            name: column
            for name, column in self._file.items()
            if isinstance(column, h5py.Dataset) and column.ndim and name not in EPISODE_COLUMNS
        }

    @property
    def cameras(self) -> tuple[str, ...]:
        found = [name for name, column in self._rows.items() if column.ndim == 4]
        return tuple(sorted(found, key=lambda name: (name != "pixels", name)))

    @property
    def columns(self) -> dict[str, str]:
        numeric = {
            n: c
            for n, c in self._rows.items()
            if c.ndim <= 2 and c.dtype.kind in "iufb" and n not in NOT_RECORDED
        }
        return {
            name: f"{column.dtype} {tuple(column.shape[1:])}" for name, column in numeric.items()
        }

    @property
    def actions(self) -> tuple[str, ...]:
        return ("action",) if "action" in self.columns else ()

    @property
    def states(self) -> tuple[str, ...]:
        return ("state",) if "state" in self.columns else ()

    def names(self, column: str) -> tuple[str, ...]:
        return self.provenance.state_names if column == "state" else ()

    def origin(self, i: int) -> str:
        return f"{self.path}, episode {i}"

    def read(self, i: int, columns: Sequence[str]) -> Mapping[str, np.ndarray]:
        start = self._offsets[i]
        return {name: self._rows[name][start : start + self.lengths[i]] for name in columns}

    def pictures(self, i: int, camera: str) -> Iterator[np.ndarray]:
        end = self._offsets[i] + self.lengths[i]
        for start in range(self._offsets[i], end, ROWS_AT_ONCE):
            try:
                yield from self._rows[camera][start : min(start + ROWS_AT_ONCE, end)]
            except OSError as error:
                cure = "Fetch or collect the file again"
                raise ValueError(
                    f"{self.origin(i)}: expected pictures that decode, got an error ({error}). "
                    f"{cure}."
                ) from None


def _files(folder: Path) -> list[Path]:
    """Those in a folder; ._a.h5 and its like are a system's notes."""
    entries = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(path for path in entries if path.suffix.lower() in SUFFIXES)


def _has_index(path: Path) -> bool:
    try:
        with h5py.File(path, "r") as file:
            return all(isinstance(file.get(name), h5py.Dataset) for name in EPISODE_COLUMNS)
    except OSError:
        return False
