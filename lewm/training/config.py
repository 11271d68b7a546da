"""How a model is trained: the settings of the world model's training."""

from __future__ import annotations

from dataclasses import dataclass

from lewm.contracts import check_numbers
from lewm.registry import choose

CONDUCT = ("batches", "workers", "log_every", "checkpoint_every", "tensorboard")
"""Settings that change how a training is carried out and nothing of what comes out: a run may be
continued with others."""


LATER = {"minutes": None, "compile": False, "nodes": 1}
"""Settings that older runs did not record, and the values that change nothing of them: those are
left out of the record."""


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained. The defaults are the paper's, but for pixels: those are normalised by
    the data's own statistics.

    Attributes:
        updates: optimiser steps; None lets `epochs` decide.
        epochs: passes over all training windows.
        minutes: wall time that the training may take, reading included. It decides the number of
            updates in place of `updates` and `epochs`: from the speed of the first ones, once, and
            so that the schedule fits it. None: no such limit.
        batch_size: windows per update over all devices of all nodes.
        window: T, frames per window.
        frameskip: env steps from one frame to the next.
        learning_rate: peak, reached after `warmup` and followed by a cosine to 0, set anew at each
            update.
        warmup: share of the updates with linearly growing learning rate.
        weight_decay, clip: of AdamW, and the largest norm of the gradient.
        holdout: share of the episodes that is never trained on.
        holdout_seed: draws which; None takes `seed`. Runs with one of these on one file can be
            compared on the same episodes.
        precision: "32-true", "bf16-mixed", or "auto": bf16 where it is faster than float32
            (measured).
        compile: put the model's parts through `torch.compile`. It takes up to minutes before the
            first update.
        accelerator, devices: as in Fabric; devices of each node.
        nodes: machines that train together, each with so many devices. `torchrun` starts the
            processes; how many there are must be what these settings say.
        batches: "resident" (all pixels in memory), "streamed" (worker processes) or "auto"
            (resident where it fits).
        workers: processes of the streamed reader.
        log_every, checkpoint_every: in updates.
        recalibration: batches over which batch-norm statistics are re-estimated before evaluation
            and saving.
        seed: of split, initialisation, order, directions and dropout.
        tensorboard: log there too (needs `lewm[tensorboard]`).
    """

    updates: int | None = None
    epochs: float = 10.0
    minutes: float | None = None
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
    compile: bool = False
    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    batches: str = "auto"
    workers: int = 2
    log_every: int = 10
    checkpoint_every: int = 500
    recalibration: int = 20
    seed: int = 0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        choose("accelerator", self.accelerator, ("auto", "cpu", "cuda", "gpu", "mps", "tpu"))
        choose("precision", self.precision, ("auto", "32-true", "bf16-mixed"))
        choose("way to read batches", self.batches, ("auto", "resident", "streamed"))
        often = {"log_every": 1, "checkpoint_every": 1, "recalibration": 1}
        machines = {"devices": 1, "nodes": 1}
        check_numbers(
            self,
            least={"updates": 1, "batch_size": 1, "window": 2, "frameskip": 1} | machines | often,
            most={"batch_size": 10**6, "window": 10**4, "workers": 10**3}
            | dict.fromkeys(machines, 10**4),
            above={"minutes": 0, "epochs": 0},
            below={"warmup": 1, "holdout": 1},
        )
        if self.batch_size % self.processes:
            raise ValueError(
                f"batch_size is shared by all devices: it must be divisible by {self.processes}, "
                f"got {self.batch_size}. Choose a multiple of {self.processes}."
            )

    @property
    def processes(self) -> int:
        """One for each device of each node."""
        return self.devices * self.nodes
