"""A world, a model and data that can be worked out by hand: a point in a square, which its pictures
show to 1/65535.

The latent is the position. A step moves the point by `SPEED` times the action, so the model is
linear and exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch

from lewm.contracts import DataSpec, Statistics, WorldSpec

SIZE, SPEED, TOLERANCE, FRAMESKIP = 4, 0.02, 0.03, 5
RADII = {"success": TOLERANCE, "exact": TOLERANCE / 3, "near": 6.5 * SPEED}
"""Distance from the goal below which a criterion holds; none is a whole number of steps."""

STATISTICS = Statistics((0.5,) * 3, (0.5,) * 3, action_mean=(0.1, -0.2), action_std=(0.5, 0.8))


def draw(states):
    """(n, 2) positions in [0, 1] -> (n, 4, 4, 3) uint8: x and y as two bytes each."""
    fixed = np.rint(np.clip(states, 0, 1) * 65535).astype(np.int64)
    pixels = np.zeros((len(states), SIZE, SIZE, 3), np.uint8)
    pixels[:, 0, 0, :2], pixels[:, 0, 1, :2] = fixed // 256, fixed % 256
    return pixels


def read(pixels):
    """(..., 3, h, w) uint8 tensor -> (..., 2) positions."""
    return (256.0 * pixels[..., :2, 0, 0].float() + pixels[..., :2, 0, 1].float()) / 65535


class PointModel(torch.nn.Module):
    """Exact. It keeps what it was asked to encode and to roll out."""

    def __init__(
        self, context=1, diverges=lambda latents: torch.zeros_like(latents, dtype=torch.bool)
    ):
        super().__init__()
        self.spec, self.context, self.latent_dim = DataSpec(SIZE, FRAMESKIP, STATISTICS), context, 2
        self.diverges = diverges
        self.encoded, self.rolled = [], []
        self.dropout = torch.nn.Dropout()
        self.eval()

    def encode(self, pixels):
        self.encoded.append(pixels)
        return read(pixels)

    def rollout(self, context, past_actions, actions):
        assert past_actions.shape[1] == context.shape[1] - 1
        self.rolled.append((context, past_actions, actions))
        moves = (
            STATISTICS.denormalise_actions(actions).unflatten(-1, (FRAMESKIP, 2)).sum(-2) * SPEED
        )
        latents = context[:, -1, None, None] + moves.cumsum(dim=2)
        return torch.where(self.diverges(latents), torch.nan, latents)


class PointWorld:
    """With a wall between x < .5 and x > .5 that only `regions` knows of."""

    def __init__(
        self,
        num_envs,
        policies=("random", "straight-line"),
        has_regions=True,
        criteria=("success",),
    ):
        box, names, units = ((-1.0, -1.0), (1.0, 1.0)), ("x", "y"), ("side", "side")
        self.spec = WorldSpec("point", "1", SIZE, *box, names, units, 100, criteria=criteria)
        self.num_envs, self.policies, self._has_regions = num_envs, policies, has_regions
        self._states = self._goals = np.zeros((num_envs, 2), np.float32)
        self.rendered = 0

    @property
    def states(self):
        return self._states.copy()

    @property
    def goals(self):
        return self._goals.copy()

    def reset(self, seeds):
        """Start and goal anywhere, of each seed its own."""
        drawn = np.stack([np.random.default_rng(seed).random((2, 2)) for seed in seeds])
        self._states, self._goals = drawn.astype(np.float32).swapaxes(0, 1)

    def set_states(self, states):
        assert states.shape == (self.num_envs, 2)
        self._states = states.astype(np.float32)

    def set_goals(self, states):
        assert states.shape == (self.num_envs, 2)
        self._goals = states.astype(np.float32)

    def step(self, actions):
        assert actions.shape == (self.num_envs, 2)
        assert actions.dtype == np.float32
        assert (np.abs(actions) <= 1).all()
        self._states = np.clip(self._states + SPEED * actions, 0, 1).astype(np.float32)

    def render(self, states=None):
        self.rendered += 1
        return draw(self._states if states is None else states)

    def success(self, criterion=None):
        return (
            np.linalg.norm(self._states - self._goals, axis=1)
            < RADII[criterion or self.spec.criteria[0]]
        )

    def policy(self, name, seeds):
        if name not in self.policies:
            raise ValueError(f"unknown policy '{name}'")
        if name == "straight-line":
            return lambda: np.clip((self._goals - self._states) / SPEED, -1, 1)
        generators = [np.random.default_rng(seed) for seed in seeds]
        return lambda: np.stack([generator.uniform(-1, 1, 2) for generator in generators]).astype(
            np.float32
        )

    def regions(self, states):
        return (states[:, 0] > 0.5).astype(np.int64) if self._has_regions else None


@dataclass
class PointEpisodes:
    """`count` walks of `length` observations, along x and back, each at its own height; every
    fourth stands still.

    Observations are `every` env steps apart.
    """

    count: int = 12
    length: int = 60
    image_size: int = SIZE
    action_dim: int = 2
    has_states: bool = True
    path: str = "points.h5"
    every: int = 1

    def __post_init__(self):
        self.lengths = np.full(self.count, self.length)
        self.offsets = np.arange(self.count) * self.length

    def states(self, i):
        if not self.has_states:
            raise ValueError(f"{self.path}: expected a column 'state', got none.")
        t = self.every * np.arange(self.length)
        x = 0.1 + 0.8 * np.abs(((t + 7 * i) % 80) / 40 - 1) if i % 4 else np.full(self.length, 0.3)
        return np.stack([x, np.full(self.length, i / self.count)], axis=1).astype(np.float32)

    def rows(self, column, indices):
        table = np.concatenate([self.states(i) for i in range(self.count)])[indices]
        return {"pixels": draw, "state": np.asarray}[column](table)


class Walks(PointEpisodes):
    """With the actions that make the steps, in units of the file."""

    state_names = ("across", "along")
    provenance = SimpleNamespace(state_units=("m", "km"))

    def actions(self, i):
        moves = np.diff(self.states(i), axis=0) / SPEED
        return np.concatenate([moves, np.full((1, 2), np.nan)]).astype(np.float32)
