"""Ways not to collapse: LeWM, its rivals and controls, each as it is trained and planned with.

A method takes a recipe's world, data, training and sizes, and brings its own model and the distance
that it was trained in. `RECIPE+METHOD` is a recipe: `lewm reproduce two-room-tiny+pldm`. All plan
with one search, CEM over 100 candidates and 5 iterations, and without heads, which would hide what
the latents lack.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lewm import registry
from lewm.contracts import ModelConfig
from lewm.experiments.experiment import Experiment
from lewm.models.nn.trunk import TrunkConfig
from lewm.planning.config import PlanningConfig
from lewm.planning.solvers.cem import CEM

__all__ = ["METHODS", "Knob", "Method", "with_method"]

SEARCH = CEM(num_candidates=100, num_elites=10, num_iterations=5)
"""Of all methods alike."""


@dataclass(frozen=True)
class Knob:
    """A setting on which a method's success may hang.

    Attributes:
        field: of the model's config.
        published: the value around which it is drawn.
        kind: "scale" is drawn as it is; "memory" is a momentum tau, drawn by its memory 1 / (1 -
            tau); "count" is rounded.
    """

    field: str
    published: float
    kind: str = "scale"

    def moved(self, factor: float) -> float | int:
        """The value, `factor` times the published one; a momentum's memory so many times as
        long."""
        if self.kind == "memory":
            return 1 - 1 / max(1.0, factor / (1 - self.published))
        value = factor * self.published
        return max(1, round(value)) if self.kind == "count" else value


@dataclass(frozen=True)
class Method:
    """How something is trained and planned with.

    Attributes:
        title: as tables say it.
        way: what keeps it from collapsing, in a few words.
        model: name of the plug-in.
        changes: to its tiny config.
        knobs: that its authors had to choose, beside the learning rate. Their number is the swamp.
        objective: name of the distance that it was trained in, and its settings.
        training: changes to the recipe's training that the method needs.
        preset: a method of its config that gives it published weights.
        source: of the settings.
        objection, answer: what its authors would say of this comparison, and what was done.
        control: it is here to be worse.
    """

    title: str
    way: str
    model: str
    source: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    knobs: tuple[Knob, ...] = ()
    objective: tuple[str, Mapping[str, Any]] = ("l2", {})
    training: Mapping[str, Any] = field(default_factory=dict)
    preset: str = ""
    objection: str = ""
    answer: str = ""
    control: bool = False

    def config(self, recipe: ModelConfig, **changes: Any) -> ModelConfig:
        """Its model, in the sizes of a recipe's where it has the same parts, with the recipe's
        context.

        Args:
            changes: to its settings, after the method's own.
        """
        tiny = registry.load("models", self.model).tiny()
        sizes = {each.name for each in dataclasses.fields(TrunkConfig)}
        if not isinstance(tiny, TrunkConfig):
            sizes = {"context"} & {each.name for each in dataclasses.fields(tiny)}
        if isinstance(recipe, TrunkConfig):
            tiny = dataclasses.replace(tiny, **{name: getattr(recipe, name) for name in sizes})
        if self.preset:
            tiny = getattr(tiny, self.preset)()
        return dataclasses.replace(tiny, **{**self.changes, **changes})

    def planning(self) -> PlanningConfig:
        name, settings = self.objective
        return PlanningConfig(registry.load("objectives", name)(**settings), SEARCH)


def with_method(recipe: Experiment, name: str) -> Experiment:
    """A recipe's world, data and training, with the model and the planning of a method.

    Raises:
        ValueError: there is no such method; the nearest are offered.
    """
    method = METHODS[registry.choose("method", name, METHODS)]
    return dataclasses.replace(
        recipe,
        recipe=f"{recipe.recipe}+{name}",
        model=method.config(recipe.model),
        training=dataclasses.replace(recipe.training, **method.training),
        planning=method.planning(),
        expected="see docs/rivals.md",
        source=method.source,
    )


LEWM_WEIGHTS = "the weights of LeWM's comparison, chosen there out of 256"
RETUNE = (
    "Weights must be chosen anew for every world and data set, and the original unrolls open loop "
    "and plans with MPPI at every step."
)
PUBLISHED = (
    "Three published sets of weights are rows of their own, the original with open loop. The "
    "planner is held equal for all; MPPI at every step was not run."
)
LONG = "It pays off over a hundred thousand updates and large batches; tau belongs to that length."
FITTED = "tau fits the run: it remembers a quarter of its updates. Three learning rates are tried."

SEQUENCES: dict[str, Any] = {"window": 4, "batch_size": 32}
"""Of what learns from the course of more than two frames: as many frames as the tiny recipes."""

METHODS: dict[str, Method] = {
    "lewm": Method(
        "LeWM",
        "SIGReg",
        "lewm",
        "arXiv 2603.19312",
        knobs=(Knob("sigreg_weight", 0.1),),
        objection="At 400 updates the range of lambda is narrower than the one published.",
        answer="The range is measured, for it as for all others.",
    ),
    "lewm-inverse": Method(
        "LeWM and inverse dynamics",
        "SIGReg and inverse dynamics",
        "lewm",
        "ours; Delta-JEPA (arXiv 2606.31232) and others add inverse dynamics to SIGReg",
        changes={"inverse_weight": 1.0},
        knobs=(Knob("sigreg_weight", 0.1), Knob("inverse_weight", 1.0)),
    ),
    "inverse": Method(
        "inverse dynamics alone",
        "inverse dynamics",
        "lewm",
        "SMWM (arXiv 2606.20104)",
        changes={"sigreg_weight": 0.0, "inverse_weight": 1.0},
        knobs=(Knob("inverse_weight", 1.0),),
        objection="It should fail where things move that the action does not move.",
        answer="Walls that differ, and Push-T, are such worlds.",
    ),
    "pldm": Method(
        "PLDM (eb_jepa)",
        "variance, covariance, slowness and inverse dynamics",
        "pldm",
        "facebookresearch/eb_jepa, Two-Rooms",
        knobs=(
            Knob("variance_weight", 16.0),
            Knob("covariance_weight", 8.0),
            Knob("slowness_weight", 12.0),
            Knob("inverse_weight", 1.0),
        ),
        preset="eb_jepa",
        objection=RETUNE,
        answer=PUBLISHED,
    ),
    "pldm-wall": Method(
        "PLDM (its own Wall)",
        "variance, covariance, two terms over time, inverse dynamics; open loop",
        "pldm",
        "vladisai/PLDM, Wall with 325,000 transitions or more",
        knobs=(
            Knob("variance_weight", 3.98),
            Knob("covariance_weight", 6.92),
            Knob("slowness_weight", 0.742),
            Knob("time_variance_weight", 0.245),
            Knob("inverse_weight", 1.07),
        ),
        preset="wall",
        objection=RETUNE,
        answer=PUBLISHED,
    ),
    "pldm-lewm": Method(
        "PLDM (as LeWM compares)",
        "variance, covariance and two terms over time",
        "pldm",
        f"galilai-group/stable-worldmodel: {LEWM_WEIGHTS}",
        changes={
            "variance_weight": 18.0,
            "covariance_weight": 12.0,
            "slowness_weight": 0.2,
            "time_variance_weight": 0.7,
            "inverse_weight": 0.0,
        },
        knobs=(
            Knob("variance_weight", 18.0),
            Knob("covariance_weight", 12.0),
            Knob("slowness_weight", 0.2),
            Knob("time_variance_weight", 0.7),
        ),
        objection="It was trained there for 250,000 updates of 128 windows.",
        answer="Here all have the same few hundred; that it may need more is said beside its row.",
    ),
    "byol": Method(
        "BYOL",
        "EMA target, stop-gradient and predictor; cosine",
        "byol",
        "arXiv 2006.07733; tau fitted to the run",
        knobs=(Knob("momentum", 0.99, "memory"), Knob("predictor_pace", 1.0)),
        objection=LONG,
        answer=FITTED,
    ),
    "vjepa": Method(
        "V-JEPA's loss",
        "EMA target, stop-gradient and predictor; L1 of layer-normed latents",
        "vjepa",
        "arXiv 2506.09985; tau fitted to the run",
        knobs=(Knob("momentum", 0.99, "memory"),),
        objective=("l1", {}),
        objection=LONG,
        answer=FITTED,
    ),
    "dino": Method(
        "DINO",
        "EMA target, centring and sharpening",
        "dino",
        "arXiv 2104.14294; tau and the prototypes fitted to the run",
        knobs=(
            Knob("momentum", 0.99, "memory"),
            Knob("student_temperature", 0.1),
            Knob("teacher_temperature", 0.04),
            Knob("centre_momentum", 0.9, "memory"),
            Knob("prototypes", 256, "count"),
        ),
        objection="It is made for crops of natural pictures and tens of thousands of prototypes.",
        answer="Crops are an option that is off: they teach that place does not matter.",
    ),
    "lewm-reconstruction": Method(
        "LeWM and a reconstruction loss",
        "SIGReg and reconstruction",
        "lewm",
        "ablation of arXiv 2603.19312",
        changes={"reconstruction_weight": 1.0},
        knobs=(Knob("sigreg_weight", 0.1), Knob("reconstruction_weight", 1.0)),
    ),
    "dino-wm": Method(
        "DINO-WM (EfficientNet-Lite0)",
        "frozen pre-trained patches",
        "dino_wm",
        "arXiv 2411.04983, on EfficientNet-Lite0 at 64 px, 16 tokens",
        objection="It has 196 patches of DINOv2 at 196 px, and proprioception where there is some.",
        answer=(
            "At 64 px EfficientNet's 16 patches are as readable as DINOv2's and 33 times cheaper. "
            "Proprioception is an input that no method here is given."
        ),
    ),
    "vjepa2-ac": Method(
        "V-JEPA 2-AC's recipe",
        "an encoder frozen after masked pre-training",
        "vjepa2_ac",
        "arXiv 2506.09985; both stages on the same frames, half of the updates each",
        knobs=(Knob("ema", 0.99, "memory"), Knob("rollout_weight", 1.0)),
        objective=("l1", {}),
        training=SEQUENCES,
        objection="Its first stage is a million hours of video, not a few hundred episodes.",
        answer="It is called its recipe, and never V-JEPA 2.",
    ),
    "vjepa2-ac-efficientnet": Method(
        "V-JEPA 2-AC's second stage (EfficientNet-Lite0)",
        "frozen pre-trained patches",
        "vjepa2_ac",
        "arXiv 2506.09985, its second stage alone, on EfficientNet-Lite0 at 64 px, 16 tokens",
        changes={"encoder": "efficientnet-lite0", "pretraining": 0.0},
        knobs=(Knob("rollout_weight", 1.0),),
        objective=("l1", {}),
        training=SEQUENCES,
        objection="Its encoder saw a million hours of video, this one pictures with labels.",
        answer="In place of a first stage that a few hundred updates cannot give; all are here.",
    ),
    "dreamer": Method(
        "Dreamer V3",
        "reconstruction and KL",
        "dreamer",
        "danijar/dreamerv3, in small; planned by the squared distance of embeddings",
        knobs=(
            Knob("dynamics_weight", 1.0),
            Knob("representation_weight", 0.1),
            Knob("free_bits", 1.0),
        ),
        objective=("own", {"judged_by": "embedding"}),
        training=SEQUENCES,
        objection="It is made for online reward, with an actor that learns in imagination.",
        answer="It is asked here for its world model alone, and given a cost that it lacks.",
    ),
    "dreamer-long": Method(
        "Dreamer V3 (1,000 updates)",
        "reconstruction and KL",
        "dreamer",
        "danijar/dreamerv3, in small; two and a half times the updates of all others",
        objective=("own", {"judged_by": "embedding"}),
        training=SEQUENCES | {"updates": 1000},
        objection="It draws nothing small for the first 300 updates.",
        answer="This row has the updates that it takes; it is outside the equal budget.",
    ),
    "none": Method(
        "prediction alone",
        "nothing",
        "lewm",
        "control",
        changes={"sigreg_weight": 0.0},
        control=True,
    ),
    "stop-gradient": Method(
        "stop-gradient alone",
        "stop-gradient",
        "byol",
        "control: BYOL without a target that follows",
        changes={"momentum": 0.0},
        control=True,
    ),
    "random-encoder": Method(
        "a frozen random encoder",
        "frozen random patches",
        "dino_wm",
        "control: DINO-WM on an encoder that nobody trained",
        changes={"encoder": "random-tiny", "channels": 32},
        control=True,
    ),
}
"""Name -> method. The order is that of tables."""
