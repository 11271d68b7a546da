"""A trained run, opened for use: its model, the episodes it never saw, the world they are of, and how its recipe plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from lewm import checkpoints, recipes, registry
from lewm.collection import open_world
from lewm.contracts import World, WorldModel
from lewm.data import Episodes, check_fits
from lewm.planning import PlanningConfig

__all__ = ["PlanningChanges", "Run", "open_run"]


@dataclass(frozen=True)
class Run:
    """What evaluation and pictures need of a run.

    Attributes:
        path: its folder.
        experiment: what training, or the import of published weights, recorded of it.
        model: from the newest checkpoint, in evaluation mode.
        episodes: an opened episode file.
        heldout: those of its episodes that this model was not trained on; of unknown origin, those with other numbers than
            the episodes that it was trained on, or all where there are no such, or where those numbers are unknown too.
        own_data: whether the file holds the very stream of episodes that the run was trained on; None where that is unknown,
            as it is of every imported run.
        planning: as the run's recipe has it, or the paper's recipe of an imported run's world; the paper's defaults where
            there is no such recipe here.
    """

    path: Path
    experiment: Mapping[str, Any]
    model: WorldModel
    episodes: Episodes
    heldout: tuple[int, ...]
    own_data: bool | None
    planning: PlanningConfig

    def world(self, num_envs: int) -> World:
        """Open the world that the episodes are of, in their look and size.

        Raises:
            ValueError: neither the file nor the run says which world that is, or it is unknown here.
            ImportError: the world needs a package that is missing.
        """
        look = self.episodes.provenance.look
        options = {} if look in (None, "published") else {"look": look}
        return open_world(self.world_name, num_envs, image_size=self.model.spec.image_size, **options)

    @property
    def world_name(self) -> str:
        """As the episode file has it, or else the run."""
        name = self.episodes.provenance.world or self.experiment.get("world")
        if not name:
            raise ValueError(
                f"{self.episodes.path}: expected the file or the run to name its world, got neither. Train with --world NAME, "
                f"or give a file that `lewm collect` made. Known: {', '.join(registry.names('envs'))}."
            )
        return str(name)

    @property
    def for_probes(self) -> tuple[list[int], list[int]]:
        """Episodes to fit a probe on and others to test it on: training's split, or halves of data that it never saw."""
        seen = [i for i in range(len(self.episodes)) if i not in set(self.heldout)]
        half = len(self.heldout) // 2
        return (seen, list(self.heldout)) if seen else (list(self.heldout[:half]), list(self.heldout[half:]))


@dataclass(frozen=True)
class PlanningChanges:
    """Changes to the planning of the run's recipe; what is not given stays.

    Attributes:
        solver: the search, by name. Another one than the recipe's begins from its own defaults.
        objective: what a plan is for, by name; likewise.
        candidates: action sequences scored per iteration.
        elites: how many of the cheapest shape the next iteration.
        iterations: of the search.
        intermediate: weight of the distance to the goal before the end of the plan.
        horizon: length of a plan in action blocks.
        receding: blocks that are executed before the next plan.
        hold_actions: hold each action for its whole block.
        warm_start: begin from what is left of the previous plan.
    """

    solver: str | None = None
    objective: str | None = None
    candidates: int | None = None
    elites: int | None = None
    iterations: int | None = None
    intermediate: float | None = None
    horizon: int | None = None
    receding: int | None = None
    hold_actions: bool | None = None
    warm_start: bool | None = None

    def apply(self, config: PlanningConfig) -> PlanningConfig:
        """Return the changed settings.

        Raises:
            ValueError: unknown names, values out of range, or a setting that this solver and objective do not have.
        """
        parts = {
            "solver": _chosen("solvers", self.solver, config.solver),
            "objective": _chosen("objectives", self.objective, config.objective),
        }
        changes: dict[str, dict[str, Any]] = {"solver": {}, "objective": {}, "planning": {}}
        for name, value in vars(self).items():
            if value is None or name in parts:
                continue
            owners = {**parts, "planning": config}
            found = [(owner, f.name) for owner, part in owners.items() for f in fields(part) if f.name in (name, f"num_{name}")]
            if not found:
                kinds = " nor ".join(f"{kind} '{_plugin_name(part)}'" for kind, part in parts.items())
                raise ValueError(f"neither {kinds} has a setting '{name}'. Leave --planning.{name} out, or choose others.")
            owner, setting = found[0]
            changes[owner][setting] = value
        # One `replace` per part: settings that must fit each other, such as candidates and elites, are checked together.
        made = {kind: replace(part, **changes[kind]) for kind, part in parts.items()}
        return replace(config, **made, **changes["planning"])


