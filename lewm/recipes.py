"""Named experiments: what is run, what it costs, what to expect, and from where that number is.

A recipe is a function that returns an `Experiment`; its name on the command line has dashes. Here, and on no lower floor,
concrete plug-ins are put together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lewm.models.lewm import LeWMConfig
from lewm.objectives.l2 import L2
from lewm.planning import PlanningConfig
from lewm.registry import choose
from lewm.solvers.cem import CEM
from lewm.training import TrainingConfig


@dataclass(frozen=True)
class CollectionConfig:
    """What data are collected for training.

    Attributes:
        episodes: how many.
        policy: of the world, such as "expert" or "random".
        seed: episode i is drawn from (seed, i) alone.
        compression: of the pictures on disk, "blosc" or "zstd"; None is the published layout.
    """

    episodes: int = 10_000
    policy: str = "expert"
    seed: int = 0
    compression: str | None = None


@dataclass(frozen=True)
class Experiment:
    """A recipe's settings. `hardware`, `cost`, `expected` and `source` are words for people."""

    recipe: str
    world: str
    image_size: int
    collection: CollectionConfig
    model: LeWMConfig
    training: TrainingConfig
    planning: PlanningConfig
    hardware: str
    cost: str
    expected: str
    source: str


def two_room_tiny() -> Experiment:
    """Two-Room at 64 px with half a million parameters: the quickstart."""
    return Experiment(
        recipe="two-room-tiny",
        world="two-room",
        image_size=64,
        collection=CollectionConfig(episodes=360, compression="blosc"),
        model=LeWMConfig.tiny(),
        # Exact numbers: at this size bf16 saves no time, even on CPUs that multiply large matrices faster in it.
        training=TrainingConfig(
            updates=400,
            batch_size=32,
            learning_rate=1e-3,
            warmup=0.05,
            holdout=0.2,
            checkpoint_every=200,
            precision="32-true",
        ),
        planning=PlanningConfig(L2(), CEM(num_candidates=100, num_elites=10, num_iterations=4), hold_actions=True),
        hardware="2 CPU cores",
        cost="one minute",
        expected="success 98 to 99.5% (paper's protocol, offset 25, 200 held-out pairs, three seeds)",
        source="ours; see LOG.md",
    )


def two_room_paper() -> Experiment:
    """Two-Room at 224 px with the published configuration."""
    return Experiment(
        recipe="two-room-paper",
        world="two-room",
        image_size=224,
        collection=CollectionConfig(episodes=10_000),
        model=LeWMConfig(context=1),
        training=TrainingConfig(epochs=10),
        planning=PlanningConfig(L2(), CEM(num_candidates=300, num_elites=30, num_iterations=10)),
        hardware="one GPU of 48 GB (published: an L40S)",
        cost="hours; 152 GB of uncompressed pictures",
        expected="success 87% (offset 25, budget 50)",
        source="LeWorldModel (arXiv 2603.19312), table 1; not re-measured by us",
    )


RECIPES: dict[str, Callable[[], Experiment]] = {
    function.__name__.replace("_", "-"): function for function in (two_room_tiny, two_room_paper)
}


def load(name: str) -> Experiment:
    """The settings of a recipe by name; an unknown one is answered with the nearest."""
    return RECIPES[choose("recipe", name.replace("_", "-"), RECIPES)]()
