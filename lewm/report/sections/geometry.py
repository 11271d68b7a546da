"""The shape of a latent space: how straight its paths, how round its cloud, how far its distances
and its predictions carry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from lewm.analyses.geometry import GeometryResult, Rank, Straightness, StraightPaths
from lewm.report import canvas
from lewm.report.canvas import THEME, Panel
from lewm.report.verdicts import FAILS, HOLDS, PARTLY, UNTESTED, Evidence, Finding, spanned
from lewm.report.words import (
    interval_words,
    listed,
    two_places,
    whole_percent,
    with_interval,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

TITLE, ORDER = "The shape of the latents", 40

PAPER = {"paper": 0.6, "paper, PLDM": 0.4}
"""Straightness after training, about, at full size. Source: LeWorldModel, temporal
straightening."""

COLOURS = {"l2": "accent", "temporal": "warm"}


def draw(result: GeometryResult) -> list[Panel]:
    """Straightness, over training where it was logged; spectrum; isotropy; costs against offset;
    open-loop error."""
    curve = [_over_training(result)] if result.straightness.curve else []
    return [
        _straightness(result),
        *curve,
        _spectrum(result),
        _isotropy(result),
        _costs(result),
        _open_loop(result),
    ]


def _straightness(result: GeometryResult) -> Panel:
    found = result.straightness
    named: dict[str, Straightness | None] = {
        "latents": found,
        "true states": found.states,
        "pixels": found.pixels,
        "random encoder": found.random_encoder,
    }
    rows = [
        (name, each.value, each.interval)
        for name, each in named.items()
        if each and each.value is not None and each.interval is not None
    ]

    def draw_on(axes: Axes) -> None:
        for place, (name, value, interval) in enumerate(rows):
            colour = THEME["accent" if name == "latents" else "floor"]
            axes.plot(interval, [place, place], color=colour, linewidth=2.4, solid_capstyle="butt")
            axes.plot(value, place, marker="o", markersize=7, color=colour)
            axes.annotate(
                f"{value:.2f}",
                (value, place),
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
        axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(rows) - 0.5, -1)
        axes.set_xlim(min(-0.55, *(interval[0] - 0.1 for *_, interval in rows)), 1)
        axes.set_xlabel(f"mean cosine of velocities {result.gap} env steps apart")

    return canvas.draw("how straight paths are", draw_on)


def _over_training(result: GeometryResult) -> Panel:
    found = result.straightness
    updates, values = np.array(found.curve, float).T

    def draw_on(axes: Axes) -> None:
        axes.plot(updates, values, color=THEME["accent"], linewidth=1.8, marker="o", markersize=3)
        if found.value is not None and found.interval is not None:
            last = updates[-1] * 1.03
            axes.plot(
                [last, last],
                found.interval,
                color=THEME["ink"],
                linewidth=1.6,
                solid_capstyle="butt",
            )
            axes.plot(last, found.value, color=THEME["ink"], marker="o", markersize=5)
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


def _spectrum(result: GeometryResult) -> Panel:
    spectrum = result.spectrum
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
        axes.set_xlabel(f"direction, of {len(shown)}; effective rank {result.effective_rank:.1f}")
        axes.set_ylabel("variance")
        axes.grid(axis="y", color=THEME["line"], linewidth=0.8)

    return canvas.draw("variance of the latents by direction", draw_on)


def _isotropy(result: GeometryResult) -> Panel:
    found, null = result.isotropy, result.null

    def draw_on(axes: Axes) -> None:
        axes.hist(null, bins=24, color=THEME["floor"], alpha=0.6)
        axes.axvspan(found.null_low, found.null_high, color=THEME["floor"], alpha=0.25, linewidth=0)
        axes.axvline(found.statistic, color=THEME["accent"], linewidth=2.4)
        beyond = found.statistic > null.max()
        axes.annotate(
            f"latents {found.statistic:.2f}",
            (found.statistic, 0.96),
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
        axes.set_xlabel(f"SIGReg statistic; grey: Gaussian samples of {found.n}")

    return canvas.draw("are latents an isotropic Gaussian?", draw_on)


def _costs(result: GeometryResult) -> Panel:
    offsets = result.offsets

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
        for name, found in result.saturation.items():
            colour, band = THEME[COLOURS[name]], result.costs[name]
            low, mean, high = (of / found.plateau for of in (band.low, band.mean, band.high))
            axes.fill_between(offsets, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(
                offsets,
                mean,
                color=colour,
                linewidth=1.8,
                label=_label(name, result.ranks[name]),
            )
            reached = offsets.tolist().index(found.offset)
            axes.plot(found.offset, mean[reached], color=colour, marker="o", markersize=6)
        axes.set_xlim(0, offsets[-1] * 1.02)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("env steps between two frames; dot: 90%")
        axes.set_ylabel("mean cost / plateau")
        axes.grid(axis="y", color=THEME["line"], linewidth=0.8)
        axes.legend(frameon=False, fontsize=9, labelcolor=THEME["ink"], loc="lower right")

    return canvas.draw("does the cost grow with the way?", draw_on)


def _label(name: str, ranks: Mapping[str, Rank]) -> str:
    known = [(offset, found.rho) for offset, found in ranks.items() if found.rho is not None]
    return (
        f"{name}, \N{GREEK SMALL LETTER RHO} {known[-1][1]:.2f} up to {known[-1][0]} steps"
        if known
        else name
    )


def _open_loop(result: GeometryResult) -> Panel:
    found = list(result.open_loop.values())
    blocks, middle = np.array([int(block) for block in result.open_loop]), len(found) // 2
    lines = {
        "prediction": ([f.error for f in found], [f.interval for f in found], "accent"),
        "no change": ([f.copy for f in found], [f.copy_interval for f in found], "floor"),
    }

    def draw_on(axes: Axes) -> None:
        for name, (means, intervals, colour) in lines.items():
            low, high = np.transpose(intervals)
            axes.fill_between(blocks, low, high, color=THEME[colour], alpha=0.22, linewidth=0)
            axes.plot(
                blocks,
                means,
                color=THEME[colour],
                linewidth=1.8,
                marker="o",
                markersize=3,
            )
            axes.annotate(
                name,
                (blocks[middle], means[middle]),
                (-4, 8),
                textcoords="offset points",
                ha="right",
                color=THEME["ink"],
            )
        scale = found[0].random
        axes.axhline(scale, color=THEME["muted"], linewidth=0.8, linestyle=(0, (4, 3)))
        axes.annotate(
            "two frames of different episodes",
            (blocks[0], scale),
            (0, 4),
            textcoords="offset points",
            fontsize=9,
            color=THEME["muted"],
        )
        axes.set_ylim(0, 1.15 * max(scale, *(each.copy_interval[1] for each in found)))
        axes.set_xticks(blocks)
        axes.set_xlabel(f"blocks of {result.gap} env steps ahead")
        axes.set_ylabel("mean squared error")
        axes.grid(axis="y", color=THEME["line"], linewidth=0.8)

    return canvas.draw("open-loop prediction", draw_on)


# ------------------------------------------------------------------------------------------- words


def sentences(result: GeometryResult) -> list[str]:
    """Straightness, and how it came; the cloud; how far costs and predictions carry."""
    found = result.isotropy
    verdict = (
        "no sign that the cloud is not Gaussian"
        if found.inside
        else "the cloud is not quite Gaussian"
    )
    return [
        *_straight(result.straightness),
        f"The SIGReg statistic of the latents is {found.statistic:.2f}.",
        f"Gaussian samples of that size have {found.null_low:.2f} to {found.null_high:.2f}: "
        f"{verdict}.",
        f"The effective rank is {result.effective_rank:.1f} of {result.latent_dim} dimensions.",
        f"{result.dims_99} directions hold 99% of the variance.",
        *(
            f"{COST_WORDS.get(cost, cost)} comes to 90% of its plateau {found.offset} env steps "
            f"from the goal. Even growth would reach it after {found.linear}."
            for cost, found in result.saturation.items()
        ),
        *_along_actions(result),
    ]


COST_WORDS = {"l2": "Distance in latent space", "temporal": "The fitted temporal distance"}


def _straight(found: StraightPaths) -> list[str]:
    if found.value is None or found.interval is None:
        return ["Its paths have no straightness: in latent space nothing moved."]
    rivals = {
        "of an encoder with random weights": found.random_encoder,
        "of the pixels": found.pixels,
        "of the true states": found.states,
    }
    beside = [
        f"{rival.value:.2f} {words}"
        for words, rival in rivals.items()
        if rival and rival.value is not None
    ]
    own = f"{found.value:.2f} ({interval_words(found.interval, two_places)})"
    told = [f"The straightness of its paths is {own}.", "A straight line has 1."]
    if beside:
        told.append(f"For comparison: {listed(beside)}.")
    if found.curve:
        (_, before), (update, after) = found.curve[0], found.curve[-1]
        told.append(
            f"Over {update:,} updates of training it went from {before:.2f} to {after:.2f}."
        )
    return told


def _along_actions(result: GeometryResult) -> list[str]:
    last, found = list(result.open_loop.items())[-1]
    share = whole_percent(found.error / max(found.copy, 1e-12))
    worse = result.open_loop_not_better_from
    told = [
        f"Along recorded actions, {last} blocks ahead, the squared error is {share} of that of "
        "predicting no change."
    ]
    if worse is not None:
        told.append(f"From block {worse} on it is not shown to be less.")
    return told


def headlines(result: GeometryResult) -> dict[str, str]:
    """Straightness, spread, and how Gaussian the cloud is."""
    straight, found, told = result.straightness, result.isotropy, {}
    if straight.value is not None and straight.interval is not None:
        told["straightness"] = with_interval(straight.value, straight.interval, two_places)
    return told | {
        "effective rank": f"{result.effective_rank:.1f} of {result.latent_dim}",
        "SIGReg statistic (if Gaussian)": (
            f"{found.statistic:.2f} ({found.null_low:.2f} to {found.null_high:.2f})"
        ),
    }


# ------------------------------------------------------------------------------------------ claims


def straightening(evidence: Evidence) -> Finding | None:
    """Latent paths straighten during training."""
    if not (answers := evidence.answers(GeometryResult)):
        return None
    told, rises = [], []
    for world, results in answers.items():
        found = [result.straightness for result in results]
        final = ", ".join(
            "-"
            if s.value is None or s.interval is None
            else f"{s.value:.2f} [{s.interval[0]:.2f}, {s.interval[1]:.2f}]"
            for s in found
        )
        curves = [[value for _, value in s.curve] for s in found if s.curve]
        rises += [curve[-1] > curve[0] for curve in curves]
        ends = [", ".join(f"{curve[end]:.2f}" for curve in curves) for end in (0, -1)]
        path = f", while training from {' to '.join(ends)}" if curves else ""
        controls = [s.random_encoder.value for s in found if s.random_encoder]
        random = [value for value in controls if value is not None]
        told.append(
            f"{world}: {final}{path}"
            + (f", random encoder {spanned(random, '.2f')}" if random else "")
        )
    verdict = PARTLY if rises and all(rises) else FAILS if rises else UNTESTED
    standings = evidence.standings("two-room")
    straight = {name: one.middle("straightness") for name, one in standings.items()}
    rivals = {name: value for name, value in straight.items() if name.startswith("pldm") and value}
    ours, than_pldm = straight.get("lewm"), "PLDM was not run."
    if ours is not None and rivals:
        told.append(
            f"two-room beside PLDM, same data: LeWM {ours:.2f}, "
            + ", ".join(f"{name} {value:.2f}" for name, value in rivals.items())
        )
        if straighter := [name for name, value in rivals.items() if value > ours]:
            verdict = FAILS if len(straighter) == len(rivals) else verdict
            than_pldm = f"More than PLDM's: not so for {', '.join(straighter)}."
        else:
            verdict = HOLDS if verdict == PARTLY else verdict
            than_pldm = "They are straighter than PLDM's, with each of its published weights."
    why = (
        "Mean cosine of consecutive latent velocities, frames one action block apart, held-out "
        "episodes. It rises while training; how far depends on how straight the recorded paths "
        f"are (docs/log). {than_pldm}"
    )
    return Finding("; ".join(told), verdict, why)


def compounding(evidence: Evidence) -> Finding | None:
    """Open-loop rollouts compound error."""
    if not (answers := evidence.answers(GeometryResult)):
        return None
    told, grows = [], []
    for world, results in answers.items():
        blocks = [result.open_loop for result in results]
        near, far = (end(blocks[0], key=int) for end in (min, max))
        first, last = ([b[key].error / b[key].random for b in blocks] for key in (near, far))
        grows += [b > a for a, b in zip(first, last, strict=True)]
        told.append(
            f"{world}: {spanned(first, '.1%')} after 1 block, {spanned(last, '.1%')} after {far}"
        )
    for table in evidence.benchmarks.get("plan", {}).get("results", ()):
        rows = [row for row in table["rows"] if row["planner"].startswith("paper")]
        told.append(
            f"{table['world']}, success of the paper's search: "
            + ", ".join(f"{row['task']} {row['rate']:.1%}" for row in rows)
        )
    why = (
        "Open-loop squared error as a share of the distance of two unrelated frames. It "
        "compounds; that long horizons fail *because* of it does not follow: in Two-Room the "
        "same model reaches them with another objective (12)."
    )
    return Finding("; ".join(told), PARTLY if all(grows) else FAILS, why)


JUDGES = {15: straightening, 17: compounding}
