"""Names from strangers' files, in every text that any analysis can store and wherever else a page
shows one: they stay text."""

import dataclasses
import re
from collections.abc import Mapping
from html.parser import HTMLParser

import numpy as np
import pytest

from lewm import registry
from lewm.files import legible
from lewm.report import sections
from lewm.report.figures import panels_of, slug
from lewm.report.page import render
from lewm.report.record import Answer, Outcome, Record
from lewm.runs.answers import load_result, save_result
from tests.support import results

LINKS = r"#|data:image/(webp|png);base64,|https://arxiv\.org/abs/2603\.19312$"
LONG = "v" * 3000
NAMES = {
    "markup": "<script>alert(1)</script></svg></figure><img src=x onerror=alert(1)><!-- ]]><b>"
    '</style><style>*{display:none}</style>" onload="alert(1)" x="\' onload=\'alert(1)\' '
    "$\\frac{1}{0}$ {{ 7*7 }}{% raw %}&lt;i&gt;",
    "control": "\x1b]8;;http://evil\x07x\x00\x9b2J\u202e\udcff",
    "long": LONG,
}
SCORE = {"rate": 0.5, "low": 0.4, "high": 0.6, "episodes": 10}


def keys_of(value):
    """Names in the mappings of a record; texts that refer to them are theirs."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return set().union(*(keys_of(getattr(value, f.name)) for f in dataclasses.fields(value)))
    if isinstance(value, Mapping):
        return set(value).union(*map(keys_of, value.values()))
    return set().union(*map(keys_of, value)) if isinstance(value, tuple) else set()


def renamed(value, evil, replaced, kept=None):
    """A record with every text in it begun by `evil`, but for those that name an entry of it."""
    kept = {*KINDS} | keys_of(value) - {*DATA_NAMES} if kept is None else kept
    if isinstance(value, str):
        if value in kept:
            return value
        replaced.append(value)
        return evil + value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(
            value,
            **{
                field.name: renamed(getattr(value, field.name), evil, replaced, kept)
                for field in dataclasses.fields(value)
                if field.init
            },
        )
    if isinstance(value, Mapping):
        return {k: renamed(v, evil, replaced, kept) for k, v in value.items()}
    if isinstance(value, tuple) and not isinstance(value, np.ndarray):
        return tuple(renamed(item, evil, replaced, kept) for item in value)
    return value


def arrays_of(value):
    if dataclasses.is_dataclass(value):
        return any(arrays_of(getattr(value, field.name)) for field in dataclasses.fields(value))
    return isinstance(value, np.ndarray)


def open_names(value, evil, names):
    """Likewise, keys of those mappings whose names come from data."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(
            value,
            **{
                f.name: open_names(getattr(value, f.name), evil, names)
                for f in dataclasses.fields(value)
            },
        )
    if isinstance(value, Mapping):
        return {evil + k if k in names else k: open_names(v, evil, names) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(open_names(item, evil, names) for item in value)
    return value


class Seen(HTMLParser):
    """Elements and names of attributes; and the text."""

    def __init__(self, text):
        super().__init__()
        self.kinds, self.words, self.styles = set(), [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.styles += tag == "style"
        self.kinds.add((tag, None))
        for name, value in attributes:
            self.kinds.add((tag, name))
            if name in ("href", "src", "xlink:href") and value:
                assert re.match(LINKS, value), value
            assert not name.startswith("on")

    handle_startendtag = handle_starttag

    def handle_data(self, data):
        self.words.append(data)


KINDS = ("teleport", "colour", "published", "measured", "estimated")
"""Texts that are one of a few words of ours: another one is of another version."""

DATA_NAMES = ("x", "y")
"""Of the records in tests.support.results: state columns, which a data file names."""


def page_of(evil, folder):
    answers, replaced = {}, []
    for name, make in results.ALL.items():
        made = make(horizon=1) if name == "decoding" else make()  # as many as its courses
        record = open_names(renamed(made, evil, replaced), evil, DATA_NAMES)
        save_result(folder / name, record, {})
        found, _ = load_result(folder / name, type(record))
        answers[name] = Answer(found)
    assert replaced or not evil
    return answers


def record(evil, answers, tmp_path):
    told = {
        "recipe": evil,
        "world": evil,
        "data": {"provenance": {"world": evil, "look": evil}},
        "model": {"model": evil, "spec": {"image_size": 64}, "config": {"latent_dim": 8}},
        "split": {"train": [0], "heldout": [1]},
        "training": {"updates": 3, "seed": 0},
    }
    rows = [{**row, "seconds": 1.0} for row in results.ROWS]
    rows[-1]["alarm"] = evil
    counts = {"paper's protocol": {"agent": SCORE}, "strict": {"agent": SCORE}}
    outcomes = [Outcome(evil + "task", {**counts, evil + "counted": {"agent": SCORE}})]
    refused = {**answers, "surprise": Answer(why=evil)}
    return Record(
        tmp_path / (evil[:50].replace("/", "_").replace("\0", "") or "run"),
        told,
        rows,
        refused,
        outcomes,
        None,
        evil + "run",
    )


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """What a page with harmless names consists of."""
    folder = tmp_path_factory.mktemp("sound")
    one = record("", page_of("", folder), folder)
    one = dataclasses.replace(one, metrics=[{**row, "alarm": "a"} for row in one.metrics])
    return Seen(render([one], "lewm report"))


@pytest.mark.filterwarnings("ignore:constrained_layout not applied")
@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("kind", NAMES)
def test_hostile_names_stay_text(kind, sound, tmp_path):
    evil = NAMES[kind]
    assert set(results.ALL) == set(registry.names("analyses")), "all analyses are tried"
    answers = page_of(evil, tmp_path)
    one = record(evil, answers, tmp_path)
    page = render([one], evil)
    seen = Seen(page)
    assert seen.kinds <= sound.kinds, seen.kinds - sound.kinds
    assert seen.styles == sound.styles
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", page)
    page.encode()
    text = "".join(seen.words)  # as a browser reads it
    assert text.count(legible(evil)[:2000]) > 10


@pytest.mark.filterwarnings("ignore:constrained_layout not applied")
@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("kind", ["control"])
def test_figures_are_files_of_their_own(kind, tmp_path):
    for name, answer in page_of(NAMES[kind], tmp_path).items():
        for panel in panels_of(answer.result):
            assert len(slug(panel.title)) <= 120, name
            assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", panel.svg)
            assert "<script" not in panel.svg
            assert panel.svg.count("<svg") == panel.svg.count("</svg>") == bool(panel.svg)
        sections.tell(answer.result)
