"""SIGReg: the distance of a cloud of latents from an isotropic Gaussian, by random 1-D
projections."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Generator, Tensor

from lewm.models.nn.layers import devices_together
from lewm.models.nn.losses import full_precision

__all__ = ["draw_directions", "sigreg_reference", "sigreg", "sigreg_per_slice"]


def draw_directions(
    dim: int,
    num_slices: int,
    generator: Generator | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw the unit directions on which SIGReg projects; draw anew for every update.

    The numbers are drawn where `generator` lives, so that a CPU generator gives the same directions
    on every device. Under `torch.distributed` rank 0's draw is sent to all: a collective call,
    which every rank must make (and every rank's generator advances alike).

    Args:
        dim: D, the width of the latents.
        num_slices: M.

    Returns:
        (D, M); each column has length 1 and is uniform on the sphere.

    Source: LeJEPA, SIGReg (Gaussian columns, normalised).
    """
    source = generator.device if generator is not None else device
    gaussian = torch.randn(dim, num_slices, generator=generator, device=source, dtype=dtype).to(
        device
    )
    directions = F.normalize(gaussian, dim=0)
    if devices_together() > 1:
        dist.broadcast(directions, src=0)
    return directions


def sigreg_reference(
    latents: Tensor, directions: Tensor, num_knots: int = 17, max_knot: float = 3.0
) -> Tensor:
    """SIGReg as its definition reads: the twin that `sigreg` is tested against. One process, no
    care for memory or precision.

    Args, Returns: as for `sigreg`.

    Cost: autograd keeps several (T, B, M, Q) tensors.
    """
    knots, phi, weights = _quadrature(num_knots, max_knot, latents)
    angles = (latents.transpose(0, 1) @ directions)[..., None] * knots  # (T, B, M, Q)
    real = angles.cos().mean(dim=1) - phi  # (T, M, Q)
    imaginary = angles.sin().mean(dim=1)
    return len(latents) * ((real.square() + imaginary.square()) @ weights).mean()


def sigreg(
    latents: Tensor, directions: Tensor, num_knots: int = 17, max_knot: float = 3.0
) -> Tensor:
    """Distance of the latents' distribution from a standard Gaussian, per time step over the batch.

    For time step t and direction m, with h_b the projection of sample b, the statistic is

        B * sum_k w_k * |mean_b exp(i t_k h_b) - phi_k|^2,    phi_k = exp(-t_k^2 / 2),

    and the loss is its mean over T and M. Knots t_k run from 0 to `max_knot`, both included,
    evenly; w_k is the trapezoid rule for the whole symmetric interval [-max_knot, max_knot], times
    phi_k. To pool time and batch instead, pass the latents as `latents.flatten(0, 1)[:, None]`, a
    single time step.

    Several processes: B is the batch over *all* of them. One all-reduce adds up the knot sums and
    the batch sizes (so ranks may hold batches of different size), hence every rank returns the same
    number: that of one process with the whole batch. Each rank's gradient, with respect to its own
    latents, is that of this number *times the world size*. The reason: DDP averages the parameter
    gradients over ranks, which is right for losses that are means over the local batch, whereas one
    shared number needs their sum; the factor turns the mean back into the sum. Every rank must
    call, also in evaluation, with equal directions, T and knots.

    Precision: float32 throughout, also in autocast and from half-precision latents; float64 latents
    are computed in float64.

    Args:
        latents: (B, T, D).
        directions: (D, M) unit columns from `draw_directions`; they are constants and receive no
            gradient.
        num_knots: Q, at least 2.
        max_knot: the last knot, in units of 1/latent.

    Returns:
        A scalar; about 1.05 for perfectly Gaussian latents of any batch size, and of order B for
        collapsed ones.

    Raises:
        ValueError: shapes do not fit, or there is nothing to integrate.

    Cost: one (B, T, D) tensor is kept for backward; the transient peak is about 16 bytes for each
    of the T*B*M projections. First derivatives only: backward cannot itself be differentiated.
    Source: LeWorldModel, sec. on SIGReg, and LeJEPA, arXiv 2511.08544; one global batch over
    devices as in LeJEPA.
    """
    if latents.dim() != 3 or directions.dim() != 2 or latents.shape[-1] != directions.shape[0]:
        raise ValueError(
            f"latents must be (B, T, D) and directions (D, M), got {tuple(latents.shape)} and "
            f"{tuple(directions.shape)}. Pool with latents.flatten(0, 1)[:, None]; draw "
            "directions with draw_directions(D, M)."
        )
    if num_knots < 2 or max_knot <= 0:
        raise ValueError(
            f"expected num_knots >= 2 and max_knot > 0, got {num_knots} and {max_knot}. The "
            "defaults are 17 and 3.0."
        )
    wants_gradient = torch.is_grad_enabled() and latents.requires_grad
    with torch.autocast(latents.device.type, enabled=False):
        latents = full_precision(latents)
        return _SIGReg.apply(
            latents, directions.detach().to(latents.dtype), num_knots, max_knot, wants_gradient
        )


def sigreg_per_slice(
    latents: Tensor, directions: Tensor, num_knots: int = 17, max_knot: float = 3.0
) -> Tensor:
    """The statistics that `sigreg` is the mean of, of one process and without a gradient: which
    directions are the worst?

    Args:
        latents, directions, num_knots, max_knot: as for `sigreg`.

    Returns:
        (T, M), each about 1.05 on average for Gaussian latents.

    Cost: about 16 bytes for each of the T*B*M projections.
    """
    with torch.no_grad():
        latents = full_precision(latents)
        _, phi, weights = (
            values[1:, None, None] for values in _quadrature(num_knots, max_knot, latents)
        )
        angles = (
            latents.transpose(0, 1) @ directions.to(latents.dtype) * (max_knot / (num_knots - 1))
        )
        residual = _power_sums(_wave(angles), num_knots - 1) / len(latents) - phi
        return len(latents) * (weights * (residual.real.square() + residual.imag.square())).sum(
            dim=0
        )


