"""Train, fit and evaluate in a call each: a recipe or a model, a file, a folder."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, overload

import lewm
from lewm import registry
from lewm.contracts import ModelConfig, Report, silent
from lewm.data.episodes import Episodes, check_fits
from lewm.evaluation.evaluate import FLOORS
from lewm.evaluation.evaluate import evaluate as play
from lewm.evaluation.outcome import Evaluation
from lewm.evaluation.tasks import Task
from lewm.experiments import recipes
from lewm.experiments.experiment import Experiment
from lewm.planning.changes import PlanningChanges
from lewm.planning.config import describe_planning
from lewm.runs.run import Run, open_run
from lewm.training.config import TrainingConfig
from lewm.training.fit import FittingConfig
from lewm.training.fit import fit_heads as fit
from lewm.training.train import train as descend
from lewm.worlds.kit.gym import PREFIX
from lewm.worlds.kit.opening import open_world

__all__ = ["evaluate", "fit_heads", "recipe", "train", "world_of"]


def recipe(name: str) -> Experiment:
    """The settings of a recipe, such as "two-room-tiny"; an unknown name is answered with the
    nearest."""
    return recipes.load(name)


@overload
def train(
    recipe: str | Experiment | ModelConfig,
    data: Path | str,
    out: Path | str,
    *,
    world: str | None = None,
    experiment: Mapping[str, Any] | None = None,
    report: Report = ...,
    **changes: Any,
) -> Path: ...
@overload
def train(
    recipe: ModelConfig,
    config: TrainingConfig,
    data: Path | str,
    out: Path | str,
    *,
    world: str | None = None,
    experiment: Mapping[str, Any] | None = None,
    report: Report = ...,
    **changes: Any,
) -> Path: ...
def train(
    recipe: str | Experiment | ModelConfig,
    *where: Any,
    world: str | None = None,
    experiment: Mapping[str, Any] | None = None,
    report: Report = silent,
    **changes: Any,
) -> Path:
    """Train a model on an episode file and leave a run folder.

    `train("two-room-tiny", "episodes.h5", "runs/first", updates=400)`. The same call continues an
    interrupted training.

    Args:
        recipe: name of one, or one, or a model's config, such as `LeWMConfig.tiny()`.
        where: `data` and `out`, the episode file and the run folder, in this order or by name.
            Between a model's config and them there may be a `TrainingConfig`.
        world: that the data are of, where the file does not say.
        experiment: what else to record, JSON-ready.
        report: called after each update.
        changes: to settings of the training or of the model, by name: `learning_rate=1e-3`,
            `context=2`.

    Returns:
        The run folder.

    Raises:
        ValueError: a setting that there is not, or data that do not fit.
        KeyboardInterrupt: Ctrl-C, once the update in progress is saved.
    """
    model: ModelConfig
    training, places = TrainingConfig(), list(where)
    if places and isinstance(places[0], TrainingConfig):
        training = places.pop(0)
    places += [changes.pop(name) for name in ("data", "out") if name in changes]
    if len(places) != 2:
        raise ValueError(
            f"expected an episode file and a run folder, got {places}. For instance "
            'lewm.train("two-room-tiny", "episodes.h5", "runs/first").'
        )
    origin: dict[str, Any] = {"lewm": lewm.__version__}
    known_recipe = recipes.load(recipe) if isinstance(recipe, str) else recipe
    if isinstance(known_recipe, Experiment):
        model, training = known_recipe.model, known_recipe.training
        origin |= {
            "recipe": known_recipe.recipe,
            "planning": describe_planning(known_recipe.planning),
        }
        origin["world"] = world_of(places[0], known_recipe.world, world)
    else:
        model = known_recipe
        origin["world"] = world_of(places[0], None, world)
    model, training = _changed(model, training, changes)
    data, out = map(Path, places)
    return descend(
        model, training, data, out, experiment={**origin, **(experiment or {})}, report=report
    )


def fit_heads(
    run: Run | Path | str,
    names: Sequence[str] | None = None,
    data: Path | str | None = None,
    report: Report = silent,
    **changes: Any,
) -> dict[str, dict[str, float]]:
    """Fit heads to a run's world model and store them in it, see `training.fit.fit_heads`.

    Args:
        run: its folder, or the opened run. One that was opened before does not have the new heads.
        names: of the heads; None takes all there are.
        data: episode file; by default the one that the run was trained on.
        changes: to `FittingConfig`: `updates=500`.

    Returns:
        Per head its numbers.
    """
    opened = _opened(run, data)
    for name in changes:
        registry.choose("setting", name, [field.name for field in fields(FittingConfig)])
    assert opened.path is not None, "heads are stored in the run's folder"
    told = (opened.model, opened.episodes, opened.fit_ids, opened.test_ids)
    return fit(opened.path, *told, names, FittingConfig(**changes), report)


def evaluate(
    run: Run | Path | str,
    task: Task = Task(),  # noqa: B008  frozen
    data: Path | str | None = None,
    together: int = 16,
    floors: Sequence[str] = FLOORS,
    report: Report = silent,
    **changes: Any,
) -> Evaluation:
    """Play one task with a run's agent, and with the floors, on episodes that it never saw.

    Args:
        run: its folder, or the opened run.
        task: starts and goals, and how many steps are allowed.
        data: episode file; by default the one that the run was trained on.
        together: environments stepped and planned side by side; changes the speed and nothing else.
        floors: policies without a model to play the same pairs.
        changes: to how the run plans, as for `Run.agent`.

    Raises:
        Unavailable: the task cannot be set, as in a world without goals; what to add is said.
        ValueError: the run has no episodes, or its world cannot be opened.
    """
    opened = _opened(run, data)
    config = opened.changed(PlanningChanges.named(**changes))
    opened.require_episodes(0, 1, "a task")
    world = opened.world(min(together, task.episodes))
    return play(opened.model, config, world, opened.episodes, opened.heldout, task, floors, report)


def world_of(
    path: Path | str, of_recipe: str | None, stated: str | None, image_size: int | None = None
) -> str | None:
    """Refuse episodes that a training could not use, before anything is begun.

    Args:
        path: their file.
        of_recipe: world that the recipe is for. Episodes of a world that is no plug-in, for which
            there is no recipe, are trained on by any.
        stated: world that the user says they are of.
        image_size: that they must have; None is any.

    Returns:
        The world that they are of, None where nobody says.
    """
    if stated is not None and not stated.startswith(PREFIX):
        stated = registry.choose("world", stated.replace("_", "-"), registry.names("worlds"))
    with Episodes.open(path) as episodes:
        found = episodes.provenance.world
        own = found is not None and found not in registry.names("worlds")
        wanted = stated or (found if own else of_recipe)
        if None not in (found, wanted) and found != wanted:
            cure = f"Choose a recipe for '{found}', or pass --world {found}"
            raise ValueError(
                f"{path}: expected episodes of world '{wanted}', got some of '{found}'. {cure}."
            )
        action_dim = None
        world = found or stated
        if world and world in registry.names("worlds"):
            # Where a world is not installed, or cannot draw, its data can still be trained on.
            with contextlib.suppress(ImportError):
                size = image_size or episodes.image_size
                action_dim = len(open_world(world, 1, image_size=size).spec.action_low)
        check_fits(episodes, image_size, action_dim)
        return world


def _opened(run: Run | Path | str, data: Path | str | None) -> Run:
    if not isinstance(run, Run):
        return open_run(run, data)
    if data is not None:
        raise ValueError("expected data together with a run's folder, got an opened run. Open it.")
    return run


def _changed(
    model: ModelConfig, training: TrainingConfig, changes: dict[str, Any]
) -> tuple[ModelConfig, TrainingConfig]:
    """The settings with changes, each in the config that has a field of its name."""
    known = [{field.name for field in fields(config)} for config in (training, model)]
    for name in changes:
        registry.choose("setting of the training or the model", name, sorted(known[0] | known[1]))
    return (
        replace(model, **{n: v for n, v in changes.items() if n not in known[0]}),
        replace(training, **{n: v for n, v in changes.items() if n in known[0]}),
    )
