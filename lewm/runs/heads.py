"""Heads of a run: small networks on its frozen latents, bound to its weights by their hash."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lewm import registry
from lewm.contracts import StorableHead, WorldModel
from lewm.files import read_json, whole_folder, write_json
from lewm.models.nn.frozen import device_of
from lewm.runs.checkpoints import (
    HEAD,
    HEADS,
    UNBUILDABLE,
    WEIGHTS,
    check_weights,
    digest,
    digest_of_newest,
    restore_weights,
    write_tensors,
)


def save_head(run: Path, name: str, head: StorableHead, record: Mapping[str, Any]) -> Path:
    """Store a fitted head in a run, in place of an older one of its name; the world model's files
    stay as they are.

    Args:
        run: with a checkpoint. To its newest weights the head is bound: to others, latents mean
            something else.
        name: the head's plug-in.
        head: with its `config`.
        record: what else to keep, JSON-ready.

    Raises:
        ValueError: its weights are unsound; nothing is written.
    """
    final = run / HEADS / name
    weights = {name: tensor.contiguous() for name, tensor in head.state_dict().items()}
    check_weights(weights, final)
    with whole_folder(final) as partial:
        write_tensors(weights, partial / WEIGHTS)
        described = {
            "head": name,
            "config": dataclasses.asdict(head.config),
            "world_model": digest_of_newest(run),
        }
        write_json(partial / HEAD, {**described, **record})
    return final


def head_names(run: Path) -> list[str]:
    """The heads of a run, sorted. One that was fitted to other weights than the newest does not
    count."""
    found = sorted(file.parent.name for file in (run / HEADS).glob(f"[a-z]*/{HEAD}"))
    digest = digest_of_newest(run) if found else ""
    return [
        name for name in found if read_json(run / HEADS / name / HEAD).get("world_model") == digest
    ]


def load_head(run: Path, name: str, model: WorldModel) -> nn.Module:
    """Load a head of a run, frozen, in evaluation mode, on the device of `model`, the run's world
    model.

    Raises:
        ValueError: there is no such head, it was fitted to other weights, or its files are damaged
            or do not fit.
    """
    if name not in head_names(run):
        got = "one of other weights" if (run / HEADS / name / HEAD).exists() else "none"
        raise ValueError(
            f"{run}: expected a head '{name}' fitted to its newest weights, got {got}. Run: lewm "
            f"fit {run} {name}"
        )
    source = run / HEADS / name / HEAD
    description = read_json(source)
    if description.get("head") != name:
        raise ValueError(
            f"{source} describes another head: expected '{name}', got '{description.get('head')}'. "
            f"Run: lewm fit {run} {name}"
        )
    try:
        head = registry.load("heads", name)(**description["config"]).build(
            model.latent_dim, model.spec.block_dim
        )
    except UNBUILDABLE as error:
        raise ValueError(
            f"{source} describes no head this version knows: expected its config, got {error!r}. "
            f"Run: lewm fit {run} {name}"
        ) from None
    restore_weights(head, run / HEADS / name / WEIGHTS)
    return head.to(device_of(model)).eval().requires_grad_(False)


def digest_of_head(run: Path, name: str) -> str:
    """Of a head's weights: what was found with these may not hold for those of another fit."""
    return digest(run / HEADS / name / WEIGHTS)
