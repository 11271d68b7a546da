"""Damaged files, tried by the thousand: each is refused in our own words, or read as what it was.

A test hands over a few sound files (or folders) that it made in `tmp_path`, a function that opens
one and returns its contents, and mutators of its own beside the general ones below:

    def contents(path: Path) -> dict[str, object]: ...      # at the top of a module: see `fuzz`

    def test_whatever_is_damaged_is_refused_or_equal(tmp_path):
        fuzz(contents, [sound_file(tmp_path / "a.h5")], tmp_path, payload=("pixels",))

A case is a copy of a sound file, damaged by one mutator. It is a pure function of (seed, label of
the opener, number), and a failure prints these. How a case may end:

    refused   a ValueError or ImportError of ours, which names the file and says what was expected
    equal     what was opened is what was sound, see below

All else is a failure: any other exception, a library's bare ValueError, other contents, a process
that crashed, took more than `MEMORY` or more than `CPU_SECONDS`. The opener runs in a process of
its own, so that a crash of a library fails a case and not the test run.

What "equal" means. A layout without checksums cannot know that a byte of its payload is another:
a flip in a picture gives another picture, one in a file's notes another note. So contents are
compared in two ways. Every entry must be there and be bit-equal, but for those named in `payload`:
these must hold in kind alone. An array keeps its shape and its type; a text stays a text; what
could be None may be None. So the index, the widths and the number of rows of a damaged file are
right, or it is refused.

LEWM_FUZZ_CASES says how many cases a call tries (default 60), LEWM_FUZZ_SEED draws others, and
LEWM_FUZZ_TALLY names a file to which a line of counts is added per call.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

try:
    import resource
except ModuleNotFoundError:  # Windows sets no limits
    resource = None  # type: ignore[assignment]

__all__ = ["CASES", "GENERAL", "Attempts", "damaged", "differences", "fuzz", "on_bytes"]

CASES = int(os.environ.get("LEWM_FUZZ_CASES", 60))
SEED = int(os.environ.get("LEWM_FUZZ_SEED", 0))

MEMORY = 2 << 30
"""Bytes of address space that opening one small file may take beyond what its process has."""

CPU_SECONDS = 30
"""Of computing, not of waiting: a busy machine fails no case."""

WALL_SECONDS = 300
"""After which a case counts as hanging although it computes nothing."""

Opener = Callable[[Path], Mapping[str, Any]]
Mutator = Callable[[Path, np.random.Generator], None]
"""Damages a copy, in place: a file or a folder."""


# ----------------------------------------------------------------------------------------- mutators


def on_bytes(change: Callable[[bytearray, np.random.Generator], bytes | bytearray]) -> Mutator:
    """A mutator that exchanges the bytes of a file, or of one file of a folder."""

    def mutate(path: Path, rng: np.random.Generator) -> None:
        file = _one_file(path, rng)
        file.write_bytes(change(bytearray(file.read_bytes()), rng))

    mutate.__name__ = change.__name__
    return mutate


def _one_file(path: Path, rng: np.random.Generator) -> Path:
    if path.is_file():
        return path
    # names may be drawn by a library; their sizes are the same every time
    files = sorted(
        (p for p in path.rglob("*") if p.is_file()),
        key=lambda p: (p.relative_to(path).parts[:-1], p.stat().st_size, p.name),
    )
    return files[rng.integers(len(files))]


def _span(data: bytearray, rng: np.random.Generator) -> slice:
    """A stretch of 1 to 4096 bytes, small ones as likely as large ones, and the head more often:
    that is where formats keep their structure."""
    length = min(len(data), int(2 ** rng.uniform(0, 12)))
    reach = len(data) if rng.random() < 0.5 else min(len(data), 4096)
    start = int(rng.integers(max(1, reach - length + 1)))
    return slice(start, start + length)


def flip_bits(data: bytearray, rng: np.random.Generator) -> bytearray:
    for _ in range(int(rng.integers(1, 9)) if data else 0):
        data[_span(data, rng).start] ^= 1 << int(rng.integers(8))
    return data


def set_byte(data: bytearray, rng: np.random.Generator) -> bytearray:
    """One byte becomes one of those at which number formats turn over."""
    if data:
        data[_span(data, rng).start] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))
    return data


def set_number(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Eight bytes become a length or an address that is impossible."""
    start = _span(data, rng).start
    extreme = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
    width = int(rng.choice([2, 4, 8]))
    number = extreme[rng.integers(len(extreme))] % 256**width
    data[start : start + width] = number.to_bytes(width, "little")
    return data


