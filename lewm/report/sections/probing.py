"""What the latents say about the world: maps, readings beside the truth and beside controls, and
readings of predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lewm.analyses.probes.scores import Score
from lewm.analyses.probing import Alike, ProbingResult, Variable
from lewm.report import canvas
from lewm.report.canvas import THEME, Panel
from lewm.report.verdicts import HOLDS, PARTLY, Evidence, Finding, spanned
from lewm.report.words import correlation, in_unit, listed, percent, with_interval
from lewm.runs.results import Interval, Tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["control_panels", "draw", "latent_panels", "probe_panels", "rollout_panels"]

TITLE, ORDER = "What the latents know", 20

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

Rival = tuple[str, Callable[[Variable], Score | None], dict[str, Any]]
"""Name, where a variable's scores are found, and how its mark looks. The first is drawn last, on
top."""

RIVALS: tuple[Rival, ...] = (
    (
        "ridge, latents",
        lambda row: row,
        {"marker": "o", "color": THEME["accent"], "markersize": 6.5},
    ),
    ("MLP, latents", lambda row: row.mlp, {"marker": "D", "color": THEME["warm"], "markersize": 5}),
    (
        "ridge, random encoder",
        lambda row: row.controls.get("random encoder"),
        {"marker": "^", "color": THEME["floor"], "markersize": 6},
    ),
    (
        "ridge, pixels",
        lambda row: row.controls.get("pixels"),
        {"marker": "s", "color": THEME["muted"], "markersize": 4.5},
    ),
)


def draw(result: ProbingResult) -> list[Panel]:
    """Correlations beside the controls, readings of predictions, maps of the latents, and some
    variables as they are read."""
    return [
        *control_panels(result),
        *rollout_panels(result),
        *latent_panels(result),
        *probe_panels(result),
    ]


def control_panels(probing: ProbingResult) -> list[Panel]:
    """How well every variable is read, on a line each, from the latents and from what the latents
    are to be better than.

    The axis is stretched towards 1 as the logarithm of 1 - r, for .99 and .999 are as far apart as
    0 and .9 are. Of very many variables those that nothing reads well are left to the table.
    """
    variables = list(probing.variables.items())
    rivals = [rival for rival in RIVALS if any(_known(rival[1](row)) for _, row in variables)]
    if len(rivals) < 2:
        return []
    if len(variables) > MOST_LINES:
        read = {
            name
            for name, row in variables
            if any(known[0] >= WELL for _, at, _ in rivals if (known := _known(at(row))))
        }
        variables = [(name, row) for name, row in variables if name in read] or variables[
            :MOST_LINES
        ]

    def lines(some: Sequence[tuple[str, Variable]]) -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            axes.set_xscale("function", functions=(_stretched, _unstretched))
            for k, (label, at, mark) in reversed(list(enumerate(rivals))):
                apart = 0.18 * (k - (len(rivals) - 1) / 2)
                found = [(place + apart, _known(at(row))) for place, (_, row) in enumerate(some)]
                known = [(place, *both) for place, both in found if both is not None]
                for place, _, interval in known:
                    ends = np.clip(interval, -1, CEILING)
                    axes.plot(
                        ends,
                        [place, place],
                        color=mark["color"],
                        linewidth=1.6,
                        solid_capstyle="butt",
                    )
                axes.plot(
                    [min(r, CEILING) for _, r, _ in known],
                    [place for place, *_ in known],
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


def rollout_panels(probing: ProbingResult) -> list[Panel]:
    """How far what is read of predicted latents is off, over the steps of an open-loop rollout: a
    panel per unit."""
    rollout = probing.rollout

    def curve(of: Alike) -> Panel:
        def draw(axes: Axes) -> None:
            steps, (low, high) = rollout.steps, np.transpose(of.rmse_interval)
            axes.plot(
                steps,
                of.copy_rmse,
                color=THEME["floor"],
                linewidth=1.8,
                label="last frame copied",
            )
            axes.fill_between(steps, low, high, color=THEME["accent"], alpha=0.22, linewidth=0)
            (floor,) = axes.plot(
                steps, of.encoded_rmse, color=THEME["muted"], label="frame that came, encoded"
            )
            floor.set_linestyle((0, (4, 3)))
            axes.plot(
                steps,
                of.rmse,
                color=THEME["accent"],
                linewidth=2,
                marker="o",
                markersize=4,
                label="predicted",
            )
            axes.set_xlim(0, steps[-1])
            axes.set_ylim(bottom=0)
            axes.set_xlabel("env steps predicted")
            axes.set_ylabel(canvas.label("error", of.unit.removeprefix("1")))
            axes.grid(axis="y", color=THEME["line"], linewidth=0.8)
            axes.set_axisbelow(True)
            _legend(axes)

        names, unit = of.variables, of.unit.removeprefix("1")
        about = ", ".join(names) if len(names) <= 2 else f"{len(names)} variables"
        return canvas.draw(
            f"open-loop error{' in ' if unit else ''}{unit}: {about}", draw, height=3.4
        )

    return [curve(of) for of in list(rollout.units.values())[:MOST_UNITS]]


def latent_panels(probing: ProbingResult) -> list[Panel]:
    """Where the world was in each test frame, and the same frames in the principal plane of their
    latents.

    Two of the readings are taken for a place, y downwards as in a picture.
    """
    if len(probing.variables) < 2:
        return []
    states, plane = probing.states[:, list(probing.place)], probing.plane
    (x_name, x), (y_name, y) = (list(probing.variables.items())[i] for i in probing.place)
    low, high = states.min(axis=0), states.max(axis=0)
    across, down = ((states - low) / np.maximum(high - low, 1e-9)).T
    by_place = _blend(across, down)

    def true_map(axes: Axes) -> None:
        canvas.points(axes, states, c=by_place)
        axes.invert_yaxis()
        axes.set_aspect("equal" if x.unit == y.unit else "auto")
        axes.set_xlabel(canvas.label(x_name, x.unit))
        axes.set_ylabel(canvas.label(y_name, y.unit))

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
            plane_coloured(states[:, 0], canvas.label(x_name, x.unit)),
            height=3.6,
        ),
        canvas.draw(
            f"the latents by {y_name}",
            plane_coloured(states[:, 1], canvas.label(y_name, y.unit)),
            height=3.6,
        ),
    ]


def probe_panels(probing: ProbingResult) -> list[Panel]:
    """State variables as read from the latents against their true values, on test episodes.

    Of many variables a few, evenly spaced from the one that is read best to the one that is read
    worst.
    """

    def scatter(i: int, name: str, scores: Variable) -> Panel:
        def draw(axes: Axes) -> None:
            true, read = probing.states[:, i], probing.predictions[:, i]
            ends = [min(true.min(), read.min()), max(true.max(), read.max())]
            axes.plot(
                ends, ends, color=THEME["muted"], linewidth=1, linestyle=(0, (4, 3)), zorder=3
            )
            canvas.points(axes, np.stack([true, read], axis=1), c=THEME["accent"])
            axes.set_xlabel(f"true {canvas.label(name, scores.unit)}")
            axes.set_ylabel(f"read {canvas.label(name, scores.unit)}")
            told = "r is not defined" if scores.r is None else f"r = {scores.r:.4f}"
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

    variables = list(probing.variables.items())
    best_first = sorted(range(len(variables)), key=lambda i: -(variables[i][1].r or 0))
    spaced = (
        np.linspace(0, len(variables) - 1, min(len(variables), MOST_SCATTERS)).round().astype(int)
    )
    return [scatter(i, *variables[i]) for i in sorted(best_first[place] for place in spaced)]


def _known(score: Score | None) -> tuple[float, Interval] | None:
    """A correlation with its interval; None where there is none."""
    if score is None or score.r is None or score.r_interval is None:
        return None
    return score.r, score.r_interval


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


# ------------------------------------------------------------------------------------------- words

MANY = 6
"""Variables named one by one; of more, the best and the worst are."""

SAMPLED_ROWS = 24
"""Of a cloud of points, as many are shown as numbers."""


def sentences(probing: ProbingResult) -> list[str]:
    """On what it was tested, what is read how well, beside what rivals read, and of predictions."""
    return [
        "Nobody told the model these variables.",
        f"A linear probe was fitted on latents of {probing.fit_episodes} episodes.",
        f"It was tested on {probing.test_frames:,} pictures of {probing.test_episodes} others, "
        "which neither it nor the model saw.",
        *_read_well(probing.variables),
        *(
            f"The angle {name} is off by {degrees:.0f} degrees on average. Chance is 90."
            for name, degrees in probing.angles.items()
        ),
        *_beside_rivals(probing.variables),
        *_read_ahead(probing),
    ]


def _read_well(variables: Mapping[str, Variable]) -> list[str]:
    """Of variables that have a correlation: one that never varies is left to the table."""
    known = {name: (s.r, s) for name, s in variables.items() if s.r is not None}
    if not known:
        return ["No correlation is defined: the variables or their readings never vary."]
    if len(variables) <= MANY:
        told = [
            f"{name} with r = {correlation(r)} (typical error {in_unit(s.rmse, s.unit)})"
            for name, (r, s) in known.items()
        ]
        return [f"It reads {listed(told)}."]
    ordered = sorted(known, key=lambda name: known[name][0])
    worst, best = ordered[0], ordered[-1]
    ends = (
        f"{best} best, with r = {correlation(known[best][0])}, and {worst} worst, with r = "
        f"{correlation(known[worst][0])}"
    )
    return [f"Of {len(variables)} variables it reads {ends}."]


def _beside_rivals(variables: Mapping[str, Variable]) -> list[str]:
    beside = []
    for rival, words in (
        ("random encoder", "an encoder with random weights"),
        ("pixels", "averaged pixels"),
    ):
        controls = [s.controls[rival] for s in variables.values() if rival in s.controls]
        if found := [control.r for control in controls if control.r is not None]:
            least, most = correlation(min(found)), correlation(max(found))
            beside.append(f"from {words} r = {least}" + f" to {most}" * (least != most))
    if not beside:
        return []
    return [f"It reads {listed(beside)}.", "Only what lies above that was learnt."]


def _read_ahead(probing: ProbingResult) -> list[str]:
    rollout = probing.rollout
    if not rollout.units:
        return []
    ahead = f"On latents predicted {rollout.steps[-1]} steps ahead"
    predicted = [in_unit(off.rmse[-1], unit) for unit, off in rollout.units.items()]
    came = [in_unit(off.encoded_rmse[-1], unit) for unit, off in rollout.units.items()]
    return [
        f"{ahead} the same probe is off by {listed(predicted)}.",
        f"On the frames that came it is off by {listed(came)}.",
    ]


def headlines(probing: ProbingResult) -> dict[str, str]:
    """The correlations of the first few variables that have one."""
    return {
        f"probe r, {name}": with_interval(*known, correlation)
        for name, score in list(probing.variables.items())[:MANY]
        if (known := _known(score))
    }


def notes(results: Sequence[ProbingResult]) -> list[str]:
    """What the maps show."""
    shares = [result.plane_variance for result in results]
    told = (
        " and ".join(percent(share) for share in shares)
        if len(shares) < 3
        else f"{percent(min(shares))} to {percent(max(shares))}"
    )
    return [
        "The maps show the latents of held-out pictures in their two principal directions. These "
        f"hold {told} of the variance. Each point has the colour of its true place in the first "
        "map. Neighbours in the world should be neighbours in the latents."
    ]


def rows(probing: ProbingResult) -> Tables:
    """Evenly spaced test frames: true value, value read, place in the plane."""
    count = len(probing.states)
    chosen = np.unique(np.linspace(0, count - 1, SAMPLED_ROWS).round().astype(int))
    told = []
    for row in chosen:
        true, read, plane = (of[row] for of in (probing.states, probing.predictions, probing.plane))
        told.append(
            {"episode": str(probing.episodes[row])}
            | {f"true {name}": f"{x:.4g}" for name, x in zip(probing.variables, true, strict=True)}
            | {f"read {name}": f"{x:.4g}" for name, x in zip(probing.variables, read, strict=True)}
            | {f"component {i}": f"{x:.2f}" for i, x in enumerate(plane, 1)}
        )
    caption = (
        f"{len(told)} of the {count:,} held-out pictures: true value, value read, principal "
        "components."
    )
    return {caption: told}


# ------------------------------------------------------------------------------------------ claims

READABLE = 0.95
"""r above which a variable counts as readable."""


def readable(evidence: Evidence) -> Finding | None:
    """Physical state is readable by linear and MLP probes."""
    if not (answers := evidence.answers(ProbingResult)):
        return None
    told, worst, least_read = [], 1.0, ""
    for world, results in answers.items():
        variables = {}
        for name in results[0].variables:
            scores = [result.variables[name] for result in results]
            linear = [_r(score) for score in scores]
            best = [_r(score.mlp or score) for score in scores]
            if min(best) < worst:
                worst, least_read = min(best), f"{name} in {world}"
            random = [_r(rival) for s in scores if (rival := s.controls.get("random encoder"))]
            control = f" (random encoder {spanned(random, '.2f')})" if random else ""
            variables[name] = f"{name} {spanned(linear, '.3f')} / {spanned(best, '.3f')}{control}"
        told.append(f"{world}: {', '.join(variables.values())}")
    why = (
        "r of linear / MLP probe on held-out episodes, least to most over seeds. Readable is "
        f"taken as r of at least {READABLE} by the MLP; the worst is {worst:.3f}, {least_read}. "
        "Where a random encoder is read as well, as in Two-Room, that is no merit of training."
    )
    return Finding("; ".join(told), HOLDS if worst >= READABLE else PARTLY, why)


def _r(score: Score) -> float:
    """What cannot be correlated was not read."""
    return 0.0 if score.r is None else score.r


JUDGES = {14: readable}
