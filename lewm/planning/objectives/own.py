"""A cost that the model names itself: for models whose latents are not made to be subtracted."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from lewm import registry
from lewm.contracts import Judging, WorldModel

__all__ = ["Own"]


@dataclass(frozen=True)
class Own:
    """One of the model's own costs (`contracts.Judging`), such as the error of an imagined picture.

    Attributes:
        judged_by: its name. None is the first that the model names.

    Source: Ours; the costs are their models'.
    """

    judged_by: str | None = None

    def asking(self, model: WorldModel) -> Asked:
        """The same objective, asking this model. An agent does it with its own.

        Raises:
            ValueError: it has no costs of its own, or none of this name.
        """
        if not isinstance(model, Judging):
            others = " or ".join(name for name in registry.names("objectives") if name != "own")
            raise ValueError(
                "objective 'own': expected a model with costs of its own, got a "
                f"{type(model).__name__}, which has none. Plan with {others}."
            )
        return Asked(registry.choose("cost", self.judged_by or model.costs[0], model.costs), model)

    def cost(self, rollout: Tensor, goal: Tensor) -> Tensor:
        """Refuse, because there is nobody to ask; see `asking`.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "objective 'own': expected a model to ask, got none. Plan with an agent, or use "
            "Own().asking(model)."
        )


@dataclass(frozen=True)
class Asked:
    """The objective of an agent, which has a model.

    Attributes:
        name: of the cost.
        model: that is asked.
    """

    name: str
    model: Judging = field(repr=False)

    def cost(self, rollout: Tensor, goal: Tensor) -> Tensor:
        """Score predicted latents as the model does; NaN where a rollout diverged.

        Args:
            rollout: (B, N, H, D) predicted latents.
            goal: (B, D) goal latents.

        Returns:
            (B, N) costs, lower is better.
        """
        return self.model.judge(self.name, rollout, goal)
