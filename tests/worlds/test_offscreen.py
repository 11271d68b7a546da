"""Finding an OpenGL without a screen, the looks, and scenes in threads and processes."""

import ast
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lewm import worlds
from lewm.worlds.kit import offscreen
from lewm.worlds.kit.opening import open_world

mujoco = pytest.importorskip("mujoco", reason="needs lewm[mujoco]")
SIZE = 32


def trials(monkeypatch, **working):
    """Let the trial of a backend succeed or fail; returns the list of those that were tried."""
    tried = []

    def run(command, **_):
        tried.append(command[-1])
        return SimpleNamespace(
            returncode=0 if working.get(command[-1]) else 1,
            stderr="Traceback\nOSError: no such library",
        )

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("MUJOCO_GL", "")
    return tried


def reacher(look="fast"):
    try:
        return open_world("reacher", 2, image_size=SIZE, look=look)
    except (ImportError, ValueError) as missing:
        pytest.skip(str(missing))


def test_the_choice_of_the_user_is_not_questioned(monkeypatch):
    tried = trials(monkeypatch, egl=True)
    monkeypatch.setenv("MUJOCO_GL", "OSMesa")
    assert offscreen.find_backend() == "osmesa"
    assert tried == []


def test_the_first_backend_that_works_is_taken_and_handed_on(monkeypatch):
    tried = trials(monkeypatch, osmesa=True)
    assert offscreen.find_backend() == "osmesa"
    assert os.environ["MUJOCO_GL"] == "osmesa"
    assert offscreen.find_backend() == "osmesa"
    assert tried == ["egl", "osmesa"], "once found, nothing is tried again"


def test_without_any_backend_the_debian_packages_are_named(monkeypatch):
    trials(monkeypatch)
    with pytest.raises(
        ValueError,
        match=r"OpenGL.*egl: OSError.*osmesa: OSError.*libegl1 libegl-mesa0 "
        r"libgl1-mesa-dri.*libosmesa6",
    ):
        offscreen.find_backend()
    assert os.environ["MUJOCO_GL"] == ""


def test_a_chosen_backend_that_fails_is_named_too(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "nonesuch")
    with pytest.raises(ValueError, match=r"'nonesuch' does not work.*libosmesa6"):
        offscreen.Scene(mujoco.MjModel.from_xml_string("<mujoco/>"), SIZE, "fixed")


def test_a_backend_that_fails_when_mujoco_is_imported_is_explained(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    words = r"an OpenGL that works, got MUJOCO_GL=osmesa, .*glGetError.*libosmesa6 \(OSMesa\)"
    with pytest.raises(ValueError, match=words), offscreen.opengl_explained():
        raise AttributeError("'NoneType' object has no attribute 'glGetError'")
    with pytest.raises(ModuleNotFoundError), offscreen.opengl_explained():
        raise ModuleNotFoundError("No module named 'mujoco'", name="mujoco")
    for path in Path(worlds.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            bare = isinstance(node, ast.Import) and "mujoco" in {name.name for name in node.names}
            assert not bare, f"{path} imports mujoco outside of opengl_explained"


def test_a_backend_that_is_none_is_explained_by_a_whole_process():
    code = "from lewm.worlds.kit.opening import open_world; open_world('reacher', 1)"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MUJOCO_GL": "nonesuch"},
    )
    said = ended.stderr.strip().splitlines()[-1]
    assert said.startswith("ValueError: expected an OpenGL that works, got MUJOCO_GL=nonesuch")


def test_the_trial_is_a_real_one(monkeypatch):
    reacher()  # skips where nothing works
    monkeypatch.setenv("MUJOCO_GL", "")
    assert offscreen.find_backend() in ("egl", "osmesa")


def test_what_says_what_works_needs_no_mujoco():
    code = "import lewm.worlds.kit.offscreen, sys; sys.exit('mujoco' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_look_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'fast'"):
        offscreen.Scene(mujoco.MjModel.from_xml_string("<mujoco/>"), SIZE, "fixed", "fats")


def test_scenes_are_shared_within_a_thread_and_by_no_other():
    made = offscreen.once_per_thread(lambda *args: object())
    assert made("a") is made("a")
    assert made("a") is not made("b")
    other = []
    thread = threading.Thread(target=lambda: other.append(made("a")))
    thread.start()
    thread.join()
    assert other[0] is not made("a")


def test_another_thread_draws_the_same():
    world, pictures = reacher(), []
    thread = threading.Thread(target=lambda: pictures.append(reacher().render(world.states)))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(pictures[0], world.render())


def test_a_spawned_process_draws_the_same():
    world = reacher()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(draw_elsewhere, (world.states,)), world.render())


def draw_elsewhere(states):
    return open_world("reacher", 1, image_size=SIZE, look="fast").render(states)


def test_halving_averages_and_rounds():
    picture = np.zeros((2, 4, 3), np.uint8)
    picture[:, :2, 0] = [[255, 255], [255, 254]]
    picture[:, 2:, 1] = [[0, 1], [0, 1]]
    halved = offscreen._halved(picture)
    assert halved.tolist() == [[[255, 0, 0], [0, 1, 0]]]


def ball():
    """A mesh of 796 faces whose vertices lie on a sphere of radius 1."""
    points = np.random.default_rng(0).standard_normal((400, 3))
    vertices = " ".join(
        f"{x:.6f}" for x in (points / np.linalg.norm(points, axis=1, keepdims=True)).ravel()
    )
    asset = f'<asset><mesh name="ball" vertex="{vertices}"/></asset>'
    return mujoco.MjModel.from_xml_string(
        f'<mujoco>{asset}<worldbody><geom type="mesh" mesh="ball"/></worldbody></mujoco>'
    )


def faces(model):
    return model.mesh_face[: model.mesh_facenum[0]]


def test_thinning_a_mesh_by_nothing_changes_nothing():
    model, thinned = ball(), ball()
    offscreen.thin_meshes(thinned, 1e-5)
    assert {tuple(face) for face in faces(thinned)} == {tuple(face) for face in faces(model)}


def test_a_thinned_mesh_keeps_its_shape_with_fewer_faces():
    model, thinned = ball(), ball()
    offscreen.thin_meshes(thinned, 0.3)
    assert 50 < len(faces(thinned)) < 0.6 * len(faces(model))
    assert all(len(set(face)) == 3 for face in faces(thinned).tolist()), (
        "a face with two equal corners has no area"
    )
    corners = thinned.mesh_vert[faces(thinned)]
    middles = corners.mean(axis=1)
    np.testing.assert_allclose(np.linalg.norm(middles, axis=1), 1, atol=0.12)
    outwards = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert ((outwards * middles).sum(axis=1) > 0).mean() > 0.95, "faces keep their outside outside"
    covered = np.linalg.norm(outwards, axis=1).sum() / 2
    assert covered == pytest.approx(4 * np.pi, rel=0.15), "no holes: the area of the sphere"
