"""The one sequence of stages from nothing to numbers: collect, train, fit, evaluate, analyse.

A reproduction is this sequence and a table; a quickstart is this sequence and a page. Both keep in
their folder

    episodes.h5        collected episodes
    run/               the trained world model, its heads, and what analyses found of it
    result.json        every number; written last, so that its presence means finished

and both can be interrupted and go on.
"""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lewm
from lewm.analyses.probing import ProbingResult
from lewm.contracts import Progress, Report, TrainableModel, World, WorldSpec
from lewm.data.collecting import collect
from lewm.data.episodes import Episodes
from lewm.evaluation.evaluate import evaluate
from lewm.evaluation.outcome import AGENT, Evaluation, Score
from lewm.evaluation.tasks import Task
from lewm.experiments.book import Book
from lewm.experiments.experiment import Experiment
from lewm.files import read_json
from lewm.models.nn.frozen import device_of
from lewm.planning.config import PlanningConfig, attach, describe_planning, heads_of
from lewm.runs import checkpoints
from lewm.runs.answers import analyse
from lewm.runs.heads import head_names, load_head
from lewm.runs.results import Result
from lewm.runs.run import Run, Unsupported
from lewm.stats import bootstrap
from lewm.training.fit import fit_heads
from lewm.training.train import train
from lewm.worlds.kit.opening import open_world

__all__ = [
    "Outcome",
    "Scope",
    "carry_out",
    "collect_episodes",
    "facts",
    "fit_planning",
    "open_recipe_world",
    "result_of",
    "seeded",
    "shortened",
    "train_model",
]

PROBING = ("angles", "mlp_angles", "rollout")
"""What a result holds of probing, beside its variables."""


@dataclass(frozen=True)
class Scope:
    """What is asked of the model of an experiment, once it is made.

    Attributes:
        tasks: that it is evaluated on; the first one is the headline.
        analyses: by name, with the settings that differ from their defaults. "probing" is one.
    """

    tasks: tuple[Task, ...]
    analyses: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """What the stages leave.

    Attributes:
        experiment: as it was asked for.
        run: the model, its episodes, its heads and how it plans.
        trained: what training recorded.
        evaluations: one per task.
        answers: of the analyses, by name.
    """

    experiment: Experiment
    run: Run
    trained: Mapping[str, Any]
    world: World
    evaluations: tuple[Evaluation, ...]
    answers: Mapping[str, Result | Unsupported]

    @property
    def probing(self) -> ProbingResult:
        """What probes read; the reason, raised, where they could not be asked."""
        found = self.answers["probing"]
        if isinstance(found, Unsupported):
            raise found
        assert isinstance(found, ProbingResult)
        return found


def carry_out(
    experiment: Experiment, scope: Scope, out: Path, book: Book, seed: int, report: Report
) -> Outcome:
    """Do every stage that is not done yet in `out`.

    Args:
        book: sums up the time of each stage.
        seed: of the analyses; those of data, training, heads and tasks are part of them.
        report: called as stages proceed.

    Raises:
        KeyboardInterrupt: Ctrl-C; what was complete stays.
    """
    folder, device = out / "run", "cuda" if torch.cuda.is_available() else "cpu"
    with book.timed("collect"):
        episodes = collect_episodes(experiment, out / "episodes.h5", report)
    with book.timed("train"):
        train_model(experiment, episodes.path, folder, report)
        trained = read_json(folder / checkpoints.EXPERIMENT)
        split, model = trained["split"], checkpoints.load(folder, device)
    with book.timed("fit"):
        planning = fit_planning(experiment, model, episodes, split, folder, report)
    run = _opened(experiment, planning, model, episodes, split, folder)
    most = max(task.episodes for task in scope.tasks)
    world = open_recipe_world(experiment, min(most, experiment.together))
    with book.timed("evaluate"):
        evaluations = tuple(_evaluate(run, world, task, report) for task in scope.tasks)
    with book.timed("analyse"):
        names = tuple(scope.analyses)
        answers = analyse(run, names, report, seed=seed, settings=scope.analyses)
    return Outcome(experiment, run, trained, world, evaluations, answers)


