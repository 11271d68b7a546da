"""Results and recordings to draw."""

from __future__ import annotations

import numpy as np

from lewm.contracts import Result
from lewm.evaluation.evaluate import Recording
from lewm.planning.agent import Replan, Scored


def probing(frames=50):
    generator = np.random.default_rng(0)
    states = generator.uniform(20, 200, (frames, 2))
    scores = {"unit": "px", "r": 0.98765, "strength": 1e-6}
    return Result(
        "probing",
        {
            "variables": {"x": scores, "y": scores},
            "rollout": {"steps": [], "variables": {}, "units": {}},
        },
        {"states": states, "predictions": states + 1, "plane": generator.normal(size=(frames, 2))},
    )


ROWS = [
    {
        "update": u,
        "prediction": 1 / u,
        "sigreg": 5.0,
        "latent_std": 0.9,
        "effective_rank": 3.0,
        "gradient_norm": 1.0,
    }
    for u in (10, 20, 30)
]


def recording(steps=10, success=True, replan_every=5):
    """A dot on white that walks along y = 20; plans are imagined along y = 80, in latents that are
    a tenth of the state."""
    replans = tuple(
        Replan(
            step=step,
            environments=np.array([0]),
            rounds=tuple(
                Scored(np.zeros((1, n)), np.zeros((1, n, 2, 2)), np.full((1, n, 2), (7.0, 8.0)))
                for n in (6, 6, 1)
            ),
            plan=np.zeros((1, 2, 2)),
            actions=np.zeros((1, 10, 2)),
            now=np.zeros((1, 2)),
            goal=np.zeros((1, 2)),
            latents=np.array([[[4.0, 8.0], [6.0, 8.0]]]),
        )
        for step in range(0, steps, replan_every)
    )
    states = np.stack([np.linspace(10, 50, steps + 1), np.full(steps + 1, 20)], axis=1).astype(
        np.float32
    )
    white = np.full((steps + 1, 32, 32, 3), 255, np.uint8)
    return Recording(
        white,
        white[0],
        states,
        np.array([60.0, 50.0]),
        np.zeros((steps, 2)),
        steps if success else None,
        replans,
    )
