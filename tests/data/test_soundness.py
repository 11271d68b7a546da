"""One door for HDF5 files: what reaches outside, declares too much or lacks rows is refused by
whoever opens."""

import ast
import bz2
import re
import shlex
import subprocess
import sys
import zlib
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest

import lewm
from lewm.data import soundness
from lewm.data.converting import convert, verify
from lewm.data.episodes import Episodes
from lewm.data.soundness import open_hdf5
from lewm.data.writing import EpisodeWriter, Provenance
from lewm.training.train import train
from tests.support import recordings
from tests.support.recordings import MADE

SMALL = [tuple(a[:, ::6, ::6] if a.ndim == 4 else a for a in episode) for episode in MADE]
ROWS = 20


@pytest.fixture
def path(tmp_path):
    return recordings.hdf5(tmp_path / "a.h5", SMALL)


def training(path):
    train(lewm.LeWMConfig(), lewm.TrainingConfig(), path, path.parent / "run")


def converting(path):
    convert(path, path.parent / "out.h5")


def writing(path):
    EpisodeWriter(path, Provenance())


EVERYBODY = {
    "open": lambda path: Episodes.open(path),
    "verify": verify,
    "convert": converting,
    "train": training,
    "write": writing,
}


def refused_by_everybody(path, message):
    for who, act in EVERYBODY.items():
        with pytest.raises(ValueError, match=message) as refusal:
            act(path)
        assert path.name in str(refusal.value), who
        assert "\n" not in str(refusal.value), who
    assert not (path.parent / "out.h5").exists()


def exchange(path, name, make):
    """Exchange a column by what `make(file, name, values)` makes."""
    with h5py.File(path, "r+") as file:
        values = file[name][:]
        del file[name]
        make(file, name, values)


def soft(file, name, values):
    file["other"] = values
    file[name] = h5py.SoftLink("/other")


def external(file, name, values):
    with h5py.File(Path(file.filename).with_name("b.h5"), "w") as other:
        other["x"] = values
    file[name] = h5py.ExternalLink("b.h5", "/x")


def stored_outside(file, name, values):
    raw = Path(file.filename).with_name("secret.bin")
    raw.write_bytes(values.tobytes())
    outside = [(str(raw), 0, values.nbytes)]
    file.create_dataset(name, values.shape, values.dtype, external=outside)


def virtual(file, name, values):
    layout = h5py.VirtualLayout(values.shape, values.dtype)
    file["other"] = values
    layout[:] = h5py.VirtualSource(file["other"])
    file.create_virtual_dataset(name, layout)


@pytest.mark.parametrize("name", ["pixels", "state", "ep_len", "step_idx"])
@pytest.mark.parametrize(
    ("make", "what"),
    [
        (soft, "which is a soft link"),
        (external, "which is an external link"),
        (stored_outside, "which is stored in '.*secret.bin'"),
        (virtual, "which is a virtual data set"),
    ],
)
def test_no_column_lies_outside_its_file(path, name, make, what):
    exchange(path, name, make)
    refused_by_everybody(path, f"expected columns that lie in this file, got '{name}', {what}")


def test_columns_that_nobody_asked_for_lie_inside_too(path):
    with h5py.File(path, "r+") as file:
        file["deep/er/link"] = h5py.ExternalLink("b.h5", "/x")
    refused_by_everybody(path, "got 'deep/er/link', which is an external link")


def test_filters_that_would_be_loaded_from_somewhere_are_refused(path):
    def scaled(file, name, values):
        with h5py.File(file.filename + ".x", "w"):
            pass
        column = file.create_dataset(name, data=values, **hdf5plugin.Zfp(reversible=True))
        assert column.id.get_create_plist().get_filter(0)[0] == 32013

    exchange(path, "state", scaled)
    refused_by_everybody(
        path, r"got 'state', stored by HDF5's filter 32013 \(zfp\)\. Store it anew"
    )


