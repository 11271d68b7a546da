"""LeRobot folders, versions 2.0, 2.1 and 3.0: parquet tables, mp4 videos, and an index in `meta/`.

Version 2: one table and one video per episode and camera, and `meta/episodes.jsonl`. Version 3:
many episodes per table and video, and `meta/episodes/`, which says where an episode lies: its file,
and from which second to which. In both versions `meta/info.json` has the path templates, the frame
rate and the columns. Row t of `action` is what was commanded when observation t was seen, so L
observations come with L actions, of which the last leads to nothing that was recorded.

Source: `datasets/` of huggingface/lerobot, read for the layout; the package itself is not needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lewm.data.provenance import Provenance
from lewm.registry import choose

__all__ = ["LeRobot"]

INDEX = ("timestamp", "frame_index", "episode_index", "index", "task_index")

BEGINNING_AND_END = ("from_timestamp", "to_timestamp")


_Span = tuple[Path, float | None, float | None]
"""A video and the seconds of it that are one episode's; None where all of it is."""


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
            self._info = json.loads(where.read_text(encoding="utf-8"))
            self._features: dict[str, dict[str, Any]] = {
                str(name): dict(f) for name, f in self._info["features"].items()
            }
            self._fps, version = float(self._info["fps"]), str(self._info["codebase_version"])
            self._kinds = {name: str(feature["dtype"]) for name, feature in self._features.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            cure = "Fetch the folder again, or have LeRobot write it"
            raise ValueError(
                f"{where}: expected LeRobot's description, got one without it ({error!r}). {cure}."
            ) from None
        if not re.match(r"v?[23]\.", version):
            cure = "LeRobot's own scripts bring older folders to version 2 or 3"
            raise ValueError(f"{where}: expected version 2.0, 2.1 or 3.0, got {version}. {cure}.")
        self._packed = version.lstrip("v").startswith("3")
        try:
            self._entries = (
                self._index_of_version_3() if self._packed else self._index_of_version_2()
            )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path / 'meta'}: expected an index of episodes, got a damaged one ({error!r}). "
                "Fetch it again."
            ) from None
        self.lengths = np.array([entry.length for entry in self._entries], np.int64)
        if (
            len(self._entries) != self._info.get("total_episodes", len(self._entries))
            or not self._entries
        ):
            got = f"{len(self._entries)} in {path / 'meta'}"
            raise ValueError(
                f"{path}: expected {self._info.get('total_episodes', 'some')} episodes, got "
                f"{got}. Fetch it again."
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
            name: f"{kind} {tuple(self._features[name].get('shape', ()))}"
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
        return f"{self._entries[i].table}, episode {self._entries[i].number}"

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
            yield from self._frames(i, *self._entries[i].videos[camera])

    # ------------------------------------------------------------------------------------ the index

    def _index_of_version_2(self) -> list[_Entry]:
        where = self.path / "meta" / "episodes.jsonl"
        if not where.is_file():
            raise ValueError(
                f"{where}: expected the list of episodes, got no such file. Fetch the folder again."
            )
        size = int(self._info.get("chunks_size", 1000))
        entries: list[_Entry] = []
        for line in filter(None, where.read_text(encoding="utf-8").splitlines()):
            row = json.loads(line)
            i = int(row["episode_index"])
            place = {
                "episode_chunk": i // size,
                "episode_index": i,
                "total_episodes": self._info.get("total_episodes"),
            }
            videos: dict[str, _Span] = {
                key: (self._file("video_path", {**place, "video_key": key}), None, None)
                for key in self._videos
            }
            entries.append(_Entry(i, int(row["length"]), self._file("data_path", place), videos))
        return sorted(entries, key=lambda entry: entry.number)

    def _index_of_version_3(self) -> list[_Entry]:
        entries = []
        for where in sorted((self.path / "meta" / "episodes").glob("*/*.parquet")):
            wanted = ["episode_index", "length", "data/chunk_index", "data/file_index"]
            for key in self._videos:
                wanted += [
                    f"videos/{key}/{what}"
                    for what in ("chunk_index", "file_index", *BEGINNING_AND_END)
                ]
            for row in _table(where, wanted).to_pylist():
                place = {name: row[f"data/{name}"] for name in ("chunk_index", "file_index")}
                table = self._file("data_path", place)
                videos: dict[str, _Span] = {}
                for key in self._videos:
                    place = {"video_key": key} | {
                        n: row[f"videos/{key}/{n}"] for n in ("chunk_index", "file_index")
                    }
                    start, end = (float(row[f"videos/{key}/{what}"]) for what in BEGINNING_AND_END)
                    videos[key] = (self._file("video_path", place), start, end)
                entries.append(_Entry(int(row["episode_index"]), int(row["length"]), table, videos))
        return sorted(entries, key=lambda entry: entry.number)

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

        return self._inside(re.sub(r"\{(\w+)(?::0?(\d)d)?\}", fill, str(self._info[template])))

    def _inside(self, relative: str) -> Path:
        parts = PurePosixPath(relative).parts
        if PurePosixPath(relative).is_absolute() or ".." in parts or "\\" in relative or not parts:
            raise ValueError(
                f"{self.path}: expected paths inside the folder, got '{relative}'. Do not trust "
                "this data set."
            )
        return self.path / relative

    # ------------------------------------------------------------------------------------- contents

    def _rows(self, i: int, columns: Sequence[str]) -> pa.Table:
        entry = self._entries[i]
        chosen = [("episode_index", "==", entry.number)] if self._packed else None
        table = _table(entry.table, [*columns, "frame_index"], chosen)
        if len(table) != entry.length:
            cure = "The index does not belong to these files: fetch the folder again"
            raise ValueError(
                f"{self.origin(i)}: expected {entry.length} rows as meta/ says, got {len(table)}. "
                f"{cure}."
            )
        table = table.sort_by("frame_index")
        if table.column("frame_index").to_pylist() != list(range(entry.length)):
            raise ValueError(
                f"{self.origin(i)}: expected 'frame_index' to count 0, 1, 2, got gaps. Rows are "
                "missing."
            )
        return table.select(list(columns))

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
        return path.read_bytes()

    def _frames(
        self, i: int, path: Path, start: float | None, end: float | None
    ) -> Iterator[np.ndarray]:
        """The frames of an episode in order; where it shares a video with others, each at its place
        on the grid of the rate."""
        length, count = self._entries[i].length, 0
        if start is not None and end is not None and round((end - start) * self._fps) != length:
            got = (
                f"{round((end - start) * self._fps)} of {start} to {end} s at {self._fps:g} a "
                "second"
            )
            raise ValueError(
                f"{path}: expected {length} frames for episode {i}'s {length} rows, got {got}. "
                "Fetch it again."
            )
        try:
            with av.open(str(path), options={"protocol_whitelist": "file"}) as video:
                stream = video.streams.video[0]
                stream.thread_type = "AUTO"
                if start:
                    video.seek(round(start / (stream.time_base or 1)), stream=stream)
                for frame in video.decode(stream):
                    place = count if start is None else round((frame.time - start) * self._fps)
                    if start is not None and place >= length:
                        return
                    if place < 0:
                        continue
                    if place != count:
                        got = f"one at {frame.time:.3f} s"
                        expected = (
                            f"frame {count} of episode {i} at "
                            f"{(start or 0) + count / self._fps:.3f} s"
                        )
                        raise ValueError(
                            f"{path}: expected {expected}, got {got}. Frames are missing, or the "
                            "rate is wrong."
                        )
                    count += 1
                    yield frame.to_ndarray(format="rgb24")
        except (av.FFmpegError, IndexError) as error:
            got = (
                "no such file"
                if not path.exists()
                else f"an error after {count} frames of episode {i} ({error})"
            )
            raise ValueError(
                f"{path}: expected a video that decodes, got {got}. Fetch it again."
            ) from None


def _table(
    path: Path, columns: Sequence[str], chosen: list[tuple[str, str, Any]] | None = None
) -> pa.Table:
    try:
        if missing := set(columns) - set(pq.read_schema(path).names):
            raise ValueError(
                f"{path}: expected the columns {', '.join(columns)}, got no "
                f"{', '.join(sorted(missing))}."
            )
        return pq.read_table(path, columns=list(columns), filters=chosen)
    except FileNotFoundError:
        raise ValueError(
            f"{path}: expected a table, got no such file. Fetch the folder again."
        ) from None
    except (pa.ArrowException, OSError) as error:
        said = str(error).splitlines()[0][:200]
        raise ValueError(
            f"{path}: expected a parquet table, got one that cannot be read ({said}). Fetch it "
            "again."
        ) from None
