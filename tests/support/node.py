"""JavaScript of the lab, run by node without a browser: numbers go in and come out as they are."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

DRIVER = Path(__file__).with_name("lab.mjs")


def _version():
    """Of node, 0 where there is none."""
    if shutil.which("node") is None:
        return 0
    told = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False)
    return int(told.stdout.lstrip("v").partition(".")[0] or 0)


needs_node = pytest.mark.skipif(_version() < 18, reason="node 18 or newer is not installed")


def node(folder, command, settings=None, **arrays):
    """Ask one of the commands in `lab.mjs`.

    Args:
        folder: for the files between the two.
        settings: JSON-ready.
        arrays: of numpy.

    Returns:
        What it answers, arrays among it as arrays of numpy.
    """
    task = {"settings": settings or {}, "arrays": {}}
    for name, array in arrays.items():
        array = np.ascontiguousarray(array)
        (folder / f"{name}.in").write_bytes(array.tobytes())
        task["arrays"][name] = [array.dtype.name, *array.shape]
    (folder / "task.json").write_text(json.dumps(task))
    done = subprocess.run(
        ["node", str(DRIVER), command, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads((folder / "answer.json").read_text())
    for name, dtype in answer.pop("arrays").items():
        answer[name] = np.frombuffer((folder / f"{name}.out").read_bytes(), dtype)
    return answer
