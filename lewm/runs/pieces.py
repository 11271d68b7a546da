"""A run's weights in half precision, in pieces small enough for any way of sending them; and a run
made of such pieces.

    weights-1-of-3.safetensors, weights-2-of-3.safetensors, ...

Each piece holds some tensors, and in its header what model they are of, what was recorded of the
training, and the digest of the weights that all pieces were cut from: pieces of two runs never make
one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from lewm.files import hold, parse_json, read_json, remove, write_atomically
from lewm.runs import checkpoints

__all__ = ["PIECE_BYTES", "is_pieces", "join_pieces", "save_pieces"]

PIECE_BYTES = 15_000_000
"""Of a piece, at most: what mail and most trackers take."""

HEADER_BYTES = 1 << 16
"""Room in a piece for its header beside the records that it carries."""

NAME = re.compile(r"weights-([0-9]{1,9})-of-([0-9]{1,9})\.safetensors")


def save_pieces(run: Path, out: Path, limit: int = PIECE_BYTES) -> list[Path]:
    """Write a run's newest weights as float16 pieces.

    A tensor that half precision cannot hold (a running variance above 65504) stays as it is.

    Args:
        run: with a checkpoint.
        out: folder; made if missing. Pieces of an earlier call there are removed once the new ones
            are written.
        limit: bytes of a piece, at most.

    Returns:
        The files, in their order.

    Raises:
        ValueError: not a run, or a tensor that is larger than a piece.
    """
    model = checkpoints.load(run)
    records = {
        "model": json.dumps(read_json(run / checkpoints.MODEL)),
        "experiment": json.dumps(checkpoints.experiment(run)),
        "whole": checkpoints.digest_of_newest(run),
        "update": str(int((checkpoints.latest(run) or Path("0")).name)),
    }
    room = limit - HEADER_BYTES - sum(map(len, records.values()))
    portions = list(
        _portions({name: _halved(tensor) for name, tensor in model.state_dict().items()}, room)
    )
    files = [
        out / f"weights-{i}-of-{len(portions)}.safetensors" for i in range(1, len(portions) + 1)
    ]
    with hold(out):
        for file, portion in zip(files, portions, strict=True):
            write_atomically(file, save(portion, metadata=records))
        for other in out.iterdir():
            if NAME.fullmatch(other.name) and other not in files:
                remove(other)
    return files


def is_pieces(folder: Path) -> bool:
    """Does a folder hold such pieces?"""
    return folder.is_dir() and any(NAME.fullmatch(file.name) for file in folder.iterdir())


def join_pieces(folder: Path, out: Path) -> Path:
    """Make a run of pieces. Its weights are float32 again, and as exact as half precision is.

    Args:
        folder: with all pieces of one run.
        out: run folder to make.

    Raises:
        ValueError: pieces are missing, damaged or of different runs, or `out` holds another run.
    """
    found: list[tuple[int, int, Path]] = sorted(
        (int(m[1]), int(m[2]), file)
        for file in folder.iterdir()
        if (m := NAME.fullmatch(file.name))
    )
    numbers, counts = [i for i, _, _ in found], {count for _, count, _ in found}
    if not found or len(counts) > 1 or numbers != list(range(1, found[0][1] + 1)):
        got = ", ".join(file.name for *_, file in found) or "none"
        raise ValueError(
            f"{folder}: expected all pieces of one run, weights-1-of-N to weights-N-of-N, got "
            f"{got}."
        )
    tensors: dict[str, Tensor] = {}
    first: Mapping[str, str] = {}
    for _, _, file in found:
        portion, records = checkpoints.read_safetensors(file, "Fetch it again")
        first = first or records
        if records != first:
            raise ValueError(
                f"{file} is of another run than the other pieces: expected {first.get('whole')}. "
                "Fetch it again."
            )
        tensors |= portion
    source = found[0][2]
    expected, cure = "a model and an experiment in its header", "Fetch it again"
    described = {
        name: parse_json(first.get(name, ""), source, expected, cure)
        for name in ("model", "experiment")
    }
    if not re.fullmatch("[0-9]{1,18}", first.get("update", "")):
        raise ValueError(
            f"{source} is damaged: expected the number of an update in its header, got none. "
            f"{cure}."
        )
    tensors = {
        name: tensor.float() if tensor.dtype == torch.half else tensor
        for name, tensor in tensors.items()
    }
    model = checkpoints.made_of(described["model"], tensors, folder, source)
    with checkpoints.held(out):
        checkpoints.claim(
            out,
            {"model": described["model"]},
            {**described["experiment"], "pieces_of": first.get("whole")},
        )
        checkpoints.save(out, int(first["update"]), model)
    return out


def _portions(tensors: Mapping[str, Tensor], room: int) -> Iterator[dict[str, Tensor]]:
    """Tensors in their order, as many at a time as there is room for."""
    portion: dict[str, Tensor] = {}
    used = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if size > room:
            raise ValueError(
                f"expected tensors that fit a piece of {room} bytes, got {name} of {size}. Allow "
                "larger pieces."
            )
        if used + size > room:
            yield portion
            portion, used = {}, 0
        portion[name] = tensor
        used += size
    yield portion


def _halved(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    half = tensor.half()
    return half if tensor.is_floating_point() and bool(half.isfinite().all()) else tensor
