"""A planned episode as moving pictures: what the agent sees, what it imagines, what it does. Draws,
computes nothing.

At each replan the search is shown round by round: a dot where each of the cheapest candidates is
imagined to end, read from its latent by a probe, thinning out towards the plan. Then the imagined
way of the chosen plan, then its execution.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lewm.evaluation.recordings import Recording
from lewm.files import write_atomically
from lewm.planning.trace import Replan

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

__all__ = ["FORMATS", "Clip", "Frame", "View", "draw_episode", "encode_animation", "save_animation"]

FORMATS = (".gif", ".mp4", ".webp")

SCENE_PX, GOAL_PX, MARGIN_PX = 320, 128, 12
STEP_MS, ROUND_MS, PLAN_MS, END_MS = 90, 420, 700, 2200

Colour = tuple[int, int, int]
INK, MUTED, FRAME = (29, 35, 41), (93, 104, 117), (195, 201, 208)
WALKED, IMAGINED, GOAL, FAILED = (0, 96, 172), (221, 120, 0), (0, 138, 98), (190, 50, 30)
"""Told apart with any kind of colour vision, by lightness and by the form of what they colour.
Source: after Okabe and Ito."""

LEGEND = ((WALKED, "walked"), (IMAGINED, "imagined"), (GOAL, "goal"))

ONE_KEYFRAME = 10_000
"""Frames after which a WebP would begin anew. Only what changes is stored of all but the first: a
third smaller than with Pillow's 5, and made in three fifths of the time."""

SMOOTH = 2
"""Lines are drawn this many times larger and averaged down."""


@dataclass(frozen=True)
class Clip:
    """One planned episode.

    Attributes:
        caption: what is to be seen, in a few words.
        solved: whether it reached its goal.
        animation, still: WebP; the still is for print and for readers who asked their system for
            less motion.
        places, searches: whether it shows imagined places, and the rounds of a search.
    """

    caption: str
    solved: bool
    animation: bytes
    still: bytes
    places: bool
    searches: bool


@dataclass(frozen=True)
class View:
    """How to draw states and latents into a picture.

    Attributes:
        read: (..., D) latents -> (..., S) states, such as `Probe.predict`.
        extent: width of the picture in the unit of the first two state variables, which are its x
            and y; as in Two-Room, a whole number k is the middle of pixel k of a picture that wide.
        tolerance: radius of success in the same unit.
    """

    read: Callable[[np.ndarray], np.ndarray]
    extent: float
    tolerance: float

    def places(self, states: np.ndarray) -> np.ndarray:
        """(n, S) -> (n, 2) from 0 at the left and upper edge of the picture to 1 at the others."""
        return (np.asarray(states)[..., :2].reshape(-1, 2) + 0.5) / self.extent


@dataclass(frozen=True)
class Frame:
    """(h, w, 3) uint8 pixels, shown for so long."""

    pixels: np.ndarray
    milliseconds: int


def draw_episode(recording: Recording, budget: int, view: View | None = None) -> list[Frame]:
    """Draw an attempt with its searches.

    Args:
        recording: of `evaluate.record_episodes`.
        budget: env steps that were allowed.
        view: None for worlds whose state is no place in the picture: observation, goal and captions
            only.
    """
    frames: list[Frame] = []
    step = 0
    replans = {replan.step: replan for replan in recording.replans}
    current: Replan | None = None
    steps = len(recording.actions)

    def add(
        milliseconds: int,
        line: str,
        below: str = "",
        marks: _Marks | None = None,
        colour: Colour = MUTED,
    ) -> None:
        caption = _Caption(f"step {step} / {budget}", line, below, colour)
        frames.append(Frame(_card(recording, step, view, caption, marks), milliseconds))

    for step in range(steps + 1):
        if step in replans and step < steps:
            current = replans[step]
            rounds = [scored for scored in current.rounds if scored.costs.shape[1] > 1]
            for number, scored in enumerate(rounds, 1):
                ends = _Marks(ends=view.read(scored.ends[0])) if view else None
                add(
                    ROUND_MS,
                    f"imagining {scored.costs.shape[1]} plans",
                    f"round {number} of {len(rounds)}",
                    ends,
                )
            add(PLAN_MS, "the chosen plan", marks=_way(recording, current, view))
        way = _way(recording, current, view, faint=True)
        if step < steps:
            add(STEP_MS, "executing it", marks=way)
        elif recording.success_step is None:
            add(END_MS, "goal not reached", f"in {steps} steps", way, FAILED)
        else:
            add(END_MS, "goal reached", f"after {steps} steps", way, GOAL)
    return frames


