"""Recorded attempts as a result keeps them: with places where latents were."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from lewm.evaluation.recordings import Recording
from lewm.planning.trace import Replan, Scored

__all__ = ["in_places"]

NOTHING = np.zeros((1, 1, 0), np.float32)


def in_places(recording: Recording, read: Callable[[np.ndarray], np.ndarray] | None) -> Recording:
    """A recording whose latents are the places that they are read as, and that keeps no more of its
    plans than an animation draws. In a world without places there is nothing to read: `read` is
    None, and neither latents nor rounds are kept."""

    def placed(replan: Replan) -> Replan:
        kept: dict[str, Any] = dict.fromkeys(("plan", "actions", "now", "goal"), NOTHING)
        kept["routes"] = ()
        if read is None:
            return replace(replan, rounds=(), latents=NOTHING, **kept)
        rounds = (
            Scored(scored.costs.astype(np.float32), NOTHING, read(scored.ends).astype(np.float32))
            for scored in replan.rounds
            if scored.costs.shape[1] > 1
        )
        latents = read(replan.latents).astype(np.float32)
        return replace(replan, rounds=tuple(rounds), latents=latents, **kept)

    return replace(recording, replans=tuple(placed(replan) for replan in recording.replans))
