"""Reacher: dynamics and picture against DeepMind Control's own, success and policies against known
answers."""

import numpy as np
import pytest

from lewm.worlds.kit.opening import open_world

pytest.importorskip("dm_control", reason="needs lewm[mujoco]")
SIZE = 48
LIMIT = np.deg2rad(160)


def make(num_envs=1, look="fast", size=SIZE):
    try:
        return open_world("reacher", num_envs, image_size=size, look=look)
    except ValueError as error:
        if "OpenGL" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="module")
def suite():
    """The benchmark's environment, whose target sphere the published variant makes transparent."""
    make()  # a GL is found before dm_control looks for one
    from dm_control.suite import reacher

    env = reacher.hard(random=0)
    env.reset()
    env.physics.named.model.mat_rgba["target", "a"] = 0
    return env


def put(suite, state):
    with suite.physics.reset_context():
        suite.physics.data.qpos[:], suite.physics.data.qvel[:] = state[:2], state[2:]


def test_motion_is_the_benchmarks_with_every_action_taken_twice(suite):
    world = make()
    start = np.array([0.3, 2.5, 1.0, 4.0], np.float32)  # about to run into the stop of the wrist
    world.set_states(start[None])
    put(suite, start)
    stopped = False
    for action in np.random.default_rng(0).uniform(-1, 1, (60, 2)):
        world.step(action[None])
        for _ in range(2):
            suite.step(action)
        expected = np.concatenate([suite.physics.data.qpos, suite.physics.data.qvel])
        np.testing.assert_allclose(world.states[0], expected, rtol=1e-6, atol=1e-6)
        stopped |= abs(expected[1]) > LIMIT - 0.02
    assert stopped


@pytest.mark.parametrize("size", [48, 224])
def test_the_published_look_is_the_benchmarks_without_the_target(suite, size):
    world = make(look="published", size=size)
    for state in ([0.4, -1.2, 0, 0], [-2.8, 2.0, 3, -1]):
        put(suite, np.array(state))
        expected = suite.physics.render(size, size, camera_id=0).astype(int)
        assert np.abs(world.render(np.array([state])) - expected).max() <= 1


def test_the_fast_look_shows_the_same_arm():
    fast, published = make(look="fast"), make(look="published")
    states = np.array([[0.4, -1.2, 0, 0], [0.9, -1.2, 0, 0]])
    (a, b), (c, d) = fast.render(states).astype(int), published.render(states).astype(int)
    moved, moved_too = np.abs(a - b).sum(axis=-1) > 60, np.abs(c - d).sum(axis=-1) > 60
    assert (moved & moved_too).sum() > 0.7 * (moved | moved_too).sum()


def test_no_picture_shows_goal_or_velocity():
    world = make()
    world.reset([0])
    state, before = world.states, world.render()
    world.set_goals(state + 1)
    world.set_states(state + np.array([0, 0, 1, 1], np.float32))
    np.testing.assert_array_equal(world.render(), before)


def test_without_torque_a_resting_arm_rests():
    world = make(3)
    world.reset([0, 1, 2])
    before = world.states
    for _ in range(10):
        world.step(np.zeros((3, 2)))
    np.testing.assert_allclose(world.states, before, atol=1e-6)


def test_success_is_each_joint_within_its_tolerance_the_short_way_round():
    world = make()
    goal = np.array([3.1, 0.5, 0, 0], np.float32)
    world.set_goals(goal[None])

    def met(*change):
        world.set_states((goal + np.array(change, np.float32))[None])
        return bool(world.success()[0]), bool(world.success("unwrapped")[0])

    assert met(0.049, -0.049, 9, 9) == (True, True)
    assert met(0.051, 0, 0, 0) == met(0, -0.051, 0, 0) == (False, False)
    assert met(2 * np.pi, 0, 0, 0) == met(-4 * np.pi + 0.04, 0.04, 0, 0) == (True, False)
    assert met(np.pi, 0, 0, 0) == (False, False)


def test_starts_and_goals_are_any_pose_at_rest():
    world = make(400)
    world.reset(range(400))
    states, goals = world.states, world.goals
    for poses in (states, goals):
        assert (poses[:, 2:] == 0).all()
        low, high = poses[:, :2].min(axis=0), poses[:, :2].max(axis=0)
        np.testing.assert_allclose([low, high], [[-np.pi, -LIMIT], [np.pi, LIMIT]], atol=0.2)
        assert np.abs(poses[:, :2].mean(axis=0)).max() < 0.3
    apart = np.abs((goals - states + np.pi) % (2 * np.pi) - np.pi)[:, :2].max(axis=1)
    assert apart.min() >= 2 * 0.05


def test_the_expert_takes_up_every_pose_and_goes_on_to_others():
    world = make(64)
    world.reset(range(64))
    act, met, states, actions = world.policy("expert", range(64)), world.success(), [], []
    for step in range(200):
        actions.append(act())
        world.step(actions[-1])
        states.append(world.states)
        met |= world.success()
        assert met.all() or step < 100
    states, actions = np.array(states), np.array(actions)
    places, _ = np.histogramdd(
        np.stack([(states[..., 0] + np.pi) % (2 * np.pi) - np.pi, states[..., 1]],
        axis=-1).reshape(-1, 2),
        bins=8, range=[(-np.pi, np.pi), (-LIMIT, LIMIT)],
    )  # fmt: skip
    assert places.min() > 0.2 * places.mean(), "every pose is seen"
    assert 0.5 < actions.std() < 0.9, "and so are actions of any strength"
    calmest = np.abs(np.diff(actions, axis=0)).mean(axis=(0, 2))
    assert calmest.max() > 1.3 * calmest.min(), "some errands are noisier than others"


def test_random_is_uniform():
    act = make(50).policy("random", range(50))
    actions = np.concatenate([act() for _ in range(100)])
    np.testing.assert_allclose(actions.mean(axis=0), 0, atol=0.03)
    np.testing.assert_allclose(actions.std(axis=0), 1 / np.sqrt(3), atol=0.02)


def test_what_does_not_fit_is_refused():
    world = make(2)
    with pytest.raises(ValueError, match=r"states.*shoulder velocity.*\(2, 4\)"):
        world.set_states(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="goals must be finite"):
        world.set_goals(np.full((2, 4), np.nan))
    with pytest.raises(ValueError, match=r"\(2, 2\), one row per environment, got \(2,\)"):
        world.step(np.zeros(2))
    with pytest.raises(ValueError, match="image_size >= 16"):
        make(size=8)
