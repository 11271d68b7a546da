"""A study: many runs of methods and settings, each of which is one row of numbers that are never
lost.

    out/
      study.json               what is studied; a study with other settings takes another folder
      rows/NAME.json           a finished row each; a row that failed says why
      runs/NAME/               its run folder, removed once the row is there unless it is kept
      episodes-WORLD-SEED.h5   data, shared by all methods

Several processes, also on several machines with one disk, may work on a folder: each takes a row
that nobody holds. Which rows are open is a pure function of those that are there, so that a study
goes on wherever it was stopped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lewm
from lewm.analyses.geometry import GeometryResult
from lewm.analyses.probing import ProbingResult
from lewm.contracts import (
    Blocking,
    Progress,
    Report,
    Settings,
    Tokened,
    WorldModel,
    check_numbers,
    silent,
)
from lewm.evaluation.evaluate import evaluate
from lewm.evaluation.outcome import AGENT, Evaluation
from lewm.evaluation.tasks import Task, Unavailable
from lewm.experiments import recipes
from lewm.experiments.experiment import Experiment
from lewm.experiments.methods import METHODS, with_method
from lewm.experiments.pipeline import collect_episodes, open_recipe_world, seeded, train_model
from lewm.files import Held, hold, read_json, remove, write_json
from lewm.planning.agent import Agent
from lewm.planning.config import describe_planning
from lewm.registry import choose
from lewm.report.rivals import study_of
from lewm.runs.answers import analyse
from lewm.runs.results import Result
from lewm.runs.run import Run, Unsupported, open_run

__all__ = [
    "Cell",
    "Plan",
    "carry_out",
    "exported",
    "measures",
    "open_cells",
    "rows_of",
    "settings_drawn",
]

Row = Mapping[str, Any]
"""What one run gave, JSON-ready."""

TUNED_BY = "far"
"""The task by which a learning rate is chosen and settings are ranked: offset 25 saturates."""

TASKS: Mapping[str, Callable[[int, int], Task]] = {
    "near": lambda pairs, seed: Task.along(25, pairs, seed),
    "far": lambda pairs, seed: Task.along(75, pairs, seed),
    "across": Task.to_other_room,
}


@dataclass(frozen=True)
class Plan:
    """What is studied.

    Attributes:
        worlds: recipes whose world, data, training and sizes all methods share.
        methods: by name; all of `methods.METHODS` if empty.
        rates: learning rates that each method is tried with, on the first seed.
        seeds: training seeds; the data of all methods with one seed are the same. Seeds beyond the
            first are trained with the best rate.
        draws: settings drawn at random within a decade either way of the published ones, of each
            method that has knobs, with the best rate and the first seed.
        pairs: start/goal pairs of each task.
        updates: of training, in place of the recipe's.
        episodes: collected, likewise.
    """

    worlds: tuple[str, ...] = ("two-room-tiny",)
    methods: tuple[str, ...] = ()
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    seeds: int = 3
    draws: int = 0
    pairs: int = 200
    updates: int | None = None
    episodes: int | None = None

    def __post_init__(self) -> None:
        for name in self.methods:
            choose("method", name, METHODS)
        for name in self.worlds:
            choose("recipe", name, recipes.RECIPES)
        least = {"seeds": 1, "pairs": 1, "updates": 1, "episodes": 1}
        check_numbers(self, least=least, above={"rates": 0}, most={"draws": 4096})
        if not self.rates or not self.worlds:
            raise ValueError(
                f"expected a world and a learning rate or more, got {self.worlds} and "
                f"{self.rates}. Name some."
            )

    @property
    def chosen(self) -> tuple[str, ...]:
        return self.methods or tuple(METHODS)

    @property
    def binding(self) -> dict[str, Any]:
        """What a row depends on: rows of studies that agree on it belong together."""
        return {"pairs": self.pairs, "updates": self.updates, "episodes": self.episodes}


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        draw: number of the settings that are drawn; None for the method's own.
    """

    world: str
    method: str
    rate: float
    seed: int
    draw: int | None = None

    @property
    def name(self) -> str:
        drawn = "" if self.draw is None else f"-draw{self.draw:02d}"
        return f"{self.world}+{self.method}-lr{self.rate:g}-seed{self.seed}{drawn}"

    @property
    def settings(self) -> dict[str, Any]:
        """That differ from the method's own."""
        return {} if self.draw is None else settings_drawn(self.method, self.draw)


