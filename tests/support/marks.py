"""What is drawn on axes, read back as numbers."""

from __future__ import annotations

from contextlib import contextmanager
from unittest import mock

import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from lewm.report import canvas
from lewm.report.canvas import THEME, Panel

NAMES = {colour: name for name, colour in THEME.items()}


@contextmanager
def drawing():
    """Title -> axes of what is drawn within, without the work of writing SVG."""
    found = {}

    def draw(title, draw_on, height=None):
        found[title] = Figure().add_subplot()
        draw_on(found[title])
        return Panel(title, "<svg/>")

    with mock.patch.object(canvas, "draw", draw):
        yield found


def theme(colour):
    """Its name in the theme."""
    return NAMES.get(to_hex(colour), to_hex(colour))


def lines(axes, colour=None, label=None):
    """(n, 2) points of each line, in the order in which they were drawn."""
    return [
        np.array(line.get_xydata(), float)
        for line in axes.get_lines()
        if colour in (None, theme(line.get_color()))
        if label in (None, line.get_label())
    ]


def bands(axes, colour=None):
    """(n, 3) place, low and high end of each band between two curves."""
    found = []
    for band in axes.collections:
        if not type(band).__name__.endswith("PolyCollection"):
            continue
        if colour not in (None, theme(band.get_facecolor()[0, :3])):
            continue
        points = band.get_paths()[0].vertices
        found.append(
            np.array(
                [
                    (x, points[points[:, 0] == x, 1].min(), points[points[:, 0] == x, 1].max())
                    for x in np.unique(points[:, 0])
                ]
            )
        )
    return found


def words(axes):
    """Text -> what it stands beside."""
    return {
        text.get_text(): tuple(text.xy if isinstance(text, Annotation) else text.get_position())
        for text in axes.texts
    }


def rows(axes):
    """Name of a mark on the axis of rows -> its place."""
    names = [label.get_text() for label in axes.get_yticklabels()]
    return dict(zip(names, axes.get_yticks(), strict=True))


def has(lines, points):
    """Is one of the lines drawn through just these points?"""
    points = np.asarray(points, float)
    return any(
        line.shape == points.shape and np.allclose(line, points, atol=1e-9) for line in lines
    )
