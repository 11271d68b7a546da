"""What a running training says of itself: its numbers, and an alarm where latents collapse."""

from __future__ import annotations

import math
from collections.abc import Mapping

NOT_ON_THE_BAR = {"update", "gradient_norm", "learning_rate", "seconds", "updates_per_second"}

FEWEST_DIRECTIONS = 1.0
"""Directions of the latents that must be predicted better than by copying, or the alarm sounds.
Ours: runs that plan ended at 1.3 and above, those that collapsed at 0.9 and below, whatever the
scale of their latents (docs/log/2026-11-27-nothing-wrong-in-silence.md)."""

UNFOLDING = (100, 0.25)
"""Updates, and share of a run, in which latents may unfold before they are judged. Ours: of runs of
200 updates the healthy ones are above from the fiftieth to the eightieth on."""


def note_of(metrics: Mapping[str, float]) -> str:
    """A line of the log as a progress bar shows it: the loss, its terms, and how spread the latents
    are."""
    return "  ".join(
        f"{name} {value:.3g}" for name, value in metrics.items() if name not in NOT_ON_THE_BAR
    )


def directions(metrics: Mapping[str, float]) -> float:
    """How many directions of the latents are predicted better than by copying the last frame: rank
    x (1 - share). Below `FEWEST_DIRECTIONS` the latents have collapsed; whoever judges a collapse
    by what a training logs asks here.

    Two numbers are judged together, and neither knows the scale of the latents. The prediction's
    error as a share of that of copying the last frame tells a collapse to a point, where nothing is
    left but noise. The effective rank tells a collapse onto a line, which may be predicted well.

    Args:
        metrics: with "prediction", "copying" and "effective_rank".

    Returns:
        Never NaN: what cannot be judged is no health.
    """
    share = metrics["prediction"] / metrics["copying"] if metrics["copying"] else math.inf
    found = metrics["effective_rank"] * (1 - share)
    return -math.inf if math.isnan(found) else found


def alarm_of(metrics: Mapping[str, float], update: int, total: int) -> str:
    """Say so when the latents have collapsed; not before they had a quarter of the run, and 100
    updates, to unfold. `directions` says by which rule.

    Args:
        metrics: a line of the log. Without a loss "prediction" and latents nothing is judged.
        update, total: done and planned updates.
    """
    if (
        update < max(UNFOLDING[0], UNFOLDING[1] * total)
        or not {"prediction", "copying"} <= metrics.keys()
    ):
        return ""
    if directions(metrics) >= FEWEST_DIRECTIONS:
        return ""
    rank, copying = metrics["effective_rank"], metrics["copying"]
    share = metrics["prediction"] / copying if copying else math.inf
    return (
        f"latents have collapsed: the prediction errs {share:.2g} times as much as copying the "
        f"last frame, at an effective rank of {rank:.2f} (healthy: rank x (1 - share) above "
        f"{FEWEST_DIRECTIONS:g})"
    )
