"""The world model's only optimiser loop, on Lightning Fabric: devices, precision and distribution are its job.

Everything random is a pure function of (seed, update): which windows form a batch, SIGReg's directions, dropout. A checkpoint
therefore needs no generator state beyond those two numbers, and a run that was killed and started again ends, on one device,
with the weights of one that was not.
"""

from __future__ import annotations

import dataclasses
import json
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

import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lewm import checkpoints
from lewm.contracts import Batch, DataSpec
from lewm.data import Episodes, split, statistics
from lewm.nn import recalibrating
from lewm.windows import open_windows

COLLAPSED_STD = 0.2
"""Mean latent standard deviation under which the alarm sounds. Ours: SIGReg holds it at 0.8 to 1; collapses end below 0.02."""

PRECISION = "LEWM_PRECISION"
"""Environment variable in which the first process of a training tells those that it starts which precision was decided."""

COLLAPSED_RANK = 2.0
"""Effective rank of the latents under which the alarm sounds: nearly all of them on one line."""


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained. The defaults are the paper's.

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
        precision: "auto" takes bf16 where it is faster than float32 (measured), or any precision of Fabric.
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
        for name in ("batch_size", "window", "frameskip", "devices", "log_every", "checkpoint_every", "recalibration"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.batch_size % self.devices:
            raise ValueError(
                f"batch_size is shared by all devices: it must be divisible by {self.devices}, got {self.batch_size}."
            )
        if self.updates is not None and self.updates < 1:
            raise ValueError(f"updates must be at least 1, got {self.updates}.")


@dataclass(frozen=True)
class Progress:
    """One report of a running training, for a progress bar.

    Attributes:
        update, total: done and planned.
        metrics: the line of metrics.jsonl, on updates that log; empty on the others.
        resumed: the update from which this process went on, 0 for a fresh run.
        alarm: what is wrong with the latents, or "".
    """

    update: int
    total: int
    metrics: Mapping[str, float]
    resumed: int = 0
    alarm: str = ""


def train(
    model_config: Any,
    config: TrainingConfig,
    data: Path,
    run: Path,
    *,
    experiment: Mapping[str, Any] | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    evaluate: Callable[[Any, int], Mapping[str, float]] | None = None,
) -> Path:
    """Train a model on an episode file and leave a run folder; start again where a killed run left off.

    Args:
        model_config: dataclass with `.build(spec)`, of a registered model.
        data: episode file.
        run: folder; if it holds a run with the same experiment it is continued, finished runs return at once.
        experiment: what else to record, JSON-ready (recipe, versions).
        report: called after each update on the first process.
        evaluate: called at checkpoints with the model in evaluation mode; what it returns is logged.

    Returns:
        `run`.

    Raises:
        ValueError: the data do not fit the settings, or `run` holds another experiment (the fields that differ are named).
        KeyboardInterrupt: Ctrl-C, after the update in progress is finished and saved.
    """
    episodes = Episodes.open(data)
    chosen = split(len(episodes.lengths), config.holdout, config.seed)
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
    )
    total = config.updates or max(1, math.ceil(config.epochs * len(windows) / config.batch_size))

    torch.manual_seed(config.seed)
    bare = model_config.build(DataSpec(episodes.image_size, config.frameskip, stats))
    with _deterministic(fabric.device):
        model, optimiser = fabric.setup(_Loss(bare), _optimiser(bare, config))
        if fabric.is_global_zero:
            _claim(run, bare, config, episodes, chosen, {"precision": precision, **(experiment or {})})
        progress = checkpoints.restore(run, bare, optimiser) or {"update": 0, "seconds": 0.0}
        first, seconds = int(progress["update"]), float(progress["seconds"])
        fabric.barrier()  # nobody writes before all have read
        if first >= total:
            return run
        log = _Log(run, first, fabric)

        started, since = time.monotonic(), first
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
                if done % config.log_every == 0 or done == total:
                    elapsed = seconds + time.monotonic() - started
                    values = {"loss": total_loss, **terms, "gradient_norm": norm}
                    metrics = _metrics(values, done, rate, elapsed, (done - since) / (time.monotonic() - started))
                    alarm = _alarm(metrics, done, total)
                stopping = _anywhere(fabric, stop.is_set())
                saving = done % config.checkpoint_every == 0 or done == total or stopping
                if saving:
                    recalibrate(bare, windows.first(config.recalibration), fabric.device)
                    if evaluate is not None and fabric.is_global_zero:
                        metrics |= dict(evaluate(bare, done))
                if metrics:
                    log.write(metrics, alarm)
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


