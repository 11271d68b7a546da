"""Runs as the lab takes them: small models with random weights, on recorded frames of Two-Room."""

from __future__ import annotations

import base64
import json
import zlib

import numpy as np
import torch

from lewm.contracts import DataSpec, Statistics
from lewm.data.episodes import Episodes
from lewm.lab.export import export
from lewm.models.lewm import LeWMConfig
from lewm.models.nn.layers import BatchNorm
from lewm.planning.config import PlanningConfig, attach
from lewm.planning.heads.amortised import AmortisedConfig
from lewm.planning.heads.temporal import TemporalConfig
from lewm.planning.objectives.temporal import Temporal
from lewm.planning.solvers.amortised import Amortised
from lewm.runs.run import Run
from lewm.worlds.two_room import TwoRoomWorld
from tests.support.project import SIZE
from tests.support.small_models import SMALL

STATISTICS = Statistics(
    (0.86, 0.84, 0.85), (0.31, 0.33, 0.32), (0.05, -0.04), (0.71, 0.66), (-1.0, -1.0), (1.0, 1.0)
)

# What a page has to be able to run; widths that are no multiples of 4 or 8 among them.
CONFIGS = {
    "overlap": {"context": 1},
    "conv stem": {"context": 3, "stem": "conv", "overlap": False},
    "LayerNorm": {
        "context": 3,
        "overlap": False,
        "projector_norm": False,
        "position": "learned",
        "latent_dim": 32,
        "encoder_depth": 1,
    },
    "odd widths": {
        "context": 2,
        "encoder_width": 20,
        "predictor_width": 30,
        "predictor_heads": 3,
        "predictor_head_dim": 5,
        "projector_dim": 45,
        "latent_dim": 21,
    },
    "narrow heads": {"context": 1, "predictor_heads": 1, "predictor_head_dim": 9},
}


def lewm(frameskip=5, **changes):
    """A model whose weights and statistics all matter, with latents of about unit scale."""
    torch.manual_seed(1)
    model = LeWMConfig(**SMALL["lewm"] | {"dropout": 0.0} | changes).build(
        DataSpec(SIZE, frameskip, STATISTICS)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for norm in model.modules():
            if isinstance(norm, BatchNorm):
                norm.running_mean.normal_(0, 0.3)
                norm.running_var.uniform_(0.5, 1.5)
        # frames of one world differ little to random weights
        model.projector[3].weight *= 4
    return model.eval().requires_grad_(False)


def heads_of(model, horizon=4):
    torch.manual_seed(2)
    sizes = {"temporal": TemporalConfig(48, 10, 7), "amortised": AmortisedConfig(40, horizon)}
    heads = {
        name: config.build(model.latent_dim, model.spec.block_dim) for name, config in sizes.items()
    }
    for head in heads.values():
        for parameter in head.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        head.eval().requires_grad_(False)
    heads["temporal"].embed[6].weight *= 20  # steps, not parts of one
    return heads


def run_of(data, model, heads, receding=1, look="published", **planning):
    """A run in memory; `data` are recorded episodes of Two-Room."""
    config = PlanningConfig(Temporal(), Amortised(), 4, receding, **planning)
    return Run(
        model,
        Episodes.open(data),
        tuple(range(10)),
        (10, 11, 12),
        open_world=lambda number, *look: TwoRoomWorld(number, SIZE, *look),
        planning=attach(config, heads),
        heads=heads,
    )


def written(run, folder, **settings):
    """What is exported of a run, and the file that it is written to."""
    exported = export(run, **{"precision": "float32", "places": 60} | settings)
    file = folder / "exported.json"
    file.write_text(json.dumps(exported))
    return exported, file


def tensor(exported, name):
    """One of the exported tensors of 32 bits, decoded in Python."""
    planes = np.frombuffer(zlib.decompress(base64.b64decode(exported["weights"])), np.uint8)
    numbers = np.ascontiguousarray(planes.reshape(4, -1).T).view("<f4").ravel()
    at, *shape = exported["tensors"][name]
    return numbers[at : at + int(np.prod(shape))].reshape(shape)
