"""Collection in several processes: the same file bit by bit, and no process or message too many
whatever ends it."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from lewm import registry
from lewm.contracts import Progress
from lewm.data import collecting
from lewm.data.collecting import collect
from lewm.data.episodes import Episodes
from lewm.data.workers import record
from lewm.worlds.kit.opening import open_world
from tests.support.episodes import assert_same


def test_neither_processes_nor_their_death_change_the_data(tmp_path):
    # An episode of this size does not fit in a pipe: who is killed has not handed over what nobody
    # has read yet.
    arguments = {"episodes": 7, "seed": 2, "image_size": 64, "every": 5}
    collect("two-room", tmp_path / "reference.h5", **arguments).close()
    environment = dict(os.environ)

    def kill_one(progress):
        assert len(multiprocessing.active_children()) == 2
        assert dict(os.environ) == environment
        if progress.done == 4:  # the next is the turn of the first process, the older one
            min(multiprocessing.active_children(), key=lambda process: process.pid).kill()

    with pytest.raises(
        ChildProcessError,
        match=r"before its episode did \(exit code -9\)\. The complete episodes are kept",
    ):
        collect(
            "two-room", tmp_path / "a.h5", **arguments, report=kill_one, processes=2, batch_size=1
        )
    assert multiprocessing.active_children() == []
    with Episodes.open(tmp_path / "a.h5") as kept:
        assert 4 <= len(kept) < 7
        assert not kept.complete
        told = [Progress("collect", number, 7) for number in range(len(kept) + 1, 8)]
    collect(
        "two-room",
        tmp_path / "a.h5",
        **arguments,
        report=told.remove,
        processes=2,
    ).close()
    assert told == []
    assert multiprocessing.active_children() == []
    assert_same(tmp_path / "a.h5", tmp_path / "reference.h5")


@pytest.mark.slow
def test_what_goes_wrong_in_a_process_is_raised_here(tmp_path, monkeypatch):
    load = registry.load
    monkeypatch.setattr(
        registry,
        "load",
        lambda kind, name: load(kind, "two-room" if name == "here-alone" else name),
    )
    with pytest.raises(ValueError, match="unknown world 'here-alone'") as raised:
        collect("here-alone", tmp_path / "a.h5", 2, processes=2)
    assert "in __call__" in "".join(raised.value.__notes__)
    assert list(tmp_path.iterdir()) == []


def test_a_slow_world_takes_all_cores_unless_told_otherwise(tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr(
        collecting,
        "record",
        lambda r, tasks, n: used.append((n, len(tasks))) or record(r, tasks, 1),
    )
    monkeypatch.setattr(collecting, "cores", lambda: 3)
    for seconds in (0.01, 0.06, 1.0):  # 101 rows an episode: 1, 6 and 101 s, and five of them
        monkeypatch.setattr(collecting, "_seconds_per_row", lambda *_, seconds=seconds: seconds)
        collect("two-room", tmp_path / f"{seconds}.h5", 5, image_size=16, processes=None).close()
    # processes, and batches: it is the whole that is slow, every process is given some, and slow
    # episodes are recorded one by one
    assert used == [(1, 1), (3, 3), (3, 5)]
    world = open_world("two-room", 1, image_size=16)
    monkeypatch.undo()
    assert 0 < collecting._seconds_per_row(world, "expert", 2) < 0.1


LONG_COLLECTION = """
import sys
from lewm.cli.main import main
more = ["--episodes=100", "--processes=2", "--together=1"]
if __name__ == "__main__":
    sys.exit(main(["collect", "two-room", "--out", sys.argv[1], *more]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_of_the_whole_group_is_one_message_and_no_ending_leaves_a_process(tmp_path, ending):
    """A terminal sends Ctrl-C to the recording processes too; a killed collection takes them
    along."""
    (tmp_path / "long.py").write_text(LONG_COLLECTION)
    command = [sys.executable, str(tmp_path / "long.py"), str(tmp_path / "a.h5")]
    # A background job of a shell is born deaf to Ctrl-C, and so would be what it starts.
    hearing = {
        "start_new_session": True,
        "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    }
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **hearing) as process:
        partial = tmp_path / "a.h5.partial"
        wait_for(lambda: partial.exists() and partial.stat().st_size > 1 << 25)
        if ending == signal.SIGINT:
            os.killpg(process.pid, ending)
        else:
            process.send_signal(ending)
        said = process.stderr.read()
        process.wait()
    wait_for(lambda: group_is_gone(process.pid))
    if ending == signal.SIGINT:
        assert process.returncode == 130
        assert "complete episodes are kept" in said
        assert "Traceback" not in said
        with Episodes.open(tmp_path / "a.h5") as kept:
            kept.verify()


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def group_is_gone(number):
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return True
    return False


NOTEBOOK = """
import lewm
from tests.support.own_worlds import Dot

class Mine(Dot):
    pass

try:
    lewm.collect(Mine, {path!r}, 2, max_steps=4, processes=2)
except ValueError as error:
    print(error)
lewm.collect(Mine, {path!r}, 2, max_steps=4).close()
"""


def test_a_notebook_is_told_what_works_there(tmp_path):
    """What is typed at a prompt lies in no module, so that other processes cannot import it."""
    code = NOTEBOOK.format(path=str(tmp_path / "a.h5"))
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert "defined in a notebook or at a prompt. Move it to a .py file, or use processes=1" in (
        ended.stdout
    )
