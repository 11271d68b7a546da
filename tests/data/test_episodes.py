"""Reading episode files: every row comes back, and every broken file is refused with its cure."""

import json
import pickle
import re

import h5py
import hdf5plugin
import numpy as np
import pytest

from lewm.contracts import Progress
from lewm.data.episodes import Episodes, Provenance, check_fits
from lewm.data.split import split, statistics

LENGTHS = (5, 9, 1, 7)


@pytest.fixture
def path(tmp_path):
    return publish(tmp_path / "published.h5")


def publish(path, lengths=LENGTHS, **replaced):
    """Write a file in the published layout by hand, as other projects do: no provenance, other
    columns beside ours."""
    generator = np.random.default_rng(0)
    steps, offsets = sum(lengths), np.cumsum(lengths) - lengths
    action = generator.normal(size=(steps, 2)).astype(np.float32)
    action[offsets + lengths - 1] = np.nan
    columns = {
        "pixels": generator.integers(0, 256, (steps, 8, 8, 3), np.uint8),
        "action": action,
        "state": generator.normal(size=(steps, 3)),
        "reward": np.zeros(steps),
        "step_idx": np.concatenate([np.arange(length) for length in lengths]),
        "episode_idx": np.repeat(np.arange(len(lengths)), lengths),
        "ep_len": np.array(lengths, np.int32),
        "ep_offset": offsets.astype(np.int64),
    } | replaced
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            if values is not None:
                file.create_dataset(
                    name,
                    data=values,
                    **({"chunks": (1, *values.shape[1:])} if name == "pixels" else {}),
                )
    return path


def contents(path):
    with h5py.File(path) as file:
        return {name: column[:] for name, column in file.items()}


def test_published_file_opens_and_describes_itself(path):
    with Episodes.open(path) as episodes:
        assert (len(episodes), episodes.steps, episodes.image_size, episodes.action_dim) == (
            4,
            22,
            8,
            2,
        )
        assert episodes.lengths.tolist() == list(LENGTHS)
        assert episodes.state_names == ("state 0", "state 1", "state 2")
        assert episodes.provenance == Provenance()
        assert episodes.complete
        summary = json.loads(json.dumps(episodes.summary()))
        action = contents(path)["action"]
        assert summary["lengths"] == {"0%": 1, "25%": 4, "50%": 6, "75%": 7.5, "100%": 9}
        assert summary["actions"]["max"] == pytest.approx(np.nanmax(action, axis=0))
        assert summary["columns"]["reward"] == ["float64", 22]
        assert episodes.verify() == {
            "episodes": 4,
            "steps": 22,
            "blank_frames": 0,
            "nonfinite_states": 0,
        }


def test_rows_come_back_in_the_order_of_the_request(path):
    pixels = contents(path)["pixels"]
    with Episodes.open(path) as episodes:
        for request in (
            [3],
            [7, 2, 3, 21, 2, 4, 0],
            list(range(22)),
            [5, 5, 5],
            np.arange(21, -1, -1),
            [],
        ):
            assert (episodes.pixels_at(request) == pixels[np.asarray(request, int)]).all()
        assert episodes.rows("state", [3, 1]).dtype == np.float32
        for outside in ([22], [-1, 3]):
            with pytest.raises(ValueError, match=r"rows must lie in 0\.\.21"):
                episodes.pixels_at(outside)


def test_neighbouring_rows_share_one_read(path, monkeypatch):
    reads = []
    original = h5py.Dataset.__getitem__
    with Episodes.open(path) as episodes:
        monkeypatch.setattr(
            h5py.Dataset,
            "__getitem__",
            lambda self, args: reads.append(args) or original(self, args),
        )
        episodes.pixels_at([8, 2, 3, 4, 12, 3])
    assert reads == [slice(2, 5), slice(8, 9), slice(12, 13)]


def test_a_long_run_is_decoded_into_its_place(tmp_path, monkeypatch):
    path = publish(tmp_path / "long.h5", lengths=(40, 30))
    stored = contents(path)["pixels"]
    reads = []
    original = h5py.Dataset.read_direct
    with Episodes.open(path) as episodes:
        monkeypatch.setattr(
            h5py.Dataset, "read_direct", lambda *args: reads.append(args[2]) or original(*args)
        )
        for rows in ([69, *range(3, 33)], [*range(3, 33)][::-1], [*range(20), 5], range(70)):
            np.testing.assert_array_equal(episodes.pixels_at(rows), stored[np.asarray(rows)])
    assert reads == [slice(3, 33), slice(0, 70)], "backwards and with repeats a copy is needed"


