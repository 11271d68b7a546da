"""Lance tables of the published kind: `episode_idx`, `step_idx`, encoded pictures, numbers as lists
of float32.

One row per observation, the rows of an episode side by side. Row t of the actions is the action
taken from observation t; the last row of an episode is a mark (NaN) and no action.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lewm.data.provenance import Provenance

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
        try:
            self._table = lance.dataset(str(path))
        except (ValueError, OSError, RuntimeError) as error:
            raise self._torn(error) from None
        if missing := [name for name in INDEX if name not in self._table.schema.names]:
            got = f"no {', '.join(missing)} among {', '.join(self._table.schema.names)}"
            raise ValueError(
                f"{path}: expected the columns {', '.join(INDEX)}, got {got}. It holds no "
                "episodes, or other ones."
            )
        episode, step = (np.asarray(self._rows([name])[name].to_numpy()) for name in INDEX)
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

    def close(self) -> None:
        """Nothing is held open."""

    @cached_property
    def _fields(self) -> dict[str, pa.DataType]:
        return {field.name: field.type for field in self._table.schema}

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

    def _rows(
        self, columns: Sequence[str], start: int | None = None, count: int | None = None
    ) -> pa.Table:
        try:
            return self._table.to_table(columns=list(columns), offset=start, limit=count)
        except (ValueError, OSError, RuntimeError) as error:
            raise self._torn(error) from None

    def _torn(self, error: Exception) -> ValueError:
        said = str(error).splitlines()[0][:200]
        return ValueError(
            f"{self.path}: expected a whole Lance table, got one that cannot be read ({said}). "
            "Fetch it again."
        )


def _is_numeric(kind: pa.DataType) -> bool:
    inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) else kind
    return pa.types.is_floating(inner) or pa.types.is_integer(inner) or pa.types.is_boolean(inner)
