"""A folder of videos with their actions in CSV: what anybody can make. Each video is an episode.

Two conventions:

    one CSV per video      push-1.mp4 and push-1.csv side by side, at any depth
    one for all            actions.csv at the top, whose column `video` (or `episode`) says which
                           video a row belongs to, by its path in the folder, its name, or its name
                           without the ending

A CSV begins with a line of column names. Row t belongs to frame t: its numbers are the action taken
from that frame on. There is a row for every frame, the last of which leads to nothing that was
recorded and is dropped, or one row fewer. Columns called `frame` or `step` must count 0, 1, 2 along
a video; neither they nor `time` and `timestamp` are actions. Every other column is one unless it is
asked for as state.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import av
import numpy as np

from lewm.data.provenance import Provenance

__all__ = ["Videos"]

SUFFIXES = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".gif")
SHARED = "actions.csv"
OWNERS, COUNTERS, TIMES = ("video", "episode"), ("frame", "step"), ("time", "timestamp")


class Videos:
    """An opened folder. See `sources.Source`."""

    unfit = "an episode file: `lewm data convert` makes one of these recordings"
    provenance = Provenance()
    cameras = ("video",)

    @staticmethod
    def recognises(path: Path) -> bool:
        return path.is_dir() and not (path / "meta" / "info.json").exists() and any(_videos(path))

    def __init__(self, path: Path):
        self.path = path
        self._videos = sorted(_videos(path))
        shared = path / SHARED
        self._tables = (
            _by_video(shared, self._videos)
            if shared.is_file()
            else [_own(video) for video in self._videos]
        )
        heads = {tuple(table.columns): table for table in self._tables}
        if len(heads) > 1:
            (one, a), (other, b) = list(heads.items())[:2]
            got = f"{', '.join(one)} in {a.path} and {', '.join(other)} in {b.path}"
            raise ValueError(
                f"{path}: expected the same columns for every video, got {got}. Name them alike."
            )

    def close(self) -> None:
        """Nothing is held open."""

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.array([_count(video) for video in self._videos], np.int64)

    @property
    def columns(self) -> dict[str, str]:
        return dict.fromkeys(self.actions, "number")

    @property
    def actions(self) -> tuple[str, ...]:
        return tuple(
            name for name in self._tables[0].columns if name not in OWNERS + COUNTERS + TIMES
        )

    @property
    def states(self) -> tuple[str, ...]:
        return ()

    def names(self, column: str) -> tuple[str, ...]:
        return (column,)

    def origin(self, i: int) -> str:
        return f"{self._videos[i]} with {self._tables[i].path.name}"

    def read(self, i: int, columns: Sequence[str]) -> Mapping[str, np.ndarray]:
        return {name: self._tables[i].numbers(name) for name in columns}

    def pictures(self, i: int, camera: str) -> Iterator[np.ndarray]:
        path, count = self._videos[i], 0
        try:
            with av.open(str(path), options={"protocol_whitelist": "file"}) as video:
                stream = video.streams.video[0]
                stream.thread_type = "AUTO"
                for frame in video.decode(stream):
                    count += 1
                    yield frame.to_ndarray(format="rgb24")
        except av.FFmpegError as error:
            raise _undecodable(path, f"an error after {count} frames ({error})") from None


class _Table:
    """The rows of one video, as text until they are asked for."""

    def __init__(self, path: Path, columns: Sequence[str], rows: Sequence[tuple[int, list[str]]]):
        self.path, self.columns, self._rows = path, columns, rows
        for name in set(COUNTERS) & set(columns):
            counted = self.numbers(name)
            if (counted != np.arange(len(counted))).any():
                wrong = int(np.argmax(counted != np.arange(len(counted))))
                got = f"{counted[wrong]:g} in line {rows[wrong][0]}"
                raise ValueError(
                    f"{path}: expected '{name}' to count 0, 1, 2, got {got}. Sort the rows, or "
                    "add those missing."
                )

    def numbers(self, column: str) -> np.ndarray:
        """(rows,) of one column; an empty cell is NaN, which may stand in a video's last row
        only."""
        place, found = list(self.columns).index(column), np.empty(len(self._rows))
        for k, (line, cells) in enumerate(self._rows):
            try:
                found[k] = float(cells[place] or "nan")
            except ValueError:
                got = f"'{cells[place]}' in line {line}"
                raise ValueError(
                    f"{self.path}: expected numbers in '{column}', got {got}. Correct the cell."
                ) from None
        return found


def _videos(folder: Path) -> Iterator[Path]:
    return (
        path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()
    )


def _own(video: Path) -> _Table:
    path = video.with_suffix(".csv")
    if not path.is_file():
        cure = f"Put one there, or one '{SHARED}' with a column 'video' at the top of the folder"
        raise ValueError(
            f"{video}: expected its actions in {path.name} beside it, got no such file. {cure}."
        )
    return _Table(path, *_parsed(path))


def _by_video(path: Path, videos: Sequence[Path]) -> list[_Table]:
    columns, rows = _parsed(path)
    owner = next((name for name in OWNERS if name in columns), None)
    if owner is None:
        got = ", ".join(columns)
        raise ValueError(
            f"{path}: expected a column 'video' that says which video a row belongs to, got "
            f"{got}. Add it."
        )
    known = [
        {video.relative_to(path.parent).as_posix(), video.name, video.stem} for video in videos
    ]
    times = Counter(name for names in known for name in names)
    video_of = {name: i for i, names in enumerate(known) for name in names if times[name] == 1}
    own: list[list[tuple[int, list[str]]]] = [[] for _ in videos]
    for line, cells in rows:
        name = cells[columns.index(owner)]
        if name not in video_of:
            problem = "is the name of several" if times[name] else "is none of them"
            cure = (
                "Give the path in the folder" if times[name] else "Drop the row, or add the video"
            )
            raise ValueError(
                f"{path}: expected rows of the videos beside it, got '{name}' in line {line}, "
                f"which {problem}. {cure}."
            )
        own[video_of[name]].append((line, cells))
    for video, found in zip(videos, own):
        if not found:
            raise ValueError(
                f"{video}: expected its actions in {path}, got no row. Add them, or move the "
                "video elsewhere."
            )
    return [_Table(path, columns, found) for found in own]


def _parsed(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The column names of a CSV, and its rows with their line numbers."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            rows = [
                (reader.line_num, [cell.strip() for cell in cells])
                for cells in reader
                if any(cells)
            ]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: expected a CSV in UTF-8, got one that cannot be read ({error}). Save it "
            "again."
        ) from None
    if not rows or len(set(rows[0][1])) != len(rows[0][1]) or "" in rows[0][1]:
        got = f"'{','.join(rows[0][1])}'" if rows else "an empty file"
        raise ValueError(
            f"{path}: expected a first line of column names, each another, got {got}. Add it."
        )
    columns = rows[0][1]
    for line, cells in rows[1:]:
        if len(cells) != len(columns):
            raise ValueError(
                f"{path}: expected {len(columns)} cells in every line, got {len(cells)} in line "
                f"{line}. Correct it."
            )
    return columns, rows[1:]


def _count(path: Path) -> int:
    """How many frames a video has, as it says itself or, where it does not say, counted without
    decoding them."""
    try:
        with av.open(str(path), options={"protocol_whitelist": "file"}) as video:
            stream = video.streams.video[0]
            return stream.frames or sum(1 for packet in video.demux(stream) if packet.size)
    except (av.FFmpegError, IndexError) as error:
        raise _undecodable(path, f"none ({error})") from None


def _undecodable(path: Path, got: str) -> ValueError:
    return ValueError(f"{path}: expected a video that decodes, got {got}. Record or copy it again.")
