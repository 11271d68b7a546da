"""Named experiments: what is run, what it costs, what to expect, and from where that number is.

A recipe is a function that returns an `Experiment`; its name on the command line has dashes. Here
concrete plug-ins are put together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from lewm.models.lewm import LeWMConfig
from lewm.planning.agent import PlanningConfig
from lewm.planning.objectives.l2 import L2
from lewm.planning.objectives.temporal import Temporal
from lewm.planning.solvers.amortised import Amortised
from lewm.planning.solvers.cem import CEM
from lewm.planning.solvers.mppi import MPPI
from lewm.registry import choose
from lewm.training.fit import FittingConfig
from lewm.training.train import TrainingConfig


@dataclass(frozen=True)
class CollectionConfig:
    """What data are collected for training.

    Attributes:
        episodes: how many.
        policy: of the world, such as "expert" or "random".
        seed: episode i is drawn from (seed, i) alone.
        compression: of the pictures on disk, "blosc" or "zstd"; None is the published layout.
        every: env steps per recorded picture; 5 where rendering costs most and training uses no
            other pictures anyway.
        max_steps: of an episode, in worlds that let it be chosen; None is the world's own.
    """

    episodes: int = 10_000
    policy: str = "expert"
    seed: int = 0
    compression: str | None = None
    every: int = 1
    max_steps: int | None = None


@dataclass(frozen=True)
class Experiment:
    """A recipe's settings. `hardware`, `cost`, `expected` and `source` are words for people.

    Attributes:
        look: of the world, by name; numbers of two looks are never mixed.
        together: environments that are stepped and planned together in evaluation; changes the
            speed and nothing else.
        fitting: of the heads that the planning asks for, if it does.
    """

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
    look: str = "published"
    together: int = 128
    fitting: FittingConfig = FittingConfig()  # noqa: RUF009  frozen

    @property
    def options(self) -> dict[str, Any]:
        """What the world is opened with beside its image size."""
        return {} if self.look == "published" else {"look": self.look}

    @property
    def command(self) -> str:
        """What runs all of it."""
        return f"lewm reproduce {self.recipe}"


def two_room_tiny() -> Experiment:
    """Two-Room at 64 px with half a million parameters: the quickstart."""
    return Experiment(
        recipe="two-room-tiny",
        world="two-room",
        image_size=64,
        collection=CollectionConfig(episodes=360, compression="blosc"),
        model=LeWMConfig.tiny(),
        # Exact numbers: at this size bf16 saves no time, even on CPUs that multiply large matrices
        # faster in it.
        training=TrainingConfig(
            updates=400,
            batch_size=32,
            learning_rate=1e-3,
            warmup=0.05,
            holdout=0.2,
            checkpoint_every=200,
            precision="32-true",
        ),
        planning=PlanningConfig(Temporal(), Amortised(), receding=1),
        fitting=FittingConfig(updates=1000),
        hardware="2 CPU cores",
        cost="one and a half minutes",
        expected=(
            "success 100% (paper's protocol, offset 25, 200 held-out pairs), about 88% in the "
            "other room"
        ),
        source="ours; see docs/log",
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


def _many_short_windows() -> LeWMConfig:
    """The tiny model for worlds of several parts: SIGReg over all frames of short windows, more to
    see and predict with.

    Ours; frames of one window are near-duplicates, so short windows show more poses per update.
    """
    return replace(
        LeWMConfig.tiny(),
        encoder_depth=3,
        encoder_heads=4,
        stem="conv",
        overlap=False,
        predictor_width=128,
        predictor_mlp_dim=512,
        sigreg_pooled=True,
    )


def push_t_tiny() -> Experiment:
    """Push-T at 64 px in the look "tiny": a two-coloured block on a smaller table, so that a small
    encoder sees its angle."""
    return Experiment(
        recipe="push-t-tiny",
        world="push-t",
        look="tiny",
        image_size=64,
        collection=CollectionConfig(episodes=1500, max_steps=100, compression="blosc"),
        # Few latent dimensions: with 192 of them SIGReg is met by harmonics of whatever is easiest
        # to predict (docs/log).
        model=replace(
            _many_short_windows(),
            stem="patch",
            overlap=True,
            latent_dim=24,
            predictor_width=192,
            predictor_depth=4,
            predictor_mlp_dim=768,
        ),
        training=TrainingConfig(
            updates=4000,
            batch_size=64,
            window=2,
            learning_rate=2e-3,
            warmup=0.05,
            checkpoint_every=500,
            precision="32-true",
        ),
        planning=PlanningConfig(
            Temporal(intermediate=1.0), Amortised(search=MPPI(44, 6, 3)), receding=1
        ),
        hardware="2 CPU cores",
        cost="a quarter of an hour on one core",
        expected=(
            "success 48 to 57%, block pose 71 to 79% (offset 25, strict, 200 held-out pairs, 3 "
            "seeds; random to 4, 23%)"
        ),
        source="ours; see docs/log",
    )


def push_t_paper() -> Experiment:
    """Push-T at 224 px with the published configuration and look, on episodes of our scripted
    policy."""
    return Experiment(
        recipe="push-t-paper",
        world="push-t",
        image_size=224,
        collection=CollectionConfig(episodes=20_000, compression="blosc"),
        model=LeWMConfig(),
        training=TrainingConfig(epochs=10),
        planning=PlanningConfig(L2(), CEM(num_candidates=300, num_elites=30, num_iterations=30)),
        hardware="one GPU of 48 GB (published: an L40S)",
        cost="hours of GPU; collecting takes an hour per core and some 50 GB",
        expected="success 96.0 +- 2.8% (offset 25, budget 50) on 20,000 expert episodes of DINO-WM",
        source="LeWorldModel (arXiv 2603.19312), table 1; not re-measured by us",
    )


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
        model=replace(_many_short_windows(), context=2, sigreg_weight=0.1),
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


def cube_tiny() -> Experiment:
    """OGBench's single cube at 64 px in the look "fast", on episodes of the benchmark's oracle."""
    return Experiment(
        recipe="cube-tiny",
        world="cube",
        look="fast",
        image_size=64,
        collection=CollectionConfig(episodes=400, every=5, compression="blosc"),
        model=_many_short_windows(),
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


RECIPES: dict[str, Callable[[], Experiment]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        two_room_tiny,
        two_room_paper,
        push_t_tiny,
        push_t_paper,
        reacher_tiny,
        reacher_paper,
        cube_tiny,
        cube_paper,
    )
}


def load(name: str) -> Experiment:
    """The settings of a recipe by name; an unknown one is answered with the nearest."""
    return RECIPES[choose("recipe", name.replace("_", "-"), RECIPES)]()
