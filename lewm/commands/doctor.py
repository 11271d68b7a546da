"""`lewm doctor`: what is here, what will be used, what is missing."""

from collections.abc import Sequence
from pathlib import Path

import tyro

from lewm import console
from lewm.doctor import examine


def main(words: Sequence[str]) -> None:
    tyro.cli(run, args=words, prog="lewm doctor")


def run(json: Path | None = None) -> None:
    """Say what is installed, which device and precision will be used, and what is missing.

    Args:
        json: write the findings there.
    """
    findings = examine()
    for section, values in findings.items():
        if isinstance(values, dict):
            console.facts(values, title=section)
    console.say(f"\n{findings['verdict']}")
    if json:
        from lewm.checkpoints import write_json  # needs torch, which may be what is missing

        write_json(json, findings)
