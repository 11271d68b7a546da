"""Videos -> frames with their times, upright and in RGB; what the formats with videos share.

Only containers that hold their own pictures are opened. A playlist or a list of other files, which
FFmpeg would follow whatever it is called, is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from lewm.data.pictures import MAX_PIXELS, on_black

__all__ = ["CONTAINERS", "count", "frames"]

CONTAINERS = ("mov", "matroska", "avi", "gif")
"""FFmpeg's names; "mov" is MP4 as well, "matroska" WebM."""

OPTIONS = {"protocol_whitelist": "file", "format_whitelist": ",".join(CONTAINERS)}

ONE = 1 << 16
"""1.0 in a display matrix."""


def frames(path: Path, start: float = 0.0) -> Iterator[tuple[float, np.ndarray]]:
    """Every frame as (seconds, (H, W, 3) uint8), from the last key frame before `start` on.

    A frame that carries a display matrix is turned and mirrored as it says.

    Raises:
        ValueError: the video is named, with what does not decode.
    """
    # one for all frames: each has threads of its own
    number, converter = 0, VideoReformatter()
    with _opened(path) as (video, stream):
        with _explained(path, number):
            stream.thread_type = "AUTO"
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            if start > 0:
                video.seek(round(start / (stream.time_base or 1)), stream=stream)
            decoded = video.decode(stream)
        while True:
            with _explained(path, number):
                frame = next(decoded, None)
                if frame is None:
                    return
                picture, time, corrupt = _rgb(frame, converter), frame.time, frame.is_corrupt
            matrix = _matrix(frame)
            if picture is None or time is None or corrupt or not _is_turn(matrix):
                got = (
                    f"one of {frame.width} x {frame.height} px"
                    if picture is None
                    else "one without a time"
                    if time is None
                    else "a damaged one"
                    if corrupt
                    else f"one that is turned by {matrix.tolist()} / {ONE}"
                )
                raise ValueError(
                    f"{path}: expected whole, upright frames, got {got} after {number}. Encode "
                    "the video again."
                )
            yield time, _turned(picture, matrix)
            number += 1


def count(path: Path) -> int:
    """How many frames a video has, as it says itself or, where it does not say, counted without
    decoding them. ValueError as in `frames`."""
    with _opened(path) as (video, stream), _explained(path, 0):
        return stream.frames or sum(1 for packet in video.demux(stream) if packet.size)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    if not path.is_file():
        raise ValueError(
            f"{path}: expected a video that decodes, got no such file. Fetch it again."
        )
    with _explained(path, 0):
        video = av.open(str(path), options=dict(OPTIONS), metadata_errors="replace")
    with video:
        if not video.streams.video:
            raise ValueError(
                f"{path}: expected a video that decodes, got a file without pictures. Fetch it "
                "again."
            )
        yield video, video.streams.video[0]


@contextmanager
def _explained(path: Path, number: int) -> Iterator[None]:
    """Put what FFmpeg says into words of ours."""
    try:
        yield
    except Exception as error:  # beside its own errors, whatever damaged numbers lead to
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ValueError(
            f"{path}: expected a video that decodes, got an error after {number} frames ({said}). "
            "Fetch or record it again."
        ) from None


def _rgb(frame: Any, converter: VideoReformatter) -> np.ndarray | None:
    """(H, W, 3) uint8; FFmpeg scales what is deeper. None for one that is too large."""
    if frame.width * frame.height > MAX_PIXELS:
        return None
    if any(component.is_alpha for component in frame.format.components):
        return on_black(converter.reformat(frame, format="rgba").to_ndarray())
    return converter.reformat(frame, format="rgb24").to_ndarray()


def _matrix(frame: Any) -> np.ndarray:
    """(2, 2) of how a frame is to be shown: [[x to x, x to y], [y to x, y to y]], times `ONE`."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            return np.frombuffer(bytes(data), np.int32)[:9].reshape(3, 3)[:2, :2]
    return np.diag([ONE, ONE])


def _is_turn(matrix: np.ndarray) -> bool:
    """Whether it is made of quarter turns and mirrors alone."""
    sizes = np.abs(matrix.astype(np.int64))
    return bool((sizes == np.diag([ONE, ONE])).all() or (sizes == ONE - np.diag([ONE, ONE])).all())


def _turned(picture: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    (across, turn_down), (turn_across, down) = matrix
    if not across:  # a column becomes a row
        picture, across, down = picture.swapaxes(0, 1), turn_across, turn_down
    return np.ascontiguousarray(picture[:: np.sign(down), :: np.sign(across)])
