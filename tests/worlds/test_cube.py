"""Cube: dynamics, picture and readings against OGBench's own, success and policies against known
answers."""

import importlib
import sys

import numpy as np
import pytest

from lewm.worlds.kit.offscreen import find_backend
from lewm.worlds.kit.opening import open_world

mujoco = pytest.importorskip("mujoco", reason="needs lewm[cube]")
pytest.importorskip("lewm.worlds.cube", reason="needs lewm[cube]", exc_type=ImportError)
SIZE = 48


def make(num_envs=1, look="fast", size=SIZE):
    try:
        return open_world("cube", num_envs, image_size=size, look=look)
    except ValueError as error:
        if "OpenGL" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="module")
def played():
    """(T, 8, 47) states and (T, 8, 5) actions of the expert, and its world."""
    world = make(8)
    world.reset(range(8))
    before = np.random.get_state()[1].copy()
    act, states, actions, met = (
        world.policy("expert", range(8)),
        [world.states],
        [],
        world.success(),
    )
    for _ in range(200):
        actions.append(act())
        world.step(actions[-1])
        states.append(world.states)
        met |= world.success()
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    return world, np.array(states), np.array(actions), met


def column(states, name):
    from lewm.worlds.cube import STATE_NAMES

    return states[..., STATE_NAMES.index(name)]


def block(states):
    return np.stack([column(states, f"block {axis}") for axis in "xyz"], axis=-1)


def test_names_follow_the_joints_of_the_model():
    world = make()
    model, names, units = world.simulator.model, world.spec.state_names, world.spec.state_units
    assert len(names) == len(units) == len(set(names)) == model.nq + model.nv + 6
    hinges = [
        model.joint(j).name.split("/")[-1].removesuffix("_joint").replace("_", " ")
        for j in range(14)
    ]
    assert list(names[:14]) == hinges
    assert list(names[21:35]) == [f"{hinge} velocity" for hinge in hinges]
    assert model.joint("object_joint_0").qposadr == 14
    assert [units[names.index(name)] for name in ("elbow", "block z", "block qw", "block vx",
    "effector yaw")] == [
        "rad", "m", "1", "m/s", "rad",
    ]  # fmt: skip


def test_motion_is_the_benchmarks(played):
    _, states, actions, _ = played
    world = make()
    env = world.simulator._env
    world.set_states(states[30, :1])
    theirs = world.tables[0].__copy__()
    for action in actions[30:40, 0].astype(np.float64):
        world.step(action[None])
        env._data = theirs
        env.step(action)
        np.testing.assert_array_equal(world.tables[0].qpos, theirs.qpos)
        np.testing.assert_array_equal(world.tables[0].qvel, theirs.qvel)


def test_readings_are_the_benchmarks(played):
    world, states, *_ = played
    env = world.simulator._env
    for state in states[::40, 0]:
        world.set_states(np.tile(state, (8, 1)))
        env._data = world.tables[0]
        info = env.compute_ob_info()
        np.testing.assert_allclose(
            [column(state, f"effector {axis}") for axis in "xyz"],
            info["proprio/effector_pos"],
            atol=1e-5,
        )
        np.testing.assert_allclose(
            column(state, "effector yaw"), info["proprio/effector_yaw"], atol=1e-4
        )
        np.testing.assert_allclose(
            column(state, "gripper opening"), info["proprio/gripper_opening"], atol=1e-5
        )
        np.testing.assert_allclose(
            column(state, "block yaw"), info["privileged/block_0_yaw"], atol=1e-4
        )
        sensed = world.simulator.sense(world.tables[0])
        np.testing.assert_allclose(
            sensed["gripper_contact"], info["proprio/gripper_contact"], atol=1e-6
        )


