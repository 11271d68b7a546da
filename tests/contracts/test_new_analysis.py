"""Adding an analysis is adding `analyses/<name>.py` and `report/sections/<name>.py`: the commands
and the page find both, and nothing else names it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import lewm

ANALYSIS = '''
"""How long are episodes?"""
from dataclasses import dataclass
from typing import ClassVar
import numpy as np
from lewm.runs.results import Result, Tables
from lewm.contracts import Report, silent
from lewm.runs.run import Run

__all__ = ["Lengths", "LengthsResult"]


@dataclass(frozen=True)
class LengthsResult(Result):
    longest: int
    lengths: np.ndarray
    name: ClassVar[str] = "lengths"

    def tables(self) -> Tables:
        return {f"of {len(self.lengths)} episodes": [{"longest, rows": self.longest}]}


@dataclass(frozen=True)
class Lengths:
    name: ClassVar[str] = "lengths"
    question: ClassVar[str] = "How long are held-out episodes?"
    result: ClassVar[type[Result]] = LengthsResult

    def run(self, run: Run, report: Report = silent) -> LengthsResult:
        lengths = run.episodes.lengths[list(run.test_ids)]
        return LengthsResult(int(lengths.max()), lengths)
'''
SECTION = '''
"""Lengths on the page."""
from lewm.analyses.lengths import LengthsResult
from lewm.report import canvas
from lewm.report.canvas import Panel

TITLE, ORDER = "Long and short", 15


def draw(result: LengthsResult) -> list[Panel]:
    return [canvas.draw("lengths of episodes", lambda axes: axes.hist(result.lengths))]


def sentences(result: LengthsResult) -> list[str]:
    return [f"The longest of them has {result.longest} rows."]


def headlines(result: LengthsResult) -> dict[str, str]:
    return {"longest episode": str(result.longest)}
'''
COMMANDS = """
import sys
from lewm.cli.main import main
run, page = sys.argv[1:]
sys.exit(main(["analyse", run, "lengths"]) or main(["report", run, "--out", page]))
"""


def test_two_files_are_an_analysis_with_its_section(small_run, tmp_path):
    package = shutil.copytree(
        Path(lewm.__file__).parent,
        tmp_path / "lewm",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    (package / "analyses" / "lengths.py").write_text(ANALYSIS)
    (package / "report" / "sections" / "lengths.py").write_text(SECTION)
    run = shutil.copytree(small_run, tmp_path / "run")
    page = tmp_path / "report.html"
    said = subprocess.run(
        [sys.executable, "-c", COMMANDS, str(run), str(page)],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "lengths: of " in said
    told = json.loads((run / "analyses" / "lengths" / "result.json").read_text())
    longest = told["values"]["longest"]
    assert (run / "analyses" / "lengths" / "lengths-of-episodes.svg").exists()
    shown = page.read_text()
    assert '<section id="lengths">' in shown
    assert "How long are held-out episodes?" in shown
    assert f"The longest of them has {longest} rows." in shown
    assert 'aria-label="lengths of episodes"' in shown
    headings = re.findall(r"<h2>(.*?)</h2>", shown)
    planning, added, probing = (
        headings.index(title)
        for title in ("Plans, imagined and carried out", "Long and short", "What the latents know")
    )
    assert planning < added < probing
