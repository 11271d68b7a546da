"""Recordings that are not sound: each is refused in a sentence that names the file, what was
expected and what was found."""

import json
import re
from importlib import import_module

import h5py
import lance
import numpy as np
import pyarrow as pa
import pytest

from lewm.data.converting import convert, verify
from lewm.data.sources import Selection, is_time
from tests.support import recordings
from tests.support.layouts import half, nan_at, refused, then, with_
from tests.support.recordings import MADE, jpeg

# ------------------------------------------------------------------------------------------- videos


def videos(made=None, shared=False):
    return lambda folder: recordings.videos(folder / "v", made or MADE, shared)


def table(name, change):
    """Exchange the text of a CSV."""

    def both(path):
        (path / name).write_text(change((path / name).read_text().replace("\r", "")))

    return both


def cut(lines):
    return lambda text: "\n".join(text.split("\n")[:-lines])


VIDEOS = {
    "fewer actions": (
        then(videos(), table("push-1.csv", cut(4))),
        "push-1.mp4 with push-1.csv: expected 9 rows .*for 9 frames, got 6",
    ),
    "more actions": (
        then(videos(), lambda p: recordings.write_video(p / "push-1.mp4", MADE[1][0][:4])),
        "push-1.mp4 with push-1.csv: expected 4 rows of actions \\(or 3\\) for 4 frames, got 9",
    ),
    "fewer actions, one table": (
        then(videos(shared=True), table("actions.csv", cut(3))),
        "push-2.mp4 with actions.csv: expected 6 rows of actions \\(or 5\\) for 6 frames, got 3",
    ),
    "no CSV": (
        then(videos(), lambda p: (p / "push-1.csv").unlink()),
        "push-1.mp4: expected its actions in push-1.csv beside it",
    ),
    "a table alone": (
        then(videos(), lambda p: (p / "push-1.mp4").unlink()),
        "push-1.csv: expected its video beside it, such as push-1.mp4, got none",
    ),
    "no rows": (
        then(videos(shared=True), table("actions.csv", cut(6))),
        "push-2.mp4: expected its actions in .*actions.csv, got no row",
    ),
    "no owner": (
        then(videos(shared=True), table("actions.csv", lambda t: t.replace("video", "clip"))),
        "expected a column 'video'",
    ),
    "unknown video": (
        then(
            videos(shared=True),
            table("actions.csv", lambda t: t.replace("push-1.mp4,3", "push-9.mp4,3")),
        ),
        "actions.csv: expected rows of the videos beside it, got 'push-9.mp4' in line 9, which "
        "is none of them",
    ),
    "one name for two": (
        then(
            videos(shared=True),
            lambda p: recordings.write_video(p / "more" / "push-1.mp4", MADE[1][0]),
        ),
        "got 'push-1.mp4' in line 6, which is the name of several",
    ),
    "no number": (
        then(videos(), table("push-1.csv", lambda t: t.replace("\n3,", "\nthree,"))),
        "expected numbers in column 'step', got 'three' in line 5, row 3 of the video",
    ),
    "gap": (
        then(videos(), table("push-1.csv", lambda t: t.replace("\n3,", "\n4,"))),
        "push-1.csv: expected 'step' to count 0, 1, 2, got 4 in line 5",
    ),
    "ragged": (
        then(videos(), table("push-1.csv", lambda t: t.replace("\n3,", "\n3,1,"))),
        "expected 6 cells in every line, got 7 in line 5",
    ),
    "no names": (
        then(videos(), table("push-1.csv", lambda t: t.replace("dx,dy", "dx,dx"))),
        "expected a first line of column names",
    ),
    "empty": (
        then(videos(), table("push-1.csv", lambda t: "")),
        "push-1.csv: expected a first line of column names, .*got an empty file",
    ),
    "other columns": (
        then(videos(), table("push-1.csv", lambda t: t.replace("dx", "du"))),
        "v: expected the same columns for every video",
    ),
    "no text": (
        then(videos(), lambda p: (p / "push-1.csv").write_bytes(b"\xff\xfe\x00")),
        "push-1.csv: expected a CSV in UTF-8",
    ),
    "torn video": (
        then(videos(), lambda p: half(p / "push-1.mp4")),
        "push-1.mp4: expected a video that decodes",
    ),
    "no video": (
        then(videos(), lambda p: (p / "push-1.mp4").write_text("hello")),
        "push-1.mp4: expected a video that decodes",
    ),
    "NaN inside": (
        videos(with_(1, actions=nan_at(2))),
        "push-1.mp4 with push-1.csv: expected finite actions .*at step 2",
    ),
}


