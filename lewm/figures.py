"""Records as pictures, each one SVG panel. Draws, computes nothing.

A panel is about as wide as a phone, and a page sets them side by side where there is room: text stays readable at every width,
which one wide figure would not allow. Ink, lines and accents are CSS variables with a fallback (`var(--ink, #1d2329)`), so a
page decides about light, dark and print; text is text, in the font of the page. As a file of its own a panel is light.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lewm.contracts import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

__all__ = ["THEME", "latent_panels", "loss_panels", "pareto_panel", "probe_panels", "success_panel"]

THEME = {"ink": "#1d2329", "muted": "#5d6875", "line": "#d9dde2", "accent": "#0b6bb8", "floor": "#9aa5b1", "warm": "#c2610c"}
"""CSS variable -> light colour, and the stand-in for it while matplotlib draws. No two may be equal."""

CORNERS = np.array([[[0x2F, 0x6B, 0xD8], [0xB8, 0x4A, 0xC4]], [[0x12, 0xA3, 0x7F], [0xF0, 0x97, 0x1E]]]) / 255
"""Colours of a place in a map: rows top and bottom, columns left and right. Told apart by lightness as well as by hue, on white
and on black, and between them every place has a colour of its own."""

PANEL_INCHES, PICTURE_DPI = (4.6, 3.0), 144


def loss_panels(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The terms of the loss on logarithmic axes, and what is watched for collapse, from lines of metrics.jsonl."""
    labels = {
        "prediction": ("prediction loss", True),
        "sigreg": ("SIGReg", True),
        "latent_std": ("standard deviation of the latents", False),
        "effective_rank": ("effective rank of the latents", False),
    }

    def curve(name: str, title: str, logarithmic: bool) -> str:
        def draw(axes: Axes) -> None:
            updates, values = zip(*((row["update"], row[name]) for row in rows if name in row), strict=True)
            axes.plot(updates, values, color=THEME["accent"], linewidth=1.8, marker="o" if len(values) == 1 else None)
            if logarithmic:
                axes.set_yscale("log")
                _plain_decades(axes.yaxis)
            else:
                axes.set_ylim(bottom=0)
            axes.set_xlabel("update")
            axes.set_xlim(left=0)
            axes.grid(axis="y", color=THEME["line"], linewidth=0.8)

        return _panel(title, draw)

    return [curve(name, *label) for name, label in labels.items() if any(name in row for row in rows)]


def success_panel(title: str, scores: Mapping[str, Mapping[str, float]]) -> str:
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

    return _panel(title, draw, height=2.4)


def pareto_panel(title: str, points: Mapping[str, tuple[float, float, float, float]], front: Sequence[int]) -> str:
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
        _plain_decades(axes.xaxis)
        axes.set_xlabel("ms per plan")
        axes.set_ylim(min(values[:, 2].min() - 3, 95), 101)
        axes.set_ylabel("success, %")
        axes.grid(axis="y", color=THEME["line"], linewidth=0.8)
        key = "\n".join(f"{rank} {names[place]}" for rank, place in enumerate(front, 1))
        axes.text(0, -0.3, key, transform=axes.transAxes, va="top", fontsize=9, color=THEME["ink"])

    return _panel(title, draw, height=3.0 + 0.16 * len(front))


def latent_panels(probing: Result) -> list[str]:
    """Where the world was in each test frame, and the same frames in the principal plane of their latents.

    The first two state variables are taken for a place, y downwards as in a picture.
    """
    states, plane = probing.arrays["states"][:, :2], probing.arrays["plane"]
    (x_name, x), (y_name, y) = list(probing.values["variables"].items())[:2]
    low, high = states.min(axis=0), states.max(axis=0)
    across, down = ((states - low) / np.maximum(high - low, 1e-9)).T
    by_place = _blend(across, down)

    def true_map(axes: Axes) -> None:
        _points(axes, states, c=by_place)
        axes.invert_yaxis()
        axes.set_aspect("equal")
        axes.set_xlabel(_label(x_name, x["unit"]))
        axes.set_ylabel(_label(y_name, y["unit"]))

    def plane_coloured(colours: np.ndarray, label: str = "") -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            scatter = _points(axes, plane, c=colours, cmap=_shades() if label else None)
            if label:
                assert axes.figure is not None
                bar = axes.figure.colorbar(scatter, ax=axes, shrink=0.9, aspect=24)
                bar.set_label(label)
                bar.outline.set_visible(False)  # type: ignore[operator]
            axes.set_xlabel("first principal component")
            axes.set_ylabel("second")

        return draw

    return [
        _panel("where the dot was", true_map, height=3.6),
        _panel("the latents, same colours", plane_coloured(by_place), height=3.6),
        _panel(f"the latents by {x_name}", plane_coloured(states[:, 0], _label(x_name, x["unit"])), height=3.6),
        _panel(f"the latents by {y_name}", plane_coloured(states[:, 1], _label(y_name, y["unit"])), height=3.6),
    ]


