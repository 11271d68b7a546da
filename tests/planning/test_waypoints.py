"""The planner by waypoints: shortest ways over maps made by hand, and what is aimed at."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lewm.contracts import Embedding, Imitator, Landmarks, Proposing, Routing, Selecting
from lewm.planning.agent import Agent
from lewm.planning.config import PlanningConfig
from lewm.planning.heads.map import LatentMap, MapConfig
from lewm.planning.heads.temporal import TemporalConfig
from lewm.planning.objectives.l2 import L2
from lewm.planning.solvers.amortised import Amortised
from lewm.planning.solvers.waypoints import Waypoints, shortest
from tests.support.point_world import (
    FRAMESKIP,
    SPEED,
    STATISTICS,
    PointModel,
    PointWorld,
    draw,
)

H, A = 5, 2
INF = float("inf")


class Told(torch.nn.Module):
    """Proposes the aim itself, and keeps what it was told."""

    horizon = H

    def plan(self, now, goal, steps):
        self.aims, self.steps = goal.clone(), steps.clone()
        return goal[:, None].expand(-1, H, -1)


class Table(torch.nn.Module):
    """Distances between numbered places, from a table; a latent is (number, 0)."""

    def __init__(self, table):
        super().__init__()
        self.table = torch.tensor(table, dtype=torch.float32)

    def embed(self, latents):
        return latents[..., :1]

    def between(self, now, goal):
        return self.table[now[..., 0].long(), goal[..., 0].long()]

    def distance(self, now, goal):
        return self.between(self.embed(now), self.embed(goal))


def places(*numbers):
    return torch.tensor([[float(n), 0.0] for n in numbers])


def table(ways, count):
    """Env steps between `count` numbered places, 99 where no way is named."""
    found = torch.full((count, count), 99.0)
    found.fill_diagonal_(0.0)
    for (a, b), steps in ways.items():
        found[a, b] = steps
    return found.tolist()


def solver(ways, count, on_map, **changes):
    """With a map of some of the places, whose rows are ten times their numbers."""
    landmarks = SimpleNamespace(
        latents=places(*on_map), rows=torch.tensor([10 * n for n in on_map])
    )
    settings = {"limit": 10.0, "aims": 1, "pace": 1.0} | changes
    return Waypoints(Told(), Table(table(ways, count)), landmarks, **settings)


def aimed(made, now, goal):
    """-> numbers of the aims, and the steps that were told."""
    made.propose(places(*now), places(*goal), torch.zeros(len(now)), H)
    return made.network.aims[:, 0].tolist(), made.network.steps.tolist()


# 0 is the start and 5 the goal: 0-1-2-5 takes 22 steps, 0-3-4-5 takes 24, and straight it is far
TWO_WAYS = {
    (0, 1): 8,
    (1, 2): 7,
    (2, 5): 7,
    (0, 3): 5,
    (3, 4): 9,
    (4, 5): 10,
}
OF_MAP = (1, 2, 3, 4)


def test_the_shortest_way_over_a_map_made_by_hand():
    made = solver(TWO_WAYS, 6, OF_MAP)
    assert aimed(made, [0], [5]) == ([1.0], [8.0])
    (route,) = made.routes(places(0), places(5))
    assert route.found
    assert route.rows.tolist() == [10, 20]
    # a little longer on the first way, and the second one is shorter
    other = solver(TWO_WAYS | {(1, 2): 9.5}, 6, OF_MAP)
    assert aimed(other, [0], [5]) == ([3.0], [5.0])
    assert other.routes(places(0), places(5))[0].rows.tolist() == [30, 40]


def test_lengths_are_those_of_a_search_by_hand():
    """Floyd and Warshall beside Bellman and Ford, on random directed graphs."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        edges = torch.rand(12, 12, generator=generator) * 20
        edges = torch.where(edges < 9, edges, torch.inf)
        slow = edges.clone().fill_diagonal_(0.0)
        for _ in range(12):
            slow = torch.minimum(slow, (slow[:, :, None] + edges[None]).amin(dim=1))
        torch.testing.assert_close(shortest(edges), slow)
    assert shortest(torch.tensor([[0.0, INF], [3.0, 0.0]])).tolist() == [[0.0, INF], [3.0, 0.0]]


def test_a_one_way_edge_leads_one_way():
    """1 leads to 2 and not back: what was pushed cannot be pulled."""
    one_way = {(0, 1): 4, (1, 0): 4, (1, 2): 4, (2, 3): 4, (3, 2): 4}
    made = solver(one_way, 4, (1, 2))
    assert aimed(made, [0], [3]) == ([1.0], [4.0])
    assert made.routes(places(0), places(3))[0].rows.tolist() == [10, 20]
    assert aimed(made, [3], [0]) == ([0.0], [99.0])
    (back,) = made.routes(places(3), places(0))
    assert not back.found
    assert not len(back.rows)


