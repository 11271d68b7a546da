"""What planning cost and what it considered: records for tables and pictures."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from lewm.contracts import Route

__all__ = ["Effort", "Replan", "Scored"]


@dataclass(frozen=True)
class Effort:
    """What planning cost.

    Attributes:
        plans: one per environment and replan.
        predictor_calls: sequences rolled out x horizon: how many single latents were predicted.
        seconds: wall time of all replans together, encoding included.
        cut_short: plans whose search was stopped by a deadline.
    """

    plans: int = 0
    predictor_calls: int = 0
    seconds: float = 0.0
    cut_short: int = 0

    def __add__(self, other: Effort) -> Effort:
        return Effort(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def seconds_per_plan(self) -> float:
        """Wall time per plan, in a batch of as many environments as were planned together."""
        return self.seconds / max(self.plans, 1)

    @property
    def predictor_calls_per_plan(self) -> float:
        return self.predictor_calls / max(self.plans, 1)


@dataclass(frozen=True)
class Replan:
    """One replan of b environments, for pictures.

    Attributes:
        step: env step, since the episodes began, at which it was made.
        environments: (b,) which environments of the batch it holds, ascending.
        rounds: one per call of the cost, in order; CEM's last one scores its final mean alone. None
            where nothing was scored.
        plan: (b, H, A) blocks of the plan, normalised units.
        actions: (b, H * frameskip, a) the same, clipped, in env units; only the first `receding`
            blocks are executed.
        now, goal: (b, D) latents of the current observation and of the goal.
        latents: (b, H, D) predicted latents along the plan; index h is the latent after block h.
        cut_short: whether a deadline stopped the search.
        routes: b ways over landmarks, of a solver that goes by them; () of others.
    """

    step: int
    environments: np.ndarray
    rounds: tuple[Scored, ...]
    plan: np.ndarray
    actions: np.ndarray
    now: np.ndarray
    goal: np.ndarray
    latents: np.ndarray
    cut_short: bool = False
    routes: tuple[Route, ...] = ()

    def of(self, environment: int) -> Replan | None:
        """The same for one environment, all with b = 1; None if it was not among those planned
        for."""
        row = np.flatnonzero(self.environments == environment)
        if not len(row):
            return None
        rounds = tuple(Scored(r.costs[row], r.actions[row], r.ends[row]) for r in self.rounds)
        arrays = {
            name: getattr(self, name)[row]
            for name in ("environments", "plan", "actions", "now", "goal", "latents")
        }
        routes = tuple(self.routes[k] for k in row) if self.routes else ()
        return replace(self, rounds=rounds, routes=routes, **arrays)


TRACED_CANDIDATES = 32
"""How many of the cheapest candidates of a scoring round a trace keeps."""


@dataclass(frozen=True)
class Scored:
    """One round of a search: what the solver asked the cost for, and what it was told.

    Attributes:
        costs: (b, N) of all candidates, in the solver's order.
        actions: (b, n, H, A) blocks of the n cheapest, cheapest first, normalised units; n is at
            most `TRACED_CANDIDATES`.
        ends: (b, n, D) latents in which those n are predicted to end.
    """

    costs: np.ndarray
    actions: np.ndarray
    ends: np.ndarray


def scored(costs: Tensor, blocks: Tensor, ends: Tensor) -> Scored:
    cheapest = (
        torch.where(costs.isnan(), torch.inf, costs)
        .topk(min(TRACED_CANDIDATES, costs.shape[1]), largest=False)
        .indices
    )
    rows = torch.arange(len(costs), device=costs.device)[:, None]
    return Scored(
        costs.cpu().numpy(),
        blocks[rows, cheapest].cpu().numpy(),
        ends[rows, cheapest].cpu().numpy(),
    )
