"""Whatever others keep their recordings in, the same episodes come out: right frames, right
actions, right states."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import hdf5plugin
import lance
import numpy as np
import pytest

from lewm import registry
from lewm.cli.main import main
from lewm.contracts import Progress
from lewm.data import converting
from lewm.data.converting import convert, describe, verify
from lewm.data.episodes import Episodes
from lewm.data.sources import Selection, seems_a_choice
from tests.support import recordings
from tests.support.archives import tar, zst
from tests.support.project import train_command
from tests.support.recordings import MADE, encoded, jpeg


def lance_folder(path):
    lance.write_dataset(
        recordings.lance_table(MADE, jpeg), str(path / "t.lance"), max_rows_per_file=7
    )
    return path


XYA = ("x", "y", "angle")
LAYOUTS = {
    # layout: (how to write it, what to select, mean error per channel, the names of its states)
    "hdf5": (lambda p: recordings.hdf5(p / "a.h5", MADE), {}, 0, ("state 0", "state 1", "state 2")),
    "hdf5, compressed": (
        lambda p: recordings.hdf5(p / "a.h5", MADE, **hdf5plugin.Blosc()),
        {},
        0,
        ("state 0", "state 1", "state 2"),
    ),
    "hdf5, other columns": (
        lambda p: recordings.hdf5(p / "a.h5", MADE, pixels="pixels_top", states=("pos", "angle")),
        {"state_columns": ("pos", "angle")},
        0,
        ("pos 0", "pos 1", "angle"),
    ),
    "lance": (lance_folder, {}, 4, ("state 0", "state 1", "state 2")),
    "lerobot 2.0": (lambda p: recordings.lerobot(p / "lr", MADE, "v2.0"), {}, 3, XYA),
    "lerobot 2.1, pictures": (
        lambda p: recordings.lerobot(p / "lr", MADE, "v2.1", encode=encoded),
        {},
        0,
        XYA,
    ),
    "lerobot 3.0": (lambda p: recordings.lerobot(p / "lr", MADE, "v3.0"), {}, 3, XYA),
    "lerobot 3.0, pictures": (
        lambda p: recordings.lerobot(p / "lr", MADE, "v3.0", encode=encoded),
        {},
        0,
        XYA,
    ),
    "videos, a table each": (
        lambda p: recordings.videos(p / "v", MADE),
        {"state_columns": XYA},
        3,
        XYA,
    ),
    "videos, one table": (lambda p: recordings.videos(p / "v", MADE, shared=True), {}, 3, ()),
    "videos, mkv": (
        lambda p: recordings.videos(p / "v", MADE, suffix=".mkv"),
        {"state_columns": XYA},
        3,
        XYA,
    ),
    "videos, gif": (
        lambda p: recordings.videos(p / "v", MADE, shared=True, suffix=".gif", codec="gif"),
        {},
        30,
        (),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_episodes(layout, tmp_path):
    write, selected, tolerance, names = LAYOUTS[layout]
    source, calls = write(tmp_path), []
    with convert(
        source,
        tmp_path / "out.h5",
        Selection(**selected),
        report=calls.append,
    ) as converted:
        assert calls == [Progress("convert", number, 3) for number in (1, 2, 3)]
        assert converted.complete
        assert converted.lengths.tolist() == list(recordings.LENGTHS)
        assert converted.state_names == names
        for i, (pixels, actions, states) in enumerate(MADE):
            episode = converted.episode(i)
            error = np.abs(episode.pixels.astype(int)[:, None] - pixels[None]).mean(axis=(2, 3, 4))
            assert error.diagonal().max() <= tolerance
            assert (error.argmin(axis=1) == np.arange(len(pixels))).all(), (
                "each frame is itself, not a neighbour"
            )
            np.testing.assert_allclose(episode.actions[:-1], actions[:-1], rtol=1e-6)
            assert np.isnan(episode.actions[-1]).all(), (
                "nothing that was recorded follows the last observation"
            )
            if names:
                np.testing.assert_allclose(episode.states, states, rtol=1e-6)
        told = json.loads(converted.provenance.options)
        assert told["format"] == layout.split(",")[0].split()[0]
        assert told["source"] == source.name
    assert not [
        path.name
        for path in tmp_path.iterdir()
        if path.name.startswith(".") or path.name.endswith(".partial")
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_described_and_verified(layout, tmp_path):
    write, selected, _, _ = LAYOUTS[layout]
    source = write(tmp_path)
    told = describe(source, Selection(**selected))
    json.dumps(told)
    assert (told["episodes"], told["steps"], told["lengths"]["100%"]) == (3, 20, 9)
    actions = np.concatenate([actions[:-1] for _, actions, _ in MADE])
    np.testing.assert_allclose(told["actions"]["max"], actions.max(axis=0), rtol=1e-6)
    as_it_is = layout in ("hdf5", "hdf5, compressed")
    assert ("training" in told["missing"]) != as_it_is
    assert any("world" in lack for lack in told["missing"]["evaluation"])
    seen = []
    found = verify(source, Selection(**selected), report=seen.append)
    assert found == {"episodes": 3, "steps": 20, "blank_frames": 0, "nonfinite_states": 0}
    assert seen == [Progress("verify", number, 3) for number in (1, 2, 3)]


def test_what_holds_no_actions_by_their_name_is_described_all_the_same(tmp_path):
    source = recordings.hdf5(tmp_path / "a.h5", MADE)
    with h5py.File(source, "r+") as file:
        file.move("action", "commands")
    told = describe(source)
    assert "commands" in told["columns"]
    assert told["actions"] == {}
    assert "got no action among" in told["missing"]["training"][0]


def test_every_format_is_recognised_by_itself_alone(tmp_path):
    for number, layout in enumerate(LAYOUTS):
        (tmp_path / str(number)).mkdir()
        source = LAYOUTS[layout][0](tmp_path / str(number))
        claimed = [
            name
            for name in registry.names("formats")
            if registry.load("formats", name).recognises(source)
        ]
        assert claimed == [layout.split(",")[0].split()[0]]


# ----------------------------------------------------------------------------------------- archives


@pytest.mark.parametrize("name", ["a.h5.zst", "a.tar.zst", "a.tar"])
def test_archives_are_unpacked_beside_the_target_and_tidied_away(name, tmp_path):
    content = recordings.hdf5(tmp_path / "a.h5", MADE).read_bytes()
    archive, out = tmp_path / name, tmp_path / "new" / "out.h5"
    packed = content if name == "a.h5.zst" else tar([("data/a.h5", content)])
    archive.write_bytes(packed if name == "a.tar" else zst(packed))
    with convert(archive, out, Selection(image_size=24)) as converted:
        assert (len(converted), converted.image_size) == (3, 24)
        assert json.loads(converted.provenance.options)["source"] == name
    assert [path.name for path in out.parent.iterdir()] == ["out.h5"]
    told = describe(archive)
    assert (told["steps"], told["path"]) == (20, str(archive))


def test_a_folder_with_one_archive_as_repositories_hold_them(tmp_path):
    archive = tmp_path / "repository" / "data.tar.zst"
    recordings.lerobot(tmp_path / "lr", MADE)
    inside = [
        (str(path.relative_to(tmp_path)), path.read_bytes())
        for path in (tmp_path / "lr").rglob("*")
        if path.is_file()
    ]
    archive.parent.mkdir()
    (archive.parent / "README.md").write_text("data")
    archive.write_bytes(zst(tar(inside)))
    assert describe(archive.parent)["format"] == "lerobot"


def test_what_is_wrong_inside_an_archive_names_the_archive(tmp_path):
    archive = tmp_path / "a.tar.zst"
    archive.write_bytes(zst(tar([("data/a.h5", b"no HDF5")])))
    with pytest.raises(
        ValueError, match=r"a\.tar\.zst: data/a\.h5: expected an HDF5 file, got something else"
    ):
        convert(archive, tmp_path / "out.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.zst"]


def test_what_a_killed_conversion_left_is_removed_and_nothing_else(tmp_path):
    content = recordings.hdf5(tmp_path / "a.h5", MADE).read_bytes()
    (tmp_path / "a.tar").write_bytes(tar([("a.h5", content)]))
    out = tmp_path / "out"
    killed = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "a.tar"), str(out)], stdout=subprocess.PIPE
    )
    copy = Path(killed.stdout.readline().decode().strip())
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_text("x")
    planted = f".a.tar.{'0' * 16}.partial"
    (out / planted).symlink_to(outside)
    kept = [".a.tar.mine.partial", f".a.tar.{'0' * 17}.partial", "other"]
    for name in kept:
        (out / name).mkdir()
    assert (copy / "a.h5").is_file()
    convert(tmp_path / "a.tar", out / "1.h5").close()
    assert copy.is_dir(), "it is in use: another process holds it"
    (copy / "link").symlink_to(outside)
    killed.kill()
    killed.wait()
    killed.stdout.close()
    convert(tmp_path / "a.tar", out / "2.h5").close()
    names = {path.name for path in out.iterdir()}
    assert names == {"1.h5", "2.h5", planted, *kept}
    assert (outside / "keep").read_text() == "x"


KILLED = """
import sys, time
from pathlib import Path
from lewm.data.archives import unpacked

