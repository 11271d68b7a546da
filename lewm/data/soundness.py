"""The one door through which HDF5 files from elsewhere come: opened, they are proven to be what
they say, before a row is read.

HDF5 lets a file point at others, declare more than it holds, and answers rows that were never
written with zeros. None of this raises an error of its own. `open_hdf5` refuses it for every file;
what makes a file one of episodes is said in `episodes`.
"""

from __future__ import annotations

import bz2
import itertools
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  importing it is what lets HDF5 open compressed files
import numpy as np
from h5py import h5a, h5d, h5g, h5l, h5s

__all__ = [
    "OtherLayout",
    "Unfit",
    "open_hdf5",
    "prove_chunks",
    "prove_written",
    "read_rows",
    "reading",
    "unfit",
]

MAX_OBJECTS = 4096
"""Columns and groups of a file, and attributes of its root. Published files have some twenty."""

MAX_CHUNK_BYTES = 256 << 20
"""What is decoded at a time."""

MAX_EXPANSION = 4096
"""A column may declare so many times the bytes that it takes on disk. Ours: pictures of worlds
shrink up to 90 times, an index up to 300; gzip cannot do more than 1032."""

ROOM = 4096
"""A packed chunk may take so much more than a plain one, twice."""

SMALL_BYTES = 64 << 20
"""What a column may declare in any case: constant ones shrink to nearly nothing."""

FILTERS = {
    **{1: "gzip", 2: "shuffle", 3: "fletcher32", 4: "szip", 5: "nbit", 6: "scaleoffset"},
    **{307: "bzip2", 32000: "lzf", 32001: "blosc", 32026: "blosc2"},
    **{32004: "lz4", 32008: "bitshuffle", 32015: "zstd"},
}
"""By HDF5's registered numbers: those of which a chunk's size is known before it is unpacked. For
any other number HDF5 would look for a library to load."""

REFUSED = {
    **{32013: "zfp", 32017: "sz", 32018: "fcidecomp", 32024: "sz3", 32028: "sperr"},
    **{32033: "htj2k"},
}
"""Filters that may be installed, and are not trusted: they round, and some end the process where a
chunk is damaged."""

GZIP, SHUFFLE, FLETCHER, SZIP, NBIT, SCALEOFFSET, BZIP2, LZF = 1, 2, 3, 4, 5, 6, 307, 32000
BLOSC, BLOSC2, LZ4, BITSHUFFLE, ZSTD = 32001, 32026, 32004, 32008, 32015

RESAVE = (
    "Store it anew: python -c \"import h5py, hdf5plugin; a = h5py.File('OLD.h5'); "
    "b = h5py.File('NEW.h5', 'w'); b.attrs.update(a.attrs); a.visititems(lambda n, c: "
    "hasattr(c, 'shape') and b.create_dataset(n, data=c[()], chunks=c.chunks and "
    "(1, *c.shape[1:]), compression=c.chunks and 'gzip').attrs.update(c.attrs))\""
)
"""What to do about a filter that is not read: a command, where hdf5plugin reads it."""

HEAP, HEAPS_BYTES = b"GCOL\1\0\0\0", 1 << 20
"""How a heap of texts begins, and how much of either end of a file is searched for them."""

FETCH = "Fetch or collect it again"

LOCAL = "Copy what it points at into the file itself (h5repack, or `h5py`'s `copy`)"


class Unfit(ValueError):
    """A file that is not what it should be; the message names it."""


class OtherLayout(Unfit):
    """Sound, but its columns are not those of an episode file: converting may help."""


def unfit(path: Path, expected: str, got: str, cure: str, kind: type[Unfit] = Unfit) -> Unfit:
    return kind(f"{path}: expected {expected}, got {got}. {cure}.")


@contextmanager
def reading(path: Path, what: str = "a whole HDF5 file") -> Iterator[None]:
    """Whatever HDF5 raises within is a refusal of the file: damaged ones raise anything."""
    try:
        yield
    except Unfit:
        raise
    except BlockingIOError:
        raise unfit(
            path, "a finished file", "one that another process is writing", "Wait for it"
        ) from None
    except Exception as error:
        said = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        cure = f"It was cut short or damaged while being copied or written. {FETCH}"
        raise unfit(path, what, f"one that does not open ({said})", cure) from None


