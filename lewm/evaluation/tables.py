"""Results as rows of tables."""

from __future__ import annotations

from collections.abc import Sequence

COLUMNS = (
    "task",
    "policy",
    "paper's protocol",
    "strict",
    "solved at start",
    "median steps",
    "ms per plan",
    "p against agent",
)
"""Names of what a row of results holds; p is that of McNemar's exact test on the strict pairs."""


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: a line of names, one of dashes, and one per row."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows))