def test_episode_is_its_rows(path):
    stored = contents(path)
    with Episodes.open(path) as episodes:
        episode = episodes.episode(1)
        np.testing.assert_array_equal(episode.pixels, stored["pixels"][5:14])
        np.testing.assert_array_equal(episode.actions, stored["action"][5:14])
        np.testing.assert_array_equal(episode.states, stored["state"][5:14].astype(np.float32))
        with pytest.raises(ValueError, match=r"numbered 0\.\.3, got 4"):
            episodes.episode(4)


def test_file_without_ground_truth_is_fine_until_it_is_asked_for(tmp_path):
    with Episodes.open(publish(tmp_path / "a.h5", state=None)) as episodes:
        assert not episodes.has_states
        assert episodes.state_names == ()
        assert episodes.episode(0).states is None
        with pytest.raises(ValueError, match="column 'state'"):
            episodes.states(0)


def test_attributes_of_other_projects_are_read_as_plain_values_or_not_at_all(path):
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = np.bytes_("1.0")
        file.attrs["state_names"] = np.array([b"x", b"y", b"angle"])
        file.attrs["seed"] = np.int64(7)
        file.attrs["world"] = "push-t"
        file.attrs["policy"] = np.array([1.5, 2.5])
        file.attrs["look"] = 3
        file.attrs["requested_episodes"] = "many"
        file.attrs["state_units"] = np.array([[b"m", b"m"], [b"rad", b"s"]])
        file.attrs["options"] = h5py.Empty("f4")
        file.attrs["lewm_version"] = np.array((1, 2.0), [("a", "i4"), ("b", "f4")])
    with Episodes.open(path) as episodes:
        assert episodes.provenance == Provenance(
            world="push-t", version="1.0", seed=7, state_names=("x", "y", "angle")
        )
        assert type(episodes.provenance.version) is str
        assert episodes.state_names == ("x", "y", "angle")
        assert episodes.complete
        assert json.loads(json.dumps(episodes.summary()))["provenance"]["version"] == "1.0"


def test_states_that_are_no_numbers_are_refused_where_they_are_asked_for(tmp_path):
    state = np.zeros((22, 3))
    state[[9, 11], 1] = np.nan, np.inf
    with Episodes.open(publish(tmp_path / "a.h5", state=state)) as episodes:
        assert np.isfinite(episodes.states(0)).all()
        assert np.isnan(episodes.episode(1).states[4, 1]), "what is there can be looked at"
        with pytest.raises(
            ValueError,
            match=r"a\.h5: expected finite states, got \[0.0, nan, 0.0\] at step 4 of episode 1 "
            r"\(2 such",
        ):
            episodes.states(1)


def test_compressed_files_open(tmp_path, path):
    stored, compressed = contents(path), tmp_path / "compressed.h5"
    with h5py.File(compressed, "w") as file:
        for name, values in stored.items():
            file.create_dataset(
                name, data=values, **(hdf5plugin.Blosc() if name == "pixels" else {})
            )
    with Episodes.open(compressed) as episodes:
        assert (episodes.pixels_at([3, 9]) == stored["pixels"][[3, 9]]).all()
        assert episodes.summary()["compression"] == ["blosc"]


def test_copies_in_other_processes_open_the_file_themselves(path):
    with Episodes.open(path) as episodes:
        copy = pickle.loads(pickle.dumps(episodes))
        assert copy._handle is None
        assert (copy.pixels_at([4, 2]) == episodes.pixels_at([4, 2])).all()


