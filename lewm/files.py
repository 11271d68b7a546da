"""Files that can be trusted: never half written, written by one process at a time, and JSON that
names itself when it is damaged. And what the hub holds.

Whatever this package writes, replaces or deletes, but for recordings, goes through this module:

- `write_atomically`, `append_line` and `whole_folder` write. What is not finished bears a name that
  nobody can guess, `.NAME.<16 hex digits>.partial`, and is made exclusively: no link is followed.
- `remove` and `sweep` delete names that we made, and never what a link leads to.
- `hold` lets one process at a time write to a place.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import secrets
import shutil
import socket
import stat
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows, where what is open cannot be deleted anyway
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "Held",
    "LOCK",
    "append_line",
    "fetch",
    "hold",
    "legible",
    "parse_json",
    "read_json",
    "read_text",
    "remove",
    "require_own",
    "scratch",
    "sweep",
    "sync",
    "temporary",
    "whole_folder",
    "write_atomically",
    "write_json",
]

# ------------------------------------------------------------------------------------------- text

UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # what steers terminals, of one byte and of two
    # what turns a line around, or breaks it
    "\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"
    "\ud800-\udfff]"  # bytes of a file name that are no text
)


def legible(text: str, lines: bool = True) -> str:
    """Text from anywhere as it may be shown: what would steer a terminal, turn a line around or
    cannot be encoded is spelt out, such as \\x1b.

    Args:
        lines: may it have several? Else line breaks and tabs are spelt out as well.
    """
    text = UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return text if lines else text.replace("\n", "\\n").replace("\t", "\\t")


# ------------------------------------------------------------------------------------------- JSON


def read_json(
    path: Path, expected: str = "JSON", cure: str = "Restore it, or train the run again"
) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        expected: what it holds, in a few words.
        cure: what to do about one that is damaged.

    Raises:
        ValueError: the file is missing, damaged or not an object; it is named.
    """
    try:
        text = read_text(path, expected, cure)
    except FileNotFoundError:
        raise ValueError(
            f"{path.parent} is not a run: expected a file {path.name} in it. Name a folder that "
            "`lewm train` made."
        ) from None
    return parse_json(text, path, expected, cure)


