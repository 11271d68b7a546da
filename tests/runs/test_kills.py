"""A kill at every single step: run again, the result is that of nobody killed, and nothing is left
over.

A child process carries out some writing and kills itself before its nth change of the file system,
for every n there is; the default suite tries each third. No clock is asked.
"""

import itertools
import os
import shutil
import signal
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from lewm import registry
from lewm.contracts import DataSpec, Statistics
from lewm.data.episodes import Episode, Episodes, Provenance
from lewm.data.writing import EpisodeWriter
from lewm.files import write_json
from lewm.planning.heads.temporal import TemporalConfig
from lewm.runs import checkpoints
from lewm.runs.answers import _ask as ask_one
from lewm.runs.answers import analyse, load_result
from lewm.runs.heads import save_head
from lewm.runs.pieces import join_pieces, save_pieces
from lewm.runs.results import Result
from lewm.runs.run import open_run
from tests.support.models import SMALLEST as CONFIG

CHANGING = ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync", "write", "truncate", "fchmod")
CHANGING += ("posix_fallocate",)


def model(seed=0):
    torch.manual_seed(seed)
    return CONFIG.build(DataSpec(16, 5, Statistics((0.5,) * 3, (0.3,) * 3, (0.1,), (1.0,))))


def die_at(number):
    """Kill this process before its `number`th change of a file's name, content or state on disk."""
    left = iter(range(number - 1))

    def dying(change):
        def carry_out(*words, **more):
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*words, **more)

        return carry_out

    opened = os.open

    def opening(path, flags, *words, **more):
        if flags & os.O_CREAT and next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return opened(path, flags, *words, **more)

    os.open = opening
    for name in CHANGING:
        setattr(os, name, dying(getattr(os, name)))


def killed(action, folder, number):
    """Carry out in a child that dies at a step; False once there are fewer steps."""
    child = os.fork()
    if not child:
        status = 1
        try:
            die_at(number)
            action(folder)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), "the action failed by itself"
    return status == signal.SIGKILL


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


STRIDES = pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.slow)])


def assert_every_kill_is_mended(action, start, tmp_path, stride, content=tree):
    """Returns how many steps there are, or up to two more.

    Args:
        action: folder -> None; what is done.
        start: folder that it is done to a copy of.
        content: folder -> what must be equal.
    """
    undisturbed = shutil.copytree(start, tmp_path / "undisturbed")
    action(undisturbed)
    for number in itertools.count(1, stride):
        folder = shutil.copytree(start, tmp_path / f"killed {number}")
        again = killed(action, folder, number)
        action(folder)
        assert content(folder) == content(undisturbed), f"after a kill at step {number}"
        if not again:
            return number
        shutil.rmtree(folder)


@pytest.fixture
def start(tmp_path):
    run = tmp_path / "start"
    own = model()
    checkpoints.save(run, 1, own)
    save_head(
        run, "temporal", TemporalConfig(hidden_dim=8, metric_dim=4, oneway_dim=4).build(8, 5), {}
    )
    write_json(
        run / checkpoints.EXPERIMENT,
        {"model": checkpoints.describe_model(own), "data_path": None, "imported": {}},
    )
    return run


@STRIDES
def test_a_checkpoint(stride, start, tmp_path):
    def save(run):
        with checkpoints.held(run):
            done = int(checkpoints.latest(run).name)
            log = checkpoints.Log(run, done)
            for update in range(done + 1, 3):
                log.write({"update": update})
                own = model(update)
                optimiser = torch.optim.AdamW(own.parameters())
                checkpoints.save(run, update, own, optimiser, {"seconds": 0.0})

    assert assert_every_kill_is_mended(save, start, tmp_path, stride) > 25
    assert [p.name for p in (tmp_path / "undisturbed/checkpoints").iterdir()] == ["00000002"]


@STRIDES
def test_a_head(stride, start, tmp_path):
    def refit(run):
        with checkpoints.held(run):
            torch.manual_seed(1)
            head = TemporalConfig(hidden_dim=8, metric_dim=4, oneway_dim=4).build(8, 5)
            save_head(run, "temporal", head, {"metrics": {"loss": 0.5}})

    assert assert_every_kill_is_mended(refit, start, tmp_path, stride) > 15


def test_the_head_that_was_there_is_never_lost(start, tmp_path):
    """A run that nobody fits again has the old head, or the new one, whenever it is next held."""

    def refit(run):
        save_head(
            run,
            "temporal",
            TemporalConfig(hidden_dim=8, metric_dim=4, oneway_dim=4).build(8, 5),
            {},
        )

    for number in itertools.count(1):
        run = shutil.copytree(start, tmp_path / str(number))
        again = killed(refit, run, number)
        with checkpoints.held(run):
            pass
        assert [path.name for path in (run / "heads").iterdir()] == ["temporal"]
        assert (run / "heads/temporal/head.json").exists()
        if not again:
            break


