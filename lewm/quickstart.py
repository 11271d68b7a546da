"""From nothing to an agent that plans, and a page that shows it: collect, train, evaluate, probe, report.

out/
  quickstart.json    what the folder holds, and how long its stages took
  episodes.h5        collected episodes
  run/               the trained world model
  report.html        for people
  result.json        for programs; written last, so that its presence means finished
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lewm import checkpoints, recipes
from lewm.analyses.probing import Probe, Probing
from lewm.animation import View, draw_episode, encode_animation
from lewm.contracts import EnvSpec, Result, World, WorldModel
from lewm.data import Episodes
from lewm.evaluation import AGENT, Evaluation, Recording, Score, evaluate, record_episodes
from lewm.files import write_atomically
from lewm.recipes import Experiment
from lewm.report import Clip, draw_panels, render
from lewm.reproduction import (
    Book,
    Report,
    collect_episodes,
    facts,
    fit_planning,
    open_recipe_world,
    seeded,
    train_model,
)
from lewm.stats import bootstrap
from lewm.subject import Subject
from lewm.tasks import Protocol

__all__ = ["Report", "run"]

RECIPE, PUBLISHED = "two-room-tiny", "two-room-paper"
PAIRS, OTHER_ROOM_PAIRS = 200, 100
SHORT_EPISODES, SHORT_UPDATES, SHORT_FIT_UPDATES, SHORT_PAIRS = 100, 40, 200, 100

CLIPS, THROUGH_DOOR_CLIPS = 6, 3


def run(out: Path | str, seed: int = 0, short: bool = False, report: Report = lambda *_: None) -> dict[str, Any]:
    """Do everything that is not done yet in `out`, and return what `result.json` then holds.

    Args:
        out: folder. One that was interrupted is continued, a finished one is left alone and its result returned.
        seed: of data, weights, pairs, search and probe.
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
        return checkpoints.read_json(out / "result.json")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    experiment = _experiment(seed, short)

    with book.timed("collect"):
        episodes = collect_episodes(experiment, out / "episodes.h5", report)
    with book.timed("train"):
        run_folder = train_model(experiment, episodes.path, out / "run", report)
        metrics = [json.loads(line) for line in (run_folder / checkpoints.METRICS).read_text().splitlines()]
        trained = checkpoints.read_json(run_folder / checkpoints.EXPERIMENT)
        split = trained["split"]
        model = checkpoints.load(run_folder, device)
    with book.timed("fit"):
        recipe = experiment
        experiment = dataclasses.replace(recipe, planning=fit_planning(recipe, model, episodes, split, run_folder, report))
    world = open_recipe_world(experiment, experiment.together)
    with book.timed("evaluate"):
        protocol = Protocol.along(episodes=SHORT_PAIRS if short else PAIRS, seed=seed)
        evaluation = _evaluate(experiment, model, world, episodes, split["heldout"], protocol, report)
        other_room = None
        if not short:
            protocol = Protocol.to_other_room(OTHER_ROOM_PAIRS, seed)
            other_room = _evaluate(experiment, model, world, episodes, split["heldout"], protocol, report)
    with book.timed("probe"):
        report("probe", 0, 1, "", "")
        probing = Probing(seed=seed).run(Subject(model, episodes, split["train"], split["heldout"]))
        report("probe", 1, 1, ", ".join(f"r of {n} {s['r']:.4f}" for n, s in probing.values["variables"].items()), "")
    with book.timed("report"):
        door = _through_door(world, evaluation)
        clips = _clips(experiment, model, episodes, evaluation, door, probing, report)
        result = {
            **_success(evaluation, door, world.spec),
            "other_room": None if other_room is None else _other_room(other_room),
            "published": _published(),
            "probe_r": {name: scores["r"] for name, scores in probing.values["variables"].items()},
            "probe": probing.values["variables"],
            **facts(recipe, model, episodes, trained),
            "alarm": metrics[-1].get("alarm", ""),
            "seed": seed,
            "short": short,
            "resumed": book.resumed,
            "command": f"lewm quickstart --out {shlex.quote(str(out))} --seed {seed}{' --short' if short else ''}",
        }
        panels = draw_panels(result, metrics, probing)
    result["seconds"] = book.seconds
    page = render(result, metrics, probing, panels, clips, shlex.quote(str(out)))
    write_atomically(out / "report.html", page.encode())
    checkpoints.write_json(out / "result.json", result)
    report("report", CLIPS, CLIPS, "", "")
    episodes.close()
    return result


# ------------------------------------------------------------------------------------------------------------ stages


