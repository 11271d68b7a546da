"""LeRobot folders, versions 2.0, 2.1 and 3.0: parquet tables, mp4 videos, and an index in `meta/`.

Version 2: one table and one video per episode and camera, and `meta/episodes.jsonl`. Version 3:
many episodes per table and video, and `meta/episodes/`, which says where an episode lies: its file,
and from which second to which. In both versions `meta/info.json` has the path templates, the frame
rate and the columns. Row t of `action` is what was commanded when observation t was seen, so L
observations come with L actions, of which the last leads to nothing that was recorded.

A picture belongs to its row by time: where the episode begins in the video, plus the row's
`timestamp` (or its place on the grid of the rate). Every frame must be there within a tenth of a
frame. Recorded beginnings may drift. Where they contradict the lengths of the episodes before, and
the video holds as many frames as its episodes have rows, the lengths decide.

Source: `datasets/` of huggingface/lerobot, read for the layout; the package itself is not needed.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lewm.data import footage
from lewm.data.provenance import Provenance
from lewm.registry import choose

__all__ = ["LeRobot"]

INDEX = ("frame_index", "episode_index", "index", "task_index")

BEGINNING_AND_END = ("from_timestamp", "to_timestamp")

CLOSE = 0.1
"""Of a frame: how far its time may be from its row's."""

MOST = 1 << 31
"""No number of the index is as large."""

LONGEST = 200
"""Of a path inside the folder."""

PICTURE_BYTES = 1 << 28
"""Of one encoded picture."""

DESCRIPTION_BYTES, INDEX_BYTES = 1 << 24, 1 << 28
"""Of `info.json` and of `episodes.jsonl`, which are read whole. A million episodes take 100 MB."""

CELLS_PER_BYTE = 100
"""More numbers than this for each byte of a table are a bomb; honest ones have about 1."""


@dataclass(frozen=True)
class _Span:
    """A video and the seconds of it that are one episode's; None where all of it is."""

    video: Path
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class _Entry:
    """Where one episode lies."""

    number: int
    length: int
    table: Path
    videos: dict[str, _Span]


