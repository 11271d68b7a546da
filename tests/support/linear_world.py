"""An exactly linear world: x' = R x + G a, in whole numbers that a picture shows as they are.

R is a quarter turn, so nothing grows and nothing settles: every step of every block moves the state
to another place. A third number counts the env steps. All sums are of small whole numbers, so a
model that knows R and G is right to the last bit if, and only if, it is given the right latents
with the right actions; off by one in either it is off by whole units.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lewm.contracts import DataSpec, Statistics, WorldSpec
from lewm.data.episodes import Episode, Episodes
from lewm.data.provenance import Provenance
from lewm.data.writing import EpisodeWriter
from lewm.models.lewm import LeWM, LeWMConfig

SIZE, FRAMESKIP, ZERO = 8, 5, 128
TURN = np.array([[0, -1], [1, 0]])
GAIN = np.array([[1, 2], [0, 1]])
IDENTITY = Statistics((0.5,) * 3, (0.5,) * 3, (0.0, 0.0), (1.0, 1.0))


def step(state: np.ndarray, action: np.ndarray) -> np.ndarray:
    """(..., 3) whole numbers and (..., 2) actions -> what follows."""
    place = state[..., :2] @ TURN.T + action @ GAIN.T
    return np.concatenate([place, state[..., 2:] + 1], axis=-1)


def draw(states: np.ndarray) -> np.ndarray:
    """(n, 3) -> (n, 8, 8, 3) uint8."""
    shown = np.asarray(states).round() + ZERO
    assert ((shown >= 0) & (shown < 256)).all(), "it left the picture"
    return np.broadcast_to(shown[:, None, None], (len(shown), SIZE, SIZE, 3)).astype(np.uint8)


def write(path, count: int = 12, length: int = 41, every: int = 1, seed: int = 0) -> Episodes:
    """Random walks with actions of -1, 0 and 1, a row per `every` env steps."""
    generator = np.random.default_rng(seed)
    provenance = Provenance(
        world="linear", state_names=("x", "y", "steps"), state_units=("", "", ""), every=every
    )
    with EpisodeWriter(path, provenance, "blosc") as writer:
        for _ in range(count):
            actions = generator.integers(-1, 2, (length - 1, 2))
            states = [np.array([*generator.integers(-9, 10, 2), generator.integers(-100, 50)])]
            for action in actions:
                states.append(step(states[-1], action))
            rows = np.stack(states)[::every]
            blocks = actions.reshape((length - 1) // every, -1).astype(np.float32)
            last = np.full((1, blocks.shape[1]), np.nan, np.float32)
            writer.append(
                Episode(draw(rows), np.concatenate([blocks, last]), rows.astype(np.float32))
            )
    return Episodes.open(path)


def block_matrices(frameskip: int = FRAMESKIP) -> tuple[Tensor, Tensor, Tensor]:
    """M, N and c of z' = M z + N a + c, for a block of so many env steps side by side."""
    turns = [np.linalg.matrix_power(TURN, k) for k in range(frameskip + 1)]
    carry, push = np.eye(3), np.zeros((3, 2 * frameskip))
    carry[:2, :2] = turns[frameskip]
    push[:2] = np.concatenate([turns[frameskip - 1 - j] @ GAIN for j in range(frameskip)], axis=1)
    return (*(torch.tensor(m, dtype=torch.float32) for m in (carry, push)),
            torch.tensor([0.0, 0.0, frameskip]))  # fmt: skip


class LinearLeWM(LeWM):
    """A LeWM whose encoder reads the state and whose predictor knows the world. Where it sees two
    latents it predicts from the older one, by both blocks: so all that it is given must fit."""

    def __init__(self, context: int = 1, statistics: Statistics = IDENTITY, frameskip=FRAMESKIP):
        config = LeWMConfig(
            patch_size=4, encoder_width=8, encoder_depth=1, encoder_heads=1, projector_dim=8,
            latent_dim=3, context=context, predictor_width=8, predictor_depth=1, predictor_heads=1,
            predictor_head_dim=8, predictor_mlp_dim=8, sigreg_slices=4, sigreg_weight=0.0,
        )  # fmt: skip
        super().__init__(config, DataSpec(SIZE, frameskip, statistics))
        self.carry, self.push, self.drift = block_matrices(frameskip)
        self.eval()

    def encode(self, pixels: Tensor) -> Tensor:
        return pixels[..., 0, 0].float() - ZERO

    def predict(self, latents: Tensor, actions: Tensor) -> Tensor:
        actions = self.spec.statistics.denormalise_actions(actions)
        onward = self._onward(latents, actions)
        if latents.shape[1] == 1:
            return onward
        older = self._onward(onward[:, :-1], actions[:, 1:])
        return torch.cat([onward[:, :1], older], dim=1)

    def _onward(self, latents: Tensor, actions: Tensor) -> Tensor:
        return latents @ self.carry.T + actions @ self.push.T + self.drift

    def engine(self, precision: str = "float32"):
        """Its weights know nothing: what is folded out of them is held against `rollout` in
        `test_engine`."""
        return self.rollout


class LinearWorld:
    """The world itself, for an agent to act in."""

    spec = WorldSpec(
        "linear", "1", SIZE, (-1.0, -1.0), (1.0, 1.0), ("x", "y", "steps"), ("", "", ""), 100
    )

    def __init__(self, states):
        self.states = np.asarray(states, np.float64)

    def render(self):
        return draw(self.states)

    def step(self, actions):
        self.states = step(self.states, actions)
