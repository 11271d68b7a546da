"""`lewm doctor`: what is here, what will be used, what is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from lewm import registry
from lewm.cli import console
from lewm.files import write_json
from lewm.worlds.kit.offscreen import find_backend

__all__ = ["examine"]


def main(words: Sequence[str]) -> None:
    tyro.cli(run, args=words, prog="lewm doctor")


def run(json: Path | None = None) -> None:
    """Say what is installed, which device and precision will be used, and what is missing.

    Args:
        json: write the findings there.
    """
    findings = examine()
    for section, values in findings.items():
        if isinstance(values, dict):
            console.facts(values, title=section)
    console.say(f"\n{findings['verdict']}")
    if json:
        write_json(json, findings)


EXTRAS = {
    "video": "MP4 from `lewm plan`",
    "tensorboard": "`lewm train --training.tensorboard`",
    "dev": "tests, lint and types, for work on lewm itself",
}
"""What each extra is for. Its packages are read from lewm's metadata; one that is not listed here
is shown without words."""

FILTERS = {"blosc": 32001, "zstd": 32015, "lz4": 32004, "bitshuffle": 32008}
"""HDF5's registered numbers of the compressions that published episode files use."""

LITTLE_DISK_GB, LITTLE_MEMORY_GB = 0.2, 2.0
"""Below these the quickstart itself may fail: it needs about 0.1 GB of disk (32 MB of them
episodes) and 1 GB of memory."""


def examine(folder: Path | str = ".") -> dict[str, Any]:
    """Look at packages, device, machine, plug-ins and file formats.

    Args:
        folder: whose disk is asked for its free space.

    Returns:
        JSON-ready sections ("versions", "extras", "device", "machine", "plug-ins", "files"),
        `problems`, a list of sentences, and `verdict`, one sentence.
    """
    versions, missing = _versions()
    problems = [
        f"{name} is required and not installed. Install it with: pip install {name}"
        for name in missing
    ]
    device, device_problems = _device()
    machine, machine_problems = _machine(Path(folder))
    files, file_problems = _files()
    problems += device_problems + machine_problems + file_problems
    works = "lewm cannot train here."
    if "used" in device:
        used, precision = device["used"], device["precision"]
        works = (
            f'lewm will use {used}; where precision is left to "auto", that means {precision} here.'
        )
    return {
        "versions": versions,
        "extras": _extras(),
        "device": device,
        "machine": machine,
        "plug-ins": {kind: _plugins(kind) for kind in registry.FOLDERS},
        "files": files,
        "problems": problems,
        "verdict": f"{works} " + (" ".join(problems) if problems else "Nothing is missing."),
    }


def _versions() -> tuple[dict[str, str], list[str]]:
    """Versions of Python and of all that lewm requires, and the names of what is not there."""
    names = [name for name, extra in _requirements() if not extra]
    found = {name: _version(name) for name in ("lewm", *names)}
    versions = {
        "python": platform.python_version(),
        **{name: version or "missing" for name, version in found.items()},
    }
    return versions, [name for name in names if found[name] is None]


def _extras() -> dict[str, str]:
    """Extra -> installed, or what is missing and what it would give."""
    answer = {}
    for extra in dict.fromkeys([e for _, e in _requirements() if e]):
        packages = [name for name, e in _requirements() if e == extra and name != "lewm"]
        gives = EXTRAS.get(extra, "")
        missing = [name for name in packages if _version(name) is None]
        lacks = f"lacks {', '.join(missing)}; install it with: pip install 'lewm[{extra}]'"
        answer[extra] = (
            f"{lacks if missing else 'installed'} ({gives})"
            if gives
            else lacks
            if missing
            else "installed"
        )
    return answer


