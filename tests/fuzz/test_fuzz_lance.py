"""Lance tables, damaged: their index holds, and every column has all rows, or they are refused."""

from pathlib import Path

import lance
import numpy as np
import pytest

from lewm.data.formats.lance import Lance
from tests.fuzz.harness import fuzz
from tests.support.recordings import MADE, encoded, lance_table


def contents(path: Path):
    """All that a conversion takes."""
    source = Lance(path)
    read = [source.read(i, list(source.columns)) for i in range(len(source.lengths))]
    pictures = {
        camera: sum(len(list(source.pictures(i, camera))) for i in range(len(source.lengths)))
        for camera in source.cameras
    }
    return {
        "lengths": source.lengths,
        "rows": [sum(len(part[name]) for part in read) for name in source.columns],
        "pictures": list(pictures.values()),
    }


def rows_hold(found, sound):
    """Names of columns are payload too; what is there has all rows."""
    if not np.array_equal(found["lengths"], sound["lengths"]):
        return f"lengths {found['lengths']}, were {sound['lengths']}"
    counts = {*found["rows"], *found["pictures"]}
    return "" if counts <= {int(sound["lengths"].sum())} else f"{found}"


@pytest.fixture
def sound(tmp_path):
    small = [(p[:, ::4, ::4], a, s) for p, a, s in MADE]
    # in one version: without its last one, a table is the sound table that it was before
    lance.write_dataset(
        lance_table(small, encoded), str(tmp_path / "t.lance"), max_rows_per_file=11
    )
    return tmp_path / "t.lance"


def test_tables_are_refused_or_hold_all_rows(sound, tmp_path):
    # the library asks for room it never touches, and ends the process where that is refused
    fuzz(contents, [sound], tmp_path, same=rows_hold, memory=64 << 30)