def noise(data: bytearray, rng: np.random.Generator) -> bytearray:
    span = _span(data, rng)
    data[span] = rng.bytes(len(data[span]))
    return data


def zeros(data: bytearray, rng: np.random.Generator) -> bytearray:
    span = _span(data, rng)
    data[span] = bytes(len(data[span]))
    return data


def cut(data: bytearray, rng: np.random.Generator) -> bytearray:
    """The end is missing, as after a broken download."""
    return data[: int(rng.integers(len(data) + 1))]


def remove(data: bytearray, rng: np.random.Generator) -> bytearray:
    del data[_span(data, rng)]
    return data


def insert(data: bytearray, rng: np.random.Generator) -> bytearray:
    span = _span(data, rng)
    data[span.start : span.start] = rng.bytes(int(2 ** rng.uniform(0, 10)))
    return data


def repeat(data: bytearray, rng: np.random.Generator) -> bytearray:
    """A stretch comes twice."""
    span = _span(data, rng)
    data[span.start : span.start] = data[span]
    return data


def copy_over(data: bytearray, rng: np.random.Generator) -> bytearray:
    """A stretch also lies where another one was: a block written to the wrong place."""
    span, start = _span(data, rng), _span(data, rng).start
    block = data[span]
    data[start : start + len(block)] = block
    return data


def lose_a_file(path: Path, rng: np.random.Generator) -> None:
    """A file of a folder is missing, empty, or another one of the folder; a lone file is empty."""
    file, way = _one_file(path, rng), int(rng.integers(3))
    if path.is_file() or way == 0:
        file.write_bytes(b"")
    elif way == 1:
        file.unlink()
    else:
        shutil.copyfile(other, file) if (other := _one_file(path, rng)) != file else file.unlink()


GENERAL: tuple[Mutator, ...] = (
    *map(on_bytes, (flip_bits, set_byte, set_number, noise, zeros, cut)),
    *map(on_bytes, (remove, insert, repeat, copy_over)),
    lose_a_file,
)
"""Know nothing of any format."""


def damaged(
    sounds: Sequence[Path], number: int, folder: Path, mutators: Sequence[Mutator], key: Any
) -> tuple[Path, str]:
    """Case `number`: the damaged copy, and what was done to which file."""
    rng = np.random.default_rng((*key, number))
    sound, mutate = sounds[number % len(sounds)], mutators[number // len(sounds) % len(mutators)]
    path = folder / sound.name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    (shutil.copytree if sound.is_dir() else shutil.copyfile)(sound, path)
    mutate(path, rng)
    return path, f"{mutate.__name__} of {sound.name}"


# ----------------------------------------------------------------------------------------- attempts


@dataclass
class Attempts:
    """Opens files in a process of its own, which is replaced when it dies."""

    opener: Opener
    memory: int = MEMORY
    _process: Any = field(default=None, repr=False)
    _pipe: Any = field(default=None, repr=False)

    def __call__(self, path: Path) -> tuple[str, Any]:
        """("contents", what was opened), ("refused", why) or ("failed", what happened)."""
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(
                target=_serve, args=(self.opener, theirs, self.memory), daemon=True
            )
            self._process.start()
            theirs.close()
        try:
            self._pipe.send(path)
            if self._pipe.poll(WALL_SECONDS):
                return self._pipe.recv()
            said = f"still waiting after {WALL_SECONDS} s"
        except (EOFError, OSError):
            self._process.join(5)
            said = f"the process died (exit code {self._process.exitcode}; -11 is a segfault, -24 "
            said += f"more than {CPU_SECONDS} s of computing)"
        self.close()
        return "failed", said

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None

    def __enter__(self) -> Attempts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve(opener: Opener, pipe: Any, memory: int) -> None:
    warnings.simplefilter("ignore")
    # whatever a library says on its own belongs to no test's output
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1), os.dup2(silent, 2)
    if resource and Path("/proc/self/statm").exists():
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, resource.RLIM_INFINITY))
    while True:
        path = pipe.recv()
        if resource:
            spent = resource.getrusage(resource.RUSAGE_SELF)
            limit = int(spent.ru_utime + spent.ru_stime) + CPU_SECONDS
            resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        answer: tuple[str, Any]
        try:
            answer = "contents", dict(opener(path))
        except BaseException as error:  # a panic of Rust's is no Exception
            answer = _judged(error, path)
        pipe.send(answer)


