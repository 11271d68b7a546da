"""One prepared run for a GPU that is lent for minutes: prove the path, measure it, train the
published size from nothing.

    facts        what the card is, and its two ceilings: bytes copied and matrix products per second
    correctness  the device beside the CPU, low precision beside float32, a graph beside the eager
    way, two readers
    speed        updates, SIGReg and plans per second, each beside its plain form and beside its
    floor
    collect      episodes, with all cores
    train        the published configuration, for the minutes that are left
    evaluate     200 held-out pairs by the paper's protocol and the strict one, beside the floors
    probe        what the latents know of the state
    save         the weights in half precision, in small pieces

Every stage has a share of the time; one that finds it used up is skipped with a word, and one that
fails ends alone. After each row, what is known is on disk. `dry=True` does all of it at tiny size
on a CPU.

The floor of a time is the arithmetic of the matrix products and attention over the measured rate of
large products: no version can be faster. *Plain* is what one would write without this package:
eager PyTorch, each number read when it is there.
"""

from __future__ import annotations

import copy
import math
import platform
import shlex
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import lewm
from lewm.analyses.economy import count_flops
from lewm.analyses.probing import Probing
from lewm.contracts import (
    Batch,
    DataSpec,
    Plan,
    Progress,
    Report,
    Statistics,
    TrainableModel,
    WorldSpec,
    silent,
)
from lewm.data.collecting import cores
from lewm.data.episodes import Episodes
from lewm.data.readers import Resident, Streamed
from lewm.data.windows import Windows
from lewm.devices import deterministic, fastest_precision, synchronise
from lewm.evaluation.evaluate import evaluate
from lewm.evaluation.tables import COLUMNS, markdown_table
from lewm.evaluation.tasks import Task
from lewm.experiments import recipes
from lewm.experiments.experiment import CollectionConfig, Experiment
from lewm.experiments.pipeline import collect_episodes, facts, train_model
from lewm.files import read_json, write_atomically, write_json
from lewm.models.lewm import LeWM
from lewm.models.nn import losses
from lewm.models.nn.sigreg import draw_directions, sigreg, sigreg_reference
from lewm.planning.agent import Agent
from lewm.planning.config import PlanningConfig
from lewm.planning.cost import Scorer, Situation
from lewm.planning.objectives.l2 import L2
from lewm.planning.solvers.cem import CEM
from lewm.runs import checkpoints
from lewm.runs.pieces import save_pieces
from lewm.runs.run import Run, Unsupported
from lewm.training.config import TrainingConfig
from lewm.training.launch import launch
from lewm.training.train import Trainer
from lewm.worlds.kit.opening import open_world

STAGES = ("facts", "correctness", "speed", "collect", "train", "evaluate", "probe", "save")

SHARES = {
    "facts": 0.04,
    "correctness": 0.08,
    "speed": 0.16,
    "collect": 0.16,
    "evaluate": 0.12,
    "probe": 0.07,
    "save": 0.02,
}
"""Of the minutes, at most. Training has what is left, so it has more wherever another stage needs
less."""

LEAST_MINUTES, LEAST_MINUTES_DRY = 4.0, 1.0
"""Under these the stages have too little time to measure anything."""

LEAST_DEVICE_GB = 24.0
"""Memory that a full-size update of 128 windows takes, beside pixels. Ours: computed, some 16
GB."""

ROW_COLUMNS = ("stage", "case", "value", "unit", "plain", "of plain", "floor", "of floor", "remark")


class OutOfTime(Exception):
    """A stage has used up its share."""


@dataclass(frozen=True)
class Size:
    """How large everything is.

    Attributes:
        experiment: recipe, with a data policy and a schedule for minutes.
        side, copied: of the matrix product and the copy that are the ceilings; elements and bytes.
        environments: planned for together.
        measured_s: of each speed, at most.
        pairs: of the evaluation.
        frames: to collect, at most.
        probing: how the latents are probed.
    """

    experiment: Experiment
    side: int
    copied: int
    environments: int
    measured_s: float
    pairs: int
    frames: int
    probing: Probing


def full_size() -> Size:
    """The published configuration, on episodes that minutes suffice to collect.

    Ours: a row per action block (training uses no other pictures), a step five times the published
    one, since there are hundred times fewer updates, and more warm-up.
    """
    paper = recipes.load("push-t-paper")
    training = replace(
        paper.training, learning_rate=5e-4, warmup=0.05, log_every=50, checkpoint_every=2000
    )
    experiment = replace(
        paper,
        collection=CollectionConfig(episodes=20_000, every=5, max_steps=100, compression="blosc"),
        training=training,
    )
    return Size(experiment, 8192, 1 << 32, 64, 4.0, 200, 240_000, Probing())


def dry_size() -> Size:
    """The same in small: a recipe of half a minute on two cores."""
    tiny = recipes.load("push-t-tiny")
    experiment = replace(
        tiny,
        collection=replace(tiny.collection, episodes=60, every=5),
        model=replace(
            tiny.lewm,
            encoder_width=32,
            encoder_depth=1,
            predictor_width=32,
            predictor_depth=1,
            sigreg_slices=64,
        ),
        training=replace(tiny.training, batch_size=16, log_every=5, checkpoint_every=50),
        planning=PlanningConfig(L2(), CEM(num_candidates=24, num_elites=4, num_iterations=2)),
    )
    probing = Probing(fit_frames=256, test_frames=128, mlp=False, rollouts=8, horizon=2, draws=50)
    return Size(experiment, 512, 1 << 24, 4, 0.3, 16, 1_300, probing)


