"""The command line: find the command, and put what goes wrong into one paragraph.

Each command is a file in `commands` that is imported only when it is called, so that `lewm --help`
costs next to nothing.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lewm
from lewm import registry

COMMANDS = {
    "quickstart": "from nothing to a planning agent and a report, in two minutes",
    "collect": "let a policy act in a world and record episodes",
    "data": "describe, verify or convert recordings",
    "train": "train a world model on an episode file; the same command continues",
    "fit": "add heads to a run: temporal distance, amortised plans, a map",
    "reproduce": "carry out a named experiment, from its data to its numbers",
    "evaluate": "measure how often a trained model reaches its goals, with intervals and floors",
    "plan": "draw a planned episode as an animation",
    "analyse": "ask what a trained model knows: probes, surprise, geometry, decoder, economy",
    "report": "show runs on one page: success, figures, tables, animations",
    "tune-lambda": "find LeWM's one knob by bisection",
    "study": "ways not to collapse, trained and planned with side by side",
    "economy": "what a frame and a plan cost, beside the models of others",
    "claims": "hold what is claimed of the model against what runs show",
    "import": "make a run of published weights",
    "lab": "a page that runs the model in your browser, to drag its goal and to break its world",
    "export": "write a run's weights in the published form",
    "weights": "obtain the weights of a frozen encoder, such as DINOv2",
    "bench": "compare the speed of our implementations with plain ones",
    "doctor": "say what is installed, what will be used and what is missing",
}

USER_ERROR, INTERRUPTED = 2, 130  # 130: what shells report for a process that Ctrl-C ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for what the user can mend, 130 for Ctrl-C.

    What a user can cause (ValueError, OSError, a package that is missing) is said in one paragraph
    on stderr; `--debug`, anywhere, shows the traceback in its place. Any other exception is a bug
    of ours and keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):  # a terminal may know fewer letters than a name has
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if words else USER_ERROR
    if words[0] == "--version":
        print(f"lewm {lewm.__version__}")
        return 0
    command, told = "lewm", set[str]()

    def warn(message: object, *_: object, **__: object) -> None:
        if str(message) not in told:  # once, however many agents have it to say
            told.add(str(message))
            _say(f"{command}: warning: {message}")

    try:
        name = registry.choose("command", words[0], COMMANDS)
        command = f"lewm {name}"
        _refuse_target(words)
        with warnings.catch_warnings():
            warnings.simplefilter("default" if debug else "ignore")
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = warn
            module = name.replace("-", "_")
            with _sigterm_as_ctrl_c():
                importlib.import_module(f"lewm.cli.commands.{module}").main(words[1:])
    except KeyboardInterrupt as interrupt:
        if debug:
            raise
        _say(f"\n{command}: interrupted. {interrupt or 'Nothing was left half-done.'}")
        return INTERRUPTED
    except (ValueError, OSError, ImportError) as error:
        if debug or (isinstance(error, ImportError) and (error.name or "").startswith("lewm")):
            raise
        _say(f"{command}: {_paragraph(error)}")
        return USER_ERROR
    return 0


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Let what ends a process kindly be like Ctrl-C, in every command: temporary copies go, what is
    whole stays. A process that this one forks ends as it did before."""
    here = os.getpid()

    def interrupt(*_: object) -> None:
        if os.getpid() == here:
            raise KeyboardInterrupt
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if ours:
        signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _refuse_target(words: Sequence[str]) -> None:
    """Refuse a `--json` that cannot be written before the work, not after it; every command that
    has it writes it last."""
    from lewm.files import require_own  # `--help` does without

    for word, following in zip(words, [*words[1:], ""], strict=True):
        flag, _, value = word.partition("=")
        if flag == "--json" and (target := value or following):
            require_own(Path(target))


def _say(text: str) -> None:
    from lewm.cli.console import complain  # only now: rich takes its time

    complain(text)


def _help() -> str:
    rows = [f"  {name:<11} {line}" for name, line in COMMANDS.items()]
    return "\n".join(
        [
            (
                "usage: lewm COMMAND [...]     a world model from pixels: train it, plan with "
                "it, understand it"
            ),
            "",
            *rows,
            "",
            (
                "`lewm COMMAND --help` explains a command. --debug, anywhere, shows tracebacks; "
                "`lewm --version` the version."
            ),
        ]
    )


def _paragraph(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        full = (
            " What was complete is kept: make room, then run the same command again."
            if error.errno == errno.ENOSPC
            else ""
        )
        return f"{where}{error.strerror}.{full}"
    return " ".join(str(error).split())
