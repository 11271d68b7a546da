"""Training losses as pure functions of latents: the prediction error in three distances, and terms
that keep latents from collapsing, but for SIGReg, which has a file of its own; and what is watched
of latents without being trained for: how far they spread and how straight their paths are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "STILL",
    "copying",
    "cosine",
    "covariance",
    "cross_entropy",
    "l1",
    "prediction",
    "slowness",
    "spread",
    "straightness",
    "turns",
    "variance",
]

STILL = 1e-3
"""Velocities shorter than this share of their root mean square count as standing still: they are
rounding, or all but."""

MOST_DIMENSIONS = 512
"""Of latents whose covariance is taken whole, however few rows there are."""


def prediction(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over every element.

    `target` is not detached: the encoder is to make latents that *can* be predicted, so the error
    must reach it from both sides. The collapse which this invites is what SIGReg prevents; with a
    stop-gradient instead, open-loop prediction is several times worse.

    Args:
        predicted: (B, T-1, D), or any shape; element t predicts the latent of observation t+1.
        target: latents of the same shape.

    Returns:
        A scalar, float32 even from half-precision input.

    Raises:
        ValueError: the shapes differ (broadcasting would hide an off-by-one in time).

    Source: LeWorldModel, eq. for L_pred; the remark on stop-gradient: ours, Two-Room ablation.
    """
    _require_one_shape(predicted, target)
    return F.mse_loss(full_precision(predicted), full_precision(target))


