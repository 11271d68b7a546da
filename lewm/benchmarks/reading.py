"""Reading training windows: single rows, and pixels held in memory, against the published way.

The published way reads the whole contiguous range of a window, T x frameskip rows, and keeps every
`frameskip`-th. Batches are those of the paper's training (T=4, frameskip 5; here 32 windows) in
random order, of Two-Room at 96 px, from a file that the operating system has cached: a cold disk
only widens the gap. The two alternate (A B A B ...) in one run and the ratio is the median of the
pairwise ratios, so that another process which slows the machine down for a while slows both.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from lewm.data import split
from lewm.data.collecting import collect
from lewm.data.readers import Batches, Resident, Streamed
from lewm.data.soundness import open_hdf5
from lewm.data.windows import Windows

IMAGE_SIZE, LENGTH, FRAMESKIP, BATCH = 96, 4, 5, 32


class Published(Streamed):
    """Read all rows of each window in one slice, then take every `frameskip`-th."""

    file: h5py.File | None = None

    def _pixels(self, frames: np.ndarray) -> Tensor:
        self.file = self.file or open_hdf5(self.windows.source.path)
        pixels = self.file["pixels"]
        found = np.empty((*frames.shape, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        for window, first in zip(found, self.windows.file_rows[frames[:, 0]]):
            window[:] = pixels[first : first + LENGTH * FRAMESKIP][::FRAMESKIP]
        return torch.from_numpy(np.ascontiguousarray(found.transpose(0, 1, 4, 2, 3)))


def run(quick: bool = False) -> dict[str, Any]:
    """Compare the ways of reading; `quick` takes a smaller file and fewer pairs.

    Returns:
        `rows` of {case, ours, reference, unit, ratio}; ratio = ours / reference, above 1 if ours is
        faster.
    """
    episodes, pairs, updates = (12, 2, 5) if quick else (60, 7, 20)
    rows = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for compression in (None, "blosc"):
                path = Path(folder) / f"{compression}.h5"
                with collect(
                    "two-room", path, episodes, image_size=IMAGE_SIZE, compression=compression
                ) as file:
                    stats = split.statistics(file, range(episodes), max_frames=64)
                    windows = Windows(file, range(episodes), LENGTH, FRAMESKIP, stats)
                    for what, ours, reference in (
                        (
                            "resident",
                            Resident(windows, BATCH),
                            Published(windows, BATCH, workers=0),
                        ),
                        (
                            "streamed, no worker",
                            Streamed(windows, BATCH, workers=0),
                            Published(windows, BATCH, workers=0),
                        ),
                        (
                            "streamed, 2 workers",
                            Streamed(windows, BATCH, workers=2),
                            Published(windows, BATCH, workers=2),
                        ),
                    ):
                        case = f"{what}, {'compressed' if compression else 'uncompressed'}"
                        rows.append(_compare(case, ours, reference, pairs, updates))
    finally:
        torch.set_num_threads(threads)
    what = (
        f"windows of {LENGTH} frames, {FRAMESKIP} steps apart, {IMAGE_SIZE} px, batches of "
        f"{BATCH}, one thread a process"
    )
    return {"name": "reading", "what": what, "rows": rows}


def _compare(
    case: str, ours: Batches, reference: Batches, pairs: int, updates: int
) -> dict[str, Any]:
    assert torch.equal(ours.batch(0).pixels, reference.batch(0).pixels)
    speeds = np.array(
        [[_speed(reader, updates) for reader in (ours, reference)] for _ in range(pairs)]
    )
    return {
        "case": case,
        "ours": round(float(np.median(speeds[:, 0]))),
        "reference": round(float(np.median(speeds[:, 1]))),
        "unit": "windows/s",
        "ratio": round(statistics.median(speeds[:, 0] / speeds[:, 1]), 2),
    }


def _speed(reader: Batches, updates: int) -> float:
    """Windows per second once batches have begun to come; the start of workers is no matter of
    reading."""
    with reader.between(0, updates + 5) as batches:
        for _ in range(5):
            next(batches)
        start = time.perf_counter()
        for _ in batches:
            pass
        return updates * BATCH / (time.perf_counter() - start)


if __name__ == "__main__":
    print(json.dumps(run(quick="--quick" in sys.argv), indent=2))
