"""Checkpoints as the authors publish them, with our seeded weights."""

from __future__ import annotations

import json

import torch

from tests.support.reference_lewm import CONFIGS, weights

CONFIG = CONFIGS["small"]


MEAN, STD = (0.3, -0.1), (0.5, 2.0)


def edited(config=CONFIG, **fields):
    """A copy with `part__field=value` changed; None takes a field out."""
    config = json.loads(json.dumps(config))
    for name, value in fields.items():
        part, _, field = name.partition("__")
        config[part][field] = value
        if value is None:
            del config[part][field]
    return config


def checkpoint(folder, tensors=None, config=CONFIG, dialect="first", name="weights.pt"):
    """A published checkpoint on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(weights(CONFIG, dialect) if tensors is None else tensors, folder / name)
    (folder / "config.json").write_text(json.dumps(config))
    return folder
