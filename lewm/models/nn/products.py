"""Affine maps as the engine multiplies them: folded into each other, laid out beforehand, in low
precision."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LAID_OUT_FROM = 2**17
"""Size of a weight from which on a CPU it pays to lay it out for the product beforehand; below, the
plain call is quicker."""


ROWS_EXPECTED = 300
"""Rows of a product that weights are laid out for; others work as well."""


Map = Callable[[Tensor], Tensor]
"""(..., in) -> (..., out), affine."""


@dataclass(frozen=True)
class Affine:
    """Weight and bias of a Linear, (out, in) and (out,), or those of a norm, a vector each; no bias
    is 0."""

    weight: Tensor
    bias: Tensor | None

    @staticmethod
    def of(weights: Mapping[str, Tensor], name: str) -> Affine:
        return Affine(weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    @property
    def offset(self) -> Tensor:
        return self.weight.new_zeros(len(self.weight)) if self.bias is None else self.bias

    def after(self, norm: Affine) -> Affine:
        """The same with a norm's weight and bias folded in."""
        return Affine(self.weight * norm.weight, self.weight @ norm.offset + self.offset)

    def then(self, following: Affine) -> Affine:
        return Affine(
            following.weight @ self.weight, following.weight @ self.offset + following.offset
        )

    def scaled(self, scale: Tensor | float, shift: Tensor | float = 0.0) -> Affine:
        return Affine((self.weight.T * scale).T, self.offset * scale + shift)

    def rows(self, first: int, end: int) -> Affine:
        return Affine(self.weight[first:end], self.offset[first:end])

    def copied(self) -> Affine:
        return Affine(self.weight.clone(), self.offset.clone())

    @staticmethod
    def side_by_side(parts: list[Affine]) -> Affine:
        return Affine(
            torch.cat([part.weight for part in parts]), torch.cat([part.offset for part in parts])
        )


class Product:
    """An affine map whose matrix product is of one type; on a CPU a large weight is laid out once
    as oneDNN wants it.

    Ours: with few rows, laying out the weight at every call, as `F.linear` does, takes a fifth of
    the time. The operator is the one that `torch.compile` emits. It knows no gradients, so
    `F.linear` does what needs them.
    """

    def __init__(self, affine: Affine, dtype: torch.dtype) -> None:
        self._weight, self._bias = (
            affine.weight.to(dtype, copy=True),
            affine.offset.to(dtype, copy=True),
        )
        worthwhile = self._weight.numel() >= LAID_OUT_FROM and self._weight.device.type == "cpu"
        possible = dtype in (torch.float32, torch.bfloat16) and torch.backends.mkldnn.is_available()
        if worthwhile and possible and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight, ROWS_EXPECTED)

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self._weight.dtype).contiguous()
        if self._weight.is_mkldnn and not (torch.is_grad_enabled() and x.requires_grad):
            return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return F.linear(
            x, self._weight.to_dense() if self._weight.is_mkldnn else self._weight, self._bias
        )


class Int8:
    """An affine map in 8-bit integers: (B, n, in) -> (B, n, out), environment by environment."""

    def __init__(self, affine: Affine) -> None:
        weight = affine.weight.float()
        scales = weight.abs().amax(1).clamp(min=1e-12) / 127
        zeros = torch.zeros(len(weight), dtype=torch.long)
        with (
            warnings.catch_warnings()
        ):  # PyTorch means to move its quantised tensors to another package
            warnings.simplefilter("ignore")
            quantised = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        self._packed = torch.ops.quantized.linear_prepack(
            quantised, affine.offset.to(torch.float32, copy=True)
        )

    def __call__(self, x: Tensor) -> Tensor:
        # 7 bits: CPUs without VNNI add up pairs of 8-bit products in 16 bits, which would overflow.
        answers = [
            torch.ops.quantized.linear_dynamic(one.contiguous(), self._packed, True) for one in x
        ]
        return answers[0][None] if len(answers) == 1 else torch.stack(answers)


def chained(first: Map, second: Map) -> Map:
    return lambda x: second(first(x))


def exact(affine: Affine) -> Map:
    return Product(affine, affine.weight.dtype)


PACKING: dict[str, Callable[[Affine], Map]] = {
    "float32": exact,
    "bfloat16": lambda affine: Product(affine, torch.bfloat16),
    "int8": lambda affine: (
        Int8(affine) if affine.weight.numel() >= LAID_OUT_FROM else exact(affine)
    ),
}