def save_animation(frames: Sequence[Frame], path: Path | str) -> Path:
    """Write an animation in the format that the suffix of `path` names; an old file is replaced
    only by a whole new one.

    Raises:
        ValueError: an unknown suffix.
        ImportError: MP4 without PyAV.
    """
    path = Path(path)
    write_atomically(path, encode_animation(frames, path.suffix))
    return path


def encode_animation(frames: Sequence[Frame], suffix: str) -> bytes:
    """The bytes of an animation that repeats for ever; `suffix` is one of `FORMATS`. Errors as in
    `save_animation`."""
    if suffix.lower() not in FORMATS:
        raise ValueError(
            f"expected a file name that ends in {', '.join(FORMATS)}, got '{suffix}'. Rename the "
            "output file."
        )
    if not frames:
        raise ValueError("expected at least one frame to animate, got none.")
    if suffix.lower() == ".mp4":
        return _mp4(frames)
    from PIL import Image

    images = [Image.fromarray(frame.pixels) for frame in frames]
    settings: dict[str, Any] = {"quality": 78, "method": 2, "minimize_size": False}
    settings |= {"kmin": ONE_KEYFRAME - 1, "kmax": ONE_KEYFRAME}
    if suffix.lower() == ".gif":
        # One palette for all frames, or the colours of a still wall would flicker.
        sample = np.concatenate([frame.pixels for frame in frames[:: max(1, len(frames) // 8)]])
        palette = Image.fromarray(sample).quantize(colors=128, method=Image.Quantize.FASTOCTREE)
        images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
        settings = {"optimize": False}
    written = io.BytesIO()
    images[0].save(
        written,
        format=suffix[1:].upper(),
        save_all=True,
        append_images=images[1:],
        duration=[frame.milliseconds for frame in frames],
        loop=0,
        **settings,
    )
    return written.getvalue()


# ------------------------------------------------------------------------------------------ drawing


@dataclass(frozen=True)
class _Marks:
    """What is imagined: (n, S) ends of candidates, cheapest first, or the (H+1, S) way of a plan
    from where it begins."""

    ends: np.ndarray | None = None
    way: np.ndarray | None = None
    faint: bool = False


@dataclass(frozen=True)
class _Caption:
    """Three lines; the last two share a colour."""

    step: str
    line: str
    below: str
    colour: Colour


def _way(
    recording: Recording, replan: Replan | None, view: View | None, faint: bool = False
) -> _Marks | None:
    """From where the dot is, through the states that the plan is imagined to pass at the end of
    each block."""
    if view is None or replan is None:
        return None
    here, imagined = recording.states[replan.step][None, :2], view.read(replan.latents[0])[:, :2]
    return _Marks(way=np.concatenate([here, imagined]), faint=faint)


def _card(
    recording: Recording, step: int, view: View | None, caption: _Caption, marks: _Marks | None
) -> np.ndarray:
    """(h, w, 3) uint8: the scene at the left; goal picture, captions and legend beside it."""
    from PIL import Image, ImageDraw

    width, height = SCENE_PX + GOAL_PX + 3 * MARGIN_PX, SCENE_PX + 2 * MARGIN_PX
    card = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(card)
    scene = _enlarged(recording.pixels[step], SCENE_PX)
    if view is not None:
        walked = view.places(recording.states[: step + 1])
        scene = Image.alpha_composite(
            scene.convert("RGBA"), _overlay(view, recording.goal_state, walked, marks)
        ).convert("RGB")
    left, top = SCENE_PX + 2 * MARGIN_PX, MARGIN_PX + 20
    for picture, x, y in (
        (scene, MARGIN_PX, MARGIN_PX),
        (_enlarged(recording.goal_pixels, GOAL_PX), left, top),
    ):
        card.paste(picture, (x, y))
        draw.rectangle((x, y, x + picture.width - 1, y + picture.height - 1), outline=FRAME)
    # Pillow's own: no machine's fonts matter
    small, large = _font(14), _font(17)
    draw.text((left, MARGIN_PX - 2), "goal picture", fill=MUTED, font=small)
    top += GOAL_PX + 12
    draw.text((left, top), caption.step, fill=INK, font=large)
    draw.text((left, top + 26), caption.line, fill=caption.colour, font=small)
    draw.text((left, top + 45), caption.below, fill=caption.colour, font=small)
    for k, (colour, words) in enumerate(LEGEND if view is not None else ()):
        y = height - MARGIN_PX - 14 - 20 * (len(LEGEND) - 1 - k)
        draw.ellipse((left, y + 2, left + 9, y + 11), fill=colour)
        draw.text((left + 16, y - 3), words, fill=INK, font=small)
    return np.asarray(card)


@functools.cache
def _font(size: int) -> FreeTypeFont | ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _overlay(view: View, goal_state: np.ndarray, walked: np.ndarray, marks: _Marks | None) -> Image:
    """Everything drawn over an observation, on a transparent picture of its size."""
    from PIL import Image, ImageDraw

    side = SCENE_PX * SMOOTH
    overlay = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(overlay)

    def points(places: np.ndarray) -> list[tuple[float, float]]:
        return [(float(x) * side, float(y) * side) for x, y in places]

    def circle(place: tuple[float, float], radius: float, **how: Any) -> None:
        (x, y), r = place, radius * SMOOTH
        draw.ellipse((x - r, y - r, x + r, y + r), **how)

    goal = points(view.places(goal_state))[0]
    circle(goal, view.tolerance / view.extent * SCENE_PX, outline=(*GOAL, 255), width=2 * SMOOTH)
    circle(goal, 2, fill=(*GOAL, 255))
    if marks is not None and marks.ends is not None:
        ends = points(view.places(marks.ends))
        for rank in range(len(ends) - 1, -1, -1):  # the cheapest last, on top
            circle(
                ends[rank],
                4,
                fill=(*IMAGINED, 220 - 150 * rank // len(ends)),
                outline=(255, 255, 255, 200),
                width=1,
            )
    draw.line(points(walked), fill=(*WALKED, 255), width=3 * SMOOTH, joint="curve")
    circle(points(walked)[0], 3.5, fill=(*WALKED, 255))
    if marks is not None and marks.way is not None:
        way, opacity = points(view.places(marks.way)), 110 if marks.faint else 255
        draw.line(way, fill=(*IMAGINED, opacity), width=2 * SMOOTH)
        for place in way[1:]:
            circle(
                place,
                4.5,
                fill=(255, 255, 255, opacity),
                outline=(*IMAGINED, opacity),
                width=2 * SMOOTH,
            )
    return overlay.reduce(SMOOTH)


def _enlarged(pixels: np.ndarray, side: int) -> Image:
    """Small pictures stay crisp squares: it is what the model sees. Large ones are resampled."""
    from PIL import Image

    how = Image.Resampling.NEAREST if side >= 2 * len(pixels) else Image.Resampling.LANCZOS
    return Image.fromarray(pixels).resize((side, side), how)


def _mp4(frames: Sequence[Frame]) -> bytes:
    try:
        import av
    except ModuleNotFoundError as error:
        raise ImportError(
            "MP4 needs the package 'av'. Install it with: pip install 'lewm[video]', or write a "
            ".gif.",
            name="av",
        ) from error
    from fractions import Fraction

    # what nearly every player can show has even sides
    height, width = (2 * (side // 2) for side in frames[0].pixels.shape[:2])
    written = io.BytesIO()
    with av.open(written, "w", format="mp4") as container:
        stream = container.add_stream(
            "libx264", rate=Fraction(1000, STEP_MS), options={"crf": "18"}
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(frame.pixels[:height, :width]), format="rgb24"
            )
            for _ in range(max(1, round(frame.milliseconds / STEP_MS))):
                container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return written.getvalue()