class _SIGReg(torch.autograd.Function):
    """SIGReg whose gradient is computed along with its value, so that nothing but that gradient
    waits for backward.

    The knots are evenly spaced, t_k = k * delta, so with the *wave* W_b = exp(i delta h_b) the
    characteristic function at knot k is the mean of W_b^k: one sine and cosine per projection, and
    products for all further knots. Writing r_k = mean_b W_b^k
    - phi_k, the loss of one slice is B * sum_k w_k |r_k|^2, and (the 1/B of the mean cancels B)

        d loss / d h_b = 2 delta Re sum_k k w_k i conj(r_k) W_b^k,

    a polynomial in W_b, which Horner's rule evaluates with the same products. Knot 0 is skipped:
    r_0 = 0 always. Complex powers cost what the real recurrences for cos(k a) and sin(k a)
    (Chebyshev, Clenshaw) do, but their rounding error does not grow as the angle nears 0, where
    collapsed latents live.
    """

    @staticmethod
    def forward(
        ctx: Any,
        latents: Tensor,
        directions: Tensor,
        num_knots: int,
        max_knot: float,
        wants_gradient: bool,
    ) -> Tensor:
        local_batch, T, D = latents.shape
        M = directions.shape[1]
        _, phi, weights = (
            values[1:, None, None] for values in _quadrature(num_knots, max_knot, latents)
        )
        delta = max_knot / (num_knots - 1)
        rows = latents.transpose(0, 1).reshape(T * local_batch, D)
        slices = directions.split(_chunk_width(rows), dim=1)

        waves = [_wave((rows @ chunk).mul_(delta)).view(T, local_batch, -1) for chunk in slices]
        sums = torch.cat(
            [_power_sums(wave, num_knots - 1) for wave in waves], dim=2
        )  # (Q-1, T, M) complex
        sums, batch = _over_ranks(sums, local_batch)
        residual = sums / batch - phi
        loss = (
            batch * (weights * (residual.real.square() + residual.imag.square())).sum(dim=0).mean()
        )

        if wants_gradient:
            order = torch.arange(1, num_knots, dtype=phi.dtype, device=phi.device)[:, None, None]
            # Horner multiplies by W last, so that entry 0 is the coefficient of W^1.
            coefficients = (2j * delta / (T * M) * order * weights * residual.conj()).split(
                _chunk_width(rows), dim=2
            )
            gradient = torch.zeros_like(rows)
            for wave, coefficient, chunk in zip(waves, coefficients, slices, strict=True):
                gradient.addmm_(_horner(coefficient, wave).view(T * local_batch, -1), chunk.T)
            ctx.save_for_backward(
                gradient.mul_(devices_together()).view(T, local_batch, D).transpose(0, 1)
            )
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return loss_gradient * gradient, None, None, None, None


def _wave(angles: Tensor) -> Tensor:
    return torch.complex(angles.cos(), angles.sin())


def _power_sums(wave: Tensor, highest: int) -> Tensor:
    """(T, B, m) complex -> (highest, T, m): entry k-1 is the sum over the batch of wave^k."""
    T, _, m = wave.shape
    sums = wave.new_empty(highest, T, m)
    power, buffer = wave, torch.empty_like(wave)
    for k in range(highest):
        if k > 0:
            power = torch.mul(power, wave, out=buffer)
        torch.sum(power, dim=1, out=sums[k])
    return sums


def _horner(coefficients: Tensor, wave: Tensor) -> Tensor:
    """Real part of sum_k coefficients[k-1] * wave^k; (Q-1, T, m) and (T, B, m) complex -> (T, B,
    m)."""
    value = coefficients[-1][:, None] * wave
    for coefficient in coefficients[:-1].flip(0):
        value.add_(coefficient[:, None]).mul_(wave)
    return value.real.contiguous()


def _over_ranks(sums: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Add the knot sums and the batch sizes of all ranks in one all-reduce."""
    flat = torch.cat([torch.view_as_real(sums).flatten(), sums.real.new_full((1,), count)])
    if devices_together() > 1:
        dist.all_reduce(flat)
    return torch.view_as_complex(flat[:-1].view(*sums.shape, 2)), flat[-1]


def _quadrature(num_knots: int, max_knot: float, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(Q,) knots, N(0, 1)'s characteristic function phi at them, and trapezoid weights of
    [-max_knot, max_knot] times phi."""
    return _quadrature_on(num_knots, max_knot, like.device, like.dtype)


@lru_cache(
    maxsize=16
)  # constants: sent to a device anew at every update, they would make the host wait for it
def _quadrature_on(
    num_knots: int, max_knot: float, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    knots = torch.linspace(0.0, max_knot, num_knots, dtype=torch.float64)
    phi = torch.exp(-knots.square() / 2)
    weights = torch.full_like(knots, 2 * max_knot / (num_knots - 1))
    weights[[0, -1]] /= 2
    knots, phi, weights = (values.to(device, dtype) for values in (knots, phi, weights * phi))
    return knots, phi, weights


def _chunk_width(rows: Tensor) -> int:
    """How many directions to take at once: on a CPU the work should stay in cache, elsewhere
    kernels should be few."""
    elements = 2**17 if rows.device.type == "cpu" else 2**24
    return max(1, math.ceil(elements / max(1, len(rows))))
