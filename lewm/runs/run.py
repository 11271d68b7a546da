"""A trained run, opened for use: its model, the episodes it never saw, the world they are of, and
how its recipe plans."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lewm import registry
from lewm.contracts import Report, Settings, TrainableModel, World, WorldSpec
from lewm.data.episodes import Episodes, check_fits
from lewm.devices import device_named
from lewm.files import parse_json, read_json
from lewm.models.nn.frozen_encoders import frozen_parts
from lewm.planning.agent import Agent
from lewm.planning.changes import PlanningChanges
from lewm.planning.config import PlanningConfig, attach, build_planning, heads_of, plain_search
from lewm.runs import checkpoints
from lewm.runs.heads import head_names, load_head
from lewm.runs.results import Result
from lewm.worlds.kit.gym import Env
from lewm.worlds.kit.opening import can_open, open_world

__all__ = ["Analysis", "Missing", "Run", "Unsupported", "open_run"]


class Unsupported(ValueError):
    """The run or its data do not hold what an analysis needs; the message says what, and what would
    help."""


class Missing:
    """Stands where episodes should be, or their numbers. Whatever is asked of it is answered with a
    ValueError that says what is missing."""

    def __init__(self, why: str) -> None:
        self._why = why

    def _refuse(self, *_: Any) -> NoReturn:
        raise ValueError(self._why)

    __len__ = __iter__ = __getitem__ = __contains__ = _refuse

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):  # a protocol of Python's, which may do without
            raise AttributeError(name)
        self._refuse()


@dataclass
class Seen:
    """Latents of a run's frames, kept while it is open: what one analysis has encoded another need
    not. What is encoded is encoded together with the same frames, so it is equal to the bit.

    Attributes:
        paths: number of an episode -> (L, D), its frames one block apart.
        frames: rows of the file, as bytes -> (F, D) float64.
        mark: of the model that encoded them.
    """

    paths: dict[int, Tensor] = field(default_factory=dict)
    frames: dict[bytes, np.ndarray] = field(default_factory=dict)
    mark: Any = None


def _mark(model: object) -> Any:
    """What tells a model from the same one with other numbers in it.

    Its very bytes are summed up. PyTorch's counters of changes would not do: `.data` evades them.

    Cost: 20 ms of one core for 18 M parameters, some times an analysis.
    """
    if not isinstance(model, nn.Module):
        return object()  # nobody can tell: equal to nothing
    mark = 0
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        mark = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), mark)
        values = tensor.detach().cpu().contiguous().reshape(-1)
        mark = zlib.crc32(values.view(torch.uint8).numpy().data, mark)
    return id(model), mark


@dataclass(frozen=True)
class Run:
    """A frozen model, episodes that it learnt from and others, and what else is known of how it was
    made.

    The first nine fields are what analyses look at; they hold for a model without a folder too.

    Attributes:
        model: from the newest checkpoint, in evaluation mode; whoever is given a run leaves it as
            it is, bit by bit.
        episodes: an opened episode file. Where it is gone this and the numbers of its episodes are
            `Missing`: the model can be used, and what needs episodes says so.
        fit_ids: episodes to fit read-outs on: those that the model was trained on, or half of data
            that it never saw.
        test_ids: episodes to measure on, which the model never saw.
        open_world: number of environments -> the world that the episodes are of, in their look;
            with a second argument, in that look. None where the world is not known or cannot be
            opened here.
        metrics: lines of metrics.jsonl; empty where there are none, as of an imported run.
        planning: as the run stores it, which is how its recipe plans, or the paper's recipe for an
            imported run's world. A run that stores none plans with the paper's defaults. What needs
            heads has them, where the run does. None where nothing is known.
        heads: small networks that were fitted to the model's latents, by name, frozen.
        recipe: by which the run was made, or "".
        path: its folder.
        experiment: what training, or the import of published weights, recorded of it.
        heldout: those of its episodes that this model was not trained on; of unknown origin, those
            with other numbers than the episodes that it was trained on, or all where there are no
            such, or where those numbers are unknown too. What its heads were fitted to counts as
            trained on.
        own_data: whether the file holds the very stream of episodes that the run was trained on;
            None where that is unknown, as it is of every imported run.
        lacks: heads that the recipe's way to plan asks for and the run does not have; `planning` is
            then a search that does without, and whoever shows results says so.
    """

    model: TrainableModel
    episodes: Episodes
    fit_ids: Sequence[int]
    test_ids: Sequence[int]
    open_world: Callable[..., World] | None = None
    metrics: Sequence[Mapping[str, Any]] = ()
    planning: PlanningConfig | None = None
    heads: Mapping[str, nn.Module] = field(default_factory=dict)
    recipe: str = ""
    path: Path | None = None
    experiment: Mapping[str, Any] = field(default_factory=dict)
    heldout: tuple[int, ...] = ()
    own_data: bool | None = None
    lacks: tuple[str, ...] = ()
    _seen: Seen = field(default_factory=Seen, init=False, repr=False, compare=False)

    @property
    def seen(self) -> Seen:
        """What was encoded of the episodes since it was opened, by the model as it is now: if
        somebody changed a number of it, nothing was."""
        mark = _mark(self.model)
        if mark != self._seen.mark:
            self._seen.paths, self._seen.frames, self._seen.mark = {}, {}, mark
        return self._seen

    @property
    def remark(self) -> str:
        """Why this run does not plan as its recipe says, and the remedy; "" if it does."""
        if not self.lacks:
            return ""
        return (
            f"{self.path} has no {' and '.join(repr(name) for name in self.lacks)}, with which "
            "its recipe plans, so this is a plain search. For the recipe's planner: lewm fit "
            f"{self.path}"
        )

    def world(self, num_envs: int = 1, look: str | None = None) -> World:
        """Open the world that the episodes are of, in their look, or another one, and their size.

        Raises:
            ValueError: neither the file nor the run says which world that is, or its name does not
                say how to open it, as the name of a class.
            ImportError: the world needs a package that is missing.
        """
        if self.open_world is None:
            raise ValueError(
                f"{self.path}: expected a world that can be opened by its name, got "
                f"'{self.world_name}'. If it is a class or a function of yours, open the run with "
                f"it: lewm.open_run({str(self.path)!r}, world=MyEnv). Known: "
                f"{', '.join(registry.names('worlds'))}."
            )
        return self.open_world(num_envs, *([] if look is None else [look]))

    @property
    def world_name(self) -> str:
        """As the episode file has it, or else the run."""
        name = _provenance(self.episodes, self.experiment).get("world")
        if not (name := name or self.experiment.get("world")):
            file = self.path if isinstance(self.episodes, Missing) else self.episodes.path
            raise ValueError(
                f"{file}: expected the file or the run to name its world, got "
                "neither. Train with --world NAME, or give a file that `lewm collect` made. "
                f"Known: {', '.join(registry.names('worlds'))}."
            )
        return str(name)

    def changed(self, changes: PlanningChanges) -> PlanningConfig:
        """Return how the run plans, with changes; errors are those of `PlanningChanges.apply`."""
        assert self.planning is not None, "an opened run knows how it plans"
        return changes.apply(self.planning, self.heads)

    def agent(
        self,
        num_envs: int = 1,
        seed: int = 0,
        world: str | Callable[..., Env] | WorldSpec | None = None,
        **changes: Any,
    ) -> Agent:
        """Return an agent that plans as this run does: `act(pixels, goal_pixels)` gives actions.

        Args:
            num_envs: environments that are stepped together.
            seed: of the search; environment i draws from (seed, i).
            world: that the agent acts in, as for `open_world`, or what is known of it; by default
                the run's. Its action box bounds the plans.
            changes: to how the run plans, see `PlanningChanges`: `solver="cem"`, `candidates=100`.

        Raises:
            ValueError: a setting that there is not, or a world that is not known, cannot be opened
                or does not fit the model.
        """
        config = self.changed(PlanningChanges.named(**changes))
        if isinstance(world, WorldSpec):
            spec = world
        elif world is None:
            spec = self.world().spec
        else:
            source = _provenance(self.episodes, self.experiment)
            spec = _opener(world, source, self.model.spec.image_size)(1).spec
        seeds = np.random.SeedSequence(seed).generate_state(num_envs)
        return Agent(self.model, config, spec, seeds.tolist())

    def require_episodes(self, fit: int, test: int, why: str) -> None:
        """Refuse data that would give a number without support.

        Args:
            fit, test: the fewest episodes of either side.
            why: what they are for, as in "an interval over episodes".

        Raises:
            Unsupported: there are fewer.
        """
        if len(self.fit_ids) < fit or len(self.test_ids) < test:
            raise Unsupported(
                f"{self.episodes.path}: expected at least {fit} episodes that were trained on and "
                f"{test} held-out ones, for {why}, got {len(self.fit_ids)} and "
                f"{len(self.test_ids)}. Collect more episodes."
            )

    def require_states(self) -> None:
        """Refuse episodes without the true state.

        Raises:
            Unsupported: they have none.
        """
        if not self.episodes.state_names:
            raise Unsupported(
                f"{self.episodes.path}: expected episodes with state columns, got none. Collect "
                "with `lewm collect`, which records them; analyses of latents alone need none."
            )


def open_run(
    path: Path | str,
    data: Path | str | None = None,
    device: str = "auto",
    world: str | Callable[..., Env] | None = None,
) -> Run:
    """Open a run folder, and the episodes to use it with, where they are there.

    Args:
        data: episode file; by default the one that the run was trained on, or imported with. If
            that is gone, the run can be used without; see `Missing`.
        device: where the model goes; "auto" takes a CUDA device where there is one.
        world: that the episodes are of, as for `open_world`; by default what the file or the run
            names. Needed where that is a class or a factory: nothing that a file names is imported.

    Raises:
        ValueError: not a run, damaged, or episodes that do not fit the model; the file is named.
    """
    path, where = Path(path), device_named(device)
    source = path / checkpoints.EXPERIMENT
    experiment = checkpoints.experiment(path)
    training = _training_of(experiment, source)
    model = checkpoints.load(path, where)
    heads = {name: load_head(path, name, model) for name in head_names(path)}
    file = data or training.path
    episodes: Any
    if file is None or (data is None and not Path(file).is_file()):
        got = "none" if file is None else "no such file"
        episodes = Missing(
            f"{file or path}: expected the episodes that {path} was trained on, got {got}. Pass "
            "theirs with --data FILE."
        )
        seen, unseen, heldout, same = episodes, episodes, episodes, None
    else:
        episodes = Episodes.open(file)
        check_fits(episodes, model.spec.image_size, model.spec.statistics.action_dim)
        for part in frozen_parts(model).values():
            part.recall(Path(file))
        _check_world(experiment, episodes, path)
        same = _same_data(training, episodes)
        heldout = _held_out(training, episodes, path, heads)
        seen, unseen = _for_probes(len(episodes), heldout)
    if (stored := experiment.get("planning")) is not None:
        planning = attach(build_planning(stored, source), heads)
    else:
        planning = PlanningConfig(
            registry.load("objectives", "l2")(), registry.load("solvers", "cem")()
        )
    lacks = tuple(sorted(heads_of(planning)))
    provenance = _provenance(episodes, experiment)
    name = provenance.get("world") or experiment.get("world")
    if world is None and name and can_open(str(name)):
        world = str(name)
    return Run(
        model,
        episodes,
        seen,
        unseen,
        open_world=None if world is None else _opener(world, provenance, model.spec.image_size),
        metrics=tuple(checkpoints.metrics(path)),
        planning=plain_search() if lacks else planning,
        heads=heads,
        recipe=str(experiment.get("recipe", "")),
        path=path,
        experiment=experiment,
        heldout=heldout,
        own_data=same,
        lacks=lacks,
    )


def _check_world(experiment: Mapping[str, Any], episodes: Episodes, path: Path) -> None:
    learnt, found = experiment.get("world"), episodes.provenance.world
    if None not in (learnt, found) and learnt != found:
        cure = "Pass episodes of the run's world with --data FILE"
        raise ValueError(
            f"{episodes.path}: expected episodes of world '{learnt}', as {path} learnt it, got "
            f"some of '{found}'. {cure}."
        )


def _held_out(
    training: _Training, episodes: Episodes, path: Path, heads: Iterable[str]
) -> tuple[int, ...]:
    """Episodes that neither the model nor a head of it learnt from, see `Run.heldout`."""
    same = _same_data(training, episodes)
    everything = tuple(range(len(episodes)))
    trained = training.episodes if same is not False else frozenset()
    fitted = [
        _episodes_of_head(path / checkpoints.HEADS / name / checkpoints.HEAD, episodes)
        for name in heads
    ]
    heldout = tuple(i for i in everything if i not in trained.union(*fitted))
    return everything if same is None and not heldout else heldout


def _provenance(episodes: Episodes | Missing, experiment: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is known of the episodes: their file's word, or where that is gone the run's."""
    if isinstance(episodes, Missing):
        return (experiment.get("data") or {}).get("provenance") or {}
    return asdict(episodes.provenance)


