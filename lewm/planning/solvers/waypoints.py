"""Find a way over a map, and ask a network how to get to its first places.

A network that imitates knows short ways well and long ones badly: far goals lie where nothing was
recorded, and near a wall it walks straight at it. So it is never asked for a long way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Generator, Tensor

from lewm.contracts import (
    Box,
    Cost,
    Embedding,
    Imitator,
    Landmarks,
    Plan,
    Route,
    Solver,
    check_numbers,
)
from lewm.planning.proposals import around, imitated

__all__ = ["Waypoints"]

NUMBERS_AT_ONCE = 2**22
"""Of the sums over two places of the map and an environment; bounds memory."""


@dataclass(frozen=True)
class Waypoints:
    """Shortest paths over a map of stored latents, and goal-conditioned inverse dynamics along
    them.

    Places of the map are connected where the temporal distance is short enough to be trusted. A
    goal that is near is aimed at itself. Else each place that is near is a waypoint that one could
    go by first, and the map says how long the way is over each. The plan is the mean of what the
    network proposes for the best few, weighted by how much longer their ways are. A single waypoint
    often lies just behind a corner. There the network pushes against the wall for ever, and a
    model that has not seen it fail imagines that it gets through.

    Where the map knows no way the goal is aimed at itself, as by the solver "amortised"; `routes`
    says so.

    Attributes:
        network: the run's head "amortised", with `plan(now, goal, steps)`; None until the run is
            opened.
        distance: the run's head "temporal".
        map: the run's head "map".
        search: improves on the proposal under the model's cost, which looks at the goal and at no
            waypoint; None takes the proposal as it is.
        limit: env steps up to which the distance is trusted: length of an edge, and distance of
            what is aimed at.
        pace: share of the estimated steps that the network is told. What was recorded dawdles;
            told less than it took, the network proposes the brisk ones among the ways it knows.
        aims: how many waypoints have a say.
        temperature: env steps; a waypoint whose way is so much longer weighs 1/e of the best.
        spread: std of the plan, and that with which a search starts from it, in normalised units.

    Source: paths over stored observations as in "Search on the replay buffer" (Eysenbach et al.,
    2019). Ours: few places for good coverage, and the weighted mean.
    """

    network: Imitator | None = field(default=None, repr=False)
    distance: Embedding | None = field(default=None, repr=False)
    map: Landmarks | None = field(default=None, repr=False)
    search: Solver | None = None
    limit: float = 20.0
    pace: float = 0.5
    aims: int = 8
    temperature: float = 3.0
    spread: float = 0.5

    heads: ClassVar[dict[str, str]] = {
        "network": "amortised",
        "distance": "temporal",
        "map": "map",
    }

    def __post_init__(self) -> None:
        check_numbers(
            self,
            least={"aims": 1},
            above=dict.fromkeys(("limit", "pace", "temperature", "spread"), 0),
        )

    @property
    def evaluations(self) -> int:
        """Sequences scored per environment: those of the search."""
        return 0 if self.search is None else self.search.evaluations

    def propose(self, now: Tensor, goal: Tensor, elapsed: Tensor, horizon: int) -> Tensor:
        """Say what was done on such a way; one forward pass per aim, nothing is scored.

        Args:
            now, goal: (B, D) latents.
            elapsed: not asked for.
            horizon: H, of the plan.

        Returns:
            (B, H, A) normalised blocks, not clipped.

        Raises:
            ValueError: the run has no such heads yet, or its network plans another number of
                blocks.

        Cost: B x M^2 sums; the first time M^3 for the map.
        """
        network, places = self._required()[0], self._required()[2]
        ways = self._ways(now, goal)
        lengths, first = ways.over.topk(min(self.aims, ways.over.shape[1]), largest=False)
        # weigh the waypoints; without one the goal is the only aim
        weights = torch.softmax((lengths[:, :1] - lengths) / self.temperature, dim=1)
        by_map = ways.by_map[:, None]
        alone = torch.zeros_like(weights).index_fill_(1, first.new_zeros(1), 1.0)
        weights = torch.where(by_map, weights, alone)
        aims = torch.where(by_map[..., None], places.latents[first], goal[:, None])
        steps = torch.where(by_map, ways.near.gather(1, first), ways.direct[:, None])
        # an aim that counts for nothing may be out of reach
        steps = torch.where(weights > 0, steps, 1.0)
        blocks = imitated(
            network,
            now[:, None].expand_as(aims).flatten(0, 1),
            aims.flatten(0, 1),
            (self.pace * steps).flatten(),
            horizon,
        )
        return (blocks.unflatten(0, weights.shape) * weights[..., None, None]).sum(dim=1)

    @torch.no_grad()
    def solve(self, cost: Cost, start: Plan, box: Box, generators: Sequence[Generator]) -> Plan:
        """Take `start`, whose mean is the proposal, as the plan, or let the search improve on it.

        Args:
            cost: (B, N, H, A) -> (B, N).
            start: mean (B, H, A), clamped to the box.
            box: bounds that every scored and returned sequence respects.
            generators: B of them, for the search.

        Raises:
            ValueError: the number of generators is not B.

        Cost: that of the search.
        """
        proposal = around(start, box, generators, self.spread)
        if self.search is None:
            return proposal
        return self.search.solve(cost, proposal, box, generators)

    @torch.no_grad()
    def routes(self, now: Tensor, goal: Tensor) -> tuple[Route, ...]:
        """The shortest way over the map for each of B environments: the best first waypoint and all
        that follow it.

        Args:
            now, goal: (B, D) latents.
        """
        rows, ways, chart = self._required()[2].rows, self._ways(now, goal), self.chart
        found = []
        for b in range(len(now)):
            path: list[int] = []
            if bool(ways.by_map[b]):
                onwards, last = ways.onwards[b], ways.last[b]
                path.append(int(ways.over[b].argmin()))
                # the goal is next where no way over another place is shorter
                while len(path) < len(rows):
                    lengths = chart.edges[path[-1]] + onwards
                    lengths[path] = torch.inf
                    if not lengths.min() < last[path[-1]]:
                        break
                    path.append(int(lengths.argmin()))
            told = rows[torch.tensor(path, dtype=torch.long, device=rows.device)]
            near = bool(ways.direct[b] <= self.limit)
            found.append(Route(told.cpu().numpy(), found=near or len(path) > 0))
        return tuple(found)

    def landmarks(self) -> Landmarks:
        """The map."""
        return self._required()[2]

    def links(self) -> np.ndarray:
        """(L, 2) pairs of places: an edge leads from the first one to the second one."""
        found = self.chart.edges.isfinite().nonzero()
        return found[found[:, 0] != found[:, 1]].cpu().numpy()

    @cached_property
    def chart(self) -> Chart:
        """The map with its edges and the lengths of all shortest ways; made once."""
        _, distance, places = self._required()
        with torch.no_grad():
            embedded = distance.embed(places.latents)
            steps = distance.between(embedded[:, None], embedded[None])
            edges = self._trusted(steps)
            return Chart(embedded, edges, shortest(edges))

    def _ways(self, now: Tensor, goal: Tensor) -> _Ways:
        """How far it is, directly and over each place of the map."""
        _, distance, _ = self._required()
        chart = self.chart
        here, there = distance.embed(now), distance.embed(goal)
        direct = distance.between(here, there)
        near = self._trusted(distance.between(here[:, None], chart.embedded))
        last = self._trusted(distance.between(chart.embedded, there[:, None]))
        together = max(1, NUMBERS_AT_ONCE // chart.lengths.numel())
        onwards = torch.cat(
            [(chart.lengths + some[:, None]).amin(dim=-1) for some in last.split(together)]
        )
        over = near + onwards
        by_map = ~(direct <= self.limit) & over.isfinite().any(dim=1)
        return _Ways(direct, near, last, onwards, over, by_map)

    def _trusted(self, steps: Tensor) -> Tensor:
        return torch.where(steps <= self.limit, steps, torch.inf)

    def _required(self) -> tuple[Imitator, Embedding, Landmarks]:
        if self.network is None or self.distance is None or self.map is None:
            raise ValueError(
                "solver 'waypoints': expected the heads of a run, 'amortised', 'map' and "
                "'temporal', got none or not all. Make them with: lewm fit RUN amortised map "
                "temporal"
            )
        return self.network, self.distance, self.map


@dataclass(frozen=True)
class Chart:
    """A map with its ways.

    Attributes:
        embedded: (M, E) places, as the distance embeds them.
        edges: (M, M) env steps from each place to each other one; infinite where they are not
            trusted.
        lengths: (M, M) of the shortest ways along edges; infinite where there is none.
    """

    embedded: Tensor
    edges: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class _Ways:
    """What lies between b environments and their goals, in env steps; infinite where it is not
    trusted.

    Attributes:
        direct: (b,) to the goal, trusted or not.
        near: (b, M) to each place.
        last: (b, M) from each place to the goal.
        onwards: (b, M) from each place over others to the goal.
        over: (b, M) to the goal over each place as the first one.
        by_map: (b,) bool: the goal is not near, and the map knows a way.
    """

    direct: Tensor
    near: Tensor
    last: Tensor
    onwards: Tensor
    over: Tensor
    by_map: Tensor


def shortest(edges: Tensor) -> Tensor:
    """(M, M) lengths of edges, infinite where there is none -> (M, M) lengths of the shortest
    paths; 0 from a place to itself.

    Source: Floyd (1962) and Warshall (1962).
    """
    lengths = edges.clone()
    lengths.fill_diagonal_(0.0)
    for k in range(len(lengths)):
        lengths = torch.minimum(lengths, lengths[:, k : k + 1] + lengths[k : k + 1])
    return lengths