@pytest.mark.parametrize("name", sorted(set(hdf5plugin.FILTERS) | {"lzf", "szip", "gzip"}))
def test_every_filter_that_may_be_installed_is_read_or_refused_by_name(name):
    code = {"lzf": 32000, "szip": 4, "gzip": 1}.get(name) or hdf5plugin.FILTERS[name]
    known = {"bshuf": "bitshuffle"}.get(name, name)
    assert {**soundness.FILTERS, **soundness.REFUSED}[code] == known


def test_the_way_out_of_a_refused_filter_leads_out(path, tmp_path, monkeypatch):
    states = h5py.File(path)["state"][:]

    def rounded(file, name, values):
        column = file.create_dataset(name, data=values, **hdf5plugin.Zfp(reversible=True))
        column.attrs["names"] = ["a", "b", "c"]

    exchange(path, "state", rounded)
    with h5py.File(path, "r+") as file:
        file.attrs["mark"] = "kept"
    with pytest.raises(ValueError, match="zfp") as refusal:
        open_hdf5(path)
    command = shlex.split(str(refusal.value).partition("Store it anew: ")[2].rstrip("."))
    assert command[:2] == ["python", "-c"]
    monkeypatch.chdir(tmp_path)
    path.rename("OLD.h5")
    subprocess.run([sys.executable, *command[1:]], check=True)
    with open_hdf5(Path("NEW.h5")) as file:
        np.testing.assert_array_equal(file["state"][:], states)
        assert file["state"].attrs["names"].tolist() == ["a", "b", "c"]
        assert file.attrs["mark"] == "kept"
    Episodes.open(Path("NEW.h5")).close()


def piped(path, first, second):
    """Pixels that pass two filters, in this order."""
    exchange(path, "pixels", lambda file, name, values: None)
    with h5py.File(path, "r+") as file:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((1, 8, 8, 3))
        for code, options in (first, second):
            plan.set_filter(code, h5py.h5z.FLAG_OPTIONAL, options)
        space = h5py.h5s.create_simple((ROWS, 8, 8, 3))
        column = h5py.h5d.create(file.id, b"pixels", h5py.h5t.NATIVE_UINT8, space, plan)
        h5py.Dataset(column)[...] = np.concatenate([episode[0] for episode in SMALL])


@pytest.mark.parametrize(
    ("first", "second", "got"),
    [
        ((1, (4,)), (32015, (3,)), "zstd after gzip"),  # a chunk in a chunk
        ((32015, (3,)), (2, (1,)), "shuffle after zstd"),  # which would hide what it packs
        ((2, (1,)), (32015, (3,)), None),
        ((32015, (3,)), (3, ()), None),
    ],
)
def test_a_chunk_is_packed_once_and_last(path, first, second, got):
    piped(path, first, second)
    if got:
        return refused_by_everybody(path, f"expected 'pixels' packed once, and last, got {got}")
    with Episodes.open(path) as episodes:
        np.testing.assert_array_equal(episodes.pixels_at([7]), SMALL[1][0][2:3])


def test_groups_that_contain_each_other_and_deep_ones_end(path):
    with h5py.File(path, "r+") as file:
        file["a/b"] = file["/"]
        file["a/c"] = file["a"]
        deep = file
        for _ in range(200):
            deep = deep.create_group("d")
    Episodes.open(path).close()


def test_objects_are_bounded(path, monkeypatch):
    with h5py.File(path, "r+") as file:
        for number in range(40):
            file.create_group(f"g{number % 4}/g{number}")
    for most, got in ((30, "more"), (9, "11 in '/'")):  # in all, and in one group
        monkeypatch.setattr(soundness, "MAX_OBJECTS", most)
        message = f"a.h5: expected at most {most} columns and groups, got {got}"
        with pytest.raises(ValueError, match=message):
            open_hdf5(path)


@pytest.mark.parametrize("rows", [10**10, 6 * 10**18, 2**63 - 1])
@pytest.mark.parametrize("name", ["pixels", "ep_len", "step_idx"])
def test_what_a_file_declares_is_compared_with_its_size(path, name, rows):
    def more(file, name, values):
        shape = values.shape[1:]
        file.create_dataset(name, (rows, *shape), values.dtype, chunks=(1, *shape), maxshape=None)

    exchange(path, name, more)
    refused_by_everybody(path, f"expected no more in '{name}' than its .* got shape .{rows},")


