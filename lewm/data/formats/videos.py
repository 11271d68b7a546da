"""A folder of videos with their actions in CSV: what anybody can make. Each video is an episode.

Two conventions:

    one CSV per video      push-1.mp4 and push-1.csv side by side, at any depth
    one for all            actions.csv at the top, whose column `video` (or `episode`) says which
                           video a row belongs to, by its path in the folder, its name, or its name
                           without the ending

A CSV begins with a line of column names. Row t belongs to frame t: its numbers are the action taken
from that frame on. There is a row for every frame, the last of which leads to nothing that was
recorded and is dropped, or one row fewer. Columns called `frame` or `step` must count 0, 1, 2 along
a video; neither they nor a time of any spelling are actions. Every other column is one unless it is
asked for as state.

Cells are separated by commas, semicolons or tabs, whichever the line of names has most of. Where it
is not commas, 0,5 is a half. What begins with a dot belongs to some system, and is not read. A GIF
without actions among other videos is a preview, and is left out with a note.
"""

from __future__ import annotations

import csv
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from lewm.data import footage
from lewm.data.provenance import Provenance

__all__ = ["Videos"]

SUFFIXES = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".gif")
SHARED, PREVIEW = "actions.csv", ".gif"
OWNERS, COUNTERS = ("video", "episode"), ("frame", "step")

SEPARATORS = (",", ";", "\t")

TABLE_BYTES = 1 << 28
"""Of a CSV, which is held in memory: some two million rows."""

NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.I | re.A)

UNEVEN = 0.5
"""Share of the usual step between two frames by which another is longer or shorter, so that one
seems to be missing or to come twice."""


class Videos:
    """An opened folder. See `sources.Source`."""

    unfit = "an episode file: `lewm data convert` makes one of these recordings"
    provenance = Provenance()
    cameras = ("video",)

    @staticmethod
    def recognises(path: Path) -> bool:
        return path.is_dir() and not (path / "meta" / "info.json").exists() and any(_videos(path))

    def __init__(self, path: Path):
        self.path, videos, shared = path, sorted(_videos(path)), path / SHARED
        if shared.is_file():
            self._tables = _by_video(shared, videos)
        else:
            owned = [video for video in videos if not _is_preview(video, videos)]
            self._tables = {video: _own(video) for video in owned}
            _refuse_widows(path, self._tables)
        if stray := [video.name for video in videos if video not in self._tables]:
            warnings.warn(
                f"{path}: left out {', '.join(stray[:5])}, which no row of actions belongs to",
                stacklevel=2,
            )
        self._videos = list(self._tables)
        heads = {tuple(table.columns): table for table in self._tables.values()}
        if len(heads) > 1:
            (one, a), (other, b) = list(heads.items())[:2]
            got = f"{', '.join(one)} in {a.path} and {', '.join(other)} in {b.path}"
            raise ValueError(
                f"{path}: expected the same columns for every video, got {got}. Name them alike."
            )

    def close(self) -> None:
        """Nothing is held open."""

    @cached_property
    def _counts(self) -> list[int | ValueError]:
        """Frames of each video, or why it has none."""
        found: list[int | ValueError] = []
        for video in self._videos:
            try:
                found.append(footage.count(video))
            except ValueError as error:
                found.append(error)
        return found

    @cached_property
    def lengths(self) -> np.ndarray:
        """A video that does not open counts 0 and is refused when it is read, so that it can be
        left out."""
        return np.array([0 if isinstance(n, ValueError) else n for n in self._counts], np.int64)

    @property
    def columns(self) -> dict[str, str]:
        return dict.fromkeys(self.actions, "number")

    @property
    def actions(self) -> tuple[str, ...]:
        columns = self._tables[self._videos[0]].columns
        return tuple(name for name in columns if name not in OWNERS + COUNTERS)

    @property
    def states(self) -> tuple[str, ...]:
        return ()

    def names(self, column: str) -> tuple[str, ...]:
        return (column,)

    def origin(self, i: int) -> str:
        return f"{self._videos[i]} with {self._tables[self._videos[i]].path.name}"

    def read(self, i: int, columns: Sequence[str]) -> Mapping[str, np.ndarray]:
        self._refuse_unopened(i)
        table = self._tables[self._videos[i]]
        table.refuse_gaps()
        return {name: table.numbers(name) for name in columns}

    def pictures(self, i: int, camera: str) -> Iterator[np.ndarray]:
        self._refuse_unopened(i)
        times = []
        for time, picture in footage.frames(self._videos[i]):
            times.append(time)
            yield picture
        steps = np.diff(times)
        usual = float(np.median(steps)) if len(steps) else 0.0
        odd = np.flatnonzero(np.abs(steps - usual) > UNEVEN * usual)
        if len(odd):
            warnings.warn(
                f"{self._videos[i]}: frames are not evenly spaced: step {odd[0]} takes "
                f"{steps[odd[0]]:.3f} s and most take {usual:.3f} s ({len(odd)} such steps). Rows "
                "belong to frames by their number, not by their time",
                stacklevel=2,
            )

    def _refuse_unopened(self, i: int) -> None:
        count = self._counts[i]
        if isinstance(count, ValueError):
            raise count


