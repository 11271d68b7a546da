"""The world model's only optimiser loop, on Lightning Fabric: devices, precision and distribution are its job.

Everything random is a pure function of (seed, update): which windows form a batch, SIGReg's directions, dropout. A checkpoint
therefore needs no generator state beyond those two numbers, and a run that was killed and started again ends, on one device,
with the weights of one that was not.
"""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lewm.contracts import Batch, DataSpec
from lewm.data.episodes import Episodes
from lewm.data.split import Split, split, statistics
from lewm.data.windows import beginnings, open_windows
from lewm.devices import deterministic, fastest_precision
from lewm.files import read_json
from lewm.models.nn.layers import recalibrating
from lewm.models.nn.losses import straightness
from lewm.registry import choose
from lewm.runs import checkpoints

COLLAPSED_STD = 0.2
"""Mean latent standard deviation under which the alarm sounds. Ours: SIGReg holds it at 0.8 to 1; collapses end below 0.02."""

CONDUCT = ("reading", "workers", "log_every", "checkpoint_every", "tensorboard")
"""Settings that change how a training is carried out and nothing of what comes out: a run may be continued with others."""

PRECISION = "LEWM_PRECISION"
"""Environment variable in which the first process of a training tells those that it starts which precision was decided."""

COLLAPSED_RANK = 2.0
"""Effective rank of the latents under which the alarm sounds: nearly all of them on one line."""

