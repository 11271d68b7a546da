"""What our worlds share: environments of one kind that are stepped together, each from its own
seed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from lewm.contracts import Policy, WorldSpec
from lewm.registry import choose
from lewm.worlds.kit.looks import Look

__all__ = ["BatchedWorld", "finite_rows", "generators"]


class BatchedWorld(ABC):
    """B environments; fulfils the role `contracts.World`, and a world says the rest.

    What shares a batch never changes an environment: start, goal and policy noise of environment i
    come from its own seed. Actions lie in [-1, 1].

    Attributes:
        policies: the names that `policy` knows; "random" is among them.
        version: of dynamics and look, see `WorldSpec`.

    Args:
        num_envs: B.
        image_size: height and width of the pictures, 16 or more.
        factors: what is varied; it gives the spec its name, its look and its things.
        action_dim: a.
        max_steps: env steps at which collection cuts an episode.
        facts: the rest of `WorldSpec`.

    Raises:
        ValueError: a size that is too small.
    """

    policies: ClassVar[tuple[str, ...]]
    version: ClassVar[str] = "1"
    factors: Look

    def __init__(
        self,
        num_envs: int,
        image_size: int,
        factors: Look,
        *,
        action_dim: int,
        state_names: tuple[str, ...],
        state_units: tuple[str, ...],
        max_steps: int,
        **facts: Any,
    ) -> None:
        if num_envs < 1 or image_size < 16 or max_steps < 1:
            raise ValueError(
                f"expected num_envs >= 1, image_size >= 16 and max_steps >= 1, got {num_envs}, "
                f"{image_size} and {max_steps}."
            )
        self.num_envs, self.factors = num_envs, factors
        self.spec = WorldSpec(
            name=factors.world,
            version=self.version,
            image_size=image_size,
            action_low=(-1.0,) * action_dim,
            action_high=(1.0,) * action_dim,
            state_names=state_names,
            state_units=state_units,
            max_steps=max_steps,
            look=factors.look,
            things=tuple(factors.paints),
            **facts,
        )
        self._goals = np.zeros((num_envs, len(state_names)), np.float32)

    # ------------------------------------------------------------------------- what a world says

    @property
    @abstractmethod
    def states(self) -> np.ndarray:
        """(B, S) float32, a copy; the order is that of `spec.state_names`."""

    @abstractmethod
    def reset(self, seeds: Sequence[int]) -> None:
        """Draw start and goal of environment i from `seeds[i]` alone: no criterion is met."""

    @abstractmethod
    def set_states(self, states: np.ndarray) -> None:
        """Put the environments into (B, S) finite states."""

    @abstractmethod
    def _move(self, actions: np.ndarray) -> None:
        """Advance by one step; (B, a) float64 actions in [-1, 1]."""

    @abstractmethod
    def _draw(self, states: np.ndarray) -> np.ndarray:
        """(n, S) float32 states -> (n, h, w, 3) uint8 pictures, new memory."""

    @abstractmethod
    def _met(self, criterion: str) -> np.ndarray:
        """(B,) bool: is this one of `spec.criteria` met now?"""

    @abstractmethod
    def _policy(self, name: str, drawing: list[np.random.Generator]) -> Policy:
        """One of `policies` but "random"; environment i draws from `drawing[i]` alone."""

    @abstractmethod
    def _elsewhere(
        self, state: np.ndarray, things: Sequence[str], generator: np.random.Generator
    ) -> np.ndarray:
        """A legal (S,) state like this one, but with these things elsewhere and at rest."""

    # ------------------------------------------------------------------------ what follows from it

    @property
    def goals(self) -> np.ndarray:
        """(B, S) float32 goal states, a copy."""
        return self._goals.copy()

    def set_goals(self, goals: np.ndarray) -> None:
        """Set the goals to (B, S) finite states."""
        self._goals = self._rows("goals", goals, self.num_envs).copy()

    def step(self, actions: np.ndarray) -> None:
        """Advance all environments by one step; (B, a) actions are clipped to [-1, 1] and NaN
        counts as 0."""
        shape = (self.num_envs, len(self.spec.action_low))
        actions = np.asarray(actions, np.float64)
        if actions.shape != shape:
            raise ValueError(
                f"actions must have shape {shape}, one row per environment, got {actions.shape}."
            )
        self._move(np.clip(np.nan_to_num(actions, nan=0.0), -1.0, 1.0))

    def render(self, states: np.ndarray | None = None) -> np.ndarray:
        """Draw (n, S) given states, or the current ones: (n, h, w, 3) uint8, new memory each
        time."""
        return self._draw(self.states if states is None else self._rows("states", states))

    def success(self, criterion: str | None = None) -> np.ndarray:
        """(B,) bool: is this one of `spec.criteria` met now, the first by default?"""
        known = self.spec.criteria
        return self._met(
            choose(f"success criterion of {self.spec.name}", criterion or known[0], known)
        )

    def policy(self, name: str, seeds: Sequence[int]) -> Policy:
        """A policy bound to this world, environment i driven by `seeds[i]` alone; make a new one
        for new episodes.

        "random" is uniform over the action box. Of the others `_policy` of the world tells.
        """
        choose(f"policy of {self.spec.name}", name, self.policies)
        drawing = self._generators(name, seeds, self.num_envs)
        if name != "random":
            return self._policy(name, drawing)
        width = len(self.spec.action_low)
        return lambda: np.stack([one.uniform(-1, 1, width) for one in drawing]).astype(np.float32)

    def regions(self, states: np.ndarray) -> np.ndarray | None:
        """None: a world has no regions unless it says so."""
        return None

    def teleport(
        self, things: Sequence[str], states: np.ndarray, seeds: Sequence[int]
    ) -> np.ndarray:
        """The (n, S) states with some of `spec.things` elsewhere, see `World.teleport`; how far,
        `_elsewhere` of the world tells."""
        moves = [choose(f"thing of {self.spec.name}", one, self.spec.things) for one in things]
        states = self._rows("states", states, len(seeds)).copy()
        if moves:
            drawing = self._generators("teleport", seeds, len(states))
            for i, generator in enumerate(drawing):
                states[i] = self._elsewhere(states[i], moves, generator)
        return states

    def recoloured(self, thing: str, turn: float = 0.5) -> str:
        """The look of this world with other colours of one of `spec.things`."""
        return self.factors.recoloured(thing, turn).look

    def _generators(
        self, purpose: str, seeds: Sequence[int], number: int
    ) -> list[np.random.Generator]:
        return generators(("reset", *self.policies, "teleport"), purpose, seeds, number)

    def _rows(self, what: str, values: np.ndarray, rows: int | None = None) -> np.ndarray:
        return finite_rows(what, values, self.spec.state_names, rows)


def generators(
    purposes: Sequence[str], purpose: str, seeds: Sequence[int], num_envs: int
) -> list[np.random.Generator]:
    """One generator per environment, from its seed and what it is for: one seed may serve world and
    policy, draws stay apart.

    Raises:
        ValueError: not one seed per environment.
    """
    if len(seeds) != num_envs:
        raise ValueError(f"expected {num_envs} seeds, one per environment, got {len(seeds)}.")
    return [np.random.default_rng([purposes.index(purpose), int(seed)]) for seed in seeds]


def finite_rows(
    what: str, values: np.ndarray, names: Sequence[str], rows: int | None = None
) -> np.ndarray:
    """States or goals that a world is given, as float32.

    Args:
        what: they are, for the error.
        names: of the state variables, in order.
        rows: that there must be; None is any number.

    Raises:
        ValueError: another shape than (rows, S), or values that are not finite.
    """
    values, width = np.asarray(values, np.float32), len(names)
    if (
        values.ndim != 2
        or values.shape[1] != width
        or rows not in (None, len(values))
        or not np.isfinite(values).all()
    ):
        listed = ", ".join(names[:8]) + ", ..." * (width > 8)
        raise ValueError(
            f"{what} must be finite rows ({listed}) of shape ({rows or 'n'}, {width}), got shape "
            f"{values.shape}: {values.tolist()!s:.80}."
        )
    return values
