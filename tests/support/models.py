"""Small models in which every weight matters, and questions to roll out."""

import torch

from lewm.contracts import DataSpec, Statistics
from lewm.models.lewm import LeWM, LeWMConfig
from lewm.models.nn.layers import BatchNorm

SPEC = DataSpec(32, 5, Statistics((0.5,) * 3, (0.2,) * 3, (0.1, -0.2), (1.0, 0.5)))
SMALL = {
    "patch_size": 8,
    "encoder_width": 16,
    "encoder_depth": 1,
    "encoder_heads": 2,
    "projector_dim": 48,
}
PREDICTOR = {
    "predictor_width": 32,
    "predictor_depth": 3,
    "predictor_heads": 2,
    "predictor_head_dim": 16,
    "predictor_mlp_dim": 64,
}

SMALLEST = LeWMConfig(
    patch_size=8,
    encoder_width=16,
    encoder_depth=1,
    encoder_heads=2,
    latent_dim=8,
    projector_dim=16,
    context=1,
    predictor_width=16,
    predictor_depth=1,
    predictor_heads=2,
    predictor_head_dim=8,
    predictor_mlp_dim=16,
    sigreg_slices=16,
)
"""One layer of everything, for tests of what becomes of weights."""


def model(context=3, *, full=False, **changes) -> LeWM:
    """Random weights in which everything matters: no closed gate, no norm that is the identity, no
    statistic of a start."""
    torch.manual_seed(0)
    sizes = {"patch_size": 16, "encoder_depth": 1} if full else {**SMALL, **PREDICTOR}
    made = LeWMConfig(**{**sizes, "context": context, **changes}).build(SPEC).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for norm in (m for m in made.modules() if isinstance(m, BatchNorm)):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return made


def question(of: LeWM, k=1, *, environments=2, candidates=4, horizon=5, seed=1):
    """Context, past blocks and candidates, in the type of the model."""
    g, dtype = torch.Generator().manual_seed(seed), of.predictor.position.dtype
    shapes = (
        (environments, k, of.latent_dim),
        (environments, k - 1, 10),
        (environments, candidates, horizon, 10),
    )
    return tuple(torch.randn(*shape, generator=g, dtype=dtype) for shape in shapes)
