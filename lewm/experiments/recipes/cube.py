"""Recipes of OGBench's single cube, at tiny and at published size."""

from __future__ import annotations

from lewm.experiments.experiment import CollectionConfig, Experiment, many_short_windows
from lewm.models.lewm import LeWMConfig
from lewm.planning.config import PlanningConfig
from lewm.planning.objectives.l2 import L2
from lewm.planning.objectives.temporal import Temporal
from lewm.planning.solvers.amortised import Amortised
from lewm.planning.solvers.cem import CEM
from lewm.training.config import TrainingConfig

__all__ = ["cube_tiny", "cube_paper"]


def cube_tiny() -> Experiment:
    """OGBench's single cube at 64 px in the look "fast", on episodes of the benchmark's oracle."""
    return Experiment(
        recipe="cube-tiny",
        world="cube",
        look="fast",
        image_size=64,
        collection=CollectionConfig(episodes=400, every=5, compression="blosc"),
        model=many_short_windows(),
        training=TrainingConfig(
            updates=3000,
            batch_size=64,
            window=2,
            learning_rate=1.5e-3,
            warmup=0.05,
            checkpoint_every=500,
            precision="32-true",
        ),
        planning=PlanningConfig(Temporal(), Amortised(), receding=2),
        hardware="2 CPU cores",
        cost=(
            "five minutes of rendering, a quarter of an hour of training on one core, some "
            "minutes of evaluation"
        ),
        expected="success 61% (offset 25, strict, 200 held-out pairs, one seed; random 9%)",
        source="ours; see docs/log",
        together=16,
    )


def cube_paper() -> Experiment:
    """OGBench's single cube at 224 px with the published configuration."""
    return Experiment(
        recipe="cube-paper",
        world="cube",
        image_size=224,
        collection=CollectionConfig(episodes=10_000, compression="blosc"),
        model=LeWMConfig(),
        training=TrainingConfig(epochs=10),
        planning=PlanningConfig(L2(), CEM(num_candidates=300, num_elites=30, num_iterations=10)),
        hardware="one GPU of 48 GB (published: an L40S)",
        cost="hours of GPU; two million pictures to render",
        expected="success 74% (offset 25, budget 50)",
        source="LeWorldModel (arXiv 2603.19312), table 1; not re-measured by us",
        together=16,
    )
