"""What a published checkpoint calls our tensors, in either of its two dialects, and what it says of
its sizes.

The authors' files name the layers of the encoder as the library of their time did (the first
dialect), today's libraries build the second. All else is named alike. Sizes stand in config.json,
and most of them show in the shapes of the tensors as well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lewm.registry import choose

__all__ = [
    "DIALECTS",
    "PARAMETERS",
    "VIT_SIZES",
    "measured_sizes",
    "published_names",
    "published_shape",
    "stated_sizes",
]

VIT_SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
"""`encoder.size` -> width, layers and heads; the MLP is four times as wide. Source: `vit_hf` of the
authors' library."""

# Our modules, and what they are called in a published file. Numbered layers count from 0 on both
# sides.
DIALECTS = {"first": "encoder.encoder.layer", "second": "encoder.layers"}
ENCODER_LAYER = {
    "norm1": ("layernorm_before", "layernorm_before"),
    "attention.qkv": (
        "attention.attention.query attention.attention.key attention.attention.value",
        "attention.q_proj attention.k_proj attention.v_proj",
    ),
    "attention.out": ("attention.output.dense", "attention.o_proj"),
    "norm2": ("layernorm_after", "layernorm_after"),
    "mlp.0": ("intermediate.dense", "mlp.fc1"),
    "mlp.3": ("output.dense", "mlp.fc2"),
}
PREDICTOR_LAYERS = "predictor.transformer.layers"
PREDICTOR_LAYER = {
    "modulation": "adaLN_modulation.1",
    "norm_attention": "attn.norm",
    "attention.qkv": "attn.to_qkv",
    "attention.out": "attn.to_out.0",
    "norm_mlp": "mlp.net.0",
    "mlp.0": "mlp.net.1",
    "mlp.3": "mlp.net.4",
}
MODULES = {
    "encoder.patches": "encoder.embeddings.patch_embeddings.projection",
    "encoder.norm": "encoder.layernorm",
    "projector": "projector.net",
    "predictor_projector": "pred_proj.net",
    "action_encoder.mix": "action_encoder.patch_embed",
    "action_encoder.embed": "action_encoder.embed",
    "predictor.norm": "predictor.transformer.norm",
}
PARAMETERS = {
    "encoder.cls": "encoder.embeddings.cls_token",
    "encoder.position": "encoder.embeddings.position_embeddings",
    "predictor.position": "predictor.pos_embedding",
}


def published_names(name: str, dialect: str) -> tuple[str, ...]:
    """What one of our tensors is called there: several names where ours is theirs, one below the
    other."""
    if name in PARAMETERS:
        return (PARAMETERS[name],)
    module, _, leaf = name.rpartition(".")
    if layer := re.fullmatch(r"encoder\.blocks\.(\d+)\.(.+)", module):
        return tuple(
            f"{DIALECTS[dialect]}.{layer[1]}.{part}.{leaf}"
            for part in _encoder_parts(layer[2], dialect)
        )
    if layer := re.fullmatch(r"predictor\.blocks\.(\d+)\.(.+)", module):
        return (f"{PREDICTOR_LAYERS}.{layer[1]}.{PREDICTOR_LAYER[layer[2]]}.{leaf}",)
    if module in MODULES:
        return (f"{MODULES[module]}.{leaf}",)
    parent, _, number = module.rpartition(".")
    return (f"{MODULES[parent]}.{number}.{leaf}",)


def published_shape(name: str, tensor: Tensor, parts: int) -> tuple[int, ...]:
    """The shape of each of the `parts` that one of our tensors is made of there."""
    if name == "action_encoder.mix.weight":  # there a convolution of kernel 1
        return (*tensor.shape, 1)
    return (len(tensor) // parts, *tensor.shape[1:]) if tensor.ndim else ()


def stated_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a config.json as "part.field".

    A named encoder size is spelt out, but for what is given beside it; what is no number is left
    out.

    Raises:
        ValueError: the encoder's size is not a known one.
    """
    parts = {part: fields for part, fields in config.items() if isinstance(fields, dict)}
    encoder = parts.get("encoder", {})
    if encoder.get("size") is not None:
        width, depth, heads = VIT_SIZES[choose("encoder.size", str(encoder["size"]), VIT_SIZES)]
        named = {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
        }
        parts["encoder"] = {**named, **encoder}
    stated = {
        f"{part}.{field}": value
        for part, fields in parts.items()
        for field, value in fields.items()
    }
    stated = {field: value for field, value in stated.items() if type(value) in (int, float)}
    if {"predictor.heads", "predictor.dim_head"} <= stated.keys():
        stated["predictor.heads x dim_head"] = (
            stated["predictor.heads"] * stated["predictor.dim_head"]
        )
    return stated


def measured_sizes(tensors: Mapping[str, Tensor], dialect: str) -> dict[str, tuple[int, str]]:
    """What the tensors say of those numbers: field -> value, and the name of the tensor that says
    so.

    They tell all but the heads of the encoder, and of the predictor only heads times their width.
    """
    (hidden,) = _encoder_parts("mlp.0", dialect)
    positions, context = PARAMETERS["encoder.position"], PARAMETERS["predictor.position"]
    axes = {
        "encoder.hidden_size": (PARAMETERS["encoder.cls"], -1),
        "encoder.intermediate_size": (f"{DIALECTS[dialect]}.0.{hidden}.weight", 0),
        "encoder.patch_size": (f"{MODULES['encoder.patches']}.weight", -1),
        "predictor.num_frames": (context, 1),
        "predictor.input_dim": (context, -1),
        "predictor.hidden_dim": ("predictor.transformer.norm.weight", 0),
        "predictor.output_dim": ("pred_proj.net.0.weight", -1),
        "predictor.heads x dim_head": (f"{PREDICTOR_LAYERS}.0.attn.to_out.0.weight", -1),
        "predictor.mlp_dim": (f"{PREDICTOR_LAYERS}.0.mlp.net.1.weight", 0),
        "action_encoder.input_dim": ("action_encoder.patch_embed.weight", 1),
        "action_encoder.smoothed_dim": ("action_encoder.patch_embed.weight", 0),
        "action_encoder.emb_dim": ("action_encoder.embed.2.weight", 0),
    }
    for part in ("projector", "pred_proj"):
        for field, layer, axis in (
            ("input_dim", 0, -1),
            ("hidden_dim", 0, 0),
            ("output_dim", 3, 0),
        ):
            axes[f"{part}.{field}"] = (f"{part}.net.{layer}.weight", axis)
    found = {
        field: (tensors[name].shape[axis], name)
        for field, (name, axis) in axes.items()
        if name in tensors and tensors[name].ndim > max(axis, 0)
    }
    for field, layers in (
        ("encoder.num_hidden_layers", DIALECTS[dialect]),
        ("predictor.depth", PREDICTOR_LAYERS),
    ):
        numbered = {
            int(m[1]): name
            for name in tensors
            if (m := re.match(rf"{re.escape(layers)}\.(\d+)\.", name))
        }
        if numbered:
            found[field] = max(numbered) + 1, numbered[max(numbered)]
    if positions in tensors and tensors[positions].ndim == 3 and "encoder.patch_size" in found:
        side = math.isqrt(max(0, tensors[positions].shape[1] - 1))  # one is the CLS token's
        found["encoder.image_size"] = side * found["encoder.patch_size"][0], positions
    return found


def _encoder_parts(module: str, dialect: str) -> list[str]:
    return ENCODER_LAYER[module][list(DIALECTS).index(dialect)].split()
