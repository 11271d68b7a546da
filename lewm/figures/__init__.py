"""Records as pictures. Draws, computes nothing: a file per analysis with `draw(result) -> list[Panel]`, and some for others."""

from __future__ import annotations

import importlib

from lewm.contracts import Result
from lewm.panels import Panel

__all__ = ["draw"]


def draw(result: Result) -> list[Panel]:
    """The panels of an analysis, by the file of its name; none where there is no such file."""
    name = f"{__name__}.{result.name}"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return []
    panels: list[Panel] = module.draw(result)
    return panels