def test_a_goal_out_of_reach_is_aimed_at_as_by_the_amortised_planner():
    made = solver({(0, 1): 4}, 4, (1, 2))
    now, goal, elapsed = places(0, 0), places(3, 1), torch.zeros(2)
    blocks = made.propose(now, goal, elapsed, H)
    rival = Amortised(made.network, made.distance).propose(now, goal, elapsed, H)
    assert torch.equal(blocks, rival)
    far, near = made.routes(now, goal)
    assert (far.found, near.found) == (False, True)
    assert not len(far.rows)


def test_a_goal_that_is_near_is_aimed_at_itself():
    ways = {(0, 1): 2, (1, 2): 2, (0, 2): 9}
    assert aimed(solver(ways, 3, (1,)), [0], [2]) == ([2.0], [9.0])
    # trusted less far, it goes by the place between
    assert aimed(solver(ways, 3, (1,), limit=8.0), [0], [2]) == ([1.0], [2.0])
    (route,) = solver(ways, 3, (1,)).routes(places(0), places(2))
    assert route.found
    assert not len(route.rows)


def test_several_waypoints_are_weighed_by_how_much_longer_their_ways_are():
    """The ways take 22 and 24 steps: weights 1 and exp(-2 / temperature)."""
    made = solver(TWO_WAYS, 6, OF_MAP, aims=3, temperature=4.0)
    blocks = made.propose(places(0), places(5), torch.zeros(1), H)
    weight = 1 / (1 + np.exp(-2 / 4))
    assert blocks[0, 0, 0].item() == pytest.approx(weight * 1 + (1 - weight) * 3, rel=1e-6)
    cold = dataclasses.replace(made, temperature=0.01).propose(
        places(0), places(5), torch.zeros(1), H
    )
    assert cold[0, 0, 0].item() == pytest.approx(1.0)


def test_the_network_is_told_a_share_of_the_steps_and_never_less_than_one():
    made = solver(TWO_WAYS, 6, OF_MAP, pace=0.5)
    assert aimed(made, [0], [5])[1] == [4.0]
    assert aimed(made, [4], [5])[1] == [5.0]
    assert aimed(dataclasses.replace(made, pace=0.01), [0], [5])[1] == [1.0]


@pytest.mark.parametrize("aims", [1, 3, 8])
def test_a_batch_never_changes_a_proposal(aims):
    """Near goals, goals by the map and goals out of reach, together and one at a time."""
    made = solver(TWO_WAYS, 7, OF_MAP, aims=aims)
    now, goal = places(0, 4, 0, 3, 6), places(5, 5, 6, 5, 5)
    together = made.propose(now, goal, torch.zeros(5), H)
    routes = made.routes(now, goal)
    for i in range(5):
        alone = made.propose(now[i : i + 1], goal[i : i + 1], torch.zeros(1), H)
        assert torch.equal(alone[0], together[i])
        (route,) = made.routes(now[i : i + 1], goal[i : i + 1])
        assert (route.found, route.rows.tolist()) == (routes[i].found, routes[i].rows.tolist())


def test_latents_that_are_no_numbers_do_not_spread():
    torch.manual_seed(0)
    head = TemporalConfig(hidden_dim=16).build(2, A).eval().requires_grad_(False)
    landmarks = SimpleNamespace(latents=torch.randn(6, 2), rows=torch.arange(6))
    made = Waypoints(Told(), head, landmarks, limit=500.0)
    now, goal = torch.randn(3, 2), torch.randn(3, 2)
    clean = made.propose(now, goal, torch.zeros(3), H)
    now[1] = torch.nan
    assert torch.equal(made.propose(now, goal, torch.zeros(3), H)[[0, 2]], clean[[0, 2]])


# --------------------------------------------------------------------------------- in a point world


class Straight(torch.nn.Module):
    """Short ways only: beyond 0.15 it does not move at all."""

    horizon = 5

    def plan(self, now, goal, steps):
        way = goal - now
        way = torch.where(way.norm(dim=-1, keepdim=True) > 0.15, 0.0, way)
        moves = (way / SPEED / steps[:, None])[:, None].expand(-1, 5 * FRAMESKIP, -1)
        moves = moves * (torch.arange(5 * FRAMESKIP) < steps[:, None].ceil())[:, :, None]
        return STATISTICS.normalise_actions(moves.unflatten(1, (5, FRAMESKIP)).flatten(2))


class Apart(torch.nn.Module):
    """Env steps in the point world."""

    def embed(self, latents):
        return latents

    def between(self, now, goal):
        return (goal - now).norm(dim=-1) / 0.02

    def distance(self, now, goal):
        return self.between(now, goal)


STARTS = np.array([[0.2, 0.2], [0.8, 0.3], [0.5, 0.8], [0.15, 0.6]])
GOALS = np.array([[0.8, 0.8], [0.2, 0.6], [0.4, 0.2], [0.82, 0.45]])


def grid():
    line = torch.linspace(0.1, 0.9, 12)
    return SimpleNamespace(latents=torch.cartesian_prod(line, line), rows=torch.arange(144))


