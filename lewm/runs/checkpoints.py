"""Run folders: what training leaves behind, and how a model comes back from it.

    run/
      model.json         registered name, config, data spec with the normalisation statistics,
                       and which weights of others it needs
      experiment.json    the whole experiment, the data's provenance, the split, versions
      metrics.jsonl      one line per logged update
      checkpoints/000600/{weights.safetensors, optimiser.safetensors, progress.json}
      heads/temporal/{weights.safetensors, head.json}

A checkpoint is one folder that appears by a rename once all of it is on disk, so that a reader
finds the last whole one whatever happened to the writer; so is a head. Weights are safetensors,
models and heads are looked up by registered name: loading a run from a stranger executes nothing
that it brings. Weights pass one door, `check_weights`, when they are saved and when they are read.
Whoever writes to a run holds it, see `held`.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lewm import registry
from lewm.contracts import (
    DataSpec,
    Described,
    Statistics,
    Trainable,
    TrainableModel,
    WorldModel,
    require,
)
from lewm.files import (
    append_line,
    hold,
    parse_json,
    read_json,
    read_text,
    remove,
    sweep,
    sync,
    whole_folder,
    write_atomically,
    write_json,
)
from lewm.models.nn.frozen_encoders import WeightsMissing, frozen_parts

MODEL, EXPERIMENT, METRICS, CHECKPOINTS = (
    "model.json",
    "experiment.json",
    "metrics.jsonl",
    "checkpoints",
)
HEADS, HEAD = "heads", "head.json"
WEIGHTS, OPTIMISER = "weights.safetensors", "optimiser.safetensors"


def describe_model(model: WorldModel) -> dict[str, Any]:
    """What `build_model` needs to make this model anew: registered name, config and data spec,
    JSON-ready.

    Raises:
        ValueError: the model does not keep its config.
    """
    require(Described, model, "a model that is written down")
    assert isinstance(model, Described)
    frozen = {
        place: {"encoder": part.name, "weights": part.digest}
        for place, part in frozen_parts(model).items()
    }
    return {
        "model": type(model.config).__module__.rpartition(".")[2],
        "config": dataclasses.asdict(model.config),
        "spec": dataclasses.asdict(model.spec),
        **({"frozen": frozen} if frozen else {}),
    }


UNBUILDABLE = (KeyError, TypeError, AttributeError, ValueError, RuntimeError, ArithmeticError)
"""What building from a file may raise: it may hold anything, and a size be anything."""


def build_model(
    description: Mapping[str, Any], source: Path | str = "the model description"
) -> TrainableModel:
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
    except WeightsMissing as error:
        raise WeightsMissing(f"{source}: {error}") from None
    except UNBUILDABLE as error:
        raise ValueError(
            f"{source} does not describe a model this version knows: expected its name, config and "
            f"spec, got {error!r}. Use the lewm version that wrote it, or train again."
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
    there = experiment(run)
    there = {**there, "model": _completed(there.get("model"))}
    if differing := list(_differences({key: there.get(key) for key in description}, description)):
        raise ValueError(
            f"{run} holds another experiment: {'; '.join(differing[:5])}. Continue with the "
            "settings it was started with, or choose another folder."
        )


def _completed(model: Any) -> Any:
    """The description of a model, with the settings that its writer did not know yet at their
    defaults, which change nothing of what there was before."""
    with suppress(*UNBUILDABLE):
        kind = registry.load("models", str(model["model"]))
        defaults = {
            each.name: each.default
            for each in dataclasses.fields(kind)
            if each.default is not dataclasses.MISSING
        }
        known = json.loads(json.dumps(defaults))
        return {**model, "config": {**known, **model["config"]}}
    return model


def budget(run: Path, description: Mapping[str, Any]) -> dict[str, float] | None:
    """What an earlier call decided for the same experiment with a time budget: `minutes`,
    `updates`, `updates_per_second`.

    Raises:
        ValueError: it is there and damaged.
    """
    if not (run / EXPERIMENT).exists():
        return None
    there, description = experiment(run), json.loads(json.dumps(description))
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
    if not found or not {"minutes", "updates"} <= found.keys():
        return ""
    return f"{found['minutes']:g}-minute budget, {found['updates']:,} updates"


def experiment(run: Path) -> dict[str, Any]:
    """What training, or an import, recorded of a run: experiment.json.

    Raises:
        ValueError: it is missing or damaged, or an entry is of another kind; it is named.
    """
    told = read_json(run / EXPERIMENT)
    for place, kind in KINDS.items():
        above, _, name = place.rpartition(".")
        value = ((told.get(above) or {}) if above else told).get(name)
        if value is not None and not isinstance(value, kind):
            raise ValueError(
                f"{run / EXPERIMENT} is damaged: expected '{place}' to be of type {kind.__name__}, "
                f"got {type(value).__name__}. Restore it, or train the run again."
            )
    return told


KINDS: dict[str, type] = {
    **dict.fromkeys(("model", "data", "split", "training", "planning", "budget"), dict),
    **dict.fromkeys(("world", "recipe", "data_path", "lewm", "precision"), str),
    **dict.fromkeys(("model.spec", "model.config", "data.provenance"), dict),
    **dict.fromkeys(("split.train", "split.heldout"), list),
    "budget.minutes": Real,
    "budget.updates": int,
}
"""Entries of experiment.json, where they are there, and what they are; those above come first."""


def metrics(run: Path) -> list[dict[str, Any]]:
    """What a training logged, oldest first; nothing of a run that was never trained here. A last
    line that a kill cut short does not count.

    Raises:
        ValueError: a line is damaged; the file is named, and the line.
    """
    path = run / METRICS
    if not path.exists():
        return []
    cure = "Train the run again"
    *lines, last = read_text(path, "a JSON object per line", cure).split("\n")
    with suppress(ValueError):
        if last:  # all of a line but its end
            parse_json(last, path, "", "")
            lines.append(last)
    found = []
    for number, line in enumerate(lines, 1):
        source = f"{path}, line {number},"
        row = parse_json(line, source, "a JSON object", cure)
        wrong = [
            name
            for name, value in row.items()
            if type(value) not in ((str,) if name == "alarm" else (int, float))
        ]
        if wrong or type(row.get("update")) is not int:
            got = f"{wrong[0]} {_short(row[wrong[0]])}" if wrong else "no such number"
            raise ValueError(
                f"{source} is damaged: expected the number of an update, and numbers, got {got}. "
                f"{cure}."
            )
        found.append(row)
    return found


class Log:
    """metrics.jsonl: one line per report, cut back to the update from which a run goes on.

    Raises:
        ValueError: a line other than the last one is damaged.
    """

    def __init__(self, run: Path, first: int) -> None:
        self.path = run / METRICS
        kept = [json.dumps(row) + "\n" for row in metrics(run) if row["update"] <= first]
        write_atomically(self.path, "".join(kept).encode())

    def write(self, record: Mapping[str, Any]) -> None:
        append_line(self.path, json.dumps(record, allow_nan=False))


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Be the only process that writes to a run, see `files.hold`. What killed ones left unfinished,
    and the checkpoints that a newer one stands for, are removed first.

    Raises:
        ValueError: another holds it; who, and since when.
    """
    with hold(run):
        for folder in (CHECKPOINTS, HEADS):
            sweep(run / folder)
        _drop_older(run)
        yield


