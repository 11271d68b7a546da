"""What a model is surprised by: prediction errors around an edit, episode by episode, and as a
detector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lewm.analyses.surprise import Edited, SurpriseResult
from lewm.report import canvas
from lewm.report.canvas import THEME, Panel
from lewm.report.verdicts import FAILS, HOLDS, PARTLY, Evidence, Finding, spanned
from lewm.report.words import two_places, whole_percent, with_interval
from lewm.stats import p_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

TITLE, ORDER = "Is it surprised by the impossible?", 30

COLOURS = {"unperturbed": "muted", "teleport": "accent", "colour": "warm"}  # by kind of edit
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))  # by number among its kind


def draw(surprise: SurpriseResult) -> list[Panel]:
    """Surprise over time, of every episode at the edit, and what a threshold on it would find."""
    names, edits, n = surprise.conditions, surprise.edits, surprise.episodes
    at = int(np.flatnonzero(surprise.frames == 0)[0])
    # a surprise of 0, as a perfect model has it, has no place on such a scale
    logarithmic = bool((surprise.mean > 0).all())
    styles = _styles(names, {name: edit.kind for name, edit in edits.items()})

    def over_time(axes: Axes) -> None:
        axes.axvline(0, color=THEME["line"], linewidth=8, zorder=0)
        axes.annotate(
            "edit",
            (0, 1),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="bottom",
            color=THEME["muted"],
        )
        for c, name in enumerate(names):
            shown = slice(0 if c == 0 else max(at - 1, 0), None)  # before the edit all are one
            frames, style = surprise.frames[shown], styles[name]
            low, high = surprise.low[c, shown], surprise.high[c, shown]
            axes.fill_between(frames, low, high, color=style["color"], alpha=0.2, linewidth=0)
            axes.plot(frames, surprise.mean[c, shown], label=name, **style)
        if logarithmic:
            axes.set_yscale("log")
            canvas.plain_decades(axes.yaxis)
        axes.grid(axis="y", color=THEME["line"], linewidth=0.8)
        axes.set_xlabel(f"frames since the edit, {surprise.frameskip} env steps apart")
        axes.set_ylabel("surprise")
        _legend(axes)

    def by_episode(axes: Axes) -> None:
        for c, name in enumerate(names):
            colour, row = styles[name]["color"], len(names) - 1 - c
            # All marks in one path, which is light and has the colours of the page.
            x = np.repeat(surprise.surprise[c, :, at], 3)
            y = np.tile([row - 0.3, row + 0.1, np.nan], n)
            axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.6)
            axes.plot(
                [surprise.low[c, at], surprise.high[c, at]],
                [row + 0.27] * 2,
                color=colour,
                linewidth=2.5,
            )
            axes.plot(surprise.mean[c, at], row + 0.27, "o", color=colour, markersize=5.5)
        if logarithmic:
            axes.set_xscale("log")
            canvas.plain_decades(axes.xaxis)
        axes.grid(axis="x", color=THEME["line"], linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_yticks(range(len(names)), [name.replace(" of ", "\nof ") for name in names[::-1]])
        axes.tick_params(axis="y", length=0, labelsize=10)
        axes.set_xlabel("surprise at the edit")

    def detector(title: str, curves: np.ndarray, areas: dict[str, float], others: str) -> Panel:
        def draw_on(axes: Axes) -> None:
            axes.plot([0, 1], [0, 1], color=THEME["line"], linewidth=1)
            for curve, (name, area) in zip(curves, areas.items(), strict=True):
                axes.plot(
                    surprise.roc_false_alarms,
                    curve,
                    label=f"{name}: area {area:.3f}",
                    clip_on=False,
                    **styles[name],
                )
            axes.set_xlim(0, 1)
            axes.set_ylim(0, 1)
            axes.set_xlabel(f"share of {others} that raise an alarm")
            axes.set_ylabel("share of edits found")
            _legend(axes, columns=1)

        return canvas.draw(title, draw_on, height=2.9 + 0.2 * len(areas))

    drawn = [
        canvas.draw(
            f"surprise over time, mean of {n} episodes", over_time, height=3.2 + 0.1 * len(names)
        ),
        canvas.draw(
            f"surprise at the edit: {n} episodes, mean above",
            by_episode,
            height=0.9 + 0.5 * len(names),
        ),
        detector(
            "telling edits from normal motion",
            surprise.roc,
            {name: edit.auc for name, edit in edits.items()},
            "normal frames",
        ),
    ]
    against = {name: edit.against_colour.auc for name, edit in edits.items() if edit.against_colour}
    if against:
        drawn.append(
            detector(
                "telling teleports from changes of colour",
                surprise.roc_colour,
                against,
                "changes of colour",
            )
        )
    return drawn


def _styles(names: Sequence[str], kinds: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Condition -> how its line is drawn: the colour says what was done, the dashes to what."""
    styles: dict[str, dict[str, Any]] = {}
    drawn = dict.fromkeys(COLOURS, 0)
    for name in names:
        kind = kinds.get(name, "unperturbed")
        styles[name] = {
            "color": THEME[COLOURS[kind]],
            "linestyle": DASHES[drawn[kind] % len(DASHES)],
            "linewidth": 1.8,
        }
        drawn[kind] += 1
    return styles


