"""The vocabulary that every module shares: shapes, records and roles. It imports torch, numpy and
the standard library.

Shape letters, the one legend of the project:

    B batch (or environments)   T window    K context    H horizon in action blocks    N candidates
    A action block (frameskip x a)   a one env action   D latent   P patches   M slices   Q knots
    S state variables

Pixels are lower-case `c h w`, so `H` is never a height. At rest and in a `Batch` pixels are uint8;
they become float inside a model and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Real
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import Generator, Tensor, nn

# ------------------------------------------------------------------------------------------ records


@dataclass(frozen=True)
class WorldSpec:
    """What is known of a world before it is run.

    Attributes:
        name: the plug-in's key, as in `registry.load("worlds", name)`.
        version: of dynamics and look; it goes up when either changes, and is stored with the data.
        image_size: height and width of `pixels`, which are square.
        action_low, action_high: the action box, one number per action dimension, in the env's own
            units.
        state_names, state_units: one per state variable, in the order of `state`.
        max_steps: length in env steps at which collection cuts an episode.
        look: the named appearance ("published" unless a factor changed it); numbers of two looks
            are never mixed.
        picture_extent: width of the picture in the unit of the state, for a planar world whose
            first two state variables are a place in it (x to the right, y down); None for other
            worlds.
        tolerance: largest distance from the goal that counts as success, in the unit of the state;
            None where success is no such distance.
        criteria: names of what `World.success` can be asked for. The first is the benchmark's
            success, by which runs are compared; others, such as "block pose", are reported beside
            it.
        things: names of what can be put elsewhere or painted by itself, see `World.teleport`; the
            one that acts comes first.
        layout: the state variables that say how the surroundings of an episode are built, where
            they differ between episodes. They never change within one, and a goal has its start's.
    """

    name: str
    version: str
    image_size: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    state_names: tuple[str, ...]
    state_units: tuple[str, ...]
    max_steps: int
    look: str = "published"
    picture_extent: float | None = None
    tolerance: float | None = None
    criteria: tuple[str, ...] = ("success",)
    things: tuple[str, ...] = ()
    layout: tuple[str, ...] = ()


@dataclass(frozen=True)
class Statistics:
    """Normalisation statistics of a training split; they travel with the weights.

    Attributes:
        pixel_mean, pixel_std: three numbers each, per colour channel, of pixels scaled to [0, 1].
        action_mean, action_std: one number per action dimension `a`, in the env's units.
        action_low, action_high: least and largest recorded, likewise; empty where nobody counted.
            Equal where the data never vary, which then have the std 1.

    Raises:
        ValueError: other counts, numbers that are not finite, or a std that is not above 0.
    """

    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    action_mean: tuple[float, ...]
    action_std: tuple[float, ...]
    action_low: tuple[float, ...] = ()
    action_high: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        means, stds = (*self.pixel_mean, *self.action_mean), (*self.pixel_std, *self.action_std)
        counts = [len(values) for values in vars(self).values()]
        if (
            counts[:2] != [3, 3]
            or not 0 < counts[2] == counts[3]
            or counts[4:] not in ([0, 0], counts[2:4])
            or not all(map(math.isfinite, (*means, *stds, *self.action_low, *self.action_high)))
            or min(stds) <= 0
        ):
            raise ValueError(
                "statistics: expected finite means and stds above 0, of 3 colours and of every "
                f"dimension of the action, got {self}. Take them from the training data."
            )

    @property
    def action_dim(self) -> int:
        return len(self.action_mean)

    @property
    def fixed_actions(self) -> tuple[bool, ...]:
        """Per action dimension, whether the data never vary in it: it has always been the mean."""
        if not self.action_low:
            return (False,) * self.action_dim
        return tuple(a == b for a, b in zip(self.action_low, self.action_high, strict=True))

    def normalise_actions(self, actions: Tensor) -> Tensor:
        """Z-score env actions; (..., n*a) holds n steps side by side. NaN, the published end mark,
        becomes 0."""
        return (
            (actions - self._tiled(self.action_mean, actions))
            / self._tiled(self.action_std, actions)
        ).nan_to_num(nan=0.0)

    def denormalise_actions(self, actions: Tensor) -> Tensor:
        """Undo `normalise_actions` (but for NaN); same shapes."""
        return actions * self._tiled(self.action_std, actions) + self._tiled(
            self.action_mean, actions
        )

    def _tiled(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device).repeat(
            like.shape[-1] // len(values)
        )


@dataclass(frozen=True)
class DataSpec:
    """What a model is built to fit: the data's image size, its frameskip and its statistics."""

    image_size: int
    frameskip: int
    statistics: Statistics

    @property
    def block_dim(self) -> int:
        """A, the width of one action block."""
        return self.frameskip * self.statistics.action_dim


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device, without waiting for what that is doing: to a CUDA device through pinned
    memory."""
    device = torch.device(device)
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True)
class Batch:
    """Training windows.

    Attributes:
        pixels: (B, T, 3, h, w) uint8 observations, `frameskip` env steps apart, oldest first.
        actions: (B, T-1, A) float32 normalised action blocks; block t is executed *from*
            observation t.
    """

    pixels: Tensor
    actions: Tensor

    def to(self, device: torch.device | str) -> Batch:
        return Batch(sent(self.pixels, device), sent(self.actions, device))


@dataclass(frozen=True)
class Hindsight:
    """What was done, seen from where it led: the data that heads are fitted to. All of it is
    latents of a frozen model.

    Attributes:
        now: (B, D) latents of frames.
        goal: (B, D) latents of frames of the same episodes, later or the same.
        steps: (B,) float32 env steps from `now` to `goal`, 0 or more.
        blocks: (B, H, A) normalised action blocks that were executed from `now` on, 0 where they
            are not known.
        known: (B, H) bool, blocks that the episode holds and that began before the goal.
    """

    now: Tensor
    goal: Tensor
    steps: Tensor
    blocks: Tensor
    known: Tensor


@dataclass(frozen=True)
class Progress:
    """How far a piece of work is. Whatever takes long reports so, and a bar shows it.

    Attributes:
        stage: what is being done, such as "collect" or the name of an analysis.
        done, total: how much of it, in whatever it counts.
        note: a line of numbers; "" leaves the one before.
        alarm: what is wrong, beside a note.
        metrics: the numbers themselves, where it has some; of a training the line of the log.
    """

    stage: str
    done: int
    total: int
    note: str = ""
    alarm: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)


Report = Callable[[Progress], None]
"""What a caller gives to hear how far the work is."""


def silent(progress: Progress) -> None:
    """The `Report` of a caller who does not ask."""


@dataclass(frozen=True)
class Losses:
    """Named terms of one training objective, each a scalar tensor, their weights, and what is worth
    watching.

    `total` is what is differentiated: the weighted sum of `terms` (weight 1 where none is given).
    `watch` holds detached scalars that take no part in it. `latents`, (B, T, D) and detached, are
    those of the batch: a training looks now and then at how far they spread and at what copying the
    last frame would err, which would cost too much at every update. A term named "prediction" is
    compared with that.
    """

    terms: dict[str, Tensor]
    weights: dict[str, float] = field(default_factory=dict)
    watch: dict[str, Tensor] = field(default_factory=dict)
    latents: Tensor | None = None

    @property
    def total(self) -> Tensor:
        return torch.stack(
            [self.weights.get(name, 1.0) * value for name, value in self.terms.items()]
        ).sum()


@dataclass(frozen=True)
class Plan:
    """A diagonal Gaussian over action sequences in normalised units.

    Attributes:
        mean: (B, H, A).
        std: (B, H, A), a standard deviation, never a variance.
    """

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class Box:
    """Bounds of a search, inclusive.

    Attributes:
        low, high: (A,) each, in the units of the plan.
    """

    low: Tensor
    high: Tensor

    def clamp(self, actions: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(actions, self.low), self.high)


# -------------------------------------------------------------------------------------------- roles

Cost = Callable[[Tensor], Tensor]
"""(B, N, H, A) candidate action blocks -> (B, N) costs, lower is better; NaN marks a diverged
rollout."""

Rollout = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A rollout: (B, k, D) context, (B, k-1, A) past blocks, (B, N, H, A) blocks -> (B, N, H, D), as
`WorldModel.rollout`."""