def result_of(outcome: Outcome, book: Book, seed: int, short: bool, command: str) -> dict[str, Any]:
    """The numbers of an experiment, JSON-ready: one schema for whatever was carried out.

    `success`, `strict`, `floors` and what follows them are of the first task, `other_room` of one
    that leads there, `evaluations` hold every pair of every task.
    """
    run, first = outcome.run, outcome.evaluations[0]
    others = [
        each for each in outcome.evaluations if each.protocol.across and not each.protocol.anywhere
    ]
    probing = outcome.probing
    metrics, told = checkpoints.metrics(run.path) if run.path else [], probing.to_json()
    return {
        **_success(first, _through_door(outcome.world, first), outcome.world.spec),
        "other_room": _other_room(others[0]) if others else None,
        "evaluations": [each.to_json() for each in outcome.evaluations],
        "probe_r": {name: scores.r for name, scores in probing.variables.items()},
        "probe": told["variables"],
        **{name: told[name] for name in PROBING},
        **facts(outcome.experiment, run.model, run.episodes, outcome.trained),
        "budget": outcome.trained.get("budget"),
        "alarm": metrics[-1].get("alarm", "") if metrics else "",
        "seed": seed,
        "short": short,
        "resumed": book.resumed,
        "command": command,
        "seconds": book.seconds,
    }


# ------------------------------------------------------------------------------------- experiments


def seeded(experiment: Experiment, seed: int) -> Experiment:
    """The recipe with one seed for its data, its training and its heads."""
    return dataclasses.replace(
        experiment,
        collection=dataclasses.replace(experiment.collection, seed=seed),
        training=dataclasses.replace(experiment.training, seed=seed),
        fitting=dataclasses.replace(experiment.fitting, seed=seed),
    )


def shortened(experiment: Experiment, episodes: int, updates: int, fit_updates: int) -> Experiment:
    """Much less of everything, to see that it works."""
    settings, replace = experiment, dataclasses.replace
    fewer = min(episodes, settings.collection.episodes)
    training = replace(
        settings.training,
        updates=updates,
        checkpoint_every=min(updates, settings.training.checkpoint_every),
    )
    return replace(
        settings,
        collection=replace(settings.collection, episodes=fewer),
        training=training,
        fitting=replace(settings.fitting, updates=fit_updates),
    )


# ------------------------------------------------------------------------------------------- stages


def collect_episodes(experiment: Experiment, path: Path, report: Report) -> Episodes:
    """Record a recipe's episodes, or those that are missing."""
    settings = experiment.collection
    options = experiment.options | (
        {} if settings.max_steps is None else {"max_steps": settings.max_steps}
    )
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
        report=report,
        **options,
    )


def train_model(experiment: Experiment, data: Path, folder: Path, report: Report) -> Path:
    """Train a recipe's model, or go on with it; returns the run folder."""
    origin = {
        "recipe": experiment.recipe,
        "world": experiment.world,
        "lewm": lewm.__version__,
        "planning": describe_planning(experiment.planning),
    }
    return train(
        experiment.model, experiment.training, data, folder, experiment=origin, report=report
    )


def fit_planning(
    experiment: Experiment,
    model: TrainableModel,
    episodes: Episodes,
    split: Mapping[str, list[int]],
    folder: Path,
    report: Report,
) -> PlanningConfig:
    """How a recipe plans, with the heads that it asks for: those of the run, or else fitted now and
    stored there."""
    wanted = heads_of(experiment.planning)
    if missing := sorted(wanted - set(head_names(folder))):
        fit_heads(
            folder,
            model,
            episodes,
            split["train"],
            split["heldout"],
            missing,
            experiment.fitting,
            report,
        )
    return attach(experiment.planning, {name: load_head(folder, name, model) for name in wanted})


def open_recipe_world(experiment: Experiment, num_envs: int) -> World:
    """The world of a recipe, in its size and look."""
    return open_world(
        experiment.world, num_envs, image_size=experiment.image_size, **experiment.options
    )


def _opened(
    experiment: Experiment,
    planning: PlanningConfig,
    model: TrainableModel,
    episodes: Episodes,
    split: Mapping[str, list[int]],
    folder: Path,
) -> Run:
    """The run, as `open_run` would open it."""

    def opened(num_envs: int, *look: str) -> World:
        options = experiment.options | ({"look": look[0]} if look else {})
        return open_world(experiment.world, num_envs, image_size=experiment.image_size, **options)

    names = head_names(folder)
    return Run(
        model,
        episodes,
        split["train"],
        split["heldout"],
        opened,
        tuple(checkpoints.metrics(folder)),
        planning,
        {name: load_head(folder, name, model) for name in names},
        experiment.recipe,
        path=folder,
    )


