"""The shape of a latent space: how straight its paths, how round its cloud, how far its distances
and its predictions carry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lewm.contracts import Result
from lewm.report import canvas
from lewm.report.canvas import THEME, Panel
from lewm.report.words import (
    Values,
    interval_words,
    listed,
    two_places,
    whole_percent,
    with_interval,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

PAPER = {"paper": 0.6, "paper, PLDM": 0.4}
"""Straightness after training, about, at full size. Source: LeWorldModel, temporal
straightening."""

COLOURS = {"l2": "accent", "temporal": "warm"}


def draw(result: Result) -> list[Panel]:
    """Straightness, over training where it was logged; spectrum; isotropy; costs against offset;
    open-loop error."""
    curve = [_over_training(result)] if result.values["straightness"]["curve"] else []
    return [
        _straightness(result),
        *curve,
        _spectrum(result),
        _isotropy(result),
        _costs(result),
        _open_loop(result),
    ]


def _straightness(result: Result) -> Panel:
    found = result.values["straightness"]
    named = {
        "latents": found,
        "true states": found["states"],
        "pixels": found["pixels"],
        "random encoder": found["random_encoder"],
    }
    rows = [(name, each) for name, each in named.items() if each and each["value"] is not None]

    def draw_on(axes: Axes) -> None:
        for place, (name, each) in enumerate(rows):
            colour = THEME["accent" if name == "latents" else "floor"]
            axes.plot(
                each["interval"], [place, place], color=colour, linewidth=2.4, solid_capstyle="butt"
            )
            axes.plot(each["value"], place, marker="o", markersize=7, color=colour)
            axes.annotate(
                f"{each['value']:.2f}",
                (each["value"], place),
                (0, 8),
                textcoords="offset points",
                ha="center",
                color=THEME["ink"],
                fontweight="bold" if name == "latents" else "normal",
            )
        for name, value in PAPER.items():
            axes.axvline(
                value, color=THEME["muted"], linewidth=0.8, linestyle=(0, (4, 3)), zorder=0
            )
            side, gap = ("left", 0.02) if value == max(PAPER.values()) else ("right", -0.02)
            axes.text(
                value + gap, -0.75, name, ha=side, va="center", fontsize=9, color=THEME["muted"]
            )
        axes.axvline(0, color=THEME["line"], linewidth=0.8, zorder=0)
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(rows) - 0.5, -1)
        axes.set_xlim(min(-0.55, *(each["interval"][0] - 0.1 for _, each in rows)), 1)
        axes.set_xlabel(f"mean cosine of velocities {result.values['gap']} env steps apart")

    return canvas.draw("how straight paths are", draw_on)


def _over_training(result: Result) -> Panel:
    found = result.values["straightness"]
    updates, values = np.array(found["curve"], float).T

    def draw_on(axes: Axes) -> None:
        axes.plot(updates, values, color=THEME["accent"], linewidth=1.8, marker="o", markersize=3)
        if found["value"] is not None:
            last = updates[-1] * 1.03
            axes.plot(
                [last, last],
                found["interval"],
                color=THEME["ink"],
                linewidth=1.6,
                solid_capstyle="butt",
            )
            axes.plot(last, found["value"], color=THEME["ink"], marker="o", markersize=5)
        for name, value in PAPER.items():
            axes.axhline(value, color=THEME["muted"], linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(
                name,
                (0, value),
                (3, 3),
                textcoords="offset points",
                fontsize=9,
                color=THEME["muted"],
                annotation_clip=False,
            )
        axes.set_ylim(min(-0.5, values.min() - 0.05), 0.75)
        axes.set_xlim(left=0)
        axes.set_xlabel("update; at the end all held-out episodes")
        axes.set_ylabel("straightness")
        axes.grid(axis="y", color=THEME["line"], linewidth=0.8)

    return canvas.draw("straightness over training", draw_on)


def _spectrum(result: Result) -> Panel:
    spectrum = result.arrays["spectrum"]
    shown = np.maximum(spectrum, spectrum.max() * 1e-6)

    def draw_on(axes: Axes) -> None:
        axes.plot(range(1, len(shown) + 1), shown, color=THEME["accent"], linewidth=1.8)
        axes.axhline(1, color=THEME["muted"], linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            "isotropic, as SIGReg asks",
            (len(shown), 1),
            (0, 4),
            textcoords="offset points",
            ha="right",
            fontsize=9,
            color=THEME["muted"],
        )
        axes.set_yscale("log")
        axes.set_xlim(1, len(shown))
        canvas.plain_decades(axes.yaxis)
        axes.set_xlabel(
            f"direction, of {len(shown)}; effective rank {result.values['effective_rank']:.1f}"
        )
        axes.set_ylabel("variance")
        axes.grid(axis="y", color=THEME["line"], linewidth=0.8)

    return canvas.draw("variance of the latents by direction", draw_on)


def _isotropy(result: Result) -> Panel:
    found, null = result.values["isotropy"], result.arrays["null"]

    def draw_on(axes: Axes) -> None:
        axes.hist(null, bins=24, color=THEME["floor"], alpha=0.6)
        axes.axvspan(
            found["null_low"], found["null_high"], color=THEME["floor"], alpha=0.25, linewidth=0
        )
        axes.axvline(found["statistic"], color=THEME["accent"], linewidth=2.4)
        beyond = found["statistic"] > null.max()
        axes.annotate(
            f"latents {found['statistic']:.2f}",
            (found["statistic"], 0.96),
            (-5 if beyond else 5, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="right" if beyond else "left",
            va="top",
            fontweight="bold",
            color=THEME["ink"],
        )
        axes.set_xlim(left=0)
        axes.margins(x=0.1)
        axes.set_yticks([])
        axes.set_xlabel(f"SIGReg statistic; grey: Gaussian samples of {found['n']}")

    return canvas.draw("are latents an isotropic Gaussian?", draw_on)


def _costs(result: Result) -> Panel:
    offsets, values = result.arrays["offsets"], result.values

    def draw_on(axes: Axes) -> None:
        # The plateau is the mean of the last quarter, whose middle lies at 7/8.
        axes.plot(
            [0, offsets[-1]],
            [0, 8 / 7],
            color=THEME["muted"],
            linewidth=0.8,
            linestyle=(0, (4, 3)),
            label="even growth",
        )
        for name, found in values["saturation"].items():
            colour, scale = THEME[COLOURS[name]], found["plateau"]
            low, mean, high = (
                result.arrays[f"{name}_{which}"] / scale for which in ("low", "mean", "high")
            )
            axes.fill_between(offsets, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(
                offsets,
                mean,
                color=colour,
                linewidth=1.8,
                label=_label(name, values["ranks"][name]),
            )
            reached = offsets.tolist().index(found["offset"])
            axes.plot(found["offset"], mean[reached], color=colour, marker="o", markersize=6)
        axes.set_xlim(0, offsets[-1] * 1.02)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("env steps between two frames; dot: 90%")
        axes.set_ylabel("mean cost / plateau")
        axes.grid(axis="y", color=THEME["line"], linewidth=0.8)
        axes.legend(frameon=False, fontsize=9, labelcolor=THEME["ink"], loc="lower right")

    return canvas.draw("does the cost grow with the way?", draw_on)


def _label(name: str, ranks: dict[str, Any]) -> str:
    known = [(offset, found["rho"]) for offset, found in ranks.items() if found["rho"] is not None]
    return (
        f"{name}, \N{GREEK SMALL LETTER RHO} {known[-1][1]:.2f} up to {known[-1][0]} steps"
        if known
        else name
    )


def _open_loop(result: Result) -> Panel:
    found = result.values["open_loop"]
    blocks = np.array([int(block) for block in found])
    lines = {
        "prediction": ("error", "interval", "accent"),
        "no change": ("copy", "copy_interval", "floor"),
    }

    def draw_on(axes: Axes) -> None:
        for name, (mean, interval, colour) in lines.items():
            low, high = np.array([each[interval] for each in found.values()]).T
            axes.fill_between(blocks, low, high, color=THEME[colour], alpha=0.22, linewidth=0)
            axes.plot(
                blocks,
                [each[mean] for each in found.values()],
                color=THEME[colour],
                linewidth=1.8,
                marker="o",
                markersize=3,
            )
            axes.annotate(
                name,
                (blocks[len(blocks) // 2], found[str(blocks[len(blocks) // 2])][mean]),
                (-4, 8),
                textcoords="offset points",
                ha="right",
                color=THEME["ink"],
            )
        scale = found["1"]["random"]
        axes.axhline(scale, color=THEME["muted"], linewidth=0.8, linestyle=(0, (4, 3)))
        axes.annotate(
            "two frames of different episodes",
            (blocks[0], scale),
            (0, 4),
            textcoords="offset points",
            fontsize=9,
            color=THEME["muted"],
        )
        axes.set_ylim(0, 1.15 * max(scale, *(each["copy_interval"][1] for each in found.values())))
        axes.set_xticks(blocks)
        axes.set_xlabel(f"blocks of {result.values['gap']} env steps ahead")
        axes.set_ylabel("mean squared error")
        axes.grid(axis="y", color=THEME["line"], linewidth=0.8)

    return canvas.draw("open-loop prediction", draw_on)


def _straight(values: Values) -> list[str]:
    found = values["straightness"]
    rivals = {
        "of an encoder with random weights": "random_encoder",
        "of the pixels": "pixels",
        "of the true states": "states",
    }
    beside = [
        f"{found[key]['value']:.2f} {words}" for words, key in rivals.items() if found.get(key)
    ]
    own = f"{found['value']:.2f} ({interval_words(found['interval'], two_places)})"
    return [
        f"The straightness of its paths is {own}, 1 being a straight line"
        + f"; {listed(beside)}." * bool(beside)
    ]


def _straightened(values: Values) -> list[str]:
    (_, before), (update, after) = (
        values["straightness"]["curve"][0],
        values["straightness"]["curve"][-1],
    )
    return [f"Over {update:,} updates of training it went from {before:.2f} to {after:.2f}."]


def _gaussian(values: Values) -> list[str]:
    found = values["isotropy"]
    inside = found["null_low"] <= found["statistic"] <= found["null_high"]
    verdict = (
        "no sign that the cloud is not Gaussian" if inside else "the cloud is not quite Gaussian"
    )
    null = f"{found['null_low']:.2f} to {found['null_high']:.2f}"
    return [
        (
            f"The SIGReg statistic is {found['statistic']:.2f}, of Gaussian samples of that size "
            f"{null}: {verdict}."
        )
    ]


def _dimensions(values: Values) -> list[str]:
    rank, directions = f"{values['effective_rank']:.1f}", values["dims_99"]
    return [
        (
            f"Of {values['latent_dim']} dimensions {rank} are in use (effective rank); "
            f"{directions} hold 99% of the variance."
        )
    ]


def _saturates(values: Values) -> list[str]:
    names = {"l2": "Distance in latent space", "temporal": "The fitted temporal distance"}
    return [
        f"{names.get(cost, cost)} comes to 90% of its plateau {found['offset']:.0f} env steps "
        f"from the goal, where even growth would after {found['linear']:.0f}."
        for cost, found in values["saturation"].items()
    ]


def _along_actions(values: Values) -> list[str]:
    loop = values["open_loop"]
    last = list(loop)[-1]
    share = whole_percent(loop[last]["error"] / max(loop[last]["copy"], 1e-12))
    worse = values.get("open_loop_not_better_from")
    told = (
        f"Along recorded actions, {last} blocks ahead, the squared error is {share} of that of "
        "predicting no change"
    )
    return [
        told + ("." if worse is None else f"; from block {worse} on it is not shown to be less.")
    ]


def _geometry_headline(values: Values) -> dict[str, str]:
    straight, found = values["straightness"], values["isotropy"]
    return {
        "straightness": with_interval(straight["value"], straight["interval"], two_places),
        "effective rank": f"{values['effective_rank']:.1f} of {values['latent_dim']}",
        "SIGReg statistic (if Gaussian)": (
            f"{found['statistic']:.2f} ({found['null_low']:.2f} to {found['null_high']:.2f})"
        ),
    }


SENTENCES = (_straight, _straightened, _gaussian, _dimensions, _saturates, _along_actions)
HEADLINES = (_geometry_headline,)