def drive(planner, steps=120, trace=False, deadline_s=None):
    world = PointWorld(4)
    world.set_states(STARTS)
    config = PlanningConfig(L2(), planner, receding=1)
    agent = Agent(PointModel(), config, PointWorld(1).spec, range(4), trace=trace)
    for _ in range(steps):
        world.step(agent.act(world.render(), draw(GOALS), deadline_s=deadline_s))
    return np.linalg.norm(world.states - GOALS, axis=1), agent


def test_it_gets_where_its_network_alone_does_not():
    alone, _ = drive(Amortised(Straight(), Apart()))
    assert alone.min() > 0.3
    made = Waypoints(Straight(), Apart(), grid(), limit=6.0, pace=1.0)
    by_map, agent = drive(made, trace=True)
    assert by_map.max() < 0.03
    assert agent.effort.predictor_calls_per_plan == 0
    first, last = agent.trace[0], agent.trace[-1]
    assert all(route.found and len(route.rows) >= 2 for route in first.routes)
    assert all(route.found and not len(route.rows) for route in last.routes)
    # of one environment alone
    one = first.of(2)
    assert one is not None
    assert [route.rows.tolist() for route in one.routes] == [first.routes[2].rows.tolist()]
    # the places of a route lead from the start to the goal, none farther than is trusted
    way = torch.cat([torch.tensor(STARTS[2:3]), grid().latents[first.routes[2].rows]])
    way = torch.cat([way, torch.tensor(GOALS[2:3])])
    assert ((way[1:] - way[:-1]).norm(dim=-1) <= 6.0 * 0.02 + 0.02).all()


def test_a_deadline_does_not_hinder_it():
    made = Waypoints(Straight(), Apart(), grid(), limit=6.0, pace=1.0)
    apart, agent = drive(made, deadline_s=0.0)
    assert apart.max() < 0.03
    assert agent.effort.cut_short == 0


# ------------------------------------------------------------------------------------------ the map


def test_roles():
    assert isinstance(Waypoints(), Proposing)
    assert isinstance(Waypoints(), Routing)
    made = MapConfig().build(3, A)
    assert isinstance(made, Landmarks)
    assert isinstance(made, Selecting)
    assert isinstance(TemporalConfig().build(3, A), Embedding)
    assert isinstance(Straight(), Imitator)


def test_places_are_spread_over_what_was_seen():
    """A thousand frames in one spot, and four far corners: all five are on a map of five."""
    torch.manual_seed(0)
    corners = torch.tensor([[9.0, 9.0], [-9.0, 9.0], [9.0, -9.0], [-9.0, -9.0]])
    latents = torch.cat([0.01 * torch.randn(1000, 2), corners])
    made = MapConfig(places=5).build(2, A)
    made.select(latents, 100 + torch.arange(1004))
    assert sorted(made.rows.tolist())[1:] == [1100, 1101, 1102, 1103]
    assert made.rows[0] < 1100
    assert torch.equal(made.latents, latents[made.rows - 100])
    # farthest first: half of the greatest distance that is left is the best there can be
    chosen = MapConfig(places=3).build(2, A)
    chosen.select(latents, torch.arange(1004))
    assert chosen.loss_of(latents).max().item() == pytest.approx(9 * 2**0.5, rel=0.01)
    assert made.loss_of(latents).max().item() < 0.1


def test_no_place_is_taken_twice():
    latents = torch.tensor([[1.0, 2.0]] * 50 + [[3.0, 4.0]] * 50 + [[5.0, 9.0]])
    made = MapConfig(places=20).build(2, A)
    made.select(latents, torch.arange(101))
    assert made.config.places == len(made.latents) == 3
    again = LatentMap(made.config, 2)
    again.load_state_dict(made.state_dict())
    assert torch.equal(again.latents, made.latents)
    alike = MapConfig(places=20).build(2, A)
    alike.select(torch.ones(9, 2), torch.arange(9))
    assert len(alike.latents) == alike.config.places == 2


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("lacking", ["network", "distance", "map"])
def test_without_heads_the_command_that_makes_them_is_named(lacking):
    made = dataclasses.replace(solver(TWO_WAYS, 6, OF_MAP), **{lacking: None})
    with pytest.raises(ValueError, match="lewm fit RUN amortised map temporal"):
        made.propose(places(0), places(5), torch.zeros(1), H)


def test_a_head_of_another_length_is_refused():
    with pytest.raises(ValueError, match="that plans 3 blocks, as the horizon says, got one of 5"):
        solver(TWO_WAYS, 6, OF_MAP).propose(places(0), places(5), torch.zeros(1), 3)


@pytest.mark.parametrize(
    "changes", [{"limit": 0}, {"pace": 0}, {"aims": 0}, {"temperature": 0.0}, {"spread": 0.0}]
)
def test_what_cannot_be_is_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        dataclasses.replace(Waypoints(), **changes)