def read_text(path: Path, expected: str, cure: str) -> str:
    """The text of a file.

    Raises:
        ValueError: it is not UTF-8; the file is named.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _damaged(path, expected, str(error), cure) from None


def parse_json(text: str, source: Path | str, expected: str, cure: str) -> dict[str, Any]:
    """The object that a text is the JSON of: the one place where foreign JSON is read.

    Args:
        source: of the text, for the message.
        expected, cure: as for `read_json`.

    Raises:
        ValueError: it is cut short, nested too deeply, not an object, or holds what JSON has not
            (NaN, infinity) or no number can (a million digits).
    """
    try:
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise _damaged(source, expected, "brackets nested too deeply", cure) from None
    except ValueError as error:  # JSONDecodeError is one
        raise _damaged(source, expected, str(error), cure) from None
    if not isinstance(value, dict):
        got = f"not an object but {type(value).__name__}"
        raise _damaged(source, expected, got, cure)
    return value


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: the file is either the old one or the whole new one.

    Raises:
        ValueError: a number in it is NaN or infinite; its place is named. None says "not defined".
    """
    for place, number in _numbers(value):
        if not math.isfinite(number):
            raise ValueError(
                f"{path}: expected numbers, got {number} at '{place}'. Nothing was written: what "
                "it was computed from is damaged, or a model has diverged."
            )
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def _numbers(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Every float of a value that is written as JSON, and where it stands."""
    if isinstance(value, float):
        yield place, value
    items: Any = value.items() if isinstance(value, Mapping) else ()
    for name, item in enumerate(value) if isinstance(value, list | tuple) else items:
        yield from _numbers(item, f"{place}.{name}" if place else str(name))


def _no_number(word: str) -> float:
    raise ValueError(f"{word}, which is no number")


def _finite(text: str) -> float:
    return float(text) if math.isfinite(float(text)) else _no_number(text[:20])


def _damaged(source: Path | str, expected: str, got: str, cure: str) -> ValueError:
    return ValueError(f"{source} is damaged: expected {expected}, got {got}. {cure}.")


# ---------------------------------------------------------------------------------------- writing

TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.(?P<kind>partial|old)")
"""What is being written, and the folder that it is about to replace."""

LONGEST = 200
"""Characters of a name that a temporary one repeats: file systems allow some 255."""


def temporary(path: Path, kind: str = "partial") -> Path:
    """A name beside `path` that nobody can guess, and that `sweep` knows."""
    return path.with_name(f".{path.name[:LONGEST]}.{secrets.token_hex(8)}.{kind}")


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file by `content`, which is on disk before it takes the name; missing folders are
    made.

    The new file has the old one's permissions, or those that the umask gives. What a killed process
    left of this file is removed.

    Raises:
        ValueError: `path` is a link, a folder or a device: only a file of its own is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = require_own(path)
    sweep(path.parent, path.name)
    partial, descriptor = _exclusive(path)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if mode is not None and hasattr(os, "fchmod"):
                os.fchmod(descriptor, mode)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
            if fcntl is not None:  # while it is locked, so that nobody sweeps it
                partial.replace(path)
        if fcntl is None:
            partial.replace(path)
    except OSError as error:
        if error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def append_line(path: Path, line: str) -> None:
    """Add a line to a file of ours, and bring it to disk.

    Raises:
        ValueError: as for `write_atomically`.
    """
    require_own(path)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(path, flags, 0o666), "a", encoding="utf-8") as file:
        file.write(line + "\n")
    sync(path)


def require_own(path: Path) -> int | None:
    """Refuse to write to what is not a file of its own.

    Returns:
        The permissions of the file that is there, None where there is none.

    Raises:
        ValueError: it is a link, a folder or a device.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):
        kinds = ((stat.S_ISLNK, "a symbolic link"), (stat.S_ISDIR, "a folder"))
        got = next((word for is_kind, word in kinds if is_kind(mode)), "a device")
        raise ValueError(
            f"{path}: expected a file, or a name that is free, got {got}. Only files are "
            "replaced: name another one, or the file that a link leads to."
        )
    return stat.S_IMODE(mode)


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A folder to fill, which takes the name `final` once it is whole; an error leaves nothing of
    it.

    No folder replaces another in one step. A process killed between the two steps leaves the old
    one under another name, from which `sweep` brings it back.
    """
    with scratch(final) as partial:
        yield partial
        sync(partial)
        old = temporary(final, "old")
        if os.path.lexists(final):
            final.rename(old)
        partial.rename(final)
        sync(final.parent)
        remove(old)


@contextmanager
def scratch(beside: Path) -> Iterator[Path]:
    """A new folder beside a path, which is removed at the end; `sweep` knows it."""
    beside.parent.mkdir(parents=True, exist_ok=True)
    sweep(beside.parent, beside.name)
    folder = temporary(beside)
    folder.mkdir()
    descriptor = _locked(folder)
    try:
        yield folder
    finally:
        remove(folder)
        if descriptor is not None:
            os.close(descriptor)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to disk."""
    with contextlib.suppress(PermissionError):  # Windows opens no folders
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _exclusive(path: Path) -> tuple[Path, int]:
    """A new file beside `path`, open and locked, so that nobody takes it for a leftover."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    while True:
        partial = temporary(path)
        descriptor = os.open(partial, flags | getattr(os, "O_BINARY", 0), 0o666)
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not os.fstat(descriptor).st_nlink:  # swept before it was locked
                os.close(descriptor)
                continue
        return partial, descriptor


# --------------------------------------------------------------------------------------- deleting


def remove(path: Path) -> None:
    """Delete a file or a folder of ours, if it is there. A link is left alone, and so is what it
    leads to."""
    with contextlib.suppress(FileNotFoundError):
        mode = os.lstat(path).st_mode
        if stat.S_ISREG(mode):
            path.unlink()
        elif stat.S_ISDIR(mode):
            if not TEMPORARY.fullmatch(path.name):  # half of a folder must not bear its name
                path = path.rename(temporary(path))
            shutil.rmtree(path, ignore_errors=True)  # follows no link inside either


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left unfinished in a folder, and bring back what they were about
    to replace.

    Only names that `temporary` makes count, of files and folders, never of links. One that is still
    being written is locked by its writer, and left alone; so is every one on a file system without
    locks.

    Args:
        name: that they were to take; None is any.
    """
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        parsed = TEMPORARY.fullmatch(entry.name)
        if not parsed or parsed["name"] != (name or parsed["name"])[:LONGEST]:
            continue
        path = folder / entry.name
        descriptor = _locked(path)
        if descriptor is None:
            continue
        try:
            final = folder / parsed["name"]
            if parsed["kind"] == "old" and not os.path.lexists(final):
                path.rename(final)
            else:
                remove(path)
        finally:
            os.close(descriptor)