def _for_probes(count: int, heldout: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Episodes to fit a probe on and others to test it on: training's split, or halves of data that
    it never saw."""
    seen = [i for i in range(count) if i not in set(heldout)]
    half = len(heldout) // 2
    return (seen, list(heldout)) if seen else (list(heldout[:half]), list(heldout[half:]))


def _opener(
    world: str | Callable[..., Env], provenance: Mapping[str, Any], image_size: int
) -> Callable[..., World]:
    """What opens the world of some episodes, in their look or another one, in a size. One that is
    no plug-in is opened with the options that they were recorded with."""

    def opened(num_envs: int, look: str | None = None) -> World:
        look = look or provenance.get("look")
        options: dict[str, Any] = {} if look in (None, "published") else {"look": look}
        if not isinstance(world, str) or world not in registry.names("worlds"):
            options = _recorded_options(world, provenance) | options
        return open_world(world, num_envs, **{**options, "image_size": image_size})

    return opened


def _recorded_options(
    world: str | Callable[..., Env], provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """Options that a file says its world was opened with. A registered id is given its numbers and
    its crop only: a word may be the address of a file."""
    options = parse_json(
        provenance.get("options") or "{}", "the options of a world", "JSON", "Record it again"
    )
    words = [
        f"{name}={value!r}"
        for name, value in options.items()
        if name != "crop" and not isinstance(value, int | float | None)
    ]
    if isinstance(world, str) and words:
        raise ValueError(
            f"world '{world}' was recorded with {', '.join(words)}, and only numbers are taken "
            "from a file. Open the run with a function that makes it: "
            "lewm.open_run(RUN, world=lambda **options: gymnasium.make(...))."
        )
    return options


@dataclass(frozen=True)
class _Training:
    """What is known of the episodes that a run was trained on.

    Attributes:
        path: their file; of an imported run the one it was imported with, which need not be what it
            was trained on.
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
        return _Training(
            path, trained, dict(known["provenance"]), (int(known["episodes"]), int(known["steps"]))
        )
    # a file may hold anything
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        expected = "the split and the data that a training records"
        raise ValueError(
            f"{source} is damaged: expected {expected}, got {error!r}. Restore it, or train again."
        ) from None


def _same_data(training: _Training, episodes: Episodes) -> bool | None:
    """Does a file hold the stream of episodes that something was trained on? None where that is
    unknown."""
    same = _same_stream(training.provenance, asdict(episodes.provenance))
    if (
        same is None
        and training.counts == (len(episodes), episodes.steps)
        and _same_file(episodes.path, training.path)
    ):
        return True
    return same


def _episodes_of_head(source: Path, episodes: Episodes) -> frozenset[int]:
    """Those of a file that a head was, or may have been, fitted to."""
    fitted = read_json(source).get("fitted_to")
    training = _training_of(fitted if isinstance(fitted, dict) else {}, source)
    return frozenset() if _same_data(training, episodes) is False else training.episodes


def _same_file(path: Path, other: Path | None) -> bool:
    return other is not None and path.resolve() == other.resolve()


def _same_stream(own: Mapping[str, Any], other: Mapping[str, Any]) -> bool | None:
    """Do two files hold one stream of episodes? None where one of them does not say.

    How the world looked, or which version drew it, is not asked: pictures that differ a little, or
    options that are only spelt otherwise, must not make what was trained on count as unseen.
    """
    pairs = [(own.get(name), other.get(name)) for name in ("world", "policy", "seed")]
    if any(a != b for a, b in pairs if None not in (a, b)):
        return False
    return None if any(None in pair for pair in pairs) else True


class Analysis(Settings, Protocol):
    """One file in `analyses/`: a frozen dataclass that is asked about a run. It prints nothing,
    draws nothing, writes nothing.

    `report/sections/<name>.py` draws its results and says what they say.

    Attributes:
        name: that of its file, and of its results.
        question: what it answers, in one sentence.
        result: the kind of its results, a frozen dataclass of its own.
    """

    name: ClassVar[str]
    question: ClassVar[str]
    result: ClassVar[type[Result]]

    def run(self, run: Run, report: Report = ...) -> Result:
        """Answer; same run and settings, same numbers.

        Raises:
            Unsupported: the run cannot be asked this.
        """
        ...