LOOKS = 10
"""How often a training looks at how straight a few held-out paths are: less than 1% of the time of the shortest recipe."""


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained. The defaults are the paper's, but for pixels: those are normalised by the data's own statistics.

    Attributes:
        updates: optimiser steps; None lets `epochs` decide.
        epochs: passes over all training windows.
        batch_size: windows per update over all devices.
        window: T, frames per window.
        frameskip: env steps from one frame to the next.
        learning_rate: peak, reached after `warmup` and followed by a cosine to 0, set anew at each update.
        warmup: share of the updates with linearly growing learning rate.
        weight_decay, clip: of AdamW, and the largest norm of the gradient.
        holdout: share of the episodes that is never trained on.
        holdout_seed: draws which; None takes `seed`. Runs with one of these on one file can be compared on the same episodes.
        precision: "32-true", "bf16-mixed", or "auto": bf16 where it is faster than float32 (measured).
        accelerator, devices: as in Fabric.
        reading: "resident" (all pixels in memory), "streamed" (worker processes) or "auto" (resident where it fits).
        workers: processes of the streamed reader.
        log_every, checkpoint_every: in updates.
        recalibration: batches over which batch-norm statistics are re-estimated before evaluation and saving.
        seed: of split, initialisation, order, directions and dropout.
        tensorboard: log there too (needs `lewm[tensorboard]`).
    """

    updates: int | None = None
    epochs: float = 10.0
    batch_size: int = 128
    window: int = 4
    frameskip: int = 5
    learning_rate: float = 5e-5
    warmup: float = 0.01
    weight_decay: float = 1e-3
    clip: float = 1.0
    holdout: float = 0.1
    holdout_seed: int | None = None
    precision: str = "auto"
    accelerator: str = "auto"
    devices: int = 1
    reading: str = "auto"
    workers: int = 2
    log_every: int = 10
    checkpoint_every: int = 500
    recalibration: int = 20
    seed: int = 0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        choose("precision", self.precision, ("auto", "32-true", "bf16-mixed"))
        choose("reading mode", self.reading, ("auto", "resident", "streamed"))
        least = {"updates": 1, "epochs": 0, "batch_size": 1, "window": 2, "frameskip": 1, "devices": 1, "workers": 0, "seed": 0}
        least |= {"learning_rate": 0, "warmup": 0, "weight_decay": 0, "clip": 0, "holdout": 0}
        least |= {"log_every": 1, "checkpoint_every": 1, "recalibration": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and not value >= bound:
                raise ValueError(f"{name} must be at least {bound}, got {value}.")
        for name in ("warmup", "holdout"):
            if not getattr(self, name) < 1:
                raise ValueError(f"{name} is a share and must be below 1, got {getattr(self, name)}.")
        if self.batch_size % self.devices:
            raise ValueError(
                f"batch_size is shared by all devices: it must be divisible by {self.devices}, got {self.batch_size}."
            )


@dataclass(frozen=True)
class Progress:
    """One report of a running training, for a progress bar.

    Attributes:
        update, total: done and planned updates; frames, while the stage is "read".
        stage: "train", or "read" while pixels are decoded into memory.
        metrics: the line of metrics.jsonl, on updates that log; empty on the others.
        resumed: the update from which this process went on, 0 for a fresh run.
        alarm: what is wrong with the latents, or "".
    """

    update: int
    total: int
    metrics: Mapping[str, float]
    resumed: int = 0
    alarm: str = ""
    stage: str = "train"


def train(
    model_config: Any,
    config: TrainingConfig,
    data: Path,
    run: Path,
    *,
    experiment: Mapping[str, Any] | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Path:
    """Train a model on an episode file and leave a run folder; start again where a killed run left off.

    Args:
        model_config: dataclass with `.build(spec)`, of a registered model.
        data: episode file.
        run: folder; if it holds a run with the same experiment it is continued, finished runs return at once.
        experiment: what else to record, JSON-ready (recipe, versions).
        report: called after each update, and while pixels are read, on the first process.

    Returns:
        `run`.

    Raises:
        ValueError: the data do not fit the settings, or `run` holds another experiment (the fields that differ are named).
        KeyboardInterrupt: Ctrl-C, after the update in progress is finished and saved.
    """
    episodes = Episodes.open(data)
    chosen = split(len(episodes.lengths), config.holdout, config.seed if config.holdout_seed is None else config.holdout_seed)
    stats = statistics(episodes, chosen.train, seed=config.seed)
    fabric, precision = _fabric(config, run)
    windows = open_windows(
        episodes,
        chosen.train,
        config.window,
        config.frameskip,
        stats,
        batch_size=config.batch_size,
        seed=config.seed,
        mode=config.reading,
        device=fabric.device,
        workers=config.workers,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        progress=lambda done, total: report(Progress(done, total, {}, stage="read")) if fabric.is_global_zero else None,
    )
    total = config.updates or max(1, math.ceil(config.epochs * len(windows) / config.batch_size))

    torch.manual_seed(config.seed)
    bare = model_config.build(DataSpec(episodes.image_size, config.frameskip, stats))
    with deterministic(fabric.device):
        adamw = torch.optim.AdamW(bare.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        model, optimiser = fabric.setup(_Loss(bare), adamw)
        description = _description(bare, config, episodes, chosen)
        extra = {
            "data_path": str(Path(data).resolve()),
            "torch": torch.__version__,
            "precision": precision,
            "conduct": {name: getattr(config, name) for name in CONDUCT},
        }
        checkpoints.claim(run, description, {**extra, **(experiment or {})}, write=fabric.is_global_zero)
        fabric.barrier()  # the description is there
        progress = checkpoints.restore(run, bare, optimiser) or {"update": 0, "seconds": 0.0}
        first, seconds = int(progress["update"]), float(progress["seconds"])
        fabric.barrier()  # nobody writes before all have read
        if first >= total:
            return run
        log = checkpoints.Log(run, first) if fabric.is_global_zero else None
        paths = beginnings(episodes, chosen.heldout, config.frameskip, seed=config.seed)

        started, every = time.monotonic(), config.log_every
        with _graceful_stop() as stop, windows.batches(first, total) as batches:
            for update, batch in zip(range(first, total), batches, strict=False):
                model.train()
                rate = _learning_rate(config, update, total)
                for group in optimiser.param_groups:
                    group["lr"] = rate
                torch.manual_seed(_seed(config.seed, update, fabric.global_rank))
                generator = torch.Generator(fabric.device).manual_seed(_seed(config.seed, update, -1))
                batch = batch.to(fabric.device)
                total_loss, terms = model(batch.pixels, batch.actions, generator)
                fabric.backward(total_loss)
                norm = fabric.clip_gradients(model, optimiser, max_norm=config.clip, error_if_nonfinite=False)
                assert norm is not None
                if not math.isfinite(float(norm)):  # DDP made it the same on all devices, so all of them stop
                    raise ValueError(
                        f"the gradient is not finite at update {update}: expected numbers, got {float(norm)}. The last "
                        f"checkpoint in {run} is whole. Lower the learning rate, or train in precision '32-true'."
                    )
                optimiser.step()
                optimiser.zero_grad()

                done, metrics, alarm = update + 1, {}, ""
                if done % every == 0 or done == total:
                    elapsed = time.monotonic() - started
                    local = {"loss": total_loss.detach(), **terms, "gradient_norm": norm}
                    values = {name: fabric.all_reduce(value, reduce_op="mean") for name, value in local.items()}
                    metrics = _metrics(values, done, rate, seconds + elapsed, (done - first) / elapsed)
                    alarm = _alarm(metrics, done, total)
                    if paths is not None and ((done - every) * LOOKS % total < every * LOOKS or done == total):
                        with recalibrating(bare):  # a function of the weights alone: running averages have a history
                            metrics["straightness"] = float(straightness(bare.encode(paths.to(fabric.device))))
                stopping = _anywhere(fabric, stop.is_set())
                saving = done % config.checkpoint_every == 0 or done == total or stopping
                if saving:
                    recalibrate(bare, windows.first(config.recalibration), fabric.device)
                if metrics and log:
                    log.write({**metrics, **({"alarm": alarm} if alarm else {})})
                    fabric.log_dict(metrics, step=done)
                if saving:
                    if fabric.is_global_zero:
                        elapsed = seconds + time.monotonic() - started
                        checkpoints.save(run, done, bare, optimiser, {"seconds": elapsed, "total": total, "alarm": alarm})
                    fabric.barrier()
                if fabric.is_global_zero:
                    report(Progress(done, total, metrics, first, alarm))
                if stopping and done < total:
                    raise KeyboardInterrupt
    return run


def recalibrate(model: Any, batches: Iterator[Batch], device: torch.device | str = "cpu") -> None:
    """Re-estimate batch-norm statistics as the plain average over `batches`; the model ends in evaluation mode."""
    with recalibrating(model):
        for batch in batches:
            model.loss(batch.to(device), torch.Generator(device).manual_seed(0))


# --------------------------------------------------------------------------------------------------------- internal


class _Loss(nn.Module):
    """A model's loss as the forward of a module, in plain containers.

    Fabric applies precision and distribution to `forward` alone, and can look into neither our records nor other methods.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, actions: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        losses = self.model.loss(Batch(pixels, actions), generator)
        return losses.total, {name: value.detach() for name, value in {**losses.terms, **losses.watch}.items()}


