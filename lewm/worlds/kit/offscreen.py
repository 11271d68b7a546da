"""MuJoCo pictures on a machine without a screen: finding an OpenGL that works, and the looks that
scenes are drawn in.

A GL context belongs to the process and thread that made it, so `open_scene` makes one for each
thread, and worlds of one kind share it. Contexts do not survive a fork: start worker processes with
"spawn". Workers inherit what was found in `MUJOCO_GL`.

Source: measurements of 2026-11 (two CPU cores, Mesa's software renderer); the programming guide of
MuJoCo, "Visualization".
"""

from __future__ import annotations

import atexit
import functools
import importlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar

import numpy as np

from lewm.registry import choose
from lewm.worlds.kit.looks import Look, choice

__all__ = [
    "FAST_MESH_M",
    "LOOKS",
    "Scene",
    "SceneLook",
    "find_backend",
    "once_per_thread",
    "open_scene",
    "opengl_explained",
    "thin_meshes",
]

if TYPE_CHECKING:
    import mujoco

Arguments = ParamSpec("Arguments")
Made = TypeVar("Made")

Paint = tuple[tuple[str, str], ...]

LOOKS = ("published", "fast")
"""Named appearances of the MuJoCo worlds. "published" is what the benchmark draws. "fast" is for
machines without a GPU: no shadows, no mirror images in the floor, meshes thinned to `FAST_MESH_M`,
and edges smoothed by drawing at twice the size instead of by multisampling. It is another picture,
so numbers of the two are never mixed."""

FAST_MESH_M = 0.005
"""Ours: below this distance the vertices of a mesh become one in the fast look. It takes 88% of the
185,000 faces of the Cube robot and changes its 64 px picture by less than one grey level on
average."""

PACKAGES = (
    "Headless rendering needs EGL or OSMesa. On Debian and Ubuntu install one with: apt-get "
    "install libegl1 libegl-mesa0 libgl1-mesa-dri (EGL; a GPU's own driver brings it too), or: "
    "apt-get install libosmesa6 (OSMesa). The variable MUJOCO_GL chooses between them."
)

_TRIAL = """
import importlib, mujoco, sys
context = importlib.import_module(f"mujoco.{sys.argv[1]}").GLContext(16, 16)
context.make_current()
model = mujoco.MjModel.from_xml_string("<mujoco/>")
mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50).free()
context.free()
"""


@contextmanager
def opengl_explained() -> Iterator[None]:
    """Put into words what `import mujoco` meets where `MUJOCO_GL` names an OpenGL that is not
    there."""
    try:
        yield
    except ModuleNotFoundError:
        raise
    except Exception as error:  # each backend has exceptions of its own
        backend = os.environ.get("MUJOCO_GL", "")
        raise ValueError(
            f"expected an OpenGL that works, got MUJOCO_GL={backend}, which does not here "
            f"({error!r}). {PACKAGES} Unset, it is found."
        ) from error