def _evaluate(run: Run, world: World, task: Task, report: Report) -> Evaluation:
    stages = ("other room", "its floors") if task.across else ("evaluate", "floors")

    def staged(progress: Progress) -> None:
        # floors plan nothing: one clock cannot foretell both
        stage = stages[0 if progress.stage.endswith(AGENT) else 1]
        report(dataclasses.replace(progress, stage=stage, note=progress.stage))

    assert run.planning is not None
    return evaluate(run.model, run.planning, world, run.episodes, run.test_ids, task, report=staged)


# ------------------------------------------------------------------------------------------- result


def facts(
    experiment: Experiment, model: TrainableModel, episodes: Episodes, trained: Mapping[str, Any]
) -> dict[str, Any]:
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
            "cpus": len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(device)
            if device.type == "cuda"
            else f"CPU, {platform.machine()}",
            "precision": trained["precision"],
        },
        "versions": {
            "lewm": lewm.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
    }


def _success(evaluation: Evaluation, door: np.ndarray | None, spec: WorldSpec) -> dict[str, Any]:
    """All that the evaluation says, under the names of result.json."""
    floors = [policy for policy in evaluation.success_steps if policy != AGENT]
    return {
        "success": _plain(evaluation.score()) | _over_episodes(evaluation),
        "strict": _plain(evaluation.score(strict=True)) | _over_episodes(evaluation, strict=True),
        "floors": {
            _key(floor): {
                **_plain(evaluation.score(floor)),
                "strict": _plain(evaluation.score(floor, strict=True)),
            }
            for floor in floors
        },
        "through_door": _of_pairs(evaluation, door),
        "solved_at_start": evaluation.solved_at_start,
        "median_steps": evaluation.score(strict=True).median_steps,
        "seconds_per_plan": evaluation.effort.seconds_per_plan,
        "predictor_calls_per_plan": evaluation.effort.predictor_calls_per_plan,
        "planned_together": evaluation.batch,
        "protocol": dataclasses.asdict(evaluation.protocol),
        "tolerance": {
            "value": spec.tolerance,
            "of": spec.picture_extent,
            "unit": spec.state_units[0],
        },
    }


def _over_episodes(evaluation: Evaluation, strict: bool = False) -> dict[str, float]:
    """95% interval of the agent's rate from a bootstrap over episodes: many pairs are overlapping
    parts of one walk."""
    counted = evaluation.pairs.strict if strict else evaluation.pairs.paper
    reached = evaluation.success_steps[AGENT][counted] >= 0
    low, high = bootstrap(np.mean, reached, groups=evaluation.pairs.start_episodes[counted])
    return {"episode_low": low, "episode_high": high}


def _other_room(evaluation: Evaluation) -> dict[str, Any]:
    """The distant goals: the same counts, without the details."""
    floors = [policy for policy in evaluation.success_steps if policy != AGENT]
    return {
        "agent": _plain(evaluation.score()),
        "floors": {_key(floor): _plain(evaluation.score(floor)) for floor in floors},
        "protocol": dataclasses.asdict(evaluation.protocol),
    }


def _of_pairs(evaluation: Evaluation, chosen: np.ndarray | None) -> dict[str, Any] | None:
    """Success of every policy on some of the paper's pairs; None where there are none."""
    counted = None if chosen is None else chosen & evaluation.pairs.paper
    if counted is None or not counted.any():
        return None
    steps = evaluation.success_steps
    some = dataclasses.replace(
        evaluation,
        pairs=evaluation.pairs[counted],
        success_steps={policy: of[counted] for policy, of in steps.items()},
    )
    return {_key(policy): _plain(some.score(policy)) for policy in steps}


def _through_door(world: World, evaluation: Evaluation) -> np.ndarray | None:
    """(n,) bool: do start and goal of a pair lie in different rooms? None in a world without."""
    starts, goals = (
        world.regions(states) for states in (evaluation.pairs.starts, evaluation.pairs.goals)
    )
    return None if starts is None or goals is None else starts != goals


def _plain(score: Score) -> dict[str, Any]:
    return {"rate": score.rate, "low": score.low, "high": score.high, "episodes": score.episodes}


def _key(policy: str) -> str:
    return policy.replace("-", "_")
