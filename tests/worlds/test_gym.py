"""Plain Gymnasium environments: what they give as a world, and in which words the rest is
refused."""

import importlib.util
from itertools import pairwise

import gymnasium
import numpy as np
import pytest

from lewm import registry
from lewm.contracts import Ending, WorldSpec
from lewm.data.collecting import collect
from lewm.worlds.kit.gym import GymWorld
from lewm.worlds.kit.opening import Looped, can_open, open_world
from tests.support import own_worlds
from tests.support.episodes import assert_same
from tests.support.own_worlds import (
    SIDE,
    Careless,
    Dot,
    Edge,
    Seen,
    Short,
    Wide,
    make_dot,
    rightwards,
)

ID = "gym:lewm-tests/Dot-v0"
KINDS = {
    "class": (Dot, {"max_steps": 12}),
    "factory": (make_dot, {"max_steps": 12}),
    "id": (ID, {}),
    "pictures": (Seen, {"max_steps": 12}),
    "ends early": (Edge, {"max_steps": 12}),
    "scaled": (Dot, {"max_steps": 12, "image_size": 8}),
    "cropped": (Wide, {"max_steps": 12, "crop": "center"}),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def opened(kind, num_envs=3):
    world, options = KINDS[kind]
    return open_world(world, num_envs, **options)


# ------------------------------------------------------- the contract of a world, what there is


@each_kind
def test_the_spec_describes_the_world(kind):
    world = opened(kind)
    spec = world.spec
    assert isinstance(spec, WorldSpec)
    assert isinstance(world, Ending)
    assert (spec.max_steps, spec.look, spec.things) == (12, "published", ())
    assert (spec.action_low, spec.action_high) == ((-1.0, -1.0), (1.0, 1.0))
    assert spec.image_size == (8 if kind == "scaled" else SIDE)
    pixels = world.render()
    assert (pixels.shape, pixels.dtype) == ((3, spec.image_size, spec.image_size, 3), np.uint8)
    assert (world.states.shape, world.states.dtype) == ((3, len(spec.state_names)), np.float32)
    assert len(spec.state_units) == len(spec.state_names)
    first = "state 0" if kind == "pictures" else "observation 0"
    assert spec.state_names[0] == first
    assert world.regions(world.states) is None


@each_kind
def test_one_seed_is_one_episode_alone_or_in_a_batch(kind):
    def episode(seeds):
        world = opened(kind, len(seeds))
        world.reset(seeds)
        act = world.policy("random", seeds)
        frames, actions, states = [world.render()], [], [world.states]
        for _ in range(8):
            actions.append(act())
            world.step(actions[-1])
            frames.append(world.render())
            states.append(world.states)
        return [np.stack(arrays) for arrays in (frames, actions, states)]

    together, alone, other = episode([5, 3, 2**40]), episode([3]), episode([4])
    for batch, single, another in zip(together, alone, other):
        np.testing.assert_array_equal(batch[:, 1], single[:, 0])
        assert (single != another).any()
    assert together[1].dtype == np.float32
    assert (np.abs(together[1]) <= 1).all()


@each_kind
def test_pictures_share_no_memory(kind):
    world = opened(kind)
    first = world.render()
    kept = first.copy()
    first[:] = 77
    np.testing.assert_array_equal(world.render(), kept)
    states = world.states
    world.states[:] = 9
    np.testing.assert_array_equal(world.states, states)


@each_kind
def test_actions_are_clipped_to_the_box_and_nan_is_rest(kind):
    def after(action):
        world = opened(kind, 1)
        world.step(np.array([action]))
        return world.states

    np.testing.assert_array_equal(after([100.0, -100.0]), after([1.0, -1.0]))
    np.testing.assert_array_equal(after([np.nan, np.nan]), after([0.0, 0.0]))
    with pytest.raises(ValueError, match=r"must have shape \(1, 2\)"):
        after([1.0])


@pytest.mark.parametrize("mark", ["terminated", "truncated", "limit"])
def test_an_episode_that_is_over_stays_as_it_is(mark):
    """Whichever of the two marks says so: the environment's own, or that of a time limit around
    it."""

    class Four(Dot):
        steps = 0

        def reset(self, *, seed=None, options=None):
            self.steps = 0
            return super().reset(seed=seed)

        def step(self, action):
            self.steps += 1
            place, reward, *_, info = super().step(action)
            over = self.steps == 4
            return place, reward, over and mark == "terminated", over and mark == "truncated", info

    def make():
        return (
            gymnasium.wrappers.TimeLimit(Dot("rgb_array"), 4)
            if mark == "limit"
            else Four("rgb_array")
        )

    world, step = open_world(make, 2, max_steps=12), 0.01 * np.ones((2, 2))
    for _ in range(2):
        world.reset([0, 1])
        begun = [world.states]
        for _ in range(7):
            assert world.ended.tolist() == [len(begun) > 4] * 2
            world.step(step)
            begun.append(world.states)
        assert [(a != b).all() for a, b in pairwise(begun)] == [True] * 4 + [False] * 3
        np.testing.assert_array_equal(begun[-1], begun[4])


def test_names():
    assert opened("class").spec.name == "tests.support.own_worlds.Dot"
    assert opened("factory").spec.name == "tests.support.own_worlds.make_dot"
    assert (opened("id").spec.name, opened("id").spec.version) == (ID, gymnasium.__version__)
    assert can_open(ID)
    assert can_open("two-room")
    assert not can_open("tests.support.own_worlds.Dot")


def test_scaling_averages_over_areas():
    full, scaled = opened("class", 1), opened("scaled", 1)
    full.reset([1])
    scaled.reset([1])
    area = full.render()[0].reshape(8, 3, 8, 3, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(scaled.render()[0], area, atol=0.51)


def test_cropping_keeps_the_middle():
    world = opened("cropped", 1)
    whole = world.envs[0].render()
    np.testing.assert_array_equal(world.render()[0], whole[:, SIDE // 2 : -SIDE // 2])


def test_an_option_goes_to_the_class_that_takes_it():
    fast, slow = open_world(Dot, 1, max_steps=9, speed=0.2), open_world(Dot, 1, max_steps=9)
    assert (fast.envs[0].speed, slow.envs[0].speed) == (0.2, 0.1)
    assert open_world(ID, 1, max_steps=5, speed=0.2).envs[0].unwrapped.speed == 0.2
    assert open_world(ID, 1, max_steps=5).spec.max_steps == 5


def test_a_class_that_keeps_our_promises_is_opened_as_a_plugin():
    from lewm.worlds.two_room import TwoRoom

    class Single(gymnasium.Env):
        """Without a batched form."""

        def __init__(self, image_size=16):
            self.inner = TwoRoom(image_size=image_size)
            self.env_spec, self.policies = self.inner.env_spec, self.inner.policies
            self.action_space = self.inner.action_space
            self.observation_space = self.inner.observation_space
            self.reset, self.step, self.policy = (
                self.inner.reset,
                self.inner.step,
                self.inner.policy,
            )
            self.render, self.render_state = self.inner.render, self.inner.render_state

    batched, looped = open_world(TwoRoom, 2, image_size=16), open_world(Single, 2, image_size=16)
    assert isinstance(looped, Looped)
    for world in (batched, looped):
        world.reset([1, 2])
    np.testing.assert_array_equal(batched.render(batched.goals), looped.render(looped.goals))
    with pytest.raises(ValueError, match=r"unknown option of world .*'max_steps'"):
        open_world(Single, 1, max_steps=3)


@pytest.mark.skipif(importlib.util.find_spec("pygame") is None, reason="Pendulum draws with pygame")
def test_pendulum(tmp_path):
    with collect("gym:Pendulum-v1", tmp_path / "p.h5", 2, image_size=32, max_steps=5) as data:
        assert data.lengths.tolist() == [6, 6]
        assert data.state_names == ("observation 0", "observation 1", "observation 2")
        assert data.pixels_at([0]).std() > 0


# ----------------------------------------------------------------------------------------- refusals


def space(box):
    return type("Other", (Dot,), {"action_space": box})


REFUSED = {
    "choices": (
        space(gymnasium.spaces.Discrete(3)),
        {},
        r"a few numbers with finite bounds, a Box of shape \(a,\), got Discrete\(3\).*"
        "gymnasium.ActionWrapper",
    ),
    "no bounds": (
        space(gymnasium.spaces.Box(-np.inf, np.inf, (2,))),
        {},
        "finite bounds, got Box.*gymnasium.wrappers.RescaleAction",
    ),
    "whole numbers": (
        space(gymnasium.spaces.Box(0, 9, (2,), np.int64)),
        {},
        "a Box of floats, got Box",
    ),
    "not square": (Wide, {}, r"square pictures, got 48 x 24 .*crop=center.*--image-size"),
    "unknown crop": (Wide, {"crop": "centre"}, "unknown crop 'centre'.*Did you mean 'center'"),
    "no picture": (Dot, {"render_mode": None}, r"uint8 \(H, W, 3\).*got None.*'rgb_array'"),
    "no length": (Dot, {"max_steps": None}, "how many steps an episode has.*max_steps=100"),
    "length 0": (Dot, {"max_steps": 0}, "max_steps must be at least 1, got 0"),
    "option": (Dot, {"sped": 1}, "unknown option of world .*Dot' 'sped'. Did you mean 'speed'"),
    "an instance": (Dot(), {}, "pass the class, not one environment"),
    "no environment": (dict, {}, "to make a Gymnasium environment, got {} without `reset`"),
    "unknown id": ("gym:Pendulm-v1", {}, "Did you mean: `Pendulum`.*Give another id"),
    "module": ("gym:os:Dot-v0", {}, "with an id that is registered, got 'gym:os:Dot-v0'"),
    "id's option": (ID, {"sped": 1}, "unexpected keyword argument 'sped'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_said_with_its_cure(case):
    world, options, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        open_world(world, 1, **{"max_steps": 12, **options})


@pytest.mark.parametrize("size", [0, -1, 10**9])
def test_impossible_sizes_are_refused(size):
    with pytest.raises(ValueError, match=r"expected pictures of 1 to 4096 px.*--image-size"):
        open_world(Dot, 1, max_steps=12, image_size=size)


def test_a_world_that_draws_another_size_than_it_says_is_told_how_to():
    plugin = registry.load("worlds", "two-room")

    class Wrong(plugin):
        def render(self):
            return np.zeros((24, 48, 3), np.uint8)

        def render_state(self, state):
            return np.zeros((16, 16, 3))

    world = Looped([Wrong(image_size=16)])
    with pytest.raises(
        ValueError, match=r"expected uint8 .*`render\(\)`.*got uint8 \(24, 48, 3\).*--image-size"
    ):
        world.render()
    with pytest.raises(ValueError, match=r"`render_state\(state\)`.*got float64"):
        world.render(world.states)


def test_an_id_with_a_module_imports_nothing(monkeypatch):
    monkeypatch.setattr(gymnasium, "make", lambda *_, **__: pytest.fail("it was asked"))
    with pytest.raises(ValueError, match="a module would be imported"):
        open_world("gym:antigravity:Dot-v0", 1)


def test_what_it_lacks_is_said_in_one_paragraph():
    world = opened("class", 2)
    for ask in (
        lambda: world.goals,
        lambda: world.set_states(world.states),
        lambda: world.set_goals(world.states),
        world.success,
        lambda: world.render(world.states),
        lambda: world.teleport(["dot"], world.states, [0, 1]),
        lambda: world.recoloured("dot"),
    ):
        with pytest.raises(ValueError, match="is a plain Gymnasium environment") as refused:
            ask()
        words = str(refused.value)
        for part in ("`render_state`", "`info['goal']`", "docs/your-own-data.md", "lewm analyse"):
            assert part in words
        assert "\n" not in words
    assert "`info['state']`" in world.lacking("It")
    assert "`info['state']`" not in opened("pictures").lacking("It")
    with pytest.raises(ValueError, match=r"unknown policy of .*'expert'. Known: random"):
        world.policy("expert", [0, 1])


# ---------------------------------------------------------------------------------------- recording


@each_kind
def test_recording_depends_on_seed_and_number_alone(kind, tmp_path):
    world, options = KINDS[kind]
    collect(world, tmp_path / "a.h5", 5, seed=3, **options).close()
    collect(world, tmp_path / "b.h5", 5, seed=3, batch_size=2, **options).close()
    assert_same(tmp_path / "a.h5", tmp_path / "b.h5")
    with (
        collect(world, tmp_path / "c.h5", 5, seed=4, **options) as other,
        collect(world, tmp_path / "a.h5", 5, seed=3, **options) as data,
    ):
        assert data.provenance.world == opened(kind).spec.name
        assert data.provenance.policy == "random"
        assert (data.actions(0)[0] != other.actions(0)[0]).any()


@pytest.mark.parametrize("world", [Edge, ID])
def test_two_processes_record_the_same(world, tmp_path):
    options = {"max_steps": 12, "policy": rightwards}
    collect(world, tmp_path / "one.h5", 4, **options).close()
    collect(world, tmp_path / "two.h5", 4, processes=2, **options).close()
    assert_same(tmp_path / "two.h5", tmp_path / "one.h5")


def test_what_other_processes_cannot_import_is_refused(tmp_path):
    class Here(Dot):
        pass

    with pytest.raises(ValueError, match="at the top of a module, or use processes=1"):
        collect(Here, tmp_path / "a.h5", 4, max_steps=5, processes=2)
    with collect(Here, tmp_path / "a.h5", 4, max_steps=5, processes=None) as data:
        assert len(data) == 4


@pytest.mark.parametrize("every", [1, 3])
def test_episodes_that_end_early_have_their_true_length(every, tmp_path):
    with collect(Edge, tmp_path / "a.h5", 8, max_steps=30, seed=1, every=every) as data:
        lengths = data.lengths.tolist()
        assert len(set(lengths)) > 2
        for i, length in enumerate(lengths):
            seed, policy_seed = np.random.SeedSequence((1, i)).generate_state(2, np.uint64) >> 1
            env, world = Edge("rgb_array"), open_world(Edge, 1, max_steps=30)
            place, _ = env.reset(seed=int(seed))
            act = world.policy("random", [int(policy_seed)])
            states, frames, actions, over = [place], [env.render()], [], False
            while not over and len(actions) < 30:
                actions.append(act()[0])
                place, _, over, _, _ = env.step(actions[-1])
                states.append(place)
                frames.append(env.render())
            rows = len(actions) // every
            assert length == rows + 1
            episode = data.episode(i)
            np.testing.assert_array_equal(episode.states, states[: rows * every + 1 : every])
            np.testing.assert_array_equal(episode.pixels, frames[: rows * every + 1 : every])
            done = np.reshape(actions[: rows * every], (rows, -1))
            np.testing.assert_array_equal(episode.actions[:-1], done)
            assert np.isnan(episode.actions[-1]).all()


def test_a_world_that_ends_at_once_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="expected episodes of several steps, got 9 that were over"
    ):
        collect(Short, tmp_path / "a.h5", 2, max_steps=5)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"at least 10 steps.*Record every step \(every=1\)"):
        collect(Edge, tmp_path / "a.h5", 8, max_steps=30, every=10)


def test_a_world_that_does_not_keep_to_its_seed_is_named(tmp_path):
    with pytest.warns(UserWarning, match="began seed 0 with another picture.*self.np_random"):
        collect(Careless, tmp_path / "a.h5", 1, max_steps=5).close()


def test_a_world_without_states_is_recorded_without(tmp_path):
    class Blind(Seen):
        def reset(self, **options):
            return super().reset(**options)[0], {}

        def step(self, action):
            return (*super().step(action)[:4], {})

    with collect(Blind, tmp_path / "a.h5", 2, max_steps=5) as data:
        assert not data.has_states
        assert data.episode(0).states is None


def test_without_a_policy_an_expert_acts_where_there_is_one(tmp_path):
    for world, options, policy in (
        (Dot, {"max_steps": 5}, "random"),
        ("two-room", {"image_size": 16}, "expert"),
    ):
        with collect(world, tmp_path / f"{policy}.h5", 1, **options) as data:
            assert data.provenance.policy == policy


def test_a_state_is_told_always_or_never():
    class Forgetful(Seen):
        def step(self, action):
            return (*super().step(action)[:4], {})

    world = open_world(Forgetful, 1, max_steps=5)
    world.step(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="from every `reset` and `step`"):
        _ = world.states


def test_a_policy_of_ones_own(tmp_path):
    def leftwards(observation):
        return np.array([-observation[0], 0])

    with collect(Dot, tmp_path / "a.h5", 2, leftwards, max_steps=5) as data:
        np.testing.assert_array_equal(data.actions(1)[:-1, 0], -data.states(1)[:-1, 0])
        assert data.provenance.policy.endswith("leftwards")
    with collect(Dot, tmp_path / "b.h5", 2, rightwards, max_steps=5) as data:
        assert (data.actions(0)[:-1, 1] != data.actions(1)[:-1, 1]).any()

    def brighter(picture):
        assert (picture.dtype, picture.shape) == (np.uint8, (16, 16, 3))
        return np.array([0.5, -0.5])

    with collect("two-room", tmp_path / "c.h5", 1, brighter, image_size=16) as data:
        assert (data.actions(0)[:-1] == [0.5, -0.5]).all()
    for wrong in (lambda o: 0.0, lambda o: [0.0, np.nan]):
        with pytest.raises(ValueError, match=r"expected a finite action of shape \(2,\), got"):
            collect(Dot, tmp_path / "d.h5", 1, wrong, max_steps=5)


def test_the_support_module_is_a_users():
    assert not [name for name in vars(own_worlds) if name.startswith("lewm")]
    assert isinstance(opened("class"), GymWorld)
