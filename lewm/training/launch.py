"""What a training runs on: devices, precision, processes, and a stop that cuts no update in two."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lewm.devices import fastest_precision
from lewm.runs import checkpoints
from lewm.training.config import TrainingConfig

PRECISION = "LEWM_PRECISION"
"""Environment variable in which the first process of a training tells those that it starts which
precision was decided."""


def launch(config: TrainingConfig, run: Path, staged: bool = False) -> tuple[Fabric, str]:
    """Start what a training runs on: the launched Fabric, and its precision, which is a run's own
    once it is decided.

    Args:
        staged: parts of the model rest in some updates. Several devices must then look, at every
            update, which parts have a gradient; else they would wait for those that have none.
    """
    _require_world_size(config)
    if config.devices > 1 and hasattr(sys, "ps1"):  # Fabric would start them as scripts
        raise ValueError(
            f"expected one device in a notebook or an interactive Python, got {config.devices}: "
            "it is no script that several processes could run. Train with devices=1, or in a cell "
            f"with: !lewm train ... --training.devices {config.devices}"
        )
    loggers: Any = []
    if config.tensorboard:
        from lightning_fabric.loggers import TensorBoardLogger

        loggers = [TensorBoardLogger(str(run), name="", version="tensorboard")]
    try:
        precision: Any = _precision(config, run)
        fabric = Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.nodes,
            precision=precision,
            strategy=_strategy(config, staged),
            loggers=loggers,
        )
    except (RuntimeError, MisconfigurationException) as error:
        raise ValueError(
            f"expected {config.devices} device(s) of accelerator '{config.accelerator}' on each of "
            f"{config.nodes} node(s), with "
            f"precision '{config.precision}', got: {error} `lewm doctor` says what this machine "
            "has."
        ) from error
    os.environ[PRECISION] = precision  # for the processes that this one is about to start
    try:
        fabric.launch()
    finally:
        del os.environ[PRECISION]
    if anywhere(fabric, precision != fabric.broadcast(precision), asked=True):
        raise ValueError(
            "expected all processes to find the same precision faster, got different answers. Say "
            "which with --training.precision."
        )
    return fabric, precision


def _strategy(config: TrainingConfig, staged: bool) -> str:
    if config.processes == 1:
        return "auto"
    return "ddp_find_unused_parameters_true" if staged else "ddp"


def is_first() -> bool:
    """Is this the process of a training that writes, by what its launcher says? The others only
    compute. It can be asked before anything is launched."""
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")
    return all(os.environ.get(name, "0") == "0" for name in names)


def _require_world_size(config: TrainingConfig) -> None:
    """Refuse processes that the settings do not say: each would train all of it, into one folder.

    Raises:
        ValueError: whoever started this process started another number of them.
    """
    started = os.environ.get("WORLD_SIZE")
    if started is not None and started.strip() != str(config.processes):
        raise ValueError(
            f"expected {config.processes} process(es), one for each of --training.devices "
            f"{config.devices} on each of --training.nodes {config.nodes}, got WORLD_SIZE="
            f"{started}. Give the numbers that torchrun was given (--nproc-per-node, --nnodes), or "
            "start `lewm train` without it."
        )


def _precision(config: TrainingConfig, run: Path) -> str:
    """Decide once per run: a measurement may come out differently in another process, or when the
    run is continued."""
    if config.precision != "auto":
        return config.precision
    if PRECISION in os.environ:
        return os.environ[PRECISION]
    if (run / checkpoints.EXPERIMENT).exists():
        known = checkpoints.experiment(run).get("precision")
        if known:
            return str(known)
    return fastest_precision(Fabric(accelerator=config.accelerator, devices=1).device)


def anywhere(fabric: Fabric, flag: bool, asked: bool) -> bool:
    """Is the flag set in any process? All of them must stop after the same update, or some would
    wait for the others.

    Several processes answer only where they are `asked`: it makes each wait for the slowest.
    """
    if fabric.world_size == 1:
        return flag
    if not asked:
        return False
    count = fabric.all_reduce(torch.tensor(float(flag), device=fabric.device), reduce_op="sum")
    assert isinstance(count, Tensor)
    return bool(count > 0)


@contextmanager
def graceful_stop() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into an event, so that no optimiser step is cut in two; the
    second one interrupts."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(signum: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {name: signal.signal(name, ask) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