def open_run(path: Path | str, data: Path | str | None = None, device: str = "auto") -> Run:
    """Open a run folder, and the episodes to use it with.

    Args:
        data: episode file; by default the one that the run was trained on, or imported with.
        device: where the model goes; "auto" takes a CUDA device where there is one.

    Raises:
        ValueError: not a run, damaged, without its episodes, or episodes that do not fit the model; the file is named.
    """
    path = Path(path)
    experiment = checkpoints.read_json(path / checkpoints.EXPERIMENT)
    training = _training_of(experiment, path / checkpoints.EXPERIMENT)
    model = checkpoints.load(path, ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    file = data or training.path
    if file is None or (data is None and not Path(file).is_file()):
        got = "none" if file is None else "no such file"
        raise ValueError(
            f"{file or path}: expected the episodes that {path} was trained on, got {got}. Pass theirs with --data FILE."
        )
    episodes = Episodes.open(file)
    check_fits(episodes, model.spec.image_size, model.spec.statistics.action_dim)
    learnt, found = experiment.get("world"), episodes.provenance.world
    if None not in (learnt, found) and learnt != found:
        cure = "Pass episodes of the run's world with --data FILE"
        raise ValueError(f"{file}: expected episodes of world '{learnt}', as {path} learnt it, got some of '{found}'. {cure}.")
    same = _same_stream(training.provenance, asdict(episodes.provenance))
    if same is None and training.counts == (len(episodes), episodes.steps) and _same_file(episodes.path, training.path):
        same = True
    everything = tuple(range(len(episodes)))
    heldout = everything if same is False else tuple(i for i in everything if i not in training.episodes)
    if same is None and not heldout:
        heldout = everything
    world = found or learnt
    recipe = f"{world}-paper" if "imported" in experiment else str(experiment.get("recipe", ""))
    return Run(path, experiment, model, episodes, heldout, same, _planning_of(recipe))


@dataclass(frozen=True)
class _Training:
    """What is known of the episodes that a run was trained on.

    Attributes:
        path: their file; of an imported run the one it was imported with, which need not be what it was trained on.
        episodes: their numbers.
        provenance: of the file.
        counts: its episodes and rows.
    """

    path: Path | None
    episodes: frozenset[int] = frozenset()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    counts: tuple[int, int] | None = None


def _training_of(experiment: Mapping[str, Any], source: Path) -> _Training:
    try:
        path = Path(experiment["data_path"]) if experiment["data_path"] is not None else None
        if "imported" in experiment:
            return _Training(path)
        known = experiment["data"]
        trained = frozenset(int(i) for i in experiment["split"]["train"])
        return _Training(path, trained, dict(known["provenance"]), (int(known["episodes"]), int(known["steps"])))
    except (KeyError, TypeError, ValueError) as error:
        expected = "the split and the data that a training records"
        raise ValueError(f"{source} is damaged: expected {expected}, got {error!r}. Restore it, or train again.") from None


def _same_file(path: Path, other: Path | None) -> bool:
    return other is not None and path.resolve() == other.resolve()


def _same_stream(own: Mapping[str, Any], other: Mapping[str, Any]) -> bool | None:
    """Do two files hold one stream of episodes? None where one of them does not say.

    How the world looked, or which version drew it, is not asked: pictures that differ a little, or options that are only
    spelt otherwise, must not make what was trained on count as unseen.
    """
    pairs = [(own.get(name), other.get(name)) for name in ("world", "policy", "seed")]
    if any(a != b for a, b in pairs if None not in (a, b)):
        return False
    return None if any(None in pair for pair in pairs) else True


def _planning_of(recipe: str) -> PlanningConfig:
    if recipe in recipes.RECIPES:
        return recipes.load(recipe).planning
    return PlanningConfig(registry.load("objectives", "l2")(), registry.load("solvers", "cem")())


def _chosen(kind: str, name: str | None, present: Any) -> Any:
    if name is None or name.replace("_", "-") == _plugin_name(present):
        return present
    return registry.load(kind, name)()


def _plugin_name(part: Any) -> str:
    return type(part).__module__.rpartition(".")[2].replace("_", "-")
