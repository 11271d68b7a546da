"""The world model's only optimiser loop, on Lightning Fabric: devices, precision and distribution
are its job.

Everything random is a pure function of (seed, update): which windows form a batch, SIGReg's
directions, dropout. A checkpoint therefore needs no generator state beyond those two numbers, and a
run that was killed and started again ends, on one device, with the weights of one that was not.
"""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from lewm.contracts import (
    Batch,
    DataSpec,
    Following,
    ModelConfig,
    Paced,
    Progress,
    Remembering,
    Report,
    Staged,
    Statistics,
    TrainableModel,
    Undecayed,
    WorldModel,
    require,
    silent,
)
from lewm.data.episodes import Episodes
from lewm.data.readers import Batches, open_windows
from lewm.data.split import Split, split, statistics
from lewm.data.windows import beginnings
from lewm.devices import deterministic, synchronise
from lewm.files import scratch
from lewm.models.nn import losses
from lewm.models.nn.layers import recalibrating
from lewm.planning.coverage import unseen
from lewm.runs import checkpoints
from lewm.training.config import CONDUCT, LATER, TrainingConfig
from lewm.training.launch import anywhere, graceful_stop, is_first, launch
from lewm.training.watch import alarm_of, note_of
from lewm.worlds.kit.opening import open_world

LOOKS = 10
"""How often a training looks at how straight a few held-out paths are: less than 1% of the time of
the shortest recipe."""

ASKED_EVERY = 10
"""Updates after which the processes of a training ask each other whether one of them is to stop."""


FIRST, TIMED, TIMED_SHARE = 3, (10, 200), 0.03
"""Updates before a clock is started, which make workspaces and compile; the fewest and the most
that are timed; and how much of a time budget they may take."""

SPARE = 0.04
"""Of a time budget, what is not planned with: a machine is not equally fast all the time."""

NEVER = 2**62
"""No update has this number."""


def train(
    model_config: ModelConfig,
    config: TrainingConfig,
    data: Path | str,
    run: Path | str,
    *,
    experiment: Mapping[str, Any] | None = None,
    report: Report = silent,
) -> Path:
    """Train a model on an episode file and leave a run folder; start again where a killed run left
    off.

    Args:
        model_config: dataclass with `.build(spec)`, of a registered model.
        data: episode file.
        run: folder; if it holds a run with the same experiment it is continued, finished runs
            return at once.
        experiment: what else to record, JSON-ready (recipe, versions).
        report: called after each update ("train"), while pixels are decoded into memory ("read")
            and while the updates of a budget are timed ("time"), on the first process.

    Returns:
        `run`.

    Raises:
        ValueError: the data do not fit the settings, `run` holds another experiment (the fields
            that differ are named), another process writes to it, there are other processes than
            the settings say, the time budget is too short, or the training diverges: it stops at
            the first bad update, and the last checkpoint stays.
        KeyboardInterrupt: Ctrl-C, after the update in progress is finished and saved.
    """
    began, run = time.monotonic(), Path(run)
    # the first process holds the run; before others are started, which would wait for it for ever
    with checkpoints.held(run) if is_first() else nullcontext():
        return _train(model_config, config, data, run, experiment, report, began)


def _train(
    model_config: ModelConfig,
    config: TrainingConfig,
    data: Path | str,
    run: Path,
    experiment: Mapping[str, Any] | None,
    report: Report,
    began: float,
) -> Path:
    episodes = Episodes.open(data)
    # whole episodes are held out; the statistics are those of the others
    drawn = config.seed if config.holdout_seed is None else config.holdout_seed
    chosen = split(len(episodes.lengths), config.holdout, drawn)
    stats = statistics(episodes, chosen.train, seed=config.seed)
    spec = DataSpec(episodes.image_size, config.frameskip, stats)
    several = config.processes > 1  # who trains alone need not know
    fabric, precision = launch(config, run, several and _is_staged(model_config, spec))
    if fabric.is_global_zero:
        _say_what_is_unseen(stats, episodes, (experiment or {}).get("world"))
    report = report if fabric.is_global_zero else silent
    batches = _open_batches(fabric, config, episodes, chosen, stats, report)
    paths = beginnings(episodes, chosen.heldout, config.frameskip, seed=config.seed)

    torch.manual_seed(config.seed)
    bare = model_config.build(spec)
    require(WorldModel, bare, f"what {type(model_config).__name__} builds")
    for part in _remembering(bare):
        part.recall(Path(data))
    with deterministic(fabric.device):
        trainer = Trainer(fabric, bare, config, batches, paths)
        description = _description(bare, config, episodes, chosen)
        extra = {
            "data_path": str(Path(data).resolve()),
            "torch": torch.__version__,
            "precision": precision,
            "conduct": {name: getattr(config, name) for name in CONDUCT},
            **(experiment or {}),
        }
        total = _claimed(trainer, run, description, extra, began, report)
        progress = checkpoints.restore(run, bare, trainer.optimiser) or {}
        first = int(progress.get("update", 0))
        fabric.barrier()  # nobody writes before all have read
        if first < total:
            before = float(progress.get("seconds", 0.0))
            if first:
                report(Progress("train", first, total, f"going on from update {first}"))
            _Session(trainer, run, first, total, before, report).carry_out()
    return run