@dataclass(frozen=True)
class Row:
    """One measured number.

    Attributes:
        plain: the same of the plain form.
        floor: the best that the ceilings allow.
        higher: whether more is better, as for speeds.
        bound: an error may not be larger; None for what is no error.
        remark: what limits it, or why there is no number.
    """

    stage: str
    case: str
    value: float | None = None
    unit: str = ""
    plain: float | None = None
    floor: float | None = None
    higher: bool = True
    bound: float | None = None
    remark: str = ""

    @property
    def failed(self) -> bool:
        """An error above its bound; NaN is above any."""
        return self.bound is not None and self.value is not None and not self.value <= self.bound

    @property
    def cells(self) -> tuple[str, ...]:
        """For each of `ROW_COLUMNS`."""
        beside = [("-", "-")] * 2
        for place, other in enumerate((self.plain, self.floor)):
            if other is not None and self.value:
                ratio = self.value / other if self.higher else other / self.value
                beside[place] = f"{other:.4g}", f"{ratio:.2f}x"
        remark = self.remark
        if self.bound is not None and self.value is not None:
            remark = (
                f"{'ABOVE its' if self.failed else 'within its'} bound of "
                f"{self.bound:.0e}{'; ' if remark else ''}{remark}"
            )
        value = "-" if self.value is None else f"{self.value:.4g}"
        return self.stage, self.case, value, self.unit or "-", *beside[0], *beside[1], remark or "-"


@dataclass
class Bench:
    """A run of the benchmark: what is left of its time, and what it has found.

    Attributes:
        out: folder of the table, the numbers and the weights; episodes and run lie in `out /
            "work"`.
        until: when the stage must be over, and when everything must, in seconds of
            `time.monotonic`.
        ceilings: FLOP/s of large products by name of the number format, and bytes copied per
            second.
        told: JSON-ready, beside the rows.
    """

    size: Size
    device: torch.device
    out: Path
    minutes: float
    seed: int
    emit: Callable[[Row], None]
    report: Report
    began: float = field(default_factory=lambda: time.monotonic())
    until: float = 0.0
    stage: str = ""
    rows: list[Row] = field(default_factory=list)
    ceilings: dict[str, float] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def work(self) -> Path:
        return self.out / "work"

    @cached_property
    def precision(self) -> str:
        """In which this device trains and ranks; measured once, as a CPU may answer otherwise."""
        return fastest_precision(self.device)

    def left(self) -> float:
        """Seconds of this stage."""
        return self.until - time.monotonic()

    def add(self, case: str, value: float | None = None, unit: str = "", **more: Any) -> None:
        """Take down a row, show it, and write all there is to disk."""
        row = Row(self.stage, case, value, unit, **more)
        self.rows.append(row)
        self.emit(row)
        self.write()

    def wants(self, case: str, seconds: float) -> bool:
        """Is there time for a case that takes so long? If not, its row says so."""
        if self.left() < seconds:
            left = max(self.left(), 0)
            self.add(
                case,
                remark=f"skipped: it takes some {seconds:.0f} s, {left:.0f} s of the stage are "
                f"left",
            )
            return False
        return True

    def write(self) -> None:
        rows = [{**asdict(row), "failed": row.failed} for row in self.rows]
        write_json(self.out / "result.json", {**self.told, "rows": rows})
        lines = [
            f"`{self.told['command']}`",
            "",
            markdown_table(ROW_COLUMNS, [row.cells for row in self.rows]),
        ]
        lines += [f"\n{self.told['success']}"] if "success" in self.told else []
        write_atomically(self.out / "result.md", ("\n".join(lines) + "\n").encode())


def measure(
    out: Path,
    minutes: float = 9.0,
    dry: bool = False,
    seed: int = 0,
    only: Sequence[str] = (),
    emit: Callable[[Row], None] = lambda row: None,
    report: Report = silent,
) -> dict[str, Any]:
    """Carry out all stages, or some, within a time; the same call continues what was collected and
    trained.

    Args:
        out: folder.
        minutes: for everything.
        dry: at tiny size, on a CPU.
        seed: of data, weights and pairs.
        only: stages; all by default. `evaluate`, `probe` and `save` are of the run in `out`.
        emit: called with each row.
        report: called as stages proceed.

    Returns:
        What `result.json` holds: `machine`, `rows`, and per stage what it is about.

    Raises:
        ValueError: there is no device for it, too little memory or too little time; what can be run
            instead is said.
    """
    for stage in only:
        if stage not in STAGES:
            raise ValueError(f"unknown stage '{stage}'. Known: {', '.join(STAGES)}.")
    device, size = _device(dry), dry_size() if dry else full_size()
    least = LEAST_MINUTES_DRY if dry else LEAST_MINUTES
    if not least <= minutes < math.inf:
        raise ValueError(
            f"expected {least:g} minutes or more, got {minutes:g}: each stage has a share of "
            "them. For single stages name them with --only; for a training of a given time "
            "alone: lewm train RECIPE --training.minutes M."
        )
    bench = Bench(size, device, out, minutes, seed, emit, report)
    command = (
        f"lewm bench gpu --minutes {minutes:g} --out {shlex.quote(str(out))} --seed "
        f"{seed}{' --dry' if dry else ''}"
    )
    bench.told = {
        "command": command + (f" --only {' '.join(only)}" if only else ""),
        "dry": dry,
        "machine": _machine(device),
    }
    bench.work.mkdir(parents=True, exist_ok=True)
    with deterministic(device):  # what it asks of libraries has to be asked before their first call
        pass
    stages = [stage for stage in STAGES if not only or stage in only]
    shares = {stage: SHARES[stage] for stage in stages if stage in SHARES}
    for stage in stages:
        later = sum(
            share for name, share in shares.items() if STAGES.index(name) > STAGES.index(stage)
        )
        end = bench.began + 60 * minutes * (1 - later)
        share = shares.get(stage)
        bench.stage, bench.until = (
            stage,
            end if share is None else min(end, time.monotonic() + 60 * minutes * share),
        )
        _carry_out(bench, _STAGES[stage])
    bench.told["seconds"] = round(time.monotonic() - bench.began, 1)
    bench.told["failed"] = sorted(
        {row.stage for row in bench.rows if row.failed} | set(bench.told.get("errors", ()))
    )
    bench.write()
    return {**bench.told, "rows": [asdict(row) for row in bench.rows]}


