"""A cost that the model names itself: for models whose latents are not made to be subtracted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from torch import Tensor

from lewm import registry
from lewm.contracts import Judging, WorldModel

__all__ = ["Own"]


@dataclass(frozen=True)
class Own:
    """One of the model's own costs (`contracts.Judging`), such as the error of an imagined picture.

    Attributes:
        judged_by: its name. None is the first that the model names.
        model: that is asked. An agent gives its own; it is never written down.

    Source: Ours; the costs are their models'.
    """

    judged_by: str | None = None
    model: Judging | None = field(default=None, repr=False)

    def asking(self, model: WorldModel) -> Own:
        """The same objective, asking this model.

        Raises:
            ValueError: it has no costs of its own, or none of this name.
        """
        if not isinstance(model, Judging):
            others = " or ".join(name for name in registry.names("objectives") if name != "own")
            raise ValueError(
                "objective 'own': expected a model with costs of its own, got a "
                f"{type(model).__name__}, which has none. Plan with {others}."
            )
        name = registry.choose("cost", self.judged_by or model.costs[0], model.costs)
        return Own(name, model)

    def cost(self, rollout: Tensor, goal: Tensor) -> Tensor:
        """Score predicted latents as the model does; NaN where a rollout diverged.

        Args:
            rollout: (B, N, H, D) predicted latents.
            goal: (B, D) goal latents.

        Returns:
            (B, N) costs, lower is better.

        Raises:
            ValueError: no model was given.
        """
        if self.model is None:
            raise ValueError(
                "objective 'own': expected a model to ask, got none. Plan with an agent, or give "
                "it one: Own().asking(model)."
            )
        return self.model.judge(cast(str, self.judged_by), rollout, goal)