def test_the_published_look_is_the_benchmarks(played, monkeypatch):
    _, states, *_ = played
    world = make(look="published")
    # MuJoCo's renderer settled on a backend when it was imported, perhaps before a working one was
    # found.
    backend = importlib.import_module(f"mujoco.{find_backend()}")
    monkeypatch.setattr(
        sys.modules[mujoco.Renderer.__module__].gl_context, "GLContext", backend.GLContext
    )
    model = world.simulator.model
    model.vis.global_.offwidth = model.vis.global_.offheight = SIZE
    world.set_states(states[20, :1])
    with mujoco.Renderer(model, SIZE, SIZE) as renderer:
        renderer.update_scene(world.tables[0], camera="front_pixels")
        expected = renderer.render().astype(int)
    assert np.abs(world.render() - expected).max() <= 1
    gripper = model.material("ur5e/robotiq/black").rgba
    np.testing.assert_allclose(gripper, [0.61, 0.28, 0.82, 1], atol=1e-6)


def test_thinned_meshes_are_for_drawing_only():
    drawn, simulated = make(look="fast")._scene.model, make(look="fast").simulator.model
    assert simulated.mesh_facenum.sum() > 180_000
    assert drawn.mesh_facenum.sum() < 0.2 * simulated.mesh_facenum.sum()


def test_no_picture_shows_the_goal_and_every_picture_shows_the_block():
    world = make()
    world.reset([0])
    before = world.render()
    world.set_goals(world.goals + 0.05)
    np.testing.assert_array_equal(world.render(), before)
    moved = world.states
    moved[0, 14] += 0.05
    assert (world.render(moved) != before).any(axis=-1).sum() > 3


def test_a_state_set_anew_goes_on_as_before(played):
    world, states, actions, _ = played
    steps = np.arange(20, 180, 20)
    world.set_states(states[steps, range(8)])
    world.step(actions[steps, range(8)])
    np.testing.assert_allclose(world.states[:, :21], states[steps + 1, range(8), :21], atol=5e-3)


def test_success_is_the_place_of_the_block():
    world = make()
    world.reset([0])
    goal = world.goals[0]

    def met(change):
        state = world.states[0]
        state[14:17] = goal[14:17] + np.array(change)
        world.set_states(state[None])
        return bool(world.success()[0])

    assert met([0.0, 0.0, 0.0])
    assert met([0.039, 0, 0])
    assert met([0.022, 0.022, 0.022])
    assert not met([0.041, 0, 0])
    assert not met([0.025, 0.025, 0.025])


def test_starts_and_goals_lie_on_the_table_two_tolerances_apart():
    world = make(12)
    world.reset(range(50, 62))
    states, goals = world.states, world.goals
    assert np.linalg.norm(block(goals) - block(states), axis=1).min() >= 2 * 0.04
    for rows in (states, goals):
        assert (rows[:, 21:41] == 0).all()
        assert (block(rows) >= [0.3, -0.3, 0.0199]).all()
        assert (block(rows) <= [0.55, 0.3, 0.0201]).all()
        assert column(rows, "effector z").min() > 0.19
        assert np.ptp(column(rows, "effector y")) > 0.2


def test_the_oracle_carries_the_block_to_the_goal_and_then_elsewhere(played):
    _, states, actions, met = played
    assert met.sum() >= 7
    assert column(states, "block z").max(axis=0).min() > 0.08, "it is carried, not pushed"
    travelled = np.linalg.norm(np.diff(block(states), axis=0), axis=-1).sum(axis=0)
    assert np.median(travelled) > 1, "several targets in one episode"
    noise = np.abs(np.diff(actions[..., 4], axis=0)).mean(axis=0)
    assert noise.max() > 2 * noise.min(), "each episode draws its own noise"


def test_what_does_not_fit_is_refused():
    world = make(2)
    with pytest.raises(ValueError, match=r"states.*\(2, 47\)"):
        world.set_states(np.zeros((2, 41)))
    with pytest.raises(ValueError, match=r"\(2, 5\), one row per environment"):
        world.step(np.zeros(5))
    with pytest.raises(ValueError, match="num_envs >= 1"):
        make(0)
