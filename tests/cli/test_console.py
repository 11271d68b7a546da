"""What a terminal shows: names and numbers as they are, from one process, and a Ctrl-C that is
never lost."""

import ast
import io
import os
import re
import signal
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path

import h5py
import pytest
from rich.console import Console

import lewm
from lewm.cli import console
from lewm.cli.main import main
from lewm.contracts import Progress
from tests.support import recordings


def test_only_the_first_process_speaks(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    console.say("text")
    console.facts({"a": 1})
    console.table(("a",), [("b",)])
    console.alarm("red")
    with console.Bars() as bars:
        bars.update(Progress("stage", 1, 1))
    assert capsys.readouterr() == ("", "")


def test_facts_join_nested_names(capsys):
    console.facts(
        {"success": {"rate": 0.12345, "steps": None}, "names": ["x", 2.0], "none": []},
        title="Result",
    )
    lines = [line.split("  ", 2)[1:] for line in capsys.readouterr().out.splitlines()[1:]]
    assert [(name, value.strip()) for name, value in lines] == [
        ("success rate", "0.1235"),
        ("success steps", "-"),
        ("names", "x, 2"),
        ("none", "-"),
    ]


def test_bars_keep_note_and_alarm_until_the_next_ones(capsys):
    with console.Bars() as bars:
        bars.update(Progress("train", 1, 3, "loss 2", "collapsed"))
        bars.update(Progress("train", 3, 3))
        bars.update(Progress("evaluate", 5, 5))
    assert capsys.readouterr().err.splitlines() == ["train: 3/3 loss 2 collapsed", "evaluate: 5/5"]


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_swallowed_ctrl_c_is_raised_again(request):
    # a shell has its background jobs ignore it
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, inherited))

    class Swallows:
        def __del__(self):
            # in this very thread: other libraries may have started more
            signal.raise_signal(signal.SIGINT)

    before, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook
    with console.Bars() as bars:
        bars.update(Progress("collect", 1, 2))
        Swallows()
        with pytest.raises(KeyboardInterrupt):
            bars.update(Progress("collect", 2, 2))
    assert (signal.getsignal(signal.SIGINT), sys.unraisablehook) == (before, hook)


def test_what_else_goes_wrong_in_a_destructor_is_still_shown(monkeypatch):
    class Broken:
        def __del__(self):
            raise ValueError("not ours")

    shown = []
    monkeypatch.setattr(
        sys, "unraisablehook", lambda unraisable: shown.append(str(unraisable.exc_value))
    )
    with console.Bars():
        Broken()
    assert shown == ["not ours"]


NAME = "[bold]walks[/b] [red].h5"


def test_square_brackets_are_no_markup(monkeypatch, capsys):
    console.say(NAME)
    console.alarm(NAME)
    console.facts({NAME: NAME}, title=NAME)
    console.table((NAME,), [(NAME,)], title=NAME)
    said = capsys.readouterr()
    assert said.out.count(NAME) == 7
    assert said.err.count(NAME) == 1

    terminal = Console(file=io.StringIO(), force_terminal=True, width=160, color_system=None)
    monkeypatch.setattr(console, "_console", lambda stderr=False: terminal)
    with console.Bars() as bars:
        bars.update(Progress(NAME, 1, 2, NAME, NAME))
    assert terminal.file.getvalue().count(NAME) % 3 == 0
    assert terminal.file.getvalue().count(NAME) >= 3


HOSTILE = (
    "\x1b]8;;http://evil\x07x\x1b[2J\x9b1A\x9d0;title\x9c\u202egnp.exe\u2066\r\x08\x7f\x00\udcff"
)


def controls(text):
    """What may not reach a terminal, line breaks apart."""
    return [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c != "\n"]


def test_nothing_from_a_file_steers_the_terminal(monkeypatch, capsys):
    """Through every function of the console, and the bars on a terminal and in a log."""
    console.say(HOSTILE)
    console.alarm(HOSTILE)
    console.complain(HOSTILE)
    console.facts({HOSTILE: HOSTILE, "of": {HOSTILE: [HOSTILE]}}, title=HOSTILE)
    console.table((HOSTILE, "b\nb"), [(HOSTILE, "b\nb")], title=HOSTILE)
    with console.Bars() as bars:
        bars.update(Progress(HOSTILE, 1, 1, HOSTILE, HOSTILE))
    said = capsys.readouterr()
    for text in (said.out, said.err):
        assert not controls(text)
        assert r"\x1b]8;;http://evil\x07x\x1b[2J\x9b1A" in text
        assert r"\u202egnp.exe\u2066\r\x08\x7f\x00\udcff" in text
    assert said.out.count(r"b\nb") == 2, "a name of two lines is one cell"
    assert {"say", "alarm", "complain", "facts", "table", "Bars", "number"} == set(console.__all__)

    terminal = Console(file=io.StringIO(), force_terminal=True, width=500, color_system=None)
    monkeypatch.setattr(console, "_console", lambda stderr=False: terminal)
    console.say(HOSTILE)
    with console.Bars() as bars:
        bars.update(Progress(HOSTILE, 1, 2, HOSTILE, HOSTILE))
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", terminal.file.getvalue())  # rich's own
    assert not controls(drawn)
    assert drawn.count(r"\x1b[2J") >= 4


@pytest.mark.parametrize(
    "error",
    [
        ValueError(HOSTILE),
        OSError(2, HOSTILE, HOSTILE),
        ImportError(HOSTILE),
        KeyboardInterrupt(HOSTILE),
    ],
    ids=lambda error: type(error).__name__,
)
def test_nothing_in_an_error_or_a_warning_steers_the_terminal(error, monkeypatch, capsys):
    def fail(words):
        warnings.warn(HOSTILE, stacklevel=1)
        raise error

    monkeypatch.setattr("lewm.cli.commands.doctor.main", fail)
    assert main(["doctor"]) in (2, 130)
    said = capsys.readouterr().err
    assert not controls(said)
    assert said.count(r"\x1b[2J") >= 2


def test_only_the_console_draws_and_prints():
    """In the command line too: one door."""
    folder = Path(console.__file__).parent
    speaking = set()
    for path in folder.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "print",
                "sys.stdout.write",
                "sys.stderr.write",
            ):
                speaking.add(path.relative_to(folder).as_posix())
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rich"):
                speaking.add(path.relative_to(folder).as_posix())
    # our own help and version, without a word from a file
    assert speaking == {"console.py", "main.py"}


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_terminal_of_few_letters_is_told_every_name(encoding, tmp_path):
    """`LC_ALL=C` without UTF-8: what cannot be written is spelt out, and nothing fails."""
    path = recordings.hdf5(tmp_path / "a.h5", recordings.MADE)
    with h5py.File(path, "r+") as file:
        file.attrs["world"] = "wält-日"
    few = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    if encoding == "utf-8":
        few = {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))}
    package = Path(lewm.__file__).parent.parent
    environment = {**kept, **few, "PYTHONPATH": os.pathsep.join([str(package), *sys.path[1:]])}

    def said(*words):
        done = subprocess.run(
            [sys.executable, "-m", "lewm.cli", *words], capture_output=True, env=environment
        )
        assert done.returncode == (2 if words[-1].endswith(".no") else 0), done.stderr
        return (done.stdout + done.stderr).decode(encoding)

    assert "say what is installed" in said("--help")
    name = "wält-日" if encoding == "utf-8" else r"w\xe4lt-\u65e5"
    assert name in said("data", "info", str(path))
    assert "got no such file" in said("data", "info", str(tmp_path / "nö.no"))
