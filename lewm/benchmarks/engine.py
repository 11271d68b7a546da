"""The engine against the plain rollout: time, arithmetic, and how near to what the machine can do.

One thread. The two alternate (A B A B ...) in one run and the ratio is the median of the pairwise
ratios. Time is that of the processor, not of the clock on the wall, so another process on the
machine costs a little and not a multiple.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lewm import devices
from lewm.analyses.economy import count_flops
from lewm.contracts import DataSpec, Rollout, Statistics
from lewm.experiments import recipes
from lewm.models.lewm import LeWM, LeWMConfig
from lewm.models.nn.layers import Attention

CANDIDATES, HORIZON = 300, 5
SIZES = {
    "full size, K=3": LeWMConfig(),
    "full size, K=1": LeWMConfig(context=1),
    "two-room-tiny": recipes.load("two-room-tiny").lewm,
    "push-t-tiny": recipes.load("push-t-tiny").lewm,
}


def run(quick: bool = False) -> dict[str, Any]:
    """Compare engine and rollout at four sizes; `quick` takes fewer pairs.

    Returns:
        `rows` of {case, ours, reference, unit, ratio}; ratio = reference / ours for times and
        arithmetic, ours / reference for speeds, whose reference is a large product's: above 1 if
        ours is better (None for errors).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            limit = machine_limit()
            rows = [
                row
                for name, config in SIZES.items()
                for row in _compare(name, config, limit, pairs=2 if quick else 7)
            ]
    finally:
        torch.set_num_threads(threads)
    return {
        "name": "engine",
        "what": f"{CANDIDATES} candidates, {HORIZON} steps, one environment, one thread",
        "rows": rows,
    }


def flops(unroll: Rollout, context: Tensor, past_actions: Tensor, actions: Tensor) -> int:
    """Multiplications and additions of one unrolling, as `count_flops` has them."""
    with torch.no_grad():
        return count_flops(lambda: unroll(context, past_actions, actions))


def machine_limit(clock: Callable[[], float] = time.process_time, side: int = 1536) -> float:
    """GFLOP/s of a large float32 matrix product, the best of several, by the processor's clock or
    another."""
    x = torch.randn(side, side)
    return 2 * side**3 / 1e9 / min(_seconds(lambda: x @ x, clock) for _ in range(8))


def _compare(name: str, config: LeWMConfig, limit: float, pairs: int) -> list[dict[str, Any]]:
    model = _model(config)
    engine, asked = model.engine(), _question(model)
    rows = [_row(f"{name}: one scoring round", engine, model.rollout, asked, pairs)]
    done, plain = flops(engine, *asked) / 1e9, flops(model.rollout, *asked) / 1e9
    speed = done / (rows[0]["ours"] / 1e3)
    rows += [
        {
            "case": f"{name}: arithmetic",
            "ours": done,
            "reference": plain,
            "unit": "GFLOP",
            "ratio": plain / done,
        },
        {
            "case": f"{name}: speed",
            "ours": speed,
            "reference": limit,
            "unit": "GFLOP/s",
            "ratio": speed / limit,
        },
    ]
    if not name.startswith("full size"):
        return rows
    rows += _low_precision(name, model, engine, asked, pairs)
    if config.context == 1:
        for block in model.predictor.blocks.children():
            block.attention = _PublishedAttention(cast(Attention, block.attention))
        rows.append(
            _row(
                f"{name}: against a softmax over one token, as published",
                engine,
                model.rollout,
                asked,
                pairs,
            )
        )
    return rows


def _low_precision(
    name: str, model: LeWM, engine: Rollout, asked: tuple[Tensor, Tensor, Tensor], pairs: int
) -> list[dict[str, Any]]:
    exact = engine(*asked)
    rows = []
    for precision in ("int8", "bfloat16"):
        if precision == "bfloat16" and devices.fastest_precision("cpu") != "bf16-mixed":
            continue
        low = model.engine(precision)
        error = float((low(*asked) - exact).std() / exact.std())
        rows += [
            _row(
                f"{name}: {precision} against float32, both the engine", low, engine, asked, pairs
            ),
            {
                "case": f"{name}: error of {precision}",
                "ours": error,
                "reference": 0.0,
                "unit": "std of latents",
                "ratio": None,
            },
        ]
    return rows


def _row(
    case: str, ours: Rollout, reference: Rollout, asked: tuple[Tensor, Tensor, Tensor], pairs: int
) -> dict[str, Any]:
    times = [
        (_seconds(lambda: ours(*asked)), _seconds(lambda: reference(*asked)))
        for _ in range(pairs + 1)
    ]
    times = times[1:]  # the first pair warms up
    return {
        "case": case,
        "ours": 1e3 * statistics.median(a for a, _ in times),
        "reference": 1e3 * statistics.median(b for _, b in times),
        "unit": "ms",
        "ratio": statistics.median(b / a for a, b in times),
    }


def _seconds(call: Callable[[], Any], clock: Callable[[], float] = time.process_time) -> float:
    start = clock()
    call()
    return clock() - start


def _question(model: LeWM) -> tuple[Tensor, Tensor, Tensor]:
    """An episode that has just begun: one latent, no past block, and random candidates."""
    g = torch.Generator().manual_seed(0)
    actions = torch.randn(1, CANDIDATES, HORIZON, model.spec.block_dim, generator=g)
    return (
        torch.randn(1, 1, model.latent_dim, generator=g),
        torch.zeros(1, 0, model.spec.block_dim),
        actions,
    )


def _model(config: LeWMConfig) -> LeWM:
    """Random weights, shaken: as initialised, AdaLN-zero would be the identity, whatever it is
    given."""
    torch.manual_seed(0)
    size = 16 * config.patch_size if config.patch_size == 14 else 64
    model = config.build(
        DataSpec(size, 5, Statistics((0.9,) * 3, (0.2,) * 3, (0.0, 0.0), (0.5, 0.5)))
    ).eval()
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return model


class _PublishedAttention(nn.Module):
    """Attention without our shortcut: queries, keys and a softmax even where a token is alone."""

    def __init__(self, ours: Attention) -> None:
        super().__init__()
        self.ours = ours

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.ours.heads, -1)).transpose(1, 2)
            for part in self.ours.qkv(x).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.ours.out(mixed.transpose(1, 2).flatten(2))


if __name__ == "__main__":
    print(json.dumps(run(quick="--quick" in sys.argv), indent=2))