def _judged(error: BaseException, path: Path) -> tuple[str, str]:
    said, kind = str(error), type(error)
    ours = kind in (ValueError, ImportError, ModuleNotFoundError) or (
        isinstance(error, ValueError) and kind.__module__.startswith("lewm")
    )
    if not ours:
        return "failed", "".join(traceback.format_exception(error))
    if path.name not in said:
        return "failed", f"a refusal that does not name the file: {said}"
    if isinstance(error, ValueError) and not re.search("expected|Known: ", said):
        return "failed", f"a refusal that does not say what was expected: {said}"
    return "refused", said


def differences(found: Mapping[str, Any], sound: Mapping[str, Any], payload: Sequence[str]) -> str:
    """Name what is neither equal nor payload of the same kind; empty if nothing."""
    if lost := sound.keys() ^ found.keys():
        return f"entries {sorted(lost)} on one side only"
    for name, expected in sound.items():
        got = found[name]
        if name in payload:
            if _kind(got) != _kind(expected) and got is not None and expected is not None:
                return f"{name} of kind {_kind(got)}, was {_kind(expected)}"
        elif _kind(got) != _kind(expected) or not np.array_equal(
            got, expected, equal_nan=_kind(expected)[0] == "f"
        ):
            return f"{name} is {got!r:.200}, was {expected!r:.200}"
    return ""


def _kind(value: Any) -> tuple[Any, ...]:
    if isinstance(value, np.ndarray):
        return (value.dtype.kind, value.dtype.str, value.shape)
    return (type(value).__name__,)


def fuzz(
    opener: Opener,
    sounds: Sequence[Path],
    folder: Path,
    *,
    mutators: Sequence[Mutator] = (),
    payload: Sequence[str] = (),
    same: Callable[[Mapping[str, Any], Mapping[str, Any]], str] | None = None,
    cases: int = CASES,
    seed: int = SEED,
    label: str | None = None,
    memory: int = MEMORY,
) -> Counter[str]:
    """Try damaged copies of some sound files or folders, and fail with a list of those that were
    neither refused nor equal.

    Args:
        opener: path -> contents by name. It is called in another process, which imports it: a
            function at the top of a module. It opens as a user's command would, reads all that
            belongs to the contents, and closes.
        sounds: what is damaged; small, with different names. The damaged copy has the same name.
        folder: for the copies.
        mutators: that know the format, beside `GENERAL`.
        payload: entries of the contents that hold in kind alone; see above.
        same: instead of `payload`: (found, sound) -> what is wrong, empty if nothing.
        cases, seed: how many cases are tried, and from what they are drawn.
        label: of the cases and of the tally; the opener's module and name otherwise.
        memory: see `MEMORY`.

    Returns:
        How many cases were "refused" and "equal".
    """
    label = label or f"{opener.__module__.rpartition('.')[2]}.{opener.__name__}"
    key, copies = (seed, zlib.crc32(label.encode())), folder / "damaged"
    copies.mkdir(exist_ok=True)
    same = same or (lambda found, sound: differences(found, sound, payload))
    ended: Counter[str] = Counter()
    failures = []
    with Attempts(opener, memory) as attempt:
        whole = {}
        for sound in sounds:
            how, whole[sound] = attempt(sound)
            assert how == "contents", f"{sound} is sound and was not opened: {whole[sound]}"
        for number in range(cases):
            path, done = damaged(sounds, number, copies, (*GENERAL, *mutators), key)
            how, result = attempt(path)
            if how == "contents":
                wrong = same(result, whole[sounds[number % len(sounds)]])
                how, result = ("failed", f"other contents: {wrong}") if wrong else ("equal", "")
            ended[how] += 1
            if how == "failed":
                failures.append(f"case {number} (seed {seed}, {label}), {done}: {result}")
    if tally := os.environ.get("LEWM_FUZZ_TALLY"):
        with open(tally, "a") as file:
            file.write(f"{label}\tseed {seed}\t{cases} cases\t{dict(sorted(ended.items()))}\n")
    assert not failures, f"{len(failures)} of {cases} cases:\n" + "\n".join(failures[:20])
    return ended
