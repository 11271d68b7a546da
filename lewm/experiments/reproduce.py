"""A recipe, carried out: collect its data, train, fit its heads, evaluate beside the floors, probe beside the controls.

out/
  reproduction.json  what the folder holds, and how long its stages took
  episodes.h5        collected episodes
  run/               the trained world model, and the heads that its planning needs
  result.json        every number; written last, so that its presence means finished
  result.md          the same as tables
"""

from __future__ import annotations

import dataclasses
import os
import platform
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lewm
from lewm.analyses.probing import Probing, ProbingResult, Variable
from lewm.contracts import World, WorldModel
from lewm.data.collecting import collect
from lewm.data.episodes import Episodes
from lewm.evaluation.evaluate import Evaluation, evaluate
from lewm.evaluation.tasks import Task
from lewm.experiments import recipes
from lewm.experiments.recipes import Experiment
from lewm.files import read_json, write_atomically, write_json
from lewm.models.nn.frozen import device_of
from lewm.planning.agent import PlanningConfig
from lewm.planning.config import attach, describe_planning, heads_of
from lewm.runs import checkpoints
from lewm.runs.run import Run
from lewm.training.fit import fit_heads
from lewm.training.train import Progress, train
from lewm.worlds.kit.opening import open_world

__all__ = [
    "Book",
    "Report",
    "collect_episodes",
    "facts",
    "fit_planning",
    "open_recipe_world",
    "reproduce",
    "seeded",
    "train_model",
]

SHORT_EPISODES, SHORT_UPDATES, SHORT_PAIRS = 40, 20, 20

Report = Callable[[str, int, int, str, str], None]
"""Called with stage, done, total, a line of numbers (or ""), and what is alarming (or "")."""


def reproduce(
    recipe: str,
    out: Path | str,
    seed: int = 0,
    pairs: int = 200,
    short: bool = False,
    report: Report = lambda *_: None,
    minutes: float | None = None,
) -> dict[str, Any]:
    """Do everything of a recipe that is not done yet in `out`, and return what `result.json` then holds.

    Args:
        recipe: name of one of `recipes.RECIPES`.
        out: folder. One that was interrupted is continued, a finished one is left alone and its result returned.
        seed: of data, weights, pairs, search and probe.
        pairs: start/goal pairs of the paper's task (offset 25, budget 50).
        short: much less of everything, to see that it works; the result says so.
        report: called as stages proceed.
        minutes: train for this long in place of the recipe's updates, see `TrainingConfig`; collecting and evaluating take
            their own time beside it. The result says so.

    Raises:
        ValueError: no such recipe, or `out` holds a reproduction with other settings.
        KeyboardInterrupt: Ctrl-C; what was complete stays.
    """
    out = Path(out)
    experiment = seeded(recipes.load(recipe), seed)
    if short:
        collection = dataclasses.replace(experiment.collection, episodes=min(SHORT_EPISODES, experiment.collection.episodes))
        training = dataclasses.replace(experiment.training, updates=SHORT_UPDATES, checkpoint_every=SHORT_UPDATES)
        fitting = dataclasses.replace(experiment.fitting, updates=SHORT_UPDATES)
        experiment = dataclasses.replace(experiment, collection=collection, training=training, fitting=fitting)
        pairs = SHORT_PAIRS
    if minutes is not None:
        experiment = dataclasses.replace(experiment, training=dataclasses.replace(experiment.training, minutes=minutes))
    name = experiment.recipe
    claim = {"recipe": name, "seed": seed, "pairs": pairs, "short": short, "minutes": minutes}
    book = Book.open(out / "reproduction.json", claim)
    if (out / "result.json").exists():
        report("probe", 1, 1, "finished before", "")
        return read_json(out / "result.json")
    with book.timed("collect"):
        episodes = collect_episodes(experiment, out / "episodes.h5", report)
    with episodes:
        with book.timed("train"):
            train_model(experiment, episodes.path, out / "run", report)
        trained = read_json(out / "run" / checkpoints.EXPERIMENT)
        split = trained["split"]
        model = checkpoints.load(out / "run", "cuda" if torch.cuda.is_available() else "cpu")
        with book.timed("fit"):
            planning = fit_planning(experiment, model, episodes, split, out / "run", report)
        with book.timed("evaluate"):
            evaluation = _evaluate(experiment, planning, model, episodes, split["heldout"], pairs, seed, report)
        with book.timed("probe"):
            report("probe", 0, 1, "", "")
            probing = Probing(seed=seed).run(Run(model, episodes, split["train"], split["heldout"]))
            report("probe", 1, 1, "", "")
    metrics, told = checkpoints.metrics(out / "run"), probing.to_json()
    result = {
        **facts(experiment, model, episodes, trained),
        "evaluation": evaluation.to_json(),
        "probe": told["variables"],
        **{name: told[name] for name in ("angles", "mlp_angles", "rollout")},
        "alarm": metrics[-1].get("alarm", ""),
        "seed": seed,
        "short": short,
        "command": f"lewm reproduce {name} --out {shlex.quote(str(out))} --seed {seed} "
        + ("--short" if short else f"--pairs {pairs}")
        + ("" if minutes is None else f" --minutes {minutes:g}"),
        "budget": trained.get("budget"),
        "seconds": book.seconds,
    }
    write_atomically(out / "result.md", _markdown(result, evaluation, probing).encode())
    write_json(out / "result.json", result)
    return result


