"""What every world owes: a `gymnasium.Env` with a spec, policies, goals that can be drawn, and
pixels nobody else holds."""

from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from lewm import registry
from lewm.contracts import Batched, Regioned, SingleWorld, WorldSpec
from lewm.worlds.kit.opening import open_world

SIZE = 64
# a world, or a world in a look that is another world to whoever acts in it
every_env = pytest.mark.parametrize("name", [*registry.names("worlds"), "two-room walls"])


def load(name):
    try:
        return registry.load("worlds", name.split()[0])
    except ImportError as missing:
        pytest.skip(str(missing))


def quick_look(name):
    """The look to test in: not every machine draws the published one quickly."""
    looks = load(name).looks
    return next(iter([*name.split()[1:], *({"fast"} & set(looks)), looks[0]]))


def opened(open_env, **options):
    try:
        return open_env(image_size=SIZE, **options)
    except ValueError as error:
        if "OpenGL" in str(error):
            pytest.skip(str(error))
        raise


def make(name, look=None):
    return opened(load(name), look=look or quick_look(name))


def make_world(name, num_envs):
    load(name)
    return opened(partial(open_world, name.split()[0], num_envs), look=quick_look(name))


def actions_of(env, count, seed=0):
    low, high = np.array(env.env_spec.action_low), np.array(env.env_spec.action_high)
    return np.random.default_rng(seed).uniform(low, high, (count, len(low))).astype(np.float32)


@every_env
def test_the_spec_describes_the_env(name):
    env = make(name)
    assert isinstance(env, SingleWorld)
    spec = env.env_spec
    assert isinstance(spec, WorldSpec)
    assert (spec.name, spec.image_size) == (name.split()[0], SIZE)
    assert spec.look == quick_look(name)
    assert spec.max_steps > 0
    np.testing.assert_array_equal(env.action_space.low, np.float32(spec.action_low))
    np.testing.assert_array_equal(env.action_space.high, np.float32(spec.action_high))
    pixels, info = env.reset(seed=0)
    assert (pixels.shape, pixels.dtype) == ((SIZE, SIZE, 3), np.uint8)
    for key in ("state", "goal"):
        assert (info[key].shape, info[key].dtype) == ((len(spec.state_names),), np.float32)
    assert len(spec.state_units) == len(spec.state_names)
    assert set(spec.layout) < set(spec.state_names)
    assert type(info["success"]) is bool
    assert pixels.std() > 0


@every_env
def test_every_look_has_a_name_and_a_picture_of_its_own(name):
    pictures = {}
    for look in load(name).looks:
        env = make(name, look)
        assert env.env_spec.look == look
        pictures[look], info = env.reset(seed=0)
        np.testing.assert_array_equal(env.render_state(info["state"]), pictures[look])
    assert load(name).looks[0] == "published"
    assert len({picture.tobytes() for picture in pictures.values()}) == len(pictures)
    with pytest.raises(ValueError, match=r"unknown .*publishd"):
        make(name, "publishd")


@every_env
def test_every_criterion_is_answered(name):
    env = make(name)
    first, *others = env.env_spec.criteria
    for _, info in [env.reset(seed=seed) for seed in range(5)]:
        assert not info["success"], "an episode that starts solved shows nothing"
        if others:
            assert info["criteria"].keys() == {first, *others}
            assert all(type(met) is bool for met in info["criteria"].values())
            assert info["criteria"][first] == info["success"]

    world = make_world(name, 3)
    world.reset([0, 1, 2])
    np.testing.assert_array_equal(world.success(), world.success(first))
    assert not world.success().any()
    states = world.states
    world.set_goals(states)
    for criterion in world.spec.criteria:
        met = world.success(criterion)
        assert (met.shape, met.dtype, met.all()) == ((3,), np.bool_, True)
    with pytest.raises(ValueError, match="Did you mean 'success'"):
        world.success("succes")


@every_env
@pytest.mark.filterwarnings("ignore:.*alternative render modes.*")
def test_gymnasium_agrees(name):
    env = make(name)
    check_env(env)
    here = f"{type(env).__module__}:{type(env).__name__}"
    ids = [spec.id for spec in gymnasium.registry.values() if spec.entry_point == here]
    assert ids, "register the env with a versioned id, such as lewm/TwoRoom-v1"
    assert all(spec_id.startswith("lewm/") and "-v" in spec_id for spec_id in ids)


