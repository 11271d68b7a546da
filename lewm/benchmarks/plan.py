"""Planners side by side: what a plan costs, and what it is worth, on the same start/goal pairs of
the same trained model.

    lewm bench plan --runs RUN [RUN ...] --pairs 400 --out FOLDER

Every planner plays the same strict pairs in one process, in batches of one size; the first is the
paper's search, which the others are divided by. Three things are measured apart, because they are
different questions: milliseconds per plan while `TOGETHER` environments are planned for in one
batch, milliseconds for one environment alone (the planners take turns), and the model's own cost
that the plans reach, whatever the world then makes of it. Heads must have been fitted (`lewm fit
RUN`).

Without runs, a model of the published size with random weights is planned with for its time only:
`lewm bench plan`.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lewm.analyses.economy import count_plan
from lewm.benchmarks.engine import machine_limit
from lewm.contracts import (
    DataSpec,
    Objective,
    Progress,
    Report,
    Solver,
    Statistics,
    WorldModel,
    WorldSpec,
    silent,
)
from lewm.evaluation.evaluate import evaluate
from lewm.evaluation.outcome import AGENT, Evaluation
from lewm.evaluation.tasks import Task, Unavailable, draw_pairs
from lewm.files import write_atomically, write_json
from lewm.models.lewm import LeWMConfig
from lewm.planning.agent import Agent
from lewm.planning.config import PlanningConfig, attach
from lewm.planning.objectives.l2 import L2
from lewm.planning.objectives.temporal import Temporal
from lewm.planning.solvers.amortised import Amortised
from lewm.planning.solvers.cem import CEM
from lewm.planning.solvers.gradient import Gradient
from lewm.planning.solvers.icem import ICEM
from lewm.planning.solvers.mppi import MPPI
from lewm.planning.solvers.predictive_sampling import PredictiveSampling
from lewm.registry import load, names
from lewm.report.charts import pareto_panel
from lewm.runs.run import Run, open_run
from lewm.stats import p_value, pareto_front, rate_with_interval
from lewm.worlds.kit.opening import open_world

__all__ = ["COLUMNS", "Planner", "planners", "run"]

ARITHMETIC = ("GFLOP", "plain way", "GFLOP/s")
"""Of a plan for one environment, pictures included: what is done, what it would be by the model's
`rollout` in float32, and the first over the time alone."""

COLUMNS = (
    "planner",
    "task",
    "success, strict",
    "p",
    "ms, batch",
    "ms, alone",
    "faster",
    "calls",
    "L2 reached",
    *ARITHMETIC,
)
"""p: McNemar against the paper's search on the same pairs. faster: its milliseconds in a batch over
ours. calls: of the predictor per plan. L2 reached: latent L2 from the ends of the first plans to
the goals, as a share of that from the starts."""

PAPER = "paper's CEM 300 x 30, L2"
TOGETHER, COMPARED, TURNS = 64, 64, 7
"""Environments of a batch, first plans that are compared by cost, and turns of the latency
measurement."""


@dataclass(frozen=True)
class Planner:
    """A way to plan under its name."""

    name: str
    planning: PlanningConfig


def planners(horizon: int = 5) -> tuple[Planner, ...]:
    """The table's rows: the paper's search, cheaper ones at equal compute, other objectives,
    amortised ones; without heads."""
    l2, steady, quick = L2(), Temporal(intermediate=1.0), MPPI(44, 6, 3)

    def way(name: str, objective: Objective, solver: Solver, **settings: Any) -> Planner:
        return Planner(name, PlanningConfig(objective, solver, horizon=horizon, **settings))

    return (
        way(PAPER, l2, CEM(300, 30, 30)),
        way("CEM 64 x 5, L2", l2, CEM(64, 8, 5)),
        way("CEM 64 x 5, L2, int8", l2, CEM(64, 8, 5), precision="int8"),
        way("CEM 64 x 5, L2, held", l2, CEM(64, 8, 5), hold_actions=True),
        way("iCEM 64 x 5, L2", l2, ICEM(64, 8, 5)),
        way("MPPI 64 x 5, L2", l2, MPPI(64, 8, 5)),
        way("predictive sampling 64 x 5, L2", l2, PredictiveSampling(64, 5)),
        way("gradient 8 x 15, L2", l2, Gradient(8, 15)),
        way("CEM 64 x 5, temporal", Temporal(), CEM(64, 8, 5)),
        way("MPPI 64 x 5, temporal", Temporal(), MPPI(64, 8, 5)),
        way("CEM 64 x 5, temporal + 1, 2 of 5", steady, CEM(64, 8, 5), receding=2),
        way("amortised", l2, Amortised()),
        way("amortised, 2 of 5", l2, Amortised(), receding=2),
        way("amortised, 1 of 5", l2, Amortised(), receding=1),
        way(
            "amortised + MPPI 44 x 3, temporal + 1, 1 of 5",
            steady,
            Amortised(search=quick),
            receding=1,
        ),
        way(
            "amortised + MPPI 44 x 3, L2 + 1, 1 of 5",
            L2(intermediate=1.0),
            Amortised(search=quick),
            receding=1,
        ),
        way(
            "guarded by MPPI 44 x 3, temporal + 1, 1 of 5",
            steady,
            Amortised(search=quick, guarded=True),
            receding=1,
        ),
    )


def run(
    quick: bool = False,
    runs: Sequence[Path] = (),
    pairs: int = 400,
    only: Sequence[str] = (),
    out: Path | None = None,
    offsets: Sequence[int] = (25, 75),
    seed: int = 0,
    report: Report = silent,
) -> dict[str, Any]:
    """Compare all planners on each run.

    Args:
        quick: 40 pairs of the paper's task only.
        runs: folders of trained models with their heads.
        pairs: strict ones per task.
        only: planners whose names hold one of these words; the paper's search always plays.
        out: folder for plan.json and a figure per run and task.
        offsets: env steps to the goals, a task each; where the world has rooms, goals in the other
            one are a task more.
        seed: of pairs and searches.
        report: called as it is played.

    Returns:
        `columns` and `rows` of text, and `results` with every number.

    Raises:
        ValueError: a run without its heads, or damaged.
    """
    if not runs:
        return _full_size(
            [p for p in planners() if not quick or p.name in ("CEM 64 x 5, L2", "amortised")]
        )
    rows: list[list[str]] = []
    results: list[dict[str, Any]] = []
    what = f"{TOGETHER} environments in a batch, {_machine()}, seed {seed}"
    for path in runs:
        opened = open_run(path)
        chosen = [
            p
            for p in planners()
            if p.name == PAPER or not only or any(word in p.name for word in only)
        ]
        chosen = [replace(p, planning=attach(p.planning, opened.heads)) for p in chosen]
        protocols = [
            Task.along(offset, 40 if quick else pairs, seed)
            for offset in offsets[: 1 if quick else None]
        ]
        if not quick:
            protocols.append(Task.to_other_room(pairs, seed))
        found: list[dict[str, Any]] = []
        results.append({"run": str(path), "world": opened.world_name, "rows": found})
        for row in _compare(opened, chosen, protocols, report):
            found.append(row)
            rows.append(
                [
                    f"{path.name}: {row['planner']}" if len(runs) > 1 else row["planner"],
                    *_cells(row),
                ]
            )
            if out is not None:  # after every planner, because the next may take half an hour
                write_json(out / "plan.json", {"what": what, "results": results})
        if out is not None:
            for task in dict.fromkeys(row["task"] for row in found):
                points = {
                    r["planner"]: (r["ms_batch"], r["rate"], r["low"], r["high"])
                    for r in found
                    if r["task"] == task
                }
                front = pareto_front([(ms, -rate) for ms, rate, *_ in points.values()])
                svg = pareto_panel(f"{opened.world_name}, {task}", points, front).svg
                write_atomically(
                    out / f"plan-{opened.world_name}-{task.replace(' ', '-')}.svg", svg.encode()
                )
    return {"name": "plan", "what": what, "columns": COLUMNS, "rows": rows, "results": results}


def _full_size(chosen: Sequence[Planner]) -> dict[str, Any]:
    """Time of a plan for one environment with the published model, random weights and heads: time
    does not depend on them."""
    torch.manual_seed(0)
    spec = DataSpec(224, 5, Statistics((0.9,) * 3, (0.2,) * 3, (0.0, 0.0), (0.5, 0.5)))
    model = LeWMConfig.paper().build(spec).eval()
    heads = {
        name: load("heads", name)().build(model.latent_dim, spec.block_dim).eval()
        for name in names("heads")
    }
    world = open_world("two-room", 1, image_size=224)
    pixels, goals = world.render(), world.render(world.goals)
    agents = {
        planner.name: Agent(model, attach(planner.planning, heads), world.spec, [0])
        for planner in chosen
    }
    milliseconds: dict[str, float] = {}
    for name, agent in agents.items():
        for _ in range(
            1 if name == PAPER else 2
        ):  # the first warms up; the paper's takes half a minute, and needs none
            agent.reset()
            began = time.perf_counter()
            agent.act(pixels, goals)
            milliseconds[name] = 1e3 * (time.perf_counter() - began)
    first = next(iter(milliseconds.values()))
    calls = {name: agent.effort.predictor_calls_per_plan for name, agent in agents.items()}
    rows = [
        {"planner": name, "ms_alone": ms, "faster": first / ms, "calls": calls[name]}
        | _arithmetic(model, agents[name].config, world.spec, pixels, goals, ms)
        for name, ms in milliseconds.items()
    ]
    cells = [
        [
            r["planner"],
            f"{r['ms_alone']:.4g}",
            f"{r['faster']:.3g}x",
            f"{r['calls']:.0f}",
            *_arithmetic_cells(r),
        ]
        for r in rows
    ]
    what = f"published size, 224 px, random weights, one environment, {_machine()}; time only"
    columns = ("planner", "ms, alone", "faster", "calls", *ARITHMETIC)
    return {
        "name": "plan",
        "what": what,
        "columns": columns,
        "rows": cells,
        "results": [{"rows": rows}],
    }


def _compare(
    opened: Run,
    chosen: Sequence[Planner],
    protocols: Sequence[Task],
    report: Report,
) -> Iterator[dict[str, Any]]:
    """Play every task with every planner, the paper's search first, and tell of each as soon as it
    has played."""
    world = opened.world(TOGETHER)
    alone = _alone(opened, chosen)
    for protocol in protocols:
        paper: Evaluation | None = None
        try:
            reached = _reached(opened, chosen, protocol)
        except Unavailable:
            continue
        for planner in chosen:

            def named(progress: Progress, name: str = planner.name) -> None:
                task, _, _ = progress.stage.partition(",")
                report(replace(progress, stage=f"{task}: {name}"))

            played = (
                opened.model,
                planner.planning,
                world,
                opened.episodes,
                opened.heldout,
                protocol,
                (),
                named,
            )
            mine = evaluate(*played, like=paper)
            paper = paper or mine
            score, seconds = mine.score(AGENT, strict=True), mine.effort.seconds_per_plan
            yield {
                "planner": planner.name,
                "task": protocol.name,
                "pairs": score.episodes,
                "rate": score.rate,
                "low": score.low,
                "high": score.high,
                "episode_low": score.episode_low,
                "episode_high": score.episode_high,
                "others": {c: asdict(mine.score(AGENT, True, c)) for c in mine.others},
                "p": None if mine is paper else paper.against(mine).p,
                "ms_batch": 1e3 * seconds,
                **alone[planner.name],
                "faster": paper.effort.seconds_per_plan / seconds,
                "calls": mine.effort.predictor_calls_per_plan,
                "plans": mine.effort.plans,
                "reached": reached[planner.name],
            }


def _alone(opened: Run, chosen: Sequence[Planner]) -> dict[str, dict[str, float]]:
    """Median milliseconds of a plan for one environment, picture included, the planners taking
    turns; and its arithmetic."""
    world = opened.world(1)
    pixels, goals = world.render(), world.render(world.goals)
    times: dict[str, list[float]] = {planner.name: [] for planner in chosen}
    agents = [Agent(opened.model, planner.planning, world.spec, [0]) for planner in chosen]
    for turn in range(TURNS + 1):
        for planner, agent in zip(chosen, agents, strict=True):
            if planner.name == PAPER and turn > 2:
                continue  # by far the slowest: two turns are enough for a ratio of hundreds
            agent.reset()
            began = time.perf_counter()
            agent.act(pixels, goals)
            times[planner.name].append(1e3 * (time.perf_counter() - began))
    found = {}
    for planner in chosen:
        ms = statistics.median(times[planner.name][1:])  # the first warms up
        counted = _arithmetic(opened.model, planner.planning, world.spec, pixels, goals, ms)
        found[planner.name] = {"ms_alone": ms, **counted}
    return found


def _arithmetic(
    model: WorldModel,
    planning: PlanningConfig,
    spec: WorldSpec,
    pixels: np.ndarray,
    goals: np.ndarray,
    ms: float,
) -> dict[str, float]:
    """GFLOP of a plan as it is made and without the model's engine, and GFLOP/s if it takes so many
    milliseconds."""
    done, plainly = (
        count_plan(model, planning, spec, (pixels, goals), plain)[0] / 1e9
        for plain in (False, True)
    )
    return {"gflop": done, "gflop_plain": plainly, "gflops_per_s": done / (ms / 1e3)}


def _arithmetic_cells(row: dict[str, Any]) -> list[str]:
    return [f"{row[name]:.3g}" for name in ("gflop", "gflop_plain", "gflops_per_s")]


def _machine() -> str:
    limit = machine_limit(time.perf_counter)
    return f"{torch.get_num_threads()} threads that multiply large matrices at {limit:.0f} GFLOP/s"


def _reached(opened: Run, chosen: Sequence[Planner], protocol: Task) -> dict[str, float]:
    """Latent L2 from the predicted ends of the first plans to the goals, by that from the starts;
    means over pairs."""
    world = opened.world(COMPARED)
    pairs = draw_pairs(opened.episodes, opened.heldout, world, protocol)
    pairs = pairs[pairs.strict][:COMPARED]
    world = opened.world(len(pairs))
    now, goals = (
        opened.episodes.rows("pixels", rows) for rows in (pairs.start_rows, pairs.goal_rows)
    )
    shares = {}
    for planner in chosen:
        agent = Agent(
            opened.model,
            planner.planning,
            world.spec,
            pairs.seeds(len(pairs), protocol.seed),
            trace=True,
        )
        agent.act(now, goals)
        replan = agent.trace[0]
        start, end = (
            np.square(z - replan.goal).sum(axis=-1) for z in (replan.now, replan.latents[:, -1])
        )
        shares[planner.name] = float(end.mean() / start.mean())
    return shares


def _cells(row: dict[str, Any]) -> list[str]:
    rate = rate_with_interval(row["rate"], row["low"], row["high"])
    p = "-" if row["p"] is None else p_value(row["p"])
    return [
        row["task"], rate, p, f"{row['ms_batch']:.3g}", f"{row['ms_alone']:.3g}",
        f"{row['faster']:.3g}x",
        f"{row['calls']:.0f}", f"{row['reached']:.3f}", *_arithmetic_cells(row),
    ]  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(run(runs=[Path(word) for word in sys.argv[1:]]), indent=2, default=str))
