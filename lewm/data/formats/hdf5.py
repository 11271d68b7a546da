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

from lewm.data.episodes import EPISODE_COLUMNS, INDEX, Episodes, read_index
from lewm.data.provenance import Provenance
from lewm.data.soundness import FETCH, OtherLayout, open_hdf5, read_rows, reading, unfit

__all__ = ["HDF5"]

SUFFIXES = (".h5", ".hdf5")

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
        except OtherLayout as error:
            # what lacks no more than our names, kinds or square pictures can be converted
            self.unfit = str(error)
        self._file = open_hdf5(path)
        try:
            if not all(isinstance(self._file.get(name), h5py.Dataset) for name in EPISODE_COLUMNS):
                raise OtherLayout(self.unfit)
            with reading(path):
                self.provenance = Provenance.read(self._file.attrs)
                self.lengths, self._offsets = read_index(path, self._file)
                rows = int(self.lengths.sum())
                short = [name for name, column in self._rows.items() if len(column) != rows]
                if short:
                    expected = f"{rows} rows in every column"
                    raise unfit(path, expected, f"{short} of another length", FETCH)
        except BaseException:
            self.close()
            raise

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
            if c.ndim <= 2 and c.dtype.kind in "iufb" and n not in INDEX
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
        start, length = int(self._offsets[i]), int(self.lengths[i])
        return {name: self._read(name, start, start + length) for name in columns}

    def pictures(self, i: int, camera: str) -> Iterator[np.ndarray]:
        start, end = int(self._offsets[i]), int(self._offsets[i] + self.lengths[i])
        for first in range(start, end, ROWS_AT_ONCE):
            yield from self._read(camera, first, min(first + ROWS_AT_ONCE, end))

    def _read(self, name: str, start: int, stop: int) -> np.ndarray:
        with reading(self.path, f"'{name}' to decode in rows {start} to {stop - 1}"):
            return read_rows(self.path, self._rows[name], start, stop)


def _files(folder: Path) -> list[Path]:
    """Those in a folder; ._a.h5 and its like are a system's notes."""
    entries = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(path for path in entries if path.suffix.lower() in SUFFIXES)