def broken_action(row):
    action = np.zeros((22, 2), np.float32)
    action[row, 1] = np.nan
    return {"action": action}


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"action": None}, "no action among .*ep_len"),
        ({"pixels": None, "ep_len": None}, "no pixels, ep_len among"),
        (
            {"pixels": np.zeros((22, 8, 6, 3), np.uint8)},
            r"pixels \(N, h, h, 3\).*got \(22, 8, 6, 3\)",
        ),
        ({"pixels": np.zeros((22, 3, 8, 8), np.uint8)}, r"got \(22, 3, 8, 8\)"),
        ({"pixels": np.zeros((22, 8, 8, 3), np.float32)}, "of type float32"),
        (
            {"action": np.zeros((21, 2), np.float32)},
            r"'action' of shape \(22, width\).*got \(21, 2\)",
        ),
        ({"action": np.zeros(22, np.float32)}, r"got \(22,\)"),
        ({"ep_len": np.array([5, 9, 1, 8])}, "end to end over 22 rows, got lengths that sum to 23"),
        ({"ep_offset": np.array([0, 5, 15, 16])}, "end to end over 22 rows"),
        ({"ep_len": np.array([5, 9, 0, 8])}, "longer than 0, got .* shortest 0"),
        ({"ep_len": np.zeros(0, int), "ep_offset": np.zeros(0, int)}, "one entry per episode"),
        (broken_action(7), "at step 2 of episode 1"),
        (broken_action(0), "at step 0 of episode 0"),
    ],
)
def test_unsound_files_are_refused(tmp_path, replaced, message):
    path = publish(tmp_path / "broken.h5", **replaced)
    with pytest.raises(ValueError, match=message) as refusal:
        Episodes.open(path)
    text = str(refusal.value)
    assert text.startswith(str(path))
    assert re.search(r"expected .*, got .*\. [A-Z].*\.$", text)
    assert "\n" not in text
    h5py.File(path, "r+").close()  # nothing holds it open


def test_files_that_are_no_files_are_refused(tmp_path, path):
    foreign, empty, short = tmp_path / "a.h5", tmp_path / "b.h5", tmp_path / "c.h5"
    foreign.write_bytes(b"\x28\xb5\x2f\xfd" * 100)
    empty.touch()
    short.write_bytes(path.read_bytes()[:3000])
    for wrong, message in [
        (foreign, "an HDF5 file, got something else"),
        (empty, "got an empty file"),
        (short, "does not open .*truncated"),
        (tmp_path, "got a folder"),
        (tmp_path / "none.h5", "no such file"),
    ]:
        with pytest.raises(ValueError, match=message):
            Episodes.open(wrong)


def test_verify_finds_what_opening_does_not(tmp_path):
    state, pixels = (
        np.zeros((22, 3)),
        np.random.default_rng(0).integers(0, 256, (22, 8, 8, 3), np.uint8),
    )
    state[4], pixels[6], pixels[7] = np.nan, 0, 255
    done = []
    with Episodes.open(publish(tmp_path / "a.h5", state=state, pixels=pixels)) as episodes:
        found = episodes.verify(report=done.append)
    assert found == {"episodes": 4, "steps": 22, "blank_frames": 2, "nonfinite_states": 1}
    assert done == [Progress("verify", number, 4) for number in (1, 2, 3, 4)]


@pytest.mark.parametrize(("colours", "sound"), [(0, False), (255, False), (range(22), True)])
def test_verify_refuses_pictures_that_show_nothing(tmp_path, colours, sound):
    pixels = np.empty((22, 8, 8, 3), np.uint8)
    pixels[:] = np.broadcast_to(colours, 22)[:, None, None, None]
    with Episodes.open(publish(tmp_path / "a.h5", pixels=pixels)) as episodes:
        if sound:  # a lamp that changes is something
            assert episodes.verify()["blank_frames"] == 22
            return
        with pytest.raises(ValueError, match=r"a\.h5: expected pictures of something in 'pixels'"):
            episodes.verify()


