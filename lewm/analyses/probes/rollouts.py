"""Latents predicted along recorded actions, beside those of the frames that came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lewm.analyses.probes.paths import encode_paths
from lewm.analyses.probes.targets import Reading, state_targets
from lewm.contracts import WorldModel
from lewm.data.episodes import Episodes
from lewm.models.nn.frozen import FRAMES_AT_ONCE
from lewm.runs.run import Seen

__all__ = ["Rollouts", "roll_out", "first_predictions"]


ROLLOUT_FRAMES, FIRST_PREDICTIONS = 2048, 32
"""Frames encoded for rollouts, at most; and episodes of which predictions choose the penalty of a
steady probe."""


@dataclass(frozen=True)
class Rollouts:
    """What a model predicts along the executed actions of recorded episodes, beside what came.

    Attributes:
        last: (n, D) latents of the last frames that the model was shown.
        predicted, encoded: (n, H, D) latents after each block, open loop, and those of the frames
            that came.
        rows: (n, H) of the file, those frames.
        groups: (n,) the episode of each.
    """

    last: np.ndarray
    predicted: np.ndarray
    encoded: np.ndarray
    rows: np.ndarray
    groups: np.ndarray


def roll_out(
    model: WorldModel,
    episodes: Episodes,
    ids: Sequence[int],
    horizon: int,
    most: int,
    seed: Sequence[int],
    fewest: int = 1,
    seen: Seen | None = None,
) -> Rollouts | None:
    """Roll a model out from wherever some episodes hold a context of K frames and the blocks that
    follow.

    Args:
        model: in evaluation mode; it stays as it is.
        horizon: blocks, where half of the episodes are as long.
        most: episodes, drawn at random; fewer where they are so long that it would be many frames.
        seed: of that drawing.
        fewest: episodes that must be long enough.
        seen: as for `encode_paths`.

    Returns:
        None where they are not, or the rows of the file do not make blocks.
    """
    stride, rest = divmod(model.spec.frameskip, episodes.every)
    K, frames = model.context, 0
    chosen: list[int] = []
    for i in np.random.default_rng(seed).permutation(np.asarray(ids))[:most].tolist():
        frames += -(-int(episodes.lengths[i]) // max(stride, 1))
        if frames > ROLLOUT_FRAMES and len(chosen) >= fewest:
            break
        chosen.append(i)
    if rest or len(chosen) < fewest:
        return None
    paths = encode_paths(model, episodes, sorted(chosen), seen=seen)
    horizon = min(horizon, paths.reach(max(fewest, len(chosen) // 2)) - (K - 1))
    if horizon < 1:
        return None
    first = paths.followed(K - 1 + horizon)
    context = paths.latents[first[:, None] + np.arange(K)]
    blocks = paths.blocks[first[:, None] + np.arange(K - 1 + horizon)][:, None]
    parts = zip(context.split(FRAMES_AT_ONCE), blocks.split(FRAMES_AT_ONCE), strict=True)
    with torch.no_grad():
        predicted = [
            model.rollout(seen, done[:, 0, : K - 1], done[:, :, K - 1 :])[:, 0]
            for seen, done in parts
        ]
    following = first[:, None] + K + np.arange(horizon)
    return Rollouts(
        last=_float64(context[:, -1]),
        predicted=_float64(torch.cat(predicted)),
        encoded=_float64(paths.latents[following]),
        rows=paths.rows[following],
        groups=paths.episode[first],
    )


def first_predictions(
    model: WorldModel,
    episodes: Episodes,
    ids: Sequence[int],
    readings: Sequence[Reading],
    seed: int = 0,
    seen: Seen | None = None,
) -> tuple[np.ndarray, np.ndarray] | None:
    """(n, D) latents predicted one block ahead, and the (n, S) readings of the frames that came: a
    probe's penalty is to suit the roughness of predictions, not all that a model does not know of
    the future. None as in `roll_out`."""
    ahead = roll_out(model, episodes, ids, 1, FIRST_PREDICTIONS, (seed, 1), seen=seen)
    return (
        None
        if ahead is None
        else (ahead.predicted[:, 0], state_targets(episodes, readings, ahead.rows[:, 0]))
    )


def _float64(latents: Tensor) -> np.ndarray:
    return latents.cpu().numpy().astype(np.float64)
