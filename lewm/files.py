"""Files that can be trusted: never half written, JSON that names itself when it is damaged, and
what the hub holds."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["fetch", "read_json", "sync", "write_atomically", "write_json"]


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: the file is either the old one or the whole new one."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that belongs to a run.

    Raises:
        ValueError: the file is missing, damaged or not an object; it is named.
    """
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(
            f"{path.parent} is not a run: expected a file {path.name} in it. Name a folder that "
            "`lewm train` made."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is damaged: expected JSON, got {error}. Restore it, or train the run again."
        ) from None
    if not isinstance(value, dict):
        raise ValueError(
            f"{path} is damaged: expected a JSON object, got {type(value).__name__}. Train the "
            "run again."
        )
    return value


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file by `content`, which is on disk before it takes the name; missing folders are
    made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content)
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to disk."""
    with contextlib.suppress(PermissionError):  # Windows opens no folders
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
