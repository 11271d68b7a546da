"""Recordings with something wrong, and who must say so."""

from __future__ import annotations

import numpy as np
import pytest

from lewm.data.converting import convert, verify
from tests.support.recordings import MADE


def with_(i, **parts):
    """The usual episodes with parts of episode i exchanged: `pixels`, `actions` or `states`, a
    function of what was there."""
    made = [list(episode) for episode in MADE]
    for name, change in parts.items():
        k = ("pixels", "actions", "states").index(name)
        made[i][k] = change(made[i][k].copy())
    return made


def nan_at(t):
    def change(rows):
        rows[t] = np.nan
        return rows

    return change


def then(write, change):
    def both(folder):
        path = write(folder)
        change(path)
        return path

    return both


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def refused(write, pattern, tmp_path):
    source, out = write(tmp_path), tmp_path / "out" / "out.h5"
    with pytest.raises(ValueError, match=pattern) as error:
        convert(source, out)
    assert str(tmp_path) in str(error.value), "the file is named"
    assert "\n" not in str(error.value), "one paragraph"
    assert not (tmp_path / "out" / "out.h5.partial").exists()
    with pytest.raises(ValueError, match=pattern):
        verify(source)
