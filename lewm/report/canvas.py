"""The canvas that every figure is drawn on: one panel, about as wide as a phone, as SVG to be put
into a page.

A page sets panels side by side where there is room: text stays readable at every width, which one
wide figure would not allow. Ink, lines and accents are CSS variables with a fallback (`var(--ink,
#1d2329)`), so a page decides about light, dark and print; text is text, in the font of the page. As
a file of its own a panel is light.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

__all__ = ["THEME", "Panel", "draw", "label", "plain_decades", "points", "shades"]

THEME = {
    "ink": "#1d2329",
    "muted": "#5d6875",
    "line": "#d9dde2",
    "accent": "#0b6bb8",
    "floor": "#9aa5b1",
    "warm": "#c2610c",
}
"""CSS variable -> light colour, and the stand-in for it while matplotlib draws. No two may be
equal."""

PANEL_INCHES, PICTURE_DPI = (4.6, 3.0), 144


@dataclass(frozen=True)
class Panel:
    """One picture under a title.

    Attributes:
        title: what is to be seen, in a few words.
        svg: the drawing, with its title in it; "" for an animation.
        webp, still: an animation of pixels, and one frame of it for readers who asked their system
            for less motion; b"" for a drawing.
    """

    title: str
    svg: str = ""
    webp: bytes = b""
    still: bytes = b""


def draw(title: str, draw_on: Callable[[Axes], None], height: float = PANEL_INCHES[1]) -> Panel:
    """One axes under a title.

    Args:
        draw_on: draws on the axes, with colours of `THEME`.
        height: in inches, of a panel that is 4.6 wide.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    muted, line = THEME["muted"], THEME["line"]
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "text.parse_math": False,  # names come from data files: a "$" in one is a dollar
        # names that are the same every time, and differ between the panels of a page
        "svg.hashsalt": title,
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
        draw_on(axes)
        drawn = io.StringIO()
        # not by savefig, which draws everything twice, the first time for the layout alone
        figure.set_dpi(PICTURE_DPI)
        FigureCanvasSVG(figure).print_svg(
            drawn, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    return Panel(title, _for_a_page(drawn.getvalue(), title))


def points(axes: Axes, places: np.ndarray, **how: Any) -> Any:
    """A cloud as a picture inside the SVG: a thousand circles would weigh more than all else on the
    page."""
    axes.grid(color=THEME["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    return axes.scatter(
        places[:, 0], places[:, 1], s=9, linewidths=0, alpha=0.85, rasterized=True, **how
    )


def shades() -> Any:
    """Viridis without its ends, of which one vanishes on black and the other on white."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    return ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.16, 0.94, 256)))


def plain_decades(axis: Axis) -> None:
    """0.1 rather than 10 to the minus 1, and no more marks than the range needs."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = axis.get_view_interval()
    steps = (1, 2, 5) if high < 200 * low else (1,)
    axis.set_major_locator(LogLocator(subs=steps) if high > 5 * low else MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def label(name: str, unit: str) -> str:
    return f"{name}, {unit}" if unit else name


def _for_a_page(svg: str, title: str) -> str:
    """Keep the drawing: no prologue, no size of its own, no numbered names that two panels would
    share, themed colours."""
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
    said = f'role="img" aria-label="{html.escape(title)}"'
    return f'<svg {namespaces} viewBox="{box[1]}" {said}>{body.rstrip()}'
