"""Writing episode files: whatever interrupts it, what was complete is readable, and going on ends
with the same file."""

import contextlib
import dataclasses
import errno
import multiprocessing
import os
import re
import resource
import time

import h5py
import numpy as np
import pytest

from lewm.data.episodes import Episode, Episodes, Provenance
from lewm.data.writing import EpisodeWriter

PROVENANCE = Provenance(
    world="ring",
    version="2",
    policy="expert",
    seed=3,
    look="published",
    state_names=("x", "y"),
    state_units=("m", "m"),
    options='{"image_size": 8}',
    lewm_version="0.1.0",
    requested_episodes=8,
)


def make(i, size=8, length=None):
    """Episode i of a recording: each differs, in length too."""
    generator, length = np.random.default_rng(i), length or 3 + i
    actions = generator.normal(size=(length, 2)).astype(np.float32)
    actions[-1] = np.nan
    pixels = generator.integers(0, 256, (length, size, size, 3), np.uint8)
    return Episode(pixels, actions, generator.normal(size=(length, 2)).astype(np.float32))


def record(path, stop=8, make=make, **settings):
    with EpisodeWriter(path, dataclasses.replace(PROVENANCE, **settings)) as writer:
        for i in range(len(writer), stop):
            writer.append(make(i))
    return path


def assert_same(path, reference):
    with h5py.File(path) as file, h5py.File(reference) as expected:
        assert sorted(file) == sorted(expected)
        for name in file:
            np.testing.assert_array_equal(file[name][:], expected[name][:])
            assert file[name].dtype == expected[name].dtype
        assert {k: str(v) for k, v in file.attrs.items()} == {
            k: str(v) for k, v in expected.attrs.items()
        }


@pytest.fixture
def reference(tmp_path):
    return record(tmp_path / "reference" / "uninterrupted.h5")


def test_layout_is_the_published_one(reference):
    with h5py.File(reference) as file:
        dtypes = {name: str(column.dtype) for name, column in file.items()}
        assert dtypes == {
            "pixels": "uint8",
            "action": "float32",
            "state": "float32",
            "step_idx": "int64",
            "ep_idx": "int64",
            "ep_len": "int32",
            "ep_offset": "int64",
        }
        assert file["pixels"].chunks == (1, 8, 8, 3)
        assert file["pixels"].compression is None
        assert file["ep_len"][:].tolist() == [3, 4, 5, 6, 7, 8, 9, 10]
        assert file["ep_offset"][:4].tolist() == [0, 3, 7, 12]
        assert file["step_idx"][:8].tolist() == [0, 1, 2, 0, 1, 2, 3, 0]
        assert file["ep_idx"][:8].tolist() == [0, 0, 0, 1, 1, 1, 1, 2]
        assert np.isnan(file["action"][[2, 6, 11]]).all()
        assert file.attrs["complete"]
        assert file.attrs["world"] == "ring"
        assert file.attrs["state_names"].tolist() == ["x", "y"]
    assert [entry.name for entry in reference.parent.iterdir()] == [reference.name]


@pytest.mark.parametrize("compression", [None, "blosc", "zstd"])
def test_what_is_written_is_read(tmp_path, compression):
    with EpisodeWriter(tmp_path / "a.h5", PROVENANCE, compression) as writer:
        for i in range(8):
            writer.append(make(i))
    with Episodes.open(tmp_path / "a.h5") as episodes:
        assert episodes.provenance == PROVENANCE
        assert episodes.state_names == ("x", "y")
        assert bool(episodes.summary()["compression"]) == bool(compression)
        for i in range(8):
            for found, expected in zip(
                dataclasses.astuple(episodes.episode(i)), dataclasses.astuple(make(i))
            ):
                np.testing.assert_array_equal(found, expected)
        episodes.verify()


def test_unknown_compression_is_answered(tmp_path):
    with pytest.raises(ValueError, match="Did you mean 'blosc'"):
        EpisodeWriter(tmp_path / "a.h5", PROVENANCE, "blosk")


@pytest.mark.parametrize("column", ["pixels", "action", "ep_len"])
def test_ctrl_c_keeps_the_complete_episodes(tmp_path, monkeypatch, reference, column):
    path, original = tmp_path / "a.h5", h5py.Dataset.__setitem__

    def interrupt(dataset, *args):
        if dataset.name == f"/{column}" and len(dataset) > (4 if column == "ep_len" else 18):
            raise KeyboardInterrupt
        original(dataset, *args)

    with monkeypatch.context() as patch:
        patch.setattr(h5py.Dataset, "__setitem__", interrupt)
        with pytest.raises(KeyboardInterrupt):
            record(path)
    with Episodes.open(path) as episodes:
        assert (len(episodes), episodes.steps, episodes.complete) == (4, 18, False)
        episodes.verify()
    with h5py.File(path) as file:
        assert not file.attrs["complete"]
    assert_same(record(path), reference)