def _drop_older(run: Path) -> None:
    """Remove the checkpoints that the newest whole one stands for, and no other name than theirs,
    or than earlier versions gave to an unfinished one."""
    for folder in (*_checkpoints(run)[:-1], *(run / CHECKPOINTS).glob(".*[0-9].partial")):
        if NUMBERED.fullmatch(folder.name.removeprefix(".").removesuffix(".partial")):
            remove(folder)


def _checkpoints(run: Path) -> list[Path]:
    """Folders of whole checkpoints, and none that a link leads to, oldest first."""
    found = [
        folder
        for folder in (run / CHECKPOINTS).glob("[0-9]*")
        if NUMBERED.fullmatch(folder.name)
        and not folder.is_symlink()
        and (folder / PROGRESS).exists()
    ]
    return sorted(found, key=lambda folder: int(folder.name))


NUMBERED, PROGRESS = re.compile(r"[0-9]{8,18}"), "progress.json"


def save(
    run: Path,
    update: int,
    model: TrainableModel,
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

    Raises:
        ValueError: weights, or what the optimiser keeps, are unsound; nothing is written.
    """
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    state = {} if optimiser is None else _flatten(optimiser.state_dict()["state"])
    final = run / CHECKPOINTS / f"{update:08d}"
    check_weights(weights, final)
    check_weights(state, final)
    if not (run / MODEL).exists():
        write_json(run / MODEL, describe_model(model))
    with whole_folder(final) as partial:
        write_tensors(weights, partial / WEIGHTS)
        if optimiser is not None:
            write_tensors(state, partial / OPTIMISER)
        write_json(partial / PROGRESS, {"update": update, **(progress or {})})
    _drop_older(run)
    return final


def latest(run: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None."""
    found = _checkpoints(run)
    return found[-1] if found else None


def load(run: Path | str, device: torch.device | str = "cpu") -> TrainableModel:
    """Load a run's model from its newest checkpoint, in evaluation mode.

    Raises:
        ValueError: not a run, no checkpoint yet, or weights that are damaged or do not fit; the
            file is named.
    """
    run = Path(run)
    description = read_json(run / MODEL)
    checkpoint = latest(run)
    if checkpoint is None:
        raise ValueError(
            f"{run} holds no checkpoint yet: expected one in {run / CHECKPOINTS}. Let `lewm "
            "train` write it."
        )
    weights = checkpoint / WEIGHTS
    return made_of(description, read_tensors(weights), weights, run / MODEL).to(device).eval()


def made_of(
    description: Mapping[str, Any], tensors: Mapping[str, Tensor], source: Path, described: Path
) -> TrainableModel:
    """Make a model of its description and its weights. Of sizes that the weights do not bear out
    nothing is allocated.

    Args:
        source, described: files of the weights and of the description, for messages.

    Raises:
        ValueError: as for `build_model` and `fill`.
    """
    with torch.device("meta"):
        _require_fit(build_model(description, described), tensors, source)
    model = build_model(description, described)
    _require_frozen(model, description, described)
    fill(model, tensors, source)
    return model


def _require_frozen(model: Any, description: Mapping[str, Any], source: Path) -> None:
    """Refuse a model whose frozen encoders have other weights here than where it was trained."""
    known = description.get("frozen")
    for place, part in frozen_parts(model).items():
        told = known.get(place) if isinstance(known, dict) else None
        wanted = told.get("weights") if isinstance(told, dict) else None
        if wanted != part.digest:
            cure = f"Obtain those that it was trained with: lewm weights {part.name} --replace"
            if part.drawn:
                cure = "This version of NumPy draws others: use the one that it was trained with"
            raise WeightsMissing(
                f"{source}: expected encoder '{part.name}' with weights {_short(wanted)}, got "
                f"{_short(part.digest)}. {cure}."
            )


def restore(run: Path, model: Trainable, optimiser: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Bring model and optimiser to a run's newest checkpoint; return its progress, or None if there
    is none.

    Raises:
        ValueError: a file of it is damaged; it is named.
    """
    checkpoint = latest(run)
    if checkpoint is None:
        return None
    progress = read_json(checkpoint / PROGRESS)
    update, seconds = progress.get("update"), progress.get("seconds", 0.0)
    if update != int(checkpoint.name) or type(seconds) not in (int, float):
        raise ValueError(
            f"{checkpoint / PROGRESS} is damaged: expected update {int(checkpoint.name)} and the "
            f"seconds that it took, got {_short(update)} and {_short(seconds)}. Restore it, or "
            "train the run again."
        )
    restore_weights(model, checkpoint / WEIGHTS)
    groups = optimiser.state_dict()["param_groups"]
    state = read_tensors(checkpoint / OPTIMISER)
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    optimiser.load_state_dict(
        {"state": _unflatten(state, parameters, checkpoint / OPTIMISER), "param_groups": groups}
    )
    return progress


def restore_weights(model: Trainable, path: Path) -> None:
    """Load a safetensors file into `model`, strictly.

    Raises:
        ValueError: the file is damaged, or as for `fill`.
    """
    fill(model, read_tensors(path), path)


def fill(model: Trainable, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Give a model its weights, strictly.

    Raises:
        ValueError: tensors are missing, unexpected, of another shape or type, or unsound (up to ten
            are named, and `source`).
    """
    _require_fit(model, tensors, source)
    check_weights(tensors, source)
    model.load_state_dict(tensors)


def _require_fit(model: Trainable, tensors: Mapping[str, Tensor], source: Path) -> None:
    own = model.state_dict()
    wrong = [f"{name} is missing" for name in own.keys() - tensors.keys()]
    wrong += [f"{name} is unexpected" for name in tensors.keys() - own.keys()]
    wrong += [
        f"{name} is {_kind(tensors[name])}, expected {_kind(own[name])}"
        for name in own.keys() & tensors.keys()
        if _kind(own[name]) != _kind(tensors[name])
    ]
    if wrong:
        more = f" and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise ValueError(
            f"{source} does not fit its model.json: expected its tensors, got "
            f"{'; '.join(sorted(wrong)[:10])}{more}. Keep the two together."
        )


def check_weights(tensors: Mapping[str, Tensor], source: Path) -> None:
    """Refuse weights that are not plain, finite numbers: the one door for what is saved and read.

    Raises:
        ValueError: up to ten tensors are named, each with its flaw, and `source`.
    """
    wrong = [
        f"{name} {flaw}" for name, tensor in tensors.items() if (flaw := flaw_of(name, tensor))
    ]
    if wrong:
        more = f" and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise ValueError(
            f"{source}: expected weights that are finite numbers, got {'; '.join(wrong[:10])}{more}"
            ". They are damaged, or the training diverged: restore them, or train again with a "
            "lower learning rate."
        )


