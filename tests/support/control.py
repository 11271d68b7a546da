"""Point worlds with starts and goals, and an agent that acts in them."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from lewm.contracts import Plan
from lewm.planning.config import PlanningConfig
from lewm.planning.objectives.l2 import L2
from lewm.planning.solvers.cem import CEM
from tests.support.point_world import PointWorld, draw

SPEC = PointWorld(1).spec


SMALL = PlanningConfig(L2(), CEM(num_candidates=64, num_elites=8, num_iterations=6))


@dataclasses.dataclass(frozen=True)
class Scripted:
    """A solver that returns the same plan every time, and keeps the starts it was given."""

    mean: torch.Tensor  # (H, width)
    starts: list = dataclasses.field(default_factory=list)
    evaluations = 1

    def solve(self, cost, start, box, generators):
        self.starts.append(start)
        mean = self.mean.expand_as(start.mean)
        cost(mean[:, None])
        return Plan(mean=mean, std=start.std)


def control(agent, starts, goals, steps, **act):
    """Let the agent drive -> (steps+1, B, 2) states and (steps, B, 2) actions."""
    world = PointWorld(len(starts))
    world.set_states(np.asarray(starts))
    goal_pixels = draw(np.asarray(goals))
    states, actions = [world.states], []
    for _ in range(steps):
        actions.append(agent.act(world.render(), goal_pixels, **act))
        world.step(actions[-1])
        states.append(world.states)
    return np.stack(states), np.stack(actions)


STARTS = np.array([[0.2, 0.2], [0.8, 0.3], [0.5, 0.9], [0.1, 0.6], [0.4, 0.4]])


GOALS = np.array([[0.5, 0.4], [0.5, 0.6], [0.3, 0.5], [0.5, 0.5], [0.45, 0.4]])


@dataclasses.dataclass(frozen=True)
class Proposer(Scripted):
    """Starts from what it proposes, which is its mean, and keeps what it was asked."""

    asked: list = dataclasses.field(default_factory=list)

    def propose(self, now, goal, elapsed, horizon):
        self.asked.append((now, goal, elapsed.tolist(), horizon))
        return self.mean.expand(len(now), -1, -1)

    def solve(self, cost, start, box, generators):
        self.starts.append(start)
        return start
