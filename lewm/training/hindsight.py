"""Frames of recorded episodes as a frozen model sees them, and what they say in hindsight.

Every later frame of an episode was a goal that was reached, so each pair of frames says how long a
way took and what was done on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lewm.contracts import Hindsight, Progress, Report, WorldModel, silent
from lewm.data.episodes import Episodes, check_fits
from lewm.models.nn.frozen import FRAMES_AT_ONCE, device_of, encode, require_evaluation_mode

__all__ = ["MAX_FRAMES", "Latents", "encode_episodes", "rows_of_block"]

MAX_FRAMES = 50_000
"""Encoded at most where nothing else is asked for; it bounds time and memory."""


@dataclass(frozen=True)
class Latents:
    """Frames of some episodes as a frozen model sees them, end to end, and the block that was
    executed from each.

    Attributes:
        latents: (F, D).
        blocks: (F, A) normalised actions of the `frameskip` env steps that follow each frame; 0
            where the episode ends before.
        whole: (F,) bool, whether the episode holds that block.
        following: (F,) frames of the same episode that come after each.
        gap: env steps from one frame to the next.
        frameskip: env steps of a block, a multiple of `gap`.
        rows: (F,) of the episode file; None where the latents are of none.
    """

    latents: Tensor
    blocks: Tensor
    whole: Tensor
    following: Tensor
    gap: int
    frameskip: int
    rows: Tensor | None = None

    def __len__(self) -> int:
        """F."""
        return len(self.latents)

    def hindsight(
        self, count: int, reach: int, horizon: int, generator: np.random.Generator
    ) -> Hindsight:
        """Draw pairs of frames of which the later one was the goal.

        `now` is uniform over all frames. The goal is n frames later, 1 + n being log-uniform and n
        rounded, up to `reach` env steps; where the episode ends before, its last frame is the goal.
        So near goals, on which the last steps depend, are as frequent as far ones, and some (9% at
        reach 100 and gap 1) are `now` itself.

        Args:
            count: B.
            horizon: H, blocks to hand out; block h begins h * `frameskip` env steps after `now`.
        """
        device, last = self.latents.device, len(self) - 1
        now = torch.from_numpy(generator.integers(len(self), size=count)).to(device)
        spread = torch.from_numpy(generator.random(count, np.float32)).to(device)
        drawn = (spread * math.log1p(max(1, reach // self.gap))).expm1().round().long()
        offset = drawn.minimum(self.following[now])
        steps = offset * self.gap
        block = torch.arange(horizon, device=device)
        ahead = block * (self.frameskip // self.gap)  # in frames
        frame = (now[:, None] + ahead).clamp(max=last)
        known = (
            (ahead <= self.following[now][:, None])
            & self.whole[frame]
            & (block * self.frameskip < steps[:, None])
        )
        return Hindsight(
            now=self.latents[now],
            goal=self.latents[now + offset],
            steps=steps.float(),
            blocks=self.blocks[frame] * known[..., None],
            known=known,
        )


def encode_episodes(
    model: WorldModel,
    episodes: Episodes,
    ids: Sequence[int],
    max_frames: int = MAX_FRAMES,
    seed: int = 0,
    report: Report = silent,
) -> Latents:
    """Encode frames of some episodes with a frozen model, once and for all.

    Every row is taken where there are at most `max_frames`. Of more rows those that are one action
    block apart are taken, and where there are still too many, whole episodes, drawn at random,
    until the next would not fit.

    Args:
        model: in evaluation mode; it stays as it is. The latents stay on its device.
        ids: of the episodes.
        seed: of that drawing.

    Raises:
        ValueError: the model is in training mode, no episode holds two frames, or the file does not
            fit the model.

    Cost: F frames through the encoder; memory of F x (D + A) numbers.
    """
    spec, stride = model.spec, rows_of_block(model, episodes)
    apart, chosen = _thinned(episodes, ids, stride, max_frames, seed)
    device = device_of(model)
    parts: dict[str, list[np.ndarray]] = {"rows": [], "blocks": [], "whole": [], "following": []}
    for i in chosen:
        actions = episodes.actions(i)
        last = len(actions) - 1  # a row from which no action is taken
        step = np.arange(0, len(actions), apart)
        block = step[:, None] + np.arange(stride)
        whole = block[:, -1] < last
        parts["rows"].append(episodes.offsets[i] + step)
        parts["blocks"].append(
            np.where(
                whole[:, None], actions[np.minimum(block, last)].reshape(len(step), -1), np.nan
            )
        )
        parts["whole"].append(whole)
        parts["following"].append(np.arange(len(step))[::-1])
    rows, blocks, whole, following = (np.concatenate(part) for part in parts.values())
    latents = []
    # so that pixels are never all in memory
    for part in np.split(rows, range(FRAMES_AT_ONCE, len(rows), FRAMES_AT_ONCE)):
        pixels = torch.from_numpy(episodes.rows("pixels", part)).permute(0, 3, 1, 2)[:, None]
        latents.append(encode(model, pixels)[:, 0].float())
        report(Progress("encode", sum(map(len, latents)), len(rows)))
    return Latents(
        latents=torch.cat(latents),
        # NaN becomes 0
        blocks=spec.statistics.normalise_actions(torch.from_numpy(blocks)).to(device),
        whole=torch.from_numpy(whole).to(device),
        following=torch.from_numpy(following).to(device),
        gap=apart * episodes.every,
        frameskip=spec.frameskip,
        rows=torch.from_numpy(rows).to(device),
    )


def rows_of_block(model: WorldModel, episodes: Episodes) -> int:
    """How many rows of a file make one action block; a file or a model that cannot be used so is
    refused with a ValueError."""
    require_evaluation_mode(model)
    spec = model.spec
    check_fits(episodes, spec.image_size, spec.statistics.action_dim)
    if spec.frameskip % episodes.every:
        raise ValueError(
            f"{episodes.path}: expected rows that a block of {spec.frameskip} env steps is made "
            f"of, got one per {episodes.every}. Use the episodes that the run was trained on."
        )
    return spec.frameskip // episodes.every


def _thinned(
    episodes: Episodes, ids: Sequence[int], stride: int, max_frames: int, seed: int
) -> tuple[int, list[int]]:
    """How many rows apart the frames are, and of which episodes, so that they are at most
    `max_frames`."""
    lengths = {int(i): int(episodes.lengths[i]) for i in ids}
    apart = 1 if sum(lengths.values()) <= max_frames else stride
    chosen: list[int] = []
    total = 0
    for i in np.random.default_rng(seed).permutation(list(lengths)).tolist():
        total += -(-lengths[i] // apart)
        if chosen and total > max_frames:
            break
        chosen.append(i)
    if all(lengths[i] <= apart for i in chosen):
        raise ValueError(
            f"{episodes.path}: expected an episode of {apart + 1} rows or more to learn ways "
            f"from, got {len(chosen)} episodes of at most "
            f"{max((lengths[i] for i in chosen), default=0)}. Give more or longer episodes."
        )
    return apart, sorted(chosen)