def find_backend() -> str:
    """The OpenGL backend to draw with: `MUJOCO_GL` where it is set, else the first of EGL and
    OSMesa that works.

    Each is tried in a process of its own, since one that fails leaves PyOpenGL bound to it for
    good. What is found is put into `MUJOCO_GL`, where libraries that read it on import and
    processes started later find it. Takes 0.4 s, once.

    Raises:
        ValueError: neither works; the Debian packages are named.
    """
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    if chosen:
        return chosen
    # other systems draw through their window system, screen or not
    if not sys.platform.startswith("linux"):
        return "cgl" if sys.platform == "darwin" else "glfw"
    failures = []
    for backend in ("egl", "osmesa"):
        trial = subprocess.run(
            [sys.executable, "-c", _TRIAL, backend],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if trial.returncode == 0:
            os.environ["MUJOCO_GL"] = backend
            return backend
        failures.append(f"{backend}: {(trial.stderr.strip().splitlines() or ['no message'])[-1]}")
    raise ValueError(f"no OpenGL works on this machine ({'; '.join(failures)}). {PACKAGES}")


@dataclass(frozen=True)
class SceneLook(Look):
    """Looks of a world that is drawn as a `Scene`: one of `LOOKS`, with other colours of things.

    Attributes:
        painted: thing -> the materials or shapes of the model that have its colour.
    """

    named: ClassVar[Mapping[str, Mapping[str, Any]]] = {name: {"drawing": name} for name in LOOKS}
    painted: ClassVar[Mapping[str, Sequence[str]]]

    drawing: str = choice("published", LOOKS)

    @property
    def paint(self) -> Paint:
        """What differs from the model's own colours."""
        return tuple(
            (element, getattr(self, name))
            for thing, (name,) in self.paints.items()
            if getattr(self, name) != getattr(type(self), name)
            for element in self.painted[thing]
        )


class Scene:
    """A model and what draws it through one of its cameras. It belongs to the thread that made it.

    Args:
        model: an `mujoco.MjModel` of the scene's own: the look changes its meshes and rendering
            quality.
        image_size: height and width of the pictures.
        camera: a camera of the model, by name.
        look: one of `LOOKS`.
        paint: materials or shapes (geoms) of the model, by name, and another colour for each, six
            hexadecimal digits rrggbb.

    Raises:
        ValueError: unknown look, or OpenGL does not work here.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        image_size: int,
        camera: str,
        look: str = "published",
        paint: Paint = (),
    ) -> None:
        import mujoco

        self.model, self.image_size = model, image_size
        materials = {model.material(i).name for i in range(model.nmat)}
        for name, color in paint:
            element = model.material(name) if name in materials else model.geom(name)
            element.rgba[:3] = [part / 255 for part in bytes.fromhex(color)]
        self._fast = choose("look", look, LOOKS) == "fast"
        size = 2 * image_size if self._fast else image_size
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        if self._fast:
            model.vis.quality.shadowsize = model.vis.quality.offsamples = 0
            thin_meshes(model, FAST_MESH_M)
        backend = find_backend()
        try:
            self._gl = importlib.import_module(f"mujoco.{backend}").GLContext(size, size)
            self._gl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        except Exception as error:  # each backend has exceptions of its own
            raise ValueError(
                f"the OpenGL backend '{backend}' does not work here ({error!r}). {PACKAGES}"
            ) from error
        # Registered after the backend's own clean-up, hence run before it: freeing a context later
        # than that is an error.
        atexit.register(self.close)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._data, self._scene = mujoco.MjData(model), mujoco.MjvScene(model, maxgeom=1000)
        if self._fast:
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                self._scene.flags[flag] = 0
        self._camera = mujoco.MjvCamera()
        self._camera.type, self._camera.fixedcamid = (
            mujoco.mjtCamera.mjCAMERA_FIXED,
            model.camera(camera).id,
        )
        self._option, self._viewport = mujoco.MjvOption(), mujoco.MjrRect(0, 0, size, size)
        self._upside_down = np.empty((size, size, 3), np.uint8)

    def draw(self, qpos: np.ndarray, out: np.ndarray) -> None:
        """Write the picture of joint positions, (nq,), to `out`, (h, w, 3) uint8. Equal positions
        give equal pictures."""
        import mujoco

        self._data.qpos = qpos
        mujoco.mj_kinematics(self.model, self._data)
        mujoco.mj_camlight(self.model, self._data)
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(
            self.model, self._data, self._option, None, self._camera, everything, self._scene
        )
        self._gl.make_current()
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        mujoco.mjr_readPixels(self._upside_down, None, self._viewport, self._context)
        out[:] = _halved(self._upside_down[::-1]) if self._fast else self._upside_down[::-1]

    def pictures(self, qpos: np.ndarray) -> np.ndarray:
        """Draw (n, nq) joint positions: (n, h, w, 3) uint8, new memory."""
        pictures = np.empty((len(qpos), self.image_size, self.image_size, 3), np.uint8)
        for picture, positions in zip(pictures, qpos, strict=True):
            self.draw(positions, picture)
        return pictures

    def close(self) -> None:
        """Free the GL context; the scene draws no more."""
        atexit.unregister(self.close)
        with suppress(Exception):  # at exit: another library may have ended EGL already
            self._context.free()
            self._gl.free()
        # its destructor would try again, when there is no EGL any more
        self._gl.free = lambda: None


def thin_meshes(model: mujoco.MjModel, cell_m: float) -> None:
    """Let all vertices of a mesh in one cube of `cell_m` become one of them, and drop the faces
    that vanish. In place.

    For a model that is only drawn: collisions are computed from the same meshes.
    """
    for mesh in range(model.nmesh):
        vertices = model.mesh_vert[model.mesh_vertadr[mesh] :][: model.mesh_vertnum[mesh]]
        begin, count = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
        faces, normals = (
            model.mesh_face[begin : begin + count],
            model.mesh_facenormal[begin : begin + count],
        )
        _, first, cell = np.unique(
            np.floor(vertices / cell_m), axis=0, return_index=True, return_inverse=True
        )
        merged = first[cell.ravel()][faces]
        corners, distinct = np.unique(np.sort(merged, axis=1), axis=0, return_index=True)
        kept = distinct[(np.diff(corners, axis=1) > 0).all(axis=1)]  # three different corners
        faces[: len(kept)], normals[: len(kept)] = merged[kept], normals[kept]
        model.mesh_facenum[mesh] = len(kept)


def _halved(picture: np.ndarray) -> np.ndarray:
    """(2h, 2w, 3) uint8 -> (h, w, 3): the average of each 2 x 2 pixels."""
    rows = picture[0::2].astype(np.uint16) + picture[1::2]
    return (rows[:, 0::2] + rows[:, 1::2] + 2) // 4


def once_per_thread(make: Callable[Arguments, Made]) -> Callable[Arguments, Made]:
    """Make `make` answer the same arguments with the same thing, but each thread with its own."""
    made: dict[tuple[object, ...], Made] = {}

    @functools.wraps(make)
    def remembered(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Made:
        key = (threading.get_ident(), args, tuple(sorted(kwargs.items())))
        if key not in made:
            made[key] = make(*args, **kwargs)
        return made[key]

    return remembered


@once_per_thread
def open_scene(
    load: Callable[[], mujoco.MjModel], image_size: int, camera: str, look: str, paint: Paint = ()
) -> Scene:
    """The scene of this thread for a model that `load` compiles: made once, then shared. Arguments
    as in `Scene`."""
    return Scene(load(), image_size, camera, look, paint)
