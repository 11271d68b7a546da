"""Which episodes training may see, and the statistics of those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lewm.contracts import Statistics
from lewm.data.episodes import Episodes, unfit

__all__ = ["Split", "split", "statistics"]


@dataclass(frozen=True)
class Split:
    """Episode numbers, ascending, that training may see and that it never does."""

    train: tuple[int, ...]
    heldout: tuple[int, ...]


def split(num_episodes: int, holdout: float = 0.1, seed: int = 0) -> Split:
    """Hold out a share of the episodes, at least one; fewer than two, or a share outside (0, 1),
    raise ValueError.

    Whole episodes, because frames of one episode are near-duplicates: splitting rows would test on
    the training set.
    """
    if num_episodes < 2 or not 0 < holdout < 1:
        raise ValueError(
            "a split needs at least 2 episodes and a held-out share between 0 and 1, got "
            f"{num_episodes} episodes and holdout={holdout}. Collect more episodes, or change the "
            "share."
        )
    count = min(max(1, round(holdout * num_episodes)), num_episodes - 1)
    order = np.random.default_rng(seed).permutation(num_episodes).tolist()
    return Split(train=tuple(sorted(order[count:])), heldout=tuple(sorted(order[:count])))


def statistics(
    episodes: Episodes, episode_ids: Sequence[int], max_frames: int = 2048, seed: int = 0
) -> Statistics:
    """Normalisation statistics of some episodes, which must be the training split: held-out data
    would leak through them.

    Actions are counted per dimension of one env action, however many of them a row holds; pixels on
    a seeded sample of `max_frames`, of which a few hundred settle three digits. A dimension that
    never varies gets a std of 1, so that normalising it gives 0 and not noise; its mean, its least
    and its largest value are one number, the recorded one.
    """
    rows = np.concatenate(
        [
            np.arange(episodes.offsets[i], episodes.offsets[i] + episodes.lengths[i])
            for i in episode_ids
        ]
    )
    sample = np.random.default_rng(seed).permutation(rows)[:max_frames]
    # Bytes are counted, not summed: exact, whatever the number of frames, and in little memory.
    counts = np.zeros((3, 256))
    for chunk in np.array_split(np.sort(sample), max(1, len(sample) // 64)):
        pixels = episodes.pixels_at(chunk).reshape(-1, 3)
        counts += [np.bincount(pixels[:, channel], minlength=256) for channel in range(3)]
    levels = np.arange(256) / 255
    mean = counts @ levels / counts.sum(axis=1)
    std = np.sqrt((counts * (levels - mean[:, None]) ** 2).sum(axis=1) / counts.sum(axis=1))
    actions = (
        np.concatenate([episodes.actions(i) for i in episode_ids])
        .astype(np.float64)
        .reshape(-1, episodes.action_dim)
    )
    actions = actions[np.isfinite(actions).all(axis=1)]
    if not len(actions):
        raise unfit(
            episodes.path,
            "actions in the training episodes",
            "none",
            "Record episodes of two observations or more",
        )
    action_std = actions.std(axis=0)
    still = action_std < 1e-6
    recorded = {"mean": actions.mean(axis=0), "low": actions.min(axis=0)}
    recorded["high"] = actions.max(axis=0)
    recorded = {name: np.where(still, actions[0], each) for name, each in recorded.items()}
    return Statistics(
        pixel_mean=tuple(mean.tolist()),
        pixel_std=tuple(np.where(std < 1e-6, 1.0, std).tolist()),
        action_mean=tuple(recorded["mean"].tolist()),
        action_std=tuple(np.where(still, 1.0, action_std).tolist()),
        action_low=tuple(recorded["low"].tolist()),
        action_high=tuple(recorded["high"].tolist()),
    )
