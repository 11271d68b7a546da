"""An analysis on the page, a file for each: `draw(result) -> list[Panel]`, and what its numbers
say.

Words and pictures only; nothing is computed. `SENTENCES` of a section make a paragraph, `HEADLINES`
name numbers for a table. Each is a function of the values. Results are read from disk: they may be
older than this version, or hold null where a number was not defined. A sentence that misses a
number is left out, and the others stay.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from lewm.contracts import Result
from lewm.report.canvas import Panel

__all__ = ["TITLES", "draw", "headlines", "tell"]

TITLES = {
    "planning": "Plans, imagined and carried out",
    "probing": "What the latents know",
    "surprise": "Is it surprised by the impossible?",
    "geometry": "The shape of the latents",
    "decoding": "Looking at what it imagines",
    "economy": "What a frame and a plan cost",
}
"""Of the page's sections, in their order; other analyses follow under their own names."""


def draw(result: Result) -> list[Panel]:
    """The panels of an analysis; none where it has no section."""
    section = _section(result)
    panels: list[Panel] = section.draw(result) if section else []
    return panels


def tell(result: Result) -> str:
    """A paragraph; "" for an analysis without a section."""
    said: list[str] = []
    for sentence in getattr(_section(result), "SENTENCES", ()):
        with suppress(KeyError, IndexError, TypeError, StopIteration):
            said += sentence(_known(result.values))
    return " ".join(said)


def headlines(result: Result) -> dict[str, str]:
    """Name -> number with its interval, as text, for a table that compares runs."""
    told: dict[str, str] = {}
    for headline in getattr(_section(result), "HEADLINES", ()):
        with suppress(KeyError, IndexError, TypeError, StopIteration):
            told |= headline(_known(result.values))
    return told


def _section(result: Result) -> Any:
    """The file of the analysis' name, or None where there is none."""
    name = f"{__name__}.{result.name}"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return None


def _known(values: Any) -> Any:
    """Without the keys whose value is null."""
    if not isinstance(values, Mapping):
        return values
    return {key: _known(value) for key, value in values.items() if value is not None}