def _evaluate(
    experiment: Experiment,
    planning: PlanningConfig,
    model: Any,
    episodes: Episodes,
    heldout: Sequence[int],
    pairs: int,
    seed: int,
    report: Report,
) -> Evaluation:
    def attempts(policy: str, done: int, total: int) -> None:
        report("evaluate", done, total, policy, "")

    world = open_recipe_world(experiment, min(pairs, experiment.together))
    protocol = Task.along(episodes=pairs, seed=seed)
    return evaluate(model, planning, world, episodes, heldout, protocol, progress=attempts)


def seeded(experiment: Experiment, seed: int) -> Experiment:
    """The recipe with one seed for its data, its training and its heads."""
    return dataclasses.replace(
        experiment,
        collection=dataclasses.replace(experiment.collection, seed=seed),
        training=dataclasses.replace(experiment.training, seed=seed),
        fitting=dataclasses.replace(experiment.fitting, seed=seed),
    )


def collect_episodes(experiment: Experiment, path: Path, report: Report) -> Episodes:
    """Record a recipe's episodes, or those that are missing."""
    settings = experiment.collection
    options = experiment.options | ({} if settings.max_steps is None else {"max_steps": settings.max_steps})
    return collect(
        experiment.world,
        path,
        settings.episodes,
        policy=settings.policy,
        seed=settings.seed,
        image_size=experiment.image_size,
        compression=settings.compression,
        every=settings.every,
        processes=None,
        progress=lambda done, total: report("collect", done, total, "", ""),
        **options,
    )


def train_model(experiment: Experiment, data: Path, folder: Path, report: Report) -> Path:
    """Train a recipe's model, or go on with it; returns the run folder."""

    def progress(p: Progress) -> None:
        shown = ("prediction", "sigreg", "latent_std", "effective_rank")
        note = ", ".join(f"{name.replace('_', ' ')} {p.metrics[name]:.3g}" for name in shown if name in p.metrics)
        report(p.stage, p.update, p.total, note, p.alarm)

    origin = {
        "recipe": experiment.recipe,
        "world": experiment.world,
        "lewm": lewm.__version__,
        "planning": describe_planning(experiment.planning),
    }
    return train(experiment.model, experiment.training, data, folder, experiment=origin, report=progress)


def fit_planning(
    experiment: Experiment, model: WorldModel, episodes: Episodes, split: Mapping[str, list[int]], folder: Path, report: Report
) -> PlanningConfig:
    """How a recipe plans, with the heads that it asks for: those of the run, or else fitted now and stored there."""
    wanted = heads_of(experiment.planning)
    if missing := sorted(wanted - set(checkpoints.head_names(folder))):

        def progress(stage: str, done: int, total: int, note: str) -> None:
            report(f"fit {stage}" if stage in missing else stage, done, total, note, "")

        fit_heads(folder, model, episodes, split["train"], split["heldout"], missing, experiment.fitting, progress)
    return attach(experiment.planning, {name: checkpoints.load_head(folder, name, model) for name in wanted})