def _locked(path: Path) -> int | None:
    """A descriptor that holds a lock on a file or a folder; None where another has it, or there are
    no locks."""
    if fcntl is None:
        return None
    descriptor = None
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW
        descriptor = os.open(path, flags)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None


# ------------------------------------------------------------------------------------------ locks

LOCK = ".lewm.lock"
"""In a folder that is held; of a file NAME it is `.NAME.lewm.lock` beside it. It says who holds,
and is removed when the holder is done. A killed holder leaves it, and it holds nothing then."""

UNLOCKABLE = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
"""What a file system without locks answers."""


class Held(ValueError):
    """Another process writes there."""


@contextmanager
def hold(place: Path | str, folder: bool = True, wait: float = 0.0) -> Iterator[None]:
    """Be the only one who writes to a folder, or to a file; others may read meanwhile.

    The operating system releases the lock however this process ends. Processes that it forks do not
    inherit it. Where a file system has no locks (some network drives), the presence of the lock
    file stands in, with a warning: a process that was killed on another machine leaves it there,
    and a person must delete it.

    Args:
        folder: is it one? It is made, and what killed processes left in it is swept.
        wait: seconds to wait for whoever holds it.

    Raises:
        Held: another holds it; who, and since when.
    """
    from filelock import FileLock, SoftFileLock, Timeout

    place = Path(place)
    home = place if folder else place.parent
    made = [each for each in (home, *home.parents) if not each.exists()]
    home.mkdir(parents=True, exist_ok=True)
    path = place / LOCK if folder else place.with_name(f".{place.name[:LONGEST]}{LOCK}")

    def tell(descriptor: int) -> None:
        os.truncate(descriptor, 0)
        os.write(descriptor, json.dumps(_self()).encode())

    # one object for all threads, so that whoever leaves the context releases it
    how: dict[str, Any] = {"timeout": wait, "thread_local": False}
    lock: Any = FileLock(path, mode=0o644, on_acquired=tell, **how)
    try:
        try:
            lock.acquire()
        except OSError as error:
            if isinstance(error, Timeout) or error.errno not in UNLOCKABLE:
                raise
            warnings.warn(
                f"{home} lies on a file system without locks: a file {path.name}.soft stands in. "
                "If a process that wrote there was killed on another machine, delete it",
                stacklevel=3,
            )
            remove(path)  # it locks nothing here
            path = path.with_name(path.name + ".soft")
            lock = SoftFileLock(path, **how)
            lock.acquire()
    except Timeout:
        raise Held(
            f"{place}: expected to be its only writer, got {_holder(path)}. Wait for it, stop it, "
            "or name another place."
        ) from None
    try:
        if isinstance(lock, SoftFileLock):
            _name_leftovers(home, None if folder else place.name)
        elif folder:
            sweep(place)
        yield
    finally:
        if isinstance(lock, FileLock):
            # While it is held: whoever waits for this very file sees that it has lost its name.
            with contextlib.suppress(OSError):
                path.unlink()
        lock.release()
        with contextlib.suppress(OSError):  # made for nothing, if they are empty
            for each in made:
                each.rmdir()