@pytest.mark.parametrize("what", VIDEOS)
def test_folders_of_videos(what, tmp_path):
    refused(*VIDEOS[what], tmp_path)


def test_states_need_the_row_of_the_last_frame(tmp_path):
    recordings.videos(tmp_path / "v", MADE, shared=True)
    with pytest.raises(
        ValueError,
        match=r"push-0.mp4 with actions.csv: expected 5 rows of state, one per frame, got 4",
    ):
        convert(tmp_path / "v", tmp_path / "out.h5", Selection(state_columns=("dx",)))


def test_an_empty_cell_may_mark_the_end_and_nothing_else(tmp_path):
    recordings.videos(tmp_path / "v", MADE, shared=True)
    text = (tmp_path / "v" / "actions.csv").read_text().replace("\r", "")
    ended = text.replace("\npush-1.mp4,0", "\npush-0,4,,\npush-1.mp4,0")
    (tmp_path / "v" / "actions.csv").write_text(ended)
    with convert(tmp_path / "v", tmp_path / "out.h5") as converted:
        np.testing.assert_allclose(converted.actions(0)[:-1], MADE[0][1][:-1], rtol=1e-6)
    (tmp_path / "v" / "actions.csv").write_text(
        re.sub(r"\npush-1.mp4,5,[^,]*,", "\npush-1.mp4,5,,", ended)
    )
    with pytest.raises(ValueError, match=r"push-1.mp4 .*at step 5"):
        verify(tmp_path / "v")


def rewritten(path, change):
    path.write_text(change(path.read_text().replace("\r", "")))


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators_and_commas_in_numbers(separator, tmp_path):
    folder = recordings.videos(tmp_path / "v", MADE)
    for path in folder.glob("*.csv"):
        rewritten(path, lambda text: text.replace(",", separator).replace(".", ","))
    with convert(folder, tmp_path / "out.h5", Selection(state_columns=("angle",))) as converted:
        taken = json.loads(converted.provenance.options)["taken"]
        assert taken == {"action": ["dx", "dy", "x", "y"], "state": ["angle"]}
        np.testing.assert_allclose(converted.actions(1)[:-1, :2], MADE[1][1][:-1], rtol=1e-6)
        np.testing.assert_allclose(converted.states(1)[:, 0], MADE[1][2][:, 2], rtol=1e-6)


TIMES = [
    "timestamp",
    "time",
    "t",
    "Time_s",
    "stamp",
    "sec",
    "nanoseconds",
    "header.stamp.secs",
    "%time",
    "t_s",
    "simTime",
    "TS",
]
NO_TIMES = ["dx", "s", "lifetime", "steer", "timer", "x_t", "t1", "secure", "ms2", "sec_motor"]


@pytest.mark.parametrize("name", TIMES + NO_TIMES)
def test_a_time_of_any_spelling_is_no_action_unless_it_is_asked_for(name, tmp_path):
    assert is_time(name) == (name in TIMES)
    if name == "Time_s":
        folder = recordings.videos(tmp_path / "v", MADE, shared=True)
        rewritten(folder / "actions.csv", lambda text: text.replace("dy", name))
        with convert(folder, tmp_path / "out.h5") as converted:
            assert json.loads(converted.provenance.options)["taken"]["action"] == ["dx"]
        with convert(
            folder, tmp_path / "2.h5", Selection(action_columns=("dx", name))
        ) as converted:
            np.testing.assert_allclose(converted.actions(2)[:-1], MADE[2][1][:-1], rtol=1e-6)


@pytest.mark.parametrize("cell", ["1_000", "1.234,5", "0x10", "\u0663", "1e", "--1", "1,5"])
def test_a_cell_that_only_resembles_a_number_is_refused(cell, tmp_path):
    folder = recordings.videos(tmp_path / "v", MADE)
    quoted = f'"{cell}"' if "," in cell else cell
    rewritten(folder / "push-1.csv", lambda text: re.sub("\n3,[^,]*,", f"\n3,{quoted},", text))
    words = (
        rf"push-1.csv: expected numbers in column 'dx', got '{re.escape(cell)}' in line 5, row 3 "
        r"of the video.*--action-columns dy,x,y.*--skip-episodes 1"
    )
    with pytest.raises(ValueError, match=words):
        convert(folder, tmp_path / "out.h5")