class LeRobot:
    """An opened folder. See `sources.Source`."""

    unfit = "an episode file: `lewm data convert` makes one of these recordings"
    provenance = Provenance()

    @staticmethod
    def recognises(path: Path) -> bool:
        return (path / "meta" / "info.json").is_file()

    def __init__(self, path: Path):
        self.path, where = path, path / "meta" / "info.json"
        try:
            self._info = _object(_text(where, DESCRIPTION_BYTES))
            self._features = {
                str(name): _object(feature)
                for name, feature in _object(self._info["features"]).items()
            }
            self._kinds = {name: _word(f["dtype"]) for name, f in self._features.items()}
            self._fps = _number(self._info["fps"], "fps", 1e-3, 1e6)
            version, self._data_path = (
                _word(self._info[name]) for name in ("codebase_version", "data_path")
            )
            self._video_path = _word(self._info["video_path"]) if self._videos else ""
            self._chunk = _whole(self._info.get("chunks_size", 1000), "chunks_size", 1)
            total = self._info.get("total_episodes")
            total = None if total is None else _whole(total, "total_episodes", 1)
        except (KeyError, _Damaged) as error:
            cure = "Fetch the folder again, or have LeRobot write it"
            raise ValueError(
                f"{where}: expected LeRobot's description, got one without it ({error!r}). {cure}."
            ) from None
        if not re.match(r"v?[23]\.", version):
            cure = "LeRobot's own scripts bring older folders to version 2 or 3"
            raise ValueError(f"{where}: expected version 2.0, 2.1 or 3.0, got {version}. {cure}.")
        self._packed = version.lstrip("v").startswith("3")
        self._found: dict[tuple[str, Path], dict[int, _Place | ValueError]] = {}
        try:
            entries = self._index_of_version_3() if self._packed else self._index_of_version_2()
        except (KeyError, _Damaged) as error:
            raise ValueError(
                f"{path / 'meta'}: expected an index of episodes, got a damaged one ({error!r}). "
                "Fetch it again."
            ) from None
        self._entries = sorted(entries, key=lambda entry: entry.number)
        self.lengths = np.array([entry.length for entry in self._entries], np.int64)
        numbers = {entry.number for entry in self._entries}
        if not numbers or total not in (None, len(numbers)) or len(numbers) < len(self._entries):
            twice = "" if len(numbers) == len(self._entries) else ", some with the same number,"
            raise ValueError(
                f"{path}: expected {total or 'some'} episodes, got {len(self._entries)}{twice} in "
                f"{path / 'meta'}. Fetch it again."
            )

    def close(self) -> None:
        """Nothing is held open."""

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(name for name, kind in self._kinds.items() if kind in ("video", "image"))

    @cached_property
    def columns(self) -> dict[str, str]:
        numeric = {
            n: k
            for n, k in self._kinds.items()
            if n not in INDEX and re.match("float|u?int|bool", k)
        }
        return {
            name: f"{kind} {_shape(self._features[name].get('shape'))}"
            for name, kind in numeric.items()
        }

    @property
    def actions(self) -> tuple[str, ...]:
        return ("action",) if "action" in self.columns else ()

    @property
    def states(self) -> tuple[str, ...]:
        return ("observation.state",) if "observation.state" in self.columns else ()

    def names(self, column: str) -> tuple[str, ...]:
        named = self._features[column].get("names")
        # version 2 often keeps them one level down, under "motors" or "axes"
        if isinstance(named, dict):
            named = [name for group in named.values() if isinstance(group, list) for name in group]
        return tuple(map(str, named)) if isinstance(named, list) else ()

    def origin(self, i: int) -> str:
        number = self._entries[i].number
        place = "" if number == i else f" (the {i}th, counted from 0)"
        return f"{self._entries[i].table}, episode {number}{place}"

    def read(self, i: int, columns: Sequence[str]) -> Mapping[str, Sequence[Any]]:
        return {
            name: column.to_pylist()
            for name, column in zip(columns, self._rows(i, columns).columns)
        }

    def pictures(self, i: int, camera: str) -> Iterator[np.ndarray | bytes]:
        if self._kinds[camera] == "image":
            for picture in self._rows(i, [camera]).column(camera):
                yield self._image(i, picture.as_py())
        else:
            yield from self._frames(i, camera)

    def told(self, camera: str) -> dict[str, str]:
        """How the frames of an episode are found in its video."""
        if self._kinds[camera] != "video":
            return {}
        if not self._packed:
            return {"frames": "one video per episode, by the times of its rows"}
        places = [self._place(i, camera) for i in range(len(self._entries))]
        drift = max((abs(p.drift) for p in places if isinstance(p, _Place)), default=0.0)
        if drift <= CLOSE / self._fps:
            return {"frames": "by the recorded beginnings of the episodes in their videos"}
        if not any(p.by_length for p in places if isinstance(p, _Place)):
            return {"frames": "by the recorded beginnings; some frames belong to no episode"}
        return {
            "frames": "by the lengths of the episodes before, as the recorded beginnings are off "
            f"by up to {drift:.3f} s"
        }

    # ------------------------------------------------------------------------------------ the index

    def _index_of_version_2(self) -> list[_Entry]:
        where = self.path / "meta" / "episodes.jsonl"
        if not where.is_file():
            raise ValueError(
                f"{where}: expected the list of episodes, got no such file. Fetch the folder again."
            )
        entries: list[_Entry] = []
        for line in filter(None, map(str.strip, _text(where, INDEX_BYTES).split("\n"))):
            row = _object(line)
            i = _whole(row["episode_index"], "episode_index")
            place = {
                "episode_chunk": i // self._chunk,
                "episode_index": i,
                "total_episodes": self._info.get("total_episodes"),
            }
            videos = {
                key: _Span(self._file(self._video_path, {**place, "video_key": key}))
                for key in self._videos
            }
            length = _whole(row["length"], "length", 1)
            entries.append(_Entry(i, length, self._file(self._data_path, place), videos))
        return entries

    def _index_of_version_3(self) -> list[_Entry]:
        entries = []
        for where in sorted((self.path / "meta" / "episodes").glob("*/*.parquet")):
            if where.name.startswith("."):
                continue
            wanted = ["episode_index", "length", "data/chunk_index", "data/file_index"]
            for key in self._videos:
                wanted += [
                    f"videos/{key}/{what}"
                    for what in ("chunk_index", "file_index", *BEGINNING_AND_END)
                ]
            for row in _table(where, wanted).to_pylist():
                table = self._file(self._data_path, _file_of(row, "data"))
                videos: dict[str, _Span] = {}
                for key in self._videos:
                    place = {"video_key": key, **_file_of(row, f"videos/{key}")}
                    start, end = (
                        _number(row[f"videos/{key}/{what}"], what, 0.0, float(MOST))
                        for what in BEGINNING_AND_END
                    )
                    videos[key] = _Span(self._file(self._video_path, place), start, end)
                number, length = (
                    _whole(row["episode_index"], "episode_index"),
                    _whole(row["length"], "length", 1),
                )
                entries.append(_Entry(number, length, table, videos))
        return entries

    @property
    def _videos(self) -> list[str]:
        return [name for name, kind in self._kinds.items() if kind == "video"]

    def _file(self, template: str, place: Mapping[str, Any]) -> Path:
        """Fill in a path template, in which a file from elsewhere may have written anything."""

        def fill(field: re.Match[str]) -> str:
            value = place[
                choose(
                    f"field of '{template}' in {self.path / 'meta' / 'info.json'}", field[1], place
                )
            ]
            return str(value).zfill(int(field[2] or 0))

        return self._inside(re.sub(r"\{(\w+)(?::0?(\d)d)?\}", fill, template))

    def _inside(self, relative: str) -> Path:
        parts = PurePosixPath(relative).parts
        strange = ".." in parts or "\\" in relative or "\0" in relative or not parts
        if PurePosixPath(relative).is_absolute() or strange or len(relative) > LONGEST:
            raise ValueError(
                f"{self.path}: expected paths inside the folder, got '{relative:.{LONGEST}}'. Do "
                "not trust this data set."
            )
        return self.path / relative

    # ------------------------------------------------------------------------------------- contents

    def _rows(self, i: int, columns: Sequence[str]) -> pa.Table:
        entry = self._entries[i]
        chosen = [("episode_index", "==", entry.number)] if self._packed else None
        table = _table(entry.table, [*columns, "frame_index"], chosen, self.columns)
        if len(table) != entry.length:
            cure = "The index does not belong to these files: fetch the folder again"
            raise ValueError(
                f"{self.origin(i)}: expected {entry.length} rows as meta/ says, got {len(table)}. "
                f"{cure}."
            )
        counted = table.column("frame_index")
        if not pa.types.is_integer(counted.type):
            raise ValueError(
                f"{self.origin(i)}: expected whole numbers as 'frame_index', got "
                f"{counted.type}. Fetch the folder again."
            )
        table = table.sort_by("frame_index")
        if table.column("frame_index").to_pylist() != list(range(entry.length)):
            raise ValueError(
                f"{self.origin(i)}: expected 'frame_index' to count 0, 1, 2, got gaps. Rows are "
                "missing."
            )
        return table.select(list(columns))

    def _times(self, i: int) -> np.ndarray:
        """(L,) seconds of an episode's rows, from its beginning: recorded, or on the grid of the
        rate."""
        grid = np.arange(self._entries[i].length) / self._fps
        if "timestamp" not in self._kinds:
            return grid
        recorded = self._rows(i, ["timestamp"]).column("timestamp").to_pylist()
        try:
            return np.asarray(recorded, np.float64).reshape(len(grid))
        except (ValueError, TypeError):
            raise ValueError(
                f"{self.origin(i)}: expected a number of seconds as every 'timestamp', got "
                "something else. Fetch the folder again."
            ) from None

    def _image(self, i: int, picture: Any) -> bytes:
        """The bytes of one picture: inside the table, or in a file that it names."""
        picture = picture if isinstance(picture, dict) else {}
        if picture.get("bytes") is not None:
            return picture["bytes"]
        path = self._inside(str(picture.get("path") or ""))
        if not path.is_file():
            raise ValueError(
                f"{self.origin(i)}: expected its picture {path}, got no such file. Fetch the "
                "folder again."
            )
        if path.stat().st_size > PICTURE_BYTES:
            raise ValueError(
                f"{path}: expected a picture of at most {PICTURE_BYTES} bytes, got "
                f"{path.stat().st_size}. Do not trust it."
            )
        return path.read_bytes()

    def _frames(self, i: int, camera: str) -> Iterator[np.ndarray]:
        """The frames of an episode in order, each at its row's time; one more if there are more."""
        span, number, begins = self._entries[i].videos[camera], self._entries[i].number, None
        if self._packed:
            place = self._place(i, camera)
            if isinstance(place, ValueError):
                raise place
            begins = place.start
        wanted, count = self._times(i), 0
        first = max(0.0, (begins or 0.0) - 0.5 / self._fps)
        for time, picture in footage.frames(span.video, first):
            if begins is None:
                begins = time
            if self._packed and time < begins - 0.5 / self._fps:
                continue
            if self._packed and count == len(wanted):
                return
            if count < len(wanted) and not (
                abs(time - begins - wanted[count]) * self._fps <= CLOSE + 1e-6
            ):
                expected = f"frame {count} of episode {number} at {begins + wanted[count]:.3f} s"
                by = "as its 'timestamp' says" if "timestamp" in self._kinds else "by the rate"
                raise ValueError(
                    f"{span.video}: expected {expected} ({by}), got one at {time:.3f} s. "
                    "Frames or rows are missing, or the rate is wrong."
                )
            count += 1
            yield picture
            if count > len(wanted):
                return

    def _place(self, i: int, camera: str) -> _Place | ValueError:
        """Where an episode begins in a video that it shares (version 3), or why that is not
        known."""
        video = self._entries[i].videos[camera].video
        if (camera, video) not in self._found:
            members = self._sharing[camera, video]
            try:
                self._found[camera, video] = self._in_video(video, camera, members)
            except ValueError as error:
                self._found[camera, video] = dict.fromkeys(members, error)
        return self._found[camera, video][i]

    @cached_property
    def _sharing(self) -> dict[tuple[str, Path], list[int]]:
        """The episodes in each video of each camera."""
        found: dict[tuple[str, Path], list[int]] = {}
        for i, entry in enumerate(self._entries):
            for camera, span in entry.videos.items():
                found.setdefault((camera, span.video), []).append(i)
        return found

    def _in_video(
        self, video: Path, camera: str, members: list[int]
    ) -> dict[int, _Place | ValueError]:
        """Where the episodes that share a video begin; an error for each whose span is not as long
        as its rows, or overlaps another's. ValueError if there are fewer frames than rows."""
        spans = {i: self._entries[i].videos[camera] for i in members}
        members = sorted(members, key=lambda i: (spans[i].start or 0.0, i))
        starts = np.array([spans[i].start for i in members], np.float64)
        ends = np.array([spans[i].end for i in members], np.float64)
        lengths = self.lengths[members]
        summed = (np.cumsum(lengths) - lengths) / self._fps
        held, total = footage.count(video), int(lengths.sum())
        if held < total:
            raise ValueError(
                f"{video}: expected at least {total} frames, as its {len(members)} episodes have "
                f"rows, got {held}. Fetch it again."
            )
        # As many frames as rows: each episode begins where the one before ends. More: some belong
        # to nobody, and only the recorded beginnings say which.
        by_length = held == total
        places: dict[int, _Place | ValueError] = {
            i: _Place(float((summed if by_length else starts)[k]), starts[k] - summed[k], by_length)
            for k, i in enumerate(members)
        }
        for k in np.flatnonzero(ends[:-1] - starts[1:] > 0.5 / self._fps):
            one, other = (self._entries[i].number for i in members[k : k + 2])
            error = ValueError(
                f"{video}: expected episodes one after the other, got episode {one} until "
                f"{ends[k]:.3f} s and episode {other} from {starts[k + 1]:.3f} s on. The index in "
                "meta/episodes is wrong: fetch it again."
            )
            places.update(dict.fromkeys(members[k : k + 2], error))
        for i, start, end, length in zip(members, starts, ends, lengths):
            if (frames := round((end - start) * self._fps)) != length:
                places[i] = ValueError(
                    f"{video}: expected {length} frames for episode {self._entries[i].number}'s "
                    f"{length} rows, got {frames} of {start} to {end} s at {self._fps:g} a "
                    "second. Fetch it again."
                )
        return places