def test_what_expands_without_bound_is_refused(path, monkeypatch):
    """Constant rows: 4 MB in some kB."""

    def empty(file, name, values):
        zeros = np.zeros((len(values), 50_000), np.float32)
        file.create_dataset(name, data=zeros, chunks=zeros.shape, **hdf5plugin.Zstd())

    exchange(path, "state", empty)
    Episodes.open(path).close()
    monkeypatch.setattr(soundness, "SMALL_BYTES", 1 << 20)
    monkeypatch.setattr(soundness, "MAX_EXPANSION", 100)
    refused_by_everybody(path, "expected no more in 'state' than .* 4000000 bytes. Fetch")
    with h5py.File(path, "r+") as file:  # the file is large enough, the column's part of it is not
        file["other"] = np.random.default_rng(0).random(1 << 15)
    refused_by_everybody(path, r"expected no more in 'state' than .* 4000000 bytes in \d+\. Fetch")
    monkeypatch.setattr(soundness, "MAX_CHUNK_BYTES", 1 << 20)
    monkeypatch.setattr(soundness, "MAX_EXPANSION", 1e9)
    refused_by_everybody(path, "expected chunks of 'state' of 1048576 bytes at most")


@pytest.mark.parametrize("chunks", [(1, 8, 8, 3), (3, 8, 4, 3), None])
@pytest.mark.parametrize("name", ["pixels", "action", "state", "step_idx"])
def test_rows_that_never_reached_the_disk_are_refused_by_everybody(path, name, chunks):
    """10 of 20 rows are there: the others would be zeros, black frames."""

    def torn(file, name, values):
        cut = None if chunks is None else (chunks[0], *values.shape[1:])
        new = file.create_dataset(name, values.shape, values.dtype, chunks=cut)
        if cut:
            new[:10] = values[:10]

    exchange(path, name, torn)
    gap = 0 if chunks is None else -(-10 // chunks[0]) * chunks[0]
    refused_by_everybody(path, f"all rows of '{name}' on disk, got none at row {gap}")


PACKED = {
    "gzip": {"compression": "gzip"},
    "summed": {"compression": "gzip", "shuffle": True, "fletcher32": True},
    "lzf": {"compression": "lzf"},
    "blosc": dict(hdf5plugin.Blosc()),
    "blosc2": dict(hdf5plugin.Blosc2()),
    "lz4": dict(hdf5plugin.LZ4()),
    "zstd": dict(hdf5plugin.Zstd()),
    "summed zstd": {**hdf5plugin.Zstd(), "fletcher32": True},
    "bitshuffle": dict(hdf5plugin.Bitshuffle()),
    "bitshuffle, zstd": dict(hdf5plugin.Bitshuffle(cname="zstd")),
    "bitshuffle alone": dict(hdf5plugin.Bitshuffle(cname="none")),
    "bzip2": dict(hdf5plugin.BZip2()),
    "szip": {"compression": "szip"},
    "scaled": {"scaleoffset": 8, "compression": "gzip"},
}


@pytest.mark.parametrize("size", [1, 8, 16, 97, 224])  # of 3, 192, 768, 28227, 150528 bytes
@pytest.mark.parametrize("how", PACKED)
def test_honest_compression_is_read(tmp_path, how, size):
    if how == "szip" and (size == 1 or not h5py.h5z.get_filter_info(4) & 1):
        pytest.skip("szip packs 8 numbers and more, and not every HDF5 packs by it")
    pixels = np.random.default_rng(0).integers(0, 256, (20, size, size, 3), np.uint8)
    pixels[5:10] = 7
    made = [(pixels[start : start + len(a)], a, s) for start, (_, a, s) in zip((0, 5, 14), SMALL)]
    with Episodes.open(recordings.hdf5(tmp_path / "a.h5", made, **PACKED[how])) as episodes:
        np.testing.assert_array_equal(episodes.pixels_at(range(20)), pixels)


def bomb(how):
    """A chunk that says that it is 64 MB."""
    zeros = bytes(1 << 26)
    if how == "gzip":
        return zlib.compress(zeros)
    if how == "bzip2":  # 64 MB in 78 bytes
        return bz2.compress(zeros)
    if how == "lzf":  # repetitions of 264 bytes
        return b"\0\0" + b"\xe0\xff\0" * (1 << 18)
    if how == "few lzf":
        return b"\0\0" + b"\xe0\xff\0" * 18
    if how == "szip":
        return (1 << 26).to_bytes(4, "little") + bytes(200)
    if "zstd" in how:
        return pytest.importorskip("zstandard").compress(zeros)
    if how == "blosc":
        return b"\2\1\x21\1" + (1 << 26).to_bytes(4, "little") + bytes(200)
    return (1 << 26).to_bytes(8, "big") + bytes(200)


BOMBS = ["gzip", "zstd", "summed zstd", "blosc", "lz4", "bitshuffle", "bzip2", "lzf", "few lzf"]


@pytest.mark.parametrize("how", [*BOMBS, "szip"])
def test_chunks_that_would_expand_are_not_unpacked(tmp_path, how):
    path = recordings.hdf5(tmp_path / "a.h5", SMALL, **PACKED[how.removeprefix("few ")])
    with h5py.File(path, "r+") as file:
        file["pixels"].id.write_direct_chunk((6, 0, 0, 0), bomb(how), 0)
    with Episodes.open(path) as episodes:
        for act in (lambda: episodes.pixels_at([2, 6, 7]), episodes.verify):
            with pytest.raises(
                ValueError, match=r"a\.h5: expected chunks of 'pixels' that hold 192"
            ):
                act()
    with pytest.raises(ValueError, match=r"a\.h5: expected chunks of 'pixels' that hold 192 bytes"):
        converting(path)


def rewritten(path, change):
    """Exchange the chunk of row 6 by what `change` makes of it."""
    with h5py.File(path, "r+") as file:
        column = file["pixels"].id
        column.write_direct_chunk((6, 0, 0, 0), change(column.read_direct_chunk((6, 0, 0, 0))[1]))


def at(place, value):
    return lambda chunk: chunk[:place] + value + chunk[place + len(value) :]


@pytest.mark.parametrize(
    ("how", "change", "got"),
    [
        ("bitshuffle", at(12, b"\x7f"), "a damaged one (bitshuffle)"),  # would end the process
        ("bitshuffle", at(8, bytes(4)), "a damaged one (bitshuffle)"),
        ("bitshuffle", at(11, b"\x01"), "a damaged one (bitshuffle)"),
        ("bitshuffle, zstd", at(12, b"\x7f"), "a damaged one (bitshuffle)"),
        ("lz4", at(12, b"\x7f"), "a damaged one (lz4)"),
        ("lz4", lambda chunk: chunk[:-1], "a damaged one (lz4)"),
        ("lzf", lambda chunk: chunk[:-1], "a damaged one (lzf)"),
        ("bzip2", lambda chunk: chunk[:-8], "a damaged one (bzip2)"),  # HDF5 would never return
        ("blosc2", lambda chunk: chunk[:-8], None),
        ("blosc2", lambda chunk: chunk[:40], "a damaged one (blosc2)"),
        ("blosc2", at(30, b"\0\0\0\1"), "one of 4294974208"),  # all bytes
        ("blosc2", at(58, b"\x7f"), "one of 21307"),  # of a part
        ("blosc2", at(119, b"\1"), "one of "),  # shape
        ("blosc2", at(94, b"\xa4b3nd"), "a damaged one (blosc2)"),
    ],
)
def test_chunks_that_say_what_is_not_so_are_refused(tmp_path, how, change, got):
    packed = PACKED[how]
    path = recordings.hdf5(tmp_path / "a.h5", MADE, **packed)
    rewritten(path, change)
    with Episodes.open(path) as episodes:
        with pytest.raises(ValueError, match=re.escape(got or "expected")) as refusal:
            episodes.pixels_at([6])
        assert "a.h5" in str(refusal.value)
        if got:
            assert "row 6" in str(refusal.value)
        episodes.pixels_at([2, 7])


def test_a_row_whose_index_is_damaged_is_no_black_frame(path):
    """As many chunks as rows, but one under another number: HDF5 answers its row with zeros."""
    with h5py.File(path) as file:
        chunk = file["pixels"].id.get_chunk_info(6)
    content = bytearray(path.read_bytes())
    # HDF5's key of a chunk: size, filter mask, offset of the chunk in each dimension
    key = chunk.size.to_bytes(4, "little") + bytes(4) + (6).to_bytes(8, "little")
    assert content.count(key) == 1
    at = content.find(key) + 8
    content[at : at + 8] = (5).to_bytes(8, "little")
    path.write_bytes(content)
    with Episodes.open(path) as episodes:
        for act in (lambda: episodes.pixels_at([2, 6, 7]), episodes.verify):
            with pytest.raises(ValueError, match=r"a\.h5: .*'pixels' on disk, got none at row 6"):
                act()
    with pytest.raises(ValueError, match=r"a\.h5: .*'pixels' on disk, got none at row 6"):
        converting(path)


def test_black_frames_that_were_written_are_read(path):
    with h5py.File(path, "r+") as file:
        file["pixels"][4:7] = 0
    with Episodes.open(path) as episodes:
        assert not episodes.pixels_at(range(4, 7)).any()
        assert episodes.verify()["blank_frames"] == 3


def kind(change):
    return lambda file, name, values: file.create_dataset(name, data=change(values))


INDEXES = ("ep_len", "ep_offset", "step_idx", "ep_idx")


@pytest.mark.parametrize("name", INDEXES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v + 0.7, "of whole numbers, got type float64"),
        (lambda v: v.astype(np.float32), "of whole numbers, got type float32"),
        (lambda v: v.astype("S8"), r"of whole numbers, got type \|S8"),
        (lambda v: v.astype(complex), "of whole numbers, got type complex128"),
        (lambda v: v > 0, "of whole numbers, got type bool"),
        (lambda v: v[:, None], r"of whole numbers, got type .* and shape \(\d+, 1\)"),
        (lambda v: v - 1, "to count rows or episodes, got -1 to"),
        (lambda v: v.astype(np.uint64) + (1 << 63), "to count rows or episodes, got 92233"),
    ],
)
def test_indexes_are_whole_numbers(path, name, change, message):
    exchange(path, name, kind(change))
    # lengths less one are another index, no other kind
    skip = name == "ep_len" and "got -1" in message
    refused_by_everybody(path, "episodes end to end" if skip else f"'{name}' {message}")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "step_idx",
            lambda v: np.r_[v[:3], 4, v[4:]],
            r"'step_idx' to count .*\(3\), got 4 in row",
        ),
        ("step_idx", lambda v: v[:-1], "20 rows in every column, got 19 in 'step_idx'"),
        ("ep_idx", lambda v: np.r_[v[:6], 2, v[7:]], r"'ep_idx' to number .*got 2 in row 6"),
        ("ep_idx", lambda v: v // 2, "'ep_idx' to number the episodes, got a number twice"),
        ("ep_len", lambda v: v[::-1], "episodes end to end over 20 rows"),
    ],
)
def test_indexes_agree(path, name, change, message):
    exchange(path, name, kind(change))
    refused_by_everybody(path, message)


