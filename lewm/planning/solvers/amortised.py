"""Ask a network what was done in such a situation, and take that as a plan, as the start of a
search, or as its rival."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Generator, Tensor

from lewm.contracts import Box, Cost, Distance, Imitator, Plan, Solver, check_numbers
from lewm.planning.proposals import around, imitated

__all__ = ["Amortised"]


@dataclass(frozen=True)
class Amortised:
    """Goal-conditioned inverse dynamics as a planner: (latent, goal latent, steps remaining) -> the
    next blocks, in one pass.

    Alone, the proposal is the plan and nothing is scored. With `search`, a search starts from it;
    as the proposal is among what that scores, its plan is not worse under the model's cost.
    `guarded`, the search starts cold instead, from what is neither the data's habit nor its
    mistake, and the cheaper of the two plans is taken: the safe form where data were poor.

    The network has to be told how much time is left. Told the same again and again it puts the way
    off to the end, so it is told what the temporal distance says of the current latents, or the
    rest of a countdown.

    Attributes:
        network: the run's head "amortised", with `plan(now, goal, steps)`; None until the run is
            opened.
        distance: the run's head "temporal", with `distance(now, goal)`; not asked where there is a
            countdown.
        search: improves on the proposal; None takes it as it is.
        guarded: the search starts cold, and competes with the proposal.
        countdown: env steps in which the goal is to be reached, counted down from when it was set;
            fewer than 1 count as 1. None leaves it to the distance.
        spread: std around the proposal with which a search starts from it, in normalised units. The
            proposal is mostly right: less than the 1 of a cold search.

    Source: GC-IDM on LeWM's latents (arXiv 2605.08732) plans one block. Ours: whole plans, and the
    three ways to use them.
    """

    network: Imitator | None = field(default=None, repr=False)
    distance: Distance | None = field(default=None, repr=False)
    search: Solver | None = None
    guarded: bool = False
    countdown: int | None = None
    spread: float = 0.5

    heads: ClassVar[dict[str, str]] = {"network": "amortised", "distance": "temporal"}

    def __post_init__(self) -> None:
        if self.guarded and self.search is None:
            raise ValueError(
                "guarded is a competition with a search, got no `search`. Give one, such as "
                "CEM(64, 8, 3)."
            )
        # without spread there is no search
        check_numbers(self, least={"countdown": 1}, above={"spread": 0})

    @property
    def evaluations(self) -> int:
        """Sequences scored per environment: those of the search; guarded, the two plans besides."""
        return 0 if self.search is None else self.search.evaluations + 2 * self.guarded

    def propose(self, now: Tensor, goal: Tensor, elapsed: Tensor, horizon: int) -> Tensor:
        """Say what was done where such a way began; one forward pass, nothing is scored.

        Args:
            now, goal: (B, D) latents.
            elapsed: (B,) env steps since the goal was set; only a countdown asks for them.
            horizon: H, of the plan.

        Returns:
            (B, H, A) normalised blocks, not clipped.

        Raises:
            ValueError: the run has no such heads yet, or its network plans another number of
                blocks.
        """
        if self.countdown is not None:
            steps = self.countdown - elapsed
        elif self.distance is not None:
            steps = self.distance.distance(now, goal)
        else:
            steps = None
        if self.network is None or steps is None:
            raise ValueError(
                "solver 'amortised': expected the heads of a run, 'amortised' and (but with a "
                "countdown) 'temporal', got none. Make them with: lewm fit RUN amortised temporal"
            )
        return imitated(self.network, now, goal, steps, horizon)

    @torch.no_grad()
    def solve(self, cost: Cost, start: Plan, box: Box, generators: Sequence[Generator]) -> Plan:
        """Take `start`, whose mean is the proposal, as the plan, or let the search improve on it or
        compete with it.

        Args:
            cost: (B, N, H, A) -> (B, N).
            start: mean (B, H, A), clamped to the box; its std is that of a cold search.
            box: bounds that every scored and returned sequence respects.
            generators: B of them, for the search.

        Returns:
            The plan; alone its std is `spread`. Where both competitors diverge or cost the same it
            is the proposal.

        Raises:
            ValueError: the number of generators is not B.

        Cost: that of the search; guarded, two calls with a single candidate besides.
        """
        proposal = around(start, box, generators, self.spread)
        if self.search is None:
            return proposal
        if not self.guarded:
            return self.search.solve(cost, proposal, box, generators)
        # Scored before the search, so that a deadline that cuts the search short leaves the
        # competition open.
        proposed = cost(proposal.mean[:, None])
        cold = self.search.solve(
            cost, Plan(torch.zeros_like(start.mean), start.std), box, generators
        )
        found = cost(cold.mean[:, None])
        better = torch.where(found.isnan(), torch.inf, found) < torch.where(
            proposed.isnan(), torch.inf, proposed
        )
        better = better[:, :, None]
        return Plan(
            torch.where(better, cold.mean, proposal.mean),
            torch.where(better, cold.std, proposal.std),
        )
