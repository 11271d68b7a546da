"""HDF5 files, damaged: as an episode file that is opened and read, and as recordings to convert.

The pictures, numbers and notes of a file have no checksum. What must hold is its index, its widths
and its rows, and that no picture is one that HDF5 made up.
"""

from contextlib import suppress
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest

from lewm.data.episodes import Episodes
from lewm.data.formats.hdf5 import HDF5
from lewm.data.provenance import Provenance
from tests.fuzz.harness import differences, fuzz
from tests.support import recordings
from tests.support.recordings import MADE


def training(path: Path):
    """All that a training takes from a file, and what `verify` adds."""
    with Episodes.open(path) as episodes:
        every = [episodes.episode(i) for i in range(len(episodes))]
        return {
            "lengths": episodes.lengths,
            "offsets": episodes.offsets,
            "image size": episodes.image_size,
            "verified": episodes.verify()["steps"],
            "action width": episodes.every * episodes.action_dim,
            "pixels": np.concatenate([e.pixels for e in every]),
            "actions": np.concatenate([e.actions for e in every]),
            "states": np.concatenate([e.states for e in every]) if episodes.has_states else None,
            "summary": str(episodes.summary()),
        }


def converting(path: Path):
    """All that a conversion takes from recordings."""
    source = HDF5(path)
    try:
        read = [source.read(i, list(source.columns)) for i in range(len(source.lengths))]
        pictures = {
            camera: np.concatenate(
                [np.stack(list(source.pictures(i, camera))) for i in range(len(source.lengths))]
            )
            for camera in source.cameras
        }
        return {
            "lengths": source.lengths,
            "rows": {name: sum(len(part[name]) for part in read) for name in source.columns},
            "pictures": {name: values.shape for name, values in pictures.items()},
        }
    finally:
        source.close()


def columns_hold(found, sound):
    """A column's name is payload too: what is there has all rows. One is left under its name."""
    if wrong := differences({"lengths": found["lengths"]}, {"lengths": sound["lengths"]}, ()):
        return wrong
    rows = int(sound["lengths"].sum())
    counts = [*found["rows"].values(), *(shape[0] for shape in found["pictures"].values())]
    return "" if set(counts) <= {rows} else f"{found['rows']}, {found['pictures']}"


def on_file(change):
    """A mutator that knows HDF5."""

    def mutate(path, rng):
        with h5py.File(path, "r+") as file:
            change(file, rng, [name for name in file if isinstance(file[name], h5py.Dataset)])

    mutate.__name__ = change.__name__
    return mutate


def point_elsewhere(file, rng, names):
    name = rng.choice(names)
    values = file[name][:]
    del file[name]
    way = rng.integers(4)
    if way == 0:
        file[name] = h5py.SoftLink("/elsewhere")
        file["elsewhere"] = values
    elif way == 1:
        file[name] = h5py.ExternalLink(str(file.filename), "/pixels")
    elif way == 2:
        raw = Path(file.filename).with_suffix(".raw")
        raw.write_bytes(values.tobytes())
        file.create_dataset(
            name, values.shape, values.dtype, external=[(str(raw), 0, values.nbytes)]
        )
    else:
        layout = h5py.VirtualLayout(values.shape, values.dtype)
        file["elsewhere"] = values
        layout[:] = h5py.VirtualSource(file["elsewhere"])
        file.create_virtual_dataset(name, layout)


def declare_more(file, rng, names):
    name = rng.choice(names)
    old = file[name][:]
    del file[name]
    rows = int(10 ** rng.uniform(2, 18.7))
    new = file.create_dataset(
        name, (rows, *old.shape[1:]), old.dtype, chunks=(1, *old.shape[1:]), maxshape=None
    )
    with suppress(OSError):  # HDF5 itself cannot count some
        new[: len(old)] = old


def write_less(file, rng, names):
    name = rng.choice(names)
    old = file[name][:]
    del file[name]
    new = file.create_dataset(name, old.shape, old.dtype, chunks=(1, *old.shape[1:]))
    new[: int(rng.integers(len(old)))] = old[0]


def store_another_kind(file, rng, names):
    name = rng.choice([n for n in names if n in ("ep_len", "ep_offset", "step_idx", "ep_idx")])
    old = file[name][:]
    del file[name]
    kinds = [old + 0.7, old.astype(complex), old.astype("S8"), old > 0, old[:, None], -old - 1]
    file[name] = kinds[rng.integers(len(kinds))]


def swap_rows(file, rng, names):
    name = rng.choice([n for n in names if n in ("ep_len", "ep_offset", "step_idx", "ep_idx")])
    a, b = rng.choice(len(file[name]), 2, replace=False)
    file[name][a], file[name][b] = file[name][b], file[name][a] + 1


KNOWING = tuple(
    map(on_file, (point_elsewhere, declare_more, write_less, store_another_kind, swap_rows))
)


@pytest.fixture
def sounds(tmp_path):
    """Plain, compressed in several ways, new format of the library, our own writer's notes."""
    made = [tuple(array[:, ::4, ::4] if array.ndim == 4 else array for array in m) for m in MADE]
    paths = [recordings.hdf5(tmp_path / "plain.h5", made)]
    for name, options in [
        ("gzip.h5", {"compression": "gzip", "shuffle": True, "fletcher32": True}),
        ("blosc.h5", dict(hdf5plugin.Blosc())),
        ("zstd.h5", dict(hdf5plugin.Zstd())),
    ]:
        paths.append(recordings.hdf5(tmp_path / name, made, **options))
    with h5py.File(paths[0]) as old, h5py.File(tmp_path / "new.h5", "w", libver="latest") as new:
        for name in old:
            new.create_dataset(name, data=old[name][:], chunks=(1, *old[name].shape[1:]))
        Provenance(world="a", state_names=("x", "y", "z"), seed=3).write(new.attrs)
    return [*paths, tmp_path / "new.h5"]


def test_episode_files_are_refused_or_equal(sounds, tmp_path):
    payload = ("pixels", "actions", "states", "summary")
    fuzz(training, sounds, tmp_path, mutators=KNOWING, payload=payload)


def test_recordings_are_refused_or_hold_all_rows(sounds, tmp_path):
    fuzz(converting, sounds, tmp_path, mutators=KNOWING, same=columns_hold)
