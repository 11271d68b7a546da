"""What does a frame cost, and what does a plan? Tokens, arithmetic, time and bytes of a run, beside
what others published.

Three kinds of numbers stand side by side here and are never mixed. *Measured* ones are of this run
on this machine. *Published* ones are what others reported of their models on theirs. *Estimated*
ones are our conclusions where nobody reported anything, with the reasoning in words. Arithmetic is
counted as it is done: a multiplication and an addition are 2 FLOPs, in matrix products,
convolutions and attention; what is done element by element is left out, as is usual.
"""

from __future__ import annotations

import copy
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from lewm import registry
from lewm.contracts import (
    Engined,
    Judging,
    Progress,
    Refining,
    Report,
    Rollout,
    Tokened,
    WorldModel,
    WorldSpec,
    check_numbers,
    silent,
)
from lewm.models.nn.frozen import device_of, require_evaluation_mode
from lewm.models.nn.frozen_encoders import frozen_parts
from lewm.planning.agent import Agent
from lewm.planning.config import PlanningConfig
from lewm.runs.results import Interval, Result, Table, Tables
from lewm.runs.run import Run, Unsupported

__all__ = [
    "Economy",
    "EconomyResult",
    "Others",
    "PUBLISHED",
    "Published",
    "count_flops",
    "count_plan",
]

Look = tuple[np.ndarray, np.ndarray]  # an observation and its goal, (1, h, w, 3) uint8 each

PAPER = "paper's CEM 300 x 30"

PATCH_BYTES = {"196 patch tokens": 4 * 196 * 384, "256 patch tokens": 4 * 256 * 384}
"""A frame as float32 features of a ViT-S, 384 per patch. Source: 14 x 14 in DINO-WM; 16 x 16 are
224 px in patches of 14."""

OFFSET = 25
"""Env steps from the observation to the goal of a measured plan. Source: the paper's task."""

SORA_FACTOR = (
    "'28,000 times fewer tokens than Sora' cannot be traced: OpenAI published no count of "
    "tokens, and no source that we found derives the factor. By the estimate here it would be "
    "8,100 per latent frame, and 28,000 the tokens of 3.5 such frames. The nearest simple "
    "arithmetic is 1792 x 1024 pixels in cells of 8 x 8 without patches: 28,672."
)


@dataclass(frozen=True)
class Published:
    """A model of others, in their own numbers or in what may be concluded from them. Nothing in it
    was measured by us.

    Attributes:
        name: of the model, with its size where there are several.
        kind: "published", or "estimated" where the numbers of a frame are our conclusion.
        source, date: where it is said, and when that appeared.
        tokens: that stand for one frame in what predicts the next one; None where nobody said.
        numbers: that stand for one frame in all; likewise.
        parameters: in words, because they are counted in many ways.
        seconds, hardware: of one plan; None and "" where none was reported.
        search: candidates, horizon and iterations of that plan.
        remark: how the numbers come about, and what does not fit the columns.
    """

    name: str
    kind: str
    source: str
    date: str
    tokens: int | None = None
    numbers: int | None = None
    parameters: str = ""
    seconds: float | None = None
    hardware: str = ""
    search: tuple[int, int, int] | None = None
    remark: str = ""

    @property
    def predicted_tokens(self) -> int | None:
        """Candidates x horizon x iterations x tokens: what a plan predicts."""
        return prod(self.search) * self.tokens if self.search and self.tokens else None


