"""Kill a command at a random moment, run it again, and hold what it leaves against one that was
left alone.

Commands run in processes that a server forks. It has imported everything already, so a moment falls
into the command itself and hardly ever into its imports. Every trial has a folder of its own with
a copy of the inputs, and gives the command the same words.

When a command is killed rests on a clock. What must hold does not: whatever the moment was, the
same command once more ends as if nobody had interrupted the first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  importing it lets HDF5 open compressed files
import numpy as np

END_S = 300
"""A command that is not over by then hangs, and fails its trial."""

CLOCKS = (
    "seconds",
    "seconds_per_plan",
    "updates_per_second",
    "resumed",
)
"""Keys of JSON under which a clock wrote."""

WAYS: Mapping[str, Callable[[int, float], None]] = {
    "kill": lambda pid, pause: os.kill(pid, signal.SIGKILL),
    "terminate": lambda pid, pause: os.kill(pid, signal.SIGTERM),
    "ctrl-c twice": lambda pid, pause: _twice(pid, pause),
}
"""How a command is interrupted."""


@dataclass(frozen=True)
class Command:
    """A command line and what it makes.

    Attributes:
        words: of the command line, with paths relative to the folder of a trial.
        needs: files and folders of the inputs that it starts from.
        makes: what it leaves, relative; everything else in the folder must be as it was.
    """

    words: tuple[str, ...]
    needs: tuple[str, ...]
    makes: tuple[str, ...]


def context() -> Any:
    """Of a server that has imported what commands need."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["tests.kills.preload"])
    return server


def run(words: tuple[str, ...], folder: Path, interrupt: tuple[str, float] | None = None) -> int:
    """Run a command in a folder; its exit status, negative for the signal that ended it.

    Args:
        interrupt: one of `WAYS`, and after how many seconds.
    """
    process = context().Process(target=_work, args=(words, str(folder)))
    process.start()
    if interrupt is not None:
        way, after = interrupt
        process.join(after)
        if process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                WAYS[way](process.pid, after / 7)
    process.join(END_S)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"{' '.join(words)}: still running after {END_S} s")
    assert process.exitcode is not None
    return process.exitcode


def lay_out(command: Command, inputs: Path, folder: Path) -> Path:
    """A folder with a copy of what the command starts from."""
    folder.mkdir(parents=True)
    for name in command.needs:
        copy = shutil.copytree if (inputs / name).is_dir() else shutil.copy
        copy(inputs / name, folder / name)
    return folder


def trial(
    command: Command, inputs: Path, folder: Path, interrupt: tuple[str, float]
) -> tuple[int, Path]:
    """Interrupt a command, then run it again to its end; the first status, and the folder."""
    lay_out(command, inputs, folder)
    first = run(command.words, folder, interrupt)
    again = run(command.words, folder)
    log = (folder.parent / f"{folder.name}.log").read_text()
    assert again == 0, f"{interrupt}: the second run ended with {again}:\n{log}"
    return first, folder


def contents(folder: Path) -> dict[str, Any]:
    """Every file of a folder by its relative path, in a form that can be compared: without what a
    clock wrote, and without the folder's own place."""
    return {
        str(path.relative_to(folder)): _content(path, folder)
        for path in sorted(folder.rglob("*"))
        if not path.is_dir() or not any(path.iterdir())
    }


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """What is missing, left over or other, in words."""
    told = [f"missing: {name}" for name in expected if name not in found]
    told += [f"left over: {name}" for name in found if name not in expected]
    return told + [
        f"differs: {name}" for name in expected if name in found and found[name] != expected[name]
    ]


# ----------------------------------------------------------------------------------------- one file


def _content(path: Path, folder: Path) -> Any:
    if path.is_dir():
        return "an empty folder"
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            columns = {name: _digest(np.asarray(column[:])) for name, column in file.items()}
            return columns, {name: str(value) for name, value in file.attrs.items()}
    raw = path.read_bytes()
    if path.suffix == ".jsonl":
        return [_timeless(json.loads(line)) for line in raw.decode().splitlines()]
    if path.suffix == ".json":
        text = raw.decode().replace(str(folder), "FOLDER")
        return _timeless(json.loads(text))
    if path.suffix in (".html", ".svg"):
        return _without_times(raw.decode().replace(str(folder), "FOLDER"))
    return hashlib.sha256(raw).hexdigest()


def _digest(array: np.ndarray) -> str:
    return f"{array.shape} {array.dtype} {hashlib.sha256(array.tobytes()).hexdigest()}"


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in CLOCKS}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def _without_times(text: str) -> str:
    """A page without its durations, and without the table of them: it says so where several calls
    worked on a folder."""
    text = re.sub(r"Wall time.*?</table>", "TIMES", text, flags=re.DOTALL)
    return re.sub(r"\d+(\.\d+)?\s*(ms|s|min|h|seconds|minutes)\b", "TIME", text)


# -------------------------------------------------------------------------------------- one process


def _twice(pid: int, pause: float) -> None:
    os.kill(pid, signal.SIGINT)
    time.sleep(pause)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGINT)


@contextlib.contextmanager
def _into(path: str) -> Iterator[None]:
    """Everything that is printed goes into a file."""
    with open(path, "a") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        yield


def _work(words: tuple[str, ...], folder: str) -> None:
    from tests.kills import preload

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a server of processes ignores it
    os.chdir(folder)
    with _into(f"{folder}.log"):
        raise SystemExit(preload.main(list(words)))