def test_nothing_is_left_of_a_recording_without_a_complete_episode(tmp_path, monkeypatch):
    def interrupt(dataset, *args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(h5py.Dataset, "__setitem__", interrupt)
        with pytest.raises(KeyboardInterrupt):
            record(tmp_path / "a.h5")
    record(tmp_path / "b.h5", stop=0)
    assert list(tmp_path.iterdir()) == []


def apart(function, *args, method="fork"):
    """Start function(tell, *args) in a process of its own, which may be limited or killed; `tell`
    reaches us at once."""
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=function, args=(theirs.send, *args))
    process.start()
    theirs.close()
    return process, ours


def told(connection):
    """All that a process has told, to its end."""
    with contextlib.suppress(EOFError):
        while True:
            yield connection.recv()


def large(i):
    return make(i, size=96, length=20)


def record_on_a_small_disk(tell, path, limit_bytes):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    try:
        record(path, make=large)
    except OSError as error:
        tell((error.errno, error.filename))


# 0.55 MB an episode, and 1 MB in reserve
@pytest.mark.parametrize(("megabytes", "complete"), [(1, 0), (3, 3), (4, 5)])
def test_full_disk_keeps_the_complete_episodes(tmp_path, megabytes, complete):
    path, reference = tmp_path / "a.h5", record(tmp_path / "reference.h5", make=large)
    process, connection = apart(record_on_a_small_disk, path, megabytes << 20)
    assert list(told(connection)) == [(errno.EFBIG, f"{path}.partial")]
    process.join()
    assert process.exitcode == 0
    assert not path.with_name("a.h5.partial").exists()
    assert path.exists() == (complete > 0)
    if complete:
        with Episodes.open(path) as episodes:
            assert len(episodes) == complete
            episodes.verify()
    assert_same(record(path, make=large), reference)


MANY = dataclasses.replace(PROVENANCE, requested_episodes=300)


def record_and_tell(tell, path):
    with EpisodeWriter(path, MANY) as writer:
        tell(len(writer))
        for i in range(len(writer), 300):
            writer.append(make(i, length=12))
            tell(len(writer))


def test_kill_9_at_any_moment_loses_at_most_the_episode_under_way(tmp_path):
    path, delay, present, discarded = tmp_path / "a.h5", np.random.default_rng(0), 0, 0
    for _ in range(10):
        process, connection = apart(record_and_tell, path)
        resumed = connection.recv()
        if resumed not in (present, present + 1):
            assert resumed == 0
            discarded += 1
        # so that it gets on, however busy the machine
        early = [connection.recv() for _ in range(3)]
        time.sleep(delay.uniform(0, 0.01))
        process.kill()
        present = max([*early, *told(connection)])
        process.join()
    assert discarded <= 1  # killed while HDF5 rewrote its index: once in some thousand kills
    assert present > 10 or discarded
    process, connection = apart(record_and_tell, path)
    assert max(told(connection)) == 300
    with Episodes.open(path) as episodes:
        assert episodes.complete
        episodes.verify()
    record_and_tell(lambda count: None, tmp_path / "reference.h5")
    assert_same(path, tmp_path / "reference.h5")


@pytest.mark.parametrize("damage", ["cut", "tail", "garbage", "index", "rows", "none complete"])
def test_torn_leftovers_are_discarded_with_a_warning(tmp_path, reference, damage):
    path, partial = tmp_path / "a.h5", tmp_path / "a.h5.partial"
    whole = reference.read_bytes()
    partial.write_bytes(
        {"cut": whole[:5000], "tail": whole[:-500], "garbage": b"garbage"}.get(damage, whole)
    )
    if damage in ("index", "rows", "none complete"):
        with h5py.File(partial, "r+") as file:
            if damage == "index":
                file["ep_offset"][4] = 0
            elif damage == "rows":  # rows that the index names but that never reached the disk
                file["pixels"].resize(30, axis=0)
                file["pixels"].resize(52, axis=0)
            else:
                file["ep_len"].resize(0, axis=0)
    with pytest.warns(UserWarning, match=r"discarding .*a\.h5\.partial"):
        record(path)
    assert_same(path, reference)


