"""What a running training says of itself: its progress, and an alarm where latents collapse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

COLLAPSED_STD = 0.2
"""Mean latent standard deviation under which the alarm sounds. Ours: SIGReg holds it at 0.8 to 1;
collapses end below 0.02."""


COLLAPSED_RANK = 2.0
"""Effective rank of the latents under which the alarm sounds: nearly all of them on one line."""


@dataclass(frozen=True)
class Progress:
    """One report of a running training, for a progress bar.

    Attributes:
        update, total: done and planned updates; frames, while the stage is "read".
        stage: "train", "read" while pixels are decoded into memory, or "time" while the updates of
            a budget are timed.
        metrics: the line of metrics.jsonl, on updates that log; empty on the others.
        resumed: the update from which this process went on, 0 for a fresh run.
        alarm: what is wrong with the latents, or "".
    """

    update: int
    total: int
    metrics: Mapping[str, float]
    resumed: int = 0
    alarm: str = ""
    stage: str = "train"


def alarm_of(metrics: Mapping[str, float], update: int, total: int) -> str:
    """Say so when the latents have collapsed; not before they had a tenth of the run to unfold."""
    if update < min(100, total / 10) or "latent_std" not in metrics:
        return ""
    if metrics["latent_std"] < COLLAPSED_STD:
        return (
            f"latents have collapsed: std {metrics['latent_std']:.3g} (healthy: above "
            f"{COLLAPSED_STD})"
        )
    if metrics["effective_rank"] < COLLAPSED_RANK:
        return (
            f"latents have collapsed: effective rank {metrics['effective_rank']:.2f} (healthy: "
            f"above {COLLAPSED_RANK})"
        )
    return ""
