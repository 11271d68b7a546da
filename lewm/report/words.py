"""How numbers are written for people: percentages, intervals, durations, lists."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def percent(rate: float) -> str:
    """One decimal where it says something: 94.5%, but 100% and 4%."""
    return f"{100 * rate:.1f}".removesuffix(".0") + "%"


def low_to_high(score: Mapping[str, float]) -> str:
    return f"{percent(score['low'])} to {percent(score['high'])}"


def duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def cell(value: Any) -> str:
    """Of a table."""
    if value is None:
        return "-"
    return (
        number(value)
        if isinstance(value, int | float) and not isinstance(value, bool)
        else str(value)
    )


def data_url(data: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(data).decode()


Values = Mapping[str, Any]


def correlation(value: float) -> str:
    """Four digits near 1, where two would say nothing."""
    return f"{value:.4f}" if value > 0.99 else f"{value:.2f}"


def in_unit(value: float, unit: str) -> str:
    return f"{value:.2g} {unit}".strip()


def whole_percent(value: float) -> str:
    return f"{100 * value:.0f}%"


def tenths(value: float) -> str:
    return f"{100 * value:.1f}%"


def two_places(value: float) -> str:
    return f"{value:.2f}"


def short_time(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def interval_words(interval: Sequence[float], form: Callable[[float], str]) -> str:
    return f"95% interval {form(interval[0])} to {form(interval[1])}"


def with_interval(value: float, interval: Sequence[float], form: Callable[[float], str]) -> str:
    return f"{form(value)} [{form(interval[0])} to {form(interval[1])}]"


def listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
