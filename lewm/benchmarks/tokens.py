"""What a token costs: one search on LeWM's one token per frame, and on 16, 64 and 196 patch tokens
of our own DINO-WM.

Random weights, which are as dear as trained ones. One environment, one thread, time of the
processor. The two alternate in one run, and the ratio is the median of the pairwise ratios. What
is timed is the search alone: the frozen encoder, which has to look twice a plan, is not in it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lewm.analyses.economy import count_flops
from lewm.contracts import Box, DataSpec, Plan, Rollout, Statistics, Trainable, WorldModel
from lewm.experiments.methods import SEARCH
from lewm.models.dino_wm import DINOWMConfig
from lewm.models.lewm import LeWMConfig
from lewm.planning.objectives.l2 import L2

HORIZON = 5
RESOLUTIONS = {16: 56, 64: 112, 196: 196}
"""Tokens -> pixels to which pictures are resized for a ViT with patches of 14."""

SPEC = DataSpec(64, 5, Statistics((0.5,) * 3, (0.25,) * 3, (0.0, 0.0), (0.5, 0.5)))


def run(quick: bool = False) -> dict[str, Any]:
    """Compare the planning time of both; `quick` leaves 196 tokens out and takes fewer pairs.

    Returns:
        `rows` of {case, ours, reference, unit, ratio}, and `points`, one per model, of {model,
        tokens, parameters, ms, gflop}.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            return _run((16, 64) if quick else tuple(RESOLUTIONS), 1 if quick else 3)
    finally:
        torch.set_num_threads(threads)


def _run(tokens: tuple[int, ...], pairs: int) -> dict[str, Any]:
    torch.manual_seed(0)
    ours = LeWMConfig.tiny().build(SPEC).eval()
    one = _search(ours.engine(), ours)
    rows: list[dict[str, Any]] = []
    points: list[dict[str, Any]] = []
    for count in tokens:
        config = replace(
            DINOWMConfig.tiny(), encoder="random", channels=64, resolution=RESOLUTIONS[count]
        )
        many = config.build(SPEC).eval()
        assert many.tokens == count
        search = _search(many.rollout, many)
        times = [(_seconds(one), _seconds(search)) for _ in range(pairs + 1)][1:]
        first, second = (1e3 * statistics.median(each) for each in zip(*times, strict=True))
        rows.append(
            {
                "case": f"a plan, 1 token against {count}",
                "ours": first,
                "reference": second,
                "unit": "ms",
                "ratio": statistics.median(b / a for a, b in times),
            }
        )
        if not points:
            points.append(_point("LeWM", 1, ours, one, first))
        points.append(_point("DINO-WM", count, many, search, second))
    what = (
        f"CEM {SEARCH.num_candidates} x {SEARCH.num_iterations} x {HORIZON} blocks, one "
        "environment, one thread, both tiny"
    )
    return {"name": "tokens", "what": what, "rows": rows, "points": points}


def _search(rollout: Rollout, model: WorldModel) -> Callable[[], Any]:
    """One plan from a random latent to another."""
    generator = torch.Generator().manual_seed(1)
    context, goal = torch.randn(2, 1, model.latent_dim, generator=generator).unsqueeze(1)
    start = Plan(torch.zeros(1, HORIZON, SPEC.block_dim), torch.ones(1, HORIZON, SPEC.block_dim))
    box, past = Box(*torch.full((2, SPEC.block_dim), 2.0).mul(torch.tensor([[-1], [1]]))), context

    def cost(actions: Tensor) -> Tensor:
        return L2().cost(rollout(context, past[:, :0, : SPEC.block_dim], actions), goal[:, 0])

    return lambda: SEARCH.solve(cost, start, box, [torch.Generator().manual_seed(2)])


def _point(
    name: str, tokens: int, model: Trainable, search: Callable[[], Any], ms: float
) -> dict[str, Any]:
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    gflop = count_flops(search) / 1e9
    return {"model": name, "tokens": tokens, "parameters": parameters, "ms": ms, "gflop": gflop}


def _seconds(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