@dataclass
class _Session:
    """The updates that one process does of a training: its loop, its log and its checkpoints.

    Attributes:
        first, total: the update to begin with, and how many are planned.
        before: seconds that earlier processes took.
    """

    trainer: Trainer
    run: Path
    first: int
    total: int
    before: float
    report: Report

    def carry_out(self) -> None:
        """Train from the first to the last update.

        Raises:
            KeyboardInterrupt: asked to stop; the update in progress is finished and saved.
        """
        trainer, config, fabric = self.trainer, self.trainer.config, self.trainer.fabric
        self.log = checkpoints.Log(self.run, self.first) if fabric.is_global_zero else None
        self.started = time.monotonic()
        with graceful_stop() as stop, trainer.batches.between(self.first, self.total) as batches:
            for update, batch in zip(range(self.first, self.total), batches, strict=False):
                seen = trainer.step(update, self.total, batch)

                done, last = update + 1, update + 1 == self.total
                due = last or done % config.checkpoint_every == 0
                stopping = anywhere(fabric, stop.is_set(), due or done % ASKED_EVERY == 0)
                looking = last or done % config.log_every == 0
                metrics = self._look(seen, done) if looking else {}
                alarm = alarm_of(metrics, done, self.total)
                if due or stopping:
                    trainer.settle()
                if metrics and self.log:
                    self.log.write({**metrics, **({"alarm": alarm} if alarm else {})})
                    fabric.log_dict(metrics, step=done)
                if due or stopping:
                    self._save(done, alarm)
                self.report(Progress("train", done, self.total, note_of(metrics), alarm, metrics))
                if stopping and not last:
                    raise KeyboardInterrupt

    def _look(self, seen: Step, done: int) -> dict[str, float]:
        """The line of the log."""
        elapsed = time.monotonic() - self.started
        metrics = self.trainer.look(seen, done)
        every = self.trainer.config.log_every
        if done == self.total or (done - every) * LOOKS % self.total < every * LOOKS:
            metrics |= self.trainer.look_at_paths()
        metrics["seconds"] = round(self.before + elapsed, 3)
        metrics["updates_per_second"] = round((done - self.first) / elapsed, 3)
        return metrics

    def _save(self, done: int, alarm: str) -> None:
        trainer = self.trainer
        if trainer.fabric.is_global_zero:
            seconds = self.before + time.monotonic() - self.started
            state = {"seconds": seconds, "total": self.total, "alarm": alarm}
            checkpoints.save(self.run, done, trainer.bare, trainer.optimiser, state)
            for part in _remembering(trainer.bare):
                part.keep()
        trainer.fabric.barrier()


def _is_staged(config: ModelConfig, spec: DataSpec) -> bool:
    """Will its model be trained in stages? It is asked of one without weights."""
    with torch.device("meta"):
        return isinstance(config.build(spec), Staged)


def _remembering(model: object) -> list[Remembering]:
    """The parts of a model that remember pictures."""
    parts = model.modules() if isinstance(model, nn.Module) else ()
    return [part for part in parts if isinstance(part, Remembering)]


@dataclass(frozen=True)
class Step:
    """What an update leaves on the device. Nothing here was read by the host, which would have to
    wait for it.

    Attributes:
        rate: learning rate.
        loss, norm: the total, and the norm of its gradient before it was clipped.
        terms: of the loss, not weighted.
        latents: of the batch, (B, T, D), detached; None of a model that has none to show.
    """

    rate: float
    loss: Tensor
    norm: Tensor
    terms: Mapping[str, Tensor]
    latents: Tensor | None


