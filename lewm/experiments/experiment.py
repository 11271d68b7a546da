"""What an experiment is: its world, its data, its model, how it is trained and how it plans."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lewm.contracts import ModelConfig, check_numbers
from lewm.models.lewm import LeWMConfig
from lewm.planning.config import PlanningConfig
from lewm.training.config import TrainingConfig
from lewm.training.fit import FittingConfig


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

    def __post_init__(self) -> None:
        check_numbers(self, least={"episodes": 1, "every": 1, "max_steps": 1})


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
    model: ModelConfig
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
    def lewm(self) -> LeWMConfig:
        """Its model's settings, of one that trains LeWM."""
        assert isinstance(self.model, LeWMConfig), f"{self.recipe} trains another model"
        return self.model

    @property
    def options(self) -> dict[str, Any]:
        """What the world is opened with beside its image size."""
        return {} if self.look == "published" else {"look": self.look}

    @property
    def command(self) -> str:
        """What runs all of it."""
        return f"lewm reproduce {self.recipe}"


def many_short_windows() -> LeWMConfig:
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