def test_a_choice_of_episodes_keeps_its_numbers(path):
    exchange(path, "ep_idx", kind(lambda v: np.array([3, 7, 40])[v]))
    Episodes.open(path).close()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("action", lambda v: v.astype("c8"), "'action' of numbers, got type complex64"),
        ("action", lambda v: v.astype("S8"), r"'action' of numbers, got type \|S8"),
        (
            "action",
            lambda v: np.zeros(v.shape, [("a", "f4"), ("b", "f4")]),
            "'action' of numbers, got type ",
        ),
        ("action", lambda v: np.zeros(v.shape, int), "floating-point numbers, got type int64"),
        ("action", lambda v: np.zeros(v.shape, bool), "floating-point numbers, got type bool"),
        ("action", lambda v: np.nan_to_num(v), "a last row of 'action' that is NaN in every"),
        ("action", lambda v: np.where(np.arange(20)[:, None] == 2, np.inf, v), "finite actions"),
        ("action", lambda v: v.astype(float) * 1e200, "finite actions"),
        ("pixels", lambda v: v.astype(np.int16), r"type uint8, got .* of type int16"),
        ("pixels", lambda v: v / 255, r"type uint8, got .* of type float64"),
        ("state", lambda v: v.astype("S8"), r"'state' of numbers, got type \|S8"),
        ("state", lambda v: v.astype("c8"), "'state' of numbers, got type complex64"),
        ("state", lambda v: v[:, 0], r"'state' of shape \(20, width\), .* got \(20,\)"),
        ("state", lambda v: v[:-1], r"'state' of shape \(20, width\), .* got \(19, 3\)"),
    ],
)
def test_kinds_of_columns_are_part_of_the_layout(path, name, change, message):
    exchange(path, name, kind(change))
    with pytest.raises(ValueError, match=message):
        Episodes.open(path)
    with pytest.raises(ValueError, match=message):
        training(path)


