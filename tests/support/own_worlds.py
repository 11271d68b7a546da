"""Small Gymnasium environments as a user might have them: nothing of ours in them."""

from __future__ import annotations

import gymnasium
import numpy as np

SIDE = 24


class Dot(gymnasium.Env):
    """A white dot on black that goes where it is told; the observation is its place."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  as Gymnasium asks for it
    observation_space = gymnasium.spaces.Box(0.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    width = SIDE

    def __init__(self, render_mode=None, speed=0.1):
        self.render_mode, self.speed = render_mode, speed

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(0.1, 0.9, 2).astype(np.float32)
        return self.place.copy(), {}

    def step(self, action):
        self.place = np.clip(self.place + self.speed * action, 0, 1).astype(np.float32)
        return self.place.copy(), 0.0, self.over(), False, {}

    def over(self):
        return False

    def render(self):
        if self.render_mode != "rgb_array":
            return None
        picture = np.zeros((SIDE, self.width, 3), np.uint8)
        x, y = (0.999 * self.place * [self.width, SIDE]).astype(int)
        picture[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = 255
        return picture


class Wide(Dot):
    """Its pictures are twice as wide as high."""

    width = 2 * SIDE


class Edge(Dot):
    """An episode is over where the dot touches the rim."""

    def over(self):
        return bool((self.place <= 0).any() or (self.place >= 1).any())


class Short(Dot):
    """It is over with its first step."""

    def over(self):
        return True


class Seen(Dot):
    """It observes its picture, and tells its state."""

    observation_space = gymnasium.spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)

    def __init__(self):
        super().__init__("rgb_array")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.render(), {"state": self.place.copy()}

    def step(self, action):
        super().step(action)
        return self.render(), 0.0, False, False, {"state": self.place.copy()}


class Careless(Dot):
    """It does not keep to its seed."""

    def reset(self, *, seed=None, options=None):
        super().reset()
        return self.place.copy(), {}


def make_dot(**options):
    """A factory."""
    return Dot("rgb_array", **options)


def rightwards(observation, generator):
    """A policy of the user's."""
    return np.array([1 - observation[0], generator.uniform(-1, 1)], np.float32)


if "lewm-tests/Dot-v0" not in gymnasium.registry:
    gymnasium.register(
        "lewm-tests/Dot-v0", entry_point="tests.support.own_worlds:Dot", max_episode_steps=12
    )