def test_what_systems_and_people_leave_in_a_folder_is_not_read(tmp_path):
    folder = recordings.videos(tmp_path / "v", MADE)
    for name in ("._push-0.mp4", ".hidden/a.mp4", "__MACOSX/push-0.mp4", ".DS_Store", "notes.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    recordings.write_video(folder / "preview.gif", MADE[0][0], codec="gif")
    with (
        pytest.warns(UserWarning, match=r"v: left out preview.gif, which no row"),
        convert(folder, tmp_path / "out.h5") as converted,
    ):
        assert len(converted) == 3
    recordings.write_video(folder / "push-9.mp4", MADE[0][0])
    with pytest.raises(ValueError, match=r"push-9.mp4: expected its actions .*move it elsewhere"):
        convert(folder, tmp_path / "no.h5")


def test_a_video_that_does_not_open_can_be_left_out(tmp_path):
    folder = recordings.videos(tmp_path / "v", MADE)
    (folder / "push-1.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"push-1.mp4: expected a video .*--skip-episodes 1\."):
        convert(folder, tmp_path / "out.h5")
    with convert(folder, tmp_path / "out.h5", skip_episodes="1") as converted:
        assert converted.lengths.tolist() == [5, 6]
        np.testing.assert_allclose(converted.actions(1)[:-1, :2], MADE[2][1][:-1], rtol=1e-6)


# ----------------------------------------------------------------------------------- HDF5 and Lance


def hdf5(change):
    def write(folder):
        path = recordings.hdf5(folder / "a.h5", MADE)
        with h5py.File(path, "r+") as file:
            change(file)
        return path

    return write


def replace(name, change):
    def both(file):
        rows = change(file[name][:])
        del file[name]
        if rows is not None:
            file[name] = rows

    return hdf5(both)


HDF5 = {
    "truncated": (
        then(hdf5(lambda file: None), half),
        "a.h5: expected a whole HDF5 file, got one that does not open",
    ),
    "not HDF5": (
        then(hdf5(lambda file: None), lambda p: p.write_text("x")),
        "a.h5: expected an HDF5 file, got something else",
    ),
    "no index": (
        replace("ep_len", lambda rows: None),
        "a.h5: expected the columns pixels, .*got no ep_len",
    ),
    "index with gaps": (
        replace("ep_offset", lambda rows: rows + 1),
        r"a.h5: expected episodes end to end over 20 rows, .* offsets \[1, 6, 15\]",
    ),
    "no actions": (
        replace("action", lambda rows: None),
        "a.h5: expected a column of actions, got none among state",
    ),
    "no pictures": (
        replace("pixels", lambda rows: None),
        "a.h5: expected one column of pictures, got none",
    ),
    "float pictures": (
        replace("pixels", lambda rows: rows / 255.0),
        "expected pictures .* of type uint8, got .* of type float64",
    ),
    "grey pictures": (
        replace("pixels", lambda rows: rows[..., :1]),
        r"expected pictures \(H, W, 3\).*got \(48, 48, 1\)",
    ),
    "rows short": (
        replace("action", lambda rows: rows[:-1]),
        r"expected 20 rows in every column, got \['action'\] of another length",
    ),
    "NaN inside": (
        replace("action", nan_at(7)),
        "a.h5, episode 1: expected finite actions .*at step 2",
    ),
}


@pytest.mark.parametrize("what", HDF5)
def test_hdf5_files(what, tmp_path):
    refused(*HDF5[what], tmp_path)


def lance_table(change):
    def write(folder):
        lance.write_dataset(change(recordings.lance_table(MADE, jpeg)), str(folder / "t.lance"))
        return folder / "t.lance"

    return write


def cleared(folder):
    for path in folder.glob("data/*"):
        path.write_bytes(b"")


def cloned(folder):
    """A table whose rows lie in another folder."""
    lance.write_dataset(recordings.lance_table(MADE, jpeg), str(folder / "far.lance"))
    (folder / "in").mkdir()
    lance.dataset(str(folder / "far.lance")).shallow_clone(str(folder / "in" / "t.lance"), 1)
    return folder / "in" / "t.lance"


def column(name, change):
    """Exchange a column of a table."""

    def both(table):
        at = table.schema.get_field_index(name)
        return table.set_column(at, name, change(table[name].combine_chunks()))

    return lance_table(both)


LANCE = {
    "rows elsewhere": (
        cloned,
        "t.lance: expected rows that lie in this folder, got '.*' of another",
    ),
    "index of fractions": (
        column("step_idx", lambda c: c.cast("float32")),
        "t.lance: expected 'step_idx' of whole numbers, got float",
    ),
    "index of text": (
        column("episode_idx", lambda c: c.cast("string")),
        "t.lance: expected 'episode_idx' of whole numbers, got string",
    ),
    "index with holes": (
        column("step_idx", lambda c: pa.array([*c[:-1].to_pylist(), None])),
        "t.lance: expected 'step_idx' of whole numbers, got 1 empty ones",
    ),
    "index beyond counting": (
        column("episode_idx", lambda c: pa.array([2**63 + n for n in c.to_pylist()], "uint64")),
        "t.lance: expected 'episode_idx' to number rows, got 9223372036854775810",
    ),
    "no index": (
        lance_table(lambda t: t.drop_columns(["step_idx"])),
        "t.lance: expected the columns episode_idx, .*got no step_idx",
    ),
    "no action": (
        lance_table(lambda t: t.drop_columns(["action"])),
        "t.lance: expected a column of actions, got none among state",
    ),
    "out of order": (
        lance_table(lambda t: pa.concat_tables([t[:3], t[5:], t[3:5]])),
        "got episodes that are interrupted by others",
    ),
    "gap": (
        lance_table(lambda t: pa.concat_tables([t[:7], t[8:]])),
        "expected 'step_idx' to count .*got 3 in row 7, episode 1",
    ),
    "no rows": (lance_table(lambda t: t[:0]), "t.lance: expected rows .*got no rows"),
    "torn": (
        then(lance_table(lambda t: t), cleared),
        "t.lance: expected a whole Lance table, got one that cannot be read",
    ),
    "no table": (
        lambda folder: (folder / "t.lance").mkdir() or folder / "t.lance",
        "t.lance: expected a whole Lance table",
    ),
    "broken pictures": (
        lambda folder: lance_table(lambda t: recordings.lance_table(MADE, lambda p: jpeg(p)[:50]))(
            folder
        ),
        "t.lance, episode 0: expected pictures that decode, got an error",
    ),
}


@pytest.mark.parametrize("what", LANCE)
def test_lance_tables(what, tmp_path):
    refused(*LANCE[what], tmp_path)


def test_a_lance_table_holds_no_more_than_its_bytes_can(tmp_path, monkeypatch):
    """20 MB of rows, where half of the bytes on disk are allowed."""
    module = import_module("lewm.data.formats.lance")
    wide = column("state", lambda c: recordings.lists(np.zeros((20, 1 << 18), np.float32)))
    path = wide(tmp_path)
    verify(path)
    monkeypatch.setattr(module, "SMALL_BYTES", 1 << 20)
    monkeypatch.setattr(module, "MAX_EXPANSION", 0.5)
    with pytest.raises(
        ValueError, match=r"t.lance: expected no more rows than .* got 20 of 'state'"
    ):
        verify(path)


# ------------------------------------------------------------------------------------------ nothing


def named(folder, *names):
    for name in names:
        (folder / name).write_text("x")
    return folder


NOTHING = {
    "empty folder": (
        lambda folder: named(folder),
        r"expected recordings in a known format \(hdf5, .*got a folder of nothing",
    ),
    "other files": (
        lambda folder: named(folder, "a.txt"),
        "got a folder of a.txt. docs/your-own-data.md",
    ),
    "another file": (
        lambda folder: named(folder, "a.txt") / "a.txt",
        "a.txt: expected recordings in a known format .*got another file",
    ),
    "no file": (
        lambda folder: folder / "nothing",
        "nothing: expected an episode file, got no such file",
    ),
    "several files": (
        lambda folder: named(folder, "a.h5", "b.h5"),
        "expected one HDF5 file, got a.h5, b.h5. Give one of them",
    ),
    "two formats": (
        lambda folder: named(videos()(folder), "a.h5"),
        "expected recordings in one format, got hdf5 and videos. Choose one with --format",
    ),
}


@pytest.mark.parametrize("what", NOTHING)
def test_what_is_no_recording(what, tmp_path):
    refused(*NOTHING[what], tmp_path)


def test_a_format_that_is_given(tmp_path):
    source = named(recordings.videos(tmp_path / "v", MADE, shared=True), "a.h5")
    with convert(source, tmp_path / "out.h5", Selection(format="videos")) as converted:
        assert len(converted) == 3
    with pytest.raises(
        ValueError,
        match=r"expected recordings in a known format \(lerobot\), got a folder of a.h5, "
        r"actions.csv",
    ):
        convert(source, tmp_path / "no.h5", Selection(format="lerobot"))
    with pytest.raises(ValueError, match=r"unknown format 'video'. Did you mean 'videos'"):
        convert(source, tmp_path / "no.h5", Selection(format="video"))
