"""How often goals are reached, what that costs, and whether what was imagined came true."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lewm.contracts import Result
from lewm.report import canvas
from lewm.report.canvas import THEME, Panel
from lewm.report.words import Values, interval_words, whole_percent, with_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

WAYS = 16
"""Plans that are drawn into one picture; more of them hide each other."""


def draw(result: Result) -> list[Panel]:
    """What plans were imagined to do beside what they did. The recorded attempts are animations,
    which `animation` draws."""
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
        axes.text(
            steps[-1],
            97,
            "as if nothing changed",
            ha="right",
            va="top",
            fontsize=9,
            color=THEME["muted"],
        )
        axes.set_ylim(0, max(108, 1.05 * high.max()))
        axes.set_xlim(0, 1.04 * steps[-1])
        axes.set_xticks([0, *steps])
        axes.set_xlabel("env steps into the plan")
        axes.set_ylabel("latent error, % of change")
        axes.grid(axis="y", color=THEME["line"], linewidth=0.8)

    return canvas.draw("imagined latents against real ones", draw, height=3.6)


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
        for place, (words, colour) in enumerate(
            (("start", "ink"), ("imagined", "warm"), ("real", "accent"))
        ):
            axes.text(
                1.03,
                0.98 - 0.09 * place,
                words,
                transform=axes.transAxes,
                va="top",
                color=THEME[colour],
            )

    return canvas.draw(f"{len(real)} plans, imagined and carried out", draw, height=3.6)


def _search_panel(result: Result) -> Panel:
    from matplotlib.ticker import MaxNLocator

    low, middle, high = np.median(result.arrays["costs"], axis=0).T
    rounds = np.arange(1, len(middle) + 1)

    def draw(axes: Axes) -> None:
        axes.fill_between(
            rounds,
            low,
            high,
            color=THEME["accent"],
            alpha=0.18,
            linewidth=0,
            label="10th to 90th percentile",
        )
        axes.plot(
            rounds,
            middle,
            color=THEME["accent"],
            linewidth=1.8,
            marker="o",
            markersize=4,
            label="median candidate",
        )
        axes.set_ylim(bottom=0)
        axes.set_xlabel("round of the search")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel("cost, first median = 1")
        axes.grid(axis="y", color=THEME["line"], linewidth=0.8)
        axes.legend(frameon=False, fontsize=9, labelcolor=THEME["muted"])

    return canvas.draw("candidates narrow from round to round", draw, height=3.6)


def _imagined_end(values: Values) -> list[str]:
    last = values["horizon"][-1]
    off = (
        f"{whole_percent(last['ratio'])} of how far the latent had moved "
        f"({interval_words(last['ratio_interval'], whole_percent)})"
    )
    if "place_error" in last:
        unit, interval = (
            values["unit"],
            interval_words(last["place_error_interval"], "{:.1f}".format),
        )
        off += f", or by {last['place_error']:.1f} {unit} in the world ({interval} {unit})"
    return [
        (
            f"From {values['pairs']} held-out pictures the agent made a plan, and carried it out "
            "to its end without looking."
        ),
        f"After {last['steps']} steps the imagined latent was off by {off}.",
        (
            "A plan is chosen for where it is imagined to end, so this is where a model's errors "
            "matter most."
        ),
    ]


def _planning_headline(values: Values) -> dict[str, str]:
    last = values["horizon"][-1]
    return {
        f"imagined off after {last['steps']} steps, of the change": with_interval(
            last["ratio"], last["ratio_interval"], whole_percent
        )
    }


SENTENCES = (_imagined_end,)
HEADLINES = (_planning_headline,)
