"""One writer: a second command on a run, a folder or a file is told who writes there, and does
nothing."""

import multiprocessing
import os
import re
import shutil
import signal
from functools import partial

import pytest

from lewm.cli.main import main
from lewm.files import LOCK
from tests.support.project import SIZE, train_command


def stuck(tell, *_, **__):
    tell("writing")
    signal.pause()


def in_the_midst(words, where, tell):
    """Carry out a command up to where it writes, and stay there."""
    module, _, name = where.rpartition(":")
    owner = __import__(module, fromlist=["_"])
    *parents, name = name.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    setattr(owner, name, partial(stuck, tell))
    main(words)


def busy(words, where):
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=in_the_midst, args=(words, where, theirs.send))
    process.start()
    theirs.close()
    assert ours.recv() == "writing"
    return process


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if LOCK not in path.name
    }


APPEND = "lewm.data.writing:EpisodeWriter.append"
COMMANDS = {
    "collect": (
        ["collect", "two-room", "--out", "{a}.h5", "--episodes=2", f"--image-size={SIZE}"],
        APPEND,
    ),
    "convert": (["data", "convert", "{data}", "--out", "{a}.h5"], APPEND),
    "train": (None, "lewm.runs.checkpoints:Log.write"),
    "fit": (["fit", "{run}", "temporal", "--updates=1"], "lewm.training.fit:save_head"),
    "analyse": (["analyse", "{run}", "economy"], "lewm.runs.answers:_ask"),
    "import": (
        ["import", "{published}", "--out", "{a}", "--action-mean=0,0", "--action-std=1,1"],
        "lewm.runs.checkpoints:save",
    ),
    "quickstart": (
        ["quickstart", "--out", "{a}", "--short"],
        "lewm.experiments.quickstart:carry_out",
    ),
    "reproduce": (
        ["reproduce", "two-room-tiny", "--out", "{a}", "--short"],
        "lewm.experiments.reproduce:carry_out",
    ),
    "report": (["report", "{run}", "--out", "{a}.html"], "lewm.cli.commands.report:render"),
}
PAIRS = [(name, name) for name in COMMANDS if name != "import"]
PAIRS += [("fit", "train"), ("train", "fit"), ("train", "analyse"), ("analyse", "fit")]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_second_writer_is_told_who_the_first_one_is(
    first, second, small_data, small_run, tmp_path, capsys
):
    run = shutil.copytree(small_run, tmp_path / "run")
    if first == "train":
        shutil.rmtree(run / "checkpoints")
    places = {"a": tmp_path / "a", "run": run, "data": small_data}

    def words(name):
        if name == "train":
            return train_command(small_data, run)
        return [word.format(**places) for word in COMMANDS[name][0]]

    process = busy(words(first), COMMANDS[first][1])
    try:
        before = tree(tmp_path)
        if (first, second) in (("train", "fit"), ("train", "analyse")):
            shutil.copytree(small_run / "checkpoints", run / "checkpoints")  # something to open
            before = tree(tmp_path)
        assert main(words(second)) == 2
        assert tree(tmp_path) == before, "the second one has changed nothing"
        said = capsys.readouterr().err
        assert re.search(
            rf"expected to be its only writer, got process {process.pid} on \S+ \(.*\), which has "
            r"held it since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\. Wait for it, stop it, or name",
            said,
        ), said
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    if first in ("collect", "report"):  # the cheap ones: a kill holds nothing
        assert main(words(second)) == 0
        assert not [path for path in tmp_path.rglob("*") if LOCK in path.name]
