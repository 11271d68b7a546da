"""What README and docs show is real: commands parse, imports exist, two pages run as they stand."""

import ast
import doctest
import functools
import importlib
import re
import shlex
from pathlib import Path

import pytest
import tyro

from lewm import registry
from lewm.cli.main import main

ROOT = Path(__file__).parent.parent
EXECUTED = ("README.md", "docs/tutorial.md")
PAGES = (
    *EXECUTED,
    "CONTRIBUTING.md",
    *(
        f"docs/{name}.md"
        for name in ("compare-runs", "gpu", "plan-faster", "published-weights", "reproduce")
    ),
)
"""Whose commands must be of today; those of your-own-data.md are run word for word by test_docs."""

SHELLS = ("sh", "bash", "shell", "console", "")

SMALLER = {
    "reproduce": {"--short": ""},
    "collect": {"--episodes": "24"},
    "train": {"--training.updates": "20", "--training.recalibration": "2"},
    "fit": {"--updates": "20"},
    "evaluate": {"--episodes": "8"},
    "plan": {"--episodes": "1"},
    "bench": {"--quick": ""},
    "quickstart": {"--short": ""},
}
"""Flags with which the pipeline is one of seconds."""


def blocks(text):
    """(language, code) of each fenced block."""
    return re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text):
    """The words after "lewm" of every such command in shell blocks."""
    found = []
    for language, code in blocks(text):
        if language not in SHELLS:
            continue
        for line in code.replace("\\\n", " ").splitlines():
            try:
                words = shlex.split(line.strip().removeprefix("$ "), comments=True)
            except ValueError:  # what a terminal showed, not what was typed
                continue
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            for i, word in enumerate(words):
                if word in ("&&", "|", ";", ">"):
                    words = words[:i]
                    break
            if words and words[0] == "lewm":
                found.append(words[1:])
    return found


def programs(text):
    """Python blocks as plain code; of interactive ones what was typed."""
    parser = doctest.DocTestParser()
    code = [code for language, code in blocks(text) if language in ("python", "py", "pycon")]
    return ["".join(e.source for e in parser.get_examples(c)) if ">>>" in c else c for c in code]


@pytest.fixture(params=PAGES)
def page(request):
    return (ROOT / request.param).read_text()


def test_every_command_parses(page, monkeypatch):
    """With the real parser, and the work itself left out."""
    real = tyro.cli

    def parse(function, **settings):
        @functools.wraps(function)
        def nothing(*_, **__):
            return None

        return real(nothing, **settings)

    monkeypatch.setattr(tyro, "cli", parse)
    assert commands(page), "the page shows no lewm command"
    for words in commands(page):
        shown = shlex.join(["lewm", *words])
        try:
            code = main(words)
        except SystemExit as stop:
            code = stop.code
        assert code in (0, None) or not words, f"{shown} is no command of today"
        for kind, name in names(words):
            registry.choose(f"{kind.removesuffix('s')} in '{shown}'", name, registry.names(kind))


def names(words):
    """(kind, name) of the plug-ins that a command names."""
    if words[:1] == ["collect"] and len(words) > 1 and not words[1].startswith("-"):
        yield "worlds", words[1]
    for kind in ("solvers", "objectives"):
        if (value := flag(words, f"--{kind.removesuffix('s')}")) is not None:
            yield kind, value


def flag(words, name):
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == name:
            return following
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


def with_flags(words, flags):
    """The words with some flags set, in place of what was there; without a value, a switch."""
    kept, value_follows = [], False
    for word in words:
        if value_follows:
            value_follows = False
        elif word in flags:
            value_follows = bool(flags[word])
        elif word.partition("=")[0] not in flags:
            kept.append(word)
    return kept + [part for item in flags.items() for part in item if part]


def test_imports_exist(page):
    for code in programs(page):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name) or importlib.import_module(
                        f"{node.module}.{alias.name}"
                    )


@pytest.mark.slow
@pytest.mark.parametrize("name", EXECUTED)
def test_the_pipeline_and_the_programs_run(name, tmp_path, monkeypatch):
    """Commands in their order, smaller; those whose files no earlier one made only had to parse."""
    page = (ROOT / name).read_text()
    monkeypatch.chdir(tmp_path)
    ran = set()
    for words in commands(page):
        if not words or words[0].startswith("-") or "--help" in words or not inputs_exist(words):
            continue
        small = with_flags(words, SMALLER.get(words[0], {}))
        assert main(small) == 0, shlex.join(["lewm", *small])
        ran.add(words[0])
    wanted = {words[0] for words in commands(page) if words} & {
        "collect",
        "train",
        "evaluate",
        "quickstart",
    }
    assert wanted <= ran, f"nothing in {name} can be run as it stands of: {sorted(wanted - ran)}"
    for code in programs(page):
        exec(compile(code, name, "exec"), {"__name__": "readme"})


def test_a_world_of_ones_own_in_ten_lines(tmp_path, monkeypatch):
    """The Python block, as it stands: a class, then everything with it."""
    monkeypatch.chdir(tmp_path)
    (code,) = programs((ROOT / "README.md").read_text())
    after_the_class = code.partition("\n\n\nlewm.")[2]
    assert len(after_the_class.strip().splitlines()) <= 10
    names = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), names)
    place, goal = names["world"].envs[0].place, names["goal"]
    assert goal.shape == (1, 64, 64, 3)
    assert ((place >= 4) & (place <= 60)).all()
    assert names["world"].spec.name == "readme.Dot"
    (tmp_path / "dots.h5").unlink()
    assert names["lewm"].open_run("runs/dot", world=names["Dot"]).agent().num_envs == 1


def inputs_exist(words):
    inputs = [flag(words, "--data")]
    if words[0] in ("analyse", "evaluate", "fit", "plan", "report"):
        inputs += words[1:2]
    if words[0] == "data":
        inputs += [word for word in words[2:] if not word.startswith("-")]
    return all(Path(path).exists() for path in inputs if path is not None)


# ----------------------------------------------------------------------- the extraction itself

EXAMPLE = """
```bash
make quickstart
$ lewm collect two-room --out a.h5 \\
    --episodes 400   # many
OMP_NUM_THREADS=2 lewm train two-room-tiny --data a.h5 --out run && echo done
```
```python
>>> import lewm
>>> lewm.__name__
'lewm'
```
```text
lewm is not a command here
```
"""


def test_extraction():
    collect = ["collect", "two-room", "--out", "a.h5", "--episodes", "400"]
    assert commands(EXAMPLE) == [
        collect,
        ["train", "two-room-tiny", "--data", "a.h5", "--out", "run"],
    ]
    assert programs(EXAMPLE) == ["import lewm\nlewm.__name__\n"]
    assert with_flags(collect, {"--episodes": "3"}) == [
        "collect",
        "two-room",
        "--out",
        "a.h5",
        "--episodes",
        "3",
    ]
    assert with_flags(["bench", "--quick"], {"--quick": ""}) == ["bench", "--quick"]
    assert with_flags(["collect", "--episodes=400"], {"--episodes": "3"}) == [
        "collect",
        "--episodes",
        "3",
    ]
    assert list(names(["evaluate", "run", "--solver=icem"])) == [("solvers", "icem")]