def test_a_leftover_cut_behind_its_complete_episodes_is_kept(tmp_path, reference, recwarn):
    """What `kill -9` leaves while rows are being trimmed: the file is shorter than its superblock
    says."""
    path, partial = record(tmp_path / "a.h5", stop=6), tmp_path / "a.h5.partial"
    path.rename(partial)
    with h5py.File(partial, "r+") as file:
        rows = len(file["pixels"])
        file["pixels"].resize(rows + 5, axis=0)
        file["pixels"][rows:] = 1
        offsets = {}
        file["pixels"].id.chunk_iter(
            lambda chunk: offsets.update({chunk.chunk_offset[0]: chunk.byte_offset})
        )
    os.truncate(partial, offsets[rows])
    with pytest.raises(OSError, match="truncated"):
        h5py.File(partial)
    with EpisodeWriter(path, PROVENANCE) as writer:
        assert len(writer) == 6
    assert_same(record(path), reference)
    assert not recwarn.list


def try_to_open(tell, path):
    try:
        EpisodeWriter(path, PROVENANCE)
    except ValueError as error:
        tell(str(error))


def test_only_one_process_writes_a_file(tmp_path):
    with EpisodeWriter(tmp_path / "a.h5", PROVENANCE) as writer:
        writer.append(make(0))
        _, connection = apart(try_to_open, tmp_path / "a.h5", method="spawn")
        assert re.search(rf"only writer, got process {os.getpid()} .* since", connection.recv())
        writer.append(make(1))
    with Episodes.open(tmp_path / "a.h5") as episodes:
        assert len(episodes) == 2


def test_other_episodes_are_never_mixed_in(tmp_path, reference):
    before = reference.read_bytes()
    with pytest.raises(ValueError, match=r"policy 'expert' against 'random'; seed 3 against 4"):
        record(reference, policy="random", seed=4)
    record(reference)  # complete: nothing to do
    assert reference.read_bytes() == before


def test_episodes_that_would_not_open_again_are_refused(tmp_path, reference):
    good = make(0)
    filled = good.actions.copy()
    filled[-1] = 0
    holed = good.actions.copy()
    holed[1] = np.nan
    halves = [np.where(np.arange(2) == k, good.actions[:1], good.actions[-1:]) for k in range(2)]
    half_marked = [np.concatenate([good.actions[:-1], half]) for half in halves]
    for bad, message in [
        (dataclasses.replace(good, pixels=good.pixels / 255), "float64"),
        (dataclasses.replace(good, pixels=good.pixels[:, :, :4]), r"\(3, 8, 4, 3\)"),
        (
            dataclasses.replace(good, actions=good.actions[:-1]),
            r"actions \(3, width\), got \(2, 2\)",
        ),
        (dataclasses.replace(good, actions=filled), "last row of NaN"),
        *((dataclasses.replace(good, actions=a), "last row of NaN") for a in half_marked),
        (dataclasses.replace(good, actions=holed), "finite actions"),
        (dataclasses.replace(good, actions=good.actions.astype("c8")), "of numbers, got complex64"),
        (dataclasses.replace(good, actions=good.actions.astype(float) * 1e200), "finite actions"),
        (dataclasses.replace(good, states=good.states.astype("S8")), r"of numbers, got \|S8"),
        (dataclasses.replace(good, states=good.states[1:]), r"states \(3, width\)"),
        (dataclasses.replace(good, states=None), "expected rows of the shapes"),
        (make(0, size=16), "expected rows of the shapes"),
    ]:
        with EpisodeWriter(tmp_path / "a.h5", PROVENANCE) as writer:
            if not len(writer):
                writer.append(make(0))
            with pytest.raises(ValueError, match=message):
                writer.append(bad)
    assert_same(record(tmp_path / "a.h5"), reference)


def test_rows_hold_whole_blocks_of_actions(tmp_path):
    with EpisodeWriter(tmp_path / "a.h5", dataclasses.replace(PROVENANCE, every=2)) as writer:
        good = make(0)
        writer.append(good)
        wider = dataclasses.replace(
            good, actions=np.pad(good.actions, ((0, 0), (0, 1)), mode="edge")
        )
        with pytest.raises(
            ValueError, match="expected the actions of 2 env steps per row, got rows of 3 numbers"
        ):
            writer.append(wider)
    with Episodes.open(tmp_path / "a.h5") as episodes:
        assert (episodes.every, episodes.action_dim) == (2, 1)
