"""Encoders that others trained, or that nobody did: they turn pictures into tokens and are never
trained here.

`open_encoder("dinov2-small", 64)` reads weights that `lewm weights dinov2-small` obtained. They are
no part of a run: neither of its parameters nor of its state dict. A run's model.json says by name
and hash which ones it needs. Because nothing of them changes, each picture is encoded once, see
`nn.memory`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from lewm.models.nn.dinov2 import DINOv2
from lewm.models.nn.efficientnet import EfficientNetLite0
from lewm.models.nn.memory import Memory
from lewm.registry import choose

__all__ = [
    "ENCODERS",
    "FrozenEncoder",
    "Kind",
    "WeightsMissing",
    "digest_of",
    "frozen_parts",
    "open_encoder",
    "weights_file",
    "weights_folder",
]

FOLDER = "LEWM_WEIGHTS"
"""The environment variable that names the folder of weights."""

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and std of the colours, of pixels in [0, 1]."""

HALF = ((127 / 255,) * 3, (128 / 255,) * 3)
"""(x - 127) / 128, likewise."""

TOGETHER = {"cpu": 1, "cuda": 32}
"""Pictures in a portion. All portions of a device have this shape, so that no bit of a token
depends on how many pictures were asked for. On a CPU one at a time: a product of other rows may
round otherwise, and a larger portion gains little there."""

SEED = 14
"""What the random encoders are drawn from."""


class WeightsMissing(ValueError):
    """An encoder's weights are not on this machine, or are not those that are wanted."""


@dataclass(frozen=True)
class Kind:
    """What there is to know of an encoder before it is opened.

    Attributes:
        make: its network, of pictures normalised by `mean` and `std` (of pixels in [0, 1]).
        width: numbers per token.
        stride: pixels that a token stands for, in both directions; DINOv2's patches do not overlap,
            so a resolution must be a multiple of it where `whole`.
        whole: must it?
        drawn: are its weights drawn at random, and not obtained?
    """

    make: Callable[[], nn.Module]
    width: int
    stride: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    whole: bool = True
    drawn: bool = False


ENCODERS: Mapping[str, Kind] = {
    "dinov2-small": Kind(DINOv2, 384, 14, *IMAGENET),
    "efficientnet-lite0": Kind(EfficientNetLite0, 112, 16, *HALF, whole=False),
    "random": Kind(DINOv2, 384, 14, *IMAGENET, drawn=True),
    "random-tiny": Kind(lambda: DINOv2(32, 2, 2, side=4), 32, 14, *IMAGENET, drawn=True),
}
"""Their names. The random ones are the control: what pictures say through weights that nobody
trained. "random" has DINOv2's sizes, "random-tiny" is for tests."""


