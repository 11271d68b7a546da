"""Lance tables of the published kind: `episode_idx`, `step_idx`, encoded pictures, numbers as lists
of float32.

One row per observation, the rows of an episode side by side. Row t of the actions is the action
taken from observation t; the last row of an episode is a mark (NaN) and no action.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lewm.data.provenance import Provenance
from lewm.data.soundness import MAX_EXPANSION, SMALL_BYTES

__all__ = ["Lance"]

try:
    import lance
except ModuleNotFoundError as error:  # the package of that name on the index is another one
    raise ModuleNotFoundError(str(error), name="pylance") from error

INDEX = ("episode_idx", "step_idx")

ROWS_AT_ONCE = 64


class Lance:
    """An opened table: a folder that ends in .lance, or the only such folder in another. See
    `sources.Source`."""

    unfit = "an episode file: `lewm data convert` makes one of these recordings"
    provenance = Provenance()

    @staticmethod
    def recognises(path: Path) -> bool:
        return path.is_dir() and (path.suffix == ".lance" or any(path.glob("[!.]*.lance")))

    def __init__(self, path: Path):
        if path.suffix != ".lance":
            tables = sorted(path.glob("[!.]*.lance"))
            if len(tables) > 1:
                raise ValueError(
                    f"{path}: expected one Lance table, got {', '.join(t.name for t in tables)}. "
                    "Give one of them."
                )
            path = tables[0]
        self.path = path
        with self._whole():
            self._table = lance.dataset(str(path))
            self._fields = {field.name: field.type for field in self._table.schema}
        if missing := [name for name in INDEX if name not in self._fields]:
            got = f"no {', '.join(missing)} among {', '.join(self._fields)}"
            raise ValueError(
                f"{path}: expected the columns {', '.join(INDEX)}, got {got}. It holds no "
                "episodes, or other ones."
            )
        with self._whole():
            self._prove()
        index = [self._whole_numbers(name) for name in INDEX] if self._count else [np.arange(0)] * 2
        episode, step = index
        self._offsets = np.flatnonzero(np.diff(episode, prepend=episode[:1] - 1))
        self.lengths = np.diff(self._offsets, append=len(episode))
        if not len(episode) or len(np.unique(episode)) < len(self.lengths):
            got = "no rows" if not len(episode) else "episodes that are interrupted by others"
            raise ValueError(
                f"{path}: expected rows with those of an episode side by side, got {got}. Write "
                "it again in order."
            )
        wrong = np.flatnonzero(
            step != np.arange(len(step)) - np.repeat(self._offsets, self.lengths)
        )
        if len(wrong):
            got = f"{step[wrong[0]]} in row {wrong[0]}, episode {episode[wrong[0]]}"
            raise ValueError(
                f"{path}: expected 'step_idx' to count 0, 1, 2 along each episode, got {got}. "
                "Rows are missing."
            )

    def _prove(self) -> None:
        """All rows lie in this folder, and are no more than its bytes can hold."""
        folder = self.path.resolve()
        self._count = rows = self._table.count_rows()
        for fragment in self._table.get_fragments():
            for file in fragment.data_files():
                inside = (folder / "data" / file.path).resolve()
                if not inside.is_relative_to(folder) or getattr(file, "base_id", None) is not None:
                    raise ValueError(
                        f"{self.path}: expected rows that lie in this folder, got {file.path!r} of "
                        "another place. Copy the table as a whole."
                    )
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        most = max(SMALL_BYTES, MAX_EXPANSION * size)
        for name, kind in self._fields.items():
            if rows * _least_bytes(kind) > most:
                raise ValueError(
                    f"{self.path}: expected no more rows than {size} bytes can hold, got {rows} of "
                    f"'{name}' ({kind}). Fetch it again."
                )

    def _whole_numbers(self, name: str) -> np.ndarray:
        column = self._rows([name])[name]
        if not pa.types.is_integer(column.type) or column.null_count:
            got = f"{column.null_count} empty ones" if column.null_count else str(column.type)
            raise ValueError(
                f"{self.path}: expected '{name}' of whole numbers, got {got}. Write it again as "
                "int64."
            )
        values = np.asarray(column.to_numpy())
        if len(values) and int(values.max()) >= 1 << 62:
            got = f"{values.max()}. Fetch it again"
            raise ValueError(f"{self.path}: expected '{name}' to number rows, got {got}.")
        return values.astype(np.int64)

    def close(self) -> None:
        """Nothing is held open."""

    @property
    def cameras(self) -> tuple[str, ...]:
        found = [
            name
            for name, kind in self._fields.items()
            if pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        ]
        return tuple(sorted(found, key=lambda name: (name != "pixels", name)))

    @property
    def columns(self) -> dict[str, str]:
        return {
            n: str(kind) for n, kind in self._fields.items() if n not in INDEX and _is_numeric(kind)
        }

    @property
    def actions(self) -> tuple[str, ...]:
        return ("action",) if "action" in self.columns else ()

    @property
    def states(self) -> tuple[str, ...]:
        return ("state",) if "state" in self.columns else ()

    def names(self, column: str) -> tuple[str, ...]:
        return ()

    def origin(self, i: int) -> str:
        return f"{self.path}, episode {i}"

    def read(self, i: int, columns: Sequence[str]) -> Mapping[str, Sequence[Any]]:
        return self._rows(columns, int(self._offsets[i]), int(self.lengths[i])).to_pydict()

    def pictures(self, i: int, camera: str) -> Iterator[bytes]:
        start, end = int(self._offsets[i]), int(self._offsets[i] + self.lengths[i])
        for first in range(start, end, ROWS_AT_ONCE):
            yield from self._rows([camera], first, min(ROWS_AT_ONCE, end - first))[
                camera
            ].to_pylist()

    def _rows(self, columns: Sequence[str], start: int = 0, count: int | None = None) -> pa.Table:
        rows = range(start, start + (self._count if count is None else count))
        with self._whole():
            # not `to_table`, which streams: there an error with a null in its text ends the process
            return self._table.take(rows, columns=list(columns))

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Whatever the library raises within is a refusal of the table, its panics included."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            if str(self.path) in (said := str(error)) and ": expected " in said:
                raise  # our own
            said = next(iter(said.splitlines()), type(error).__name__)[:200]
            raise ValueError(
                f"{self.path}: expected a whole Lance table, got one that cannot be read ({said}). "
                "Fetch it again."
            ) from None


def _least_bytes(kind: pa.DataType) -> int:
    """Of a row, in memory."""
    if pa.types.is_fixed_size_list(kind):
        return max(0, kind.list_size) * _least_bytes(kind.value_type)
    try:
        return max(1, kind.bit_width // 8)
    except ValueError:  # lists, texts and bytes: of any length
        return 1


def _is_numeric(kind: pa.DataType) -> bool:
    inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) else kind
    return pa.types.is_floating(inner) or pa.types.is_integer(inner) or pa.types.is_boolean(inner)
