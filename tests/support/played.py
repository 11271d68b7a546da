"""A run of the point world that every analysis can be asked about: real layers of no size, random
weights, and nothing on disk."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from lewm.contracts import DataSpec
from lewm.data.provenance import Provenance
from lewm.models.lewm import LeWMConfig
from lewm.planning.config import PlanningConfig
from lewm.planning.objectives.l2 import L2
from lewm.planning.solvers.cem import CEM
from lewm.runs.run import Run
from tests.support.point_world import FRAMESKIP, SIZE, STATISTICS, PointWorld, Walks

MODEL = LeWMConfig(
    patch_size=2,
    encoder_width=8,
    encoder_depth=1,
    encoder_heads=2,
    latent_dim=5,
    projector_dim=12,
    context=2,
    predictor_width=8,
    predictor_depth=1,
    predictor_heads=2,
    predictor_head_dim=4,
    predictor_mlp_dim=16,
    sigreg_slices=8,
)
PLANNING = PlanningConfig(L2(), CEM(8, 3, 2), horizon=2, receding=2)


class Stage(PointWorld):
    """The point world, drawn to scale, in which the point can be put elsewhere and painted."""

    def __init__(self, num_envs, look="published"):
        super().__init__(num_envs)
        self.spec = replace(
            self.spec, look=look, things=("agent",), picture_extent=1.0, tolerance=0.03
        )

    def reset(self, seeds):
        drawn = [np.random.default_rng(seed).uniform(0.3, 0.7, 2) for seed in seeds]
        self.set_states(np.stack(drawn).astype(np.float32))

    def step(self, actions):
        super().step(np.clip(actions, -1, 1))

    def render(self, states=None):
        pixels = super().render(states)
        if self.spec.look != "published":
            pixels[..., 2] = int(200 * float(self.spec.look))
        return pixels

    def teleport(self, things, states, seeds):
        if not things:
            return states.copy()
        turns = np.array([np.random.default_rng(seed).uniform(0, 2 * np.pi) for seed in seeds])
        return (states + 0.2 * np.stack([np.cos(turns), np.sin(turns)], axis=1)).astype(np.float32)

    def recoloured(self, thing, turn=0.5):
        return str(turn)


@dataclass
class Recorded(Walks):
    """Its recordings, with what their file says of them. All that the `poisoned` ones hold is
    another."""

    state_names = ("x", "y")
    provenance = Provenance(
        world="point", policy="random", seed=0, state_names=("x", "y"), state_units=("m", "m")
    )
    count: int = 44
    poisoned: tuple = ()

    @property
    def steps(self):
        return int(self.lengths.sum())

    def __len__(self):
        return self.count

    def __post_init__(self):
        super().__post_init__()
        self._kept = [self.made(i) for i in range(self.count)]

    def made(self, i):
        """Of no two episodes alike."""
        states = super().states(i)
        if i in self.poisoned:
            states = (0.9 - 0.7 * states[:, ::-1]).astype(np.float32)
        return states + np.float32(0.01) * np.random.default_rng(i).random(2, np.float32)

    def states(self, i):
        return self._kept[i]


FIT, TEST = tuple(range(20)), tuple(range(20, 44))
"""Episodes that the model was trained on, as far as it was, and others."""


def played(heads=None, poisoned=(), **changes):
    """The run, some of its episodes poisoned."""
    torch.manual_seed(3)
    model = MODEL.build(DataSpec(SIZE, FRAMESKIP, STATISTICS)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # no gate is closed
            parameter.add_(0.1 * torch.randn_like(parameter))
    made = Run(
        model,
        Recorded(poisoned=tuple(poisoned)),
        FIT,
        TEST,
        lambda number, *look: Stage(number, *look),
        planning=PLANNING,
        heads=heads or {},
        heldout=TEST,
    )
    return replace(made, **changes)
