"""Results of analyses: frozen records that become JSON and arrays, and come back as they were.

Two rules about what is not a number:

- A number that may be undefined is `float | None`, and None then; a sentence says what it does.
- Any other float, in a field or an array, is finite. A result with one that is not is refused when
  it is stored and when it is read: NaN is never a result.
"""

from __future__ import annotations

import math
import types
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Any, ClassVar, Self, Union, get_args, get_origin, get_type_hints

import numpy as np

from lewm.files import legible

__all__ = [
    "Interval",
    "Result",
    "Table",
    "Tables",
    "defined",
    "interval",
    "legible_result",
    "plain",
]

Interval = tuple[float, float]
"""Ends of a 95% interval, the lower one first."""

Table = list[dict[str, Any]]
"""Rows, each column -> number or text; all rows have the same columns."""

Tables = dict[str, Table]
"""Caption -> rows. A caption says how many were measured."""

MOST_NAMED = 3
"""Fields that a message names; of more it says how many."""


@dataclass(frozen=True)
class Result(ABC):
    """What an analysis found. Each analysis has a frozen dataclass of its own, made of this one.

    Fields are numbers, text, arrays, None, and tuples, mappings by text and frozen dataclasses of
    such; their types are all that reading needs. A mapping that holds arrays has no "/" in its
    keys.

    Attributes:
        name: the analysis.
    """

    name: ClassVar[str]

    @abstractmethod
    def tables(self) -> Tables:
        """What a person reads, in the terminal and beside a figure: made of the fields."""

    def to_json(self) -> dict[str, Any]:
        """The fields, JSON-ready; arrays are left out, see `arrays`."""
        told: dict[str, Any] = plain(self)
        return told

    def undefined(self) -> list[str]:
        """Places of what is NaN or infinite and may not be; a sound result has none."""
        return list(_undefined(self))

    def arrays(self) -> dict[str, np.ndarray]:
        """Place in the record -> array, such as "attempts/0/pixels"."""
        return dict(_arrays(self))

    @classmethod
    def from_json(
        cls, told: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None
    ) -> Self:
        """The record that `to_json` and `arrays` were made of.

        Raises:
            ValueError: a field is missing, unknown or of the wrong kind; it is named.
        """
        whole = _put_back(told, arrays or {})
        result: Self = _read(cls, whole, "")
        return result


def defined(value: float) -> float | None:
    """A number, or None where it is not defined: NaN or infinite."""
    return float(value) if math.isfinite(value) else None


def interval(ends: Any) -> Interval:
    """Two numbers, from an array or a list."""
    low, high = ends
    return float(low), float(high)


# ---------------------------------------------------------------------------------------- writing


def legible_result(value: Any) -> Any:
    """A record whose words steer no terminal and break no figure, see `files.legible`: they may be
    names from a data file."""
    if isinstance(value, str):
        return legible(value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{name: legible_result(item) for name, item in _items(value) or ()})
    if isinstance(value, Mapping):
        return {legible_result(name): legible_result(item) for name, item in value.items()}
    return type(value)(map(legible_result, value)) if type(value) in (tuple, list) else value


def plain(value: Any) -> Any:
    """JSON-ready: null in a list for an array, and for what is no number in a table."""
    if (items := _items(value)) is not None:
        return {key: plain(item) for key, item in items if not isinstance(item, np.ndarray)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    undefined = isinstance(value, float) and not math.isfinite(value)
    return None if undefined or isinstance(value, np.ndarray) else value


def _arrays(value: Any, place: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Every array of a record, by its place."""
    if isinstance(value, np.ndarray):
        yield place, value
    items = enumerate(value) if isinstance(value, list | tuple) else _items(value) or ()
    for name, item in items:
        yield from _arrays(item, f"{place}/{name}" if place else str(name))


def _undefined(value: Any, place: str = "") -> Iterator[str]:
    """Where a record is not finite."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "fc" and not np.isfinite(value).all():
            yield place
    elif isinstance(value, float | np.floating) and not math.isfinite(value):
        yield place
    items = enumerate(value) if isinstance(value, list | tuple) else _items(value) or ()
    for name, item in items:
        yield from _undefined(item, f"{place}.{name}" if place else str(name))


def _items(value: Any) -> Iterable[tuple[str, Any]] | None:
    """What a record or a mapping holds, by name; None of anything else."""
    if is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    return value.items() if isinstance(value, Mapping) else None


# ---------------------------------------------------------------------------------------- reading


def _put_back(told: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """JSON with the arrays where they were."""
    whole: dict[str, Any] = _copied(told)
    for place, array in arrays.items():
        *parts, last = place.split("/")
        inside: Any = whole
        try:
            for part in parts:
                inside = inside[int(part) if isinstance(inside, list) else part]
            inside[int(last) if isinstance(inside, list) else last] = array
        except (IndexError, KeyError, TypeError, ValueError):
            raise ValueError(f"an array at '{place}', where the record has no place") from None
    return whole


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


_hints = cache(get_type_hints)


def _read(kind: Any, told: Any, place: str) -> Any:
    """A value of some type.

    Args:
        place: of the value in the record, for messages.
    """
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        (other,) = (arg for arg in args if arg is not types.NoneType)
        return None if told is None else _read(other, told, place)
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(told, Mapping):
        names = [field.name for field in fields(kind)]
        for wrong, what in (
            ([name for name in told if name not in names], "unknown"),
            ([name for name in names if name not in told], "missing"),
        ):
            if wrong:
                listed = ", ".join(f"'{place}{name}'" for name in wrong[:MOST_NAMED])
                more = f" and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
                raise ValueError(f"{what} field {listed}{more} of {kind.__name__}")
        hints = _hints(kind)
        return kind(**{name: _read(hints[name], told[name], f"{place}{name}.") for name in names})
    if origin is tuple and isinstance(told, list):
        kinds = [args[0]] * len(told) if args[-1] is Ellipsis else args
        if len(kinds) == len(told):
            items = zip(kinds, told, strict=True)
            return tuple(
                _read(item, value, f"{place}{i}.") for i, (item, value) in enumerate(items)
            )
    elif origin is not None and issubclass(origin, Mapping) and isinstance(told, Mapping):
        return {name: _read(args[1], value, f"{place}{name}.") for name, value in told.items()}
    elif (kind is float and type(told) in (float, int)) or type(told) is kind:
        return told
    expected = getattr(kind, "__name__", kind) if origin is None else kind
    raise ValueError(f"field '{place[:-1]}': expected {expected}, got {type(told).__name__}")
