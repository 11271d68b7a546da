"""SIGReg, forward and backward: the production form against the plain definition, in time, memory
and exactness.

One thread. The two alternate (A B A B ...) in one run and the ratio is the median of the pairwise
ratios, so that another process which slows the machine down for a while slows both. Extra memory is
what the operating system saw: each form runs once in a process of its own, and the peak of the
resident memory is counted from just before the call.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lewm.experiments import recipes
from lewm.models.nn.sigreg import draw_directions, sigreg, sigreg_reference

FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ours": sigreg,
    "reference": sigreg_reference,
}


def _sizes_of(recipe: str) -> tuple[int, int, int, int]:
    """B, T, D and M of a recipe's training."""
    settings = recipes.load(recipe)
    return (
        settings.training.batch_size,
        settings.training.window,
        settings.lewm.latent_dim,
        settings.lewm.sigreg_slices,
    )


BATCHES = (32, 64, 128, 256, 512)
SCALES = (0.01, 0.1, 1.0, 10.0, 100.0)

PAPER, TINY = _sizes_of("two-room-paper"), _sizes_of("two-room-tiny")


def run(quick: bool = False) -> dict[str, Any]:
    """Compare the two forms; `quick` takes fewer pairs.

    Returns:
        `rows` of {case, ours, reference, unit, ratio}; ratio = reference / ours (None for errors),
        above 1 if ours is better.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pairs = 5 if quick else 25
        rows = [
            _time(PAPER, pairs),
            _time(TINY, pairs),
            *_errors(PAPER),
            *_scaling(PAPER, pairs),
            *_bounds(PAPER),
        ]
    finally:
        torch.set_num_threads(threads)
    if sys.platform != "win32":  # which does not tell a process its peak
        rows.insert(2, _memory())
    return {
        "name": "sigreg",
        "what": "forward + backward, float32, 17 knots, one thread",
        "pairs": pairs,
        "rows": rows,
    }


def _inputs(sizes: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    B, T, D, M = sizes
    generator = torch.Generator().manual_seed(0)
    return torch.randn(B, T, D, generator=generator), draw_directions(D, M, generator)


def _gradient(form: str, latents: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    latents = latents.detach().requires_grad_()
    loss = FORMS[form](latents, directions)
    (gradient,) = torch.autograd.grad(loss, latents)
    return loss.detach(), gradient


def _case(sizes: tuple[int, int, int, int], what: str) -> str:
    return "B={} T={} D={} M={}: ".format(*sizes) + what


def _time(sizes: tuple[int, int, int, int], pairs: int) -> dict[str, Any]:
    latents, directions = _inputs(sizes)
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(pairs + 1):
        for form in FORMS:
            start = time.perf_counter()
            _gradient(form, latents, directions)
            seconds[form].append(time.perf_counter() - start)
    ours, reference = (seconds[form][1:] for form in FORMS)  # the first pair warms up
    return {
        "case": _case(sizes, "time"),
        "ours": 1e3 * statistics.median(ours),
        "reference": 1e3 * statistics.median(reference),
        "unit": "ms",
        "ratio": statistics.median(b / a for a, b in zip(ours, reference, strict=True)),
    }


def _memory() -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as processes:
        ours, reference = (processes.apply(_extra_memory, (form,)) for form in FORMS)
    return {
        "case": _case(PAPER, "peak extra memory"),
        "ours": ours,
        "reference": reference,
        "unit": "MiB",
        "ratio": reference / ours,
    }


def _extra_memory(form: str) -> float:
    """MiB by which one forward and backward raises this process's peak; libraries are warmed up on
    a small problem."""
    torch.set_num_threads(1)
    latents, directions = _inputs(PAPER)
    _gradient(form, latents[:8], directions[:, :16])
    before = _peak_mib()
    _gradient(form, latents, directions)
    return _peak_mib() - before


def _peak_mib() -> float:
    status = Path("/proc/self/status")
    if (
        status.exists()
    ):  # on Linux, getrusage would count what the parent held when it started this process
        return int(status.read_text(encoding="utf-8").split("VmHWM:")[1].split()[0]) / 2**10
    import resource  # absent on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


def _errors(sizes: tuple[int, int, int, int]) -> list[dict[str, Any]]:
    """Relative error of each form's loss and gradient (2-norm) against the plain definition in
    float64."""
    latents, directions = _inputs(sizes)
    exact = _gradient("reference", latents.double(), directions.double())
    found = {form: _gradient(form, latents, directions) for form in FORMS}
    rows = []
    for i, what in enumerate(["loss", "gradient"]):
        error = {
            form: ((found[form][i].double() - exact[i]).norm() / exact[i].norm()).item()
            for form in FORMS
        }
        rows.append(
            {
                "case": _case(sizes, f"error of the {what}"),
                **error,
                "unit": "relative to float64",
                "ratio": None,
            }
        )
    return rows


def _scaling(sizes: tuple[int, int, int, int], pairs: int) -> list[dict[str, Any]]:
    """Time per frame as the batch grows: constant where the statistic is linear in the batch."""
    rows = []
    for batch in BATCHES:
        found = _time((batch, *sizes[1:]), max(3, pairs // 5))
        each = 1e3 / (batch * sizes[1])  # ms of the batch -> microseconds per frame
        per_frame = {
            "ours": each * found["ours"],
            "reference": each * found["reference"],
            "ratio": found["ratio"],
        }
        rows.append(
            {"case": _case((batch, *sizes[1:]), "time per frame"), **per_frame, "unit": "us"}
        )
    return rows


def _bounds(sizes: tuple[int, int, int, int]) -> list[dict[str, Any]]:
    """Largest gradient that any one latent is given, as the cloud is blown up: bounded, however far
    out a latent lies."""
    latents, directions = _inputs(sizes)
    rows = []
    for scale in SCALES:
        largest = {
            form: _gradient(form, scale * latents, directions)[1].norm(dim=-1).max().item()
            for form in FORMS
        }
        case = _case(sizes, f"largest gradient of a latent, latents x {scale:g}")
        rows.append({"case": case, **largest, "unit": "1", "ratio": None})
    return rows


if __name__ == "__main__":
    print(json.dumps(run(quick="--quick" in sys.argv), indent=2))