def open_recipe_world(experiment: Experiment, num_envs: int) -> World:
    """The world of a recipe, in its size and look."""
    return open_world(experiment.world, num_envs, image_size=experiment.image_size, **experiment.options)


def facts(experiment: Experiment, model: Any, episodes: Episodes, trained: Mapping[str, Any]) -> dict[str, Any]:
    """What was used, on what: settings, data, machine and versions, JSON-ready."""
    device = device_of(model)
    return {
        "recipe": experiment.recipe,
        "settings": dataclasses.asdict(experiment),
        "data": {
            "episodes": len(episodes),
            "heldout_episodes": len(trained["split"]["heldout"]),
            "frames": int(episodes.steps),
        },
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "machine": {
            "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {platform.machine()}",
            "precision": trained["precision"],
        },
        "versions": {
            "lewm": lewm.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
    }


class Book:
    """A small file that says what a folder holds, and how long its stages took over all calls that worked on it."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path, self._content = path, content
        self.resumed = bool(content["seconds"])

    @classmethod
    def open(cls, path: Path, claim: dict[str, Any]) -> Book:
        """Claim a folder, or go on with it if it was claimed for the same.

        Raises:
            ValueError: it was claimed for something else; the differences are named.
        """
        if not path.exists():
            book = cls(path, {**claim, "seconds": {}})
            book._write()
            return book
        there = read_json(path)
        if differing := [name for name in claim if there.get(name) != claim[name]]:
            expected, got = (", ".join(f"{name} {of.get(name)}" for name in differing) for of in (claim, there))
            raise ValueError(
                f"{path.parent} holds another {path.stem}: expected {expected}, got {got}. Name another folder with --out, or "
                "give the settings it was begun with."
            )
        return cls(path, there)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to that of a stage, also when it is interrupted."""
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = self._content["seconds"]
            seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - began
            self._write()

    @property
    def seconds(self) -> dict[str, float]:
        """Wall time per stage, and in total."""
        stages = {stage: round(value, 2) for stage, value in self._content["seconds"].items()}
        return {**stages, "total": round(sum(stages.values()), 2)}

    def _write(self) -> None:
        write_json(self.path, self._content)


def _markdown(result: Mapping[str, Any], evaluation: Evaluation, probing: ProbingResult) -> str:
    """The numbers of a reproduction as tables: success beside the floors, probes beside their controls."""
    lines = [f"`{result['command']}`", "", evaluation.markdown(), "", *_probe_table(probing.variables)]
    angles = [
        f"mean error of {name}: {error:.1f} degrees by ridge, {probing.mlp_angles[name]:.1f} by MLP (90 if guessed)"
        for name, error in probing.angles.items()
    ]
    seconds = ", ".join(f"{stage} {value:.0f} s" for stage, value in result["seconds"].items())
    budget = checkpoints.budget_in_words(result)
    trained = f"trained with a {budget}; " if budget else ""
    cost = f"{trained}{result['parameters']:,} parameters; {seconds}; {result['machine']['cpus']} CPU cores."
    return "\n".join([*lines, "", *angles, "", cost]) + "\n"


def _probe_table(variables: Mapping[str, Variable]) -> list[str]:
    rivals = list(next(iter(variables.values())).controls)
    columns = ["variable", "r, ridge", "95% interval", "r, MLP", *rivals, "RMSE", "unit"]
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, score in variables.items():
        ends = "-" if score.r_interval is None else "[{:.3f}, {:.3f}]".format(*score.r_interval)
        numbers = [score.r, score.mlp and score.mlp.r, *(score.controls[rival].r for rival in rivals)]
        own, mlp, *controls = ("-" if r is None else f"{r:.3f}" for r in numbers)
        cells = [name, own, ends, mlp, *controls, f"{score.rmse:.3g}", score.unit]
        rows.append(f"| {' | '.join(cells)} |")
    return rows
