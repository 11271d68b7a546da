"""What is known of a device before a training begins: which precision is fast on it, and how it is
made repeatable."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch


def multiplies_bf16(device: torch.device | str) -> bool:
    """Has this device matrix products in bf16 at all, as fast or slow as they may be?

    oneDNN has them on CPUs with AVX-512 or newer, and says so itself. Elsewhere PyTorch refuses
    the one operator, in words of its own, and emulates the other: so it is asked before.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device.type != "cpu":
        return False
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return torch.backends.mkldnn.is_available() and supported is not None and bool(supported())


def device_named(name: str) -> torch.device:
    """The device of a name; "auto" takes a CUDA device where there is one.

    Raises:
        ValueError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    counts = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    here = [f"{each}:{k}" if k else each for each, count in counts.items() for k in range(count)]
    if name not in (*here, *(f"{each}:0" for each, count in counts.items() if count)):
        raise ValueError(
            f"expected a device of this machine ({', '.join(here)}, or auto), got {name!r}. "
            "`lewm doctor` says what there is."
        )
    return torch.device(name)


def fastest_precision(device: torch.device | str) -> str:
    """ "bf16-mixed" where bf16 matrix products are clearly faster than float32 ones on this device,
    else "32-true".

    CPUs without bf16 instructions emulate them, several times slower than float32: so it is
    measured, never assumed.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return (
            "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
        )
    if device.type != "cpu" or not multiplies_bf16(device):
        return "32-true"
    times = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(384, 384, dtype=dtype, device=device)
        a @ a
        laps = []
        for _ in range(5):
            start = time.perf_counter()
            a @ a
            laps.append(time.perf_counter() - start)
        times[dtype] = min(laps)
    return "bf16-mixed" if times[torch.bfloat16] < 0.6 * times[torch.float32] else "32-true"


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """On CUDA ask for deterministic kernels where there are any; CPU kernels already are."""
    if device.type != "cuda":
        yield
        return
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def synchronise(device: torch.device) -> None:
    """Wait until a device has done what it was given: before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def free_memory(device: torch.device | str) -> int | None:
    """Bytes that can still be had on a device; None where nobody says."""
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    with suppress(OSError, ValueError, IndexError):
        if device.type == "cpu":
            lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
            (available,) = (line for line in lines if line.startswith("MemAvailable:"))
            return 1024 * int(available.split()[1])
    return None
