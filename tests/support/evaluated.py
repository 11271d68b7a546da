"""An evaluation in which every rate differs: of each policy, by each criterion, under each way of
counting."""

from __future__ import annotations

import numpy as np

from lewm.evaluation.outcome import AGENT, Evaluation
from lewm.evaluation.tasks import Pairs, Task
from lewm.planning.trace import Effort

RATES = {
    AGENT: {"paper": (5, 7), "strict": (4, 7)},
    "random": {"paper": (4, 7), "strict": (2, 7)},
    "do-nothing": {"paper": (3, 7), "strict": (0, 7)},
}
"""Policy -> way of counting -> successes and attempts."""


def evaluation(task=Task.along(75, 7, seed=3)):  # noqa: B008  frozen
    n = 10
    at_start = np.isin(np.arange(n), (0, 2, 5))
    pairs = Pairs(
        index=np.arange(n),
        start_episodes=np.array([20, 20, 21, 21, 22, 22, 23, 23, 24, 25]),
        goal_episodes=np.arange(n) + 60,
        start_rows=np.arange(n) + 100,
        goal_rows=np.arange(n) + 175,
        starts=np.arange(2.0 * n).reshape(n, 2),
        goals=np.arange(2.0 * n).reshape(n, 2) + 50,
        solved_at_start=at_start,
        paper=np.arange(n) < 7,
        strict=~at_start,
    )
    steps = {
        AGENT: [0, 4, 0, -1, 9, 0, -1, 12, 20, -1],
        "random": [0, -1, 0, 8, -1, 0, -1, -1, -1, 6],
        "do-nothing": [0, -1, 0, -1, -1, 0, -1, -1, -1, -1],
    }
    exact = {
        AGENT: [-1, 4, -1, -1, 9, 0, -1, 12, -1, -1],
        "random": [-1, -1, 0, 8, -1, -1, -1, -1, -1, -1],
        "do-nothing": [-1, -1, 0, -1, -1, -1, -1, -1, -1, -1],
    }
    return Evaluation(
        protocol=task,
        pairs=pairs,
        success_steps={policy: np.array(of) for policy, of in steps.items()},
        effort=Effort(plans=8, predictor_calls=400, seconds=2.0),
        batch=5,
        seconds={"agent": 3.0, "total": 4.5},
        omitted={},
        others={"exact": {policy: np.array(of) for policy, of in exact.items()}},
    )