with unpacked(Path(sys.argv[1]), Path(sys.argv[2])) as folder:
    print(folder, flush=True)
    time.sleep(600)
"""


def test_sigterm_leaves_whole_episodes_and_no_copy(tmp_path, monkeypatch):
    content = recordings.hdf5(tmp_path / "a.h5", MADE).read_bytes()
    (tmp_path / "a.tar").write_bytes(tar([("a.h5", content)]))
    original = converting._episode

    def ended(source, i, *more):
        if i == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(source, i, *more)

    monkeypatch.setattr(converting, "_episode", ended)
    words = ["data", "convert", str(tmp_path / "a.tar"), "--out", str(tmp_path / "out" / "o.h5")]
    assert main(words) == 130
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["o.h5"]
    with Episodes.open(tmp_path / "out" / "o.h5") as part:
        assert (len(part), part.complete) == (2, False)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


LINKS = {
    "a file": lambda folder, secret: (folder / "push-3.mp4").symlink_to(secret),
    "a table": lambda folder, secret: (folder / "push-3.csv").symlink_to(secret),
    "a folder": lambda folder, secret: (folder / "more").symlink_to(secret.parent),
    "deeper": lambda folder, secret: (
        (folder / "a").mkdir(),
        (folder / "a" / "b.mp4").symlink_to(secret),
    ),
}


@pytest.mark.parametrize("what", LINKS)
def test_links_out_of_a_folder_are_refused_and_those_within_are_not(what, tmp_path):
    folder = recordings.videos(tmp_path / "v", MADE, shared=True)
    (tmp_path / "elsewhere").mkdir()
    secret = recordings.write_video(tmp_path / "elsewhere" / "s.mp4", MADE[0][0])
    (folder / "push-1.mp4").rename(folder / "kept")
    (folder / "push-1.mp4").symlink_to("kept")
    (tmp_path / "given").symlink_to(folder)
    assert verify(tmp_path / "given")["episodes"] == 3
    LINKS[what](folder, secret)
    for use in (describe, verify, lambda source: convert(source, tmp_path / "out.h5")):
        with pytest.raises(ValueError, match=r"expected a file or a folder, got a link out of"):
            use(folder)


def test_the_hubs_cache_consists_of_links_into_its_own_repository(tmp_path):
    repository = tmp_path / "datasets--user--name"
    (repository / "blobs").mkdir(parents=True)
    snapshot = recordings.lerobot(repository / "snapshots" / "abc", MADE)
    for number, path in enumerate(p for p in snapshot.rglob("*") if p.is_file()):
        path.rename(repository / "blobs" / f"{number:x}")
        path.symlink_to(repository / "blobs" / f"{number:x}")
    assert verify(snapshot)["episodes"] == 3
    secret = tmp_path / "secret"
    secret.write_text("x")
    (snapshot / "README.md").symlink_to(secret)
    with pytest.raises(ValueError, match=r"README.md: expected a file .* a link out of"):
        verify(snapshot)


# --------------------------------------------------------------------------------- shape and choice


def test_pictures_that_are_not_square_are_cut_or_padded_only_on_request(tmp_path):
    wide = recordings.episodes(height=20, width=31)
    source = recordings.hdf5(tmp_path / "a.h5", wide)
    with pytest.raises(
        ValueError, match=r"expected square pictures, got 31 x 20.*--crop center.*--crop pad"
    ):
        convert(source, tmp_path / "no.h5")
    assert not (tmp_path / "no.h5").exists()
    assert "(N, h, h, 3)" in describe(source)["missing"]["training"][0]
    assert describe(source)["cameras"] == {"pixels": "31 x 20"}
    with convert(source, tmp_path / "center.h5", Selection(crop="center")) as converted:
        assert (converted.episode(1).pixels == wide[1][0][:, :, 5:25]).all()
    with convert(source, tmp_path / "pad.h5", Selection(crop="pad")) as converted:
        pixels = converted.episode(1).pixels
        inner = np.flatnonzero(pixels.any(axis=(0, 2, 3)))
        assert pixels.shape[1:3] == (31, 31)
        assert inner.tolist() == list(range(inner[0], inner[0] + 20))
        assert (pixels[:, inner] == wide[1][0]).all()


def test_scaling_averages_rather_than_skips(tmp_path):
    """Stripes of one pixel must become grey, whichever way the picture is halved twice."""
    stripes = np.zeros((4, 32, 32, 3), np.uint8)
    stripes[:, :, ::2] = 255
    source = recordings.hdf5(
        tmp_path / "a.h5", [(stripes, np.zeros((4, 2), np.float32), np.zeros((4, 3), np.float32))]
    )
    with convert(source, tmp_path / "out.h5", Selection(image_size=8)) as converted:
        assert np.abs(converted.episode(0).pixels.astype(int) - 127).max() < 12


def test_one_of_several_cameras_must_be_chosen(tmp_path):
    cameras = ("observation.images.top", "observation.images.wrist")
    source = recordings.lerobot(tmp_path / "lr", MADE, cameras=cameras)
    with pytest.raises(
        ValueError,
        match=r"got observation\.images\.top, observation\.images\.wrist\. Choose one with "
        r"--camera",
    ):
        convert(source, tmp_path / "out.h5")
    with pytest.raises(ValueError, match=r"Did you mean 'observation.images.wrist'"):
        convert(source, tmp_path / "out.h5", Selection(camera="observation.images.wirst"))
    assert describe(source)["cameras"] == dict.fromkeys(cameras, "48 x 48")
    assert verify(source)["episodes"] == 3
    with convert(source, tmp_path / "out.h5", Selection(camera=cameras[1])) as converted:
        assert (
            np.abs(converted.episode(2).pixels - np.roll(MADE[2][0], 1, axis=3).astype(int)).mean()
            < 3
        )


def test_columns_are_laid_side_by_side_in_the_order_given(tmp_path):
    source = recordings.lerobot(tmp_path / "lr", MADE)
    selection = Selection(action_columns=("gain", "action"), state_columns=("action", "gain"))
    with convert(source, tmp_path / "out.h5", selection) as converted:
        episode, actions = converted.episode(0), MADE[0][1]
        np.testing.assert_allclose(episode.actions[:-1], np.insert(actions, 0, 2.0, axis=1)[:-1])
        np.testing.assert_allclose(episode.states, np.append(actions, np.full((5, 1), 2.0), axis=1))
        assert converted.state_names == ("dx", "dy", "gain")


def test_a_converted_file_keeps_what_was_known_of_it(small_data, tmp_path):
    with (
        Episodes.open(small_data) as before,
        convert(small_data, tmp_path / "out.h5", Selection(image_size=16), episodes=2) as after,
    ):
        assert (after.provenance.world, after.provenance.look) == ("two-room", "published")
        assert (after.provenance.state_names, after.provenance.state_units) == (
            before.provenance.state_names,
            ("px", "px"),
        )
        assert json.loads(after.provenance.options)["image_size"] == after.image_size == 16
        assert (after.states(1) == before.states(1)).all()
    with pytest.raises(
        ValueError, match="expected recordings of world 'push-t', got some of 'two-room'"
    ):
        convert(small_data, tmp_path / "other.h5", world="push-t")


def test_units_are_those_of_the_columns_that_were_taken(small_data, tmp_path):
    """Of others nobody told them, though they be as many."""
    source = tmp_path / "more.h5"
    source.write_bytes(small_data.read_bytes())
    with h5py.File(source, "a") as file:
        file["pace"] = np.asarray(file["state"]) / 10
    for columns, units in ((), ("px", "px")), (("pace",), ()):
        selection = Selection(state_columns=columns)
        with convert(source, tmp_path / f"{len(columns)}.h5", selection, episodes=2) as after:
            assert after.provenance.state_units == units
            assert len(after.state_names) == 2


@pytest.mark.parametrize("choice", ["0-1", "1", "0,2", "2-2", "1-2"])
def test_episodes_are_chosen_by_number(choice, tmp_path):
    taken = {"0-1": [0, 1], "1": [0], "0,2": [0, 2], "2-2": [2], "1-2": [1, 2]}[choice]
    source, told = recordings.hdf5(tmp_path / "a.h5", MADE), {"0,2": "0,2", "2-2": "2", "1": "0"}
    with convert(source, tmp_path / "out.h5", episodes=choice) as converted:
        assert converted.lengths.tolist() == [recordings.LENGTHS[i] for i in taken]
        for place, i in enumerate(taken):
            assert (converted.episode(place).pixels == MADE[i][0]).all()
            np.testing.assert_array_equal(converted.actions(place)[:-1], MADE[i][1][:-1])
        options = json.loads(converted.provenance.options)
        assert options["episodes"] == told.get(choice, choice)
        assert converted.complete


def test_episodes_are_left_out_by_number(tmp_path):
    source = recordings.hdf5(tmp_path / "a.h5", MADE)
    with convert(source, tmp_path / "1.h5", skip_episodes="0") as converted:
        assert converted.lengths.tolist() == [9, 6]
        assert json.loads(converted.provenance.options)["episodes"] == "1-2"
    with convert(source, tmp_path / "2.h5", episodes=1, skip_episodes="0") as converted:
        assert converted.lengths.tolist() == [9]
    with convert(source, tmp_path / "3.h5") as converted:
        assert "episodes" not in json.loads(converted.provenance.options)
    for words, skipped in [
        ("episodes 0 to 2, got 3", "3"),
        ("such as 0-9,12, got '2-1'", "2-1"),
        ("such as 0-9,12, got 'x'", "1,x"),
        ("an episode to convert, got none", "0-2"),
    ]:
        with pytest.raises(ValueError, match=words):
            convert(source, tmp_path / "no.h5", skip_episodes=skipped)
    with pytest.raises(ValueError, match="at least 1 episode, got 0"):
        convert(source, tmp_path / "no.h5", episodes=0)


def with_actions(folder, rows, dtype="float32"):
    """The usual recordings as HDF5 of other names, with other actions."""
    source = recordings.hdf5(folder / "a.h5", MADE, pixels="camera")
    with h5py.File(source, "r+") as file:
        del file["action"]
        file["action"] = np.asarray(rows, dtype)
    return source


CHOICES = {
    # how they were recorded: (rows, type)
    "whole numbers": (np.arange(20)[:, None] % 4, "int64"),
    "booleans": (np.arange(20)[:, None] % 2, "bool"),
    "floats": (np.arange(20)[:, None] % 4, "float32"),
    "no axis": (np.arange(20) % 4, "uint8"),
}


@pytest.mark.parametrize("kind", CHOICES)
def test_an_action_that_is_a_choice_is_refused_or_one_hot(kind, tmp_path):
    rows, dtype = CHOICES[kind]
    source, count = with_actions(tmp_path, rows, dtype), int(rows.max()) + 1
    words = r"a.h5: expected actions that are amounts, got whole numbers in 'action' \(0, 1.*"
    with pytest.raises(ValueError, match=words + f"--discrete-actions {count} "):
        convert(source, tmp_path / "no.h5")
    with convert(source, tmp_path / "1.h5", Selection(discrete_actions=4)) as converted:
        for i, start in enumerate((0, 5, 14)):
            chosen = rows.ravel()[start : start + recordings.LENGTHS[i] - 1]
            np.testing.assert_array_equal(converted.actions(i)[:-1], np.eye(4)[chosen])
            assert np.isnan(converted.actions(i)[-1]).all()
        options = json.loads(converted.provenance.options)
        assert options["taken"]["action"] == [f"action = {k}" for k in range(4)]
        assert options["discrete_actions"] == 4
    with convert(source, tmp_path / "0.h5", Selection(discrete_actions=0)) as converted:
        np.testing.assert_array_equal(converted.actions(0)[:-1].ravel(), rows.ravel()[:4])
    if count > 2:
        with pytest.raises(
            ValueError, match=r"choices from 0 to 1 in 'action', got \[2.0\] at step"
        ):
            convert(source, tmp_path / "2.h5", Selection(discrete_actions=2))


AMOUNTS = {
    "one-hot": (np.eye(4, dtype=int)[np.arange(20) % 4], "int64"),
    "some are no whole numbers": (np.where(np.arange(20) == 17, 0.5, 1.0)[:, None], "float32"),
    "some are below 0": (np.arange(20)[:, None] % 3 - 1, "float32"),
    "far apart": (np.arange(20)[:, None] % 5 * 10, "float32"),
    "always the same": (np.full((20, 1), 2), "float32"),
    "several a row": (np.arange(40).reshape(20, 2) % 3, "float32"),
    "whole numbers below 0": (np.arange(20)[:, None] % 3 - 1, "int64"),
    "whole numbers far apart": (np.arange(20)[:, None] % 5 * 10, "int16"),
    "many whole numbers": (np.arange(20)[:, None] * 3, "uint8"),
}


@pytest.mark.parametrize("kind", AMOUNTS)
def test_actions_that_are_amounts_stay_as_they_are(kind, tmp_path):
    rows, dtype = AMOUNTS[kind]
    with convert(with_actions(tmp_path, rows, dtype), tmp_path / "out.h5") as converted:
        np.testing.assert_array_equal(converted.actions(2)[:-1], rows[14:19])


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize(
    ("name", "values", "choice"),
    [
        ("action", range(2), True),
        ("action", range(18), True),  # an Atari game's
        ("action", range(31), True),
        ("action", range(32), False),  # many
        ("action", (0, 1, 3), True),
        ("action", (1, 2), True),  # 0 was never done
        ("action", (0, 1, 3, 7), False),  # gaps
        ("action", (0, 255), False),
        ("action", (-1, 0, 1), False),
        ("action", (0, 0.5, 1), False),
        ("action", (1,), False),
        ("action", (), False),
        ("speed [mm/s]", range(4), False),
        ("angle (deg)", range(4), False),
        ("dx_px", range(4), False),
        ("gripperPercent", range(4), False),
        ("throttle %", range(4), False),
        ("action (4)", range(4), True),
        ("mode_m", range(4), True),
        ("deg", range(4), True),  # nothing but a name
    ],
)
def test_what_seems_to_be_a_choice(name, values, choice, typed):
    assert seems_a_choice(name, set(values), typed, alone=True) == choice
    assert seems_a_choice(name, set(values), typed, alone=False) == (choice and typed)


def test_choices_that_nobody_would_guess_are_made_where_they_are_said(tmp_path):
    """Gaps between them, or more than `FEW`."""
    rows = np.arange(20)[:, None] % 5 * 10
    source = with_actions(tmp_path, rows, "int64")
    with convert(source, tmp_path / "out.h5", Selection(discrete_actions=41)) as converted:
        np.testing.assert_array_equal(converted.actions(0)[:-1], np.eye(41)[rows[:4, 0]])


@pytest.mark.parametrize("rows", [np.arange(20)[:, None] % 3 - 1, np.eye(2)[np.arange(20) % 2]])
def test_choices_that_are_not_there_are_not_said_in_vain(rows, tmp_path):
    source = with_actions(tmp_path, rows, "float32")
    words = "a.h5: expected an action that is one of 3 choices, numbered from 0, got none in action"
    with pytest.raises(ValueError, match=words):
        convert(source, tmp_path / "out.h5", Selection(discrete_actions=3))


@pytest.mark.parametrize(
    ("values", "asked"), [([0, 1, 2], True), ([-3, 0, 3], False), ([0, 120, 255], False)]
)
@pytest.mark.parametrize("name", ["hdf5", "videos", "lerobot"])
def test_every_layout_is_asked_by_the_same_rule(name, values, asked, tmp_path):
    rows = np.array(values, np.float32)[np.arange(20) % 3]
    made, start = [], 0
    for pixels, actions, states in MADE:
        own = rows[start : start + len(actions), None]
        if name == "videos":  # which have two columns
            own = np.concatenate([own, np.full_like(own, 0.5)], axis=1)
        made, start = [*made, (pixels, own, states)], start + len(actions)
    path = tmp_path / ("a.h5" if name == "hdf5" else "a")
    source = getattr(recordings, name)(path, made)
    if asked:
        with pytest.raises(ValueError, match=r"whole numbers in '.*' \(0, 1, 2\), which seem"):
            convert(source, tmp_path / "out.h5")
    else:
        convert(source, tmp_path / "out.h5").close()


@pytest.mark.parametrize("kind", ["episode file", "recordings"])
def test_pictures_of_one_colour_are_not_sound(kind, tmp_path):
    def source(name, pixels):
        made = [(pixels(i, episode[0]), *episode[1:]) for i, episode in enumerate(MADE)]
        return recordings.hdf5(
            tmp_path / name, made, pixels="pixels" if kind == "episode file" else "camera"
        )

    black = source("black.h5", lambda i, pixels: np.zeros_like(pixels))
    with pytest.raises(ValueError, match=r"black.h5: expected pictures of something.*one and the"):
        verify(black)
    out = tmp_path / "out.h5"
    with pytest.raises(ValueError, match=r"black.h5: expected pictures of something.*one and the"):
        convert(black, out)
    assert [file.name for file in tmp_path.iterdir()] == ["black.h5"]  # nothing is written
    for name, pixels in {
        "a dot": lambda i, pixels: (
            np.eye(48, dtype=np.uint8)[None, ..., None] * (i == 2) + 0 * pixels
        ),
        "another colour": lambda i, pixels: np.zeros_like(pixels) + np.uint8(i == 2),
    }.items():
        assert verify(source(f"{name}.h5", pixels))["blank_frames"] >= 14
        with convert(tmp_path / f"{name}.h5", tmp_path / f"{name}-out.h5") as converted:
            assert len(converted) == len(MADE)


@pytest.mark.parametrize("every", [0, -1, 2.5, "1", True, np.arange(3), 2**40, h5py.Empty("i8")])
@pytest.mark.parametrize("name", ["pixels", "camera"])
def test_rows_of_unknown_meaning_are_refused(name, every, tmp_path):
    """A row of 2.5 steps must not be read as one of 1."""
    source = recordings.hdf5(tmp_path / "a.h5", MADE, pixels=name)
    with h5py.File(source, "r+") as file:
        file.attrs["every"] = every
    with pytest.raises(ValueError, match=r"a.h5: expected .*every"):
        convert(source, tmp_path / "out.h5")


@pytest.mark.parametrize("options", ["[" * 50_000, "{", "[1]", "1", "null", "\0a", '{"taken": 1}'])
def test_options_of_another_project_give_way(options, tmp_path):
    source = recordings.hdf5(tmp_path / "a.h5", MADE)
    with h5py.File(source, "r+") as file:
        file.attrs["options"] = np.array(options.encode(), f"S{len(options)}")
        file.attrs["policy"] = np.array(b"a\0b\xff", "S4")
    with convert(source, tmp_path / "out.h5") as converted:
        assert json.loads(converted.provenance.options)["taken"]["state"][0] == "state 0"
        assert converted.provenance.policy == "ab\ufffd"


# -------------------------------------------------------------------------- going on, the whole way


def test_an_interrupted_conversion_goes_on(tmp_path, monkeypatch):
    source = recordings.lerobot(tmp_path / "lr", MADE, "v3.0")

    def stop(progress):
        if progress.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out.h5", report=stop)
    with Episodes.open(tmp_path / "out.h5") as part:
        assert (len(part), part.complete) == (2, False)
    read = []
    original = converting._episode
    monkeypatch.setattr(
        converting,
        "_episode",
        lambda source, i, *more: read.append(i) or original(source, i, *more),
    )
    convert(source, tmp_path / "out.h5").close()
    assert read == [2]
    convert(source, tmp_path / "whole.h5").close()
    with h5py.File(tmp_path / "out.h5") as one, h5py.File(tmp_path / "whole.h5") as other:
        assert all((one[name][:] == other[name][:]).all() for name in one if name != "action")
        np.testing.assert_array_equal(one["action"][:], other["action"][:])
    with pytest.raises(ValueError, match="image_size"):
        convert(source, tmp_path / "out.h5", Selection(image_size=24))


def test_from_a_folder_of_videos_to_a_trained_model(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for i in range(3):
        pixels = rng.integers(0, 255, (24, 4, 6, 3), np.uint8).repeat(10, axis=1).repeat(10, axis=2)
        recordings.write_video(tmp_path / "v" / f"run-{i}.mp4", pixels)
        recordings.write_csv(
            tmp_path / "v" / f"run-{i}.csv",
            ["left", "right"],
            rng.standard_normal((24, 2)).tolist(),
        )
    out, words = (
        tmp_path / "robot.h5",
        ["data", "convert", str(tmp_path / "v"), "--out", str(tmp_path / "robot.h5")],
    )
    words += [
        "--image-size=32",
        "--crop=center",
        "--compression=blosc",
        "--json",
        str(tmp_path / "told.json"),
    ]
    assert main(words) == 0
    out_text = capsys.readouterr().out
    assert "robot.h5 holds 3 episodes, 72 frames of 32 px" in out_text
    assert "taken as action: left, right (2 numbers)\ntaken as state: nothing (0" in out_text
    assert json.loads((tmp_path / "told.json").read_text())["episodes"] == 3
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("nothing to do: ")
    assert main(["data", "verify", str(tmp_path / "v"), str(out)]) == 0
    assert main(["data", "info", str(tmp_path / "v"), str(out)]) == 0
    assert "missing training" in capsys.readouterr().out
    assert main(train_command(out, tmp_path / "run", "--training.updates=2")) == 0
    assert (tmp_path / "run").is_dir()


@pytest.mark.parametrize("layout", ["hdf5", "lance", "lerobot 3.0", "archive"])
def test_what_systems_leave_beside_recordings_is_not_read(layout, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    if layout == "archive":
        content = recordings.hdf5(tmp_path / "a.h5", MADE).read_bytes()
        notes = [("._a.h5", b"x"), (".DS_Store", b"x"), ("__MACOSX/._a.h5", b"x")]
        (folder / "a.tar").write_bytes(tar([*notes, ("data/a.h5", content), ("._data", b"x")]))
        source = folder
    else:
        source = LAYOUTS[layout][0](folder)
        source = source if source.is_dir() else folder
    names = ["._a.h5", "._t.lance", ".DS_Store", "._a.tar", "meta/episodes/chunk-000/._a.parquet"]
    for name in names:
        if (source / name).parent.is_dir():
            (source / name).write_text("x")
    assert verify(source)["episodes"] == 3


def test_a_format_whose_package_is_missing_is_named_when_it_might_have_helped(
    tmp_path, monkeypatch
):
    (tmp_path / "data").mkdir()
    lance_folder(tmp_path / "data")
    monkeypatch.delitem(sys.modules, "lewm.data.formats.lance", raising=False)
    monkeypatch.setitem(sys.modules, "lance", None)
    needs = (
        r"format 'lance' needs the package 'pylance'. Install it with: pip install "
        r"'?(lewm\[lance\]|pylance)"
    )
    with pytest.raises(ValueError, match=f"expected recordings in a known format.* {needs}"):
        describe(tmp_path / "data")
    with pytest.raises(ImportError, match=needs):
        describe(tmp_path / "data", Selection(format="lance"))
    recordings.hdf5(tmp_path / "a.h5", MADE)
    assert describe(tmp_path / "a.h5")["episodes"] == 3, "others are read as before"