Policy = Callable[[], np.ndarray]
"""Look at its world's current state and goal, return (B, a) float32 env actions."""


@runtime_checkable
class WorldModel(Protocol):
    """A model, seen from training, planning and the analyses. Its file gives a config with
    `.build(spec)`."""

    spec: DataSpec
    context: int  # K, the most past observations the predictor looks at
    latent_dim: int  # D

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, T, 3, h, w) uint8 -> (B, T, D) latents; each frame on its own."""
        ...

    def rollout(self, context: Tensor, past_actions: Tensor, actions: Tensor) -> Tensor:
        """(B, K, D), (B, K-1, A), (B, N, H, A) -> (B, N, H, D); index h is the latent after block
        h."""
        ...

    def loss(self, batch: Batch, generator: Generator | None = None) -> Losses:
        """The training objective on one batch; `generator` draws what the objective draws at
        random."""
        ...


@runtime_checkable
class Tokened(Protocol):
    """A model in which several tokens stand for a frame; in others one does. Its latent is all of
    them in a row, tokens x width = D."""

    @property
    def tokens(self) -> int: ...


@runtime_checkable
class Following(Protocol):
    """A model with a part that is not trained but follows the weights, such as an EMA target."""

    def follow(self, update: int, total: int) -> None:
        """Let it follow, after update number `update` of `total`, the first of which is 0. What it
        changes is in the model's state dict."""
        ...


