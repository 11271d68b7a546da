"""How often goals are reached, what that costs, and whether what was imagined came true."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lewm import panels
from lewm.contracts import Result
from lewm.panels import THEME, Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw", "pareto_panel", "success_panel"]

WAYS = 16
"""Plans that are drawn into one picture; more of them hide each other."""


def draw(result: Result) -> list[Panel]:
    """What plans were imagined to do beside what they did. The recorded attempts are animations, which `animation` draws."""
    drawn = [_horizon_panel(result)]
    if "imagined" in result.arrays:
        drawn.append(_ways_panel(result))
    if result.arrays["costs"].shape[1] > 1:
        drawn.append(_search_panel(result))
    return drawn


def _horizon_panel(result: Result) -> Panel:
    rows = result.values["horizon"]
    steps, ratio = [row["steps"] for row in rows], [100 * row["ratio"] for row in rows]
    low, high = (100 * np.array([row["ratio_interval"][end] for row in rows]) for end in (0, 1))

    def draw(axes: Axes) -> None:
        axes.fill_between(steps, low, high, color=THEME["accent"], alpha=0.18, linewidth=0)
        axes.plot(steps, ratio, color=THEME["accent"], linewidth=1.8, marker="o", markersize=5)
        axes.axhline(100, color=THEME["muted"], linewidth=1, linestyle=(0, (4, 3)))
        axes.text(steps[-1], 97, "as if nothing changed", ha="right", va="top", fontsize=9, color=THEME["muted"])
        axes.set_ylim(0, max(108, 1.05 * high.max()))
        axes.set_xlim(0, 1.04 * steps[-1])
        axes.set_xticks([0, *steps])
        axes.set_xlabel("env steps into the plan")
        axes.set_ylabel("latent error, % of change")
        axes.grid(axis="y", color=THEME["line"], linewidth=0.8)

    return panels.draw("imagined latents against real ones", draw, height=3.6)


def _ways_panel(result: Result) -> Panel:
    imagined, real = (result.arrays[name][:WAYS] for name in ("imagined", "real"))
    extent, unit = result.values["picture_extent"], result.values["unit"]

    def draw(axes: Axes) -> None:
        for way, course in zip(imagined, real, strict=True):
            axes.plot(*course.T, color=THEME["accent"], linewidth=1.6)
            axes.plot(*way.T, color=THEME["warm"], linewidth=1.0, marker="o", markersize=3)
            axes.plot(*course[0], color=THEME["ink"], marker="o", markersize=3.5)
        axes.set_xlim(0, extent)
        axes.set_ylim(extent, 0)  # down, as in the picture
        axes.set_aspect("equal")
        axes.set_xlabel(f"x, {unit}")
        axes.set_ylabel(f"y, {unit}")
        axes.grid(color=THEME["line"], linewidth=0.8)
        for place, (words, colour) in enumerate((("start", "ink"), ("imagined", "warm"), ("real", "accent"))):
            axes.text(1.03, 0.98 - 0.09 * place, words, transform=axes.transAxes, va="top", color=THEME[colour])

    return panels.draw(f"{len(real)} plans, imagined and carried out", draw, height=3.6)


def _search_panel(result: Result) -> Panel:
    from matplotlib.ticker import MaxNLocator

    low, middle, high = np.median(result.arrays["costs"], axis=0).T
    rounds = np.arange(1, len(middle) + 1)

    def draw(axes: Axes) -> None:
        axes.fill_between(rounds, low, high, color=THEME["accent"], alpha=0.18, linewidth=0, label="10th to 90th percentile")
        axes.plot(rounds, middle, color=THEME["accent"], linewidth=1.8, marker="o", markersize=4, label="median candidate")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("round of the search")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel("cost, first median = 1")
        axes.grid(axis="y", color=THEME["line"], linewidth=0.8)
        axes.legend(frameon=False, fontsize=9, labelcolor=THEME["muted"])

    return panels.draw("candidates narrow from round to round", draw, height=3.6)


def success_panel(title: str, scores: Mapping[str, Mapping[str, float]]) -> Panel:
    """Success rates with their 95% intervals, one bar each; the first is the agent's, the others are floors.

    Args:
        scores: name -> `rate`, `low` and `high`, as in `evaluation.Score`.
    """

    def draw(axes: Axes) -> None:
        for place, (name, score) in enumerate(scores.items()):
            rate, low, high = (100 * score[key] for key in ("rate", "low", "high"))
            axes.barh(place, rate, height=0.56, color=THEME["accent" if place == 0 else "floor"])
            axes.plot([low, high], [place, place], color=THEME["ink"], linewidth=1.6, solid_capstyle="butt")
            axes.plot([low, high], [place, place], color=THEME["ink"], marker="|", markersize=8, linestyle="")
            weight = "bold" if place == 0 else "normal"
            axes.text(-2, place, name, ha="right", va="center", fontweight=weight, color=THEME["ink"])
            axes.text(
                104,
                place,
                f"{rate:.1f}".removesuffix(".0") + "%",
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

    return panels.draw(title, draw, height=2.4)


def pareto_panel(title: str, points: Mapping[str, tuple[float, float, float, float]], front: Sequence[int]) -> Panel:
    """Success of planners against their milliseconds per plan; the first, and those on the Pareto front, are named.

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
        axes.plot(values[front, 0], values[front, 1], color=THEME["accent"], linewidth=1.0, drawstyle="steps-post")
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
        panels.plain_decades(axes.xaxis)
        axes.set_xlabel("ms per plan")
        axes.set_ylim(min(values[:, 2].min() - 3, 95), 101)
        axes.set_ylabel("success, %")
        axes.grid(axis="y", color=THEME["line"], linewidth=0.8)
        key = "\n".join(f"{rank} {names[place]}" for rank, place in enumerate(front, 1))
        axes.text(0, -0.3, key, transform=axes.transAxes, va="top", fontsize=9, color=THEME["ink"])

    return panels.draw(title, draw, height=3.0 + 0.16 * len(front))