class Trainer:
    """A model, its optimiser and its batches, taken one update at a time.

    On an accelerator the host hands out work and waits for nothing but in `look` and `settle`: the
    speed of a small model depends on it.

    Args:
        fabric: launched.
        bare: the model; it is moved to the device.
        config: how it is trained.
        batches: of its data.
        paths: (n, T, 3, h, w) uint8, whose straightness is looked at; or None.
    """

    def __init__(
        self,
        fabric: Fabric,
        bare: TrainableModel,
        config: TrainingConfig,
        batches: Batches,
        paths: Tensor | None = None,
    ) -> None:
        self.fabric, self.bare, self.config = fabric, bare, config
        self.batches, self.paths = batches, paths
        if config.compile:
            for part in bare.children():
                part.compile()
        # One kernel for all parameters. Not on a CPU: its threads wait for each other at every
        # parameter, and where another process has a core that takes longer than the update.
        fused = True if fabric.device.type == "cuda" else None
        adamw = torch.optim.AdamW(
            _groups(cast(nn.Module, bare)),
            config.learning_rate,
            weight_decay=config.weight_decay,
            fused=fused,
        )
        self.model, self.optimiser = fabric.setup(_Loss(bare), adamw)
        self._broke = torch.full((), NEVER, dtype=torch.int64, device=fabric.device)

    def step(self, update: int, total: int, batch: Batch) -> Step:
        """Train on one batch.

        Args:
            update: number of this update, from 0; it decides directions and dropout.
            total: planned updates; with it, the learning rate.

        Raises:
            ValueError: on a CPU, the loss, its gradient or the new weights are not finite. On an
                accelerator nobody waits for the answer: loss and gradient are judged there, `look`
                and `settle` read the verdict, so a bad update is noticed up to `log_every` updates
                late, and never after a save; weights are judged by the next loss and by the save.
        """
        config, device = self.config, self.fabric.device
        self.model.train()
        # a stage of a model has a schedule of its own
        staged = self.bare.stage(update, total) if isinstance(self.bare, Staged) else None
        rate = _learning_rate(config, *(staged or (update, total)))
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group.get("pace", 1.0)
        torch.manual_seed(_seed(config.seed, update, self.fabric.global_rank))
        generator = torch.Generator(device).manual_seed(_seed(config.seed, update, -1))
        batch = batch.to(device)
        loss, terms, latents = self.model(batch.pixels, batch.actions, generator)
        self.fabric.backward(loss)
        norm = self.fabric.clip_gradients(
            self.model, self.optimiser, max_norm=config.clip, error_if_nonfinite=False
        )
        assert isinstance(norm, Tensor)
        self._judge(update, loss.detach(), norm)
        if self._is_cpu:
            self._require_finite()
        self.optimiser.step()
        self.optimiser.zero_grad()
        if isinstance(self.bare, Following):
            with torch.no_grad():
                self.bare.follow(update, total)
        if self._is_cpu:
            self._judge(update, torch.nn.utils.get_total_norm(self.bare.parameters()))
            self._require_finite()
        return Step(rate, loss.detach(), norm, terms, latents)

    def look(self, seen: Step, done: int) -> dict[str, float]:
        """Read the numbers of an update, means over all devices.

        Raises:
            ValueError: an update went wrong.
        """
        self._require_finite()
        local = {"loss": seen.loss, **seen.terms, "gradient_norm": seen.norm}
        if seen.latents is not None:
            local["copying"] = losses.copying(seen.latents)
            local["latent_std"], local["effective_rank"] = losses.spread(seen.latents)
        means: dict[str, Any] = {
            name: self.fabric.all_reduce(value, reduce_op="mean") for name, value in local.items()
        }
        return {
            "update": done,
            **{name: float(value) for name, value in means.items()},
            "learning_rate": seen.rate,
        }

    def look_at_paths(self) -> dict[str, float]:
        """How straight a few held-out paths are, where there are any; a function of the weights
        alone."""
        if self.paths is None:
            return {}
        with self._eager(), recalibrating(self.bare):  # running averages have a history
            straight = float(
                losses.straightness(self.bare.encode(self.paths.to(self.fabric.device)))
            )
            return {"straightness": straight} if math.isfinite(straight) else {}

    def settle(self) -> None:
        """Make the model ready for use and for saving: re-estimate its batch-norm statistics.

        Raises:
            ValueError: an update went wrong: what was saved before is better than this.
        """
        self._require_finite()
        with self._eager():
            recalibrate(
                self.bare, self.batches.first(self.config.recalibration), self.fabric.device
            )

    def budget(self, began: float, run: Path, report: Report) -> dict[str, float]:
        """Decide how many updates fit into `config.minutes`; the model is as before when this
        returns.

        Updates are timed, and so are a line of the log, a look and a save, because they come as
        well. What was trained meanwhile is undone: a run with a budget is, bit for bit, one with so
        many `updates`.

        Args:
            began: when the training did, by `time.monotonic`.
            run: on whose disk a save is timed.

        Returns:
            JSON-ready: `minutes`, the `updates` that were decided, and the `updates_per_second`
            that decided.

        Raises:
            ValueError: the budget is shorter than a training; how long one would have to be.
        """
        config, fabric = self.config, self.fabric
        assert config.minutes is not None
        before = {name: value.clone() for name, value in self.bare.state_dict().items()}
        limit, whole = 60 * config.minutes, FIRST + TIMED[1]

        def timed(batches: Iterator[Batch], first: int, count: int) -> tuple[float, Step]:
            synchronise(fabric.device)
            start = time.monotonic()
            for update, batch in zip(range(first, first + count), batches, strict=False):
                seen = self.step(update, whole, batch)
                report(Progress("time", update + 1, first + count))
            synchronise(fabric.device)
            return (time.monotonic() - start) / count, seen

        def seconds(action: Callable[[], Any]) -> float:
            start = time.monotonic()
            action()
            return time.monotonic() - start

        with self.batches.between(0, whole) as batches:
            timed(batches, 0, FIRST)
            update_s, seen = timed(batches, FIRST, FIRST)
            worthwhile = round(min(max(TIMED_SHARE * limit / update_s, TIMED[0]), TIMED[1] - FIRST))
            if count := fabric.broadcast(worthwhile if time.monotonic() - began < limit else 0):
                update_s, seen = timed(batches, 2 * FIRST, count)
        with scratch(run / "timed") as folder:
            log = checkpoints.Log(folder, 0)
            log_s = seconds(lambda: log.write(self.look(seen, 0)))
            look_s = seconds(self.look_at_paths)
            save_s = seconds(self.settle)
            if fabric.is_global_zero:
                save_s += seconds(lambda: checkpoints.save(folder, 0, self.bare, self.optimiser))

        self.bare.load_state_dict(before)
        self.optimiser.state.clear()
        left = (1 - SPARE) * limit - (time.monotonic() - began) - save_s - LOOKS * look_s
        each = update_s + log_s / config.log_every + save_s / config.checkpoint_every
        updates = int(fabric.broadcast(math.floor(left / each)))
        if updates < TIMED[0]:
            least = (((1 - SPARE) * limit - left + TIMED[0] * each) / (1 - SPARE)) / 60
            raise ValueError(
                f"expected a budget in which {TIMED[0]} updates or more fit, got "
                f"{config.minutes:g} minutes: opening, reading and timing took "
                f"{time.monotonic() - began:.1f} s, an update takes {update_s:.2g} s, a save "
                f"{save_s:.2g} s. Give {math.ceil(100 * least) / 100:g} minutes or more, or fewer "
                "episodes."
            )
        return {
            "minutes": config.minutes,
            "updates": updates,
            "updates_per_second": round(1 / update_s, 3),
        }

    def _eager(self) -> AbstractContextManager[None]:
        """What is done now and then, and otherwise than training, is not worth compiling."""
        return torch.compiler.set_stance("force_eager") if self.config.compile else nullcontext()

    @property
    def _is_cpu(self) -> bool:
        return self.fabric.device.type == "cpu"

    def _judge(self, update: int, *numbers: Tensor) -> None:
        """Note on the device, without waiting for it, the first update with a number that is not
        finite."""
        for number in numbers:
            bad = self._broke.clamp(max=update)
            self._broke = torch.where(number.isfinite(), self._broke, bad)

    def _require_finite(self) -> None:
        """Stop if an update went wrong. DDP made the gradient the same on all devices, so all of
        them stop."""
        first = int(self._broke)
        if first < NEVER:
            raise ValueError(
                f"training diverged at update {first + 1}: expected a loss, a gradient and weights "
                "that are finite, got NaN or infinity. The last checkpoint, if there is one, is "
                "whole. Most likely the learning rate is too high, bf16 overflowed, or the data "
                "hold absurd values: lower --training.learning-rate, take --training.precision "
                "32-true, or run `lewm data verify`."
            )


