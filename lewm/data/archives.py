"""Archives from elsewhere, unpacked with suspicion."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from lewm.files import scratch

__all__ = ["is_archive", "unpack", "unpacked"]


MAX_EXPANSION = 1000.0
"""An honest archive of synthetic pictures shrinks some hundred times; bombs shrink ten thousand
times and more."""


ARCHIVES = (".tar", ".tar.zst", ".tzst", ".zst")


HEADER_BYTES = 1 << 20
"""Between two members, where names and attributes stand. They are held in memory, and may claim any
size."""


PIECE_BYTES = 1 << 12
"""Compressed bytes expanded at once: 4 of them, one Zstandard block, may stand for 128 KiB, so
memory is bound to 128 MiB."""


def is_archive(path: Path) -> bool:
    """Whether `unpack` is for this, by its name. What begins with a dot is a note of some system's,
    such as ._data.tar."""
    name = path.name.lower()
    return name.endswith(ARCHIVES) and not name.startswith(".") and path.is_file()


@contextlib.contextmanager
def unpacked(archive: Path, parent: Path, max_expansion: float = MAX_EXPANSION) -> Iterator[Path]:
    """A temporary folder in `parent` with what `unpack` makes of an archive.

    A process that is killed leaves it there, and the next call removes it. A running process holds
    a lock on its copy, which ends with the process.
    """
    with scratch(parent / archive.name) as folder:
        unpack(archive, folder, max_expansion)
        yield folder


def unpack(archive: Path, folder: Path, max_expansion: float = MAX_EXPANSION) -> None:
    """Unpack a .tar, .tar.zst or .zst into an empty folder: ordinary files and folders that stay in
    it, and nothing else.

    It is read once, in a stream. What was unpacked until an error stays behind: use a temporary
    folder.

    Args:
        max_expansion: refuse to write more than this many times the archive's own size.

    Raises:
        ValueError: a member is a link or a device or would leave the folder, the archive is
            truncated or damaged, or it expands to more than `max_expansion` allows.
        ImportError: zstandard is missing.
    """
    compressed = archive.name.lower().endswith("zst")
    chunks = _at_most(
        max_expansion * archive.stat().st_size,
        _decompressed(archive) if compressed else _pieces(archive),
        archive,
    )
    if compressed and not archive.name.lower().endswith((".tar.zst", ".tzst")):
        with (folder / archive.stem).open("wb") as file:
            file.writelines(chunks)
        return
    stream = _Stream(chunks, HEADER_BYTES)
    try:
        with tarfile.open(fileobj=stream, mode="r|") as tar:  # type: ignore[call-overload]
            for member in tar:
                target = folder / _safe_name(archive, member)
                stream.allowed = stream.taken + member.size + HEADER_BYTES
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as file:
                    shutil.copyfileobj(tar.extractfile(member), file, 1 << 20)  # type: ignore[arg-type, misc]
    except (tarfile.TarError, EOFError, RecursionError, OverflowError, UnicodeError) as error:
        raise _torn(archive, str(error) or "its headers") from None
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise _torn(archive, f"two members called '{member.name}'") from error
    except ValueError as error:
        if str(error).startswith(str(archive)):
            raise
        raise _torn(archive, str(error)) from None


def _safe_name(archive: Path, member: tarfile.TarInfo) -> PurePosixPath:
    name = PurePosixPath(member.name)
    if (
        name.is_absolute()
        or ".." in name.parts
        or "\\" in member.name
        or re.match("[A-Za-z]:", member.name)
        or any(len(part.encode(errors="replace")) > 255 for part in name.parts)
        or "\0" in member.name
    ):
        problem = "which would leave it"
    elif member.islnk() or member.issym():
        problem = "a link"
    elif not member.isdir() and (not member.isreg() or member.issparse()):
        problem = "a special file"
    else:
        return name
    cure = (
        "Recordings need no such thing: mistrust the archive, or unpack it yourself and give the "
        "folder"
    )
    raise ValueError(
        f"{archive}: expected ordinary files below one folder, got '{member.name}', {problem}. "
        f"{cure}."
    )


def _pieces(archive: Path, size: int = 1 << 20) -> Iterator[bytes]:
    with archive.open("rb") as file:
        while piece := file.read(size):
            yield piece


def _decompressed(archive: Path) -> Iterator[bytes]:
    """The bytes inside one or more Zstandard frames; ValueError where the last one does not end."""
    try:
        import zstandard
    except ModuleNotFoundError as error:
        hint = "Install it with: pip install 'lewm[convert]'"
        raise ImportError(
            f"{archive} needs the package 'zstandard'. {hint}.", name="zstandard"
        ) from error
    frame = None
    for piece in _pieces(archive, PIECE_BYTES):
        while piece:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            try:
                yield frame.decompress(piece)
            except zstandard.ZstdError as error:
                raise _torn(archive, str(error)) from None
            piece, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise _torn(archive, "it ends within its compressed data")


def _at_most(limit: float, chunks: Iterator[bytes], archive: Path) -> Iterator[bytes]:
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > limit:
            raise ValueError(
                f"{archive}: expected at most {limit / 1e6:.6g} MB inside, got more: it may be an "
                "archive bomb. If you trust it, raise the limit (--max-expansion, in multiples "
                "of the archive's size)."
            )
        yield chunk


def _torn(archive: Path, why: str) -> ValueError:
    return ValueError(
        f"{archive}: expected a whole archive, got one that cannot be read ({why}). Fetch it again."
    )


class _Stream:
    """A file for tarfile to read once, front to back, made of chunks.

    Attributes:
        taken, allowed: bytes that were read, and that may be: headers of any size would be held in
            memory.
    """

    def __init__(self, chunks: Iterator[bytes], allowed: int):
        self._chunks, self._chunk = chunks, io.BytesIO()
        self.taken, self.allowed = 0, allowed

    def read(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            if part := self._chunk.read(size):
                parts.append(part)
                size -= len(part)
                self.taken += len(part)
            elif (chunk := next(self._chunks, None)) is not None:
                self._chunk = io.BytesIO(chunk)
            else:
                break
        if self.taken > self.allowed:
            raise tarfile.ReadError(f"headers of more than {HEADER_BYTES} bytes")
        return b"".join(parts)
