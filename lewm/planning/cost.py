"""What a search is told about action sequences: their cost under a world model, counted, remembered
and given in time.

A solver sees a function (B, N, H, A) -> (B, N) and nothing else. This module makes it from a
rollout and an objective, and does all that would otherwise have to be done in every solver:
portions that bound memory, a trace for pictures, ranks in low precision, and the deadline that
makes every search an anytime search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lewm.contracts import Objective, Plan, Rollout
from lewm.models.nn.graphs import Captured
from lewm.planning.trace import Scored, scored

__all__ = ["OutOfTime", "PlanCost", "Scorer", "Situation"]

SEQUENCES_AT_ONCE, SEQUENCES_AT_ONCE_CUDA = 2048, 32768
"""Action sequences rolled out together; more are taken environment by environment. Bounds memory: a
full-size predictor keeps about 100 kB per sequence. On a CPU it is also faster, because the
activations of 2048 sequences still fit the caches."""

SEQUENCES_CAPTURED = 2048
"""Sequences up to which a round of scoring on a CUDA device is replayed as one graph. The kernels
of more are so long that handing them over costs nothing."""


RESCORED_SHARE = 1 / 8
"""Of the candidates that low precision ranks, how many are scored again in float32: as many as
searches keep as elites."""

CAUTION = 1.5
"""With a deadline, a round is expected to take so many times as long as the longest so far:
machines do other things too."""


class OutOfTime(Exception):
    """Raised through a solver by the cost it was given, where another round would end after the
    deadline."""


@dataclass(frozen=True)
class Situation:
    """What b environments are planned for, in latents.

    Attributes:
        context: (b, k, D) the last observations, oldest first.
        past_actions: (b, k-1, A) the blocks between them, normalised units.
        goal: (b, D).
    """

    context: Tensor
    past_actions: Tensor
    goal: Tensor

    @property
    def now(self) -> Tensor:
        """(b, D) of the current observation."""
        return self.context[:, -1]

    def portions(self, size: int) -> Iterator[Situation]:
        """All environments in their order, at most `size` at a time."""
        parts = zip(
            *(x.split(size) for x in (self.context, self.past_actions, self.goal)), strict=True
        )
        return (Situation(*part) for part in parts)


@dataclass(frozen=True)
class Scorer:
    """How action blocks get their cost; the same for all replans of an agent.

    Attributes:
        rollout: float32 rollout.
        objective: (rollout, goal) -> cost.
        ranking: a faster rollout in low precision. It only ranks: the cheapest `RESCORED_SHARE` of
            the candidates, and the first one, which is a search's incumbent, get their float32
            costs; the others keep their ranks behind them. So whatever a search returns as its best
            was chosen by float32 costs. Not used where gradients are asked for.
        replayed: on a CUDA device a round, from the blocks to their costs, is one graph; see
            `graphs.Captured`. What a search does between two rounds is some forty small kernels
            beside the thousands of a round, and stays outside.
        tokens: that stand for a frame; so many fewer sequences are rolled out together.
    """

    rollout: Rollout
    objective: Objective
    ranking: Rollout | None = None
    replayed: bool = False
    tokens: int = 1

    def score(self, situation: Situation, blocks: Tensor) -> tuple[Tensor, Tensor, int]:
        """(b, N, H, A) blocks -> (b, N) costs, (b, N, D) latents in which they end, and how many
        sequences were rolled out."""
        b, N = blocks.shape[:2]
        rescored = self._rescored(blocks)
        once = self.round if self.replayed and b * N <= SEQUENCES_CAPTURED else self._round
        costs, ends = once(situation.context, situation.past_actions, situation.goal, blocks)
        return costs, ends, b * (N + rescored + 1 if rescored else N)

    @cached_property
    def round(self) -> Captured:
        """A round as one graph: (context, past actions, goal, blocks) -> costs and ends."""
        return Captured(self._round)

    def _rescored(self, blocks: Tensor) -> int:
        """How many of the candidates are scored again, besides the first; 0 where the first scores
        are exact."""
        rescored = math.ceil(RESCORED_SHARE * blocks.shape[1])
        return (
            0
            if self.ranking is None or blocks.requires_grad or rescored + 1 >= blocks.shape[1]
            else rescored
        )

    def _round(
        self, context: Tensor, past_actions: Tensor, goal: Tensor, blocks: Tensor
    ) -> tuple[Tensor, Tensor]:
        situation, rescored = Situation(context, past_actions, goal), self._rescored(blocks)
        if self.ranking is None or not rescored:
            return self._rolled_out(self.rollout, situation, blocks)
        costs, ends = self._rolled_out(self.ranking, situation, blocks)
        ranks = torch.where(costs.isnan(), torch.inf, costs)
        best = ranks[:, 1:].topk(rescored, largest=False)
        chosen = torch.cat([torch.zeros_like(best.indices[:, :1]), best.indices + 1], dim=1)
        rows = torch.arange(len(blocks), device=blocks.device)[:, None]
        exact, exact_ends = self._rolled_out(self.rollout, situation, blocks[rows, chosen])

        valid = exact[:, 1:].isfinite()
        dearest = torch.where(valid, exact[:, 1:], -torch.inf).amax(dim=1, keepdim=True)
        dearest = torch.where(valid.any(dim=1, keepdim=True), dearest, torch.inf)
        # Strictly behind, yet in their order and at their distances: a search may look at more than
        # was scored again.
        costs = torch.nextafter(
            dearest + (ranks - best.values[:, -1:]), torch.full_like(ranks, torch.inf)
        )
        costs[rows, chosen], ends[rows, chosen] = exact, exact_ends
        return costs, ends

    def _rolled_out(
        self, rollout: Rollout, situation: Situation, blocks: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Costs and end latents, in fixed portions of environments."""
        costs, ends = [], []
        together = SEQUENCES_AT_ONCE_CUDA if blocks.is_cuda else SEQUENCES_AT_ONCE
        together = max(1, together // self.tokens)
        portion = max(1, together // blocks.shape[1])
        for part, b in zip(situation.portions(portion), blocks.split(portion), strict=True):
            scored_parts = []
            # where a frame is many tokens, not even one environment's candidates go together
            for some in b.split(blocks.shape[1] if self.tokens == 1 else together, dim=1):
                latents = rollout(part.context, part.past_actions, some)
                cost = self.objective.cost(latents, part.goal)
                scored_parts.append((cost, latents[:, :, -1].clone()))
                del latents
            costs.append(torch.cat([cost for cost, _ in scored_parts], dim=1))
            ends.append(torch.cat([end for _, end in scored_parts], dim=1))
        return torch.cat(costs), torch.cat(ends)


class PlanCost:
    """The cost that one replan's solver is given, and what is remembered of its questions.

    With a deadline it keeps the cheapest sequence of each environment, and raises `OutOfTime`
    through the solver instead of beginning a round that would, judged by the longest one so far,
    end too late. The first round is begun unless the deadline has passed: nothing is known of its
    length yet.

    Args:
        scorer: gives the costs.
        situation: of the b environments.
        blocks_of: turns sequences as the solver knows them into action blocks.
        trace: keep every round in `rounds`.
        deadline: when the search has to be over, in seconds of `clock`; None for as long as it
            takes.
        clock: seconds since some moment.
    """

    def __init__(
        self,
        scorer: Scorer,
        situation: Situation,
        blocks_of: Callable[[Tensor], Tensor],
        trace: bool,
        deadline: float | None,
        clock: Callable[[], float],
    ) -> None:
        self._scorer, self._situation, self._blocks_of = scorer, situation, blocks_of
        self._trace, self._deadline, self._clock = trace, deadline, clock
        self._longest = 0.0
        self._best: tuple[Tensor, Tensor] | None = None
        self._some: Tensor | None = None
        self.rounds: list[Scored] = []
        self.sequences = 0
        """Rolled out so far, in all environments together; what was ranked and then scored again
        counts twice."""

    def __call__(self, actions: Tensor) -> Tensor:
        """(b, N, H, A) sequences -> (b, N) costs.

        Raises:
            OutOfTime: there is no time for another round.
        """
        began = self._clock()
        if self._deadline is not None and (
            began >= self._deadline or began + CAUTION * self._longest > self._deadline
        ):
            raise OutOfTime
        blocks = self._blocks_of(actions)
        costs, ends, sequences = self._scorer.score(self._situation, blocks)
        self.sequences += sequences
        some = costs.detach().isfinite().any(dim=1)
        self._some = some if self._some is None else self._some | some
        if self._trace:
            self.rounds.append(scored(costs.detach(), blocks.detach(), ends.detach()))
        if self._deadline is not None:
            self._remember(actions.detach(), costs.detach())
            self._longest = max(self._longest, self._clock() - began)
        return costs

    def best(self, start: Plan) -> Plan:
        """The cheapest sequences asked for; the start's mean where none was, or none that did not
        diverge."""
        if self._best is None:
            return start
        actions, costs = self._best
        return Plan(torch.where((costs < torch.inf)[:, None, None], actions, start.mean), start.std)

    @property
    def hopeless(self) -> list[int]:
        """Places of the environments in which no sequence asked for had a finite cost."""
        return [] if self._some is None else (~self._some).nonzero()[:, 0].tolist()

    def _remember(self, actions: Tensor, costs: Tensor) -> None:
        cost, index = torch.where(costs.isnan(), torch.inf, costs).min(dim=1)
        cheapest = actions[torch.arange(len(actions), device=actions.device), index]
        if self._best is not None:
            former, former_cost = self._best
            better = cost < former_cost
            cheapest, cost = (
                torch.where(better[:, None, None], cheapest, former),
                torch.where(better, cost, former_cost),
            )
        self._best = cheapest, cost
        if costs.is_cuda:
            torch.cuda.synchronize(
                costs.device
            )  # or the clock would measure how fast work is handed over