LEWM, V_JEPA_2 = "LeWorldModel, arXiv 2603.19312", "V-JEPA 2, arXiv 2506.09985"
PUBLISHED = (
    Published(
        "LeWM", "published", LEWM, "2026-03", 1, 192, "15 M; 18.0 M with projectors", 0.98, "L40S",
        (300, 5, 30),
        remark=(
            "Iterations are those of Push-T, elsewhere 10; with which of them 0.98 s were "
            "measured is not told."
        ),
    ),
    Published(
        "PLDM", "published",
        "arXiv 2502.14819; code: galilai-group/stable-worldmodel, scripts/train/pldm.py", "2025-02",
        1, 192, "as LeWM", remark=(
            "As LeWM's authors ran it: encoder, predictor and projectors of LeWM under another "
            "loss."
        ),
    ),
    Published(
        "DINO-WM", "published", f"arXiv 2411.04983; seconds: {LEWM}", "2024-11; 2026-03", 196,
        196 * 384,
        "frozen DINOv2 ViT-S/14, predictor", 47.0, "L40S", (300, 5, 30),
        remark=(
            "14 x 14 patch tokens of 384 numbers. Search and hardware are taken to be LeWM's, as "
            "in their comparison."
        ),
    ),
    Published(
        "V-JEPA 2-AC", "published", f"{V_JEPA_2}; code: facebookresearch/vjepa2", "2025-06", 256,
        256 * 1408,
        "1 B encoder, 300 M predictor", 16.0, "RTX 4090", (800, 1, 10),
        remark=(
            "256 px in patches of 16: 16 x 16 tokens of 1408 numbers. Seconds are per action; "
            "one step is planned."
        ),
    ),
    Published(
        "Cosmos", "published", V_JEPA_2, "2025-06", seconds=240.0, hardware="RTX 4090", search=(80,
        1, 10),
        remark=(
            "Video diffusion, planned with by the authors of V-JEPA 2: 4 minutes per action. "
            "Tokens are not told."
        ),
    ),
    Published(
        "Dreamer V3, 50 M", "published", "arXiv 2301.04104; code: danijar/dreamerv3, size50m",
        "2023-01", 32, 32 * 32 + 4096,
        "50 M, by its name", remark=(
            "32 categorical variables of 32 classes count as its tokens; beside them a recurrent "
            "state of 4096. It acts by a policy network and searches for no plan."
        ),
    ),
    Published(
        "Genie 3", "estimated", "Google DeepMind, 'Genie 3: A new frontier for world models'",
        "2025-08", 3600,
        remark=(
            "Published: 1280 x 720 at 24 frames/s, and no tokens. Estimated: if one stood for 16 "
            "x 16 pixels, as in V-JEPA 2 and in open video models, a frame would have 80 x 45."
        ),
    ),
    Published(
        "Sora", "estimated", "OpenAI, 'Video generation models as world simulators'", "2024-02",
        8100,
        remark=(
            "Published: spacetime patches of a compressed video of 1920 x 1080, and no tokens. "
            "Estimated: cells of 8 x 8 pixels in patches of 2 x 2, as in open reproductions, "
            "would be 120 x 67.5 per latent frame; where one stands for 4 pictures, 2,025 for "
            "each of them."
        ),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Computed:
    """A model of ours with its published sizes, never run: its arithmetic, counted on shapes alone.

    Attributes:
        name: of the model, as our code has it.
        tokens, numbers: of a frame, as in `Published`.
        parameters: that are trained.
        predict, encode: GFLOP to predict the next frame from one, and to encode one.
    """

    name: str
    tokens: int
    numbers: int
    parameters: int
    predict: float
    encode: float


COMPUTED = (
    Computed("LeWM, 224 px", 1, 192, 18_034_478, 0.01869332, 3.157337088),
    Computed("DINO-WM, 196 px", 196, 75_264, 19_624_930, 8.535539912, 9.169901568),
    Computed("V-JEPA 2-AC, 256 px", 256, 360_448, 1_283_477_376, 163.192098816, 502.527950848),
    Computed("Dreamer V3, 64 px", 1, 11_265, 154_496_003, 0.184569856, 0.379584512),
)
"""For actions of two numbers held for five steps. A test counts them again."""


@dataclass(frozen=True)
class Plan:
    """What one plan costs: the first of an episode, for one environment, its two pictures encoded.

    Attributes:
        steps: env steps that it is executed for.
        predictor_calls: latents predicted.
        flops: of all of it, encoder and heads included.
        predicted_share: of the FLOPs, by what a latent costs in a round of the paper's size; the
            rest is encoding and heads.
        seconds: median, as a clock on the wall has it.
        seconds_range: least and most.
        processor_seconds: median, of all threads together; on a machine that does other things as
            well they say more.
        plans: timed, after one that was not, where there was time for it.
        gflops_per_s: FLOPs over seconds.
    """

    steps: int
    predictor_calls: int
    flops: int
    predicted_share: float
    seconds: float
    seconds_range: Interval
    processor_seconds: float
    plans: int
    gflops_per_s: float


@dataclass(frozen=True)
class Flops:
    """To encode a frame, to predict a latent as planning does it, and by the model's `rollout`."""

    encode: float
    predict: float
    predict_plain: float


@dataclass(frozen=True)
class Scaling:
    """By what the arithmetic of a round grows if its candidates, or its horizon, are doubled."""

    candidates: float
    horizon: float


@dataclass(frozen=True)
class Others(Result):
    """What is known of the models of others, without a run."""

    published: tuple[Published, ...] = PUBLISHED
    sora_factor: str = SORA_FACTOR

    name: ClassVar[str] = "economy"
    computed: ClassVar[tuple[Computed, ...]] = COMPUTED

    def tables(self) -> Tables:
        """Their frames, their plans, and where the numbers are from."""
        frames: Table = [
            {
                "model": m.name, "kind": m.kind, "tokens per frame": _shown(m.tokens),
                "numbers per frame": _shown(m.numbers),
                "s per plan": _shown(m.seconds), "on": m.hardware or "-",
                "parameters": m.parameters or "-",
            }
            for m in self.published
        ]  # fmt: skip
        products: Table = [
            {
                "model": m.name, **dict(zip(("candidates", "horizon", "iterations"), m.search,
                strict=True)),
                "tokens": _shown(m.tokens), "product": _shown(m.predicted_tokens),
                "s per plan": _shown(m.seconds),
                "us per token": _shown(
                    m.seconds and m.predicted_tokens and 1e6 * m.seconds / m.predicted_tokens
                ),
            }
            for m in self.published
            if m.search
        ]  # fmt: skip
        sources: Table = [
            {"model": m.name, "source": f"{m.source} ({m.date})", "remark": m.remark or "-"}
            for m in self.published
        ]
        computed: Table = [
            {
                "model": m.name, "tokens per frame": m.tokens, "numbers per frame": m.numbers,
                "parameters trained": f"{m.parameters / 1e6:.4g} M",
                "GFLOP to predict": _shown(m.predict), "to encode": _shown(m.encode),
                "against LeWM's": f"{m.predict / COMPUTED[0].predict:,.0f}x",
            }
            for m in COMPUTED
        ]  # fmt: skip
        return {
            "models of others, published or estimated: none of it was measured here": frames,
            (
                "our own code at published sizes, counted and never run: what a predicted frame "
                "costs"
            ): computed,
            (
                "tokens that a plan predicts, as published: candidates x horizon x iterations x "
                "tokens"
            ): products,
            "where these numbers are from": [
                *sources,
                {"model": "Sora against LeWM", "source": "-", "remark": self.sora_factor},
            ],
        }


@dataclass(frozen=True, kw_only=True)
class EconomyResult(Others):
    """What frames and plans of a run cost, beside the models of others. Only seconds differ from
    one call to the next.

    Attributes:
        bytes_per_frame: of a "latent", the raw picture and patch tokens.
        parameters: by part.
        plans: by planner.
        planner: the run's own among them.
    """

    tokens_per_frame: int
    latent_numbers: int
    bytes_per_frame: Mapping[str, int]
    flops: Flops
    scaling: Scaling
    parameters: Mapping[str, int]
    weights_bytes: int
    hardware: str
    plans: Mapping[str, Plan]
    planner: str

    def tables(self) -> Tables:
        """A frame, plans, memory and parameters of the run; then the others."""
        frame = {"tokens": self.tokens_per_frame, "numbers": self.latent_numbers} | {
            f"MFLOP to {what.replace('_', ', ')}": _shown(count / 1e6)
            for what, count in vars(self.flops).items()
        }
        plans = [
            {
                "planner": name,
                "latents predicted": _shown(plan.predictor_calls),
                "tokens predicted": _shown(plan.predictor_calls * self.tokens_per_frame),
                "GFLOP": _shown(plan.flops / 1e9),
                "ms per plan": _shown(1e3 * plan.seconds),
                "least to most": " to ".join(_shown(1e3 * end) for end in plan.seconds_range),
                "ms of processor": _shown(1e3 * plan.processor_seconds),
                "plans": plan.plans,
                "env steps": plan.steps,
                "ms per env step": _shown(1e3 * plan.seconds / plan.steps),
                "GFLOP/s": _shown(plan.gflops_per_s),
            }
            for name, plan in self.plans.items()
        ]
        latent = 4 * self.latent_numbers
        memory = [
            {"as": as_, "bytes": _shown(size), "latents": _shown(size / latent)}
            for as_, size in self.bytes_per_frame.items()
        ]
        weights = [
            {"part": part, "parameters": _shown(count)} for part, count in self.parameters.items()
        ]
        measured: Tables = {
            "one frame of this run, counted": [frame],
            f"one plan of this run for one environment, measured on {self.hardware}": plans,
            "a remembered frame of this run in bytes, and how many latents they would hold": memory,
            (
                "parameters of this run by part; the weights take "
                f"{_shown(self.weights_bytes / 1e6)} MB"
            ): weights,
        }
        return measured | super().tables()


@dataclass(frozen=True)
class Economy:
    """Count and measure what frames and plans cost.

    Attributes:
        plans: timed with the run's own planner, from as many held-out observations.
        paper_plans: timed with the paper's search, for comparison.
        limit_s: seconds after which no further plan of a planner is timed.
        seed: of the observations.
    """

    plans: int = 21
    paper_plans: int = 2
    limit_s: float = 10.0
    seed: int = 0

    name: ClassVar[str] = "economy"
    question: ClassVar[str] = (
        "What do a frame and a plan cost, in tokens, arithmetic, time and bytes?"
    )
    result: ClassVar[type[Result]] = EconomyResult

    def __post_init__(self) -> None:
        check_numbers(self, least={"plans": 1})

    def run(self, run: Run, report: Report = silent) -> EconomyResult:
        """Count on a copy of the model, on a CPU; measure on the model itself, where it is.

        Raises:
            Unsupported: there is no held-out episode to take an observation from, or nobody knows
                how the run plans.
            ValueError: the model is in training mode.
        """
        model = run.model
        require_evaluation_mode(model)
        run.require_episodes(0, 1, "observations to plan from")
        if run.planning is None:
            raise Unsupported(
                "expected a run that knows how it plans, got none. Open one with `run.open_run`."
            )
        paper = PlanningConfig(
            registry.load("objectives", "l2")(), registry.load("solvers", "cem")()
        )
        own = {} if run.planning == paper else {_named(run.planning): (run.planning, self.plans)}
        planners = {**own, PAPER: (paper, self.paper_plans)}
        flops, scaling = _arithmetic(model)
        plans: dict[str, Plan] = {}
        for name, (planning, count) in planners.items():
            report(Progress(self.name, len(plans), len(planners), name))
            looks = _observations(run, count, self.seed)
            plans[name] = _plan(run, planning, looks, flops.predict, self.limit_s)
        report(Progress(self.name, len(planners), len(planners)))
        picture = f"raw picture, {model.spec.image_size} px"
        tensors = [*cast(nn.Module, model).parameters(), *cast(nn.Module, model).buffers()]
        return EconomyResult(
            tokens_per_frame=model.tokens if isinstance(model, Tokened) else 1,
            latent_numbers=model.latent_dim,
            bytes_per_frame={
                "latent": 4 * model.latent_dim,
                picture: 3 * model.spec.image_size**2,
                **PATCH_BYTES,
            },
            flops=flops,
            scaling=scaling,
            parameters=_parameters(cast(nn.Module, model), run.heads),
            weights_bytes=sum(x.numel() * x.element_size() for x in tensors),
            hardware=_hardware(device_of(model)),
            plans=plans,
            planner=next(iter(plans)),
        )


def count_flops(call: Callable[[], Any]) -> int:
    """Multiplications and additions in the matrix products, convolutions and attention that `call`
    does, as they are done.

    PyTorch's counter, taught three operations of the CPU that it does not know: attention, products
    with a weight laid out beforehand, and 8-bit products, whose integer operations count as well.
    Causal attention counts as if it were full. An engine that attends to a few tokens by sums,
    which are no products, is not charged for that: less than a hundredth.
    """
    aten = torch.ops.aten
    mapping: dict[Any, Callable[..., int]] = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(
            q, k, v
        ),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *of, **_: (
            sdpa_backward_flop_count(*of[:4])
        ),
        torch.ops.quantized.linear_dynamic: _linear_flops,
    }
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        mapping[torch.ops.mkldnn._linear_pointwise] = _linear_flops
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        call()
    return int(counter.get_total_flops())


def count_plan(
    model: WorldModel, planning: PlanningConfig, spec: WorldSpec, look: Look, plain: bool = False
) -> tuple[int, int]:
    """FLOPs of the first plan of an episode, and how many latents it predicts; `plain`, by
    `rollout` and no engine."""
    made: WorldModel
    # on a CPU: a CUDA graph would hide its operations from the counter
    made, planning = copy.deepcopy((model, planning))
    for part in (made, *vars(planning.objective).values(), *vars(planning.solver).values()):
        if isinstance(part, nn.Module):
            part.cpu()
    if plain:
        planning = replace(planning, precision="float32")
        kept = ["spec", "context", "latent_dim", "encode", "rollout"]
        kept += ["costs", "judge"] if isinstance(made, Judging) else []
        made = SimpleNamespace(**{name: getattr(made, name) for name in kept})
    agent = Agent(made, planning, spec, [0])
    return count_flops(lambda: agent.act(*look)), agent.effort.predictor_calls


def _linear_flops(x: torch.Size, *_: Any, out_shape: torch.Size, **__: Any) -> int:
    return 2 * prod(out_shape) * x[-1]


def _plan(
    run: Run, planning: PlanningConfig, looks: Sequence[Look], per_latent: float, limit_s: float
) -> Plan:
    """Count one plan, and time one per look but the first, which warms up; a latent's FLOPs are
    given."""
    spec = _env_spec(run.model)
    flops, calls = count_plan(run.model, planning, spec, looks[0])
    agent = Agent(run.model, planning, spec, [0])
    laps: list[tuple[float, float]] = []
    for now, goal in looks:
        agent.reset()
        began, worked = time.perf_counter(), time.process_time()
        agent.act(now, goal)
        laps.append((time.perf_counter() - began, time.process_time() - worked))
        if sum(lap for lap, _ in laps) > limit_s:
            break
    seconds, work = zip(*(laps[1:] or laps), strict=True)
    return Plan(
        steps=planning.receding * run.model.spec.frameskip,
        predictor_calls=calls,
        flops=flops,
        predicted_share=calls * per_latent / max(flops, 1),
        seconds=statistics.median(seconds),
        seconds_range=(min(seconds), max(seconds)),
        processor_seconds=statistics.median(work),
        plans=len(seconds),
        gflops_per_s=flops / statistics.median(seconds) / 1e9,
    )


def _arithmetic(
    model: WorldModel, candidates: int = 300, horizon: int = 5
) -> tuple[Flops, Scaling]:
    """FLOPs of encoding and predicting a frame, and what a round gains by twice as many candidates,
    or twice the horizon."""
    model, spec = copy.deepcopy(model), model.spec
    cast(nn.Module, model).cpu()
    pixels = torch.zeros(1, 1, 3, spec.image_size, spec.image_size, dtype=torch.uint8)
    context, past = torch.zeros(1, 1, model.latent_dim), torch.zeros(1, 0, spec.block_dim)
    engine: Rollout = model.engine() if isinstance(model, Engined) else model.rollout

    def a_round(unroll: Rollout, n: int, h: int) -> int:
        return count_flops(lambda: unroll(context, past, torch.zeros(1, n, h, spec.block_dim)))

    with torch.no_grad():
        encode, once = (
            count_flops(lambda: model.encode(pixels)),
            a_round(engine, candidates, horizon),
        )
        wider, longer = (
            a_round(engine, 2 * candidates, horizon),
            a_round(engine, candidates, 2 * horizon),
        )
        plain, latents = a_round(model.rollout, candidates, horizon), candidates * horizon
    flops = Flops(encode, once / latents, plain / latents)
    return flops, Scaling(wider / max(once, 1), longer / max(once, 1))


def _observations(run: Run, count: int, seed: int) -> list[Look]:
    """`count` + 1 times a held-out observation, and as its goal a later one of its episode."""
    episodes, generator = run.episodes, np.random.default_rng(seed)
    chosen = generator.choice(np.asarray(run.test_ids), count + 1)
    last = episodes.lengths[chosen] - 1
    ahead = np.minimum(max(1, OFFSET // episodes.every), last)
    now = episodes.offsets[chosen] + generator.integers(last - ahead + 1)
    return list(
        zip(*(episodes.rows("pixels", rows)[:, None] for rows in (now, now + ahead)), strict=True)
    )


def _env_spec(model: WorldModel) -> WorldSpec:
    """A world as wide as the recorded actions, or six standard deviations of them where nobody
    knows: the true one needs its simulator, and bounds cost no time."""
    known = model.spec.statistics
    mean, reach = np.array(known.action_mean), np.array(known.action_std)
    low, high = known.action_low or mean - 3 * reach, known.action_high or mean + 3 * reach
    return WorldSpec("recorded", "", model.spec.image_size, tuple(low), tuple(high), (), (), 0)


def _named(planning: PlanningConfig) -> str:
    """A planner in words, such as "Amortised + MPPI, Temporal, 1 of 5 blocks"."""
    search = planning.solver.search if isinstance(planning.solver, Refining) else None
    solver = type(planning.solver).__name__ + (f" + {type(search).__name__}" if search else "")
    return (
        f"{solver}, {type(planning.objective).__name__}, {planning.receding} of "
        f"{planning.horizon} blocks"
    )


def _parameters(model: nn.Module, heads: Mapping[str, nn.Module]) -> dict[str, int]:
    """By part, weights of frozen encoders among them; the heads are apart from the model's
    `total`."""
    parts = {
        **dict(model.named_children()),
        "total": model,
        **{f"head {name}": head for name, head in heads.items()},
    }
    counts = {
        name: sum(p.numel() for p in part.parameters())
        + sum(encoder.numbers for encoder in frozen_parts(part).values())
        for name, part in parts.items()
    }
    return {name: count for name, count in counts.items() if count}


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    plural = "" if threads == 1 else "s"
    return f"{platform.processor() or platform.machine()} CPU, {threads} thread{plural}"


def _shown(value: float | None) -> str:
    """Three digits of a number as people read it, a dash for None."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 or isinstance(value, int) else f"{value:.3g}"
