"""What a folder holds, and how long its stages took over all calls that worked on it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lewm.files import read_json, write_json

__all__ = ["Book"]


class Book:
    """A small file that says what a folder holds, and how long its stages took over all calls that
    worked on it."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path, self._content = path, content
        self.resumed = bool(content["seconds"])

    @classmethod
    def open(cls, path: Path, claim: dict[str, Any]) -> Book:
        """Claim a folder, or go on with it if it was claimed for the same.

        Raises:
            ValueError: it was claimed for something else; the differences are named.
        """
        if not path.exists():
            book = cls(path, {**claim, "seconds": {}})
            book._write()
            return book
        there = read_json(path)
        if differing := [name for name in claim if there.get(name) != claim[name]]:
            expected, got = (
                ", ".join(f"{name} {of.get(name)}" for name in differing) for of in (claim, there)
            )
            raise ValueError(
                f"{path.parent} holds another {path.stem}: expected {expected}, got {got}. Name "
                "another folder with --out, or give the settings it was begun with."
            )
        return cls(path, there)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to that of a stage, also when it is interrupted."""
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = self._content["seconds"]
            seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - began
            self._write()

    @property
    def seconds(self) -> dict[str, float]:
        """Wall time per stage, and in total."""
        stages = {stage: round(value, 2) for stage, value in self._content["seconds"].items()}
        return {**stages, "total": round(sum(stages.values()), 2)}

    def _write(self) -> None:
        write_json(self.path, self._content)