def _name_leftovers(folder: Path, name: str | None) -> None:
    """Where nothing is locked: bring back what was about to be replaced (its holder alone may),
    and say of the rest that a killed process may have left it. Who else writes there cannot be
    told, so nothing is deleted."""
    left = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        parsed = TEMPORARY.fullmatch(entry.name)
        if not parsed or entry.is_symlink() or parsed["name"] != (name or parsed["name"])[:LONGEST]:
            continue
        final = folder / parsed["name"]
        if parsed["kind"] == "old" and not os.path.lexists(final):
            (folder / entry.name).rename(final)
        else:
            left.append(entry.name)
    if left:
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        warnings.warn(
            f"{folder}: found {', '.join(left[:5])}{more}, unfinished. If no process writes there, "
            "a killed one left it: delete it",
            stacklevel=4,
        )


def _self() -> dict[str, Any]:
    program = Path(sys.argv[0]).name.replace("__main__.py", "lewm")
    words = " ".join((program, *sys.argv[1:]))
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"pid": os.getpid(), "host": socket.gethostname(), "command": words, "since": since}


def _holder(path: Path) -> str:
    """Who holds a lock, as its file says; a file may hold anything."""
    try:
        told = parse_json(path.read_bytes()[:4096].decode(), path, "", "")
        pid, host, command, since = (told[name] for name in ("pid", "host", "command", "since"))
    except (OSError, ValueError, KeyError):
        return "another process"
    whose = "this process" if (pid, host) == (os.getpid(), socket.gethostname()) else "process"
    return f"{whose} {pid} on {host} ({command}), which has held it since {since}"


# ------------------------------------------------------------------------------------------ the hub


def fetch(identifier: str | Path, kind: str = "dataset", only: Sequence[str] | None = None) -> Path:
    """Where something is on this machine: a path as it is, or what a hub id names, downloaded
    unless it was before.

    Args:
        identifier: a local path, or `hf:user/name`, `hf:user/name@revision` or either with
            `/path/of/one/file` behind it.
        kind: of the hub repository, "dataset" or "model".
        only: patterns of the files wanted of a whole repository, such as "*.json"; None wants all.

    Returns:
        The file or folder, in the hub's own cache on this machine.

    Raises:
        ValueError: no hub id, or the hub does not give it (no network, no such repository, no
            access).
        ImportError: huggingface_hub is missing.
    """
    if not str(identifier).startswith("hf:"):
        return Path(identifier)
    parsed = re.fullmatch(
        r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<file>.+))?",
        str(identifier),
    )
    if not parsed:
        raise ValueError(
            f"{identifier}: expected hf:user/name or hf:user/name/path/of/a/file. Copy it from "
            "the hub's page."
        )
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        hint = (
            "Install it with: pip install 'lewm[hub]', or download the files yourself and give "
            "their path"
        )
        raise ImportError(
            f"{identifier} needs the package 'huggingface_hub'. {hint}.", name="huggingface_hub"
        ) from error
    wanted: dict[str, Any] = {"repo_type": kind, "revision": parsed["revision"]}
    try:
        if parsed["file"]:
            return Path(huggingface_hub.hf_hub_download(parsed["repo"], parsed["file"], **wanted))
        return Path(
            huggingface_hub.snapshot_download(
                parsed["repo"], allow_patterns=list(only) if only else None, **wanted
            )
        )
    # the hub's own errors, and those of whatever carries its connections
    except Exception as error:
        said = next(iter(str(error).splitlines()), "")
        raise ValueError(
            f"{identifier}: expected a {kind} that the hub gives us, got {type(error).__name__} "
            f"({said}). Check the name and the network (`hf auth login` for what is private), or "
            "download the files elsewhere and give their path."
        ) from error
