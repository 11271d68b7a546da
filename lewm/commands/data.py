"""`lewm data`: what is in an episode file, and is it sound?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import Positional

from lewm import console
from lewm.checkpoints import write_json
from lewm.data import Episodes
from lewm.registry import choose


def main(words: Sequence[str]) -> None:
    tyro.cli(run, args=words, prog="lewm data")


def run(action: Positional[str], files: Positional[tuple[Path, ...]], json: Path | None = None) -> None:
    """Describe episode files (info), or read every row of them and say whether they are sound (verify).

    Args:
        action: info or verify.
        files: episode files (HDF5).
        json: write the same there.
    """
    choose("action on data", action, ("info", "verify"))
    if not files:
        raise ValueError(f"expected episode files, got none: lewm data {action} FILE...")
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        try:
            with console.Bars() as bars, Episodes.open(file) as episodes:

                def report(done: int, total: int, file: Path = file) -> None:
                    bars.update(file.name, done, total)

                found[str(file)] = episodes.summary() if action == "info" else {**episodes.verify(report), "sound": True}
        except ValueError as error:
            found[str(file)] = {"error": str(error)}
        else:
            console.facts(found[str(file)], title=str(file))
    if json:
        write_json(json, found)
    if errors := [values["error"] for values in found.values() if "error" in values]:
        raise ValueError(" ".join(errors))