def recalibrate(model: nn.Module, batches: Iterator[Batch], device: torch.device | str = "cpu") -> None:
    """Re-estimate batch-norm statistics as the plain average over `batches`; the model ends in evaluation mode."""
    momenta = [(norm, norm.momentum) for norm in recalibrating(model)]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for batch in batches:
            model.loss(batch.to(device), torch.Generator(device).manual_seed(0))  # type: ignore[operator]
    for norm, momentum in momenta:
        norm.momentum = 0.1 if momentum is None else momentum
    model.eval()


def fastest_precision(device: torch.device | str) -> str:
    """ "bf16-mixed" where bf16 matrix products are clearly faster than float32 ones on this device, else "32-true".

    CPUs without bf16 instructions emulate them, several times slower than float32: so it is measured, never assumed.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
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
        known = checkpoints.read_json(run / checkpoints.EXPERIMENT).get("precision")
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


def _optimiser(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)


def _learning_rate(config: TrainingConfig, update: int, total: int) -> float:
    """Linear warm-up to the peak over the first updates, then a cosine that reaches 0 after the last."""
    warmup = max(1, round(config.warmup * total))
    if update < warmup:
        return config.learning_rate * (update + 1) / warmup
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (update - warmup) / max(1, total - warmup)))


def _seed(seed: int, update: int, stream: int) -> int:
    """A seed per (run, update, stream); stream -1 is shared by all devices, the others are ranks."""
    return hash((seed, update, stream)) % 2**62  # of integers only, hence the same in every process


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


def _claim(run: Path, model: Any, config: TrainingConfig, episodes: Episodes, chosen: Any, extra: dict[str, Any]) -> None:
    """Write the run's description, or check that the one that is there is the same experiment."""
    description = json.loads(
        json.dumps(
            {
                "training": dataclasses.asdict(config),
                "model": checkpoints.describe_model(model),
                "data": {
                    "episodes": len(episodes.lengths),
                    "steps": int(episodes.lengths.sum()),
                    "provenance": dataclasses.asdict(episodes.provenance),
                },
                "split": {"train": list(chosen.train), "heldout": list(chosen.heldout)},
            }
        )
    )
    if checkpoints.latest(run) is not None:  # before its first checkpoint a run holds nothing to protect
        there = checkpoints.read_json(run / checkpoints.EXPERIMENT)
        differing = list(_differences({key: there.get(key) for key in description}, description))
        if differing:
            raise ValueError(
                f"{run} holds another experiment: {'; '.join(differing[:5])}. Continue with the settings it was started "
                "with, or choose another folder."
            )
        return
    checkpoints.write_json(run / checkpoints.MODEL, description["model"])
    checkpoints.write_json(
        run / checkpoints.EXPERIMENT,
        {**description, "data_path": str(Path(episodes.path).resolve()), "torch": torch.__version__, **extra},
    )


def _differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*new, *old]):  # in the order of the description
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield f"{name} was {_short(old)}, now {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


class _Log:
    """metrics.jsonl, one line per report, cut back to the checkpoint from which a run goes on; and Fabric's loggers."""

    def __init__(self, run: Path, first: int, fabric: Fabric) -> None:
        self.fabric, self.path = fabric, run / checkpoints.METRICS
        if not fabric.is_global_zero:
            return
        kept = []
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:  # the line that a kill cut short
                    break
                if record["update"] > first:
                    break
                kept.append(line + "\n")
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text("".join(kept))
        partial.replace(self.path)

    def write(self, metrics: Mapping[str, float], alarm: str) -> None:
        if self.fabric.is_global_zero:
            with self.path.open("a") as file:
                file.write(json.dumps({**metrics, **({"alarm": alarm} if alarm else {})}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        self.fabric.log_dict(dict(metrics), step=int(metrics["update"]))


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


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """On CUDA ask for deterministic kernels where there are any; CPU kernels already are."""
    if device.type != "cuda":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