@runtime_checkable
class Undecayed(Protocol):
    """A model with parameters that weight decay would pull away from where they belong, such as the
    rates of a recurrence."""

    @property
    def undecayed(self) -> frozenset[str]:
        """Their names, as in `named_parameters`; the others decay."""
        ...


@runtime_checkable
class Paced(Protocol):
    """A model of which some parts learn faster than others, such as BYOL's predictor."""

    @property
    def paces(self) -> Mapping[str, float]:
        """What a parameter's name begins with -> times the learning rate; 1 for all others."""
        ...


@runtime_checkable
class Staged(Protocol):
    """A model that is trained in stages, such as an encoder before its predictor."""

    def stage(self, update: int, total: int) -> tuple[int, int]:
        """How many updates of its stage come before this one, and how many that stage has: each
        has a warm-up and a cosine of its own."""
        ...


@runtime_checkable
class Remembering(Protocol):
    """A part of a model that does the same for a picture every time, and remembers it. What it
    remembers never changes what it says, only how soon."""

    def recall(self, episodes: Path) -> None:
        """Remember what was kept of the pictures in an episode file."""
        ...

    def keep(self) -> None:
        """Keep what is remembered, beside that file, for whoever comes next."""
        ...


class Settings(Protocol):
    """A dataclass, such as a config: settings by name."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


class ModelConfig(Settings, Protocol):
    """What a model is made from: the frozen dataclass of its plug-in, one file in `models/`."""

    def build(self, spec: DataSpec) -> TrainableModel:
        """Make a model with random weights that fits the data."""
        ...


@runtime_checkable
class Engined(Protocol):
    """A model that has a faster way to roll out than `rollout`."""

    def engine(self, precision: str = "float32") -> Rollout:
        """Prepare a rollout from the weights as they are now; a `ValueError` names the precisions
        that there are."""
        ...


@runtime_checkable
class Described(Protocol):
    """A model or a head that can be made anew: `type(config)(**fields).build(...)`.

    Its config is the frozen dataclass of its plug-in, so it can be written down as JSON.
    """

    @property
    def config(self) -> Settings: ...


class Trainable(Protocol):
    """An `nn.Module`, as far as whoever trains, stores or moves one asks; a role, so that it can be
    joined with others."""

    def state_dict(self) -> Mapping[str, Tensor]: ...

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> object: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def buffers(self) -> Iterator[Tensor]: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def children(self) -> Iterator[nn.Module]: ...

    def train(self, mode: bool = True) -> Self: ...

    def eval(self) -> Self: ...

    def to(self, device: torch.device | str) -> Self: ...

    def requires_grad_(self, requires_grad: bool = True) -> Self: ...


class TrainableModel(WorldModel, Described, Trainable, Protocol):
    """A world model that is an `nn.Module` and keeps its config: what a plug-in builds. Planning
    and the analyses do with a `WorldModel`."""


@runtime_checkable
class Head(Protocol):
    """A small network on frozen latents, fitted after the world model and stored beside it; an
    `nn.Module`.

    One file in `heads/`, whose config gives one with `.build(latent_dim, block_dim)`. A solver or
    an objective that needs heads has a field for each, None until `config.attach` fills it, and
    names them in a class variable `heads`, see `Headed`.
    """

    horizon: int  # H, blocks per batch that it learns from; 0 if it asks for none

    def loss(self, batch: Hindsight) -> Losses:
        """What fitting minimises."""
        ...


class StorableHead(Described, Trainable, Protocol):
    """A head that is an `nn.Module` and keeps its config, trained or selected."""


class TrainableHead(Head, StorableHead, Protocol):
    """A head that is an `nn.Module` and keeps its config: what a plug-in builds."""


@runtime_checkable
class Distance(Protocol):
    """A head that knows how far it is from one latent to another."""

    def distance(self, now: Tensor, goal: Tensor) -> Tensor:
        """(..., D) current and goal latents -> (...) env steps between them."""
        ...


@runtime_checkable
class Embedding(Distance, Protocol):
    """A distance in two steps: a latent that is asked about again and again is embedded once."""

    def embed(self, latents: Tensor) -> Tensor:
        """(..., D) latents -> (..., E)."""
        ...

    def between(self, now: Tensor, goal: Tensor) -> Tensor:
        """(..., E) embedded latents -> (...) env steps; leading dimensions broadcast."""
        ...


@runtime_checkable
class Imitator(Protocol):
    """A head that knows what was done in such a situation."""

    def plan(self, now: Tensor, goal: Tensor, steps: Tensor) -> Tensor:
        """(B, D) current and goal latents, (B,) env steps remaining -> (B, H, A) normalised
        blocks."""
        ...


@runtime_checkable
class Landmarks(Protocol):
    """A head that holds frames which stand for all others."""

    latents: Tensor  # (M, D)
    rows: Tensor  # (M,) of the episode file


@runtime_checkable
class Selecting(Protocol):
    """A head in which nothing is trained: it selects among the frames that others are fitted to. It
    has `select` in place of `horizon` and `loss`."""

    def select(self, latents: Tensor, rows: Tensor) -> None:
        """Take some of (F, D) latents, and their (F,) rows of the episode file."""
        ...

    def loss_of(self, latents: Tensor) -> Tensor:
        """(F, D) latents -> (F,) how badly what was selected stands for each."""
        ...


class Objective(Settings, Protocol):
    """What a plan is for. Frozen dataclass, one file in `objectives/`."""

    def cost(self, rollout: Tensor, goal: Tensor) -> Tensor:
        """(B, N, H, D) predicted latents and (B, D) goal latents -> (B, N), lower is better."""
        ...


@runtime_checkable
class Judging(Protocol):
    """A world model with costs of its own, such as one that can draw what it imagines."""

    costs: tuple[str, ...]  # their names; the first is what it is planned with if nobody chooses

    def judge(self, name: str, rollout: Tensor, goal: Tensor) -> Tensor:
        """(B, N, H, D) predicted latents and (B, D) goal latents -> (B, N), lower is better, by
        the cost of that name."""
        ...


@runtime_checkable
class Asking(Protocol):
    """An objective that asks the world model itself. How to plan is written down without one, so
    an agent hands it over."""

    def asking(self, model: WorldModel) -> Objective:
        """The same objective, asking this model; a `ValueError` where that cannot answer."""
        ...


class Solver(Settings, Protocol):
    """A search over action sequences. Frozen dataclass, one file in `solvers/`; holds no state,
    asks no environment."""

    @property
    def evaluations(self) -> int:
        """Exact number of action sequences that `solve` scores per environment."""
        ...

    def solve(self, cost: Cost, start: Plan, box: Box, generators: Sequence[Generator]) -> Plan:
        """Improve `start`. One generator per environment: what shares a batch never changes a
        plan."""
        ...


@runtime_checkable
class Proposing(Protocol):
    """A solver that says itself where its search starts, because it has learnt what was done in
    such a situation."""

    def propose(self, now: Tensor, goal: Tensor, elapsed: Tensor, horizon: int) -> Tensor:
        """(B, D) current and (B, D) goal latents, (B,) env steps since the goal was set -> (B, H,
        A) normalised blocks."""
        ...


@dataclass(frozen=True)
class Route:
    """A way over landmarks to a goal, for pictures.

    Attributes:
        rows: (n,) of the episode file, the first landmark first; none where the goal itself is
            near.
        found: whether there is a way; without one the goal itself is aimed at.
    """

    rows: np.ndarray
    found: bool


@runtime_checkable
class Routing(Protocol):
    """A solver that aims at landmarks on the way, and can say at which."""

    def landmarks(self) -> Landmarks:
        """The places that it goes by; a `ValueError` where it was given none."""
        ...

    def links(self) -> np.ndarray:
        """(L, 2) pairs of places of the landmarks: from the first one leads an edge to the second
        one."""
        ...

    def routes(self, now: Tensor, goal: Tensor) -> tuple[Route, ...]:
        """(B, D) current and (B, D) goal latents -> B ways."""
        ...


@runtime_checkable
class Refining(Protocol):
    """A solver that hands what it finds to another search; None where it was given none."""

    @property
    def search(self) -> Solver | None: ...


@runtime_checkable
class Headed(Protocol):
    """An objective or a solver that needs heads: {its field: name of the head}."""

    heads: Mapping[str, str]


@runtime_checkable
class Specified(Protocol):
    """An environment that says what world it is, and so means to be a world plug-in."""

    env_spec: WorldSpec


@runtime_checkable
class SingleWorld(Specified, Protocol):
    """One environment that keeps the promises of a world plug-in: a `gymnasium.Env` and more.

    `reset` takes options={"state": ..., "goal": ...}. The `info` of `reset` and `step` holds
    "state" and "goal", (S,) float32 each, and "success"; where the spec names several criteria
    also "criteria", which says of each whether it is met.
    """

    @property
    def policies(self) -> tuple[str, ...]:
        """The names that `policy` knows."""
        ...

    def policy(self, name: str, seed: int) -> Policy:
        """As `World.policy`, for one environment: each call returns one (a,) action."""
        ...

    def render_state(self, state: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 picture of another state, such as a goal."""
        ...

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]: ...

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]: ...

    def render(self) -> np.ndarray: ...


