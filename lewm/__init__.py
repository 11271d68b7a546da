"""LeWorldModel, whole: collect, train, plan, probe and explain a world model that learns from
pixels and actions alone.

The names below are the public surface. Each is imported when it is first asked for, so that `import
lewm` costs nothing; editors and type checkers read the explicit imports.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lewm.analyses.decoding import Decoding as Decoding
    from lewm.analyses.economy import Economy as Economy
    from lewm.analyses.geometry import Geometry as Geometry
    from lewm.analyses.planning import Planning as Planning
    from lewm.analyses.probing import Probing as Probing
    from lewm.analyses.surprise import Surprise as Surprise
    from lewm.contracts import Batch as Batch
    from lewm.contracts import DataSpec as DataSpec
    from lewm.contracts import Progress as Progress
    from lewm.contracts import Statistics as Statistics
    from lewm.contracts import WorldSpec as WorldSpec
    from lewm.data.collecting import collect as collect
    from lewm.data.episodes import Episode as Episode
    from lewm.data.episodes import Episodes as Episodes
    from lewm.data.split import split as split
    from lewm.data.writing import EpisodeWriter as EpisodeWriter
    from lewm.evaluation.tasks import Task as Task
    from lewm.experiments.steps import evaluate as evaluate
    from lewm.experiments.steps import fit_heads as fit_heads
    from lewm.experiments.steps import recipe as recipe
    from lewm.experiments.steps import train as train
    from lewm.models.lewm import LeWMConfig as LeWMConfig
    from lewm.models.nn.sigreg import sigreg as sigreg
    from lewm.planning.agent import Agent as Agent
    from lewm.planning.config import PlanningConfig as PlanningConfig
    from lewm.planning.heads.amortised import AmortisedConfig as AmortisedConfig
    from lewm.planning.heads.map import MapConfig as MapConfig
    from lewm.planning.heads.temporal import TemporalConfig as TemporalConfig
    from lewm.planning.objectives.l1 import L1 as L1
    from lewm.planning.objectives.l2 import L2 as L2
    from lewm.planning.objectives.own import Own as Own
    from lewm.planning.objectives.temporal import Temporal as Temporal
    from lewm.planning.solvers.amortised import Amortised as Amortised
    from lewm.planning.solvers.cem import CEM as CEM
    from lewm.planning.solvers.gradient import Gradient as Gradient
    from lewm.planning.solvers.icem import ICEM as ICEM
    from lewm.planning.solvers.mppi import MPPI as MPPI
    from lewm.planning.solvers.predictive_sampling import PredictiveSampling as PredictiveSampling
    from lewm.planning.solvers.waypoints import Waypoints as Waypoints
    from lewm.runs.checkpoints import load as load
    from lewm.runs.run import Run as Run
    from lewm.runs.run import open_run as open_run
    from lewm.training.config import TrainingConfig as TrainingConfig
    from lewm.training.fit import FittingConfig as FittingConfig
    from lewm.worlds.kit.opening import open_world as open_world
    from lewm.worlds.two_room import TwoRoom as TwoRoom

_HOME = {
    "Agent": "lewm.planning.agent",
    "Amortised": "lewm.planning.solvers.amortised",
    "AmortisedConfig": "lewm.planning.heads.amortised",
    "Batch": "lewm.contracts",
    "CEM": "lewm.planning.solvers.cem",
    "DataSpec": "lewm.contracts",
    "Decoding": "lewm.analyses.decoding",
    "Economy": "lewm.analyses.economy",
    "Episode": "lewm.data.episodes",
    "EpisodeWriter": "lewm.data.writing",
    "Episodes": "lewm.data.episodes",
    "FittingConfig": "lewm.training.fit",
    "Geometry": "lewm.analyses.geometry",
    "Gradient": "lewm.planning.solvers.gradient",
    "ICEM": "lewm.planning.solvers.icem",
    "L1": "lewm.planning.objectives.l1",
    "L2": "lewm.planning.objectives.l2",
    "LeWMConfig": "lewm.models.lewm",
    "MapConfig": "lewm.planning.heads.map",
    "MPPI": "lewm.planning.solvers.mppi",
    "Own": "lewm.planning.objectives.own",
    "Planning": "lewm.analyses.planning",
    "PlanningConfig": "lewm.planning.config",
    "PredictiveSampling": "lewm.planning.solvers.predictive_sampling",
    "Probing": "lewm.analyses.probing",
    "Progress": "lewm.contracts",
    "Run": "lewm.runs.run",
    "Statistics": "lewm.contracts",
    "Surprise": "lewm.analyses.surprise",
    "Task": "lewm.evaluation.tasks",
    "Temporal": "lewm.planning.objectives.temporal",
    "TemporalConfig": "lewm.planning.heads.temporal",
    "TrainingConfig": "lewm.training.config",
    "TwoRoom": "lewm.worlds.two_room",
    "Waypoints": "lewm.planning.solvers.waypoints",
    "WorldSpec": "lewm.contracts",
    "collect": "lewm.data.collecting",
    "evaluate": "lewm.experiments.steps",
    "fit_heads": "lewm.experiments.steps",
    "load": "lewm.runs.checkpoints",
    "open_run": "lewm.runs.run",
    "open_world": "lewm.worlds.kit.opening",
    "recipe": "lewm.experiments.steps",
    "sigreg": "lewm.models.nn.sigreg",
    "split": "lewm.data.split",
    "train": "lewm.experiments.steps",
}
"""Public name -> its module; the same names as above, and a test says so."""

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lewm' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