class _Table:
    """The rows of one video, as text until they are asked for."""

    def __init__(
        self,
        path: Path,
        columns: Sequence[str],
        rows: Sequence[tuple[int, list[str]]],
        commas: bool,
    ):
        self.path, self.columns, self._rows, self._commas = path, columns, rows, commas

    def refuse_gaps(self) -> None:
        for name in set(COUNTERS) & set(self.columns):
            counted = self.numbers(name)
            wrong = np.flatnonzero(counted != np.arange(len(counted)))
            if len(wrong):
                got = f"{counted[wrong[0]]:g} in line {self._rows[wrong[0]][0]}"
                raise ValueError(
                    f"{self.path}: expected '{name}' to count 0, 1, 2, got {got}. Sort the rows, "
                    "or add those missing."
                )

    def numbers(self, column: str) -> np.ndarray:
        """(rows,) of one column; an empty cell is NaN, which may stand in a video's last row
        only."""
        place, found = list(self.columns).index(column), np.empty(len(self._rows))
        for k, (line, cells) in enumerate(self._rows):
            cell = cells[place] or "nan"
            if self._commas and "." not in cell:
                cell = cell.replace(",", ".", 1)
            if not NUMBER.fullmatch(cell):
                names = (name for name in self.columns if name not in OWNERS + COUNTERS)
                others = [name for name in names if name != column]
                raise ValueError(
                    f"{self.path}: expected numbers in column '{column}', got "
                    f"'{cells[place]:.40}' in line {line}, row {k} of the video. Write a number "
                    "there, or choose the columns that are actions, such as --action-columns "
                    f"{','.join(others[:3]) or column}."
                )
            found[k] = float(cell)
        return found


def _videos(folder: Path) -> Iterator[Path]:
    return (
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file() and not _is_hidden(path, folder)
    )


def _is_hidden(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _is_preview(video: Path, videos: Sequence[Path]) -> bool:
    return (
        video.suffix.lower() == PREVIEW
        and not video.with_suffix(".csv").is_file()
        and any(other.suffix.lower() != PREVIEW for other in videos)
    )


def _own(video: Path) -> _Table:
    path = video.with_suffix(".csv")
    if not path.is_file():
        cure = f"Put one there, or one '{SHARED}' with a column 'video' at the top of the folder"
        raise ValueError(
            f"{video}: expected its actions in {path.name} beside it, got no such file. {cure}. If "
            "the video is no episode, move it elsewhere."
        )
    return _Table(path, *_parsed(path))


def _refuse_widows(folder: Path, tables: Mapping[Path, _Table]) -> None:
    """Refuse a CSV of the videos' own columns that lies beside no video: an episode is lost."""
    known = {tuple(table.columns) for table in tables.values()}
    owned = {table.path for table in tables.values()}
    for path in sorted(folder.rglob("*.csv")):
        if path in owned or _is_hidden(path, folder) or not path.is_file():
            continue
        try:
            alike = tuple(_parsed(path)[0]) in known
        except ValueError:  # another table, which nobody asked for
            continue
        if alike:
            raise ValueError(
                f"{path}: expected its video beside it, such as {path.stem}.mp4, got none. Fetch "
                "the video, or move the table elsewhere."
            )


def _by_video(path: Path, videos: Sequence[Path]) -> dict[Path, _Table]:
    columns, rows, commas = _parsed(path)
    owner = next((name for name in OWNERS if name in columns), None)
    if owner is None:
        got = ", ".join(columns)
        raise ValueError(
            f"{path}: expected a column 'video' that says which video a row belongs to, got "
            f"{got:.200}. Add it."
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
                f"{path}: expected rows of the videos beside it, got '{name:.100}' in line {line}, "
                f"which {problem}. {cure}."
            )
        own[video_of[name]].append((line, cells))
    for video, found in zip(videos, own):
        if not found and not _is_preview(video, videos):
            raise ValueError(
                f"{video}: expected its actions in {path}, got no row. Add them, or move the "
                "video elsewhere."
            )
    return {
        video: _Table(path, columns, found, commas) for video, found in zip(videos, own) if found
    }


def _parsed(path: Path) -> tuple[list[str], list[tuple[int, list[str]]], bool]:
    """The column names of a CSV, its rows with their line numbers, and whether a comma is the point
    of its decimals."""
    if (size := path.stat().st_size) > TABLE_BYTES:
        raise ValueError(
            f"{path}: expected at most {TABLE_BYTES} bytes, got {size}. Give every video a CSV of "
            "its own."
        )
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            names = file.readline()
            separator = max(SEPARATORS, key=names.count)
            file.seek(0)
            reader = csv.reader(file, delimiter=separator)
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
        got = f"'{','.join(rows[0][1]):.200}'" if rows else "an empty file"
        raise ValueError(
            f"{path}: expected a first line of column names, each another, got {got}. Add it."
        )
    columns = rows[0][1]
    for line, cells in rows[1:]:
        if len(cells) != len(columns):
            raise ValueError(
                f"{path}: expected {len(columns)} cells in every line, got {len(cells)} in line "
                f"{line}. Give it as many as there are names, empty ones included; a comma inside "
                "a number needs ; between the cells."
            )
    return columns, rows[1:], separator != ","
