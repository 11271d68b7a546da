"""Changes to a way to plan, by the names of its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

from torch import nn

from lewm import registry
from lewm.contracts import Objective, Refining, Solver
from lewm.planning.config import PlanningConfig, attach

__all__ = ["PlanningChanges"]


@dataclass(frozen=True)
class PlanningChanges:
    """Changes to the planning of the run's recipe; what is not given stays.

    Attributes:
        solver: the search, by name. Another one than the recipe's begins from its own defaults, and
            is planned with as in the paper: five blocks, all of them executed.
        objective: what a plan is for, by name; likewise.
        search: with which a solver that proposes a plan improves on it, by name; likewise.
        guarded: the search starts cold and competes with the proposal.
        countdown: env steps in which a proposal is to reach the goal; without it they are
            estimated.
        candidates: action sequences scored per iteration.
        elites: how many of the cheapest shape the next iteration.
        iterations: of the search.
        limit: env steps up to which a distance is trusted, of a solver that goes by waypoints.
        pace: share of the estimated env steps that it is given for its way.
        stop_spread: std of the search below which it is over.
        judged_by: which of the costs that the model names itself, for objective `own`.
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
    limit: float | None = None
    pace: float | None = None
    stop_spread: float | None = None
    judged_by: str | None = None
    intermediate: float | None = None
    horizon: int | None = None
    receding: int | None = None
    hold_actions: bool | None = None
    warm_start: bool | None = None
    precision: str | None = None

    @classmethod
    def named(cls, **changes: Any) -> PlanningChanges:
        """The changes by name; an unknown one is answered with the nearest."""
        known = [field.name for field in fields(cls)]
        for name in changes:
            registry.choose("planning setting", name, known)
        return cls(**changes)

    def apply(
        self, config: PlanningConfig, heads: Mapping[str, nn.Module] = MappingProxyType({})
    ) -> PlanningConfig:
        """Return the changed settings.

        Args:
            heads: of the run, for a solver or an objective that is chosen here and needs them.

        Raises:
            ValueError: unknown names, values out of range, or a setting that this solver and
                objective do not have.
        """
        if self.solver is not None and self.solver.replace("_", "-") != plugin_name(config.solver):
            # how often to replan suited the other one
            config = PlanningConfig(config.objective, config.solver)
        parts = {
            "solver": _chosen("solvers", self.solver, config.solver),
            "objective": _chosen("objectives", self.objective, config.objective),
        }
        solver = parts["solver"]
        present = solver.search if isinstance(solver, Refining) else None
        if search := _chosen("solvers", self.search, present):
            if not isinstance(solver, Refining):
                got = plugin_name(solver)
                raise ValueError(
                    f"expected a solver that takes a search, got '{got}'. Leave `search` out."
                )
            parts["search"] = search  # what the solver itself does not have is meant for its search
        changes: dict[str, dict[str, Any]] = {"planning": {}, **{kind: {} for kind in parts}}
        for name, value in vars(self).items():
            if value is None or name in ("solver", "objective", "search"):
                continue
            owners = {**parts, "planning": config}
            found = [
                (owner, f.name)
                for owner, part in owners.items()
                for f in fields(part)
                if f.name in (name, f"num_{name}")
            ]
            if not found:
                kinds = " nor ".join(
                    f"{kind} '{plugin_name(part)}'" for kind, part in parts.items()
                )
                raise ValueError(
                    f"neither {kinds} has a setting '{name}'. Leave `{name}` out, or choose others."
                )
            owner, setting = found[0]
            changes[owner][setting] = value
        # One `replace` per part: settings that must fit each other, such as candidates and elites,
        # are checked together.
        made = {
            kind: replace(part, **changes[kind]) for kind, part in parts.items() if kind != "solver"
        }
        if search:
            changes["solver"]["search"] = made.pop("search")
        made["solver"] = replace(parts["solver"], **changes["solver"])
        return attach(replace(config, **made, **changes["planning"]), heads)


def _chosen(kind: str, name: str | None, present: Objective | Solver | None) -> Any:
    if name is None or name.replace("_", "-") == plugin_name(present):
        return present
    return registry.load(kind, name)()


def plugin_name(part: Objective | Solver | None) -> str:
    return type(part).__module__.rpartition(".")[2].replace("_", "-")
