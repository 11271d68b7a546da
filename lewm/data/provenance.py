"""Where recorded episodes come from: the one record that an episode file carries beside its
columns."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

__all__ = ["Provenance"]


@dataclass(frozen=True)
class Provenance:
    """Where a file's episodes come from, stored as plain attributes of its root; None or empty
    where a file does not say.

    Attributes:
        world, version, look, state_names, state_units: as in `WorldSpec`.
        policy, seed: what acted, and the number from which every episode was drawn.
        options: JSON of what else the world was opened with, such as its image size.
        lewm_version: that wrote the file.
        requested_episodes: how many were asked for; a file that holds fewer was interrupted.
        every: env steps from one row to the next. A row's `action` holds that many env actions side
            by side, step by step, taken from that row's observation on.
    """

    world: str | None = None
    version: str | None = None
    policy: str | None = None
    seed: int | None = None
    look: str | None = None
    state_names: tuple[str, ...] = ()
    state_units: tuple[str, ...] = ()
    options: str | None = None
    lewm_version: str | None = None
    requested_episodes: int | None = None
    every: int = 1

    @staticmethod
    def read(attributes: Mapping[str, Any]) -> Provenance:
        """Other projects may use these names for other things: a value that is not of its field's
        type counts as not there. But `every` says what rows mean: one that is no whole number from
        1 on becomes 0, which no file may have."""
        found = {f: _plain(attributes, f.name) for f in fields(Provenance) if f.name in attributes}
        known = {
            f.name: value
            for f, value in found.items()
            if str(f.type).startswith(type(value).__name__)
        }
        if "every" in attributes and not 1 <= known.get("every", 0) < 1 << 31:
            known["every"] = 0
        return Provenance(**known)

    def write(self, attributes: MutableMapping[str, Any]) -> None:
        for name, value in asdict(self).items():
            if value is not None:
                attributes[name] = value

    def differences(self, other: Provenance) -> str:
        """Name the fields in which two provenances differ, with both values; empty where they
        agree."""
        pairs = [(f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self)]
        return "; ".join(f"{name} {a!r} against {b!r}" for name, a, b in pairs if a != b)


def _plain(attributes: Mapping[str, Any], name: str) -> Any:
    """An attribute without NumPy's types and fixed-length bytes; a list of nothing but text becomes
    a tuple. None for what cannot be read, or is something else."""
    try:
        value = attributes[name]
    except Exception:  # HDF5 has types that NumPy has not
        return None
    value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    if isinstance(value, list):
        texts = tuple(map(_text, value))
        return texts if all(isinstance(text, str) for text in texts) else None
    return _text(value)


def _text(value: Any) -> Any:
    """Text that can be written, printed and sent: without what is no UTF-8, and without NUL."""
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogateescape")
    return value.decode(errors="replace").replace("\0", "") if isinstance(value, bytes) else value
