"""`lewm claims`: what is claimed of LeWorldModel beside what these runs show."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import Positional

from lewm.cli import console
from lewm.files import read_json, write_atomically
from lewm.report.claims import CLAIMS, Evidence, to_markdown
from lewm.report.record import record_of
from lewm.report.rivals import study_of


def main(words: Sequence[str]) -> None:
    tyro.cli(run, args=words, prog="lewm claims")


def run(
    runs: Positional[tuple[Path, ...]],
    ablations: tuple[Path, ...] = (),
    benchmarks: tuple[Path, ...] = (),
    study: Path | None = None,
    tunings: tuple[Path, ...] = (),
    out: Path | None = None,
) -> None:
    """Hold every claim that is made of LeWorldModel against what was measured: it holds, does not,
    or was not tested, and why.

    Nothing is measured here. What an analysis says of a run comes from `lewm analyse RUN`, success
    from the evaluation beside the run; a claim without evidence names the command that makes it.

    Args:
        runs: run folders; several training seeds of a recipe are shown together.
        ablations: ablations.json of `python -m lewm.experiments.ablations`.
        benchmarks: files of `lewm bench --json`.
        study: rows of `lewm study collapse --export`.
        tunings: files of `lewm tune-lambda --json`.
        out: Markdown file to write.
    """
    rows = [row for path in ablations for row in _rows(path, "rows")]
    evidence = Evidence(
        [record_of(path) for path in runs],
        rows,
        _benchmarks(benchmarks),
        None if study is None else study_of(study),
        [_tuning(path) for path in tunings],
    )
    found = [(claim, claim.found(evidence)) for claim in CLAIMS]
    console.table(
        ("#", "claim", "verdict"),
        [(str(c.number), c.says, f.verdict) for c, f in found],
        title="claims",
    )
    if out:
        words = [
            *(each.label for each in evidence.runs),
            *(("--ablations ...",) if ablations else ()),
        ]
        words += ["--benchmarks ..."] if benchmarks else []
        words += ["--study ..."] if study else []
        words += ["--tunings ..."] if tunings else []
        write_atomically(
            out, to_markdown(evidence, f"lewm claims {' '.join(words)} --out {out.name}").encode()
        )
        console.say(str(out.resolve()))


def _benchmarks(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Name -> result; those of several files of one benchmark are taken together."""
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        for result in _rows(path, "benchmarks"):
            known = found.setdefault(str(result["name"]), dict(result))
            if known.get("results") and known["results"] is not result.get("results"):
                known["results"] = [*known["results"], *result["results"]]
    return found


def _tuning(path: Path) -> Mapping[str, Any]:
    told = read_json(path)
    if not {"weight", "tried", "grid", "confirmed"} <= told.keys():
        raise ValueError(
            f"{path}: expected the result of a search for lambda, got entries "
            f"{', '.join(told) or 'none'}. Give a file of `lewm tune-lambda --json`."
        )
    return told


def _rows(path: Path, key: str) -> list[Mapping[str, Any]]:
    rows = read_json(path).get(key)
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise ValueError(
            f"{path}: expected a list '{key}', got {type(rows).__name__}. Give a file that lewm "
            "wrote."
        )
    return rows
