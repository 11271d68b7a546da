"""A trained run, opened for use: its model, the episodes it never saw, the world they are of, and how its recipe plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from lewm import checkpoints, recipes, registry
from lewm.collection import open_world
from lewm.contracts import World, WorldModel
from lewm.data import Episodes, check_fits
from lewm.fitting import attach, heads_of
from lewm.planning import PlanningConfig
from lewm.subject import Subject

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
            the episodes that it was trained on, or all where there are no such, or where those numbers are unknown too. What
            its heads were fitted to counts as trained on.
        own_data: whether the file holds the very stream of episodes that the run was trained on; None where that is unknown,
            as it is of every imported run.
        planning: as the run's recipe has it, or the paper's recipe of an imported run's world; the paper's defaults where
            there is no such recipe here. What needs heads has them, where the run does.
        heads: small networks that were fitted to the model's latents, by name, frozen.
        lacks: heads that the recipe's way to plan asks for and the run does not have; `planning` is then a search that does
            without, and whoever shows results says so.
    """

    path: Path
    experiment: Mapping[str, Any]
    model: WorldModel
    episodes: Episodes
    heldout: tuple[int, ...]
    own_data: bool | None
    planning: PlanningConfig
    heads: Mapping[str, nn.Module] = field(default_factory=dict)
    lacks: tuple[str, ...] = ()

    @property
    def remark(self) -> str:
        """Why this run does not plan as its recipe says, and the remedy; "" if it does."""
        if not self.lacks:
            return ""
        return (
            f"{self.path} has no {' and '.join(repr(name) for name in self.lacks)}, with which its recipe plans, so this is a "
            f"plain search. For the recipe's planner: lewm fit {self.path}"
        )

    def world(self, num_envs: int, look: str | None = None) -> World:
        """Open the world that the episodes are of, in their look, or another one, and their size.

        Raises:
            ValueError: neither the file nor the run says which world that is, or it is unknown here.
            ImportError: the world needs a package that is missing.
        """
        look = look or self.episodes.provenance.look
        options = {} if look in (None, "published") else {"look": look}
        return open_world(self.world_name, num_envs, image_size=self.model.spec.image_size, **options)

    @property
    def subject(self) -> Subject:
        """What analyses look at."""
        lines = checkpoints.metrics(self.path)
        opened = self.world if self.experiment.get("world") or self.episodes.provenance.world else None
        recipe = str(self.experiment.get("recipe", ""))
        return Subject(self.model, self.episodes, *self.for_probes, opened, tuple(lines), self.planning, self.heads, recipe)

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
        solver: the search, by name. Another one than the recipe's begins from its own defaults, and is planned with as in the
            paper: five blocks, all of them executed.
        objective: what a plan is for, by name; likewise.
        search: with which a solver that proposes a plan improves on it, by name; likewise.
        guarded: the search starts cold and competes with the proposal.
        countdown: env steps in which a proposal is to reach the goal; without it they are estimated.
        candidates: action sequences scored per iteration.
        elites: how many of the cheapest shape the next iteration.
        iterations: of the search.
        stop_spread: std of the search below which it is over.
        intermediate: weight of the distance to the goal before the end of the plan.
        horizon: length of a plan in action blocks.
        receding: blocks that are executed before the next plan.
        hold_actions: hold each action for its whole block.
        warm_start: begin from what is left of the previous plan.
        precision: of the rollouts that rank candidates.
    """

    solver: str | None = None
    objective: str | None = None
    search: str | None = None
    guarded: bool | None = None
    countdown: int | None = None
    candidates: int | None = None
    elites: int | None = None
    iterations: int | None = None
    stop_spread: float | None = None
    intermediate: float | None = None
    horizon: int | None = None
    receding: int | None = None
    hold_actions: bool | None = None
    warm_start: bool | None = None
    precision: str | None = None

    def apply(self, config: PlanningConfig, heads: Mapping[str, nn.Module] = MappingProxyType({})) -> PlanningConfig:
        """Return the changed settings.

        Args:
            heads: of the run, for a solver or an objective that is chosen here and needs them.

        Raises:
            ValueError: unknown names, values out of range, or a setting that this solver and objective do not have.
        """
        if self.solver is not None and self.solver.replace("_", "-") != _plugin_name(config.solver):
            config = PlanningConfig(config.objective, config.solver)  # how often to replan suited the other one
        parts = {
            "solver": _chosen("solvers", self.solver, config.solver),
            "objective": _chosen("objectives", self.objective, config.objective),
        }
        present = getattr(parts["solver"], "search", None)
        if search := _chosen("solvers", self.search, present):
            if not hasattr(parts["solver"], "search"):
                got = _plugin_name(parts["solver"])
                raise ValueError(f"expected a solver that takes a search, got '{got}'. Leave --search out.")
            parts["search"] = search  # what the solver itself does not have is meant for its search
        changes: dict[str, dict[str, Any]] = {"planning": {}, **{kind: {} for kind in parts}}
        for name, value in vars(self).items():
            if value is None or name in ("solver", "objective", "search"):
                continue
            owners = {**parts, "planning": config}
            found = [(owner, f.name) for owner, part in owners.items() for f in fields(part) if f.name in (name, f"num_{name}")]
            if not found:
                kinds = " nor ".join(f"{kind} '{_plugin_name(part)}'" for kind, part in parts.items())
                raise ValueError(f"neither {kinds} has a setting '{name}'. Leave --{name} out, or choose others.")
            owner, setting = found[0]
            changes[owner][setting] = value
        # One `replace` per part: settings that must fit each other, such as candidates and elites, are checked together.
        made = {kind: replace(part, **changes[kind]) for kind, part in parts.items() if kind != "solver"}
        if search:
            changes["solver"]["search"] = made.pop("search")
        made["solver"] = replace(parts["solver"], **changes["solver"])
        return attach(replace(config, **made, **changes["planning"]), heads)


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
    same = _same_data(training, episodes)
    everything = tuple(range(len(episodes)))
    heads = {name: checkpoints.load_head(path, name, model) for name in checkpoints.head_names(path)}
    trained = training.episodes if same is not False else frozenset()
    fitted = [_episodes_of_head(path / checkpoints.HEADS / name / checkpoints.HEAD, episodes) for name in heads]
    heldout = tuple(i for i in everything if i not in trained.union(*fitted))
    if same is None and not heldout:
        heldout = everything
    world = found or learnt
    recipe = f"{world}-paper" if "imported" in experiment else str(experiment.get("recipe", ""))
    planning = attach(_planning_of(recipe), heads)
    lacks = tuple(sorted(heads_of(planning)))
    return Run(path, experiment, model, episodes, heldout, same, recipes.WITHOUT_HEADS if lacks else planning, heads, lacks)


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


def _same_data(training: _Training, episodes: Episodes) -> bool | None:
    """Does a file hold the stream of episodes that something was trained on? None where that is unknown."""
    same = _same_stream(training.provenance, asdict(episodes.provenance))
    if same is None and training.counts == (len(episodes), episodes.steps) and _same_file(episodes.path, training.path):
        return True
    return same


def _episodes_of_head(source: Path, episodes: Episodes) -> frozenset[int]:
    """Those of a file that a head was, or may have been, fitted to."""
    training = _training_of(checkpoints.read_json(source).get("fitted_to", {}), source)
    return frozenset() if _same_data(training, episodes) is False else training.episodes


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
