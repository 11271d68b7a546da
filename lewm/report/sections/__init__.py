"""An analysis on the page, a file for each. Words and pictures only; nothing is computed.

A section reads the fields of its analysis' result, so that a renamed field is an error and never a
missing sentence. It offers

    TITLE, ORDER           its heading, and its place on the page
    draw(result)           a list of panels
    sentences(result)      what the numbers say, a paragraph
    headlines(result)      name -> number, for a table that compares runs

and where it has more to show

    clips(result, most)    attempts that move, for the top of the page
    notes(results)         what is to be known of the figures
    rows(result)           tables of the numbers behind clouds of points
    JUDGES                 number of a claim -> evidence -> finding, see `report.claims`
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lewm import registry
from lewm.report.animation import Clip
from lewm.report.canvas import Panel
from lewm.report.verdicts import Evidence, Finding
from lewm.runs.results import Result, Tables

__all__ = ["clips", "draw", "headlines", "judge", "notes", "ordered", "rows", "tell", "title"]

OPTIONAL = ("clips", "notes", "rows", "JUDGES")


def ordered(analyses: Iterable[str]) -> list[str]:
    """Analyses in the order of the page; those without a section come last."""
    return sorted(analyses, key=lambda name: (_of(name, "ORDER", float("inf")), name))


def title(analysis: str) -> str:
    """The heading of a section; of an analysis without one, its name."""
    heading: str = _of(analysis, "TITLE", analysis.replace("-", " ").capitalize())
    return heading


def draw(result: Result) -> list[Panel]:
    """The panels of a result; none where it has no section."""
    panels: list[Panel] = _asked(result, "draw", [])
    return panels


def clips(result: Result, most: int | None = None) -> list[Clip]:
    """What moves in a result, at most so much; mostly nothing."""
    moving: list[Clip] = _asked(result, "clips", [], most)
    return moving


def tell(result: Result) -> str:
    """A paragraph; "" for an analysis without a section."""
    return " ".join(_asked(result, "sentences", []))


def headlines(result: Result) -> dict[str, str]:
    """Name -> number with its interval, as text, for a table that compares runs."""
    told: dict[str, str] = _asked(result, "headlines", {})
    return told


def notes(analysis: str, results: Sequence[Result]) -> list[str]:
    """What is to be known of the figures of an analysis of some runs."""
    words: list[str] = _of(analysis, "notes", lambda _: [])(results) if results else []
    return words


def rows(result: Result) -> Tables:
    """Numbers behind clouds of points, as tables."""
    tables: Tables = _asked(result, "rows", {})
    return tables


def judge(claim: int) -> tuple[str, Callable[[Evidence], Finding | None]]:
    """The analysis whose section judges a claim, and the judge."""
    for analysis in registry.names("analyses"):
        if found := _of(analysis, "JUDGES", {}).get(claim):
            return analysis, found
    raise LookupError(f"no section judges claim {claim}")


def _asked(result: Result, name: str, default: Any, *more: Any) -> Any:
    """What a section makes of a result. One that was changed by hand may name what it does not
    hold."""
    try:
        return _of(result.name, name, lambda *_: default)(result, *more)
    except (KeyError, IndexError) as error:
        raise ValueError(
            f"the answer of '{result.name}': expected entries that belong together, got none for "
            f"{error}. Ask again: lewm analyse RUN {result.name} --again"
        ) from error


def _of(analysis: str, name: str, default: Any) -> Any:
    """What the section of an analysis offers; the default where there is no section, or one that
    may do without."""
    module = f"{__name__}.{analysis.replace('-', '_')}"
    try:
        section = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        return default
    return getattr(section, name, default) if name in OPTIONAL else getattr(section, name)