@every_env
def test_one_seed_is_one_episode(name):
    def episode(seed):
        env = make(name)
        pixels, info = env.reset(seed=seed)
        frames, states = [pixels], [info["state"], info["goal"]]
        for action in actions_of(env, 5):
            pixels, *_, info = env.step(action)
            frames.append(pixels)
            states.append(info["state"])
        return np.stack(frames), np.stack(states)

    (frames, states), (again, states_again), (other, states_other) = (
        episode(3),
        episode(3),
        episode(4),
    )
    np.testing.assert_array_equal(frames, again)
    np.testing.assert_array_equal(states, states_again)
    assert (frames[0] != other[0]).any()
    assert (states[0] != states_other[0]).any()
    assert (states[1] != states_other[1]).any()
    assert (frames[0] != frames[-1]).any()


@every_env
def test_a_state_can_be_visited_again(name):
    env, other = make(name), make(name)
    env.reset(seed=0)
    for action in actions_of(env, 7):
        pixels, *_, info = env.step(action)
    other.reset(seed=1)
    other.set_state(info["state"])
    np.testing.assert_array_equal(other.render(), pixels)
    fixed, fixed_info = other.reset(seed=2, options={"state": info["state"], "goal": info["goal"]})
    np.testing.assert_array_equal(fixed, pixels)
    np.testing.assert_allclose(fixed_info["state"], info["state"], atol=1e-4)
    np.testing.assert_allclose(fixed_info["goal"], info["goal"], atol=1e-4)


@every_env
def test_a_goal_can_be_drawn_and_met(name):
    env = make(name)
    before, info = env.reset(seed=0)
    goal_pixels = env.render_state(info["goal"])
    assert (goal_pixels.shape, goal_pixels.dtype) == (before.shape, np.uint8)
    np.testing.assert_array_equal(env.render(), before)
    env.set_state(info["goal"])
    np.testing.assert_array_equal(env.render(), goal_pixels)
    *_, terminated, truncated, info = env.step(np.zeros(env.action_space.shape, np.float32))
    assert info["success"]
    assert terminated
    assert not truncated


@every_env
def test_the_spec_knows_where_things_are_drawn_and_what_is_near_enough(name):
    env = make(name)
    extent, tolerance = env.env_spec.picture_extent, env.env_spec.tolerance
    if extent is None or tolerance is None:
        pytest.skip("a world whose states are no places in the picture")
    for seed in range(10):
        _, info = env.reset(seed=seed)
        state, goal = info["state"], info["goal"]
        change = np.abs(env.render_state(state).astype(float) - env.render_state(goal)).sum(axis=-1)
        down, right = (np.indices(change.shape) * change).sum(axis=(1, 2)) / change.sum()
        middle = (np.array([right, down]) + 0.5) * extent / SIZE
        np.testing.assert_allclose(middle, (state[:2] + goal[:2]) / 2, atol=2 * extent / SIZE)

        towards = (state - goal) / np.linalg.norm(state - goal)
        for share, near in ((0.95, True), (1.05, False)):
            _, there = env.reset(
                options={"state": goal + share * tolerance * towards, "goal": goal}
            )
            assert there["success"] is near


@every_env
def test_pictures_share_no_memory(name):
    env = make(name)
    first, info = env.reset(seed=0)
    kept = first.copy()
    action = actions_of(env, 1)[0]
    second, *_ = env.step(action)
    np.testing.assert_array_equal(first, kept)
    drawn, state = env.render(), info["state"].copy()
    for picture in (first, second, drawn, env.render_state(info["state"])):
        picture[:] = 77
    np.testing.assert_array_equal(env.render_state(state), kept)
    env.step(action)
    np.testing.assert_array_equal(info["state"], state)


@every_env
def test_actions_are_clipped_to_the_box_and_nan_is_rest(name):
    def after(action):
        env = make(name)
        env.reset(seed=0)
        return env.step(np.asarray(action, np.float32))[-1]["state"]

    spec = make(name).env_spec
    np.testing.assert_array_equal(after(np.array(spec.action_high) + 100), after(spec.action_high))
    np.testing.assert_array_equal(after(np.array(spec.action_low) - 100), after(spec.action_low))
    rest = np.zeros(len(spec.action_low))
    np.testing.assert_array_equal(after(rest + np.nan), after(rest))


