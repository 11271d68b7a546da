"""A batch of one as a Gymnasium environment: spaces of its spec, criteria where there are several,
options of its world."""

import gymnasium
import numpy as np
import pytest

from lewm import registry
from lewm.contracts import WorldSpec
from lewm.worlds.kit.opening import open_world
from lewm.worlds.kit.single import Single


class Line:
    """B points on a line, moved by the first action; the world that is asked for `speed` knows it,
    and nothing else."""

    def __init__(self, num_envs, image_size=8, speed=1.0, criteria=("success", "close")):
        low, high = (-1.0, -2.0), (1.0, 3.0)
        self.spec = WorldSpec(
            "line", "1", image_size, low, high, ("x",), ("px",), 6, criteria=criteria
        )
        self.num_envs, self.speed = num_envs, speed

    def reset(self, seeds):
        self.seeds = list(seeds)
        self.states, self.goals = np.zeros((2, self.num_envs, 1), np.float32)
        self.goals += 4

    def set_states(self, states):
        self.states = np.float32(states)

    def set_goals(self, goals):
        self.goals = np.float32(goals)

    def step(self, actions):
        self.states = self.states + np.float32(self.speed * actions[:, :1])

    def render(self, states=None):
        size = self.spec.image_size
        return np.uint8(
            [
                np.full((size, size, 3), 10 * x)
                for x in (self.states if states is None else states)[:, 0]
            ]
        )

    def success(self, criterion=None):
        return np.abs(self.states - self.goals)[:, 0] < (2 if criterion == "close" else 1)

    def policy(self, name, seeds):
        return lambda: np.float32([[seed, 0] for seed in seeds])


class OnALine(Single):
    world_class = Line
    policies = ("expert",)
    looks = ("published",)


def test_spaces_are_those_of_the_spec():
    env = OnALine(16)
    assert env.action_space == gymnasium.spaces.Box(np.float32([-1, -2]), np.float32([1, 3]))
    assert env.observation_space == gymnasium.spaces.Box(0, 255, (16, 16, 3), np.uint8)
    assert (env.render_mode, env.env_spec, env.world.num_envs) == ("rgb_array", env.world.spec, 1)


def test_an_episode():
    env = OnALine(speed=1.5)
    pixels, info = env.reset(seed=7)
    assert env.world.seeds == [7]
    assert (pixels == 0).all()
    assert info == {
        "state": [0],
        "goal": [4],
        "success": False,
        "criteria": {"success": False, "close": False},
    }
    told = [env.step(np.array([1, 0])) for _ in range(3)]
    assert [float(info["state"][0]) for *_, info in told] == [1.5, 3.0, 4.5]
    assert [info["criteria"]["close"] for *_, info in told] == [False, True, True]
    assert [(reward, terminated, truncated) for _, reward, terminated, truncated, _ in told] == [
        (0.0, False, False), (0.0, False, False), (1.0, True, False)
    ]  # fmt: skip
    assert [int(pixels.max()) for pixels, *_ in told] == [15, 30, 45]
    assert (env.render_state([2]) == 20).all()
    assert (env.render() == 45).all()
    np.testing.assert_array_equal(env.policy("expert", 3)(), [3, 0])


def test_resets_go_on_from_the_seed_and_may_be_fixed():
    def drawn(env):
        return [env.reset(seed=5) and env.world.seeds] + [
            env.reset() and env.world.seeds for _ in range(2)
        ]

    first = drawn(OnALine())
    assert first == drawn(OnALine())
    assert first[1] != first[2]
    pixels, info = OnALine().reset(seed=0, options={"state": [3], "goal": [3.5]})
    assert (pixels == 30).all()
    assert (info["goal"], info["success"]) == ([3.5], True)
    with pytest.raises(
        ValueError, match=r"unknown reset option of line 'stat'\. Did you mean 'state'"
    ):
        OnALine().reset(options={"stat": [0]})


def test_one_criterion_is_success_alone():
    _, info = OnALine(criteria=("success",)).reset(seed=0)
    assert info.keys() == {"state", "goal", "success"}


def test_a_misspelt_option_is_answered_with_those_of_the_world(monkeypatch):
    monkeypatch.setattr(registry, "load", lambda kind, name: OnALine)
    world = open_world("line", 3, speed=2.0)
    assert (type(world), world.num_envs, world.speed) == (Line, 3, 2.0)
    with pytest.raises(
        ValueError,
        match=r"option of world 'line' 'sped'\. Did you mean 'speed'\? Known: image_size, sp",
    ):
        open_world("line", 3, sped=2.0)