@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_pieces_and_the_run_made_of_them(stride, start, tmp_path):
    whole = shutil.copytree(start, tmp_path / "whole")

    def there_and_back(folder):
        save_pieces(whole, folder / "pieces", limit=90_000)
        join_pieces(folder / "pieces", folder / "run")

    def content(folder):
        found = tree(folder)
        for name in found:
            if name.startswith("pieces/"):  # its header is in no order
                tensors, told = checkpoints.read_safetensors(folder / name)
                found[name] = {n: t.numpy().tobytes() for n, t in tensors.items()} | told
        return found

    (tmp_path / "empty").mkdir()
    assert (
        assert_every_kill_is_mended(there_and_back, tmp_path / "empty", tmp_path, stride, content)
        > 20
    )


@dataclass(frozen=True)
class Counted(Result):
    numbers: np.ndarray
    name: ClassVar[str] = "counting"

    def tables(self):
        return {}


@dataclass(frozen=True)
class Counting:
    size: int = 3
    name: ClassVar[str] = "counting"
    question: ClassVar[str] = "How many?"
    result: ClassVar[type[Result]] = Counted

    def run(self, run, progress=lambda *_: None):
        return Counted(np.arange(self.size))


@STRIDES
@pytest.mark.parametrize("asked_before", ["otherwise", "without figures"])
def test_an_answer_and_its_figures(stride, asked_before, small_run, tmp_path, monkeypatch):
    """One that is there already, of other settings, is replaced; one without figures is drawn."""
    names = registry.names
    monkeypatch.setattr(
        registry, "names", lambda kind: ["counting"] if kind == "analyses" else names(kind)
    )
    load = registry.load
    monkeypatch.setattr(
        registry, "load", lambda kind, name: Counting if kind == "analyses" else load(kind, name)
    )

    def draw(result, folder):
        for number in result.numbers[-2:]:
            write_json(folder / f"{number}.svg", {"of": int(result.numbers.sum())})

    start = shutil.copytree(small_run, tmp_path / "start")
    # all copies of the run are asked about the very same model and episodes
    opened = open_run(start)

    def ask(run, draw=draw, **settings):
        analyse(replace(opened, path=run), settings={"counting": settings}, draw=draw)

    if asked_before == "otherwise":
        ask(start, size=5)
    if asked_before == "without figures":
        ask(start, draw=None)

    def content(run):
        found = tree(run / "analyses")
        for name in found:  # how long it took
            if name.endswith("result.json"):
                found[name] = b"".join(
                    line for line in found[name].split(b"\n") if b"seconds" not in line
                )
        return found, sorted(path.name for path in run.iterdir())

    assert assert_every_kill_is_mended(ask, start, tmp_path, stride, content) > 10
    opened.episodes.close()


def test_an_answer_that_is_being_replaced_is_no_answer(small_run, tmp_path):
    """Else new figures would stand beside old numbers."""
    run = shutil.copytree(small_run, tmp_path / "run")
    folder = run / "analyses" / "counting"

    def draw(result, where):
        assert load_result(where, Counted) is None
        drawn.append(where)

    drawn = []
    opened = open_run(run)
    for _ in range(2):
        ask_one(Counting(), opened, folder, {}, lambda *_: None, draw)
        assert load_result(folder, Counted) is not None
    opened.episodes.close()
    assert len(drawn) == 2


@STRIDES
def test_an_episode_file(stride, tmp_path):
    """Interrupted after two of three episodes, and gone on with."""
    provenance = Provenance(world="w", policy="p", seed=0, requested_episodes=3)

    def episode(number):
        generator = np.random.default_rng(number)
        actions = generator.normal(size=(4, 2)).astype(np.float32)
        actions[-1] = np.nan
        return Episode(generator.integers(256, size=(4, 8, 8, 3), dtype=np.uint8), actions, None)

    def collect(folder, until=3):
        with EpisodeWriter(folder / "a.h5", provenance) as writer:
            for number in range(len(writer), until):
                writer.append(episode(number))

    def content(folder):
        import h5py

        with h5py.File(folder / "a.h5") as file:
            rows = {name: column[:].tobytes() for name, column in file.items()}
            complete = bool(file.attrs["complete"])
        with Episodes.open(folder / "a.h5") as episodes:
            episodes.verify()
        return rows, complete, sorted(path.name for path in folder.iterdir())

    # the last episode is in the file, and nothing but the mark is missing
    lacking = tmp_path / "lacking"
    lacking.mkdir()
    child = os.fork()
    if not child:
        writer = EpisodeWriter(lacking / "a.h5", provenance)
        for number in range(3):
            writer.append(episode(number))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    collect(lacking)
    assert content(lacking)[1] is True

    for begun in (0, 2):
        start = tmp_path / f"begun {begun}"
        start.mkdir()
        if begun:
            collect(start, begun)
            assert content(start)[1] is False
        (tmp_path / str(begun)).mkdir()
        assert (
            assert_every_kill_is_mended(collect, start, tmp_path / str(begun), stride, content) > 3
        )
        assert content(tmp_path / str(begun) / "undisturbed")[1] is True