def open_hdf5(path: Path, mode: str = "r", torn: bool = False) -> h5py.File:
    """Open a file, and prove of all of its columns and groups, at the cost of counting chunks:

    - it is reached by a plain link, its data lie in this file and nowhere else: no soft, external
      or user-defined link, no external storage, no virtual data set;
    - it is stored by filters that we know, in chunks of `MAX_CHUNK_BYTES` at most;
    - it declares no more than it can hold: a plain column what is on disk, a compressed one
      `MAX_EXPANSION` times that, or `SMALL_BYTES`;
    - all of its chunks were written.

    Groups may contain each other: each is visited once. More than `MAX_OBJECTS` are refused.

    Args:
        torn: a killed process left it: chunks may be missing.

    Raises:
        ValueError: any of this does not hold; what was refused is named.
    """
    if not path.is_file():
        got = "a folder" if path.is_dir() else "no such file"
        raise unfit(path, "an episode file", got, "Check the path, or make one with `lewm collect`")
    with reading(path):
        if not h5py.is_hdf5(path):
            got = "an empty file" if not path.stat().st_size else "something else"
            cure = "If it is an archive (.tar.zst), unpack it; a download may have failed"
            raise unfit(path, "an HDF5 file", got, cure)
        file = h5py.File(path, mode)
        try:
            _prove(path, file, torn)
        except BaseException:
            file.close()
            raise
    return file


def _prove(path: Path, file: h5py.File, torn: bool) -> None:
    size, seen = path.stat().st_size, set()
    _prove_heaps(path, size)
    attributes = h5a.get_num_attrs(file.id)
    if attributes > MAX_OBJECTS:
        raise unfit(path, f"at most {MAX_OBJECTS} attributes", str(attributes), FETCH)
    for number in range(attributes):
        attribute = h5a.open(file.id, index=number)
        if math.prod(attribute.shape or ()) * attribute.get_type().get_size() > size:
            got = f"{attribute.name!r} of shape {attribute.shape}"
            raise unfit(path, "attributes no larger than the file", got, FETCH)
    groups = [("", file["/"].id)]
    while groups:
        folder, group = groups.pop()
        for name, place in _links(path, folder, group):
            info = h5g.get_objinfo(group, name)  # unlike h5o's, it counts no chunks
            if info.objno in seen:
                continue
            seen.add(info.objno)
            if len(seen) > MAX_OBJECTS:
                raise unfit(path, f"at most {MAX_OBJECTS} columns and groups", "more", FETCH)
            if info.type == h5g.GROUP:
                groups.append((place, h5g.open(group, name)))
            elif info.type == h5g.DATASET:
                _prove_column(path, place, h5d.open(group, name), size, torn)


