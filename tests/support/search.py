"""Costs with known minima, and a batch of searches small enough to follow."""

from __future__ import annotations

import torch

from lewm.contracts import Box, Plan

B, H, A = 3, 2, 2


BOX = Box(low=torch.tensor([-2.0, -1.0]), high=torch.tensor([2.0, 1.0]))


def start(b=B, mean=0.0, std=1.0):
    return Plan(mean=torch.full((b, H, A), mean), std=torch.full((b, H, A), std))


def generators(seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def quadratic(target):
    return lambda actions: (actions - target).square().sum((-1, -2))


def walls(actions):
    """Cheap on the left, cheap on the right, dear in the middle: the mean of good plans is a bad
    one."""
    x = actions[..., 0, 0]
    return torch.minimum((x - 1).square(), (x + 1).square()) + 0.1 * actions[..., 1].square().sum(
        -1
    )


def ripples(actions):
    return torch.sin(9 * actions).sum((-1, -2))


class Counted:
    """A cost that keeps how many candidates each call scored."""

    def __init__(self, cost):
        self.cost, self.calls = cost, []

    def __call__(self, actions):
        self.calls.append(actions.shape[1])
        return self.cost(actions)