def _fabric(config: TrainingConfig, run: Path) -> tuple[Fabric, str]:
    """The launched Fabric, and its precision."""
    loggers: Any = []
    if config.tensorboard:
        from lightning_fabric.loggers import TensorBoardLogger

        loggers = [TensorBoardLogger(str(run), name="", version="tensorboard")]
    try:
        precision: Any = _precision(config, run)
        fabric = Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            precision=precision,
            strategy="ddp" if config.devices > 1 else "auto",
            loggers=loggers,
        )
    except (RuntimeError, MisconfigurationException) as error:
        raise ValueError(
            f"expected {config.devices} device(s) of accelerator '{config.accelerator}' with precision '{config.precision}', "
            f"got: {error} `lewm doctor` says what this machine has."
        ) from error
    os.environ[PRECISION] = precision  # for the processes that this one is about to start
    try:
        fabric.launch()
    finally:
        del os.environ[PRECISION]
    return fabric, precision


def _precision(config: TrainingConfig, run: Path) -> str:
    """Decide once per run: a measurement may come out differently in another process, or when the run is continued."""
    if config.precision != "auto":
        return config.precision
    if PRECISION in os.environ:
        return os.environ[PRECISION]
    if (run / checkpoints.EXPERIMENT).exists():
        known = read_json(run / checkpoints.EXPERIMENT).get("precision")
        if known:
            return str(known)
    return fastest_precision(Fabric(accelerator=config.accelerator, devices=1).device)


def _anywhere(fabric: Fabric, flag: bool) -> bool:
    """Is the flag set in any process? All of them must stop after the same update, or some would wait for the others."""
    if fabric.world_size == 1:
        return flag
    count = fabric.all_reduce(torch.tensor(float(flag), device=fabric.device), reduce_op="sum")
    assert isinstance(count, Tensor)
    return bool(count > 0)


def _learning_rate(config: TrainingConfig, update: int, total: int) -> float:
    """Linear warm-up to the peak over the first updates, then a cosine that reaches 0 after the last."""
    warmup = max(1, round(config.warmup * total))
    if update < warmup:
        return config.learning_rate * (update + 1) / warmup
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (update - warmup) / max(1, total - warmup)))


def _seed(seed: int, update: int, stream: int) -> int:
    """A seed per (run, update, stream); stream -1 is shared by all devices, the others are ranks."""
    return int(np.random.SeedSequence([seed, update, stream + 1]).generate_state(1, np.uint64)[0] >> 1)


def _metrics(values: Mapping[str, Any], update: int, rate: float, elapsed: float, speed: float) -> dict[str, float]:
    return {
        "update": update,
        **{name: float(value.detach()) for name, value in values.items()},
        "learning_rate": rate,
        "seconds": round(elapsed, 3),
        "updates_per_second": round(speed, 3),
    }


def _alarm(metrics: Mapping[str, float], update: int, total: int) -> str:
    """Say so when the latents have collapsed; not before they had a tenth of the run to unfold."""
    if update < min(100, total / 10) or "latent_std" not in metrics:
        return ""
    if metrics["latent_std"] < COLLAPSED_STD:
        return f"latents have collapsed: std {metrics['latent_std']:.3g} (healthy: above {COLLAPSED_STD})"
    if metrics["effective_rank"] < COLLAPSED_RANK:
        return f"latents have collapsed: effective rank {metrics['effective_rank']:.2f} (healthy: above {COLLAPSED_RANK})"
    return ""


def _description(model: Any, config: TrainingConfig, episodes: Episodes, chosen: Split) -> dict[str, Any]:
    """What makes two runs the same experiment."""
    return {
        "training": {name: value for name, value in dataclasses.asdict(config).items() if name not in CONDUCT},
        "model": checkpoints.describe_model(model),
        "data": {
            "episodes": len(episodes.lengths),
            "steps": int(episodes.lengths.sum()),
            "provenance": dataclasses.asdict(episodes.provenance),
        },
        "split": dataclasses.asdict(chosen),
    }


@contextmanager
def _graceful_stop() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into an event, so that no optimiser step is cut in two; the second one interrupts."""
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
