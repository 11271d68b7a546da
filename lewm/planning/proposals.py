"""What solvers share that begin from a network's proposal in place of a cold search."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from lewm.contracts import Box, Imitator, Plan
from lewm.planning.search import Search

__all__ = ["around", "imitated"]


def imitated(network: Imitator, now: Tensor, goal: Tensor, steps: Tensor, horizon: int) -> Tensor:
    """What was done where such a way began.

    Args:
        now, goal: (B, D) latents.
        steps: (B,) env steps remaining; less than one counts as one.

    Returns:
        (B, horizon, A) normalised blocks, not clipped.

    Raises:
        ValueError: the network plans another number of blocks.
    """
    blocks = network.plan(now, goal, steps.clamp(min=1))
    if blocks.shape[1] != horizon:
        raise ValueError(
            f"expected a head 'amortised' that plans {horizon} blocks, as the horizon says, got "
            f"one of {blocks.shape[1]}. Plan with a horizon of {blocks.shape[1]}, or fit the head "
            f"for {horizon}."
        )
    return blocks


def around(start: Plan, box: Box, generators: Sequence[Generator], spread: float) -> Plan:
    """A proposal as a plan: the mean of `start`, clamped to the box, with std `spread`.

    Raises:
        ValueError: the number of generators is not that of the environments.
    """
    return Plan(Search(start, box, generators).mean, torch.full_like(start.std, spread))
