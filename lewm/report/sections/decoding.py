"""Pictures drawn from latents, beside the truth: of frames that were seen, and of frames that were
imagined."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lewm.analyses.decoding import Course, DecodingResult
from lewm.report import canvas
from lewm.report.canvas import THEME, Panel
from lewm.report.rivals import RANKED_BY
from lewm.report.verdicts import FAILS, HOLDS, PARTLY, Evidence, Finding, spanned
from lewm.report.words import interval_words, tenths, whole_percent, with_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

__all__ = ["draw"]

TITLE, ORDER = "Looking at what it imagines", 50

PICTURE_PX, STRIP_PX, GAP_PX, MARGIN_PX = 192, 128, 8, 14
"""A panel is some 800 pixels wide and is shown half as wide, on a phone less: hence also the size
of the text."""

TEXT_PX, LINE_PX = 31, 46
INK, MUTED, ACCENT, EDGE = "#1d2329", "#5d6875", "#0b6bb8", "#c3c9d0"
"""On white, whatever the page: pictures keep their own light, so the text beside them must."""

FRAME_MS, END_MS = 450, 1800
STRIP_COLUMNS = 6
QUALITY = 86


def draw(result: DecodingResult) -> list[Panel]:
    """Reconstructions, imagined ways that move, and how far they are off."""
    return [_reconstructions(result), *_ways(result), _curves(result)]


def _reconstructions(result: DecodingResult) -> Panel:
    picture = _webp([_grid(vars(result.pictures), "better decoded", "worse")])
    title = "held-out frames, at equal steps of rank by error"
    return Panel(title, webp=picture, still=picture)


def _ways(result: DecodingResult) -> list[Panel]:
    """One panel per clip; standing still it is a strip over time."""
    drawn = []
    for k, clip in enumerate(result.clips):
        films = {name: film[k] for name, film in vars(result.films).items()}
        horizon, frameskip = len(films["truth"]) - 1, result.frameskip
        frames = [_side_by_side(films, t, horizon, frameskip) for t in range(horizon + 1)]
        chosen = np.rint(np.linspace(0, horizon, min(STRIP_COLUMNS, horizon + 1))).astype(int)
        strip = _grid(
            {name: film[chosen] for name, film in films.items()},
            "start",
            f"{horizon * frameskip} steps on",
        )
        title = (
            f"{horizon * frameskip} steps imagined of episode {clip.episode}, from step "
            f"{clip.env_step}"
        )
        drawn.append(Panel(title, webp=_webp(frames), still=_webp([strip])))
    return drawn


def _curves(result: DecodingResult) -> Panel:
    """Error over the horizon, as a share of the mean picture's."""
    found = result.imagination
    styles: dict[str, tuple[Course, str, Any]] = {
        "imagined": (found.imagined, "accent", "-"),
        "encoded (decoder alone)": (found.encoded, "ink", (0, (1, 1.5))),
        "nearest frame": (found.nearest, "floor", "-"),
        "first frame kept": (found.copy, "warm", (0, (5, 2))),
    }

    def draw_on(axes: Axes) -> None:
        steps = np.arange(result.horizon + 1) * result.frameskip
        for label, (curve, colour, dashes) in styles.items():
            if curve in (found.imagined, found.copy):
                axes.fill_between(
                    steps, curve.low, curve.high, color=THEME[colour], alpha=0.16, linewidth=0
                )
            axes.plot(
                steps,
                curve.share,
                color=THEME[colour],
                linestyle=dashes,
                linewidth=1.9,
                label=label,
            )
        axes.axhline(1, color=THEME["muted"], linewidth=1, zorder=0)
        axes.set_xlim(0, steps[-1])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("env steps imagined")
        axes.set_ylabel("error, 1 = mean picture")
        axes.grid(axis="y", color=THEME["line"], linewidth=0.8)
        axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.2),
            frameon=False,
            fontsize=10,
            labelcolor=THEME["ink"],
            ncols=2,
        )

    return canvas.draw(
        f"error of imagined pictures, {result.windows} episodes", draw_on, height=3.6
    )