def _carry_out(bench: Bench, stage: Callable[[Bench], None]) -> None:
    """One stage. Whatever ends it, the next one begins: minutes on a lent card are too dear to
    lose."""
    if (
        bench.left() <= 0 and bench.stage != "save"
    ):  # a second, and without it the others were for nothing
        bench.add("the stage", remark="skipped: its time is used up")
        return
    bench.report(Progress(bench.stage, 0, 1))
    began = time.monotonic()
    try:
        stage(bench)
    except (OutOfTime, Unsupported) as error:
        bench.add("the stage", remark=f"ended: {error}")
    except torch.cuda.OutOfMemoryError as error:
        bench.add(
            "the stage",
            remark=f"ended, the device's memory is too small for it: "
            f"{str(error).partition('.')[0]}",
        )
    except Exception as error:
        bench.told.setdefault("errors", {})[bench.stage] = traceback.format_exc()
        bench.add("the stage", remark=f"failed: {' '.join(str(error).split())}")
    finally:
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    bench.told.setdefault("stages", {})[bench.stage] = round(time.monotonic() - began, 1)
    bench.report(Progress(bench.stage, 1, 1))


# --------------------------------------------------------------------------------------- the device


def _device(dry: bool) -> torch.device:
    if dry:
        return torch.device("cpu")
    instead = (
        "`lewm bench gpu --dry` does the same at tiny size on a CPU, and `lewm reproduce "
        "push-t-tiny` trains there."
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        there = torch.cuda.is_available()
    if not there:
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        why = " ".join(" ".join(str(warning.message).split()) for warning in said)
        raise ValueError(
            "expected a CUDA device with a driver that PyTorch accepts, got none: PyTorch "
            f"{torch.__version__} is built "
            f"{built}{f', and says: {why}' if why else ' and sees no device'}. {instead}"
        )
    device = torch.device("cuda", torch.cuda.current_device())
    free, total = (count / 1e9 for count in torch.cuda.mem_get_info(device))
    if free < LEAST_DEVICE_GB:
        raise ValueError(
            f"expected {LEAST_DEVICE_GB:g} GB of free device memory for the published size, got "
            f"{free:.1f} of {total:.1f} GB. Free it, or train smaller batches: lewm train "
            f"push-t-paper --training.batch-size 32. {instead}"
        )
    return device


def _machine(device: torch.device) -> dict[str, Any]:
    told = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lewm": lewm.__version__,
        "cpus": cores(),
        "threads": torch.get_num_threads(),
        "device": platform.processor() or platform.machine(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        told |= {
            "device": properties.name,
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
        }
    return told


def _per_second(bench: Bench, call: Callable[[], Any], least: int = 3) -> float:
    """How often per second something can be done, once it is warm: the best of three stretches of
    the time for a speed."""
    call()
    synchronise(bench.device)
    begun = time.monotonic()
    call()
    synchronise(bench.device)
    stretch = bench.size.measured_s / 3
    count = max(least, round(stretch / max(time.monotonic() - begun, 1e-6)))
    rates = []
    for _ in range(3):
        begun = time.monotonic()
        for _ in range(count):
            call()
        synchronise(bench.device)
        rates.append(count / (time.monotonic() - begun))
        if bench.left() < 0:
            break
    return max(rates)


def _facts(bench: Bench) -> None:
    """The two ceilings, on random data: zeros are multiplied faster."""
    machine = bench.told["machine"]
    unit = "GB" if "memory_gb" in machine else ""
    bench.add(
        machine["device"], machine.get("memory_gb"), unit, remark=f"torch {torch.__version__}"
    )
    source = torch.randint(0, 256, (bench.size.copied,), dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    bench.ceilings["copy"] = (
        2 * bench.size.copied * _per_second(bench, partial(target.copy_, source))
    )
    bench.add("copy, bytes read and written", bench.ceilings["copy"] / 1e9, "GB/s")
    del source, target  # gigabytes
    side = bench.size.side
    formats = [("bfloat16", torch.bfloat16, False), ("float32", torch.float32, False)]
    if bench.device.type == "cuda":
        formats.append(("tf32", torch.float32, True))
    elif bench.precision == "32-true":
        bench.add(
            "matrix product, bfloat16", remark="skipped: this device multiplies no faster in it"
        )
        formats = formats[1:]
    for name, dtype, tf32 in formats:
        a, b = (torch.randn(side, side, device=bench.device).to(dtype) for _ in range(2))
        allowed = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = tf32
        try:
            rate = _per_second(bench, partial(torch.mm, a, b))
        finally:
            torch.backends.cuda.matmul.allow_tf32 = allowed
        bench.ceilings[name] = 2 * side**3 * rate
        bench.add(
            f"matrix product, {name}, {side} x {side}", bench.ceilings[name] / 1e12, "TFLOP/s"
        )
    bench.told["ceilings"] = bench.ceilings


def _ceiling(bench: Bench) -> float:
    """FLOP/s of a large product in the format that this device trains and ranks in."""
    name = "bfloat16" if bench.precision == "bf16-mixed" else "float32"
    if name not in bench.ceilings:
        _facts(bench)
    return bench.ceilings[name]


# -------------------------------------------------------------------------------------- correctness


def _model(bench: Bench, shaken: bool = True) -> LeWM:
    """Random weights. As initialised, AdaLN-zero would be the identity whatever it is given: so
    they are shaken."""
    experiment = bench.size.experiment
    torch.manual_seed(bench.seed)
    statistics = Statistics((0.9, 0.9, 0.9), (0.2, 0.2, 0.2), (0.0, 0.0), (0.5, 0.5))
    model = experiment.lewm.build(
        DataSpec(experiment.image_size, experiment.training.frameskip, statistics)
    )
    if shaken:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def _batch(bench: Bench, windows: int) -> Batch:
    experiment = bench.size.experiment
    generator, size, length = (
        torch.Generator().manual_seed(bench.seed),
        experiment.image_size,
        experiment.training.window,
    )
    pixels = torch.randint(
        0, 256, (windows, length, 3, size, size), dtype=torch.uint8, generator=generator
    )
    return Batch(
        pixels,
        torch.randn(windows, length - 1, 2 * experiment.training.frameskip, generator=generator),
    )


def _off(ours: Tensor, reference: Tensor) -> float:
    """Norm of the difference over the norm of the reference, in float64."""
    ours, reference = ours.detach().cpu().double(), reference.detach().cpu().double()
    return float((ours - reference).norm() / reference.norm())


def _correctness(bench: Bench) -> None:
    device, here = bench.device, _model(bench).eval()
    there, batch = copy.deepcopy(here).to(device), _batch(bench, 4)
    with torch.no_grad():
        latents = here.encode(batch.pixels)
        error = _off(there.encode(batch.pixels.to(device)), latents)
        bench.add("encode, float32, device beside CPU", error, "relative", bound=1e-4)
    _loss_beside_cpu(bench, here, there, batch)
    _sigreg_beside_float64(bench)
    _rollouts(bench, here, there, latents)
    _autocast(bench, there, batch, latents)
    _readers(bench)
    if device.type == "cuda":
        _waits(bench)
    else:
        bench.add("graph beside the eager way", remark="skipped: graphs are CUDA's")
        bench.add("waits of the host in an update", remark="skipped: a CPU has nobody to wait for")


def _loss_beside_cpu(bench: Bench, here: LeWM, there: LeWM, batch: Batch) -> None:
    """Loss and gradient in float32, in evaluation mode: dropout draws other numbers on another
    device."""
    found = []
    for model, device in ((there, bench.device), (here, torch.device("cpu"))):
        loss = model.loss(batch.to(device), torch.Generator().manual_seed(bench.seed))
        gradients = torch.autograd.grad(
            loss.total, [p for p in model.parameters() if p.requires_grad], allow_unused=True
        )
        flat = torch.cat([g.detach().cpu().flatten() for g in gradients if g is not None])
        found.append((torch.stack([term.detach().cpu() for term in loss.terms.values()]), flat))
    bench.add(
        "loss terms, float32, device beside CPU",
        _off(found[0][0], found[1][0]),
        "relative",
        bound=1e-4,
    )
    bench.add(
        "gradient, float32, device beside CPU",
        _off(found[0][1], found[1][1]),
        "relative",
        bound=1e-2,
    )


def _sigreg_case(bench: Bench) -> tuple[Tensor, Tensor]:
    experiment = bench.size.experiment
    shape = experiment.training.batch_size, experiment.training.window, experiment.lewm.latent_dim
    generator = torch.Generator().manual_seed(bench.seed)
    return torch.randn(shape, generator=generator), draw_directions(
        shape[2], experiment.lewm.sigreg_slices, generator
    )


def _sigreg(
    form: Callable[..., Tensor], latents: Tensor, directions: Tensor
) -> tuple[Tensor, Tensor]:
    latents = latents.detach().requires_grad_()
    loss = form(latents, directions)
    (gradient,) = torch.autograd.grad(loss, latents)
    return loss.detach(), gradient


def _sigreg_beside_float64(bench: Bench) -> None:
    latents, directions = _sigreg_case(bench)
    exact = _sigreg(sigreg_reference, latents.double(), directions.double())
    ours = _sigreg(sigreg, latents.to(bench.device), directions.to(bench.device))
    bench.add("SIGReg, float32, beside float64", _off(ours[0], exact[0]), "relative", bound=1e-5)
    bench.add("its gradient", _off(ours[1], exact[1]), "relative", bound=1e-4)


def _rollouts(bench: Bench, here: LeWM, there: LeWM, latents: Tensor) -> None:
    """Rollouts and costs as planning asks for them."""
    planning, device, A = bench.size.experiment.planning, bench.device, here.spec.block_dim
    generator = torch.Generator().manual_seed(bench.seed)
    actions = torch.randn(2, 64, planning.horizon, A, generator=generator)
    context, past, goal = latents[:2, :1], torch.zeros(2, 0, A), latents[2:, 0]
    asked = [x.to(device) for x in (context, past, actions)]
    with torch.no_grad():
        exact = here.rollout(context, past, actions)
        bench.add(
            "rollout, float32, device beside CPU",
            _off(there.rollout(*asked), exact),
            "relative",
            bound=1e-4,
        )
        bench.add(
            "engine, float32, beside the plain rollout",
            _off(there.engine()(*asked), exact),
            "relative",
            bound=1e-4,
        )
        if bench.precision != "bf16-mixed":
            bench.add("engine, bfloat16", remark="skipped: this device multiplies no faster in it")
        else:
            bench.add(
                "engine, bfloat16, beside float32",
                _off(there.engine("bfloat16")(*asked), exact),
                "relative",
                bound=3e-2,
            )
        situation = Situation(asked[0], asked[1], goal.to(device))
        costs = Scorer(there.engine(), L2()).score(situation, asked[2])[0]
        bench.add(
            "costs, float32, beside the CPU",
            _off(costs, L2().cost(exact, goal)),
            "relative",
            bound=1e-3,
        )
        if device.type != "cuda":
            return
        replayed = Scorer(there.engine(), L2(), replayed=True)
        for _ in range(3):
            again = replayed.score(situation, asked[2])[0]
        why = "; ".join(replayed.round.refused.values())
        captured = replayed.round.captured == 1  # else the eager way was compared with itself
        error, remark = _off(again, costs) if captured else math.nan, why and f"not captured: {why}"
        bench.add("graph beside the eager way", error, "relative", bound=1e-5, remark=remark)


def _autocast(bench: Bench, there: LeWM, batch: Batch, latents: Tensor) -> None:
    if bench.precision != "bf16-mixed":
        bench.add("encode, bf16 autocast", remark="skipped: this device multiplies no faster in it")
        return
    with torch.no_grad(), torch.autocast(bench.device.type, torch.bfloat16):
        low = there.encode(batch.pixels.to(bench.device))
        bench.add(
            "encode, bf16 autocast, beside float32",
            _off(low.float(), latents),
            "relative",
            bound=5e-2,
        )
        loss = there.loss(batch.to(bench.device), torch.Generator().manual_seed(bench.seed))
    bench.add(
        "SIGReg in autocast stays float32",
        float(loss.terms["sigreg"].dtype != torch.float32),
        "0 or 1",
        bound=0.0,
    )


def _windows(bench: Bench) -> Windows:
    """Of a few episodes, made once: what is timed and compared does not depend on what they
    show."""
    experiment = bench.size.experiment
    path, collection = bench.work / "few.h5", replace(experiment.collection, episodes=8)
    episodes = _collected(bench, path, collection)
    statistics = Statistics((0.9, 0.9, 0.9), (0.2, 0.2, 0.2), (0.0, 0.0), (0.5, 0.5))
    ids = range(len(episodes))
    return Windows(
        episodes, ids, experiment.training.window, experiment.training.frameskip, statistics
    )


def _readers(bench: Bench) -> None:
    windows, size = _windows(bench), min(32, bench.size.experiment.training.batch_size)
    resident, streamed = (
        Resident(windows, size, device=bench.device),
        Streamed(windows, size, device=bench.device, workers=0),
    )
    differing = 0
    for update in range(3):
        a, b = resident.batch(update), streamed.batch(update)
        differing += int(
            not (torch.equal(a.pixels, b.pixels) and torch.equal(a.actions, b.actions))
        )
    where = "on the device" if resident._store.device.type == bench.device.type else "on the CPU"
    bench.add(
        "resident batches that differ from streamed ones",
        differing,
        "of 3",
        bound=0.0,
        remark=f"pixels lie {where}",
    )


def _trainer(bench: Bench, **changes: Any) -> Trainer:
    """What `lewm train` trains with, on the few episodes."""
    experiment = bench.size.experiment
    config: TrainingConfig = replace(
        experiment.training, seed=bench.seed, accelerator=bench.device.type, **changes
    )
    fabric, _ = launch(config, bench.work / "none")
    windows = _windows(bench)
    reader = Resident(windows, config.batch_size, config.seed, bench.device)
    return Trainer(fabric, _model(bench, shaken=False), config, reader)


def _waits(bench: Bench) -> None:
    """How often the host waits for the device in ten updates between two log lines."""
    trainer = _trainer(bench)
    for update in range(3):
        trainer.step(update, 100, trainer.batches.batch(update))
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for update in range(3, 13):
                trainer.step(update, 100, trainer.batches.batch(update))
    finally:
        torch.cuda.set_sync_debug_mode(before)
    waits = [warning for warning in said if "synchroniz" in str(warning.message).lower()]
    places = ", ".join(
        sorted({f"{Path(warning.filename).name}:{warning.lineno}" for warning in waits})[:4]
    )
    bench.add("waits of the host in ten updates", len(waits), "", bound=0.0, remark=places)


# -------------------------------------------------------------------------------------------- speed


def _speed(bench: Bench) -> None:
    """What matters most first: later cases are skipped where the time is used up."""
    _plans_per_second(bench)
    _updates_per_second(bench)
    latents, directions = (x.to(bench.device) for x in _sigreg_case(bench))
    if bench.wants("SIGReg, forward and backward", 2 * bench.size.measured_s):
        ours = _per_second(bench, lambda: _sigreg(sigreg, latents, directions))
        plain = _per_second(bench, lambda: _sigreg(sigreg_reference, latents, directions))
        shape = "x".join(map(str, latents.shape))
        bench.add(
            f"SIGReg, forward and backward, {shape}",
            1e3 / ours,
            "ms",
            plain=1e3 / plain,
            higher=False,
        )
    _compiled(bench)


def _update_flops(bench: Bench) -> float:
    """Of one update: products and attention of one window, forward and backward, times the
    windows."""
    experiment = bench.size.experiment
    model, batch = _model(bench), _batch(bench, 2)
    found = count_flops(
        lambda: model.loss(batch, torch.Generator().manual_seed(0)).total.backward()
    )
    return found / 2 * experiment.training.batch_size


def _updates_per_second(bench: Bench) -> None:
    training, ceiling = bench.size.experiment.training, _ceiling(bench)
    with deterministic(bench.device):
        trainer = _trainer(bench)
        ours = _update_rate(bench, trainer)
    floor = ceiling / _update_flops(bench)
    plain = (
        _plain_rate(bench, trainer) if bench.wants("plain updates", bench.size.measured_s) else None
    )
    what = f"updates of {training.batch_size} windows of {training.window} frames"
    share = f"{ours / floor:.0%} of the rate of large products"
    bench.add(what, ours, "1/s", plain=plain, floor=floor, remark=share)
    bench.add(
        "windows", ours * training.batch_size, "1/s", plain=plain and plain * training.batch_size
    )
    case = "updates with kernels that need not repeat"
    if bench.device.type == "cuda" and bench.wants(case, bench.size.measured_s):
        bench.add(
            case, _update_rate(bench, trainer), "1/s", plain=ours, remark="plain: repeatable ones"
        )


def _update_rate(bench: Bench, trainer: Trainer) -> float:
    number = iter(range(10**9))

    def update() -> None:
        n = next(number)
        trainer.step(n, 10**6, trainer.batches.batch(n))

    return _per_second(bench, update)


def _plain_rate(bench: Bench, like: Trainer) -> float:
    """Updates as one would write them: autocast, the plain SIGReg, pictures gathered on the CPU,
    every number read at once."""
    config, device, model = (
        like.config,
        bench.device,
        _model(bench, shaken=False).to(bench.device).train(),
    )
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    windows = like.batches.windows
    store = (
        torch.from_numpy(windows.source.rows("pixels", windows.file_rows))
        .permute(0, 3, 1, 2)
        .contiguous()
    )
    reader, number = Resident(windows, config.batch_size, config.seed), iter(range(10**9))
    low = torch.autocast(device.type, torch.bfloat16, enabled=bench.precision == "bf16-mixed")

    def update() -> None:
        drawn = reader.draw(next(number))
        rows = torch.from_numpy(windows.frames(drawn))
        pixels, actions = store[rows].to(device), windows.actions(drawn).to(device)
        with low:
            total = _plain_loss(model, pixels, actions)
        total.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        assert math.isfinite(float(norm))
        assert math.isfinite(float(total.detach()))
        optimiser.step()
        optimiser.zero_grad()

    return _per_second(bench, update)


def _plain_loss(model: LeWM, pixels: Tensor, actions: Tensor) -> Tensor:
    z = model.encode(pixels)
    K = model.context
    contexts, blocks, targets = (
        x.unfold(1, K, 1).movedim(-1, 2).flatten(0, 1) for x in (z[:, :-1], actions, z[:, 1:])
    )
    prediction = losses.prediction(model.predict(contexts, blocks), targets)
    directions = draw_directions(model.latent_dim, model.config.sigreg_slices, device=z.device)
    sample = z.flatten(0, 1)[:, None] if model.config.sigreg_pooled else z
    with torch.autocast(pixels.device.type, enabled=False):
        return prediction + model.config.sigreg_weight * sigreg_reference(
            sample.float(), directions
        )


def _compiled(bench: Bench) -> None:
    """Last: compiling alone may take a minute, and what it saves has to be worth that."""
    expected = 90.0 if bench.device.type == "cuda" else 60.0
    if not bench.wants("updates, compiled", expected):
        return
    begun = time.monotonic()
    try:
        trainer = _trainer(bench, compile=True)
        trainer.step(0, 10**6, trainer.batches.batch(0))
        synchronise(bench.device)
        took = time.monotonic() - begun
        bench.add(
            "updates, compiled",
            _update_rate(bench, trainer),
            "1/s",
            remark=f"compiling took {took:.0f} s",
        )
    except (RuntimeError, ImportError) as error:  # no compiler on this machine, for instance
        bench.add(
            "updates, compiled", remark=f"not possible here: {str(error).partition(chr(10))[0]}"
        )


def _plans_per_second(bench: Bench) -> None:
    """The paper's search at full size: environments in a batch, then one alone, eagerly and as
    graphs."""
    planning, model = bench.size.experiment.planning, _model(bench).to(bench.device).eval()
    solver = planning.solver
    assert isinstance(solver, CEM)
    search = f"{solver.num_candidates} x {planning.horizon} x {solver.num_iterations}"
    low = replace(planning, precision="bfloat16") if bench.precision == "bf16-mixed" else planning
    engine = model.engine()
    asked = (torch.zeros(1, 1, model.latent_dim), torch.zeros(1, 0, model.spec.block_dim))
    blocks = torch.zeros(1, solver.num_candidates, planning.horizon, model.spec.block_dim)
    flops = (
        count_flops(lambda: engine(*(x.to(bench.device) for x in (*asked, blocks))))
        * solver.num_iterations
    )
    together = bench.size.environments
    rates = {
        case: together * _plan_rate(bench, model, config, together, plain)
        for case, config, plain in (
            ("ours", low, False),
            ("float32", planning, False),
            ("plain", planning, True),
        )
        if bench.wants(f"plans/s in a batch of {together}: {case}", bench.size.measured_s)
    }
    if "ours" in rates:
        bench.add(
            f"plans {search}, {together} environments in a batch, ranked in {low.precision}",
            rates["ours"],
            "1/s",
            plain=rates.get("plain"),
            floor=_ceiling(bench) / flops,
            remark="plain: the model's rollout in float32",
        )
    if "float32" in rates and low != planning:
        bench.add(
            f"plans {search}, {together} in a batch, float32",
            rates["float32"],
            "1/s",
            plain=rates.get("plain"),
        )
    if bench.wants("a plan alone", 3 * bench.size.measured_s):
        alone = _plan_rate(bench, model, low, 1)
        eager = _plan_rate(bench, model, low, 1, replayed=False)
        outside = 1 / _search_rate(bench, model, planning)
        remark = (
            f"plain: without graphs; the search around its rounds takes {1e3 * outside:.1f} ms of "
            "it"
        )
        bench.add("a plan alone", 1e3 / alone, "ms", plain=1e3 / eager, higher=False, remark=remark)


def _plan_rate(
    bench: Bench,
    model: LeWM,
    config: PlanningConfig,
    together: int,
    plain: bool = False,
    replayed: bool = True,
) -> float:
    """Replans per second of a batch of environments, pictures encoded; every one from new
    pictures."""
    size = model.spec.image_size
    agent = Agent(model, config, _spec(model), range(together))
    if plain:
        agent._scorer = Scorer(model.rollout, config.objective)
    elif not replayed:
        agent._scorer = replace(agent._scorer, replayed=False)
    generator = np.random.default_rng(bench.seed)
    pixels = generator.integers(0, 256, (2, together, size, size, 3), np.uint8)

    def plan() -> None:
        agent.reset()
        agent.act(pixels[0], pixels[1])

    return _per_second(bench, plan, least=1)


def _search_rate(bench: Bench, model: LeWM, config: PlanningConfig) -> float:
    """Searches per second whose rounds cost next to nothing: what a graph of a round does not
    reach."""
    shape = (1, config.horizon, model.spec.block_dim)
    start = Plan(torch.zeros(shape, device=bench.device), torch.ones(shape, device=bench.device))
    agent = Agent(model, config, _spec(model), [0])

    def search() -> None:
        config.solver.solve(
            lambda actions: actions[..., 0, 0], start, agent._box, agent._generators
        )

    return _per_second(bench, search, least=1)


def _spec(model: LeWM) -> WorldSpec:
    """Of a world that nobody steps: it bounds the search."""
    return WorldSpec(
        name="bench",
        version="1",
        image_size=model.spec.image_size,
        action_low=(-1.0, -1.0),
        action_high=(1.0, 1.0),
        state_names=("x",),
        state_units=("1",),
        max_steps=100,
    )


# ------------------------------------------------------------------------------------- from nothing


def _collected(bench: Bench, path: Path, collection: CollectionConfig) -> Episodes:
    def report(progress: Progress) -> None:
        bench.report(replace(progress, stage=f"{bench.stage}: episodes"))
        if bench.left() < 0 and progress.done < progress.total:
            raise OutOfTime("the time was used up")  # what is complete stays

    collection = replace(collection, seed=bench.seed)
    return collect_episodes(replace(bench.size.experiment, collection=collection), path, report)


def _collect(bench: Bench) -> None:
    """As many episodes as fit the time and the device, judged by the speed of the first."""
    size, collection = bench.size, bench.size.experiment.collection
    path, rows = bench.work / "episodes.h5", _rows(collection)
    known = bench.told.get("episodes") or _known_episodes(path)
    if known is None:
        begun = time.monotonic()
        with _collected(bench, bench.work / "timed.h5", replace(collection, episodes=4)) as timed:
            each = (time.monotonic() - begun) / len(timed)
        processes = cores()
        # Processes take seconds to start, and one of them writes what all others record.
        possible = (bench.left() - 6) * 0.6 * processes / each
        memory = _device_bytes(bench) * 0.45 / (rows * 3 * size.experiment.image_size**2)
        known = int(max(20, min(collection.episodes, possible, memory, size.frames / rows)))
    try:
        begun = time.monotonic()
        episodes = _collected(bench, path, replace(collection, episodes=known))
        remark = ""
    except OutOfTime as error:
        episodes = Episodes.open(path)
        remark = f"of {known}: {error}"
    took = time.monotonic() - begun
    with episodes:
        bench.told["episodes"] = len(episodes)
        bench.add(
            "episodes",
            len(episodes),
            f"of {rows} rows",
            remark=remark or f"{took:.0f} s with {cores()} cores",
        )
        bench.add(
            "rows recorded",
            episodes.steps / max(took, 1e-9),
            "1/s",
            remark=f"{path.stat().st_size / 1e9:.2f} GB",
        )


def _rows(collection: CollectionConfig) -> int:
    assert collection.max_steps is not None
    return collection.max_steps // collection.every + 1


def _known_episodes(path: Path) -> int | None:
    """How many episodes an earlier call asked for: this one goes on."""
    if not path.exists():
        return None
    with Episodes.open(path) as episodes:
        return episodes.provenance.requested_episodes


def _device_bytes(bench: Bench) -> float:
    return torch.cuda.mem_get_info(bench.device)[0] if bench.device.type == "cuda" else math.inf


def _experiment(bench: Bench) -> Experiment:
    """The recipe with a budget: that of the run if there is one, else what is left of the time."""
    experiment = bench.size.experiment
    file = bench.work / "run" / checkpoints.EXPERIMENT
    known = read_json(file).get("budget") if file.exists() else None
    minutes = known["minutes"] if known else round(bench.left() / 60, 3)
    training = replace(
        experiment.training, minutes=minutes, seed=bench.seed, accelerator=bench.device.type
    )
    return replace(
        experiment, training=training, collection=replace(experiment.collection, seed=bench.seed)
    )


def _train(bench: Bench) -> None:
    if not (bench.work / "episodes.h5").exists():
        raise OutOfTime("there are no episodes to train on")
    begun = time.monotonic()
    run = train_model(
        _experiment(bench), bench.work / "episodes.h5", bench.work / "run", bench.report
    )
    trained = read_json(run / checkpoints.EXPERIMENT)
    last = checkpoints.metrics(run)[-1]
    bench.told["training"] = {
        "budget": trained["budget"],
        "precision": trained["precision"],
        "last": last,
    }
    budget = trained["budget"]
    remark = (
        f"{budget['minutes']:.2f}-minute budget, {trained['precision']}, "
        f"{time.monotonic() - begun:.0f} s"
    )
    bench.add("updates trained", last["update"], "", remark=remark)
    timed = "plain: as timed at its start"
    rate = last["updates_per_second"]
    bench.add(
        "updates over the whole training",
        rate,
        "1/s",
        plain=budget["updates_per_second"],
        remark=timed,
    )
    for name in ("prediction", "sigreg", "latent_std", "effective_rank"):
        bench.add(
            name.replace("_", " "),
            last[name],
            remark=last.get("alarm", "") if name == "latent_std" else "",
        )


def _run(bench: Bench) -> tuple[TrainableModel, Episodes, dict[str, Any]]:
    """The trained model, its episodes, and what was recorded of it."""
    run = bench.work / "run"
    if checkpoints.latest(run) is None:
        raise OutOfTime("there is no trained run")
    model = checkpoints.load(run, bench.device)
    return model, Episodes.open(bench.work / "episodes.h5"), read_json(run / checkpoints.EXPERIMENT)


def _evaluate(bench: Bench) -> None:
    model, episodes, trained = _run(bench)
    experiment = bench.size.experiment
    planning = experiment.planning
    if bench.precision == "bf16-mixed" and bench.device.type == "cuda":
        planning = replace(planning, precision="bfloat16")
    world = open_world(
        experiment.world,
        min(bench.size.pairs, experiment.together),
        image_size=experiment.image_size,
        **experiment.options,
    )

    def report(progress: Progress) -> None:
        bench.report(replace(progress, stage="evaluate", note=progress.stage))
        if bench.left() < 0:
            raise OutOfTime(
                "the time was used up before all pairs were played; `--only evaluate` plays them"
            )

    with episodes:
        protocol = Task.along(episodes=bench.size.pairs, seed=bench.seed)
        found = evaluate(
            model,
            planning,
            world,
            episodes,
            trained["split"]["heldout"],
            protocol,
            report=report,
        )
        bench.told["facts"] = facts(experiment, model, episodes, trained)
    bench.told["evaluation"] = found.to_json()
    bench.told["success"] = "\n\n".join([markdown_table(COLUMNS, found.rows()), *found.remarks()])
    for policy in found.success_steps:
        paper, strict = found.score(policy), found.score(policy, strict=True)
        bench.add(
            f"{policy}: success, strict",
            100 * strict.rate,
            "%",
            remark=f"{strict}; paper's protocol {paper}",
        )
    rate, remark = (
        1 / found.effort.seconds_per_plan,
        f"{found.batch} environments in a batch, world apart",
    )
    bench.add("plans in the evaluation", rate, "1/s", remark=remark)


def _probe(bench: Bench) -> None:
    model, episodes, trained = _run(bench)
    with episodes:
        subject = Run(model, episodes, trained["split"]["train"], trained["split"]["heldout"])
        found = replace(bench.size.probing, seed=bench.seed).run(subject)
    bench.told["probe"] = found.to_json()["variables"]
    for name, score in found.variables.items():
        random = score.controls["random encoder"].r or 0.0  # no correlation: nothing was read
        remark = f"{random:.3f} of an encoder with random weights"
        bench.add(f"probe of {name}: r", score.r or 0.0, remark=remark)


def _save(bench: Bench) -> None:
    if checkpoints.latest(bench.work / "run") is None:
        raise OutOfTime("there is no trained run")
    files = save_pieces(bench.work / "run", bench.out)
    size = sum(file.stat().st_size for file in files) / 1e6
    bench.told["pieces"] = [file.name for file in files]
    remark = f"{len(files)} files; `lewm import {bench.out} --out RUN` makes a run of them"
    bench.add("weights in half precision", size, "MB", remark=remark)


_STAGES: dict[str, Callable[[Bench], None]] = dict(
    zip(
        STAGES,
        (_facts, _correctness, _speed, _collect, _train, _evaluate, _probe, _save),
        strict=True,
    )
)