def probe_panels(probing: Result) -> list[str]:
    """Each state variable as read from the latents against its true value, on test episodes."""

    def scatter(i: int, name: str, scores: Mapping[str, Any]) -> str:
        def draw(axes: Axes) -> None:
            true, read = probing.arrays["states"][:, i], probing.arrays["predictions"][:, i]
            ends = [min(true.min(), read.min()), max(true.max(), read.max())]
            axes.plot(ends, ends, color=THEME["muted"], linewidth=1, linestyle=(0, (4, 3)), zorder=3)
            _points(axes, np.stack([true, read], axis=1), c=THEME["accent"])
            axes.set_xlabel(f"true {_label(name, scores['unit'])}")
            axes.set_ylabel(f"read {_label(name, scores['unit'])}")
            axes.text(
                0.04, 0.95, f"r = {scores['r']:.4f}", transform=axes.transAxes, va="top", fontweight="bold", color=THEME["ink"]
            )

        return _panel(f"reading {name} from the latents", draw, height=3.6)

    return [scatter(i, *item) for i, item in enumerate(probing.values["variables"].items())]


# ----------------------------------------------------------------------------------------------------------- internal


def _panel(title: str, draw: Callable[[Axes], None], height: float = PANEL_INCHES[1]) -> str:
    """One axes under a title, as SVG to be put into a page."""
    import matplotlib
    from matplotlib.figure import Figure

    muted, line = THEME["muted"], THEME["line"]
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "text.parse_math": False,  # names come from data files: a "$" in one is a dollar
        "svg.hashsalt": title,  # names that are the same every time, and differ between the panels of a page
        "font.size": 11,
        "figure.titlesize": 12,
        "axes.labelcolor": muted,
        "axes.edgecolor": line,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "xtick.color": line,
        "ytick.color": line,
        "xtick.labelcolor": muted,
        "ytick.labelcolor": muted,
        "xtick.minor.visible": False,
        "ytick.minor.visible": False,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(PANEL_INCHES[0], height), layout="constrained", facecolor="none")
        axes = figure.add_subplot()
        figure.suptitle(title, x=0.01, ha="left", color=THEME["ink"])
        draw(axes)
        drawn = io.StringIO()
        figure.savefig(
            drawn, format="svg", dpi=PICTURE_DPI, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    return _for_a_page(drawn.getvalue(), title)


def _for_a_page(svg: str, title: str) -> str:
    """Keep the drawing: no prologue, no size of its own, no numbered names that two panels would share, themed colours."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    opening = body[: body.index(">") + 1]
    box = re.search(r'viewBox="([^"]+)"', opening)
    assert box is not None
    body = re.sub(r' id="[A-Za-z.0-9]+_\d+"', "", body[len(opening) :])
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    for name, colour in THEME.items():
        body = body.replace(colour, f"var(--{name}, {colour})")
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {namespaces} viewBox="{box[1]}" role="img" aria-label="{html.escape(title)}">{body.rstrip()}'


def _points(axes: Axes, places: np.ndarray, **how: Any) -> Any:
    """A cloud as a picture inside the SVG: a thousand circles would weigh more than all else on the page."""
    axes.grid(color=THEME["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    return axes.scatter(places[:, 0], places[:, 1], s=9, linewidths=0, alpha=0.85, rasterized=True, **how)


def _blend(across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """(n,) and (n,) in [0, 1] -> (n, 3) colours between those of the corners."""
    top, bottom = (row[0] + across[:, None] * (row[1] - row[0]) for row in CORNERS)
    return top + down[:, None] * (bottom - top)


def _shades() -> Any:
    """Viridis without its ends, of which one vanishes on black and the other on white."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    return ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.16, 0.94, 256)))


def _plain_decades(axis: Axis) -> None:
    """0.1 rather than 10 to the minus 1, and no more marks than the range needs."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = axis.get_view_interval()
    steps = (1, 2, 5) if high < 200 * low else (1,)
    axis.set_major_locator(LogLocator(subs=steps) if high > 5 * low else MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _label(name: str, unit: str) -> str:
    return f"{name}, {unit}" if unit else name
