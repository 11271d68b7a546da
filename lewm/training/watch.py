"""What a running training says of itself: its numbers, and an alarm where latents collapse."""

from __future__ import annotations

from collections.abc import Mapping

NOT_ON_THE_BAR = {"update", "gradient_norm", "learning_rate", "seconds", "updates_per_second"}

COLLAPSED_STD = 0.2
"""Mean latent standard deviation under which the alarm sounds. Ours: SIGReg holds it at 0.8 to 1;
collapses end below 0.02."""


COLLAPSED_RANK = 2.0
"""Effective rank of the latents under which the alarm sounds: nearly all of them on one line."""


def note_of(metrics: Mapping[str, float]) -> str:
    """A line of the log as a progress bar shows it: the loss, its terms, and how spread the latents
    are."""
    return "  ".join(
        f"{name} {value:.3g}" for name, value in metrics.items() if name not in NOT_ON_THE_BAR
    )


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
