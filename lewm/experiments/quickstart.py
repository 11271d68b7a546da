"""From nothing to an agent that plans, and a page that shows it: collect, train, fit, evaluate,
analyse, report.

out/
  quickstart.json    what the folder holds, and how long its stages took
  episodes.h5        collected episodes
  run/               the trained world model, and what analyses found of it
  report.html        for people
  result.json        for programs; written last, so that its presence means finished
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lewm.analyses.probing import ProbingResult
from lewm.contracts import World, WorldModel, WorldSpec
from lewm.data.episodes import Episodes
from lewm.evaluation.evaluate import AGENT, Evaluation, Score, evaluate
from lewm.evaluation.tasks import Task
from lewm.experiments import recipes
from lewm.experiments.recipes import Experiment
from lewm.experiments.reproduce import (
    Book,
    Report,
    collect_episodes,
    facts,
    fit_planning,
    open_recipe_world,
    seeded,
    train_model,
)
from lewm.files import read_json, write_atomically, write_json
from lewm.report.page import render
from lewm.report.record import record_of
from lewm.runs import checkpoints
from lewm.runs.answers import analyse
from lewm.runs.run import Run
from lewm.stats import bootstrap
from lewm.worlds.kit.opening import open_world

__all__ = ["Report", "run"]

RECIPE, PUBLISHED = "two-room-tiny", "two-room-paper"
PAIRS, OTHER_ROOM_PAIRS = 200, 100
SHORT_EPISODES, SHORT_UPDATES, SHORT_FIT_UPDATES, SHORT_PAIRS = 100, 40, 200, 100

ANALYSES = {
    "planning": {"pairs": 24},
    "probing": {"mlp": False, "rollouts": 64},
    "surprise": {"episodes": 60},
    "geometry": {"episodes": 40, "gaussians": 100, "pairs": 20},
    "economy": {"paper_plans": 0},
}
"""Those that a quickstart can afford, and in which settings. `lewm analyse` asks all of them in
full, and the decoder too."""


def run(
    out: Path | str, seed: int = 0, short: bool = False, report: Report = lambda *_: None
) -> dict[str, Any]:
    """Do everything that is not done yet in `out`, and return what `result.json` then holds.

    Args:
        out: folder. One that was interrupted is continued, a finished one is left alone and its
            result returned.
        seed: of data, weights, pairs, search and analyses.
        short: much less of everything, to see that it works; the result says so.
        report: called as stages proceed.

    Raises:
        ValueError: `out` holds a quickstart with other settings.
        KeyboardInterrupt: Ctrl-C; what was complete stays.
    """
    out = Path(out)
    book = Book.open(out / "quickstart.json", {"recipe": RECIPE, "seed": seed, "short": short})
    if (out / "result.json").exists() and (out / "report.html").exists():
        report("report", 1, 1, "finished before", "")
        return read_json(out / "result.json")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    experiment = _experiment(seed, short)

    with book.timed("collect"):
        episodes = collect_episodes(experiment, out / "episodes.h5", report)
    with book.timed("train"):
        run_folder = train_model(experiment, episodes.path, out / "run", report)
        metrics = checkpoints.metrics(run_folder)
        trained = read_json(run_folder / checkpoints.EXPERIMENT)
        split = trained["split"]
        model = checkpoints.load(run_folder, device)
    with book.timed("fit"):
        recipe = experiment
        experiment = dataclasses.replace(
            recipe, planning=fit_planning(recipe, model, episodes, split, run_folder, report)
        )
    world = open_recipe_world(experiment, experiment.together)
    with book.timed("evaluate"):
        protocol = Task.along(episodes=SHORT_PAIRS if short else PAIRS, seed=seed)
        evaluation = _evaluate(
            experiment, model, world, episodes, split["heldout"], protocol, report
        )
        other_room = None
        if not short:
            protocol = Task.to_other_room(OTHER_ROOM_PAIRS, seed)
            other_room = _evaluate(
                experiment, model, world, episodes, split["heldout"], protocol, report
            )
    with book.timed("analyse"):
        answers = analyse(
            _run(experiment, model, episodes, split, metrics, run_folder),
            tuple(ANALYSES),
            report,
            seed=seed,
            settings=ANALYSES,
        )
        probing = answers["probing"]
        assert isinstance(probing, ProbingResult)
    with book.timed("report"):
        report("report", 0, 1, "", "")
        result = {
            **_success(evaluation, _through_door(world, evaluation), world.spec),
            "other_room": None if other_room is None else _other_room(other_room),
            "published": _published(),
            "probe_r": {name: scores.r for name, scores in probing.variables.items()},
            "probe": probing.to_json()["variables"],
            **facts(recipe, model, episodes, trained),
            "alarm": metrics[-1].get("alarm", ""),
            "seed": seed,
            "short": short,
            "resumed": book.resumed,
            "command": (
                f"lewm quickstart --out {shlex.quote(str(out))} --seed "
                f"{seed}{' --short' if short else ''}"
            ),
            "seconds": book.seconds,  # without those of drawing the page that they are to stand on
        }
        page = render([record_of(run_folder, result)], result["command"])
    result["seconds"] = book.seconds
    write_atomically(out / "report.html", page.encode())
    write_json(out / "result.json", result)
    report("report", 1, 1, "", "")
    episodes.close()
    return result


# ------------------------------------------------------------------------------------------- stages


def _experiment(seed: int, short: bool) -> Experiment:
    recipe = seeded(recipes.load(RECIPE), seed)
    if not short:
        return recipe
    collection = dataclasses.replace(
        recipe.collection, episodes=min(SHORT_EPISODES, recipe.collection.episodes)
    )
    training = dataclasses.replace(recipe.training, updates=SHORT_UPDATES)
    fitting = dataclasses.replace(recipe.fitting, updates=SHORT_FIT_UPDATES)
    return dataclasses.replace(recipe, collection=collection, training=training, fitting=fitting)


def _evaluate(
    experiment: Experiment,
    model: WorldModel,
    world: World,
    episodes: Episodes,
    heldout: list[int],
    protocol: Task,
    report: Report,
) -> Evaluation:
    def progress(attempt: str, done: int, total: int) -> None:
        stages = ("other room", "its floors") if protocol.across else ("evaluate", "floors")
        planning = attempt.endswith(AGENT)  # floors plan nothing: one clock cannot foretell both
        report(stages[0 if planning else 1], done, total, attempt, "")

    return evaluate(
        model, experiment.planning, world, episodes, heldout, protocol, progress=progress
    )


def _run(
    experiment: Experiment,
    model: WorldModel,
    episodes: Episodes,
    split: Mapping[str, list[int]],
    metrics: Sequence[Mapping[str, Any]],
    run_folder: Path,
) -> Run:
    """What the analyses look at, as `run.open_run` would open it."""

    def opened(num_envs: int, *look: str) -> World:
        options = experiment.options | ({"look": look[0]} if look else {})
        return open_world(experiment.world, num_envs, image_size=experiment.image_size, **options)

    heads = {
        name: checkpoints.load_head(run_folder, name, model)
        for name in checkpoints.head_names(run_folder)
    }
    told = (opened, tuple(metrics), experiment.planning, heads, experiment.recipe)
    return Run(model, episodes, split["train"], split["heldout"], *told, path=run_folder)


def _through_door(world: World, evaluation: Evaluation) -> np.ndarray:
    """(n,) bool: do start and goal of a pair lie in different rooms?"""
    starts, goals = (
        world.regions(states) for states in (evaluation.pairs.starts, evaluation.pairs.goals)
    )
    assert starts is not None
    assert goals is not None
    return starts != goals


# ------------------------------------------------------------------------------------------- result


def _success(evaluation: Evaluation, door: np.ndarray, spec: WorldSpec) -> dict[str, Any]:
    """All that the evaluation says, under the names of result.json."""
    floors = [policy for policy in evaluation.success_steps if policy != AGENT]
    behind = door & evaluation.pairs.paper
    behind_door = dataclasses.replace(
        evaluation,
        pairs=evaluation.pairs[behind],
        success_steps={policy: steps[behind] for policy, steps in evaluation.success_steps.items()},
    )
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
        "through_door": {_key(p): _plain(behind_door.score(p)) for p in (AGENT, *floors)}
        if behind.any()
        else None,
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


def _published() -> dict[str, str]:
    """What the paper reports at its size, in the words of that recipe."""
    paper = recipes.load(PUBLISHED)
    return {"recipe": paper.recipe, "result": paper.expected, "source": paper.source}


def _plain(score: Score) -> dict[str, Any]:
    return {"rate": score.rate, "low": score.low, "high": score.high, "episodes": score.episodes}


def _key(policy: str) -> str:
    return policy.replace("-", "_")
