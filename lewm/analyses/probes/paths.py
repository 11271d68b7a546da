"""Whole episodes as paths of latents, with the actions between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lewm.contracts import Progress, Report, WorldModel, silent
from lewm.data.episodes import Episodes
from lewm.models.nn.frozen import device_of, encode
from lewm.runs.run import Seen
from lewm.training.hindsight import rows_of_block

__all__ = ["Paths", "encode_paths"]


@dataclass(frozen=True)
class Paths:
    """Frames of some episodes as a frozen model sees them, one action block apart, end to end.

    Attributes:
        latents: (F, D).
        blocks: (F, A) normalised actions from each frame to the next; of no meaning in the last
            frame of an episode.
        episode: (F,) number of the episode of each frame.
        rows: (F,) of the file.
        gap: env steps from one frame to the next.
    """

    latents: Tensor
    blocks: Tensor
    episode: np.ndarray
    rows: np.ndarray
    gap: int

    def __len__(self) -> int:
        """F."""
        return len(self.episode)

    def followed(self, by: int) -> np.ndarray:
        """(n,) frames that so many others of their episode follow, or more."""
        return np.flatnonzero(self.episode[: max(0, len(self) - by)] == self.episode[by:])

    def reach(self, episodes: int) -> int:
        """How many frames follow the first in each of the longest so many episodes."""
        return int(np.sort(np.unique(self.episode, return_counts=True)[1])[-episodes]) - 1

    def some(self, frames: np.ndarray, most: int, generator: np.random.Generator) -> np.ndarray:
        """Places in (n,) `frames`, ascending and drawn at random, so that no episode has more than
        `most` of them."""
        order = generator.permutation(len(frames))
        episode = self.episode[frames]
        order = order[np.argsort(episode[order], kind="stable")]
        _, first, counts = np.unique(episode[order], return_index=True, return_counts=True)
        return np.sort(order[np.arange(len(order)) - np.repeat(first, counts) < most])

    def pairs(
        self, reach: int, most: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """(n,) frames and (n,) later ones of the same episodes, at most `reach` frames later and
        `most` pairs per episode."""
        firsts = [self.followed(by) for by in range(1, reach + 1)]
        first, later = (
            np.concatenate(firsts),
            np.repeat(np.arange(1, reach + 1), [len(each) for each in firsts]),
        )
        chosen = self.some(first, most, generator)
        return first[chosen], first[chosen] + later[chosen]


def encode_paths(
    model: WorldModel,
    episodes: Episodes,
    ids: Sequence[int],
    report: Report = silent,
    seen: Seen | None = None,
) -> Paths:
    """Encode every frame of some episodes that is a whole number of action blocks from its
    beginning.

    Args:
        model: in evaluation mode; it stays as it is. The latents stay on its device.
        seen: latents of this model and these episodes that are known; those that are not are added.

    Raises:
        ValueError: the model is in training mode, or the file does not fit it.

    Cost: F frames through the encoder; pixels of one episode at a time.
    """
    spec, stride = model.spec, rows_of_block(model, episodes)
    latents, blocks, rows = [], [], []
    for done, i in enumerate(ids, 1):
        actions = episodes.actions(i)
        steps = np.arange(0, len(actions), stride)
        rows.append(episodes.offsets[i] + steps)
        blocks.append(
            actions[np.minimum(steps[:, None] + np.arange(stride), len(actions) - 1)].reshape(
                len(steps), -1
            )
        )
        found = None if seen is None else seen.paths.get(int(i))
        if found is None:
            pixels = torch.from_numpy(episodes.rows("pixels", rows[-1])).permute(0, 3, 1, 2)
            found = encode(model, pixels[:, None])[:, 0].float()
        if seen is not None:
            seen.paths[int(i)] = found
        latents.append(found)
        report(Progress("encode", done, len(ids)))
    return Paths(
        latents=torch.cat(latents),
        blocks=spec.statistics.normalise_actions(torch.from_numpy(np.concatenate(blocks))).to(
            device_of(model)
        ),
        episode=np.repeat(np.asarray(ids), [len(each) for each in rows]),
        rows=np.concatenate(rows),
        gap=spec.frameskip,
    )
