"""Any command, interrupted at any moment, and run again: as if nothing had happened.

`LEWM_KILLS=50 pytest -m slow tests/kills` tries 50 moments of each command; the default is a few.
"""

import io
import os
import random
import tarfile
import time

import pytest
import zstandard

from tests.kills.harness import WAYS, Command, contents, differences, lay_out, run, trial
from tests.support import recordings

MOMENTS = int(os.environ.get("LEWM_KILLS", "2"))
SEED = int(os.environ.get("LEWM_KILLS_SEED", "0"))

SMALL = (
    "--image-size=32",
    "--training.updates=10",
    "--training.batch-size=4",
    "--training.log-every=2",
    "--training.checkpoint-every=2",
    "--training.recalibration=1",
    "--model.encoder-width=16",
    "--model.encoder-depth=1",
    "--model.predictor-depth=1",
    "--model.sigreg-slices=32",
)
COLLECT = Command(
    ("collect", "two-room", "--out=a.h5", "--episodes=20", "--image-size=32"), (), ("a.h5",)
)
TRAIN = Command(("train", "two-room-tiny", "--data=a.h5", "--out=run", *SMALL), ("a.h5",), ("run",))
FIT = Command(("fit", "run", "--updates=20"), ("a.h5", "run"), ("run",))
ANALYSE = Command(  # those that measure no time
    ("analyse", "run", "planning", "surprise"), ("a.h5", "run"), ("run",)
)
REPORT = Command(("report", "run", "--out=page.html"), ("a.h5", "run"), ("page.html", "run"))
CONVERT = Command(
    ("data", "convert", "recordings.tar.zst", "--out=b.h5"), ("recordings.tar.zst",), ("b.h5",)
)
QUICKSTART = Command(("quickstart", "--short", "--out=q"), (), ("q",))
COMMANDS = {
    "collect": COLLECT,
    "train": TRAIN,
    "fit": FIT,
    "analyse": ANALYSE,
    "report": REPORT,
    "convert": CONVERT,
    "quickstart": QUICKSTART,
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """What the commands start from, made by the commands before them."""
    folder = tmp_path_factory.mktemp("inputs") / "all"
    folder.mkdir()
    for command in (COLLECT, TRAIN):
        assert run(command.words, folder) == 0
    made = recordings.episodes()
    source = recordings.lerobot(folder / "recordings", made, "v3.0")
    archive(source, folder / "recordings.tar.zst")
    return folder


def archive(source, out):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(source, source.name)
    out.write_bytes(zstandard.ZstdCompressor().compress(packed.getvalue()))


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_interrupted_at_any_moment_and_run_again(name, inputs, tmp_path):
    command = COMMANDS[name]
    alone = lay_out(command, inputs, tmp_path / "alone" / "here")
    began = time.monotonic()
    assert run(command.words, alone) == 0, (alone.parent / "here.log").read_text()
    lasting, expected = time.monotonic() - began, contents(alone)
    draw, failed, cut = random.Random(f"{name} {SEED}"), [], 0
    for number in range(MOMENTS):
        for way in WAYS if number * 10 < MOMENTS or MOMENTS < 10 else ("kill",):
            interrupt = (way, draw.uniform(0, lasting))
            first, folder = trial(command, inputs, tmp_path / f"{number}-{way}" / "here", interrupt)
            cut += first != 0
            if told := differences(contents(folder), expected):
                failed.append((interrupt, told))
    print(f"{name}: {lasting:.2f} s; {cut} interruptions met it at work; {len(failed)} failed")
    assert not failed, failed
