"""Run folders: what training leaves behind, and how a model comes back from it.

    run/
      model.json         registered name, config, data spec with the normalisation statistics
      experiment.json    the whole experiment, the data's provenance, the split, versions
      metrics.jsonl      one line per logged update
      checkpoints/000600/{weights.safetensors, optimiser.safetensors, progress.json}

A checkpoint is one folder that appears by a rename once all of it is on disk, so that a reader finds the last whole one
whatever happened to the writer. Weights are safetensors and models are looked up by registered name: loading a run from a
stranger executes nothing that it brings.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lewm import registry
from lewm.contracts import DataSpec, Statistics

MODEL, EXPERIMENT, METRICS, CHECKPOINTS = "model.json", "experiment.json", "metrics.jsonl", "checkpoints"


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: the file is either the old one or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that belongs to a run.

    Raises:
        ValueError: the file is missing, damaged or not an object; it is named.
    """
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(
            f"{path.parent} is not a run: expected a file {path.name} in it. Name a folder that `lewm train` made."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: expected JSON, got {error}. Restore it, or train the run again.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: expected a JSON object, got {type(value).__name__}. Train the run again.")
    return value


def describe_model(model: Any) -> dict[str, Any]:
    """What `build_model` needs to make this model anew: registered name, config and data spec, JSON-ready."""
    return {
        "model": type(model.config).__module__.rpartition(".")[2],
        "config": dataclasses.asdict(model.config),
        "spec": dataclasses.asdict(model.spec),
    }


def build_model(description: Mapping[str, Any], source: Path | str = "the model description") -> Any:
    """Make a model with fresh weights from what `describe_model` gave.

    Raises:
        ValueError: the name is not a registered model, or a field is unknown or missing; `source` is named.
    """
    try:
        config_class = registry.load("models", str(description["model"]))
        config = config_class(**description["config"])
        spec = description["spec"]
        statistics = Statistics(**{name: tuple(values) for name, values in spec["statistics"].items()})
        return config.build(DataSpec(int(spec["image_size"]), int(spec["frameskip"]), statistics))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{source} does not describe a model this version knows: {error!r}. Use the lewm version that "
            "wrote it, or train again."
        ) from None


def save(
    run: Path,
    update: int,
    model: Any,
    optimiser: torch.optim.Optimizer | None = None,
    progress: Mapping[str, Any] | None = None,
) -> Path:
    """Add a checkpoint to a run and drop the older ones once it is safe.

    Args:
        run: the run's folder; `model.json` is written if it is not there yet.
        update: number of updates done.
        model: the bare model, its batch-norm statistics re-estimated.
        optimiser: its state is kept, so that training can go on.
        progress: whatever else training wants back, JSON-ready.
    """
    if not (run / MODEL).exists():
        write_json(run / MODEL, describe_model(model))
    final = run / CHECKPOINTS / f"{update:08d}"
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, partial / "weights.safetensors")
        if optimiser is not None:
            save_file(_flatten(optimiser.state_dict()["state"]), partial / "optimiser.safetensors")
        write_json(partial / "progress.json", {"update": update, **(progress or {})})
        for file in partial.iterdir():
            _sync(file)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if final.exists():
        shutil.rmtree(final)
    partial.replace(final)
    _sync(final.parent)
    for other in final.parent.iterdir():
        if other != final:
            shutil.rmtree(other, ignore_errors=True)
    return final


def latest(run: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None."""
    found = sorted(folder for folder in (run / CHECKPOINTS).glob("[0-9]*") if (folder / "progress.json").exists())
    return found[-1] if found else None


def load(run: Path | str, device: torch.device | str = "cpu") -> Any:
    """Load a run's model from its newest checkpoint, in evaluation mode.

    Raises:
        ValueError: not a run, no checkpoint yet, or weights that are damaged or do not fit; the file is named.
    """
    run = Path(run)
    model = build_model(read_json(run / MODEL), run / MODEL)
    checkpoint = latest(run)
    if checkpoint is None:
        raise ValueError(f"{run} holds no checkpoint yet: expected one in {run / CHECKPOINTS}. Let `lewm train` write it.")
    restore_weights(model, checkpoint / "weights.safetensors")
    return model.to(device).eval()


def restore(run: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Bring model and optimiser to a run's newest checkpoint; return its progress, or None if there is none."""
    checkpoint = latest(run)
    if checkpoint is None:
        return None
    restore_weights(model, checkpoint / "weights.safetensors")
    state = _unflatten(_tensors(checkpoint / "optimiser.safetensors"))
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return read_json(checkpoint / "progress.json")


def restore_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file into `model`, strictly.

    Raises:
        ValueError: the file is damaged, or tensors are missing, unexpected or of another shape (up to ten are named).
    """
    tensors, own = _tensors(path), model.state_dict()
    wrong = [f"{name} is missing" for name in own.keys() - tensors.keys()]
    wrong += [f"{name} is unexpected" for name in tensors.keys() - own.keys()]
    wrong += [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own.keys() & tensors.keys()
        if own[name].shape != tensors[name].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise ValueError(f"{path} does not fit its model.json: {'; '.join(sorted(wrong)[:10])}{more}. Keep the two together.")
    model.load_state_dict(tensors)


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: expected a safetensors file. Restore it, or train the run again.") from None
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: expected safetensors, got {error}. Restore it, or train the run again.") from None


def _flatten(state: Mapping[int, Mapping[str, Any]]) -> dict[str, Tensor]:
    """Optimiser state as named tensors: "<parameter index>/<slot>"."""
    return {
        f"{index}/{slot}": torch.as_tensor(value).contiguous()
        for index, slots in state.items()
        for slot, value in slots.items()
    }


def _unflatten(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, slot = name.partition("/")
        state.setdefault(int(index), {})[slot] = tensor
    return state


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
