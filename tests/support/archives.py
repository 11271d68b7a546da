"""Archives made in memory."""

from __future__ import annotations

import io
import tarfile

import zstandard


def tar(members):
    """A tar of (TarInfo or name, content)."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for member, content in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def zst(content):
    return zstandard.ZstdCompressor().compress(content)