def _device() -> tuple[dict[str, Any], list[str]]:
    """Where and in which precision training will run, and how fast this device multiplies matrices
    in either."""
    try:
        import torch
        from lightning_fabric import Fabric

        from lewm.devices import fastest_precision
    except ImportError as error:
        return {}, [f"torch or Fabric does not import ({error})."]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        device = Fabric(accelerator="auto", devices=1).device
    precision = fastest_precision(device)
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine()
    )
    answer = {
        "used": f"{device} ({name})",
        "precision": precision,
        "float32": f"{_gigaflops(device, torch.float32):,.0f} GFLOP/s",
        "bfloat16": f"{_gigaflops(device, torch.bfloat16):,.0f} GFLOP/s",
        "CUDA devices": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "torch threads": torch.get_num_threads(),
    }
    return answer, []


def _gigaflops(device: Any, dtype: Any, size: int = 768, laps: int = 5) -> float:
    """Billions of multiplications and additions per second in a product of two square matrices."""
    import torch

    a = torch.ones(size, size, dtype=dtype, device=device)
    seconds = []
    for _ in range(laps + 1):
        begun = time.perf_counter()
        (a @ a)[0, 0].item()  # reading a number waits for the device
        seconds.append(time.perf_counter() - begun)
    return 2 * size**3 / statistics.median(seconds[1:]) / 1e9


def _machine(folder: Path) -> tuple[dict[str, Any], list[str]]:
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    disk = shutil.disk_usage(folder).free / 1e9
    memory = _memory_gb()
    problems = []
    if disk < LITTLE_DISK_GB:
        problems.append(
            f"Only {disk:.1f} GB are free on the disk of {folder.resolve()}: a quickstart needs "
            "0.1."
        )
    if memory is not None and memory < LITTLE_MEMORY_GB:
        problems.append(f"Only {memory:.1f} GB of memory are free: a quickstart needs 1.")
    answer = {
        "system": platform.platform(),
        "cores": cores,
        "free memory": "unknown" if memory is None else f"{memory:.1f} GB",
        "free disk": f"{disk:.1f} GB",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
        "OpenGL without a screen": _opengl(),
    }
    return answer, problems


def _opengl() -> str:
    """What draws the MuJoCo worlds, or what to install."""
    if _version("mujoco") is None:
        return "not tried: mujoco is not installed"
    try:
        return find_backend()
    except ValueError as error:
        return str(error)


def _memory_gb() -> float | None:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    kilobytes = re.search(r"MemAvailable:\s+(\d+)", meminfo.read_text(encoding="utf-8"))
    return int(kilobytes.group(1)) * 1024 / 1e9 if kilobytes else None


def _plugins(kind: str) -> dict[str, str]:
    """Plug-in -> "loads", or what it is missing."""
    answer = {}
    for name in registry.names(kind):
        try:
            registry.load(kind, name)
            answer[name] = "loads"
        # whatever one plug-in does wrong, the others are still of interest
        except Exception as error:
            answer[name] = f"does not load: {error}"
    return answer


def _files() -> tuple[dict[str, str], list[str]]:
    """Which compressed episode files can be read."""
    try:
        import h5py
        import hdf5plugin  # noqa: F401  importing it is what adds the filters
    except ImportError as error:
        return {}, [f"episode files cannot be read ({error})."]
    answer = {
        name: "readable" if h5py.h5z.filter_avail(number) else "not readable"
        for name, number in FILTERS.items()
    }
    unreadable = [name for name, state in answer.items() if state != "readable"]
    return answer, [
        f"Episode files compressed with {', '.join(unreadable)} cannot be read."
    ] if unreadable else []


def _requirements() -> list[tuple[str, str]]:
    """(package, extra that asks for it, or "") as lewm's metadata has them."""
    try:
        lines = importlib.metadata.requires("lewm") or []
    except importlib.metadata.PackageNotFoundError:  # run from a folder, never installed
        return []
    answer = []
    for line in lines:
        name, extra = re.match(r"[\w.-]+", line), re.search(r"extra == ['\"]([^'\"]+)['\"]", line)
        if name:
            answer.append((name.group(), extra.group(1) if extra else ""))
    return answer


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
