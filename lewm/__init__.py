"""LeWorldModel, whole: collect, train, plan, probe and explain a world model that learns from pixels and actions alone.

The names below are the public surface. Each is imported when it is first asked for, so that `import lewm` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Agent": "lewm.planning",
    "Batch": "lewm.contracts",
    "CEM": "lewm.solvers.cem",
    "DataSpec": "lewm.contracts",
    "Episodes": "lewm.data",
    "EpisodeWriter": "lewm.recording",
    "L2": "lewm.objectives.l2",
    "LeWMConfig": "lewm.models.lewm",
    "PlanningConfig": "lewm.planning",
    "Probing": "lewm.analyses.probing",
    "Protocol": "lewm.tasks",
    "Statistics": "lewm.contracts",
    "TrainingConfig": "lewm.training",
    "TwoRoom": "lewm.envs.two_room",
    "collect": "lewm.collection",
    "evaluate": "lewm.evaluation",
    "load": "lewm.checkpoints",
    "open_run": "lewm.runs",
    "open_world": "lewm.collection",
    "sigreg": "lewm.losses",
    "split": "lewm.data",
    "train": "lewm.training",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lewm' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
