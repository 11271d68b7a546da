"""Run folders: what training leaves behind, and how a model comes back from it.

    run/
      model.json         registered name, config, data spec with the normalisation statistics
      experiment.json    the whole experiment, the data's provenance, the split, versions
      metrics.jsonl      one line per logged update
      checkpoints/000600/{weights.safetensors, optimiser.safetensors, progress.json}
      heads/temporal/{weights.safetensors, head.json}

A checkpoint is one folder that appears by a rename once all of it is on disk, so that a reader
finds the last whole one whatever happened to the writer; so is a head. Weights are safetensors,
models and heads are looked up by registered name: loading a run from a stranger executes nothing
that it brings.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lewm import registry
from lewm.contracts import DataSpec, Described, Statistics, require
from lewm.files import read_json, sync, write_atomically, write_json

MODEL, EXPERIMENT, METRICS, CHECKPOINTS = (
    "model.json",
    "experiment.json",
    "metrics.jsonl",
    "checkpoints",
)
HEADS, HEAD = "heads", "head.json"


def describe_model(model: Any) -> dict[str, Any]:
    """What `build_model` needs to make this model anew: registered name, config and data spec,
    JSON-ready.

    Raises:
        ValueError: the model does not keep its config.
    """
    require(Described, model, "a model that is written down")
    return {
        "model": type(model.config).__module__.rpartition(".")[2],
        "config": dataclasses.asdict(model.config),
        "spec": dataclasses.asdict(model.spec),
    }


def build_model(
    description: Mapping[str, Any], source: Path | str = "the model description"
) -> Any:
    """Make a model with fresh weights from what `describe_model` gave.

    Raises:
        ValueError: the name is not a registered model, or a field is unknown or missing; `source`
            is named.
    """
    try:
        config_class = registry.load("models", str(description["model"]))
        config = config_class(**description["config"])
        spec = description["spec"]
        statistics = Statistics(
            **{name: tuple(values) for name, values in spec["statistics"].items()}
        )
        return config.build(DataSpec(int(spec["image_size"]), int(spec["frameskip"]), statistics))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{source} does not describe a model this version knows: {error!r}. Use the lewm "
            "version that wrote it, or train again."
        ) from None


def claim(
    run: Path, description: Mapping[str, Any], extra: Mapping[str, Any], write: bool = True
) -> None:
    """Make a folder the run of an experiment, or check that it already is.

    Args:
        description: what must be equal for a run to be continued, JSON-ready; its "model" becomes
            model.json.
        extra: what is recorded beside it and may differ.
        write: False on all processes but the first, which only check.

    Raises:
        ValueError: the folder holds another experiment; the fields that differ are named.
    """
    description = json.loads(json.dumps(description))
    if latest(run) is None:  # before its first checkpoint a run holds nothing to protect
        if write:
            write_json(run / MODEL, description["model"])
            write_json(run / EXPERIMENT, {**description, **extra})
        return
    there = read_json(run / EXPERIMENT)
    if differing := list(_differences({key: there.get(key) for key in description}, description)):
        raise ValueError(
            f"{run} holds another experiment: {'; '.join(differing[:5])}. Continue with the "
            "settings it was started with, or choose another folder."
        )


def budget(run: Path, description: Mapping[str, Any]) -> dict[str, float] | None:
    """What an earlier call decided for the same experiment with a time budget: `minutes`,
    `updates`, `updates_per_second`.

    Raises:
        ValueError: it is there and damaged.
    """
    if not (run / EXPERIMENT).exists():
        return None
    there, description = read_json(run / EXPERIMENT), json.loads(json.dumps(description))
    found = there.get("budget")
    if found is None or {key: there.get(key) for key in description} != description:
        return None
    if (
        not isinstance(found, dict)
        or not isinstance(found.get("updates"), int)
        or found["updates"] < 1
    ):
        raise ValueError(
            f"{run / EXPERIMENT} is damaged: expected a number of updates in 'budget', got "
            f"{found}. Train again."
        )
    return found


def budget_in_words(experiment: Mapping[str, Any]) -> str:
    """What tables say of a run that was trained for a given time and not for its recipe's updates;
    "" of any other."""
    found = experiment.get("budget")
    return f"{found['minutes']:g}-minute budget, {found['updates']:,} updates" if found else ""


def metrics(run: Path) -> list[dict[str, Any]]:
    """What a training logged, oldest first; nothing of a run that was never trained here.

    Raises:
        ValueError: a line is damaged; the file is named.
    """
    path = run / METRICS
    try:
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is damaged: expected a JSON object per line, got {error}. Train the run again."
        ) from None


class Log:
    """metrics.jsonl: one line per report, cut back to the update from which a run goes on."""

    def __init__(self, run: Path, first: int) -> None:
        self.path = run / METRICS
        kept = []
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            try:
                update = json.loads(line)["update"]
            except (json.JSONDecodeError, KeyError, TypeError):  # the line that a kill cut short
                break
            if update > first:
                break
            kept.append(line + "\n")
        write_atomically(self.path, "".join(kept).encode())

    def write(self, record: Mapping[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        sync(self.path)


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
    with whole_folder(final) as partial:
        write_tensors(
            {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
            partial / "weights.safetensors",
        )
        if optimiser is not None:
            write_tensors(
                _flatten(optimiser.state_dict()["state"]), partial / "optimiser.safetensors"
            )
        write_json(partial / "progress.json", {"update": update, **(progress or {})})
    for other in final.parent.iterdir():
        if other != final:
            shutil.rmtree(other, ignore_errors=True)
    return final


def latest(run: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None."""
    found = sorted(
        folder
        for folder in (run / CHECKPOINTS).glob("[0-9]*")
        if (folder / "progress.json").exists()
    )
    return found[-1] if found else None


