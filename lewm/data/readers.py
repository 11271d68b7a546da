"""Batches of training windows: in what order they are drawn, and two ways to read them that give
the same bits.

*Resident* reading decodes all pixels once into memory and gathers. *Streamed* reading fetches
single rows in worker processes, ahead of the training. Which windows update u sees is a pure
function of (seed, u): a training that resumes stores no cursor but its update.
"""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lewm.contracts import Batch, Progress, Report, Statistics, sent, silent
from lewm.data.windows import Source, Windows
from lewm.registry import choose

__all__ = ["Batches", "Resident", "Streamed", "open_windows"]


MEMORY_SHARE = 0.5
"""Of the memory that is free, what resident pixels may take. The rest is for the model, and for
others."""


PREFETCH = 2
"""Batches that each worker of the streamed reader works ahead."""


LOAD_BYTES = 64 << 20
"""Pixels decoded at a time while they are made resident."""


@dataclass(eq=False)
class Batches(ABC):
    """Batches of windows in an order that depends on `seed` alone; how their pixels are read is up
    to the subclass.

    Each epoch visits every window once, in a permutation of its own; a batch may span two epochs.
    Several devices see one global batch: rank r of W takes the r-th of W contiguous shares.

    Args:
        windows: to draw from.
        batch_size: B of the global batch, over all ranks.
        seed: of the order.
        device: where batches are wanted.
        rank, world_size: which share of each batch this process takes.
    """

    windows: Windows
    batch_size: int
    seed: int = 0
    device: torch.device | str = "cpu"
    rank: int = 0
    world_size: int = 1

    mode: ClassVar[str]

    def __post_init__(self) -> None:
        if (
            self.batch_size < 1
            or self.batch_size % self.world_size
            or not 0 <= self.rank < self.world_size
        ):
            raise ValueError(
                f"expected a batch size that {self.world_size} devices can share evenly and a "
                f"rank below that, got {self.batch_size} and rank {self.rank}. Choose a multiple "
                f"of {self.world_size}."
            )
        self.device = torch.device(self.device)

    def __len__(self) -> int:
        """Windows in an epoch."""
        return len(self.windows)

    def draw(self, update: int) -> np.ndarray:
        """(B / world_size,) window numbers that this rank sees in one update."""
        share = self.batch_size // self.world_size
        position = update * self.batch_size + self.rank * share + np.arange(share)
        epoch, place = np.divmod(position, len(self))
        drawn = np.empty(share, np.int64)
        for number in np.unique(epoch):
            inside = epoch == number
            drawn[inside] = _permutation(len(self), self.seed, int(number))[place[inside]]
        return drawn

    def batch(self, update: int) -> Batch:
        """Read this rank's share of the batch of one update, here and now."""
        return Batch(*self.read(update)).to(self.device)

    def read(self, update: int) -> tuple[Tensor, Tensor]:
        """Pixels and actions of that share, wherever reading leaves them."""
        windows = self.draw(update)
        return self._pixels(self.windows.frames(windows)), self.windows.actions(windows)

    def first(self, count: int) -> Iterator[Batch]:
        """The batches of updates 0 to count-1: the same few for whoever needs typical data, such as
        batch-norm statistics."""
        return map(self.batch, range(count))

    @contextmanager
    def between(self, start: int, stop: int) -> Iterator[Iterator[Batch]]:
        """Give the batches of updates start to stop-1, in order, and let nothing keep running once
        the context is left."""
        yield map(self.batch, range(start, stop))

    @abstractmethod
    def _pixels(self, frames: np.ndarray) -> Tensor:
        """(B, T) packed rows -> (B, T, 3, h, w) uint8, contiguous."""


