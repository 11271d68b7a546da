"""Whatever others keep their recordings in, the same episodes come out: right frames, right
actions, right states."""

import json
import sys

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
from lewm.data.sources import Selection
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
    assert "robot.h5 holds 3 episodes, 72 frames of 32 px" in capsys.readouterr().out
    assert json.loads((tmp_path / "told.json").read_text())["episodes"] == 3
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("nothing to do: ")
    assert main(["data", "verify", str(tmp_path / "v"), str(out)]) == 0
    assert main(["data", "info", str(tmp_path / "v"), str(out)]) == 0
    assert "missing training" in capsys.readouterr().out
    assert main(train_command(out, tmp_path / "run", "--training.updates=2")) == 0
    assert (tmp_path / "run").is_dir()


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