def test_rows_that_do_not_decode_are_named(tmp_path, path):
    stored = contents(path)
    with h5py.File(path, "r+") as file:
        del file["pixels"]
        pixels = file.create_dataset(
            "pixels", data=stored["pixels"], chunks=(1, 8, 8, 3), compression="gzip"
        )
        chunk = pixels.id.get_chunk_info(6)
    with open(path, "r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(b"\xff" * chunk.size)
    with Episodes.open(path) as episodes:
        episodes.pixels_at([5, 7])
        with pytest.raises(ValueError, match="'pixels' to decode, got an error in rows 6 to 6"):
            episodes.pixels_at([2, 6])


def test_split_holds_out_whole_episodes():
    for count, holdout, expected in [
        (10, 0.1, 1),
        (2, 0.1, 1),
        (2, 0.99, 1),
        (200, 0.1, 20),
        (7, 0.5, 4),
    ]:
        parts = split(count, holdout, seed=3)
        assert len(parts.heldout) == expected
        assert sorted(parts.train + parts.heldout) == list(range(count))
        assert parts == split(count, holdout, seed=3)
    assert split(200, seed=3) != split(200, seed=4)
    for count, holdout in [(1, 0.1), (10, 0.0), (10, 1.0)]:
        with pytest.raises(ValueError, match="at least 2 episodes"):
            split(count, holdout)


def test_statistics_are_those_of_the_given_episodes_alone(path):
    stored = contents(path)
    rows = np.r_[0:5, 15:22]  # episodes 0 and 3
    with Episodes.open(path) as episodes:
        found = statistics(episodes, (0, 3))
    pixels, action = stored["pixels"][rows] / 255, stored["action"][rows].astype(np.float64)
    assert found.pixel_mean == pytest.approx(pixels.mean(axis=(0, 1, 2)), abs=1e-12)
    assert found.pixel_std == pytest.approx(pixels.std(axis=(0, 1, 2)), abs=1e-12)
    assert found.action_mean == pytest.approx(np.nanmean(action, axis=0), abs=1e-12)
    assert found.action_std == pytest.approx(np.nanstd(action, axis=0), abs=1e-12)


def test_statistics_sample_frames_by_seed_and_floor_what_is_constant(tmp_path):
    action = np.random.default_rng(0).normal(size=(22, 2)).astype(np.float32)
    action[:, 1] = 0.3
    action[np.cumsum(LENGTHS) - 1] = np.nan
    with Episodes.open(publish(tmp_path / "a.h5", action=action)) as episodes:
        assert statistics(episodes, (0, 1), max_frames=4, seed=1) == statistics(
            episodes, (0, 1), max_frames=4, seed=1
        )
        assert statistics(episodes, (0, 1), max_frames=4, seed=1) != statistics(
            episodes, (0, 1), max_frames=4, seed=2
        )
        found = statistics(episodes, (0, 1))
        assert found.action_std[1] == 1.0
        assert found.action_mean[1] == pytest.approx(0.3)


def test_rows_of_several_actions_have_the_statistics_of_single_ones(tmp_path):
    """Two env actions per row: the width of one, and its mean and std over all of them."""
    path, wide = tmp_path / "a.h5", np.random.default_rng(1).normal(size=(22, 4)).astype(np.float32)
    # the second step of a block differs from the first: columns must not be mixed up with
    # dimensions
    wide[:, 2:] += 3
    wide[np.cumsum(LENGTHS) - 1] = np.nan
    publish(path, action=wide)
    with Episodes.open(path) as episodes:
        assert (episodes.every, episodes.action_dim) == (1, 4)
    with h5py.File(path, "r+") as file:
        file.attrs["every"] = 2
    single = wide[~np.isnan(wide).any(axis=1)].reshape(-1, 2).astype(np.float64)
    with Episodes.open(path) as episodes:
        assert (episodes.every, episodes.action_dim, episodes.summary()["every"]) == (2, 2, 2)
        found = statistics(episodes, range(4))
        assert found.action_mean == pytest.approx(single.mean(axis=0), abs=1e-12)
        assert found.action_std == pytest.approx(single.std(axis=0), abs=1e-12)
        assert episodes.summary()["actions"]["std"] == pytest.approx(single.std(axis=0), abs=1e-12)
        np.testing.assert_array_equal(episodes.actions(0), wide[:5])
        check_fits(episodes, action_dim=2)
        episodes.verify()


@pytest.mark.parametrize("every", [3, 0])
def test_rows_that_are_no_whole_number_of_actions_are_refused(path, every):
    with h5py.File(path, "r+") as file:
        file.attrs["every"] = every
    with pytest.raises(
        ValueError,
        match=f"expected actions of {every} env steps side by side, .*, got rows of 2 numbers",
    ):
        Episodes.open(path)


def test_statistics_without_a_single_action_are_refused(path):
    with (
        Episodes.open(path) as episodes,
        pytest.raises(ValueError, match="actions in the training episodes, got none"),
    ):
        statistics(episodes, (2,))


def test_check_fits_names_what_does_not(path):
    with Episodes.open(path) as episodes:
        check_fits(episodes)
        check_fits(episodes, image_size=8, action_dim=2)
        with pytest.raises(ValueError, match="pictures of 64 x 64 px, got 8 x 8"):
            check_fits(episodes, image_size=64)
        with pytest.raises(ValueError, match="actions of 5 numbers, got 2"):
            check_fits(episodes, image_size=8, action_dim=5)