@dataclass(eq=False)
class Resident(Batches):
    """All pixels of the windows' episodes in memory, on the device where they fit there, else on
    the CPU.

    Args:
        report: called while the file is read ("read", in rows).
    """

    report: Report = silent

    mode = "resident"

    @cached_property
    def _store(self) -> Tensor:
        """(rows, 3, h, w) uint8, decoded when the first batch is asked for."""
        source, file_rows = self.windows.source, self.windows.file_rows
        size, total = source.image_size, len(file_rows)
        fits = _pixel_bytes(self.windows) <= _free_device_bytes(self.device) * MEMORY_SHARE
        store = torch.empty(
            (total, 3, size, size), dtype=torch.uint8, device=self.device if fits else "cpu"
        )
        rows = max(1, LOAD_BYTES // (3 * size * size))
        for begin in range(0, total, rows):
            pixels = torch.from_numpy(source.rows("pixels", file_rows[begin : begin + rows]))
            store[begin : begin + rows] = pixels.to(store.device).permute(0, 3, 1, 2)
            self.report(Progress("read", min(begin + rows, total), total))
        return store

    def _pixels(self, frames: np.ndarray) -> Tensor:
        rows = sent(torch.from_numpy(frames.ravel()), self._store.device)
        return self._store.index_select(0, rows).reshape(*frames.shape, *self._store.shape[1:])


@dataclass(eq=False)
class Streamed(Batches):
    """Rows read as they are needed, by worker processes that open the file themselves and work
    `PREFETCH` batches ahead.

    Args:
        workers: processes; fewer are started where shared memory, through which batches arrive,
            does not hold their batches (containers often have only 64 MB). With none, batches are
            read in this process.
    """

    workers: int = 2

    mode = "streamed"

    def __post_init__(self) -> None:
        super().__post_init__()
        windows, share = self.windows, self.batch_size // self.world_size
        ahead = (PREFETCH + 1) * 3 * windows.source.image_size**2 * windows.length * share
        self.workers = min(self.workers, _shared_memory_bytes() // (self.world_size * ahead))

    @contextmanager
    def between(self, start: int, stop: int) -> Iterator[Iterator[Batch]]:
        workers = min(self.workers, stop - start)
        if workers < 1:
            yield map(self.batch, range(start, stop))
            return
        loader = DataLoader(
            _Updates(self),
            batch_size=None,  # an item is a whole batch already
            sampler=range(start, stop),
            num_workers=workers,
            prefetch_factor=PREFETCH,
            pin_memory=torch.device(self.device).type == "cuda",
        )
        # Closing drops the loader's iterator, which ends its workers: they are not left to a
        # garbage collector.
        with closing(self._arriving(loader)) as batches:
            yield batches

    def _arriving(self, loader: DataLoader) -> Generator[Batch, None, None]:
        for arrived in loader:
            if isinstance(arrived, ValueError):
                raise arrived
            yield Batch(*arrived).to(self.device)

    def _pixels(self, frames: np.ndarray) -> Tensor:
        pixels = self.windows.source.rows("pixels", self.windows.file_rows[frames.ravel()])
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).unflatten(
            0, frames.shape
        )


def open_windows(
    source: Source,
    episode_ids: Sequence[int],
    length: int,
    frameskip: int,
    statistics: Statistics,
    *,
    batch_size: int,
    seed: int = 0,
    mode: str = "auto",
    device: torch.device | str = "cpu",
    workers: int = 2,
    rank: int = 0,
    world_size: int = 1,
    report: Report = silent,
) -> Batches:
    """Open the training windows of some episodes for reading.

    Arguments are those of `Windows`, `Batches`, `Resident` and `Streamed`; all modes give
    bit-identical batches.

    Args:
        mode: "resident", "streamed", or "auto": resident where the pixels fit in a share of the
            memory that is free now, each of `world_size` processes holding its own copy.

    Raises:
        ValueError: an unknown mode, windows that do not fit the episodes, or batches that do not
            fit the devices.
    """
    choose("way to read batches", mode, ("auto", "resident", "streamed"))
    windows = Windows(source, episode_ids, length, frameskip, statistics)
    if mode == "auto":
        room = max(_free_ram_bytes() // world_size, _free_device_bytes(device)) * MEMORY_SHARE
        mode = "resident" if _pixel_bytes(windows) <= room else "streamed"
    order = (windows, batch_size, seed, device, rank, world_size)
    return (
        Resident(*order, report=report) if mode == "resident" else Streamed(*order, workers=workers)
    )


class _Updates(Dataset):
    """Update number -> tensors of its batch: what a worker process runs."""

    def __init__(self, reader: Batches):
        self.reader = reader

    def __getitem__(self, update: int) -> tuple[Tensor, Tensor] | ValueError:
        try:
            return self.reader.read(update)
        except (
            ValueError
        ) as error:  # as a value: raised, it would arrive wrapped in the worker's traceback
            return error


@lru_cache(maxsize=2)  # a batch spans at most two epochs, unless an epoch is smaller than a batch
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def _pixel_bytes(windows: Windows) -> int:
    return len(windows.file_rows) * 3 * windows.source.image_size**2


def _free_device_bytes(device: torch.device | str) -> int:
    """Memory of its own that an accelerator could still give; 0 where it has none, or cannot
    tell."""
    return torch.cuda.mem_get_info(device)[0] if torch.device(device).type == "cuda" else 0


def _free_ram_bytes() -> int:
    """Of this machine, or of the container that it is confined to."""
    try:
        meminfo = dict(
            line.split(":")
            for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        )
        free = int(meminfo["MemAvailable"].split()[0]) * 1024
    except (
        OSError,
        KeyError,
        ValueError,
    ):  # no Linux: half of what is built in, as far as that is known
        free = (
            os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
            if hasattr(os, "sysconf")
            else 4 << 30
        )
    with suppress(OSError, ValueError):  # "max" where there is no limit
        group = Path("/sys/fs/cgroup")
        limit, used = (
            int((group / name).read_text(encoding="utf-8"))
            for name in ("memory.max", "memory.current")
        )
        cached = int(
            dict(
                line.split()
                for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines()
            )["file"]
        )
        free = min(free, int(limit) - int(used) + cached)
    return max(free, 0)


def _shared_memory_bytes() -> int:
    """Room in the file system through which Linux processes hand over tensors; elsewhere it has no
    limit of its own."""
    return shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else 1 << 62
