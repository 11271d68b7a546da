"""How often goals are reached, what that costs, and whether what was imagined came true."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lewm.analyses.planning import Places, PlanningResult
from lewm.report import canvas
from lewm.report.animation import Clip, View, draw_episode, encode_animation
from lewm.report.canvas import THEME, Panel
from lewm.report.words import interval_words, whole_percent, with_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["clips", "draw"]

TITLE, ORDER = "Plans, imagined and carried out", 10

WAYS = 16
"""Plans that are drawn into one picture; more of them hide each other."""


def draw(result: PlanningResult) -> list[Panel]:
    """What plans were imagined to do beside what they did; the recorded attempts are `clips`."""
    drawn = [_horizon_panel(result)]
    if result.imagined is not None and result.real is not None:
        drawn.append(_ways_panel(result, result.imagined[:WAYS], result.real[:WAYS]))
    if result.map is not None:
        drawn.append(_map_panel(result, result.map))
    if result.rounds > 1:
        drawn.append(_search_panel(result))
    return drawn


def _horizon_panel(result: PlanningResult) -> Panel:
    rows = result.horizon
    steps, ratio = [row.steps for row in rows], [100 * row.ratio for row in rows]
    low, high = 100 * np.transpose([row.ratio_interval for row in rows])

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


def _ways_panel(result: PlanningResult, imagined: np.ndarray, real: np.ndarray) -> Panel:
    extent, unit = result.picture_extent, result.unit
    assert extent is not None, "places lie in a picture"

    def draw(axes: Axes) -> None:
        for way, course in zip(imagined, real, strict=True):
            axes.plot(*course.T, color=THEME["accent"], linewidth=1.6)
            axes.plot(*way.T, color=THEME["warm"], linewidth=1.0, marker="o", markersize=3)
            axes.plot(*course[0], color=THEME["ink"], marker="o", markersize=3.5)
        axes.grid(color=THEME["line"], linewidth=0.8)
        key = (("start", "ink"), ("imagined", "warm"), ("real", "accent"))
        _as_the_picture(axes, extent, unit, key)

    return canvas.draw(f"{len(real)} plans, imagined and carried out", draw, height=3.6)


def _map_panel(result: PlanningResult, found: Places) -> Panel:
    """Places and edges of the map, and one way over it."""
    from matplotlib.collections import LineCollection

    extent, unit = result.picture_extent, result.unit
    assert extent is not None, "places lie in a picture"

    def draw(axes: Axes) -> None:
        both_ways = np.unique(np.sort(found.links, axis=1), axis=0)
        edges = LineCollection(
            list(found.places[both_ways]), colors=THEME["floor"], linewidths=0.5, alpha=0.25
        )
        edges.set_rasterized(True)
        axes.add_collection(edges)
        axes.plot(*found.places.T, color=THEME["accent"], marker="o", markersize=2.4, linestyle="")
        if len(found.way):
            axes.plot(*found.way.T, color=THEME["warm"], linewidth=2.0, marker="o", markersize=4.5)
            axes.plot(*found.way[0], color=THEME["ink"], marker="o", markersize=6)
            axes.plot(*found.way[-1], color=THEME["ink"], marker="x", markersize=8)
        key = (
            ("\u25cf place", "accent"),
            ("\u2013 trusted", "muted"),
            ("\u25cf way", "warm"),
            ("\u25cf start", "ink"),
            ("\u00d7 goal", "ink"),
        )
        _as_the_picture(axes, extent, unit, key)

    title = f"the map that plans go by: {len(found.places)} stored latents"
    return canvas.draw(title, draw, height=3.6)


def _as_the_picture(axes: Axes, extent: float, unit: str, key: Sequence[tuple[str, str]]) -> None:
    """Let places lie as they do in the picture, and say beside it what is what: words and colours
    of the theme."""
    axes.set_xlim(0, extent)
    axes.set_ylim(extent, 0)  # down
    axes.set_aspect("equal")
    axes.set_xlabel(f"x, {unit}")
    axes.set_ylabel(f"y, {unit}")
    for place, (words, colour) in enumerate(key):
        axes.text(
            1.03,
            0.98 - 0.09 * place,
            words,
            transform=axes.transAxes,
            va="top",
            color=THEME[colour],
        )


def _search_panel(result: PlanningResult) -> Panel:
    from matplotlib.ticker import MaxNLocator

    low, middle, high = np.median(result.costs, axis=0).T
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


def clips(result: PlanningResult, most: int | None = None) -> list[Clip]:
    """The recorded attempts as animations; at most so many, evenly spaced."""
    view = None
    if result.picture_extent is not None and result.tolerance is not None:
        view = View(np.asarray, result.picture_extent, result.tolerance)
    pairs = list(zip(result.recordings, result.attempts, strict=True))
    count = min(most or len(pairs), len(pairs))
    chosen = np.unique(np.linspace(0, len(pairs) - 1, count).round().astype(int))
    regions = {True: "into the other room, ", False: "within one room, ", None: ""}
    drawn = []
    for recording, attempt in (pairs[k] for k in chosen):
        frames = draw_episode(recording, result.budget, view)
        steps = f"{attempt.steps} steps" + ("" if attempt.reached else " were not enough")
        moving, still = (encode_animation(some, ".webp") for some in (frames, frames[-1:]))
        drawn.append(
            Clip(
                regions[attempt.other_region] + steps,
                attempt.reached,
                moving,
                still,
                places=result.picture_extent is not None,
                searches=result.rounds > 1,
            )
        )
    return drawn


# ------------------------------------------------------------------------------------------- words


def sentences(result: PlanningResult) -> list[str]:
    """How far off the end of a plan was."""
    last = result.horizon[-1]
    told = [
        f"From each of {result.pairs} held-out pictures the agent made a plan. It carried the plan "
        "out to its end without looking.",
        f"After {last.steps} steps the imagined latent was off by {whole_percent(last.ratio)} of "
        "how far the latent had moved "
        f"({interval_words(last.ratio_interval, whole_percent)}).",
    ]
    if last.place_error is not None and last.place_error_interval is not None:
        interval = interval_words(last.place_error_interval, "{:.1f}".format)
        told.append(
            f"In the world it was off by {last.place_error:.1f} {result.unit} "
            f"({interval} {result.unit})."
        )
    return [
        *told,
        "A plan is chosen for where it is imagined to end. So errors matter most there.",
    ]


def headlines(result: PlanningResult) -> dict[str, str]:
    """How far off the end of a plan was."""
    last = result.horizon[-1]
    return {
        f"imagined off after {last.steps} steps, of the change": with_interval(
            last.ratio, last.ratio_interval, whole_percent
        )
    }