class FrozenEncoder(nn.Module):
    """Pictures to tokens, with fixed weights. It follows its model to a device, and is never in
    training mode.

    Tokens are rounded to float16, whether they were remembered or not, so that both are the same
    bits.

    Attributes:
        name: one of `ENCODERS`.
        image_size: of the pictures, which are square.
        resolution: to which they are resized.
        tokens, width: P of a picture, and the numbers in each.
        drawn: are its weights drawn at random?
        digest: of the weights, see `digest_of`; "" on the meta device.
        memory: what it has encoded.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self, name: str, image_size: int, resolution: int, weights: Mapping[str, Tensor] | None
    ) -> None:
        super().__init__()
        kind = ENCODERS[name]
        self.name, self.image_size, self.resolution = name, image_size, resolution
        self.width, self.drawn = kind.width, kind.drawn
        self.tokens = (-(-resolution // kind.stride)) ** 2
        self.digest = "" if weights is None else digest_of(weights)
        with torch.device("meta"):
            self.net = kind.make()
        _make_constant(self.net, weights)
        for side, values in (("mean", kind.mean), ("std", kind.std)):
            self.register_buffer(
                f"pixel_{side}", torch.tensor(values).view(3, 1, 1), persistent=False
            )
        self.memory = Memory(
            f"{name}-{resolution}px-from-{image_size}px", self.digest, self.tokens * self.width
        )
        self.train(False)

    @property
    def numbers(self) -> int:
        """How many its weights are."""
        return sum(buffer.numel() for buffer in self.net.buffers())

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever is asked of the model that it belongs to."""
        return super().train(False)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Stay as it is: what is looked up in a memory gains nothing."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode pictures, each on its own.

        Args:
            pixels: (n, 3, h, w) uint8, of the image size.

        Returns:
            (n, P, width) float32 tokens, row by row of the picture, on the device of the pixels.

        Raises:
            ValueError: pictures of another type or size.

        Cost: of a picture that it remembers, a hash; see docs/weights.md for the others.
        """
        size = self.image_size
        if pixels.dtype != torch.uint8 or pixels.shape[1:] != (3, size, size):
            raise ValueError(
                f"pixels must be uint8 of shape (n, 3, {size}, {size}), got {pixels.dtype} "
                f"{tuple(pixels.shape)}. Resize the pictures, or open the encoder at their size."
            )
        if pixels.is_meta:
            return pixels.new_empty((len(pixels), self.tokens, self.width), dtype=torch.float32)
        rows = self.memory.rows(pixels, self._encode, self.pixel_mean.device.type)
        return rows.to(pixels.device).float().unflatten(1, (self.tokens, self.width))

    def _encode(self, pixels: Tensor) -> Tensor:
        """(n, 3, h, w) uint8 anywhere -> (n, P * width) float16 on the CPU, in portions of one
        shape."""
        device = self.pixel_mean.device
        together = TOGETHER.get(device.type, 1)
        rows = []
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            for part in pixels.split(together):
                lacking = together - len(part)
                whole = torch.cat([part, part[:1].expand(lacking, -1, -1, -1)]) if lacking else part
                tokens = self.net(self._seen(whole.to(device)))
                rows.append(tokens[: len(part)].flatten(1).half().cpu())
        return torch.cat(rows)

    def _seen(self, pixels: Tensor) -> Tensor:
        """Pictures as the network wants them: resized, normalised."""
        x = pixels.float()
        if self.resolution != self.image_size:
            size = (self.resolution, self.resolution)
            x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
        return (x / 255 - self.pixel_mean) / self.pixel_std

    def recall(self, episodes: Path) -> None:
        """Remember what others have encoded of an episode file, see `Memory.recall`."""
        self.memory.recall(episodes)

    def keep(self) -> None:
        """Leave what was encoded to others, see `Memory.keep`."""
        self.memory.keep()


def open_encoder(name: str, image_size: int, resolution: int | None = None) -> FrozenEncoder:
    """Open an encoder by its name.

    On the meta device nothing is read: there it has shapes alone.

    Args:
        name: one of `ENCODERS`.
        image_size: of the pictures that it will be given, in pixels.
        resolution: to which they are resized first. None takes the image size where the encoder
            can, else the largest size below it (56 for 64 px and patches of 14). A smaller picture
            may be enlarged: 112 makes 64 tokens of 64 px.

    Raises:
        ValueError: an unknown name, a resolution that is not whole patches.
        WeightsMissing: its weights are not here; `lewm weights NAME` obtains them.
    """
    kind = ENCODERS[choose("encoder", name, ENCODERS)]
    if resolution is None:
        resolution = max(1, image_size // kind.stride) * kind.stride if kind.whole else image_size
    if resolution < 1 or (kind.whole and resolution % kind.stride):
        raise ValueError(
            f"resolution must be a multiple of {kind.stride} for encoder '{name}', got "
            f"{resolution}. Take {max(1, round(resolution / kind.stride)) * kind.stride}."
        )
    weights = None
    if not torch.empty(0).is_meta:
        weights = _drawn(kind) if kind.drawn else _read(name, kind)
    encoder = FrozenEncoder(name, image_size, resolution, weights)
    return encoder.to(torch.empty(0).device)


def frozen_parts(model: object) -> dict[str, FrozenEncoder]:
    """The frozen encoders in a model, by the names of their places."""
    modules = model.named_modules() if isinstance(model, nn.Module) else ()
    return {place: part for place, part in modules if isinstance(part, FrozenEncoder)}


# ---------------------------------------------------------------------------------------- weights


def weights_folder() -> Path:
    """Where obtained weights are: what LEWM_WEIGHTS names, else ~/.cache/lewm/weights."""
    return Path(os.environ.get(FOLDER) or Path.home() / ".cache" / "lewm" / "weights")


def weights_file(name: str) -> Path:
    """The safetensors file of an encoder; a card of the same name, `.json`, lies beside it."""
    return weights_folder() / f"{name}.safetensors"


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values: the same for the same weights, however they were
    written down."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.view(-1).numpy().tobytes())
    return total.hexdigest()


def shapes_of(kind: Kind) -> dict[str, torch.Size]:
    """What its file must hold. Batch norms count no batches."""
    with torch.device("meta"):
        net = kind.make()
    return {name: tensor.shape for name, tensor in _named(net)}


def require_whole(name: str, tensors: Mapping[str, Tensor], source: Path | str) -> None:
    """Refuse tensors that are not an encoder's: other names or shapes, no float32, not finite.

    Raises:
        WeightsMissing: up to five are named.
    """
    wanted = shapes_of(ENCODERS[name])
    wrong = [f"{key} is missing" for key in sorted(wanted.keys() - tensors.keys())]
    wrong += [f"{key} is unexpected" for key in sorted(tensors.keys() - wanted.keys())]
    for key in sorted(wanted.keys() & tensors.keys()):
        tensor = tensors[key]
        if tensor.shape != wanted[key] or tensor.dtype != torch.float32:
            wrong.append(f"{key} is {tuple(tensor.shape)} {tensor.dtype}")
        elif not bool(tensor.isfinite().all()):
            wrong.append(f"{key} is not finite")
    if wrong:
        raise WeightsMissing(
            f"{source} is damaged: expected the weights of {name}, got {'; '.join(wrong[:5])}. "
            f"Delete it and run: lewm weights {name}"
        )


def _read(name: str, kind: Kind) -> dict[str, Tensor]:
    path = weights_file(name)
    if not path.is_file():
        raise WeightsMissing(
            f"encoder '{name}' has weights of others: expected them in {path}, got no such file. "
            f"Run: lewm weights {name}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    # a damaged header may provoke anything, of the library or of torch
    except Exception as error:
        raise WeightsMissing(
            f"{path} is damaged: expected safetensors, got {error}. Delete it and run: lewm "
            f"weights {name}"
        ) from None
    require_whole(name, tensors, path)
    return tensors


def _drawn(kind: Kind) -> dict[str, Tensor]:
    """Weights of an encoder that nobody trained, the same on every machine.

    Matrices are normal with std 0.02, norms and scales the identity, biases 0. Source: as DINOv2
    begins, but for its LayerScales, which begin at 1e-5. Ours: they are 1, else hardly anything but
    the patch embedding would be seen. NumPy draws: its numbers do not depend on the processor.
    """
    generator = np.random.default_rng(SEED)
    tensors = {}
    for name, shape in shapes_of(kind).items():
        if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "scale1", "scale2")):
            tensors[name] = torch.ones(shape)
        elif name.endswith("bias"):
            tensors[name] = torch.zeros(shape)
        else:
            drawn = generator.standard_normal(tuple(shape), dtype=np.float32)
            tensors[name] = torch.from_numpy(drawn * np.float32(0.02))
    return tensors


def _named(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights of a network, statistics of batch norms among them, before it is made
    constant."""
    yield from net.named_parameters()
    for name, buffer in net.named_buffers():
        if not name.endswith("num_batches_tracked"):
            yield name, buffer


def _make_constant(net: nn.Module, weights: Mapping[str, Tensor] | None) -> None:
    """Make buffers of a network's parameters, which follow it to a device, are not trained, and are
    no part of a state dict. Without weights they stay where they are, on the meta device."""
    for place, module in net.named_modules():
        values = {**module._parameters, **module._buffers}
        module._parameters.clear()
        module._buffers.clear()
        for name, value in values.items():
            if value is None or name == "num_batches_tracked":
                value = None
            elif weights is not None:
                value = weights[f"{place}.{name}" if place else name]
            kept = None if value is None else value.detach()
            module.register_buffer(name, kept, persistent=False)
        if isinstance(module, nn.BatchNorm2d):  # or loading a model would ask for its count
            module.track_running_stats = False
