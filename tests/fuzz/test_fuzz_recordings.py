"""LeRobot folders, folders of videos and archives, damaged: each is refused by its name, or gives
the same episodes."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lewm.data.converting import convert
from lewm.data.sources import Selection
from tests.fuzz.harness import flip_bits, fuzz, on_bytes
from tests.support import recordings
from tests.support.archives import tar, zst
from tests.support.recordings import encoded

CHOSEN = Selection(action_columns=("dx", "dy"), state_columns=("angle",))


def contents(path: Path):
    """What `lewm data convert` makes of recordings."""
    by_name = not (path / "meta").exists() and path.is_dir()
    selection = CHOSEN if by_name else Selection(discrete_actions=0)
    with (
        tempfile.TemporaryDirectory() as folder,
        convert(path, Path(folder) / "out.h5", selection) as made,
    ):
        every = [made.episode(i) for i in range(len(made))]
        return {
            "lengths": made.lengths,
            "pixels": np.concatenate([episode.pixels for episode in every]),
            "actions": np.concatenate([episode.actions for episode in every]),
            "states": np.concatenate([episode.states for episode in every]),
        }


def sound(folder):
    made = recordings.episodes(height=16, width=16)[:2] * 2
    folders = [
        recordings.lerobot(folder / "videos-2", made, "v2.1"),
        recordings.lerobot(folder / "videos-3", made, "v3.0"),
        recordings.lerobot(folder / "pictures-3", made, "v3.0", encode=encoded),
        recordings.videos(folder / "videos-each", made),
    ]
    members = [
        (str(path.relative_to(folder)), path.read_bytes())
        for path in sorted(folders[2].rglob("*"))
        if path.is_file()
    ]
    (folder / "packed.tar").write_bytes(tar(members))
    (folder / "packed.tar.zst").write_bytes(zst(tar(members)))
    return [*folders, folder / "packed.tar", folder / "packed.tar.zst"]


# ----------------------------------------------------------------------------------------- mutators

STRANGE = [None, True, 0, 1, -1, 9.7, 2**31, 2**63, 10**400, float("nan"), float("inf"), "", "a"]
STRANGE += ["../../a", "/etc/passwd", "\0", "{x}", [], {}, [[]], {"a": 1}, [None]]


def one_of(path, rng, *suffixes):
    """A file of some kind; None if there is none."""
    files = sorted(p for p in path.rglob("*") if p.suffix in suffixes) if path.is_dir() else []
    return files[rng.integers(len(files))] if files else None


def strange_json(path, rng):
    """A value of a JSON file becomes another, or is gone, or is nested without end."""
    file = one_of(path, rng, ".json", ".jsonl")
    if file is None:
        return on_bytes(flip_bits)(path, rng)
    lines = file.read_text().splitlines()
    line = int(rng.integers(len(lines)))
    value = json.loads(lines[line])
    inside = value
    key = list(value)[rng.integers(len(value))]
    while isinstance(inside[key], dict) and inside[key] and rng.random() < 0.7:
        inside = inside[key]
        key = list(inside)[rng.integers(len(inside))]
    way = rng.random()
    if way < 0.15:
        del inside[key]
    else:
        inside[key] = STRANGE[rng.integers(len(STRANGE))]
    lines[line] = json.dumps(value)
    if way > 0.9:
        lines[line] = lines[line].replace(json.dumps(key), '"deep": ' + "[" * 10**5 + '"', 1)
    file.write_text("\n".join(lines))
    return None


CELLS = [
    "",
    "nan",
    "inf",
    "-1",
    "1e999",
    "1_0",
    "0x1",
    "a",
    '"',
    "\0",
    "1;2",
    "1,5",
    "=1+1",
    "\u0663",
]


def strange_csv(path, rng):
    """A cell becomes another, a row or a column is gone, or comes twice."""
    file = one_of(path, rng, ".csv")
    if file is None:
        return on_bytes(flip_bits)(path, rng)
    rows = list(csv.reader(io.StringIO(file.read_text())))
    row, column = int(rng.integers(len(rows))), int(rng.integers(len(rows[0])))
    way = int(rng.integers(5))
    if way == 0:
        rows[row][column] = CELLS[rng.integers(len(CELLS))]
    elif way == 1:
        rows[row : row + 1] = [rows[row]] * int(rng.choice([0, 2]))
    elif way == 2:
        rows = [[cell for k, cell in enumerate(cells) if k != column] for cells in rows]
    elif way == 3:
        rows[row] = rows[row][: int(rng.integers(len(rows[row])))]
    text = io.StringIO()
    csv.writer(text, delimiter=rng.choice([",", ";", "\t", "|"]) if way == 4 else ",").writerows(
        rows
    )
    file.write_text(text.getvalue())
    return None


def strange_table(path, rng):
    """A column of a parquet file is of another type, holds other values, or is gone; or rows
    are."""
    file = one_of(path, rng, ".parquet")
    if file is None:
        return on_bytes(flip_bits)(path, rng)
    table = pq.read_table(file)
    k, n = int(rng.integers(table.num_columns)), len(table)
    name = table.schema.names[k]
    strange = [
        pa.array([None] * n, pa.float64()),
        pa.array(["a"] * n),
        pa.array([2**63 - 1] * n),
        pa.array([-1] * n),
        pa.array([float("nan")] * n),
        pa.array([[0.0] * (i % 3) for i in range(n)]),
        pa.array([True] * n),
        pa.array([b"\x89PNG"] * n),
        pa.array([{"bytes": None, "path": "../../a"}] * n),
        pa.array([{"bytes": None, "path": "a" * 5000}] * n),
    ]
    way = int(rng.integers(len(strange) + 3))
    if way < len(strange):
        table = table.set_column(k, name, strange[way])
    elif way == len(strange):
        table = table.drop_columns([name])
    elif way == len(strange) + 1:
        table = table.append_column(name, table.column(k))
    else:
        table = table.take(rng.integers(0, n, int(rng.integers(n + 1))))
    pq.write_table(table, file)
    return None


def strange_link(path, rng):
    """A file is a link to one outside."""
    file = one_of(path, rng, ".json", ".jsonl", ".csv", ".parquet", ".mp4")
    if file is None:
        return on_bytes(flip_bits)(path, rng)
    file.unlink()
    file.symlink_to(os.devnull)
    return None


def fifo(path, rng):
    """A file is a pipe, which never ends."""
    file = one_of(path, rng, ".json", ".jsonl", ".csv", ".parquet", ".mp4")
    if file is None or not hasattr(os, "mkfifo"):
        return on_bytes(flip_bits)(path, rng)
    file.unlink()
    os.mkfifo(file)
    return None


def test_damaged_recordings_are_refused_or_give_the_same_episodes(tmp_path):
    fuzz(
        contents,
        sound(tmp_path),
        tmp_path,
        mutators=(strange_json, strange_csv, strange_table, strange_link, fifo),
        payload=("pixels", "actions", "states"),
    )