def _legend(axes: Axes, columns: int = 2) -> None:
    """Below the axes, where it hides nothing."""
    axes.legend(
        frameon=False,
        fontsize=9.5,
        labelcolor=THEME["ink"],
        handlelength=2.4,
        columnspacing=1.2,
        ncols=columns,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.2),
    )


# ------------------------------------------------------------------------------------------- words


def sentences(surprise: SurpriseResult) -> list[str]:
    """What was done, how much each edit surprises, and how a threshold does."""
    alarms = surprise.false_alarms
    rate = with_interval(alarms.rate, alarms.interval, whole_percent)
    return [
        f"In the middle of {surprise.episodes} episodes something impossible happens.",
        "A thing jumps, or changes its colour.",
        "Surprise is the squared error of the latent that the model predicted for that frame.",
        *(_surprised(name, edit) for name, edit in surprise.edits.items()),
        f"On half of the episodes a threshold was set for {whole_percent(alarms.nominal)} false "
        "alarms.",
        f"On the other half it gives {rate}.",
        *([f"Read with care: {surprise.warning}."] if surprise.warning else []),
    ]


def _surprised(name: str, edit: Edited) -> str:
    p, area = p_value(edit.t_p), with_interval(edit.auc, edit.auc_interval, two_places)
    times = (
        f"{edit.ratio:.3g} times the surprise of the same frames unedited"
        if edit.ratio is not None
        else "the same frames unedited do not surprise at all"
    )
    size = "not defined" if edit.effect_size is None else two_places(edit.effect_size)
    return (
        f"{name[:1].upper()}{name[1:]}: {times} (p {p if p.startswith('<') else '= ' + p}, effect "
        f"size {size}). AUC against normal frames is {area}."
    )


def headlines(surprise: SurpriseResult) -> dict[str, str]:
    """How well edits are found."""
    return {
        f"surprise AUC, {name}": with_interval(e.auc, e.auc_interval, two_places)
        for name, e in surprise.edits.items()
    }


# ------------------------------------------------------------------------------------------ claims

SIGNIFICANT = 0.01
"""p of the paper's test of surprise."""


def spiking(evidence: Evidence) -> Finding | None:
    """Surprise spikes at teleports and not at colour changes."""
    if not (answers := evidence.answers(SurpriseResult)):
        return None
    told: list[str] = []
    teleports: list[Edited] = []
    colours: list[Edited] = []
    for world, results in answers.items():
        for name in results[0].edits:
            edits = [result.edits[name] for result in results if name in result.edits]
            (teleports if edits[0].kind == "teleport" else colours).extend(edits)
            largest = max(edit.t_p for edit in edits)
            sizes = [edit.effect_size for edit in edits if edit.effect_size is not None]
            told.append(
                f"{world}, {name}: p {p_value(largest)}, d "
                f"{spanned(sizes, '.2f') if sizes else '-'}, AUC "
                f"{spanned([edit.auc for edit in edits], '.2f')}"
            )
    spikes = all(edit.t_p < SIGNIFICANT and edit.mean_difference > 0 for edit in teleports)
    quiet = all(edit.t_p >= SIGNIFICANT for edit in colours)
    seen = "A change to the opposite colour is " + (
        "not significant." if quiet else "significant as well; how much depends on the colour."
    )
    n = min(edit.n for edit in (*teleports, *colours))
    why = (
        "Paired t-test of surprise at the edit against the same episode unedited, n of at least "
        f"{n}; the largest p and the range of Cohen's d over seeds. {seen}"
    )
    return Finding("; ".join(told), HOLDS if spikes and quiet else PARTLY if spikes else FAILS, why)


JUDGES = {16: spiking}
