"""What the server of processes has imported before it forks one, and a quickstart of seconds."""

from __future__ import annotations

import dataclasses

import torch

from lewm import registry
from lewm.cli.main import COMMANDS, main
from lewm.experiments import quickstart
from lewm.experiments.experiment import Experiment

__all__ = ["main"]

torch.set_num_threads(1)
for _name in COMMANDS:
    __import__(f"lewm.cli.commands.{_name.replace('-', '_')}")
for _kind in ("analyses", "heads", "solvers", "objectives", "worlds", "models"):
    for _name in registry.names(_kind):
        registry.load(_kind, _name)

SMALL = {"SHORT_EPISODES": 24, "SHORT_UPDATES": 6, "SHORT_FIT_UPDATES": 6, "SHORT_PAIRS": 16}
for _name, _value in SMALL.items():
    setattr(quickstart, _name, _value)
quickstart.ANALYSES = {"probing": {"mlp": False, "rollouts": 8, "controls": False, "draws": 20}}


def _frequent(experiment: Experiment, *sizes: int) -> Experiment:
    """A checkpoint every two updates, so that there are some to be killed between."""
    small = _shortened(experiment, *sizes)
    model = dataclasses.replace(
        small.model, encoder_width=16, encoder_depth=1, predictor_depth=1, sigreg_slices=32
    )
    training = dataclasses.replace(
        small.training, checkpoint_every=2, batch_size=4, log_every=2, recalibration=1
    )
    return dataclasses.replace(small, model=model, training=training)


_shortened, quickstart.shortened = quickstart.shortened, _frequent
