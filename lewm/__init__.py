"""LeWorldModel, whole: collect, train, plan, probe and explain a world model that learns from
pixels and actions alone.

The names below are the public surface. Each is imported when it is first asked for, so that `import
lewm` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Agent": "lewm.planning.agent",
    "Batch": "lewm.contracts",
    "CEM": "lewm.planning.solvers.cem",
    "DataSpec": "lewm.contracts",
    "EpisodeWriter": "lewm.data.writing",
    "Episodes": "lewm.data.episodes",
    "L2": "lewm.planning.objectives.l2",
    "LeWMConfig": "lewm.models.lewm",
    "PlanningConfig": "lewm.planning.agent",
    "Probing": "lewm.analyses.probing",
    "Statistics": "lewm.contracts",
    "Task": "lewm.evaluation.tasks",
    "TrainingConfig": "lewm.training.train",
    "TwoRoom": "lewm.worlds.two_room",
    "collect": "lewm.data.collecting",
    "evaluate": "lewm.evaluation.evaluate",
    "load": "lewm.runs.checkpoints",
    "open_run": "lewm.runs.run",
    "open_world": "lewm.worlds.kit.opening",
    "sigreg": "lewm.models.nn.losses",
    "split": "lewm.data.split",
    "train": "lewm.training.train",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lewm' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