@every_env
def test_the_expert_beats_random(name):
    world, seeds = make_world(name, 8), range(8)

    def met_within(steps, policy):
        world.reset(seeds)
        act, met, taken = world.policy(policy, seeds), world.success(), 0
        while taken < steps and not met.all():
            world.step(act())
            met |= world.success()
            taken += 1
        return met.sum(), taken

    assert {"expert", "random"} <= set(world.policies)
    expert, taken = met_within(world.spec.max_steps, "expert")
    random, _ = met_within(taken, "random")
    assert expert >= random + 3


@every_env
def test_policies_stay_in_the_box_and_follow_their_seed(name):
    def actions(policy, seed):
        env = make(name)
        env.reset(seed=0)
        act, found = env.policy(policy, seed), []
        for _ in range(10):
            found.append(act())
            env.step(found[-1])
        return np.stack(found)

    env = make(name)
    for policy in env.policies:
        found = actions(policy, 1)
        assert found.dtype == np.float32
        assert all(env.action_space.contains(action) for action in found)
        np.testing.assert_array_equal(found, actions(policy, 1))
    assert (actions("random", 1) != actions("random", 2)).any()
    with pytest.raises(ValueError, match="Did you mean 'expert'"):
        env.policy("expret", 0)


@every_env
def test_regions_are_numbers(name):
    env = make(name)
    if not isinstance(env, Regioned):
        pytest.skip("a world without regions")
    states = np.stack([env.reset(seed=seed)[1]["state"] for seed in range(20)])
    regions = env.regions(states)
    assert regions.shape == (20,)
    assert np.issubdtype(regions.dtype, np.integer)
    assert len(set(regions.tolist())) > 1


@every_env
def test_a_layout_stays_for_an_episode(name):
    world = make_world(name, 8)
    if not world.spec.layout:
        pytest.skip("a world whose surroundings are the same in every episode")
    of = [world.spec.state_names.index(variable) for variable in world.spec.layout]
    world.reset(range(8))
    layouts = world.states[:, of]
    assert len(np.unique(layouts, axis=0)) > 1
    act = world.policy("expert", range(8))
    for _ in range(20):
        np.testing.assert_array_equal(world.goals[:, of], layouts)
        world.step(act())
        np.testing.assert_array_equal(world.states[:, of], layouts)
    moved = world.teleport(world.spec.things, world.states, range(8))
    np.testing.assert_array_equal(moved[:, of], layouts)


@every_env
def test_a_batch_changes_no_environment(name):
    if not isinstance(load(name), Batched):
        pytest.skip("a world without a batched form")
    seeds, chosen = [11, 5, 8, 21], 2
    for policy in load(name).policies:
        world, single = make_world(name, len(seeds)), make(name)
        assert world.spec == single.env_spec
        assert world.num_envs == len(seeds)
        assert world.policies == single.policies
        world.reset(seeds)
        single.reset(seed=seeds[chosen])
        act, act_single = world.policy(policy, seeds), single.policy(policy, seeds[chosen])
        for step in range(20):
            actions, action = act(), act_single()
            np.testing.assert_array_equal(actions[chosen], action)
            world.step(actions)
            pixels, *_, info = single.step(action)
            np.testing.assert_array_equal(world.states[chosen], info["state"])
            np.testing.assert_array_equal(world.goals[chosen], info["goal"])
            assert world.success()[chosen] == info["success"]
            if step % 5 == 0:  # drawing is what takes time
                np.testing.assert_array_equal(world.render()[chosen], pixels)


@every_env
def test_a_batch_keeps_its_memory_to_itself(name):
    if not isinstance(load(name), Batched):
        pytest.skip("a world without a batched form")
    world = make_world(name, 3)
    world.reset([0, 1, 2])
    states, goals, pixels = world.states, world.goals, world.render()
    given = states[::-1].copy()
    np.testing.assert_array_equal(world.render(given), pixels[::-1])
    np.testing.assert_array_equal(world.states, states)
    world.set_states(given)
    world.set_goals(given)
    np.testing.assert_array_equal(world.goals, given)
    assert world.success().all()
    given[:] = goals
    for handed_out in (world.states, world.goals, world.render()):
        handed_out[:] = 1
    np.testing.assert_array_equal(world.states, states[::-1])
    np.testing.assert_array_equal(world.goals, states[::-1])
    np.testing.assert_array_equal(world.render(), pixels[::-1])
    with pytest.raises(ValueError, match="3 seeds"):
        world.reset([0, 1])