def recalibrate(
    model: TrainableModel, batches: Iterator[Batch], device: torch.device | str = "cpu"
) -> None:
    """Re-estimate batch-norm statistics as the plain average over `batches`; the model ends in
    evaluation mode."""
    with recalibrating(model):
        for batch in batches:
            model.loss(batch.to(device), torch.Generator(device).manual_seed(0))


# ----------------------------------------------------------------------------------------- internal


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    """What the optimiser trains: all parameters in their order. Those that do not decay, or learn
    at another pace, where a model has some, are groups of their own behind the others."""
    spared = model.undecayed if isinstance(model, Undecayed) else frozenset()
    paces = model.paces if isinstance(model, Paced) else {}
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {(False, 1.0): []}
    for name, value in model.named_parameters():
        pace = next((pace for begin, pace in paces.items() if name.startswith(begin)), 1.0)
        groups.setdefault((name in spared, pace), []).append(value)
    return [
        {"params": values}
        | ({"weight_decay": 0.0} if alone else {})
        | ({"pace": pace} if pace != 1 else {})
        for (alone, pace), values in groups.items()
    ]


class _Loss(nn.Module):
    """A model's loss as the forward of a module, in plain containers.

    Fabric applies precision and distribution to `forward` alone, and can look into neither our
    records nor other methods.
    """

    def __init__(self, model: WorldModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, pixels: Tensor, actions: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        found = self.model.loss(Batch(pixels, actions), generator)
        return (
            found.total,
            {name: value.detach() for name, value in found.terms.items()},
            found.latents,
        )


def _say_what_is_unseen(stats: Statistics, episodes: Episodes, world: str | None) -> None:
    """Warn where the data show less than the action box of their world allows, if that is known and
    can be opened here."""
    with suppress(ImportError, ValueError):
        name = world or episodes.provenance.world or ""
        spec = open_world(name, image_size=episodes.image_size).spec
        if note := unseen(stats, spec.action_low, spec.action_high):
            warnings.warn(note, stacklevel=4)


def _open_batches(
    fabric: Fabric,
    config: TrainingConfig,
    episodes: Episodes,
    chosen: Split,
    stats: Statistics,
    report: Report,
) -> Batches:
    """This process's share of the training windows."""
    return open_windows(
        episodes,
        chosen.train,
        config.window,
        config.frameskip,
        stats,
        batch_size=config.batch_size,
        seed=config.seed,
        mode=config.batches,
        device=fabric.device,
        workers=config.workers,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        report=report,
    )


def _claimed(
    trainer: Trainer,
    run: Path,
    description: Mapping[str, Any],
    extra: Mapping[str, Any],
    began: float,
    report: Report,
) -> int:
    """Make the folder this experiment's, or check that it is; the planned updates."""
    config, fabric = trainer.config, trainer.fabric
    budget = checkpoints.budget(run, description)
    checkpoints.claim(run, description, extra, write=fabric.is_global_zero)
    fabric.barrier()  # the description is there
    if config.minutes is not None:
        budget = budget or trainer.budget(began, run, report)
        checkpoints.claim(
            run, description, {**extra, "budget": budget}, write=fabric.is_global_zero
        )
        return int(budget["updates"])
    windows = config.epochs * len(trainer.batches)
    return config.updates or max(1, math.ceil(windows / config.batch_size))


def _learning_rate(config: TrainingConfig, update: int, total: int) -> float:
    """Linear warm-up to the peak over the first updates, then a cosine that reaches 0 after the
    last."""
    warmup = max(1, round(config.warmup * total))
    if update < warmup:
        return config.learning_rate * (update + 1) / warmup
    return (
        config.learning_rate
        * 0.5
        * (1 + math.cos(math.pi * (update - warmup) / max(1, total - warmup)))
    )


def _seed(seed: int, update: int, stream: int) -> int:
    """A seed per (run, update, stream); stream -1 is shared by all devices, the others are
    ranks."""
    return int(
        np.random.SeedSequence([seed, update, stream + 1]).generate_state(1, np.uint64)[0] >> 1
    )


def _description(
    model: WorldModel, config: TrainingConfig, episodes: Episodes, chosen: Split
) -> dict[str, Any]:
    """What makes two runs the same experiment."""
    return {
        "training": {
            name: value
            for name, value in dataclasses.asdict(config).items()
            if name not in CONDUCT and (name not in LATER or value != LATER[name])
        },
        "model": checkpoints.describe_model(model),
        "data": {
            "episodes": len(episodes.lengths),
            "steps": int(episodes.lengths.sum()),
            "provenance": dataclasses.asdict(episodes.provenance),
        },
        "split": dataclasses.asdict(chosen),
    }