@dataclass(frozen=True)
class _Place:
    """Where an episode begins in a video that it shares.

    Attributes:
        start: seconds.
        drift: seconds by which the recorded beginning differs from the lengths before.
        by_length: was it found by these?
    """

    start: float
    drift: float
    by_length: bool


class _Damaged(Exception):
    """What a file of the index says in place of what it should."""


def _text(path: Path, most: int) -> str:
    if path.stat().st_size > most:
        raise ValueError(
            f"{path}: expected at most {most} bytes, got {path.stat().st_size}. It is no index of "
            "LeRobot's: fetch it again."
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: expected text in UTF-8, got other bytes ({error.reason}). Fetch it again."
        ) from None


def _object(value: Any) -> dict[str, Any]:
    """A JSON object, or the text of one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise _Damaged(f"{type(error).__name__}: {error}") from None
    if not isinstance(value, dict):
        raise _Damaged(f"{type(value).__name__} in place of an object")
    return value


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise _Damaged(f"{type(value).__name__} in place of a text")
    return value


def _whole(value: Any, name: str, lowest: int = 0) -> int:
    if type(value) is not int or not lowest <= value < MOST:
        raise _Damaged(f"{name} {_short(value)}, no whole number from {lowest} on")
    return value


def _number(value: Any, name: str, lowest: float, highest: float) -> float:
    # compared as they are: a whole number may be too large for a float
    if (
        type(value) not in (int, float)
        or not lowest <= value <= highest
        or not math.isfinite(value)
    ):
        raise _Damaged(f"{name} {_short(value)}, no number from {lowest:g} to {highest:g}")
    return float(value)


def _short(value: Any) -> str:
    """A value in a sentence: of a number of a million digits the size."""
    return "of many digits" if type(value) is int and abs(value) >= 1 << 64 else f"{value!r:.40}"


def _shape(value: Any) -> tuple[int, ...]:
    whole = isinstance(value, list) and all(type(n) is int and 0 <= n < MOST for n in value)
    return tuple(value) if whole else ()


def _file_of(row: Mapping[str, Any], prefix: str) -> dict[str, int]:
    return {name: _whole(row[f"{prefix}/{name}"], name) for name in ("chunk_index", "file_index")}


def _table(
    path: Path,
    columns: Sequence[str],
    chosen: list[tuple[str, str, Any]] | None = None,
    described: Iterable[str] = (),
) -> pa.Table:
    """Some columns of a parquet file; what it declares is held against its size before any is
    read. Others that are described must be there too: one of another name would be missed."""
    if not path.is_file():
        raise ValueError(f"{path}: expected a table, got no such file. Fetch the folder again.")
    try:
        with pq.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except Exception as error:  # beside Arrow's own errors, whatever damaged numbers lead to
        raise _unreadable(path, error) from None
    held = Counter(schema.names)

    def require(wanted: Iterable[str]) -> None:
        if wrong := {name for name in wanted if held[name] != 1}:
            twice = "two of " if wrong & {*schema.names} else "no "
            raise ValueError(
                f"{path}: expected the columns {', '.join(wanted)}, got {twice}"
                f"{', '.join(sorted(wrong))}. Fetch the folder again."
            )

    require(columns)
    width = sum(_width(schema.field(name).type) for name in columns)
    if not 0 <= rows * width <= CELLS_PER_BYTE * path.stat().st_size:
        raise ValueError(
            f"{path}: expected about as many numbers as the table has bytes, got {rows} rows of "
            f"{width} in {path.stat().st_size}. It may be made to exhaust the memory: do not trust "
            "it."
        )
    require(described)
    try:
        return pq.read_table(path, columns=list(columns), filters=chosen)
    except Exception as error:
        raise _unreadable(path, error) from None


def _width(kind: pa.DataType) -> int:
    """Numbers in a row of a column, as far as its type says."""
    if pa.types.is_fixed_size_list(kind):
        return kind.list_size * _width(kind.value_type)
    return kind.byte_width if pa.types.is_fixed_size_binary(kind) else 1


def _unreadable(path: Path, error: Exception) -> ValueError:
    said = next(iter(str(error).splitlines()), "")[:200] or type(error).__name__
    return ValueError(
        f"{path}: expected a parquet table, got one that cannot be read ({said}). Fetch it again."
    )
