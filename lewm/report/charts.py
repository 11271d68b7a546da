"""Charts that belong to no analysis: curves over training, success beside the floors, success
against cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lewm.report import canvas
from lewm.report.canvas import THEME, Panel
from lewm.report.words import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["loss_panels", "pareto_panel", "success_panel"]


def success_panel(title: str, scores: Mapping[str, Mapping[str, float]]) -> Panel:
    """Success rates with their 95% intervals, one bar each; the first is the agent's, the others
    are floors.

    Args:
        scores: name -> `rate`, `low` and `high`, as in `evaluate.Score`.
    """

    def draw(axes: Axes) -> None:
        for place, (name, score) in enumerate(scores.items()):
            rate, low, high = (100 * score[key] for key in ("rate", "low", "high"))
            axes.barh(place, rate, height=0.56, color=THEME["accent" if place == 0 else "floor"])
            axes.plot(
                [low, high],
                [place, place],
                color=THEME["ink"],
                linewidth=1.6,
                solid_capstyle="butt",
            )
            axes.plot(
                [low, high],
                [place, place],
                color=THEME["ink"],
                marker="|",
                markersize=8,
                linestyle="",
            )
            weight = "bold" if place == 0 else "normal"
            axes.text(
                -2, place, name, ha="right", va="center", fontweight=weight, color=THEME["ink"]
            )
            axes.text(
                104,
                place,
                percent(score["rate"]),
                ha="left",
                va="center",
                fontweight=weight,
                color=THEME["ink"],
            )
        axes.set_xlim(0, 100)
        axes.set_ylim(len(scores) - 0.5, -0.5)
        axes.set_yticks([])
        axes.set_xticks([0, 25, 50, 75, 100])
        axes.set_xlabel("success, %")
        axes.spines["left"].set_visible(True)
        axes.spines["bottom"].set_visible(False)

    return canvas.draw(title, draw, height=2.4)


def pareto_panel(
    title: str, points: Mapping[str, tuple[float, float, float, float]], front: Sequence[int]
) -> Panel:
    """Success of planners against their milliseconds per plan; the first, and those on the Pareto
    front, are named.

    Args:
        points: name -> milliseconds, rate, low and high end of its 95% interval.
        front: places of those on the front among `points`, quickest first.
    """
    names, values = list(points), np.array(list(points.values()), float)
    values[:, 1:] *= 100

    def draw(axes: Axes) -> None:
        for place, (ms, rate, low, high) in enumerate(values):
            colour = THEME["accent" if place in front else "floor"]
            axes.plot([ms, ms], [low, high], color=colour, linewidth=1.2)
            axes.plot(ms, rate, marker="o", markersize=5, color=colour, linestyle="")
        axes.plot(
            values[front, 0],
            values[front, 1],
            color=THEME["accent"],
            linewidth=1.0,
            drawstyle="steps-post",
        )
        for rank, place in enumerate(front, 1):
            axes.annotate(
                str(rank),
                (values[place, 0], values[place, 1]),
                (5, 5),
                textcoords="offset points",
                color=THEME["ink"],
                fontweight="bold",
            )
        axes.annotate(
            names[0],
            (values[0, 0], values[0, 3]),
            (0, 4),
            textcoords="offset points",
            ha="right",
            fontsize=9,
            color=THEME["ink"],
        )
        axes.set_xscale("log")
        canvas.plain_decades(axes.xaxis)
        axes.set_xlabel("ms per plan")
        axes.set_ylim(min(values[:, 2].min() - 3, 95), 101)
        axes.set_ylabel("success, %")
        axes.grid(axis="y", color=THEME["line"], linewidth=0.8)
        key = "\n".join(f"{rank} {names[place]}" for rank, place in enumerate(front, 1))
        axes.text(0, -0.3, key, transform=axes.transAxes, va="top", fontsize=9, color=THEME["ink"])

    return canvas.draw(title, draw, height=3.0 + 0.16 * len(front))


FEW = 30
"""Points of a curve below which they are marked: between them nothing was measured."""


def loss_panels(rows: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """The terms of the loss on logarithmic axes, and what is watched for collapse, from lines of
    metrics.jsonl."""
    labels = {
        "prediction": ("prediction loss", True),
        "sigreg": ("SIGReg", True),
        "latent_std": ("standard deviation of the latents", False),
        "effective_rank": ("effective rank of the latents", False),
        "straightness": ("straightness of held-out paths", False),
    }

    def curve(name: str, title: str, logarithmic: bool) -> Panel:
        def draw(axes: Axes) -> None:
            updates, values = zip(
                *((row["update"], row[name]) for row in rows if name in row), strict=True
            )
            marker = "o" if len(values) < FEW else None
            axes.plot(
                updates, values, color=THEME["accent"], linewidth=1.8, marker=marker, markersize=3
            )
            if logarithmic:
                axes.set_yscale("log")
                canvas.plain_decades(axes.yaxis)
            else:
                axes.set_ylim(bottom=min(0, 1.1 * min(values)))
            axes.set_xlabel("update")
            axes.set_xlim(left=0)
            axes.grid(axis="y", color=THEME["line"], linewidth=0.8)

        return canvas.draw(title, draw)

    return [
        curve(name, *label) for name, label in labels.items() if any(name in row for row in rows)
    ]