@pytest.mark.parametrize(("said", "sound"), [(None, False), (True, False), (False, True)])
def test_whole_numbers_are_actions_where_the_file_says_so(path, said, sound):
    numbers = np.arange(40).reshape(20, 2)
    exchange(path, "action", kind(lambda v: numbers))
    with h5py.File(path, "r+") as file:
        if said is not None:
            file["action"].attrs["discrete"] = said
    if not sound:
        with pytest.raises(ValueError, match="attribute 'discrete' to False"):
            Episodes.open(path)
        return
    with Episodes.open(path) as episodes:
        assert episodes.actions(1)[:-1].tolist() == numbers[5:13].tolist()
        assert np.isnan(episodes.actions(1)[-1]).all()
    with h5py.File(path, "r+") as file:
        file["action"][3] = (1 << 24) + 1
    with pytest.raises(ValueError, match="actions that float32 holds, got 16777217"):
        Episodes.open(path)


def test_published_kinds_open_unchanged(path):
    """float32 actions, float64 states, an index of any width of integers."""
    exchange(path, "state", kind(lambda v: v.astype(np.float64)))
    exchange(path, "step_idx", kind(lambda v: v.astype(np.uint16)))
    with Episodes.open(path) as episodes:
        assert episodes.states(0).dtype == np.float32
        np.testing.assert_array_equal(episodes.actions(2), episodes.rows("action", range(14, 20)))