def flaw_of(name: str, tensor: Tensor) -> str:
    """What is wrong with a tensor of weights, in words that follow its name; "" if nothing is.

    Args:
        name: it says whether the tensor holds variances, or second moments, which are never
            negative.
    """
    for flawed, what in (
        (tensor.is_meta, "has no values (it is on the meta device)"),
        (tensor.layout != torch.strided, "is sparse"),
        (tensor.is_quantized, "is quantised"),
        (tensor.is_complex(), "is complex"),
        (_repeats(tensor), "holds fewer numbers than its shape says"),
    ):
        if flawed:
            return what
    tensor = tensor.detach()
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        return "holds NaN" if bool(tensor.isnan().any()) else "holds infinity"
    if name.endswith(NEVER_NEGATIVE) and bool((tensor < 0).any()):
        return "holds a variance or a count below 0"
    return ""


def _repeats(tensor: Tensor) -> bool:
    """Has it a shape of more numbers than it stores? A file may say so of a few bytes."""
    if tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized:
        return False
    return tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size()


NEVER_NEGATIVE = ("running_var", "num_batches_tracked", "exp_avg_sq", "/step")


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def digest_of_newest(run: Path) -> str:
    """Of the newest weights: what was fitted to these fits no others."""
    checkpoint = latest(run)
    if checkpoint is None:
        raise ValueError(
            f"{run} holds no checkpoint yet: expected one in {run / CHECKPOINTS}. Let `lewm "
            "train` write it."
        )
    return digest(checkpoint / WEIGHTS)


