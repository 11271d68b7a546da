"""Take a run apart for the page: what `model.js` reads.

Weights are folded by the engine's own maps, so that the page multiplies as few matrices as the
engine does. In half precision they take 2 bytes each; the page widens them and computes in float32.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lewm import registry
from lewm.analyses.probes.paths import encode_paths
from lewm.analyses.probes.ridge import steady_probe
from lewm.analyses.probes.targets import (
    LATENTS,
    features_of,
    latent_features,
    readings_of,
    sample_frames,
    state_targets,
)
from lewm.contracts import Landmarks, Solver, WorldSpec
from lewm.models.nn.engine import Folded, folded_attention, folded_projector
from lewm.models.nn.frozen import device_of
from lewm.models.nn.products import Affine
from lewm.models.nn.trunk import Trunk
from lewm.runs.run import Run, Unsupported

__all__ = ["FORMAT", "MOST_PARAMETERS", "TOLERANCES", "TWINS", "export"]

FORMAT = 1
"""Of what is exported; `model.js` reads this one alone."""

MOST_PARAMETERS = 3_000_000
"""Of a model that a page can hold, and run while somebody drags a goal."""

TWINS = {"two-room": "1"}
"""Worlds that are written in JavaScript too, and the version that is equal to theirs."""

HEADS = ("amortised", "temporal")

TOLERANCES = {"float32": 5e-5, "float16": 0.05}
"""How far the page may be from PyTorch before it refuses: latents have unit scale, distances count
relative. Of 16 bits most is the rounding of the weights."""

GOING_BY = {"limit": 20.0, "pace": 0.5, "aims": 8, "temperature": 3.0}
"""How the page goes by its map, unless the run's solver says otherwise."""

FRAMES_LOOKED_AT = 4000
"""From which a map is selected."""

LARGEST_HALF = 65504.0


def export(
    run: Run, precision: str = "float16", places: int = 400, seed: int = 0
) -> dict[str, Any]:
    """Export what a page needs to run this model: JSON-ready.

    Args:
        precision: of the weights, "float16" or "float32".
        places: frames of the training episodes on the map, if the run has no map of its own.
        seed: of what is drawn: frames for the map, and for the probe.

    Raises:
        Unsupported: the run holds what the page cannot run, or lacks what it needs; the message
            names it.
        ValueError: the run's episodes are not there, no such precision, or no map of so few
            places.

    Cost: some 6,000 frames through the encoder, for the probe and the map.
    """
    if precision not in TOLERANCES:
        raise ValueError(
            f"expected a precision of {', '.join(TOLERANCES)}, got '{precision}'. Use 'float16'."
        )
    model, world = _model_of(run), _world_of(run)
    head = run.heads["amortised"]
    tensors = _weights(model, run.heads)
    latents, states = _map(run, places, seed)
    tensors["map"] = torch.from_numpy(latents)
    box = _box(model, world)
    weights, index = _packed(tensors, precision)
    readings = readings_of(run.episodes)
    probe = steady_probe(model, run.episodes, run.fit_ids, readings, seed=seed, seen=run.seen)
    assert run.planning is not None, "an opened run knows how it plans"
    return {
        "format": FORMAT,
        "recipe": run.recipe,
        "precision": precision,
        "weights": weights,
        "tensors": index,
        "model": _sizes(model, run.heads),
        "statistics": {
            name: list(getattr(model.spec.statistics, name))
            for name in ("pixel_mean", "pixel_std", "action_mean", "action_std")
        },
        "planning": {
            "horizon": int(head.horizon),  # type: ignore[arg-type]
            "receding": min(run.planning.receding, int(head.horizon)),  # type: ignore[arg-type]
            "hold_actions": run.planning.hold_actions,
            "initial_std": run.planning.initial_std,
            "low": box[0].tolist(),
            "high": box[1].tolist(),
            "action_low": list(world.action_low),
            "action_high": list(world.action_high),
        },
        "probe": {
            "names": [reading.name for reading in readings],
            "weight": _floats(probe.weights),
            "bias": _floats(probe.bias),
        },
        "map": {
            "states": _floats(states),
            "width": states.shape[1],
            "settings": _going_by(run.planning.solver),
        },
        "world": {"name": world.name, "look": world.look, "image_size": world.image_size},
        "golden": _golden(run, model, box) | {"tolerance": TOLERANCES[precision]},
    }


def _model_of(run: Run) -> Trunk:
    """The run's model, if the page can compute it."""
    model, config = run.model, run.model.config
    name = type(config).__module__.rpartition(".")[2].replace("_", "-")
    if type(config) is not registry.load("models", "lewm") or not isinstance(model, Trunk):
        raise Unsupported(
            f"{run.path}: expected a run of model 'lewm', which the page computes, got '{name}'. "
            "Look at this run with `lewm report`."
        )
    if model.predictor.recurrent:
        raise Unsupported(
            f"{run.path}: expected a predictor with attention, which the page computes, got "
            f"predictor_mixer='{model.config.predictor_mixer}'. Look at this run with `lewm "
            "report`."
        )
    size = sum(
        parameter.numel()
        for part in (
            model.encoder,
            model.projector,
            model.action_encoder,
            model.predictor,
            model.predictor_projector,
        )
        for parameter in part.parameters()
    )
    if size > MOST_PARAMETERS:
        raise Unsupported(
            f"{run.path}: expected a model of at most {MOST_PARAMETERS:,} parameters, which a page "
            f"can hold and run, got {size:,}. Use a run of a tiny recipe, such as two-room-tiny."
        )
    return model


