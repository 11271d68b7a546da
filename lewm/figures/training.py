"""Curves over training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lewm import panels
from lewm.panels import THEME, Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["loss_panels"]

FEW = 30
"""Points of a curve below which they are marked: between them nothing was measured."""


def loss_panels(rows: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """The terms of the loss on logarithmic axes, and what is watched for collapse, from lines of metrics.jsonl."""
    labels = {
        "prediction": ("prediction loss", True),
        "sigreg": ("SIGReg", True),
        "latent_std": ("standard deviation of the latents", False),
        "effective_rank": ("effective rank of the latents", False),
        "straightness": ("straightness of held-out paths", False),
    }

    def curve(name: str, title: str, logarithmic: bool) -> Panel:
        def draw(axes: Axes) -> None:
            updates, values = zip(*((row["update"], row[name]) for row in rows if name in row), strict=True)
            marker = "o" if len(values) < FEW else None
            axes.plot(updates, values, color=THEME["accent"], linewidth=1.8, marker=marker, markersize=3)
            if logarithmic:
                axes.set_yscale("log")
                panels.plain_decades(axes.yaxis)
            else:
                axes.set_ylim(bottom=min(0, 1.1 * min(values)))
            axes.set_xlabel("update")
            axes.set_xlim(left=0)
            axes.grid(axis="y", color=THEME["line"], linewidth=0.8)

        return panels.draw(title, draw)

    return [curve(name, *label) for name, label in labels.items() if any(name in row for row in rows)]
