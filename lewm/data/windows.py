"""Training windows: which there are, and how they are numbered.

A window is T observations, `frameskip` env steps apart, and the T-1 action blocks between them.
Where a file holds a row per `every` env steps, that is `frameskip / every` rows. `readers` draws
and reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lewm.contracts import Statistics

__all__ = ["Windows", "beginnings"]


class Source(Protocol):
    """What windows need of an opened episode file; see `episodes.Episodes`. Worker processes are
    given copies of it."""

    path: Path
    lengths: np.ndarray
    offsets: np.ndarray
    image_size: int
    every: int
    action_dim: int

    def rows(self, column: str, indices: np.ndarray) -> np.ndarray: ...


class Windows:
    """All windows of some episodes, numbered.

    A window that starts at row s of an episode shows rows s, s + stride, .., s + (T-1) stride, all
    in that episode, where stride = frameskip / every. Its block t holds the `frameskip` actions
    taken from row s + t stride on, side by side, so the last row of an episode, from which no
    action is taken, is seen but never acted from. A window may start at any row: a file with a row
    per `every` steps gives those windows of one with a row per step that start at a multiple of
    `every`.

    Args:
        source: the opened file.
        episode_ids: the training split.
        length: T, frames per window.
        frameskip: env steps from one frame to the next.
        statistics: normalise the actions, once and for all windows.

    Raises:
        ValueError: no episode is long enough, `frameskip` is no multiple of the file's `every`, or
            the statistics are of another action width.
    """

    def __init__(
        self,
        source: Source,
        episode_ids: Sequence[int],
        length: int,
        frameskip: int,
        statistics: Statistics,
    ):
        if length < 2 or frameskip < 1:
            raise ValueError(
                f"a window needs 2 frames or more, 1 step or more apart, got T={length}, "
                f"frameskip={frameskip}."
            )
        if statistics.action_dim != source.action_dim:
            raise ValueError(
                f"{source.path}: expected actions of {statistics.action_dim} numbers, as in the "
                f"statistics, got {source.action_dim}. Use the statistics of this file's training "
                "split."
            )
        if frameskip % source.every:
            raise ValueError(
                f"{source.path}: expected a frameskip that is a multiple of {source.every}, as "
                f"the file holds a row per {source.every} env steps, got {frameskip}. Choose such "
                "a frameskip, or collect with `--every` 1."
            )
        self.source, self.length, self.frameskip = source, length, frameskip
        self.stride = frameskip // source.every  # rows from one frame to the next
        self.span = (
            length - 1
        ) * self.stride  # rows, and rows of actions, from the first frame to the last
        chosen = np.asarray(sorted(episode_ids), np.int64)
        lengths = source.lengths[chosen]
        # The rows of the chosen episodes are renumbered without gaps ("packed"): that is how they
        # lie in memory.
        first = np.cumsum(lengths) - lengths
        self.file_rows = np.repeat(source.offsets[chosen] - first, lengths) + np.arange(
            lengths.sum()
        )
        counts = np.maximum(lengths - self.span, 0)
        if not counts.sum():
            raise ValueError(
                f"{source.path}: expected a training episode of {self.span + 1} observations or "
                f"more (T={length} frames, {self.stride} rows apart), got at most "
                f"{lengths.max(initial=0)}. Record longer ones, or lower T or frameskip."
            )
        self.starts = np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(
            counts.sum()
        )
        actions = torch.from_numpy(source.rows("action", self.file_rows))
        self.row_actions = statistics.normalise_actions(actions)

    def __len__(self) -> int:
        return len(self.starts)

    def frames(self, windows: np.ndarray) -> np.ndarray:
        """(B,) window numbers -> (B, T) packed rows of their observations, oldest first."""
        return self.starts[windows][:, None] + np.arange(0, self.span + 1, self.stride)

    def actions(self, windows: np.ndarray) -> Tensor:
        """(B,) window numbers -> (B, T-1, A) normalised action blocks, each step by step."""
        rows = self.starts[windows][:, None] + np.arange(self.span)
        return self.row_actions[torch.from_numpy(rows)].reshape(len(windows), self.length - 1, -1)


def beginnings(
    source: Source,
    episode_ids: Sequence[int],
    frameskip: int,
    count: int = 16,
    length: int = 8,
    seed: int = 0,
) -> Tensor | None:
    """Read how a few episodes begin, drawn at random: the same paths whenever a training looks at
    them.

    Args:
        episode_ids: to draw from.
        frameskip: env steps from one frame to the next.
        count: episodes at most.
        length: frames of each at most; as many as the shortest of those drawn has.
        seed: of the drawing.

    Returns:
        (n, T, 3, h, w) uint8; None where no episode has three frames, of which a path with a turn
        is made.
    """
    stride = frameskip // source.every
    frames = {int(i): int(source.lengths[i] - 1) // stride + 1 for i in episode_ids}
    chosen = np.random.default_rng(seed).permutation([i for i, n in frames.items() if n >= 3])[
        :count
    ]
    if not len(chosen):
        return None
    steps = np.arange(min(length, *(frames[int(i)] for i in chosen)))
    rows = source.offsets[chosen][:, None] + stride * steps
    return (
        torch.from_numpy(source.rows("pixels", rows.ravel()))
        .permute(0, 3, 1, 2)
        .unflatten(0, rows.shape)
    )
