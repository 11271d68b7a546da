"""Recipes of Reacher, at tiny and at published size."""

from __future__ import annotations

from dataclasses import replace

from lewm.experiments.experiment import CollectionConfig, Experiment, many_short_windows
from lewm.models.lewm import LeWMConfig
from lewm.planning.config import PlanningConfig
from lewm.planning.objectives.l2 import L2
from lewm.planning.objectives.temporal import Temporal
from lewm.planning.solvers.amortised import Amortised
from lewm.planning.solvers.cem import CEM
from lewm.training.config import TrainingConfig

__all__ = ["reacher_tiny", "reacher_paper"]


def reacher_tiny() -> Experiment:
    """Reacher at 64 px in the look "fast", on episodes of random torques, as in the published
    data."""
    return Experiment(
        recipe="reacher-tiny",
        world="reacher",
        look="fast",
        image_size=64,
        collection=CollectionConfig(episodes=1000, policy="random", every=5, compression="blosc"),
        # Two frames show a velocity, one does not. A convolutional stem: the arm is two pixels
        # wide.
        model=replace(many_short_windows(), context=2, sigreg_weight=0.1),
        training=TrainingConfig(
            updates=2500,
            batch_size=42,
            window=3,
            learning_rate=1.5e-3,
            warmup=0.05,
            checkpoint_every=500,
            precision="32-true",
        ),
        planning=PlanningConfig(Temporal(), Amortised(), receding=1),
        hardware="2 CPU cores",
        cost="a quarter of an hour on one core",
        expected=(
            "success 96 to 98% (offset 25, strict, 200 held-out pairs, 3 seeds; random 8 to 11%, "
            "CEM 100 x 5 76 to 83%)"
        ),
        source="ours; see docs/log",
    )


def reacher_paper() -> Experiment:
    """Reacher at 224 px with the published configuration."""
    return Experiment(
        recipe="reacher-paper",
        world="reacher",
        image_size=224,
        collection=CollectionConfig(episodes=10_000, policy="random", compression="blosc"),
        model=LeWMConfig(),
        training=TrainingConfig(epochs=10),
        planning=PlanningConfig(L2(), CEM(num_candidates=300, num_elites=30, num_iterations=10)),
        hardware="one GPU of 48 GB (published: an L40S)",
        cost="hours of GPU; two million pictures to render",
        expected="success 86% (offset 25, budget 50)",
        source="LeWorldModel (arXiv 2603.19312), table 1; not re-measured by us",
    )