@runtime_checkable
class Advancing(Protocol):
    """A single world that can step without drawing; for one where drawing is slow."""

    def advance(self, action: np.ndarray) -> dict[str, Any]:
        """Do what `step` does but draw, and return the `info`."""
        ...


@runtime_checkable
class Blocking(Protocol):
    """A world that knows which straight ways something stands in, such as a wall: there, one that
    walks straight at its goal may fail."""

    def blocked(self, starts: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """(n,) bool: is the straight way from each of (n, S) starts to its goal blocked?"""
        ...


@runtime_checkable
class Regioned(Protocol):
    """A single world that has regions, such as rooms."""

    def regions(self, states: np.ndarray) -> np.ndarray | None:
        """(n,) integer region of each of (n, S) states."""
        ...


@runtime_checkable
class Editable(Protocol):
    """A single world whose spec names things; `World` says the same for many."""

    def teleport(self, things: Sequence[str], state: np.ndarray, seed: int) -> np.ndarray:
        """One (S,) state like that given, with these things elsewhere and at rest."""
        ...

    def recoloured(self, thing: str, turn: float = 0.5) -> str:
        """The look with another colour of this thing."""
        ...


@runtime_checkable
class Batched(Protocol):
    """A world plug-in, a class, whose environments can be stepped together."""

    def batched(self, num_envs: int, **options: Any) -> World:
        """B environments as one world; a class method."""
        ...


class World(Protocol):
    """B environments of one kind stepped together: what collection and evaluation drive.

    A world plug-in is a `gymnasium.Env` (one environment). `opening.open_world` turns it into this
    role: through the class method `batched(num_envs, **options)` where the plug-in has one, else by
    looping over single environments. A plain Gymnasium environment fills it as far as it can, see
    `worlds/kit/gym.py`.
    """

    spec: WorldSpec
    num_envs: int

    @property
    def policies(self) -> tuple[str, ...]:
        """The names that `policy` knows."""
        ...

    @property
    def states(self) -> np.ndarray:
        """(B, S) float32 ground truth, a copy."""
        ...

    @property
    def goals(self) -> np.ndarray:
        """(B, S) float32 goal states, a copy."""
        ...

    def reset(self, seeds: Sequence[int]) -> None:
        """Draw start and goal of environment i from `seeds[i]` alone."""
        ...

    def set_states(self, states: np.ndarray) -> None: ...

    def set_goals(self, goals: np.ndarray) -> None: ...

    def step(self, actions: np.ndarray) -> None:
        """Advance all environments by one step; (B, a) actions are clipped to the action box."""
        ...

    def render(self, states: np.ndarray | None = None) -> np.ndarray:
        """(n, h, w, 3) uint8 pictures of the given (n, S) states, or of the current ones. New
        memory each time."""
        ...

    def success(self, criterion: str | None = None) -> np.ndarray:
        """(B,) bool: is each environment within tolerance of its goal now, by one of
        `spec.criteria`, the first by default?"""
        ...

    def policy(self, name: str, seeds: Sequence[int]) -> Policy:
        """A policy bound to this world: one of its `policies`."""
        ...

    def regions(self, states: np.ndarray) -> np.ndarray | None:
        """(n,) integer region (room) of each state, or None where the world has no regions."""
        ...

    def teleport(
        self, things: Sequence[str], states: np.ndarray, seeds: Sequence[int]
    ) -> np.ndarray:
        """Legal (n, S) states like those given, but with some of `spec.things` elsewhere and at
        rest; asked for nothing else.

        Each is two tolerances or more away from where it was, and state i is drawn from `seeds[i]`
        and `states[i]` alone. The environments stay as they are: `set_states` is what puts them
        there.
        """
        ...

    def recoloured(self, thing: str, turn: float = 0.5) -> str:
        """The look like this world's own but for the colour of one of `spec.things`, turned on the
        colour wheel; see `looks.turned_color`. Dynamics are the same.
        """
        ...


@runtime_checkable
class Ending(Protocol):
    """A world whose episodes may be over before `spec.max_steps`; those of most are not."""

    @property
    def ended(self) -> np.ndarray:
        """(B,) bool: is the episode over? Steps then change nothing until the next reset."""
        ...


# --------------------------------------------------------------------------------- keeping to roles


def missing(role: type, thing: object) -> list[str]:
    """What `thing` lacks to fill a role: names of methods and attributes, in the role's order."""
    named: dict[str, None] = {}
    for part in reversed(role.__mro__):
        if getattr(part, "_is_protocol", False) and part is not Protocol:
            members = [*vars(part).get("__annotations__", {}), *vars(part)]
            named |= {name: None for name in members if not name.startswith("_")}
    return [name for name in named if not hasattr(thing, name)]


def require(role: type, thing: object, name: str) -> None:
    """Refuse what does not fill a role, in words that say what to add.

    Args:
        name: of the thing, as its user knows it: "head 'temporal'".

    Raises:
        ValueError: it lacks something.
    """
    if lacking := missing(role, thing):
        listed = ", ".join(f"`{one}`" for one in lacking)
        raise ValueError(
            f"expected {name} to fill the role `lewm.contracts.{role.__name__}`, got "
            f"{thing!r:.80} without {listed}. Add what is missing; the role says what it does."
        )


# ----------------------------------------------------------------------------------------- settings

MOST, SEEDS = 10**9, 2**63
"""The largest whole number that a setting may have, and the first that is no seed."""

NONE: Mapping[str, float] = MappingProxyType({})


def check_numbers(
    config: Settings,
    least: Mapping[str, float] = NONE,
    most: Mapping[str, float] = NONE,
    above: Mapping[str, float] = NONE,
    below: Mapping[str, float] = NONE,
) -> None:
    """Refuse settings of which nothing can be made, before any work begins.

    Every number of a config must be finite and 0 or more, a whole one at most `MOST`, a seed below
    2^63. A field that is None is left alone.

    Args:
        config: a dataclass; of its fields those are looked at that are declared as numbers.
        least, most, above, below: bounds of single fields, the first two included. A field whose
            `most` is infinity may be infinite.

    Raises:
        ValueError: one is out of its bounds, or no number.
    """
    for each in fields(config):
        name, value, kind = each.name, getattr(config, each.name), str(each.type)
        if not kind.startswith(("int", "float", "tuple[int", "tuple[float")) or value is None:
            continue
        low, high = least.get(name, 0), most.get(name, MOST if "int" in kind else math.inf)
        if name.endswith("seed"):
            high = SEEDS - 1
        for number in value if isinstance(value, tuple) else (value,):
            _check_kind(name, number, "int" in kind, endless=most.get(name) == math.inf)
            if number < low:
                wanted = f"at least {low}" if low else "0 or more: it must not be negative"
                raise ValueError(f"{name} must be {wanted}, got {number}. Raise {name}.")
            if number > high:
                raise ValueError(f"{name} must be at most {high}, got {number}. Lower {name}.")
            if name in above and not number > above[name]:
                raise ValueError(f"{name} must be above {above[name]}, got {number}. Raise {name}.")
            if name in below and not number < below[name]:
                raise ValueError(f"{name} must be below {below[name]}, got {number}. Lower {name}.")


def _check_kind(name: str, number: object, whole: bool, endless: bool) -> None:
    """Refuse what is no number, or, unless it may be `endless`, none that is finite."""
    if (
        isinstance(number, bool)
        or not isinstance(number, Real)
        or not (math.isfinite(number) or (endless and number == math.inf))
        or (whole and math.floor(number) != number)
    ):
        wanted = "a whole number" if whole else "a finite number"
        raise ValueError(f"{name} must be {wanted}, got {number!r}. Give {name} as one.")
