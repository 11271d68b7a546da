"""What the latents say about the world: maps, and readings beside the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lewm import panels
from lewm.contracts import Result
from lewm.panels import THEME, Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw", "latent_panels", "probe_panels"]

CORNERS = np.array([[[0x2F, 0x6B, 0xD8], [0xB8, 0x4A, 0xC4]], [[0x12, 0xA3, 0x7F], [0xF0, 0x97, 0x1E]]]) / 255
"""Colours of a place in a map: rows top and bottom, columns left and right. Told apart by lightness as well as by hue, on white
and on black, and between them every place has a colour of its own."""


def draw(result: Result) -> list[Panel]:
    """Maps of the latents, and every variable as it is read."""
    return [*latent_panels(result), *probe_panels(result)]


def latent_panels(probing: Result) -> list[Panel]:
    """Where the world was in each test frame, and the same frames in the principal plane of their latents.

    The first two state variables are taken for a place, y downwards as in a picture.
    """
    states, plane = probing.arrays["states"][:, :2], probing.arrays["plane"]
    (x_name, x), (y_name, y) = list(probing.values["variables"].items())[:2]
    low, high = states.min(axis=0), states.max(axis=0)
    across, down = ((states - low) / np.maximum(high - low, 1e-9)).T
    by_place = _blend(across, down)

    def true_map(axes: Axes) -> None:
        panels.points(axes, states, c=by_place)
        axes.invert_yaxis()
        axes.set_aspect("equal")
        axes.set_xlabel(panels.label(x_name, x["unit"]))
        axes.set_ylabel(panels.label(y_name, y["unit"]))

    def plane_coloured(colours: np.ndarray, label: str = "") -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            scatter = panels.points(axes, plane, c=colours, cmap=panels.shades() if label else None)
            if label:
                assert axes.figure is not None
                bar = axes.figure.colorbar(scatter, ax=axes, shrink=0.9, aspect=24)
                bar.set_label(label)
                bar.outline.set_visible(False)  # type: ignore[operator]
            axes.set_xlabel("first principal component")
            axes.set_ylabel("second")

        return draw

    return [
        panels.draw("where the dot was", true_map, height=3.6),
        panels.draw("the latents, same colours", plane_coloured(by_place), height=3.6),
        panels.draw(f"the latents by {x_name}", plane_coloured(states[:, 0], panels.label(x_name, x["unit"])), height=3.6),
        panels.draw(f"the latents by {y_name}", plane_coloured(states[:, 1], panels.label(y_name, y["unit"])), height=3.6),
    ]


def probe_panels(probing: Result) -> list[Panel]:
    """Each state variable as read from the latents against its true value, on test episodes."""

    def scatter(i: int, name: str, scores: Mapping[str, Any]) -> Panel:
        def draw(axes: Axes) -> None:
            true, read = probing.arrays["states"][:, i], probing.arrays["predictions"][:, i]
            ends = [min(true.min(), read.min()), max(true.max(), read.max())]
            axes.plot(ends, ends, color=THEME["muted"], linewidth=1, linestyle=(0, (4, 3)), zorder=3)
            panels.points(axes, np.stack([true, read], axis=1), c=THEME["accent"])
            axes.set_xlabel(f"true {panels.label(name, scores['unit'])}")
            axes.set_ylabel(f"read {panels.label(name, scores['unit'])}")
            axes.text(
                0.04, 0.95, f"r = {scores['r']:.4f}", transform=axes.transAxes, va="top", fontweight="bold", color=THEME["ink"]
            )

        return panels.draw(f"reading {name} from the latents", draw, height=3.6)

    return [scatter(i, *item) for i, item in enumerate(probing.values["variables"].items())]


def _blend(across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """(n,) and (n,) in [0, 1] -> (n, 3) colours between those of the corners."""
    top, bottom = (row[0] + across[:, None] * (row[1] - row[0]) for row in CORNERS)
    return top + down[:, None] * (bottom - top)
