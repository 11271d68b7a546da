"""What a model is surprised by: prediction errors around an edit, episode by episode, and as a
detector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lewm.contracts import Result
from lewm.report import canvas
from lewm.report.canvas import THEME, Panel
from lewm.report.words import Values, two_places, whole_percent, with_interval
from lewm.stats import p_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

COLOURS = {"unperturbed": "muted", "teleport": "accent", "colour": "warm"}  # by kind of edit
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))  # by number among its kind


def draw(surprise: Result) -> list[Panel]:
    """Surprise over time, of every episode at the edit, and what a threshold on it would find."""
    values, arrays = surprise.values, surprise.arrays
    names, edits, n = values["conditions"], values["edits"], values["episodes"]
    at = int(np.flatnonzero(arrays["frames"] == 0)[0])
    # a surprise of 0, as a perfect model has it, has no place on such a scale
    logarithmic = bool((arrays["mean"] > 0).all())
    styles = _styles(names, {name: edit["kind"] for name, edit in edits.items()})

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
            frames, style = arrays["frames"][shown], styles[name]
            low, high = arrays["low"][c, shown], arrays["high"][c, shown]
            axes.fill_between(frames, low, high, color=style["color"], alpha=0.2, linewidth=0)
            axes.plot(frames, arrays["mean"][c, shown], label=name, **style)
        if logarithmic:
            axes.set_yscale("log")
            canvas.plain_decades(axes.yaxis)
        axes.grid(axis="y", color=THEME["line"], linewidth=0.8)
        axes.set_xlabel(f"frames since the edit, {values['frameskip']} env steps apart")
        axes.set_ylabel("surprise")
        _legend(axes)

    def by_episode(axes: Axes) -> None:
        for c, name in enumerate(names):
            colour, row = styles[name]["color"], len(names) - 1 - c
            # All marks in one path, which is light and has the colours of the page.
            x = np.repeat(arrays["surprise"][c, :, at], 3)
            y = np.tile([row - 0.3, row + 0.1, np.nan], n)
            axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.6)
            axes.plot(
                [arrays["low"][c, at], arrays["high"][c, at]],
                [row + 0.27] * 2,
                color=colour,
                linewidth=2.5,
            )
            axes.plot(arrays["mean"][c, at], row + 0.27, "o", color=colour, markersize=5.5)
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
                    arrays["roc_false_alarms"],
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
            arrays["roc"],
            {name: edit["auc"] for name, edit in edits.items()},
            "normal frames",
        ),
    ]
    against = {
        name: edit["against_colour"]["auc"]
        for name, edit in edits.items()
        if "against_colour" in edit
    }
    if against:
        drawn.append(
            detector(
                "telling teleports from changes of colour",
                arrays["roc_colour"],
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


def _edited(values: Values) -> list[str]:
    return [
        f"In {values['episodes']} episodes something that cannot happen happens in the middle: a "
        "thing jumps, or changes its colour.",
        "Surprise is the squared error of the latent that the model predicted for that frame.",
    ]


def _surprised(values: Values) -> list[str]:
    told = []
    for name, edit in values["edits"].items():
        p, area = p_value(edit["t_p"]), with_interval(edit["auc"], edit["auc_interval"], two_places)
        told.append(
            f"{name[:1].upper()}{name[1:]}: {edit['ratio']:.3g} times the surprise of the same "
            f"frames unedited (p {p if p.startswith('<') else '= ' + p}, effect size "
            f"{edit['effect_size']:.2f}); AUC {area} against normal frames."
        )
    return told


def _false_alarms(values: Values) -> list[str]:
    found = values["false_alarms"]
    nominal, rate = (
        whole_percent(found["nominal"]),
        with_interval(found["rate"], found["interval"], whole_percent),
    )
    return [
        (
            f"A threshold set for {nominal} false alarms on half of the episodes gives {rate} on "
            "the other half."
        )
    ]


def _warned(values: Values) -> list[str]:
    return [f"To be read with care: {values['warning']}."] if values["warning"] else []


def _surprise_headline(values: Values) -> dict[str, str]:
    return {
        f"surprise AUC, {name}": with_interval(e["auc"], e["auc_interval"], two_places)
        for name, e in values["edits"].items()
    }


SENTENCES = (_edited, _surprised, _false_alarms, _warned)
HEADLINES = (_surprise_headline,)