def _prove_heaps(path: Path, size: int) -> None:
    """Texts of attributes lie in heaps, and HDF5 never returns from one with a gap of no size.

    Looked for at both ends of the file, where writers put them."""
    with path.open("rb") as raw:
        for start in {0, max(0, size - HEAPS_BYTES)}:
            raw.seek(start)
            part = raw.read(HEAPS_BYTES)
            at = -1
            while (at := part.find(HEAP, at + 1)) >= 0:
                end, entry = at + int.from_bytes(part[at + 8 : at + 16], "little"), at + 16
                while entry + 16 <= min(end, len(part)):
                    number = int.from_bytes(part[entry : entry + 2], "little")
                    length = int.from_bytes(part[entry + 8 : entry + 16], "little")
                    if not number and not length:
                        raise unfit(path, "a whole HDF5 file", "a damaged heap of texts", FETCH)
                    entry += 16 + -(-length // 8) * 8 if number else length


def _links(path: Path, folder: str, group: h5g.GroupID) -> list[tuple[bytes, str]]:
    """(name, whole name) of all links of a group, each of which leads to something in it."""
    if group.get_num_objs() > MAX_OBJECTS:
        got = f"{group.get_num_objs()} in {folder or '/'!r}"
        raise unfit(path, f"at most {MAX_OBJECTS} columns and groups", got, FETCH)
    names: list[bytes] = []
    group.links.iterate(names.append)
    links = []
    for name in names:
        place = f"{folder}/{name.decode()}".removeprefix("/")
        kind = group.links.get_info(name).type
        if kind != h5l.TYPE_HARD:
            named = {h5l.TYPE_SOFT: "soft", h5l.TYPE_EXTERNAL: "external"}.get(kind, "user-defined")
            got = f"{place!r}, which is a {named} link".replace("a e", "an e")
            raise unfit(path, "columns that lie in this file", got, LOCAL)
        links.append((name, place))
    return links


def _prove_column(path: Path, name: str, column: h5d.DatasetID, size: int, torn: bool) -> None:
    plan, space = column.get_create_plist(), column.get_space()
    layout, local = plan.get_layout(), "columns that lie in this file"
    if layout == h5d.VIRTUAL:
        raise unfit(path, local, f"{name!r}, which is a virtual data set", LOCAL)
    if plan.get_external_count():
        got = f"{name!r}, which is stored in {plan.get_external(0)[0].decode(errors='replace')!r}"
        raise unfit(path, local, got, LOCAL)
    filters, sizes = [plan.get_filter(k)[0] for k in range(plan.get_nfilters())], []
    for code in filters:
        if code not in FILTERS:
            expected = f"columns stored plainly or by {', '.join(FILTERS.values())}"
            called = f"HDF5's filter {code}" + f" ({REFUSED[code]})" * (code in REFUSED)
            raise unfit(path, expected, f"{name!r}, stored by {called}", RESAVE)
    _prove_order(path, name, plan)
    if space.get_simple_extent_type() == h5s.NULL:
        return
    # in Python's integers, which do not overflow
    shape, width = space.shape, column.get_type().get_size()
    declared = math.prod(shape) * width
    expected = f"no more in {name!r} than its {size} bytes can hold"
    got = f"shape {shape}, {declared} bytes"
    if declared > max(SMALL_BYTES, MAX_EXPANSION * size):
        raise unfit(path, expected, got, FETCH)
    if layout != h5d.CHUNKED:
        stored = column.get_storage_size()
        if declared > size:
            raise unfit(path, expected, got, FETCH)
        start = column.get_offset() if layout == h5d.CONTIGUOUS else 0
        if declared and not torn and (start is None or stored < declared or start + stored > size):
            raise unfit(path, f"all rows of {name!r} on disk", "none at row 0", _TORN)
        return
    chunk = plan.get_chunk()
    if math.prod(chunk) * width > MAX_CHUNK_BYTES:
        got = f"{chunk}, {math.prod(chunk) * width} bytes"
        cure = "Store a frame per chunk (h5repack -l)"
        raise unfit(path, f"chunks of {name!r} of {MAX_CHUNK_BYTES} bytes at most", got, cure)
    if torn:
        return
    if FLETCHER in filters:  # HDF5 subtracts the sum's four bytes without a look, and crashes
        column.chunk_iter(lambda stored: sizes.append(stored.size))
        if min(sizes, default=4) < 4:
            raise unfit(path, f"chunks of {name!r} with a checksum", "shorter ones", FETCH)
    if column.get_num_chunks() != math.prod(-(-n // c) for n, c in zip(shape, chunk)):
        raise unfit(
            path,
            f"all rows of {name!r} on disk",
            f"none at row {_first_gap(column, chunk[0])}",
            _TORN,
        )
    # without filters, chunks are as large on disk as they are in memory, and reading finds them
    stored = column.get_storage_size() if filters else declared
    if stored > size or declared > max(SMALL_BYTES, MAX_EXPANSION * stored):
        raise unfit(path, expected, f"{got} in {stored}", FETCH)


_TORN = f"The file was torn, perhaps by a killed process. {FETCH}"


def _first_gap(column: h5d.DatasetID, rows: int) -> int:
    """The first row of a chunk that is not there."""
    present: set[int] = set()
    column.chunk_iter(lambda chunk: present.add(chunk.chunk_offset[0]))
    return next(n * rows for n in range(len(present) + 1) if n * rows not in present)


def read_rows(path: Path, column: h5py.Dataset, start: int = 0, stop: int | None = None) -> Any:
    """Rows of a column, all of which are what was written. Errors are HDF5's own."""
    rows = np.arange(start, len(column) if stop is None else stop)
    prove_chunks(path, column, rows)
    values = column[start:stop]
    prove_written(path, column, rows, values)
    return values


def _prove_order(path: Path, name: str, plan: Any) -> None:
    """Refuse what would be unpacked twice, or after something else: then no chunk says how much it
    holds. A checksum may come last."""
    packers, number = _packers(plan), plan.get_nfilters() - 1
    while number >= 0 and plan.get_filter(number)[0] == FLETCHER:
        number -= 1
    if len(packers) > 1 or (packers and packers[0] != number):
        codes = [plan.get_filter(k)[0] for k in range(plan.get_nfilters())]
        got = " after ".join(FILTERS[code] for code in reversed(codes))
        raise unfit(path, f"{name!r} packed once, and last", got, RESAVE)


def _packers(plan: Any) -> list[int]:
    """Places of the filters that make a chunk shorter than itself."""
    places = []
    for number in range(plan.get_nfilters()):
        code, _, options, _ = plan.get_filter(number)
        plainly = code == BITSHUFFLE and not any(options[4:5])
        if not plainly and code not in (SHUFFLE, FLETCHER, NBIT, SCALEOFFSET):
            places.append(number)
    return places


def prove_chunks(
    path: Path, column: h5py.Dataset, rows: np.ndarray, proven: set[int] | None = None
) -> None:
    """Refuse, before they are unpacked, chunks that hold more than a chunk does, or whose blocks
    reach beyond them. Compressions allocate what a chunk says, and read where it says.

    Args:
        rows: (n,) that are about to be read.
        proven: chunks along the rows that were seen before, which are not asked again; those that
            are seen now are added.
    """
    plan = column.id.get_create_plist()
    if not plan.get_nfilters() or not rows.size:
        return
    chunk, shape, name = column.chunks, column.shape, column.name.lstrip("/")
    plain = math.prod(chunk) * column.dtype.itemsize
    expected = f"chunks of {name!r} that hold {plain} bytes"
    packed, place, options = 0, 0, ()
    for number in range(plan.get_nfilters()):
        code, _, values, _ = plan.get_filter(number)
        if code in (NBIT, SCALEOFFSET) and values[2] * values[4] > plain + ROOM:
            raise unfit(path, expected, f"{FILTERS[code]} of {values[2] * values[4]}", FETCH)
    for number in _packers(plan):
        (packed, _, options, _), place = plan.get_filter(number), number
    others = [range(0, n, c) for n, c in zip(shape[1:], chunk[1:])]
    seen = set() if proven is None else proven
    for number in set(np.unique(rows // chunk[0]).tolist()) - seen:
        for corner in itertools.product([number * chunk[0]], *others):
            try:
                mask, stored = column.id.read_direct_chunk(corner)
            except (RuntimeError, OSError, ValueError):
                continue  # it is not there, as reading will find
            try:
                said = 0 if mask >> place & 1 else _says(packed, options, stored, plain)
            except (ValueError, IndexError, OSError, zlib.error):
                got = f"a damaged one ({FILTERS[packed]}) at row {corner[0]}"
                raise unfit(path, expected, got, FETCH) from None
            if max(len(stored) // 2, said) > plain + ROOM:
                got = f"one of {max(len(stored), said)} at row {corner[0]}"
                raise unfit(path, expected, got, FETCH)
        seen.add(number)


def _says(code: int, options: Sequence[int], stored: bytes, plain: int) -> int:
    """How many bytes a chunk holds, or says that it does, before HDF5 unpacks it. Those that do not
    say are unpacked here, as far as a chunk goes.

    Raises:
        ValueError, IndexError, OSError, zlib.error: it is damaged.
    """
    if code == GZIP:
        if len(stored) * 1032 <= max(SMALL_BYTES, plain):  # it cannot hold more
            return 0
        return len(zlib.decompressobj().decompress(stored, plain + ROOM + 1))
    if code == BZIP2:
        unpacker = bz2.BZ2Decompressor()
        unpacked = unpacker.decompress(stored, plain + ROOM + 1)
        if not unpacker.eof and len(unpacked) <= plain + ROOM:  # HDF5 would try for ever
            raise ValueError("cut short")
        return len(unpacked)
    if code == SZIP:
        return int.from_bytes(stored[:4], "little")
    if code == LZF:
        return max(_lzf_size(stored), *options[2:3])
    if code == BLOSC:
        return int.from_bytes(stored[4:8], "little")
    if code == BLOSC2:
        return _blosc2_size(stored, plain)
    if code == LZ4 or (code == BITSHUFFLE and any(options[4:5])):
        said, block = int.from_bytes(stored[:8], "big"), int.from_bytes(stored[8:12], "big")
        if said <= plain + ROOM:
            _prove_blocks(stored, said, block, 8 * options[2] if code == BITSHUFFLE else 1)
        return said
    if code != ZSTD or len(stored) < 5:
        return 0
    # RFC 8878, 3.1.1.1: magic, descriptor, window, dictionary, size
    flags = stored[4]
    single, width = flags >> 5 & 1, (0, 2, 4, 8)[flags >> 6]
    start, width = 5 + (not single) + (0, 1, 2, 4)[flags & 3], width or single
    return int.from_bytes(stored[start : start + width], "little") + 256 * (width == 2)


def _lzf_size(stored: bytes) -> int:
    """LibLZF's stream: runs of up to 32 bytes as they are, and repetitions of up to 264."""
    place = size = 0
    while place < len(stored):
        control = stored[place]
        if control < 32:
            size, place = size + control + 1, place + control + 2
            continue
        length = control >> 5
        if length == 7:
            place += 1
            length += stored[place]
        size, place = size + length + 2, place + 2
    if place > len(stored):
        raise ValueError("cut short")
    return size


def _prove_blocks(stored: bytes, said: int, block: int, unit: int) -> None:
    """Of lz4 and bitshuffle: each block begins with its length, and all end where the chunk does.
    Neither library looks.

    Args:
        said: bytes that are in all blocks.
        block: bytes in each but the last.
        unit: bytes of which a block has whole ones; what is left of them follows plainly.
    """
    if said and (not block or block % unit):
        raise ValueError("blocks of no size")
    place, rest = 12, said
    while rest >= unit:
        inside = min(block, rest // unit * unit)
        length = int.from_bytes(stored[place : place + 4], "big")
        if length > inside + inside // 255 + 16:  # LZ4's worst case
            raise ValueError("a block longer than itself")
        place, rest = place + 4 + length, rest - inside
    if place + rest != len(stored):
        raise ValueError("blocks that end elsewhere")


def _blosc2_size(stored: bytes, plain: int) -> int:
    """The most of what a Blosc2 frame says of its sizes, in a layout as HDF5's filter writes it:
    a header, and in it the shapes of the chunk, of its padded form and of its blocks.

    Raises:
        ValueError: another layout.
    """
    if stored[2:10] != b"b2frame\0" or stored[94:100] != b"\xa4b2nd\xd2":
        raise ValueError("another layout")
    at = int.from_bytes(stored[100:104], "big")
    dimensions, width = stored[at + 7], int.from_bytes(stored[48:52], "big")
    sizes, place = [], at + 8
    for each in (8, 4, 4):  # bytes of a number, of shape, padded shape and blocks
        place += 1
        numbers = [place + k * (each + 1) + 1 for k in range(dimensions)]
        sizes.append([int.from_bytes(stored[n : n + each], "big") for n in numbers])
        place += dimensions * (each + 1)
    shape, padded, blocks = sizes
    if place > len(stored) or not all(blocks):
        raise ValueError("another layout")
    whole = math.prod(-(-n // b) * b for n, b in zip(padded, blocks)) * width
    in_all = int.from_bytes(stored[30:38], "big"), int.from_bytes(stored[58:62], "big")
    # blocks round up, at most to their double in two dimensions
    rounded = max(whole, *in_all)
    return max(math.prod(shape) * width, rounded if rounded > 4 * plain + ROOM else 0)


def prove_written(path: Path, column: h5py.Dataset, rows: np.ndarray, values: np.ndarray) -> None:
    """Refuse rows that HDF5 made up: where its index of chunks is damaged, it finds none and
    answers with the fill value, a black picture.

    Args:
        rows: (n,) their numbers in the file.
        values: (n, ...) what was read.
    """
    if not values.size:
        return
    with reading(path):
        if (chunk := column.chunks) is None:
            return
        flat, fill = values.reshape(len(values), -1), column.fillvalue
        made_up = np.flatnonzero((flat[:, :64] == fill).all(axis=1))
        made_up = made_up[(flat[made_up] == fill).all(axis=1)]
        for number in np.unique(np.asarray(rows)[made_up] // chunk[0]):
            try:
                column.id.read_direct_chunk((int(number) * chunk[0], *[0] * (len(chunk) - 1)))
            except (RuntimeError, OSError, ValueError):
                name, got = column.name.lstrip("/"), f"none at row {number * chunk[0]}"
                raise unfit(path, f"all rows of {name!r} on disk", got, _TORN) from None
