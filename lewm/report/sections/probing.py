"""What the latents say about the world: maps, readings beside the truth and beside controls, and
readings of predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lewm.contracts import Result
from lewm.report import canvas
from lewm.report.canvas import THEME, Panel
from lewm.report.words import Values, correlation, in_unit, listed, with_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["control_panels", "draw", "latent_panels", "probe_panels", "rollout_panels"]

CORNERS = (
    np.array([[[0x2F, 0x6B, 0xD8], [0xB8, 0x4A, 0xC4]], [[0x12, 0xA3, 0x7F], [0xF0, 0x97, 0x1E]]])
    / 255
)
"""Colours of a place in a map: rows top and bottom, columns left and right. Told apart by lightness
as well as by hue, on white and on black, and between them every place has a colour of its own."""

MOST_SCATTERS, MOST_LINES, MOST_UNITS = 6, 16, 4
"""Panels of readings beside the truth, variables in a panel of correlations, and panels of
open-loop error."""

WELL = 0.5
"""A correlation from which a variable is shown even if there are very many."""

CEILING = 0.99995
"""Largest correlation that the axis shows: 1 would lie at infinity."""

Rival = tuple[str, tuple[str, ...], dict[str, Any]]
"""Name, keys under which a variable's scores are found, and how its mark looks. The first is drawn
last, on top."""

RIVALS: tuple[Rival, ...] = (
    ("ridge, latents", (), {"marker": "o", "color": THEME["accent"], "markersize": 6.5}),
    ("MLP, latents", ("mlp",), {"marker": "D", "color": THEME["warm"], "markersize": 5}),
    (
        "ridge, random encoder",
        ("controls", "random encoder"),
        {"marker": "^", "color": THEME["floor"], "markersize": 6},
    ),
    (
        "ridge, pixels",
        ("controls", "pixels"),
        {"marker": "s", "color": THEME["muted"], "markersize": 4.5},
    ),
)


def draw(result: Result) -> list[Panel]:
    """Correlations beside the controls, readings of predictions, maps of the latents, and some
    variables as they are read."""
    return [
        *control_panels(result),
        *rollout_panels(result),
        *latent_panels(result),
        *probe_panels(result),
    ]


def control_panels(probing: Result) -> list[Panel]:
    """How well every variable is read, on a line each, from the latents and from what the latents
    are to be better than.

    The axis is stretched towards 1 as the logarithm of 1 - r, for .99 and .999 are as far apart as
    0 and .9 are. Of very many variables those that nothing reads well are left to the table.
    """
    variables = list(probing.values["variables"].items())
    rivals = [
        rival for rival in RIVALS if any(_scores(row, rival[1]) is not None for _, row in variables)
    ]
    if len(rivals) < 2:
        return []
    if len(variables) > MOST_LINES:
        found = {name: [_scores(row, keys) for _, keys, _ in rivals] for name, row in variables}
        read = {
            name
            for name, scores in found.items()
            if any(each and each["r"] >= WELL for each in scores)
        }
        variables = [(name, row) for name, row in variables if name in read] or variables[
            :MOST_LINES
        ]

    def lines(some: Sequence[tuple[str, Mapping[str, Any]]]) -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            axes.set_xscale("function", functions=(_stretched, _unstretched))
            for k, (label, keys, mark) in reversed(list(enumerate(rivals))):
                apart = 0.18 * (k - (len(rivals) - 1) / 2)
                found = [(place + apart, _scores(row, keys)) for place, (_, row) in enumerate(some)]
                known = [(place, scores) for place, scores in found if scores is not None]
                for place, scores in known:
                    ends = np.clip(scores["r_interval"], -1, CEILING)
                    axes.plot(
                        ends,
                        [place, place],
                        color=mark["color"],
                        linewidth=1.6,
                        solid_capstyle="butt",
                    )
                shown = [min(scores["r"], CEILING) for _, scores in known]
                axes.plot(
                    shown,
                    [place for place, _ in known],
                    linestyle="",
                    label=label,
                    markeredgewidth=0,
                    **mark,
                )
            axes.set_ylim(len(some) - 0.5, -0.5)
            axes.set_yticks(
                range(len(some)), [name for name, _ in some], fontsize=10, color=THEME["ink"]
            )
            axes.tick_params(axis="y", length=0)
            axes.set_xlim(min(0, axes.get_xlim()[0]), CEILING)
            axes.set_xticks(
                [0, 0.5, 0.9, 0.99, 0.999, 0.9999], ["0", ".5", ".9", ".99", ".999", ".9999"]
            )
            axes.grid(axis="x", color=THEME["line"], linewidth=0.8)
            axes.set_axisbelow(True)
            axes.set_xlabel("correlation with the truth, r")
            _legend(axes)

        return draw

    parts = [
        variables[first : first + MOST_LINES] for first in range(0, len(variables), MOST_LINES)
    ]
    title = "how well the state is read"
    titles = [
        f"{title}, {i} of {len(parts)}" if len(parts) > 1 else title
        for i in range(1, len(parts) + 1)
    ]
    return [
        canvas.draw(title, lines(some), height=1.5 + 0.32 * len(some))
        for title, some in zip(titles, parts, strict=True)
    ]


def rollout_panels(probing: Result) -> list[Panel]:
    """How far what is read of predicted latents is off, over the steps of an open-loop rollout: a
    panel per unit."""
    rollout = probing.values["rollout"]

    def curve(of: Mapping[str, Any]) -> Panel:
        def draw(axes: Axes) -> None:
            steps, (low, high) = rollout["steps"], np.transpose(of["rmse_interval"])
            axes.plot(
                steps,
                of["copy_rmse"],
                color=THEME["floor"],
                linewidth=1.8,
                label="last frame copied",
            )
            axes.fill_between(steps, low, high, color=THEME["accent"], alpha=0.22, linewidth=0)
            (floor,) = axes.plot(
                steps, of["encoded_rmse"], color=THEME["muted"], label="frame that came, encoded"
            )
            floor.set_linestyle((0, (4, 3)))
            axes.plot(
                steps,
                of["rmse"],
                color=THEME["accent"],
                linewidth=2,
                marker="o",
                markersize=4,
                label="predicted",
            )
            axes.set_xlim(0, steps[-1])
            axes.set_ylim(bottom=0)
            axes.set_xlabel("env steps predicted")
            axes.set_ylabel(canvas.label("error", of["unit"].removeprefix("1")))
            axes.grid(axis="y", color=THEME["line"], linewidth=0.8)
            axes.set_axisbelow(True)
            _legend(axes)

        names, unit = of["variables"], of["unit"].removeprefix("1")
        about = ", ".join(names) if len(names) <= 2 else f"{len(names)} variables"
        return canvas.draw(
            f"open-loop error{' in ' if unit else ''}{unit}: {about}", draw, height=3.4
        )

    return [curve(of) for of in list(rollout["units"].values())[:MOST_UNITS]]


def latent_panels(probing: Result) -> list[Panel]:
    """Where the world was in each test frame, and the same frames in the principal plane of their
    latents.

    Two of the readings are taken for a place, y downwards as in a picture.
    """
    if len(probing.values["variables"]) < 2:
        return []
    chosen = probing.values.get("place", [0, 1])
    states, plane = probing.arrays["states"][:, chosen], probing.arrays["plane"]
    (x_name, x), (y_name, y) = (list(probing.values["variables"].items())[i] for i in chosen)
    low, high = states.min(axis=0), states.max(axis=0)
    across, down = ((states - low) / np.maximum(high - low, 1e-9)).T
    by_place = _blend(across, down)

    def true_map(axes: Axes) -> None:
        canvas.points(axes, states, c=by_place)
        axes.invert_yaxis()
        axes.set_aspect("equal" if x["unit"] == y["unit"] else "auto")
        axes.set_xlabel(canvas.label(x_name, x["unit"]))
        axes.set_ylabel(canvas.label(y_name, y["unit"]))

    def plane_coloured(colours: np.ndarray, label: str = "") -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            scatter = canvas.points(axes, plane, c=colours, cmap=canvas.shades() if label else None)
            if label:
                assert axes.figure is not None
                bar = axes.figure.colorbar(scatter, ax=axes, shrink=0.9, aspect=24)
                bar.set_label(label)
                bar.outline.set_visible(False)  # type: ignore[operator]
            axes.set_xlabel("first principal component")
            axes.set_ylabel("second")

        return draw

    return [
        canvas.draw(f"true {x_name} and {y_name}", true_map, height=3.6),
        canvas.draw("the latents, same colours", plane_coloured(by_place), height=3.6),
        canvas.draw(
            f"the latents by {x_name}",
            plane_coloured(states[:, 0], canvas.label(x_name, x["unit"])),
            height=3.6,
        ),
        canvas.draw(
            f"the latents by {y_name}",
            plane_coloured(states[:, 1], canvas.label(y_name, y["unit"])),
            height=3.6,
        ),
    ]


def probe_panels(probing: Result) -> list[Panel]:
    """State variables as read from the latents against their true values, on test episodes.

    Of many variables a few, evenly spaced from the one that is read best to the one that is read
    worst.
    """

    def scatter(i: int, name: str, scores: Mapping[str, Any]) -> Panel:
        def draw(axes: Axes) -> None:
            true, read = probing.arrays["states"][:, i], probing.arrays["predictions"][:, i]
            ends = [min(true.min(), read.min()), max(true.max(), read.max())]
            axes.plot(
                ends, ends, color=THEME["muted"], linewidth=1, linestyle=(0, (4, 3)), zorder=3
            )
            canvas.points(axes, np.stack([true, read], axis=1), c=THEME["accent"])
            axes.set_xlabel(f"true {canvas.label(name, scores['unit'])}")
            axes.set_ylabel(f"read {canvas.label(name, scores['unit'])}")
            told = "r is not defined" if scores["r"] is None else f"r = {scores['r']:.4f}"
            axes.text(
                0.04,
                0.95,
                told,
                transform=axes.transAxes,
                va="top",
                fontweight="bold",
                color=THEME["ink"],
            )

        return canvas.draw(f"reading {name} from the latents", draw, height=3.6)

    variables = list(probing.values["variables"].items())
    best_first = sorted(range(len(variables)), key=lambda i: -(variables[i][1]["r"] or 0))
    spaced = (
        np.linspace(0, len(variables) - 1, min(len(variables), MOST_SCATTERS)).round().astype(int)
    )
    return [scatter(i, *variables[i]) for i in sorted(best_first[place] for place in spaced)]


def _scores(row: Mapping[str, Any], keys: Sequence[str]) -> Mapping[str, Any] | None:
    """Scores under some keys; None where there are none, or no correlation among them."""
    found: Any = row
    for key in keys:
        found = found.get(key, {})
    return (
        found
        if found.get("r") is not None and np.isfinite(found["r"]) and "r_interval" in found
        else None
    )


def _legend(axes: Axes) -> None:
    """Below everything, two names in a row, in the order in which they are meant to be read."""
    assert axes.figure is not None
    handles, labels = axes.get_legend_handles_labels()
    axes.figure.legend(
        handles[::-1],
        labels[::-1],
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=9.5,
        labelcolor=THEME["ink"],
        handlelength=1.6,
        columnspacing=1.4,
    )


def _stretched(r: np.ndarray) -> np.ndarray:
    return -np.log10(1 - np.minimum(r, CEILING))


def _unstretched(place: np.ndarray) -> np.ndarray:
    return 1 - 10.0 ** -np.asarray(place)


def _blend(across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """(n,) and (n,) in [0, 1] -> (n, 3) colours between those of the corners."""
    top, bottom = (row[0] + across[:, None] * (row[1] - row[0]) for row in CORNERS)
    return top + down[:, None] * (bottom - top)


MANY = 6
"""Variables named one by one; of more, the best and the worst are."""


def _probed_on(values: Values) -> list[str]:
    return [
        "Nobody told the model these variables.",
        f"A linear probe was fitted on latents of {values['fit_episodes']} episodes and tested on "
        f"{values['test_frames']:,} pictures of {values['test_episodes']} that neither it nor the "
        "model saw.",
    ]


def _read_well(values: Values) -> list[str]:
    variables = values["variables"]
    if len(variables) <= MANY:
        told = [
            f"{name} with r = {correlation(s['r'])} (typical error {in_unit(s['rmse'], s['unit'])})"
            for name, s in variables.items()
        ]
        return [f"It reads {listed(told)}."]
    ordered = sorted(
        (name for name in variables if "r" in variables[name]),
        key=lambda name: variables[name]["r"],
    )
    worst, best = ordered[0], ordered[-1]
    ends = (
        f"{best} best, with r = {correlation(variables[best]['r'])}, and {worst} worst, with r = "
        f"{correlation(variables[worst]['r'])}"
    )
    return [f"Of {len(variables)} variables it reads {ends}."]


def _angles(values: Values) -> list[str]:
    return [
        f"The angle {name} is off by {degrees:.0f} degrees on average, 90 being chance."
        for name, degrees in values["angles"].items()
    ]


def _beside_rivals(values: Values) -> list[str]:
    beside = []
    for rival, words in (
        ("random encoder", "an encoder with random weights"),
        ("pixels", "averaged pixels"),
    ):
        controls = [
            score.get("controls", {}).get(rival, {}) for score in values["variables"].values()
        ]
        if found := [control["r"] for control in controls if "r" in control]:
            least, most = correlation(min(found)), correlation(max(found))
            beside.append(f"from {words} r = {least}" + f" to {most}" * (least != most))
    return [f"It reads {listed(beside)}: only what lies above that was learnt."] if beside else []


def _read_ahead(values: Values) -> list[str]:
    rollout = values["rollout"]
    told = []
    for unit, off in rollout["units"].items():
        imagined, seen = (in_unit(off[name][-1], unit) for name in ("rmse", "encoded_rmse"))
        told.append(f"by {imagined} where it is off by {seen} on the frames that came")
    return (
        [
            (
                f"On latents predicted {rollout['steps'][-1]} steps ahead the same probe is off "
                f"{listed(told)}."
            )
        ]
        if told
        else []
    )


def _probing_headline(values: Values) -> dict[str, str]:
    some = list(values["variables"].items())[:MANY]
    return {
        f"probe r, {name}": with_interval(score["r"], score["r_interval"], correlation)
        for name, score in some
    }


SENTENCES = (_probed_on, _read_well, _angles, _beside_rivals, _read_ahead)
HEADLINES = (_probing_headline,)
