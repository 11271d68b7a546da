"""Planning for 50 environments in one batch against one environment after the other: time, and
whether the plans agree.

One thread, random weights: the time does not depend on what they are. The two alternate (A B A B
...) in one run and the ratio is the median of the pairwise ratios, so that another process which
slows the machine down for a while slows both.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import numpy as np
import torch

from lewm.contracts import DataSpec, Statistics, WorldSpec
from lewm.models.lewm import LeWM, LeWMConfig
from lewm.planning.agent import Agent
from lewm.planning.config import PlanningConfig
from lewm.planning.objectives.l2 import L2
from lewm.planning.solvers.cem import CEM
from lewm.worlds.kit.opening import open_world

ENVIRONMENTS = 50
SEARCHES = {
    "100 x 4, actions held": PlanningConfig(
        L2(), CEM(num_candidates=100, num_elites=10, num_iterations=4), hold_actions=True
    ),
    "32 x 3, actions held": PlanningConfig(
        L2(), CEM(num_candidates=32, num_elites=4, num_iterations=3), hold_actions=True
    ),
}


def run(quick: bool = False) -> dict[str, Any]:
    """Compare the two ways; `quick` takes fewer pairs.

    Returns:
        `rows` of {case, ours, reference, unit, ratio}; ratio = reference / ours, above 1 if ours is
        better (None for errors).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [
            row
            for case, config in SEARCHES.items()
            for row in _compare(case, config, pairs=2 if quick else 7)
        ]
    finally:
        torch.set_num_threads(threads)
    return {
        "name": "planning",
        "what": f"tiny model, 64 px, {ENVIRONMENTS} environments, one thread",
        "rows": rows,
    }


def _compare(case: str, config: PlanningConfig, pairs: int) -> list[dict[str, Any]]:
    world = open_world("two-room", ENVIRONMENTS, image_size=64)
    model = _model()
    pixels, goals = world.render(), world.render(world.goals)
    seconds: dict[int, list[float]] = {ENVIRONMENTS: [], 1: []}
    plans: dict[int, np.ndarray] = {}
    for _ in range(pairs + 1):
        for size in seconds:
            start = time.perf_counter()
            plans[size] = _act(model, config, world.spec, pixels, goals, size)
            seconds[size].append(time.perf_counter() - start)
    together, alone = (times[1:] for times in seconds.values())  # the first pair warms up
    difference = float(np.abs(plans[ENVIRONMENTS] - plans[1]).max())
    return [
        {
            "case": f"CEM {case}: time per plan",
            "ours": 1e3 * statistics.median(together) / ENVIRONMENTS,
            "reference": 1e3 * statistics.median(alone) / ENVIRONMENTS,
            "unit": "ms",
            "ratio": statistics.median(b / a for a, b in zip(together, alone, strict=True)),
        },
        {
            "case": f"CEM {case}: largest difference of the actions",
            "ours": difference,
            "reference": 0.0,
            "unit": "of an action box from -1 to 1",
            "ratio": None,
        },
    ]


def _model() -> LeWM:
    """Random weights, shaken: as initialised, AdaLN-zero ignores the actions, and all plans cost
    the same."""
    torch.manual_seed(0)
    model = (
        LeWMConfig.tiny()
        .build(DataSpec(64, 5, Statistics((0.9,) * 3, (0.2,) * 3, (0.0, 0.0), (0.5, 0.5))))
        .eval()
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def _act(
    model: LeWM,
    config: PlanningConfig,
    spec: WorldSpec,
    pixels: np.ndarray,
    goals: np.ndarray,
    size: int,
) -> np.ndarray:
    """(50, a) first actions, planned for `size` environments at a time."""
    actions = []
    for first in range(0, ENVIRONMENTS, size):
        part = slice(first, first + size)
        actions.append(
            Agent(model, config, spec, range(first, first + size)).act(pixels[part], goals[part])
        )
    return np.concatenate(actions)


if __name__ == "__main__":
    print(json.dumps(run(quick="--quick" in sys.argv), indent=2))
