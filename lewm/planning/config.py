"""What a way to plan is made of: the heads that it names, and how it is written down and read
again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from torch import nn

from lewm import registry
from lewm.contracts import Headed, Objective, Refining, Solver, check_numbers

__all__ = [
    "attach",
    "build_planning",
    "describe_planning",
    "heads_of",
    "plain_search",
    "PlanningConfig",
]

Part = TypeVar("Part", bound=Objective | Solver)
"""What a way to plan is made of; each is a frozen dataclass."""


def heads_of(config: PlanningConfig) -> set[str]:
    """Names of the heads that this way to plan asks for and does not have."""
    return {
        head
        for part in _parts(config)
        for name, head in _heads(part).items()
        if getattr(part, name) is None
    }


def attach(config: PlanningConfig, heads: Mapping[str, nn.Module]) -> PlanningConfig:
    """Give an objective and a solver, and the search inside of that, the heads that they name and
    do not have yet.

    What is missing in `heads` stays None: whoever uses it then says which command makes it.
    """
    return replace(
        config, objective=_attached(config.objective, heads), solver=_attached(config.solver, heads)
    )


def _heads(part: Objective | Solver) -> Mapping[str, str]:
    return part.heads if isinstance(part, Headed) else {}


def _search(part: Objective | Solver) -> Solver | None:
    return part.search if isinstance(part, Refining) else None


def _parts(config: PlanningConfig) -> Iterator[Objective | Solver]:
    """The objective, the solver, and the searches inside of that."""
    yield config.objective
    part: Solver | None = config.solver
    while part is not None:
        yield part
        part = _search(part)


def _attached(part: Part, heads: Mapping[str, nn.Module]) -> Part:
    changes: dict[str, Any] = {
        name: heads[head]
        for name, head in _heads(part).items()
        if getattr(part, name) is None and head in heads
    }
    if (search := _search(part)) is not None:
        changes["search"] = _attached(search, heads)
    return replace(part, **changes) if changes else part


def plain_search() -> PlanningConfig:
    """Latent L2 and a small CEM: how a run plans that lacks the heads that it asks for."""
    search = registry.load("solvers", "cem")(num_candidates=100, num_elites=10, num_iterations=5)
    return PlanningConfig(registry.load("objectives", "l2")(), search)


def describe_planning(config: PlanningConfig) -> dict[str, Any]:
    """What `build_planning` needs to make this way to plan anew, without its heads: registered
    names and fields, JSON-ready."""
    parts = {"objective": _described(config.objective), "solver": _described(config.solver)}
    return {**{field.name: getattr(config, field.name) for field in fields(config)}, **parts}


def build_planning(
    description: Mapping[str, Any], source: object = "the description of how to plan"
) -> PlanningConfig:
    """Make a way to plan from what `describe_planning` gave; its heads are None.

    Raises:
        ValueError: a name is not registered, or a field is unknown, missing or out of range;
            `source` is named.
    """
    try:
        objective = _built("objectives", description["objective"])
        solver = _built("solvers", description["solver"])
        return PlanningConfig(**{**description, "objective": objective, "solver": solver})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{source} does not describe a way to plan that this version knows: {error!r}. Use "
            "the lewm version that wrote it."
        ) from None


def _described(part: Objective | Solver) -> dict[str, Any]:
    """Of a plug-in; a search inside of it is described likewise."""
    settings = {
        field.name: getattr(part, field.name)
        for field in fields(part)
        if field.name not in _heads(part)
    }
    if settings.get("search") is not None:
        settings["search"] = _described(settings["search"])
    return {"name": type(part).__module__.rpartition(".")[2].replace("_", "-"), **settings}


def _built(kind: str, description: Mapping[str, Any]) -> Any:
    settings = dict(description)
    plugin = registry.load(kind, settings.pop("name"))
    if settings.get("search") is not None:
        settings["search"] = _built("solvers", settings["search"])
    return plugin(**settings)


@dataclass(frozen=True)
class PlanningConfig:
    """How to plan: a search, what it is for, and how far it looks. The defaults are the paper's
    protocol.

    Attributes:
        objective: (rollout, goal) -> cost.
        solver: the search over action sequences.
        horizon: H, length of a plan in action blocks.
        receding: blocks executed before replanning; the paper executes the whole plan.
        hold_actions: search over (H, a) and hold each action for the `frameskip` steps of its
            block. A smaller search, and enough where fine control within a block is not needed.
        warm_start: begin from the part of the previous plan that was not executed, followed by
            zeros; a solver that proposes where to begin (`contracts.Proposing`) is asked instead.
        initial_std: of the search at its start, in normalised units. Source: 1 in the paper.
        precision: of the rollouts that rank candidates; in another one than "float32" the cheapest
            are scored again in float32, and are what plans are chosen from. The model's engine
            knows the names.
    """

    objective: Objective
    solver: Solver
    horizon: int = 5
    receding: int = 5
    hold_actions: bool = False
    warm_start: bool = False
    initial_std: float = 1.0
    precision: str = "float32"

    def __post_init__(self) -> None:
        check_numbers(
            self,
            least={"horizon": 1, "receding": 1},
            most={"horizon": 10**4},
            above={"initial_std": 0},  # without spread there is no search
        )
        if self.receding > self.horizon:
            raise ValueError(
                "receding (blocks executed per plan) must lie between 1 and "
                f"horizon={self.horizon}, got {self.receding}. Lower it, or plan further ahead."
            )