def digest(path: Path) -> str:
    """SHA-256 of a file of weights.

    Raises:
        ValueError: it is missing; it is named.
    """
    if not path.is_file():
        raise _missing(path, "Restore it, or train the run again")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _missing(path: Path, cure: str) -> ValueError:
    return ValueError(f"{path} is missing: expected a safetensors file, got none. {cure}.")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ValueError: it is missing or damaged; it is named.
    """
    return read_safetensors(path)[0]


def read_safetensors(
    path: Path, cure: str = "Restore it, or train the run again"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, and what its header says beside them.

    Raises:
        ValueError: as for `read_tensors`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names, told = file.keys(), file.metadata()
            return {name: file.get_tensor(name) for name in names}, dict(told or {})
    except FileNotFoundError:
        raise _missing(path, cure) from None
    # a damaged header may provoke anything, of the library or of torch
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{path} is damaged: expected safetensors, got {error}. {cure}.") from None


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


def _unflatten(
    tensors: Mapping[str, Tensor], parameters: Sequence[Tensor], source: Path
) -> dict[int, dict[str, Tensor]]:
    """Named tensors as optimiser state, each of its parameter's shape or a single number."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, slot = name.partition("/")
        place = int(index) if re.fullmatch(r"[0-9]{1,9}", index) else len(parameters)
        if (
            place >= len(parameters)
            or slot not in ("step", "exp_avg", "exp_avg_sq")
            or tensor.shape not in ((), parameters[place].shape)
            or not tensor.is_floating_point()
        ):
            raise ValueError(
                f"{source} does not fit its model.json: expected the optimiser's numbers of "
                f"{len(parameters)} parameters, got {name}, {_kind(tensor)}. Keep the two together."
            )
        state.setdefault(place, {})[slot] = tensor
    check_weights(tensors, source)
    return state
