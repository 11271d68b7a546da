"""LeRobot folders that are not sound are refused by name, no path in them leads out of them, and a
picture belongs to its row."""

import json
import re
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lewm.data.converting import convert, verify
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


def timed_by(starts):
    """The episodes begin at these seconds of their videos."""

    def change(table):
        for what, offsets in (("from", [0, 0, 0]), ("to", [5, 9, 6])):
            name = f"videos/{TOP}/{what}_timestamp"
            column = pa.array([start + n / recordings.FPS for start, n in zip(starts, offsets)])
            table = table.set_column(table.schema.get_field_index(name), name, column)
        return table

    return change


def lines(path, change):
    """Rewrite the rows of an index of version 2."""
    index = path / "meta/episodes.jsonl"
    rows = [json.dumps(change(json.loads(line))) for line in index.read_text().splitlines()]
    index.write_text("\n".join(rows))


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
    "a column twice": (
        then(
            lerobot(),
            lambda p: retabled(p / DATA2, lambda t: t.append_column("action", t.column("gain"))),
        ),
        f"{DATA2}: expected the columns action, .*got two of action",
    ),
    "another width": (
        lerobot(made=with_(1, actions=lambda rows: rows[:, :1])),
        f"{DATA2}, episode 1: expected episodes that are all alike.*--skip-episodes 1",
    ),
    "another size": (
        lerobot(made=with_(1, pixels=lambda rows: rows[:, 8:40, 8:40]), encode=encoded),
        f"{DATA2}, episode 1: expected episodes that are all alike.*--image-size scales",
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
        f"{VIDEO3}: expected frame 1 of episode 0 at 0.100 s .as its 'timestamp' says., got one at "
        "0.200 s",
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
    "no rate": (then(lerobot(), lambda p: put(p, "fps", 0)), "info.json: .*fps 0, no number from"),
    "rate of text": (then(lerobot(), lambda p: put(p, "fps", "10")), "info.json: .*fps '10', no"),
    "rate without bound": (
        then(lerobot(), lambda p: put(p, "fps", float("inf"))),
        "info.json: .*fps inf, no number",
    ),
    "chunks of nothing": (
        then(lerobot(), lambda p: put(p, "chunks_size", 0)),
        "info.json: .*chunks_size 0, no whole number from 1 on",
    ),
    "total of many digits": (
        then(lerobot(), lambda p: put(p, "total_episodes", 10**3000)),
        "info.json: .*total_episodes of many digits",
    ),
    "features in a list": (
        then(lerobot(), lambda p: put(p, "features", ["action"])),
        "info.json: .*list in place of an object",
    ),
    "deep": (
        then(lerobot(), lambda p: (p / "meta/info.json").write_text("[" * 100_000)),
        "info.json: .*RecursionError",
    ),
    "not UTF-8": (
        then(lerobot(), lambda p: (p / "meta/info.json").write_bytes(b"\xff\xfe{}")),
        "info.json: expected text in UTF-8",
    ),
    "length with a point": (
        then(lerobot(), lambda p: lines(p, lambda row: {**row, "length": row["length"] + 0.0})),
        "meta: .*length 5.0, no whole number from 1 on",
    ),
    "the same number twice": (
        then(lerobot(), lambda p: lines(p, lambda row: {**row, "episode_index": 0})),
        "lr: expected 3 episodes, got 3, some with the same number,",
    ),
    "spans that overlap": (
        then(lerobot("v3.0"), lambda p: retabled(p / EPISODES3, timed_by([0.2, 0.2, 0.0]))),
        f"{VIDEO3}: expected episodes one after the other, got episode 0 until 0.700 s and episode "
        "1 from 0.200 s on",
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


# -------------------------------------------------------------------- a picture belongs to its row


def each_is_itself(converted, made):
    """Every frame shows its own row's picture and no neighbour's."""
    for i, (pixels, actions, _) in enumerate(made):
        episode = converted.episode(i)
        error = np.abs(episode.pixels.astype(int)[:, None] - pixels[None]).mean(axis=(2, 3, 4))
        assert (error.argmin(axis=1) == np.arange(len(pixels))).all()
        assert error.diagonal().max() < 4
        np.testing.assert_allclose(episode.actions[:-1], actions[:-1], rtol=1e-6)


def many(count=11, length=5):
    """Short episodes that share one video in version 3, every picture another."""
    made = recordings.episodes()
    frames = np.concatenate([pixels for pixels, _, _ in made])
    generator = np.random.default_rng(0)
    episodes = []
    for i in range(count):
        pixels = np.roll(frames[:length], 4 * i, axis=2) // 2 + np.uint8(9 * i)
        actions = generator.standard_normal((length, 2)).astype(np.float32)
        episodes.append((pixels, actions, np.zeros((length, 3), np.float32)))
    return episodes


def told(converted):
    return json.loads(converted.provenance.options)["frames"]


def packed_in_one(folder, made, drift_s=0.0, gap=0, trailing=0, timed=True):
    """Version 3 with all episodes in one video; beginnings drift, or frames of nobody lie
    between."""
    source = recordings.lerobot(folder, made, "v3.0", timed=timed)
    rows, start, frames = pq.read_table(source / EPISODES3).to_pylist(), 0, []
    for i, row in enumerate(rows):
        begins = start / recordings.FPS + i * drift_s
        row |= {"data/file_index": 0, f"videos/{TOP}/file_index": 0}
        row[f"videos/{TOP}/from_timestamp"] = begins
        row[f"videos/{TOP}/to_timestamp"] = begins + row["length"] / recordings.FPS
        frames += [made[i][0], np.zeros_like(made[i][0][:gap])]
        start += row["length"] + gap
    pq.write_table(pa.Table.from_pylist(rows), source / EPISODES3)
    frames.append(np.zeros_like(made[0][0][:trailing]))
    recordings.write_video(source / VIDEO3, np.concatenate(frames))
    tables = [pq.read_table(path) for path in sorted((source / "data").rglob("*.parquet"))]
    pq.write_table(pa.concat_tables(tables), source / DATA3)
    return source


@pytest.mark.parametrize(
    ("drift_s", "timed"),
    [(0.0, True), (0.007, True), (-0.007, False), (0.02, False), (-0.02, True)],
)
def test_beginnings_that_drift_give_no_neighbours_picture(drift_s, timed, tmp_path):
    """After ten episodes 7 ms each are most of a frame, and 20 ms are two frames."""
    made = many()
    source = packed_in_one(tmp_path / "lr", made, drift_s, timed=timed)
    with convert(source, tmp_path / "out.h5") as converted:
        each_is_itself(converted, made)
        expected = "by the lengths.*off by up to 0.[02][0-9]+ s" if drift_s else "by the recorded"
        assert re.match(expected, told(converted))


def test_frames_of_nobody_are_stepped_over_by_the_recorded_beginnings(tmp_path):
    made = many(4)
    with convert(packed_in_one(tmp_path / "lr", made, gap=2), tmp_path / "out.h5") as converted:
        each_is_itself(converted, made)
        assert "some frames belong to no episode" in told(converted)


def test_what_drifts_among_frames_of_nobody_is_refused(tmp_path):
    source = packed_in_one(tmp_path / "lr", many(4), drift_s=0.02, trailing=3)
    with pytest.raises(ValueError, match=r"file-000.mp4: expected frame 0 of episode 1 at 0.520 s"):
        convert(source, tmp_path / "out.h5")


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_row_whose_time_is_not_its_frames_is_refused(version, tmp_path):
    """A fifth of a frame is too far, a twentieth is not."""
    source = recordings.lerobot(tmp_path / "lr", MADE, version)
    table = source / ("data/chunk-000/episode_000000.parquet" if version == "v2.1" else DATA3)

    def late(by):
        def change(table):
            times = table.column("timestamp").to_pylist()
            times[3] += by / recordings.FPS
            at = table.schema.get_field_index("timestamp")
            return table.set_column(at, "timestamp", pa.array(times, pa.float32()))

        return change

    retabled(table, late(0.05))
    convert(source, tmp_path / "near.h5").close()
    retabled(table, late(0.15))
    with pytest.raises(ValueError, match=r"expected frame 3 of episode 0 at 0.320 s"):
        convert(source, tmp_path / "far.h5")


def test_uneven_times_of_rows_are_reported_and_kept(tmp_path):
    source = recordings.lerobot(tmp_path / "lr", MADE, encode=encoded)

    def dropped(table):
        times = np.asarray(table.column("timestamp").to_pylist())
        times[4:] += 0.2
        at = table.schema.get_field_index("timestamp")
        return table.set_column(at, "timestamp", pa.array(times, pa.float32()))

    retabled(source / DATA2, dropped)
    words = r"'timestamp' has 1 uneven steps, the first 0.3 at step 3 of episode 1, where most are"
    with (
        pytest.warns(UserWarning, match=words),
        convert(source, tmp_path / "out.h5") as converted,
    ):
        assert "step 3 of episode 1" in json.loads(converted.provenance.options)["uneven"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(source, tmp_path / "rest.h5", skip_episodes="1").close()


def test_a_table_that_would_fill_the_memory_is_not_read(tmp_path):
    source = recordings.lerobot(tmp_path / "lr", MADE)
    rows, width = 300_000, 20
    table = {"frame_index": pa.array(np.zeros(rows, np.int64))}
    table |= {
        name: pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(rows * width)), width)
        for name in ("action", "observation.state")
    }
    pq.write_table(pa.table(table), source / DATA2, compression="zstd")
    assert (source / DATA2).stat().st_size < 60_000
    with pytest.raises(ValueError, match=f"{DATA2}: expected about as many numbers as the table"):
        verify(source)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_column_that_is_described_under_another_name_is_missed(version, tmp_path):
    """Else its states would be left out without a word."""

    def renamed(info):
        features = info["features"]
        return {**info, "features": {**features, "observation.stat": features["observation.state"]}}

    folder = lerobot(version)(tmp_path)
    edited(folder / "meta/info.json", renamed)
    with pytest.raises(ValueError, match=r"got no observation\.stat\. Fetch the folder again"):
        convert(folder, tmp_path / "out.h5")
