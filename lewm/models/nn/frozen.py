"""Latents of many frames from a frozen model: in evaluation mode, on the model's device, in
portions that bound memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lewm.contracts import WorldModel

FRAMES_AT_ONCE = 256
"""Frames encoded together. More would cost memory, and on a CPU time as well: their activations
leave the caches."""


def encode(model: WorldModel, pixels: Tensor) -> Tensor:
    """(B, T, 3, h, w) uint8 on any device -> (B, T, D) latents on the model's, in fixed portions of
    whole rows."""
    portion = max(1, FRAMES_AT_ONCE // pixels.shape[1])
    device = device_of(model)
    with torch.no_grad():
        return torch.cat([model.encode(part.to(device)) for part in pixels.split(portion)])


def device_of(model: WorldModel) -> torch.device:
    """Where a model's parameters are; the CPU for one that has none."""
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


def require_evaluation_mode(model: WorldModel) -> None:
    """Refuse a model that is in training mode, or a part of which is, with a ValueError."""
    if isinstance(model, nn.Module) and any(module.training for module in model.modules()):
        raise ValueError(
            "expected a model in evaluation mode, got one (or a part of one) in training mode: "
            "dropout and batch statistics would corrupt what it says. Call model.eval() first."
        )