def _experiment(seed: int, short: bool) -> Experiment:
    recipe = seeded(recipes.load(RECIPE), seed)
    if not short:
        return recipe
    collection = dataclasses.replace(recipe.collection, episodes=min(SHORT_EPISODES, recipe.collection.episodes))
    training = dataclasses.replace(recipe.training, updates=SHORT_UPDATES)
    fitting = dataclasses.replace(recipe.fitting, updates=SHORT_FIT_UPDATES)
    return dataclasses.replace(recipe, collection=collection, training=training, fitting=fitting)


def _evaluate(
    experiment: Experiment,
    model: WorldModel,
    world: World,
    episodes: Episodes,
    heldout: list[int],
    protocol: Protocol,
    report: Report,
) -> Evaluation:
    def progress(attempt: str, done: int, total: int) -> None:
        stages = ("other room", "its floors") if protocol.across else ("evaluate", "floors")
        planning = attempt.endswith(AGENT)  # floors plan nothing: one clock cannot foretell both
        report(stages[0 if planning else 1], done, total, attempt, "")

    return evaluate(model, experiment.planning, world, episodes, heldout, protocol, progress=progress)


def _clips(
    experiment: Experiment,
    model: WorldModel,
    episodes: Episodes,
    evaluation: Evaluation,
    door: np.ndarray,
    probing: Result,
    report: Report,
) -> list[Clip]:
    chosen = evaluation.pairs[_worth_seeing(evaluation.success_steps[AGENT], door)]
    world = open_recipe_world(experiment, len(chosen))
    spec = world.spec
    assert spec.picture_extent is not None
    assert spec.tolerance is not None
    view = View(Probe.of(probing).predict, spec.picture_extent, spec.tolerance)
    clips: list[Clip] = []
    for recording in record_episodes(model, experiment.planning, world, episodes, chosen, evaluation.protocol):
        report("report", len(clips), CLIPS, "drawing planned episodes", "")
        clips.append(_clip(recording, world, evaluation.protocol.budget, view))
    return clips


def _clip(recording: Recording, world: World, budget: int, view: View) -> Clip:
    frames = draw_episode(recording, budget, view)
    rooms = world.regions(np.stack([recording.states[0], recording.goal_state]))
    where = "through the door" if rooms is not None and rooms[0] != rooms[1] else "within one room"
    solved, steps = recording.success_step is not None, len(recording.actions)
    caption = f"{where}, {steps} steps" if solved else f"{where}, {steps} steps were not enough"
    return Clip(caption, solved, encode_animation(frames, ".webp"), encode_animation(frames[-1:], ".webp"))


def _worth_seeing(steps: np.ndarray, door: np.ndarray) -> np.ndarray:
    """Places of the pairs to draw: by rule and in the order of the evaluation, so that nobody picks the pretty ones."""
    missed = np.flatnonzero(steps < 0)[:1]
    through = np.flatnonzero((steps > 0) & door)[:THROUGH_DOOR_CLIPS]
    within = np.flatnonzero((steps > 0) & ~door)[: CLIPS - len(missed) - len(through)]
    chosen = np.concatenate([through, within, missed])
    others = np.setdiff1d(np.arange(len(steps)), chosen)[: CLIPS - len(chosen)]
    return np.concatenate([chosen, others])


def _through_door(world: World, evaluation: Evaluation) -> np.ndarray:
    """(n,) bool: do start and goal of a pair lie in different rooms?"""
    starts, goals = (world.regions(states) for states in (evaluation.pairs.starts, evaluation.pairs.goals))
    assert starts is not None
    assert goals is not None
    return starts != goals


# ------------------------------------------------------------------------------------------------------------ result


def _success(evaluation: Evaluation, door: np.ndarray, spec: EnvSpec) -> dict[str, Any]:
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
            _key(floor): {**_plain(evaluation.score(floor)), "strict": _plain(evaluation.score(floor, strict=True))}
            for floor in floors
        },
        "through_door": {_key(p): _plain(behind_door.score(p)) for p in (AGENT, *floors)} if behind.any() else None,
        "solved_at_start": evaluation.solved_at_start,
        "median_steps": evaluation.score(strict=True).median_steps,
        "seconds_per_plan": evaluation.effort.seconds_per_plan,
        "predictor_calls_per_plan": evaluation.effort.predictor_calls_per_plan,
        "planned_together": evaluation.batch,
        "protocol": dataclasses.asdict(evaluation.protocol),
        "tolerance": {"value": spec.tolerance, "of": spec.picture_extent, "unit": spec.state_units[0]},
    }


def _over_episodes(evaluation: Evaluation, strict: bool = False) -> dict[str, float]:
    """95% interval of the agent's rate from a bootstrap over episodes: many pairs are overlapping parts of one walk."""
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
