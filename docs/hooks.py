"""Bring the pages at the root of the repository into the site, and turn links between files into
links between pages."""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "LOG.md": "log/index.md",
}
"""File at the root -> its page."""

LINK = re.compile(r"\]\(([^)\s#:]+)(#[^)\s]*)?\)")
"""Relative addresses, in links and pictures; what has a scheme is left alone."""


def on_files(files, config):
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text()))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links of a file say where files lie; links of a page must say where pages are."""
    there = page.file.src_uri
    source = next((name for name, target in PAGES.items() if target == there), f"docs/{there}")

    def link(match):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        target = PAGES.get(
            target, target.removeprefix("docs/") if target.startswith("docs/") else ""
        )
        if not target:  # a file of the repository that is no page
            return match[0]
        return f"]({posixpath.relpath(target, posixpath.dirname(there) or '.')}{match[2] or ''})"

    return LINK.sub(link, markdown)