def test_heaps_of_texts_with_a_gap_of_no_size_are_refused(path):
    """HDF5 would read such an attribute for ever."""
    with h5py.File(path, "r+") as file:
        file.attrs["world"] = "push-t"
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL")
    content[heap + 16 : heap + 4096] = bytes(4080)
    path.write_bytes(content)
    refused_by_everybody(path, "a.h5: expected a whole HDF5 file, got a damaged heap of texts")


def test_a_checksum_that_is_shorter_than_itself_is_refused(path):
    """HDF5 would crash."""

    def summed(file, name, values):
        chunks = (1, *values.shape[1:])
        file.create_dataset(name, data=values, chunks=chunks, compression=1, fletcher32=True)

    exchange(path, "pixels", summed)
    with h5py.File(path) as file:
        size = file["pixels"].id.get_chunk_info(6).size
    content = bytearray(path.read_bytes())
    key = size.to_bytes(4, "little") + bytes(4) + (6).to_bytes(8, "little")
    content[content.index(key)] = 0
    content[content.index(key[4:]) - 3] = 0
    path.write_bytes(content)
    refused_by_everybody(path, "expected chunks of 'pixels' with a checksum, got shorter ones")


def test_there_is_one_door():
    """Nobody else opens an HDF5 file that came from elsewhere."""
    package, calls = Path(lewm.__file__).parent, {}
    for file in sorted(package.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"from h5py import .*\bFile\b", text)
        found = [
            ", ".join(map(ast.unparse, call.args))
            for call in ast.walk(ast.parse(text))
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "h5py.File"
        ]
        if found:
            calls[file.relative_to(package).as_posix()] = found
    assert calls == {
        "data/soundness.py": ["path, mode"],
        "data/writing.py": ["self.partial, 'w'"],  # a new file
    }
