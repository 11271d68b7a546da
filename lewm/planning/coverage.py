"""What the data show of a world's actions, and what of its action box they do not.

A model knows what it has seen. Where nothing but one value was recorded the agent plans that value.
Where the box is wider than the records the agent may plan what the model has never seen; that is
said and not forbidden.
"""

from __future__ import annotations

from collections.abc import Sequence

from lewm.contracts import Statistics

__all__ = ["unseen"]

COVERED = 0.9
"""Share of the box, per action dimension, that the recorded range covers at least where nothing is
said. Ours: a policy that uses all of its box comes nearer to both ends than 5% in any recording."""


def unseen(statistics: Statistics, low: Sequence[float], high: Sequence[float]) -> str:
    """Say of which action dimensions the data show less than the action box allows; "" if of none.

    Args:
        statistics: of the data that a model was trained on.
        low, high: (a,) the world's action box, in its own units.
    """
    if not statistics.action_low:
        return ""
    told = []
    seen = zip(statistics.action_low, statistics.action_high, statistics.fixed_actions, strict=True)
    for i, ((least, most, fixed), bottom, top) in enumerate(zip(seen, low, high, strict=True)):
        if fixed:
            if bottom < top:
                told.append(f"action {i} is always {least:g} in the data, and is planned so")
            continue
        covered = max(0.0, min(most, top) - max(least, bottom)) / (top - bottom)
        if covered < COVERED:
            told.append(
                f"action {i} was recorded from {least:.3g} to {most:.3g}, {covered:.0%} of what "
                f"the world takes, {bottom:g} to {top:g}"
            )
    if not told:
        return ""
    return (
        f"the data show less than the action box allows: {'; '.join(told)}. Plans may ask for "
        "what the model has never seen. Collect with a policy that uses all of the box, or give "
        "the world a narrower one."
    )
