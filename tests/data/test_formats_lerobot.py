"""LeRobot folders that are not sound are refused by name, and no path in them leads out of them."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lewm.data.converting import convert
from tests.support import recordings
from tests.support.layouts import half, nan_at, refused, then, with_
from tests.support.recordings import MADE, encoded

TOP = recordings.CAMERA


def edited(path, change):
    """Rewrite a JSON file."""
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def retabled(path, change):
    """Rewrite a parquet file."""
    pq.write_table(change(pq.read_table(path)), path)


def lerobot(version="v2.1", made=None, **options):
    return lambda folder: recordings.lerobot(folder / "lr", made or MADE, version, **options)


DATA2, VIDEO2 = (
    "data/chunk-000/episode_000001.parquet",
    f"videos/chunk-000/{TOP}/episode_000001.mp4",
)
DATA3, VIDEO3 = "data/chunk-000/file-000.parquet", f"videos/{TOP}/chunk-000/file-000.mp4"
EPISODES3 = "meta/episodes/chunk-000/file-000.parquet"


def put(path, name, value):
    return edited(path / "meta/info.json", lambda info: {**info, name: value})


def longer(table):
    at = table.schema.get_field_index("length")
    return table.set_column(at, "length", pa.array([6, 9, 6]))


def shifted(table):
    name = f"videos/{TOP}/to_timestamp"
    return table.set_column(table.schema.get_field_index(name), name, pa.array([0.5, 1.5, 0.6]))


LEROBOT = {
    "no info": (
        then(lerobot(), lambda p: (p / "meta/info.json").write_text("{")),
        "info.json: expected LeRobot's description",
    ),
    "no features": (
        then(lerobot(), lambda p: (p / "meta/info.json").write_text("{}")),
        "info.json.*KeyError\\('features'\\)",
    ),
    "old version": (
        then(lerobot(), lambda p: put(p, "codebase_version", "v1.6")),
        "expected version 2.0, 2.1 or 3.0, got v1.6",
    ),
    "no list": (
        then(lerobot(), lambda p: (p / "meta/episodes.jsonl").unlink()),
        "episodes.jsonl: expected the list of episodes",
    ),
    "torn index": (
        then(lerobot(), lambda p: half(p / "meta" / "episodes.jsonl")),
        "meta: expected an index of episodes, got a damaged one",
    ),
    "wrong total": (
        then(lerobot(), lambda p: put(p, "total_episodes", 7)),
        "lr: expected 7 episodes, got 3 in",
    ),
    "no table": (
        then(lerobot(), lambda p: (p / DATA2).unlink()),
        f"{DATA2}: expected a table, got no such file",
    ),
    "torn table": (
        then(lerobot(), lambda p: half(p / DATA2)),
        f"{DATA2}: expected a parquet table, got one that cannot be read",
    ),
    "no column": (
        then(lerobot(), lambda p: retabled(p / DATA2, lambda t: t.drop_columns(["action"]))),
        f"{DATA2}: expected the columns action, .*got no action",
    ),
    "fewer rows": (
        then(lerobot(), lambda p: retabled(p / DATA2, lambda t: t[:-2])),
        f"{DATA2}, episode 1: expected 9 rows .*got 7",
    ),
    "gap": (
        then(
            lerobot("v3.0"),
            lambda p: retabled(p / DATA3, lambda t: pa.concat_tables([t[:6], t[5:6], t[7:]])),
        ),
        f"{DATA3}, episode 1: expected 'frame_index' to count 0, 1, 2, got gaps",
    ),
    "no video": (
        then(lerobot(), lambda p: (p / VIDEO2).unlink()),
        f"{VIDEO2}: expected a video that decodes, got no such file",
    ),
    "torn video": (
        then(lerobot(), lambda p: half(p / VIDEO2)),
        f"{VIDEO2}: expected a video that decodes, got an error",
    ),
    "no video at all": (
        then(lerobot(), lambda p: (p / VIDEO2).write_text("hello")),
        f"{VIDEO2}: expected a video that decodes, got an error after 0 frames",
    ),
    "fewer frames": (
        then(lerobot(), lambda p: recordings.write_video(p / VIDEO2, MADE[1][0][:7])),
        f"{DATA2}, episode 1: expected 9 frames for its 9 rows, got 7 that decode",
    ),
    "more frames": (
        then(
            lerobot(),
            lambda p: recordings.write_video(p / VIDEO2, np.repeat(MADE[1][0], 2, axis=0)),
        ),
        "expected 9 frames for its 9 rows, got more that decode",
    ),
    "fewer frames, shared video": (
        then(
            lerobot("v3.0"),
            lambda p: recordings.write_video(
                p / VIDEO3, np.concatenate([MADE[0][0], MADE[1][0][:6]])
            ),
        ),
        f"{VIDEO3}: expected at least 14 frames, as its 2 episodes have rows, got 11",
    ),
    "another rate": (
        then(
            lerobot("v3.0"),
            lambda p: recordings.write_video(
                p / VIDEO3, np.concatenate([MADE[0][0], MADE[1][0]]), rate=5
            ),
        ),
        f"{VIDEO3}: expected frame 1 of episode 0 at 0.100 s .by the rate., got one at 0.200 s",
    ),
    "length against seconds": (
        then(lerobot("v3.0"), lambda p: retabled(p / EPISODES3, shifted)),
        f"{VIDEO3}: expected 9 frames for episode 1's 9 rows, got 10 of 0.5 to 1.5 s at 10 a "
        "second",
    ),
    "length against rows": (
        then(lerobot("v3.0"), lambda p: retabled(p / EPISODES3, longer)),
        "expected 6 rows as meta/ says, got 5",
    ),
    "path out of the folder": (
        then(lerobot(), lambda p: put(p, "data_path", "../../{episode_index}.parquet")),
        "expected paths inside the folder, got '../../0.parquet'",
    ),
    "absolute path": (
        then(lerobot(), lambda p: put(p, "video_path", "/etc/{video_key}")),
        "expected paths inside the folder, got '/etc/",
    ),
    "unknown field": (
        then(lerobot(), lambda p: put(p, "data_path", "data/{episode}.parquet")),
        "unknown field of .*'episode'",
    ),
    "field that looks inside": (
        then(lerobot(), lambda p: put(p, "data_path", "{episode_index.real}")),
        "{episode_index.real}: expected a table",
    ),
    "broken picture": (
        lerobot(encode=lambda picture: encoded(picture)[:60]),
        "expected pictures that decode, got an error",
    ),
    "no picture": (
        lerobot("v3.0", encode=lambda picture: None),
        "expected paths inside the folder, got ''",
    ),
    "NaN inside": (
        lerobot(made=with_(1, actions=nan_at(4))),
        f"{DATA2}, episode 1: expected finite actions .*at step 4 \\(1 such",
    ),
}


@pytest.mark.parametrize("what", LEROBOT)
def test_lerobot_folders(what, tmp_path):
    refused(*LEROBOT[what], tmp_path)


def test_rows_may_lie_in_any_order(tmp_path):
    source = recordings.lerobot(tmp_path / "lr", MADE, "v3.0", encode=encoded)
    retabled(
        source / DATA3, lambda table: table.take(np.random.default_rng(0).permutation(len(table)))
    )
    with convert(source, tmp_path / "out.h5") as converted:
        for i in (0, 1):
            assert (converted.episode(i).pixels == MADE[i][0]).all()
            np.testing.assert_array_equal(converted.actions(i)[:-1], MADE[i][1][:-1])


def test_pictures_that_a_table_names_by_their_path(tmp_path):
    source = recordings.lerobot(tmp_path / "lr", MADE, encode=encoded)
    (source / "images").mkdir()

    def named(table):
        for t, picture in enumerate(MADE[1][0]):
            (source / "images" / f"{t}.png").write_bytes(encoded(picture))
        column = pa.array(
            [{"bytes": None, "path": f"images/{t}.png"} for t in range(9)],
            table.schema.field(TOP).type,
        )
        return table.set_column(table.schema.get_field_index(TOP), TOP, column)

    retabled(source / DATA2, named)
    with convert(source, tmp_path / "out.h5") as converted:
        assert (converted.episode(1).pixels == MADE[1][0]).all()