def settings_drawn(method: str, number: int) -> dict[str, float | int]:
    """The knobs of a method in draw `number`: log-uniform within a decade either way of what was
    published, spread evenly by a scrambled Sobol sequence that is the method's own."""
    from scipy.stats import qmc

    knobs = METHODS[method].knobs
    seed = int.from_bytes(hashlib.sha256(method.encode()).digest()[:4], "big")
    sobol = qmc.Sobol(len(knobs), scramble=True, seed=np.random.default_rng(seed))
    points = sobol.random(1 << number.bit_length())  # a power of 2, which alone is even
    factors = 10 ** (2 * points[number] - 1)
    return {
        knob.field: knob.moved(float(factor)) for knob, factor in zip(knobs, factors, strict=True)
    }


def open_cells(plan: Plan, rows: Mapping[str, Row]) -> Iterator[Cell]:
    """The runs that can be begun now and have no row yet, the most telling first.

    Learning rates of all methods come first, then the other seeds with the best of them, then the
    draws.
    """
    cells = [
        Cell(world, method, rate, 0)
        for world in plan.worlds
        for rate in _middle_first(plan.rates)
        for method in plan.chosen
    ]
    best = {
        (world, method): rate
        for world in plan.worlds
        for method in plan.chosen
        if (rate := best_rate(plan, rows, world, method)) is not None
    }
    cells += [Cell(*key, rate, seed) for seed in range(1, plan.seeds) for key, rate in best.items()]
    cells += [
        Cell(*key, rate, 0, draw)
        for draw in range(plan.draws)
        for key, rate in best.items()
        if METHODS[key[1]].knobs
    ]
    return (cell for cell in cells if not _is_done(plan, cell, rows))


def _is_done(plan: Plan, cell: Cell, rows: Mapping[str, Row]) -> bool:
    """Is there a row, and of what the cell would train today? A method may have changed since."""
    row = rows.get(cell.name)
    return row is not None and row.get("made_with", "") == made_with(_experiment(plan, cell))


