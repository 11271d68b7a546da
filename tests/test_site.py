"""Markdown that people read: short lines, links that lead somewhere, and a site that is whole."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COLUMNS = 100
GENERATED = ("docs/claims.md",)
"""Written by a command, one line a claim."""

FENCE = re.compile(r"^ *```.*?^ *```[^\n]*$", re.MULTILINE | re.DOTALL)
MODULE = re.compile(r"^::: (\S+)$", re.MULTILINE)


def pages():
    """Every Markdown file of the project, from its root."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def prose(text):
    """What is not code."""
    return FENCE.sub("", text)


def placeholders(text):
    """Lines that stand for text to come: a word of capitals alone, or the usual marks."""
    return re.findall(
        r"^(?:[A-Z][A-Z _-]{2,}|.*\b(?:TODO|TBD|FIXME|XXX)\b.*)$", prose(text), re.MULTILINE
    )


def files_named(text):
    """Relative addresses of links and pictures, in Markdown and HTML, without #fragments."""
    markdown = r"\]\(\s*<?([^)\s>]+)"
    addresses = re.findall(
        rf"{markdown}|(?:src|srcset|href)=[\"']([^\"']+)|^\[[^\]]+\]:\s*(\S+)",
        prose(text),
        re.MULTILINE,
    )
    paths = (next(filter(None, found)).partition("#")[0] for found in addresses)
    return [path for path in paths if path and not re.match(r"[a-z]+:|//", path)]


def long_lines(text):
    """Lines of prose that are too long; tables, code and what ends in one long link may be."""
    lines = prose(text).splitlines()
    return [
        line
        for line in lines
        if len(line) > COLUMNS and not line.lstrip().startswith("|") and not ends_in_link(line)
    ]


def ends_in_link(line):
    """A link cannot be broken: does the line hold hardly more than one?"""
    return len(re.sub(r"!?\[[^\]]*\]\([^)]*\)", "", line)) < 20


def in_navigation(configuration):
    """Pages that the site's navigation names."""
    return re.findall(
        r"^\s+- (?:.*: )?(\S+\.md)$", configuration[configuration.index("\nnav:") :], re.MULTILINE
    )


@pytest.mark.parametrize("name", pages())
def test_pages_are_finished_and_what_they_point_at_exists(name):
    page = ROOT / name
    assert not placeholders(page.read_text())
    missing = [path for path in files_named(page.read_text()) if not (page.parent / path).exists()]
    assert not missing, f"{name} points at what is not there: {missing}"


@pytest.mark.parametrize("name", [name for name in pages() if name not in GENERATED])
def test_lines_are_short(name):
    assert not long_lines((ROOT / name).read_text()), (
        f"{name}: break these lines at {COLUMNS} columns"
    )


def test_the_site_shows_every_page():
    named = set(in_navigation((ROOT / "mkdocs.yml").read_text()))
    files = {name.removeprefix("docs/") for name in pages() if name.startswith("docs/")}
    brought = {"index.md", "log/index.md", "architecture.md", "contributing.md", "changelog.md"}
    assert named == files | brought


def test_the_reference_names_modules_that_exist():
    named = [module for name in pages() for module in MODULE.findall((ROOT / name).read_text())]
    assert len(named) > 20
    missing = [module for module in named if not (ROOT / f"{module.replace('.', '/')}.py").exists()]
    assert not missing, f"the reference names modules that are not there: {missing}"


def test_every_entry_of_the_log_is_in_its_index():
    index = (ROOT / "LOG.md").read_text()
    entries = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs/log").glob("*.md")]
    assert entries
    assert not [entry for entry in entries if f"({entry})" not in index]


def test_what_is_long_is_found():
    long = "word " * 30
    text = f"{long}\n```\n{long}\n```\n| {long} |\n[{long}](a.md)\n- {long}\n"
    assert long_lines(text) == [long, f"- {long}"]
    assert in_navigation("x: a.md\nnav:\n  - Home: index.md\n  - Log:\n      - log/index.md\n") == [
        "index.md",
        "log/index.md",
    ]


def test_what_points_elsewhere_is_found():
    page = """![a](docs/plan.gif) [b](LOG.md#x) [c](https://e.org/x) [d](#here)
<img src="docs/b.png">
[e]: docs/e.md
```sh
[not](a-link.md)
```
"""
    assert files_named(page) == ["docs/plan.gif", "LOG.md", "docs/b.png", "docs/e.md"]
    assert placeholders(
        "# ARCHITECTURE\n\nRESULTS\n\nMIT licence.\n\n- TODO: more\n```\nA B C\n```\n"
    ) == [
        "RESULTS",
        "- TODO: more",
    ]
