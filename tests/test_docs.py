"""docs/your-own-data.md, word for word: its files are written, its commands are run."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.own_worlds import Dot

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "your-own-data.md").read_text()
PLAIN = TEXT[TEXT.index("## A plain Gymnasium") : TEXT.index("## Your own world")]
WORLD = TEXT[TEXT.index("## Your own world") : TEXT.index("## Your own recordings")]
FEWER = {
    "--episodes 200": "--episodes 6",
    "--episodes 100": "--episodes 20",
    "lewm fit pendulum": "lewm fit pendulum --updates 3",
    "lewm analyse pendulum": "lewm analyse pendulum probing",
    "--model.context 2": "--model.context 2 --training.updates 3",
}
"""What a test changes in the commands: how much is done, never what."""


@pytest.fixture
def installed(tmp_path):
    """The page's package, as pip would lay it out: the module, and the entry point that names
    it."""
    files = dict(re.findall(r"```\w+ file=(\S+)\n(.*?)```", WORLD, re.DOTALL))
    assert set(files) == {"ball-tray/ball_tray.py", "ball-tray/pyproject.toml"}
    site = tmp_path / "site"
    about = site / "ball_tray-1.dist-info"
    about.mkdir(parents=True)
    (site / "ball_tray.py").write_text(files["ball-tray/ball_tray.py"])
    group, name, target = re.search(
        r'entry-points\."([^"]+)"\]\n(\S+) = "([^"]+)"', files["ball-tray/pyproject.toml"]
    ).groups()
    (about / "entry_points.txt").write_text(f"[{group}]\n{name} = {target}\n")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: ball-tray\nVersion: 1\n")
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def sh(block, env, cwd):
    for line in block.strip().splitlines():
        for words, fewer in FEWER.items():
            line = line.replace(words, fewer)
        words = shlex.split(line)
        if words[0] == "lewm":
            words = [sys.executable, "-m", "lewm.cli", *words[1:]]
        if words[0] == "python":
            words, where = [sys.executable, *words[1:], "-q", "-p", "no:cacheprovider"], ROOT
        else:
            where = cwd
        done = subprocess.run(
            words, env=env, cwd=where, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_your_own_world_word_for_word(installed, tmp_path):
    install, contracts, use = re.findall(r"```sh\n(.*?)```", WORLD, re.DOTALL)
    # the fixture stands in for it: no network, no change to this environment
    assert install == "pip install ./ball-tray\n"
    sh(contracts, installed, tmp_path)
    sh(use.replace("lewm evaluate balls", "lewm evaluate balls --episodes 3"), installed, tmp_path)
    assert (tmp_path / "balls" / "model.json").exists()


@pytest.mark.skipif(importlib.util.find_spec("pygame") is None, reason="Pendulum draws with pygame")
def test_a_registered_id_word_for_word(tmp_path):
    (commands,) = re.findall(r"```sh\n(.*?)```", PLAIN, re.DOTALL)
    sh(commands, {**os.environ, "OMP_NUM_THREADS": "1"}, tmp_path)
    assert (tmp_path / "pendulum" / "heads" / "temporal").is_dir()


def test_a_class_and_a_policy_word_for_word(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PLAIN, re.DOTALL)
    names = {"__name__": "docs", "MyEnv": Dot}
    exec(compile(code, "your-own-data.md", "exec"), names)
    assert names["agent"].num_envs == 4