def made_with(experiment: Experiment) -> str:
    """A digest of all that decides a row: settings that differ from their defaults, so that a new
    one, which changes nothing until it is used, makes no row stale."""

    def telling(config: Settings) -> dict[str, Any]:
        return {
            each.name: value
            for each in dataclasses.fields(config)
            if (value := getattr(config, each.name)) != each.default
        }

    parts = {
        "model": (type(experiment.model).__name__, telling(experiment.model)),
        "training": telling(experiment.training),
        "collection": telling(experiment.collection),
        "planning": describe_planning(experiment.planning),
        "world": (experiment.world, experiment.image_size, experiment.look),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def best_rate(plan: Plan, rows: Mapping[str, Row], world: str, method: str) -> float | None:
    """The learning rate of a method's best run on the first seed; None until all were tried, or if
    all failed."""
    cells = {rate: Cell(world, method, rate, 0) for rate in plan.rates}
    if not all(_is_done(plan, cell, rows) for cell in cells.values()):
        return None
    found = {rate: rows[cell.name] for rate, cell in cells.items()}
    rated = {rate: _ranked(row) for rate, row in found.items() if "error" not in row}
    return max(rated, key=lambda rate: rated[rate]) if rated else None


def rows_of(out: Path, *known: Path) -> dict[str, Row]:
    """Name -> row, of a folder and of files of rows that were kept elsewhere.

    Raises:
        ValueError: a row is damaged; its file is named.
    """
    rows: dict[str, Row] = {row["name"]: row for file in known for row in study_of(file).rows}
    for file in sorted((out / "rows").glob("*.json")):
        rows[file.stem] = read_json(file)
    return rows


def carry_out(
    plan: Plan,
    out: Path,
    known: Sequence[Path] = (),
    keep: bool = False,
    report: Report = silent,
) -> dict[str, Row]:
    """Do what is open and held by nobody else, until nothing is.

    Args:
        known: files of rows that are not done again.
        keep: the run folders, which are otherwise removed once their row is there.
        report: called as a run proceeds, its cell as the note.

    Returns:
        All rows, also those that others made meanwhile.

    Raises:
        ValueError: the folder holds another study.
        KeyboardInterrupt: Ctrl-C; the row in progress goes on with the next call.
    """
    _claim(plan, out)
    while True:
        rows = rows_of(out, *known)
        open_ = list(open_cells(plan, rows))
        if not open_:
            return rows
        for cell in open_:
            target = out / "rows" / f"{cell.name}.json"
            with suppress(Held), hold(target, folder=False):
                if not _is_done(plan, cell, rows_of(out)):
                    write_json(target, _row(plan, cell, out, keep, report))
                    break
        else:
            time.sleep(WAIT_S)  # others are at all of them


WAIT_S = 5.0
"""Before it is asked again whether another process has finished."""

FAILURES = (ValueError, RuntimeError, ArithmeticError, MemoryError)
"""What a run of strange settings may end in. Its row says so, and the study goes on."""


def exported(plan: Plan, rows: Mapping[str, Row]) -> dict[str, Any]:
    """What a study's file holds, JSON-ready: its rows, and what its methods are. Which episodes the
    pairs are of is said once for each set of pairs."""
    told, known = [], set[str]()
    for name in sorted(rows):
        row = json.loads(
            json.dumps(rows[name]), parse_float=lambda text: float(f"{float(text):.5g}")
        )
        for task in row.get("tasks", {}).values():
            if task["drawn"] in known:
                task.pop("episodes", None)
            elif "episodes" in task:
                known.add(task["drawn"])
        told.append(row)
    return {
        "rates": list(plan.rates),
        "methods": {
            name: {
                "title": method.title,
                "way": method.way,
                "model": method.model,
                "knobs": len(method.knobs),
                "source": method.source,
                "objection": method.objection,
                "answer": method.answer,
                "control": method.control,
            }
            for name, method in METHODS.items()
        },
        "rows": told,
    }


def _claim(plan: Plan, out: Path) -> None:
    path, binding = out / "study.json", json.loads(json.dumps(plan.binding))
    with hold(path, folder=False, wait=60.0):  # workers begin together
        there = read_json(path) if path.exists() else binding
        if there != binding:
            raise ValueError(
                f"{out} holds another study: expected {binding}, got {there}. Name another folder "
                "with --out, or give the settings it was begun with."
            )
        write_json(path, binding)


# ------------------------------------------------------------------------------------------- a row


def _row(plan: Plan, cell: Cell, out: Path, keep: bool, report: Report) -> dict[str, Any]:
    """Train, evaluate and measure one cell."""
    told = {
        "name": cell.name,
        **dataclasses.asdict(cell),
        "settings": cell.settings,
        "made_with": made_with(_experiment(plan, cell)),
        "lewm": lewm.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        **plan.binding,
    }

    def noted(progress: Progress) -> None:
        report(dataclasses.replace(progress, note=cell.name))

    folder = out / "runs" / cell.name
    try:
        measured = _measured(_experiment(plan, cell), cell, plan, out, folder, noted)
    except FAILURES as error:
        return {**told, "error": " ".join(str(error).split()) or repr(error)}
    if not keep:
        remove(folder)
    return {**told, **measured}


def _experiment(plan: Plan, cell: Cell) -> Experiment:
    """The recipe of a cell, with the plan's size."""
    base = seeded(recipes.load(cell.world), cell.seed)
    experiment, replace = with_method(base, cell.method), dataclasses.replace
    training = replace(experiment.training, learning_rate=cell.rate)
    if plan.updates is not None:
        often = min(plan.updates, training.checkpoint_every)
        training = replace(training, updates=plan.updates, checkpoint_every=often)
    collection = experiment.collection
    if plan.episodes is not None:
        collection = replace(collection, episodes=plan.episodes)
    model = METHODS[cell.method].config(base.model, **cell.settings)
    return replace(experiment, model=model, training=training, collection=collection)


def _measured(
    experiment: Experiment, cell: Cell, plan: Plan, out: Path, folder: Path, report: Report
) -> dict[str, Any]:
    data = out / f"episodes-{cell.world}-{cell.seed}.h5"
    while True:  # all methods of a world and a seed share the file
        try:
            collect_episodes(experiment, data, report).close()
            break
        except Held:
            time.sleep(WAIT_S)
    fresh, worked, began = not folder.exists(), time.process_time(), time.monotonic()
    train_model(experiment, data, folder, report)
    spent = {
        # of a run that goes on from a checkpoint nobody knows what the earlier process worked
        "train_cpu_s": round(time.process_time() - worked, 2) if fresh else None,
        "train_s": round(time.monotonic() - began, 2) if fresh else None,
    }
    run = open_run(folder, data, device="cpu")
    with run.episodes:
        asked = TASKS if cell.draw is None else (TUNED_BY,)  # a draw is only ranked
        found: dict[str, Any] = {"tasks": _tasks(asked, experiment, run, cell, plan, report)}
        if cell.draw is None:
            found["plan_ms"] = plan_ms(experiment, run.model)
            found |= measures(run, cell.seed, report)
        last = dict(run.metrics[-1])
        return {
            "updates": last["update"],
            **spent,
            **_size(run, cell),
            **found,
            "alarm": last.get("alarm", ""),
            "last": {
                name: value
                for name, value in last.items()
                if name not in ("alarm", "update", "seconds", "updates_per_second")
            },
        }


PROBING: Mapping[str, Any] = {"mlp": False, "rollouts": 0, "draws": 100}
GEOMETRY: Mapping[str, Any] = {
    "slices": 64,
    "gaussians": 20,
    "draws": 100,
    "horizon": 5,
    "controls": False,
}


def measures(run: Run, seed: int, report: Report = silent) -> dict[str, Any]:
    """What probes and geometry say of a run's latents, as rows keep it."""
    settings = {"probing": PROBING, "geometry": GEOMETRY}
    answers = analyse(run, tuple(settings), report, seed=seed, settings=settings)
    layout = run.world().spec.layout if run.open_world is not None else ()
    return _of_probes(answers["probing"], layout) | _of_geometry(answers["geometry"])


def _size(run: Run, cell: Cell) -> dict[str, Any]:
    model = run.model
    return {
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "tokens": model.tokens if isinstance(model, Tokened) else 1,
        "numbers": model.latent_dim,
        "knobs": len(METHODS[cell.method].knobs),
    }


def plan_ms(experiment: Experiment, model: WorldModel) -> float:
    """Milliseconds of the processor that a plan takes, in a batch; the fewest of a few tries. It
    does not depend on weights. A clock on the wall would measure what else the machine does."""
    world = open_recipe_world(experiment, PLANS_TIMED)
    agent = Agent(
        model, experiment.planning, world.spec, range(PLANS_TIMED), clock=time.process_time
    )
    pictures, tries = world.render(), []
    for _ in range(3):
        agent.reset()
        agent.act(pictures, pictures[::-1].copy())
        tries.append(1e3 * agent.effort.seconds_per_plan)
    return round(min(tries), 3)


PLANS_TIMED = 16
"""Together."""


def _tasks(
    names: Iterable[str],
    experiment: Experiment,
    run: Run,
    cell: Cell,
    plan: Plan,
    report: Report,
) -> dict[str, Any]:
    """Success on each of the tasks that the world and the data allow, pair by pair."""
    world = open_recipe_world(experiment, min(plan.pairs, experiment.together))
    assert run.planning is not None
    told: dict[str, Any] = {}
    for name in names:
        try:
            found = evaluate(
                run.model,
                run.planning,
                world,
                run.episodes,
                run.test_ids,
                TASKS[name](plan.pairs, cell.seed),
                report=report,
            )
        except Unavailable:
            continue
        told[name] = _outcome(found)
        if isinstance(world, Blocking):
            told[name]["blocked"] = _where_blocked(found, world)
    return told


def _outcome(found: Evaluation) -> dict[str, Any]:
    strict, pairs = found.pairs.strict, found.pairs
    solved = found.steps(AGENT)[strict] >= 0
    score = found.score(AGENT, strict=True)
    drawn = np.stack([pairs.start_rows[strict], pairs.goal_rows[strict]]).astype("<i8")
    return {
        "task": found.protocol.name,
        "rate": score.rate,
        "low": score.low,
        "high": score.high,
        "pairs": score.episodes,
        "floors": {
            policy: found.score(policy, strict=True).rate
            for policy in found.success_steps
            if policy != AGENT
        },
        "others": {
            criterion: found.score(AGENT, strict=True, criterion=criterion).rate
            for criterion in found.others
        },
        "solved": np.packbits(solved).tobytes().hex(),
        "episodes": pairs.start_episodes[strict].tolist(),
        "drawn": hashlib.sha256(drawn.tobytes()).hexdigest()[:16],
    }


def _where_blocked(found: Evaluation, world: Blocking) -> dict[str, Any]:
    """Success where something stands in the straight way, of the agent and of the floors."""
    strict, pairs = found.pairs.strict, found.pairs
    among = strict & world.blocked(pairs.starts, pairs.goals)
    rates = {
        policy: float((found.steps(policy)[among] >= 0).mean()) if among.any() else None
        for policy in found.success_steps
    }
    return {"pairs": int(among.sum()), "rate": rates.pop(AGENT), "floors": rates}


def _of_probes(answer: Result | Unsupported, layout: Sequence[str]) -> dict[str, Any]:
    """What probes read. `probe_r`, the worst, is of what moves: of a layout, which never does, a
    model that plans well may forget the door, and one that lost the agent tells the wall."""
    if not isinstance(answer, ProbingResult):
        return {"probe_r": None, "why_no_probe": str(answer)}
    r = {name: score.r for name, score in answer.variables.items()}
    controls: dict[str, dict[str, Any]] = {}
    for name, score in answer.variables.items():
        for rival, found in score.controls.items():
            controls.setdefault(rival, {})[name] = found.r

    def worst(known: Mapping[str, float | None]) -> float | None:
        return _worst({name: value for name, value in known.items() if name not in layout})

    return {
        "probe_r": worst(r),
        "probe": r,
        "probe_controls": {rival: worst(found) for rival, found in controls.items()},
    }


def _worst(r: Mapping[str, float | None]) -> float | None:
    """Of all variables that vary."""
    known = [value for value in r.values() if value is not None]
    return min(known) if known else None


def _of_geometry(answer: Result | Unsupported) -> dict[str, Any]:
    if not isinstance(answer, GeometryResult):
        return {"latent_std": None, "effective_rank": None, "why_no_geometry": str(answer)}
    ahead = answer.open_loop
    own = list(answer.ranks)[-1]  # the planner's own cost comes last

    def farthest(ranks: Mapping[str, Mapping[str, Any]] | None) -> float | None:
        return None if ranks is None else list(ranks[own].values())[-1].rho

    return {
        "latent_std": answer.latent_std,
        "effective_rank": answer.effective_rank,
        "straightness": answer.straightness.value,
        # shares of what copying the last frame errs, and of what two strangers differ by
        "error_of_copying": {n: _share(e.error, e.copy) for n, e in ahead.items() if n in "15"},
        "error_of_strangers": {n: _share(e.error, e.random) for n, e in ahead.items() if n in "15"},
        "cost": own,
        "cost_rank_steps": farthest(answer.ranks),
        "cost_rank_states": farthest(answer.ranks_states),
        "cost_rank_across": farthest(answer.ranks_across),
    }


def _share(error: float, of: float) -> float | None:
    return error / of if of > 0 and math.isfinite(error) else None


def _ranked(row: Row) -> float:
    """Success on the task that ranks, or where the world has no such task on the first it has."""
    tasks = row["tasks"]
    return float((tasks.get(TUNED_BY) or next(iter(tasks.values())))["rate"])


def _middle_first(rates: Sequence[float]) -> list[float]:
    """In order of their distance from the middle, so that what is likely best comes first."""
    middle = sorted(rates)[len(rates) // 2]
    return sorted(rates, key=lambda rate: abs(math.log(rate / middle)))
