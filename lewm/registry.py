"""Plug-ins by file name: `load("solvers", "cem")` imports `lewm/planning/solvers/cem.py` and
returns its class.

The folder is the registry: there is no table to keep. A file offers the first name of its
`__all__`. Names may be spelt with `-` or `_`. Nothing is imported before it is asked for, so a
missing simulator never breaks the command line. Other packages add plug-ins by an entry point in
the group "lewm.<kind>", such as `lewm.worlds`; they cannot replace ours.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FOLDERS = {
    "models": "models",
    "worlds": "worlds",
    "heads": "planning/heads",
    "objectives": "planning/objectives",
    "solvers": "planning/solvers",
    "formats": "data/formats",
    "analyses": "analyses",
}
"""Kind of plug-in -> where its files lie."""


def names(kind: str) -> list[str]:
    """The plug-ins of a kind, sorted, as a user writes them ("two-room")."""
    return sorted({*_own(kind), *_foreign(kind)})


def load(kind: str, name: str) -> Any:
    """Import one plug-in and return its class.

    Raises:
        ValueError: no such kind or plug-in; the nearest names are offered.
        ImportError: the plug-in needs a package that is missing; the message names the extra to
            install.
    """
    key = choose(kind.removesuffix("s"), name.replace("_", "-"), names(kind))
    try:
        if key not in _own(kind):
            return _foreign(kind)[key].load()
        folder = FOLDERS[kind].replace("/", ".")
        module = importlib.import_module(f"lewm.{folder}.{key.replace('-', '_')}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("lewm"):
            raise
        raise ImportError(
            f"{kind.removesuffix('s')} '{key}' needs the package '{error.name}'. "
            f"{_install_hint(error.name)}"
        ) from error
    return getattr(module, module.__all__[0])


def _own(kind: str) -> set[str]:
    folder = Path(__file__).parent / FOLDERS[choose("kind of plug-in", kind, FOLDERS)]
    return {file.stem.replace("_", "-") for file in folder.glob("[a-z]*.py")}


def _foreign(kind: str) -> dict[str, importlib.metadata.EntryPoint]:
    return {
        point.name.replace("_", "-"): point
        for point in importlib.metadata.entry_points(group=f"lewm.{kind}")
    }


def choose(what: str, name: str, options: Iterable[str]) -> str:
    """Return `name` if it is one of `options`, else raise a ValueError that offers the nearest
    ones."""
    options = list(options)
    if name in options:
        return name
    near = difflib.get_close_matches(name, options, n=2, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    raise ValueError(f"unknown {what} '{name}'.{hint} Known: {', '.join(options) or 'none'}.")


def _install_hint(package: str) -> str:
    """Name the extra of lewm that brings `package`, as lewm's own metadata tells it."""
    try:
        requirements = importlib.metadata.requires("lewm") or []
    except importlib.metadata.PackageNotFoundError:
        requirements = []
    for requirement in requirements:
        extra = re.search(r"extra == ['\"]([^'\"]+)['\"]", requirement)
        if extra and re.match(rf"{re.escape(package)}\b", requirement.replace("-", "_")):
            return f"Install it with: pip install 'lewm[{extra.group(1)}]'"
    return f"Install it with: pip install {package}"