def load(run: Path | str, device: torch.device | str = "cpu") -> Any:
    """Load a run's model from its newest checkpoint, in evaluation mode.

    Raises:
        ValueError: not a run, no checkpoint yet, or weights that are damaged or do not fit; the
            file is named.
    """
    run = Path(run)
    model = build_model(read_json(run / MODEL), run / MODEL)
    checkpoint = latest(run)
    if checkpoint is None:
        raise ValueError(
            f"{run} holds no checkpoint yet: expected one in {run / CHECKPOINTS}. Let `lewm "
            "train` write it."
        )
    restore_weights(model, checkpoint / "weights.safetensors")
    return model.to(device).eval()


def restore(run: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Bring model and optimiser to a run's newest checkpoint; return its progress, or None if there
    is none."""
    checkpoint = latest(run)
    if checkpoint is None:
        return None
    restore_weights(model, checkpoint / "weights.safetensors")
    state = _unflatten(_tensors(checkpoint / "optimiser.safetensors"))
    optimiser.load_state_dict(
        {"state": state, "param_groups": optimiser.state_dict()["param_groups"]}
    )
    return read_json(checkpoint / "progress.json")


def restore_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file into `model`, strictly.

    Raises:
        ValueError: the file is damaged, or tensors are missing, unexpected or of another shape (up
            to ten are named).
    """
    fill(model, _tensors(path), path)


def fill(model: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Give a model its weights, strictly.

    Raises:
        ValueError: tensors are missing, unexpected or of another shape (up to ten are named, and
            `source`).
    """
    own = model.state_dict()
    wrong = [f"{name} is missing" for name in own.keys() - tensors.keys()]
    wrong += [f"{name} is unexpected" for name in tensors.keys() - own.keys()]
    wrong += [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own.keys() & tensors.keys()
        if own[name].shape != tensors[name].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise ValueError(
            f"{source} does not fit its model.json: {'; '.join(sorted(wrong)[:10])}{more}. Keep "
            "the two together."
        )
    model.load_state_dict(tensors)


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A folder to fill, which takes the name `final` once it is whole; an error leaves nothing of
    it."""
    partial, old = (final.with_name(f".{final.name}.{suffix}") for suffix in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if (
        final.exists()
    ):  # no folder replaces another in one step, and half of one must never bear the name
        shutil.rmtree(old, ignore_errors=True)
        final.replace(old)
    partial.replace(final)
    sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def digest_of_newest(run: Path) -> str:
    """Of the newest weights: what was fitted to these fits no others."""
    checkpoint = latest(run)
    if checkpoint is None:
        raise ValueError(
            f"{run} holds no checkpoint yet: expected one in {run / CHECKPOINTS}. Let `lewm "
            "train` write it."
        )
    return digest(checkpoint / "weights.safetensors")


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ValueError(
            f"{path} is missing: expected a safetensors file. Restore it, or train the run again."
        ) from None
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged: expected safetensors, got {error}. Restore it, or train the run "
            "again."
        ) from None


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file to disk; what goes wrong on the way is an OSError that names the
    file."""
    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:  # it wraps the system's own error in words
        number = re.search(r"os error (\d+)", str(error))
        code = int(number.group(1)) if number else errno.EIO
        raise OSError(code, os.strerror(code), str(path)) from None
    sync(path)


LATER = ("action_low", "action_high")
"""What older runs did not write down: it is not held against them."""


def _differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*new, *old]):  # in the order of the description
            if key in LATER and key not in old:
                continue
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield f"{name} was {_short(old)}, now {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


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