def _side_by_side(films: dict[str, np.ndarray], t: int, horizon: int, frameskip: int) -> np.ndarray:
    """(h, w, 3) uint8: what was, is decoded, imagined and remembered after t blocks, under their
    names, and how far it is."""
    from PIL import ImageDraw

    width = 2 * MARGIN_PX + len(films) * PICTURE_PX + (len(films) - 1) * GAP_PX
    card = _card(width, 2 * LINE_PX + PICTURE_PX + MARGIN_PX)
    pen = ImageDraw.Draw(card)
    for k, (name, film) in enumerate(films.items()):
        left = MARGIN_PX + k * (PICTURE_PX + GAP_PX)
        _text(
            pen,
            left + PICTURE_PX // 2,
            LINE_PX // 2,
            name,
            ACCENT if name == "imagined" else INK,
            "mm",
        )
        _paste(card, film[t], left, LINE_PX, PICTURE_PX)
    below = LINE_PX + PICTURE_PX + MARGIN_PX
    words = f"{t * frameskip} steps imagined" if t else "the frame it starts from"
    _text(pen, MARGIN_PX, below + LINE_PX // 2, words, MUTED, "lm")
    start, end = width // 2, width - MARGIN_PX
    middle = below + LINE_PX // 2
    pen.rounded_rectangle((start, middle - 4, end, middle + 4), 4, fill=EDGE)
    if t:
        pen.rounded_rectangle(
            (start, middle - 4, start + (end - start) * t // horizon, middle + 4), 4, fill=ACCENT
        )
    return np.asarray(card)


def _grid(rows: dict[str, np.ndarray], first: str, last: str) -> np.ndarray:
    """(h, w, 3) uint8: a row of (n, h, w, 3) pictures per name, and what the first and the last
    column are."""
    from PIL import ImageDraw

    columns, side, names = len(next(iter(rows.values()))), STRIP_PX, 5 * TEXT_PX
    width = MARGIN_PX + names + columns * (side + GAP_PX) - GAP_PX + MARGIN_PX
    card = _card(width, LINE_PX + len(rows) * (side + GAP_PX) + MARGIN_PX - GAP_PX)
    pen = ImageDraw.Draw(card)
    left = MARGIN_PX + names
    _text(pen, left, LINE_PX // 2, first, MUTED, "lm")
    _text(pen, width - MARGIN_PX, LINE_PX // 2, last, MUTED, "rm")
    for r, (name, pictures) in enumerate(rows.items()):
        top = LINE_PX + r * (side + GAP_PX)
        _text(pen, MARGIN_PX, top + side // 2, name, ACCENT if name == "imagined" else INK, "lm")
        for c, picture in enumerate(pictures):
            _paste(card, picture, left + c * (side + GAP_PX), top, side)
    return np.asarray(card)


def _card(width: int, height: int) -> Image:
    from PIL import Image

    return Image.new("RGB", (width, height), "white")


def _text(pen: Any, x: int, y: int, words: str, colour: str, anchor: str) -> None:
    from PIL import ImageFont

    # Pillow's own: no machine's
    pen.text((x, y), words, fill=colour, font=ImageFont.load_default(TEXT_PX), anchor=anchor)


def _paste(card: Image, picture: np.ndarray, left: int, top: int, side: int) -> None:
    """Small pictures stay crisp squares: it is what the model sees. Others are resampled."""
    from PIL import Image, ImageDraw

    how = Image.Resampling.NEAREST if side % len(picture) == 0 else Image.Resampling.LANCZOS
    card.paste(Image.fromarray(picture).resize((side, side), how), (left, top))
    ImageDraw.Draw(card).rectangle((left - 1, top - 1, left + side, top + side), outline=EDGE)


def _webp(frames: Sequence[np.ndarray]) -> bytes:
    from PIL import Image

    first, *others = (Image.fromarray(frame) for frame in frames)
    durations = [FRAME_MS] * len(others) + [END_MS]
    written = io.BytesIO()
    moving: dict[str, Any] = (
        {"save_all": True, "append_images": others, "duration": durations, "loop": 0}
        if others
        else {}
    )
    first.save(written, format="WEBP", quality=QUALITY, method=3, **moving)
    return written.getvalue()


# ------------------------------------------------------------------------------------------- words


def sentences(result: DecodingResult) -> list[str]:
    """What the decoder leaves of the error, on frames that were seen and that were imagined."""
    drawn, ahead = result.reconstruction, result.imagination
    own = f"{tenths(drawn.decoder.share)} of the error of the mean picture"
    imagined, kept, seen = (
        whole_percent(of.share[-1]) for of in (ahead.imagined, ahead.copy, ahead.encoded)
    )
    return [
        "A decoder was fitted to the frozen latents, for looking only.",
        "It takes no part in training or planning.",
        f"On {result.test_frames} held-out frames it leaves {own} "
        f"({interval_words(drawn.decoder.share_interval, tenths)}).",
        f"The nearest frame that it learnt from leaves {tenths(drawn.nearest.share)}.",
        f"With the latents of other frames it would be {tenths(drawn.other_latents.share)}.",
        f"After {result.horizon * result.frameskip} imagined steps the drawn picture is off by "
        f"{imagined} of that error.",
        f"If the first frame were kept, it would be {kept}.",
        f"On the frames that came, the decoder alone is off by {seen}.",
    ]


def headlines(result: DecodingResult) -> dict[str, str]:
    """What the decoder leaves of the error."""
    own = result.reconstruction.decoder
    return {
        "decoder error, of the mean picture's": with_interval(own.share, own.share_interval, tenths)
    }


# ------------------------------------------------------------------------------------------ claims


def looking_only(evidence: Evidence) -> Finding | None:
    """The decoder is for looking only."""
    if not (answers := evidence.answers(DecodingResult)):
        return None
    told = []
    for world, results in answers.items():
        drawn = [result.reconstruction.decoder for result in results]
        shares, peaks = (
            spanned([d.share for d in drawn], ".3f"),
            spanned([d.psnr for d in drawn], ".1f"),
        )
        told.append(f"{world}: {shares} of the error of the mean picture, PSNR {peaks} dB")
    cost, verdict = "What a reconstruction loss in training would cost was not run.", PARTLY
    for world in dict.fromkeys((*answers, "two-room", "push-t")):
        standings = evidence.standings(world)
        ours, drawing = standings.get("lewm"), standings.get("lewm-reconstruction")
        if ours is None or drawing is None:
            continue
        if found := ours.against(drawing, RANKED_BY):
            told.append(
                f"{world}, success 75 steps ahead: {drawing.mean(RANKED_BY):.1%} with a "
                f"reconstruction loss, {ours.mean(RANKED_BY):.1%} without"
            )
            verdict = HOLDS if found.better > 0 else FAILS if found.better < 0 else verdict
            cost = "With a reconstruction loss in training beside it: same data, pairs and search."
    why = (
        "By construction: the decoder is fitted to frozen latents, and a test holds the weights "
        f"bit-identical. {cost}"
    )
    return Finding("; ".join(told), verdict, why)


JUDGES = {18: looking_only}