def l1(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error over every element; arguments and errors as of `prediction`.

    Source: V-JEPA 2 (arXiv 2506.09985), where both are layer-normed.
    """
    _require_one_shape(predicted, target)
    return F.l1_loss(full_precision(predicted), full_precision(target))


def cosine(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean of 2 - 2 cos: the squared distance of both after normalisation, from 0 to 4; arguments
    and errors as of `prediction`.

    Source: BYOL (arXiv 2006.07733), eq. 2.
    """
    _require_one_shape(predicted, target)
    similarity = F.cosine_similarity(full_precision(predicted), full_precision(target), dim=-1)
    return (2 - 2 * similarity).mean()


def cross_entropy(student: Tensor, teacher: Tensor, sharpness: float, centre: Tensor) -> Tensor:
    """-sum_k p_k log q_k of two distributions over prototypes, q = softmax(student), p =
    softmax((teacher - centre) / sharpness); no gradient reaches the teacher.

    Args:
        student: (..., K) scores, divided by the student's temperature.
        teacher: (..., K) scores, likewise one for one.
        sharpness: the teacher's temperature.
        centre: (K,) running mean of the teacher's scores.

    Source: DINO (arXiv 2104.14294), eq. 2 and 4.
    """
    _require_one_shape(student, teacher)
    wanted = ((full_precision(teacher.detach()) - centre) / sharpness).softmax(dim=-1)
    return -(wanted * full_precision(student).log_softmax(dim=-1)).sum(dim=-1).mean()


def variance(latents: Tensor, margin: float = 1.0, eps: float = 1e-4) -> Tensor:
    """A hinge on the standard deviation of every dimension: mean of max(0, margin - sqrt(Var +
    eps)).

    Args:
        latents: (n, ..., D); the variance is over the first axis, with n - 1.

    Raises:
        ValueError: there are fewer than two samples.

    Source: VICReg (arXiv 2105.04906), eq. 1, and PLDM's code for `eps`.
    """
    _require_samples(latents)
    std = (full_precision(latents).var(dim=0) + eps).sqrt()
    return F.relu(margin - std).mean()


def covariance(latents: Tensor) -> Tensor:
    """Sum of the squared covariances of different dimensions, over their number D (D - 1).

    Args:
        latents: (n, D), over whose first axis the covariance is, with n - 1; or (n, T, D), for
            each of T steps on its own, of which the mean is taken.

    Raises:
        ValueError: there are fewer than two samples.

    Source: VICReg, eq. 4, with the divisor of PLDM's code.
    """
    _require_samples(latents)
    n, D = len(latents), latents.shape[-1]
    steps = full_precision(latents if latents.dim() == 3 else latents[:, None]).transpose(0, 1)
    centred = steps - steps.mean(dim=1, keepdim=True)
    with torch.autocast(latents.device.type, enabled=False):
        C = centred.transpose(1, 2) @ centred / (n - 1)
    squares = C.square().sum(dim=(1, 2)) - C.diagonal(dim1=1, dim2=2).square().sum(dim=1)
    return (squares / max(1, D * (D - 1))).mean()


def slowness(latents: Tensor) -> Tensor:
    """Mean squared difference of consecutive latents, (..., T, D): what PLDM calls time
    similarity."""
    return full_precision(latents).diff(dim=-2).square().mean()


def copying(latents: Tensor) -> Tensor:
    """Mean squared error of predicting that nothing changes: of each latent from the one before.

    What `prediction` is to be compared with. A model that is no better than this knows nothing of
    what happens, however small its error is; and the quotient of the two has no scale.

    Args:
        latents: (..., T, D), T > 1, of consecutive observations.

    Returns:
        A detached scalar, over every element.

    Source: Ours.
    """
    return full_precision(latents.detach()).diff(dim=-2).square().mean()


def spread(latents: Tensor) -> tuple[Tensor, Tensor]:
    """How much of the latent space is in use: the two numbers that fall when latents collapse.

    Args:
        latents: (..., D) with at least one leading axis; all rows are pooled. Under
            `torch.distributed`, this rank's rows.

    Returns:
        Two detached scalars: the standard deviation, a mean over the D dimensions; the effective
        rank, from 1 (one direction or none at all) to D (isotropic), never above the number of rows
        - 1. Both are NaN if a latent is not finite.

    Cost: the eigenvalues of one (D, D) matrix, some milliseconds at D = 192; of one (rows, rows)
    matrix where D is large and the rows are fewer.
    Source: exp of the entropy of the covariance's normalised eigenvalues: Roy and Vetterli, "The
    effective rank", 2007.
    """
    rows = full_precision(latents.detach()).flatten(0, -2)
    with torch.autocast(rows.device.type, enabled=False):
        centred = rows - rows.mean(dim=0)
        if rows.shape[1] > MOST_DIMENSIONS and len(rows) < rows.shape[1]:
            # the same eigenvalues but for zeros, from a smaller matrix
            covariance = centred @ centred.T / len(rows)
            std = centred.square().mean(dim=0).sqrt().mean()
        else:
            covariance = centred.T @ centred / len(rows)
            std = covariance.diagonal().sqrt().mean()
    # eigvalsh raises on NaN, and a run that diverges must be able to report it.
    eigenvalues = torch.linalg.eigvalsh(covariance.nan_to_num(posinf=0.0)).clamp_min(0.0)
    shares = eigenvalues / eigenvalues.sum().clamp_min(torch.finfo(rows.dtype).tiny)
    rank = torch.exp(-torch.xlogy(shares, shares).sum())
    return std, torch.where(std.isfinite(), rank, torch.nan)


def straightness(latents: Tensor) -> Tensor:
    """How straight paths are: the mean cosine between consecutive velocities v_t = z_{t+1} - z_t.

    1 is a straight line, -1 to and fro. Steps that know nothing of each other give 0 (many
    dimensions); latents that know nothing of each other give -1/2, because each velocity takes back
    half of the one before.

    Args:
        latents: (B, T, D), T > 2; other leading axes are welcome.

    Returns:
        A detached scalar; NaN where nothing moves. Pairs with a velocity shorter than `STILL` times
        the root mean square of all are left out: where nothing moves there is no direction.

    Source: LeWorldModel, temporal straightening; what is left out: ours.
    """
    latents = full_precision(latents.detach())
    still = STILL * latents.diff(dim=-2).square().sum(dim=-1).mean().sqrt()
    return turns(latents, still).nanmean()


def turns(path: Tensor, still: Tensor | float = 0.0) -> Tensor:
    """Cosine of each turn of a path, the angle between two consecutive velocities.

    Args:
        path: (..., T, D).
        still: length up to which a velocity counts as none.

    Returns:
        (..., T-2); NaN where one of the two velocities is none.
    """
    velocity = path.diff(dim=-2)
    moved = torch.linalg.vector_norm(velocity, dim=-1) > still
    cosine = F.cosine_similarity(velocity[..., :-1, :], velocity[..., 1:, :], dim=-1, eps=1e-30)
    return torch.where(moved[..., :-1] & moved[..., 1:], cosine, torch.nan)


def _require_one_shape(predicted: Tensor, target: Tensor) -> None:
    if predicted.shape != target.shape:
        raise ValueError(
            f"predicted and target must have one shape, got {tuple(predicted.shape)} and "
            f"{tuple(target.shape)}. With latents (B, T, D), compare predictions from frames "
            "0..T-2 with latents[:, 1:]."
        )


def _require_samples(latents: Tensor) -> None:
    if len(latents) < 2:
        raise ValueError(
            f"expected two samples or more to take a variance of, got {len(latents)}. Raise the "
            "batch size."
        )


def full_precision(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