def _world_of(run: Run) -> WorldSpec:
    """What is known of the run's world, if it is written in JavaScript too and the run has heads
    to plan in it."""
    if run.world_name not in TWINS:
        raise Unsupported(
            f"{run.path}: expected a world that is written in JavaScript too "
            f"({', '.join(TWINS)}), got '{run.world_name}'. Look at this run with `lewm report`."
        )
    spec = run.world().spec
    if spec.version != TWINS[spec.name]:
        raise Unsupported(
            f"{run.path}: expected version {TWINS[spec.name]} of world '{spec.name}', which "
            f"JavaScript draws, got version {spec.version}. Bring lewm/lab up to it."
        )
    if missing := [name for name in HEADS if name not in run.heads]:
        raise Unsupported(
            f"{run.path}: expected heads {' and '.join(HEADS)}, with which the page plans, got "
            f"none named {' or '.join(missing)}. Run: lewm fit {run.path} {' '.join(missing)}"
        )
    return spec


# ------------------------------------------------------------------------------------ the weights


def _weights(model: Trunk, heads: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """All numbers that the page computes with, by the names that model.js gives them."""
    state, tensors = model.state_dict(), {}

    def put(name: str, affine: Affine | None) -> None:
        if affine is not None:
            tensors[f"{name}.weight"] = affine.weight
            if affine.bias is not None:
                tensors[f"{name}.bias"] = affine.bias

    # encoder: convolutions as products of what they see, in the order of rows, columns, colours
    for i, stage in enumerate(_stages(model)):
        weight = stage.weight.permute(0, 2, 3, 1).flatten(1)
        put(f"encoder.stem.{i}", Affine(weight, stage.bias))
    position = model.encoder.position[0].clone()
    position[0] += model.encoder.cls[0, 0]
    tensors["encoder.position"] = position
    for i in range(model.config.encoder_depth):
        block = f"encoder.blocks.{i}"
        qkv = Affine.of(state, f"{block}.attention.qkv").after(Affine.of(state, f"{block}.norm1"))
        put(f"{block}.qkv", folded_attention(qkv, model.config.encoder_heads))
        put(f"{block}.out", Affine.of(state, f"{block}.attention.out"))
        up = Affine.of(state, f"{block}.mlp.0").after(Affine.of(state, f"{block}.norm2"))
        put(f"{block}.up", up)
        put(f"{block}.down", Affine.of(state, f"{block}.mlp.3"))
    last = Affine.of(state, "encoder.norm")
    for name, affine in zip(PROJECTOR, folded_projector(state, "projector", last), strict=True):
        put(f"projector.{name}", affine)

    # predictor
    folded = Folded.of(state, model.config.predictor_heads)
    tensors["predictor.position"] = folded.position
    put("predictor.inward", folded.inward)
    put("actions.expand", folded.expand)
    put("actions.contract", folded.contract)
    put("predictor.modulation", folded.modulation)
    for i, layer in enumerate(folded.layers):
        block = f"predictor.blocks.{i}"
        if model.context == 1 and layer.alone is not None:
            # nobody is ever attended to: one map stands for all of attention
            put(f"{block}.alone", layer.alone)
        else:
            put(f"{block}.qkv", layer.query_key_value)
            put(f"{block}.out", layer.out)
        put(f"{block}.up", layer.up)
        put(f"{block}.down", layer.down)
    for name, affine in zip(PROJECTOR, (folded.hidden, folded.norm, folded.project), strict=True):
        put(f"predictor_projector.{name}", affine)

    # heads
    for name, part in (("temporal", "embed"), ("amortised", "network")):
        for key, value in heads[name].state_dict().items():
            tensors[key.replace(part, name, 1)] = value
    return tensors


PROJECTOR = ("hidden", "norm", "project")


def _stages(model: Trunk) -> list[nn.Conv2d]:
    """The convolutions that make patches, in their order."""
    stem = model.encoder.patches
    return [part for part in stem.modules() if isinstance(part, nn.Conv2d)]


def _sizes(model: Trunk, heads: Mapping[str, nn.Module]) -> dict[str, Any]:
    config, stages = model.config, _stages(model)
    temporal: Any = heads["temporal"].config
    return {
        "image_size": model.spec.image_size,
        "frameskip": model.spec.frameskip,
        "action_dim": model.spec.statistics.action_dim,
        "context": model.context,
        "latent_dim": model.latent_dim,
        "stem": [
            {
                "kernel": stage.kernel_size[0],
                "stride": stage.stride[0],
                "padding": stage.padding[0],
                "gelu": stage is not stages[-1],
            }
            for stage in stages
        ],
        "encoder_depth": config.encoder_depth,
        "encoder_heads": config.encoder_heads,
        "predictor_depth": config.predictor_depth,
        "predictor_heads": config.predictor_heads,
        "metric_dim": temporal.metric_dim,
        "embedding_dim": temporal.metric_dim + temporal.oneway_dim,
    }


def _packed(tensors: Mapping[str, Tensor], precision: str) -> tuple[str, dict[str, list[int]]]:
    """All tensors end to end; and of each, where it begins, and its shape.

    The bytes of a number lie apart, in planes: signs and exponents are alike and deflate well. So
    2.40 MB of base64 become 2.06 for Two-Room.
    """
    index: dict[str, list[int]] = {}
    at, parts = 0, []
    number = np.dtype("<f2" if precision == "float16" else "<f4")
    for name, tensor in tensors.items():
        values = tensor.detach().float().cpu().numpy()
        if precision == "float16" and values.size and np.abs(values).max() > LARGEST_HALF:
            raise ValueError(
                f"expected weights of at most {LARGEST_HALF:.0f} for 16 bits, got "
                f"{np.abs(values).max():.3g} in {name}. Export with precision 'float32'."
            )
        index[name] = [at, *values.shape]
        at += values.size
        parts.append(values.astype(number).tobytes())
    numbers = np.frombuffer(b"".join(parts), np.uint8).reshape(-1, number.itemsize)
    return base64.b64encode(zlib.compress(numbers.T.tobytes(), 9)).decode(), index


# -------------------------------------------------------------------------- what goes with the run


def _box(model: Trunk, world: WorldSpec) -> tuple[Tensor, Tensor]:
    """Bounds of one action in normalised units, as the agent makes them."""
    statistics = model.spec.statistics
    free = ~torch.tensor(statistics.fixed_actions)
    low, high = (
        statistics.normalise_actions(torch.tensor(bound, dtype=torch.float32)).where(free, 0.0)
        for bound in (world.action_low, world.action_high)
    )
    return low, high


def _map(run: Run, places: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(M, D) latents of frames of the training episodes that stand for all, and (M, S) states.

    They are the run's own map if it has one, else selected here as a map is.
    """
    own: Any = run.heads.get("map")
    readings = readings_of(run.episodes)

    def by_row(landmarks: Landmarks) -> tuple[np.ndarray, np.ndarray]:
        latents, rows = (x.cpu().numpy() for x in (landmarks.latents, landmarks.rows))
        order = np.argsort(rows, kind="stable")
        return latents[order], state_targets(run.episodes, readings, rows[order])

    if own is not None and run.own_data is not False:
        return by_row(own)
    drawing = np.random.default_rng(seed)
    rows, _ = sample_frames(run.episodes, run.fit_ids, FRAMES_LOOKED_AT, drawing)
    encoders = {LATENTS: latent_features(run.model)}
    latents = features_of(encoders, run.episodes, rows, run.seen)[LATENTS]
    made = registry.load("heads", "map")(places).build(latents.shape[1], 0)
    made.select(torch.from_numpy(latents), torch.from_numpy(rows))
    return by_row(made)


def _going_by(solver: Solver) -> dict[str, Any]:
    """How the page goes by its map: as the run's solver does, if it goes by one. Others may have a
    setting of the same name that is of something else, as MPPI its temperature."""
    own = {name: getattr(solver, name, None) for name in GOING_BY}
    return own if None not in own.values() else dict(GOING_BY)


def _golden(run: Run, model: Trunk, box: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Frames of a held-out episode, the last of them a goal, and what PyTorch says of them."""
    K, heads = model.context, run.heads
    lengths = run.episodes.lengths[np.asarray(run.test_ids)]
    longest = int(run.test_ids[int(np.argmax(lengths))])
    path = encode_paths(model, run.episodes, [longest])
    if len(path) <= K:
        raise Unsupported(
            f"{run.episodes.path}: expected a held-out episode of more than {K} blocks, from which "
            f"the page is checked, got {len(path)} at most. Collect longer episodes."
        )
    frames = [*range(K), min(len(path) - 1, K + 4)]
    pixels = run.episodes.rows("pixels", path.rows[frames])
    latents = path.latents[frames]
    context, goal = latents[None, :K], latents[K:]
    past = path.blocks[None, : K - 1]
    temporal: Any = heads["temporal"]
    amortised: Any = heads["amortised"]
    with torch.no_grad():
        steps = temporal.distance(context[:, -1], goal)
        proposal = amortised.plan(context[:, -1], goal, steps)
        low, high = (bound.to(device_of(model)).repeat(model.spec.frameskip) for bound in box)
        plan = proposal.clamp(low, high)
        rollout = model.engine()(context, past, plan[:, None])[:, 0]
    return {
        "frames": base64.b64encode(np.ascontiguousarray(pixels).tobytes()).decode(),
        "latents": _floats(latents),
        "past": _floats(past),
        "distance": float(steps[0]),
        "proposal": _floats(proposal),
        "plan": _floats(plan),
        "rollout": _floats(rollout),
    }


def _floats(values: Tensor | np.ndarray) -> str:
    """Float32 in base64."""
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    return base64.b64encode(np.ascontiguousarray(array, dtype="<f4").tobytes()).decode()
