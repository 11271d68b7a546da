"""Rows of a study, as `lewm study` writes them, with numbers that a test chooses."""

from __future__ import annotations

import numpy as np


def task(solved, drawn="pairs", **more):
    bits = np.asarray(solved, bool)
    return {
        "rate": bits.mean(),
        "pairs": len(bits),
        "solved": np.packbits(bits).tobytes().hex(),
        "drawn": drawn,
        **more,
    }


def row(method, rate, seed, solved, draw=None, drawn=None, **more):
    numbers = {"probe_r": 0.9, "latent_std": 1.0, "effective_rank": 5.0, "straightness": 0.1}
    numbers |= {"cost_rank_states": 0.8, "train_cpu_s": 40.0, "tokens": 1, "parameters": 540_000}
    numbers |= {
        "plan_ms": 12.0,
        "error_of_copying": {"1": 0.1, "5": 0.05},
        "probe_controls": {"random encoder": 0.5},
    }
    far = task(solved, drawn or f"seed{seed}", episodes=list(range(len(solved))))
    name = f"{method}-{rate}-{seed}-{draw}"
    return {
        "name": name,
        "world": "w",
        "method": method,
        "rate": rate,
        "seed": seed,
        "draw": draw,
        "tasks": {"far": far},
        **numbers,
        **more,
    }
