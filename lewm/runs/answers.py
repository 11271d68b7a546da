"""Analyses of a run, kept in the run: asked once, and again only if something changed of what they
are about.

run/analyses/
  probing/result.json          numbers and tables, and what they are about
  probing/arrays.safetensors   what figures are drawn from
  probing/<panel>.svg          figures; .webp and .still.webp those that move
  surprise/refusal.json        in place of all that: why this run cannot be asked
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors.numpy import save as packed

import lewm
from lewm import registry
from lewm.contracts import Progress, Report, silent
from lewm.files import read_json, remove, sweep, write_atomically, write_json
from lewm.runs import checkpoints
from lewm.runs.heads import digest_of_head
from lewm.runs.results import Result, legible_result, plain
from lewm.runs.run import Analysis, Run, Unsupported

__all__ = [
    "ANALYSES",
    "REFUSAL",
    "Draw",
    "Outdated",
    "analyse",
    "analyses",
    "load_result",
    "save_result",
]

Draw = Callable[[Result, Path], None]
"""Called with a result and the folder that its figures go into."""

R = TypeVar("R", bound=Result)


class Outdated(ValueError):
    """A result on disk that is not what this version writes; the message says which command asks
    again."""


def analyses(
    names: Sequence[str] | None = None,
    seed: int = 0,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Analysis]:
    """Make analyses, ready to be asked.

    Args:
        names: which; None is all there are.
        seed: of those that draw anything at random.
        settings: analysis -> fields that differ from their defaults.

    Raises:
        ValueError: there is no such analysis.
    """
    known = registry.names("analyses")
    chosen = (
        known
        if names is None
        else [registry.choose("analysis", name.replace("_", "-"), known) for name in names]
    )
    made = []
    for name in dict.fromkeys(chosen):
        kind = registry.load("analyses", name)
        seeded = (
            {"seed": seed} if "seed" in {field.name for field in dataclasses.fields(kind)} else {}
        )
        made.append(kind(**seeded, **(settings or {}).get(name, {})))
    return made


def analyse(
    run: Run,
    names: Sequence[str] | None = None,
    report: Report = silent,
    again: bool = False,
    seed: int = 0,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    draw: Draw | None = None,
) -> dict[str, Result | Unsupported]:
    """Ask analyses about a run, store the answers in it, and return them.

    An answer that is there already is kept if it was given by the same version with the same
    settings, about the same weights and the same data.

    Args:
        run: opened from its folder.
        names, seed, settings: as for `analyses`.
        report: called as they proceed.
        again: ask even what was answered.
        draw: writes the figures of a result into a folder, beside the numbers; what was stored
            without is drawn when it is asked for again. None draws nothing.

    Returns:
        Analysis -> its result, or why this run cannot be asked.

    Raises:
        ValueError: there is no such analysis, the run is damaged, or another process writes to it.
        KeyboardInterrupt: Ctrl-C; what was complete stays.
    """
    assert run.path is not None, "answers are kept in the run's folder"
    answers: dict[str, Result | Unsupported] = {}
    with checkpoints.held(run.path):
        for analysis in analyses(names, seed, settings):
            folder, about = run.path / ANALYSES / analysis.name, _about(run, analysis)
            sweep(folder)
            kept = None if again else _kept(folder, analysis.result, about)
            if kept is not None:
                answers[analysis.name], drawn = kept
                if draw is not None and not drawn:
                    draw(kept[0], folder)
                    _note_drawn(folder)
                report(Progress(analysis.name, 1, 1, f"{analysis.name}: kept"))
            else:
                answers[analysis.name] = _ask(analysis, run, folder, about, report, draw)
    return answers


def _ask(
    analysis: Analysis,
    run: Run,
    folder: Path,
    about: Mapping[str, Any],
    report: Report,
    draw: Draw | None,
) -> Result | Unsupported:
    def named(progress: Progress) -> None:
        # it is not done before it is drawn and stored
        done = min(progress.done, progress.total - 1)
        report(dataclasses.replace(progress, stage=analysis.name, done=done))

    report(Progress(analysis.name, 0, 1))
    began = time.perf_counter()
    try:
        result = legible_result(analysis.run(run, named))
        if undefined := result.undefined():
            raise Unsupported(
                f"{analysis.name}: expected numbers, got NaN or infinity in "
                f"{', '.join(undefined[:3])}. The model has diverged, or the data do not vary: "
                "look at its metrics.jsonl, and train again."
            )
    except (Unsupported, ImportError) as error:
        refusal = error if isinstance(error, Unsupported) else Unsupported(str(error))
        folder.mkdir(parents=True, exist_ok=True)
        _forget(folder)
        write_json(
            folder / REFUSAL, {"name": analysis.name, "about": dict(about), "why": str(refusal)}
        )
        report(Progress(analysis.name, 1, 1, f"{analysis.name}: not possible"))
        return refusal
    about = {**about, "seconds": round(time.perf_counter() - began, 2)}
    _forget(folder)
    if draw is not None:
        draw(result, folder)
    save_result(folder, result, about, drawn=draw is not None)
    report(Progress(analysis.name, 1, 1))
    return result


def _forget(folder: Path) -> None:
    """Remove an older answer, whole: nothing of it stands beside the next one."""
    remove(folder / RESULT)  # first: its presence means that all beside it is of one answer
    for old in (*folder.glob("*.svg"), *folder.glob("*.webp"), folder / ARRAYS, folder / REFUSAL):
        remove(old)


def _about(run: Run, analysis: Analysis) -> dict[str, Any]:
    """Everything that an answer depends on, JSON-ready."""
    assert run.path is not None
    episodes = run.episodes
    return {
        "settings": dataclasses.asdict(analysis),
        "weights": checkpoints.digest_of_newest(run.path),
        "heads": {name: digest_of_head(run.path, name) for name in sorted(run.heads)},
        "planning": repr(run.planning),  # all settings, and of heads only that they are there
        "data": {
            "path": str(episodes.path),
            "provenance": dataclasses.asdict(episodes.provenance),
            "episodes": len(episodes),
            "rows": int(episodes.steps),
            "fit_episodes": len(run.fit_ids),
            "test_episodes": len(run.test_ids),
        },
        "lewm": lewm.__version__,
    }


def _kept(folder: Path, kind: type[R], about: Mapping[str, Any]) -> tuple[R, bool] | None:
    """The answer that is there, if it is about the same, and whether its figures are there; one
    that is damaged, or of another version, is asked for anew."""
    try:
        found = load_result(folder, kind)
    except ValueError:
        return None
    if found is None:
        return None
    result, told = found
    told.pop("seconds", None)
    if told != json.loads(json.dumps(about)):
        return None
    drawn = read_json(folder / RESULT).get("drawn", any(folder.glob("*.svg")))
    return result, bool(drawn)


def _note_drawn(folder: Path) -> None:
    told = read_json(folder / RESULT)
    _write_result(folder, {**told, "drawn": True})


ANALYSES, REFUSAL = "analyses", "refusal.json"

RESULT, ARRAYS = "result.json", "arrays.safetensors"


def save_result(
    folder: Path, result: Result, about: Mapping[str, Any], drawn: bool = False
) -> None:
    """Write a result into its folder. The JSON comes last, so that its presence means that all is
    there. The tables stand in it for other programs, and are never read back.

    Args:
        about: JSON-ready: what was asked of what, so that a reader knows whether it still holds.
        drawn: are its figures there?

    Raises:
        ValueError: what must be a number is none; nothing is written.
    """
    if undefined := result.undefined():
        raise ValueError(
            f"{folder}: expected a result of numbers, got NaN or infinity in "
            f"{', '.join(undefined[:3])}. Mend the analysis, or make such a field `float | None`."
        )
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {place: np.ascontiguousarray(array) for place, array in result.arrays().items()}
    remove(folder / RESULT)  # of an earlier result, whose arrays these are not
    write_atomically(folder / ARRAYS, packed(arrays))
    told = {
        "name": result.name,
        "about": dict(about),
        "values": result.to_json(),
        "tables": result.tables(),
        "drawn": drawn,
    }
    _write_result(folder, plain(told))


def _write_result(folder: Path, told: Mapping[str, Any]) -> None:
    write_atomically(folder / RESULT, json.dumps(told, indent=1, allow_nan=False).encode())


def load_result(folder: Path, kind: type[R]) -> tuple[R, dict[str, Any]] | None:
    """Read what `save_result` wrote: the result and what it is about; None where there is none.

    Args:
        kind: of the result, as its analysis names it.

    Raises:
        ValueError: it is damaged, or (`Outdated`) not of this version; the file is named.
    """
    source = folder / RESULT
    if not source.exists():
        return None
    try:
        told = read_json(source, "the JSON of an analysis", "Ask again")
        arrays = {n: t.numpy() for n, t in checkpoints.read_tensors(folder / ARRAYS).items()}
        values, about = dict(told["values"]), dict(told["about"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} is damaged: expected {RESULT} and {ARRAYS} of an analysis, got {error}. "
            "Delete the folder and run the analysis again."
        ) from None
    try:
        result = legible_result(kind.from_json(values, arrays))
        if undefined := result.undefined():
            raise ValueError(f"NaN or infinity in field '{undefined[0]}'")
        result.tables()  # of entries that do not belong together it cannot be made
        return result, about
    except (ValueError, LookupError, ArithmeticError) as error:
        run = shlex.quote(str(folder.parent.parent))
        raise Outdated(
            f"{source}: expected the fields of this version of lewm, got {error}. It was written "
            "by another version of lewm. Ask again: lewm "
            f"analyse {run} {folder.name} --again"
        ) from None
