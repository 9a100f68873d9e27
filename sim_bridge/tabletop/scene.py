"""The compiled scene and its renderer, shared by every environment of a process."""

import atexit
import weakref
from importlib import resources
from typing import Any

import numpy as np

from sim_bridge.gl import NoRenderBackend, select_backend

GL_BACKEND_ERRORS = (ImportError, AttributeError, RuntimeError)
CUBES = ("red", "green", "blue")
FREE_BODIES = (*CUBES, "puck")


class Scene:
    """MjModel, addresses into its state, and one off-screen renderer.

    `image_size` is the side of both square images in pixels; `assets` and `bodies` are MuJoCo
    elements that are added to the scene's <asset> and <worldbody>. The renderer is created at the
    first `render` call, so physics alone needs no OpenGL.
    """

    def __init__(self, image_size: int = 64, assets: str = "", bodies: str = "") -> None:
        if not 8 <= image_size <= 640:
            raise ValueError(f"image_size: expected 8 to 640 pixels, got {image_size}")
        self.image_size = image_size
        self.gl_backend = select_backend()
        try:
            import mujoco
        except GL_BACKEND_ERRORS as error:
            raise _unusable(self.gl_backend, error) from error
        xml = resources.files("sim_bridge.tabletop").joinpath("scene.xml").read_text("utf-8")
        self.mujoco = mujoco
        if assets or bodies:
            added = f"{bodies}</worldbody><asset>{assets}</asset>"
            xml = xml.replace("</worldbody>", added)
        self.model = mujoco.MjModel.from_xml_string(xml)
        model = self.model
        self.eef_site = model.site("eef").id
        self.qpos_of = {name: int(model.joint(name).qposadr[0]) for name in FREE_BODIES}
        self.qvel_of = {name: int(model.joint(name).dofadr[0]) for name in FREE_BODIES}
        self.drawer_qpos = int(model.joint("drawer").qposadr[0])
        self.button_qpos = int(model.joint("button").qposadr[0])
        # Order of the actuators: x, y, z, roll, pitch, yaw, left finger, right finger.
        names = [model.actuator(i).name for i in range(model.nu)]
        self.hand_qpos = np.array([model.joint(n).qposadr[0] for n in names[:6]])
        self.finger_qpos = np.array([model.joint(n).qposadr[0] for n in names[6:]])
        self.state_size = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION)
        self._renderer: Any = None

    def render(self, data, camera: str) -> np.ndarray:
        """Render `camera` ("agentview" or "wrist"): u8[H, W, 3], upright, a fresh array."""
        if self._renderer is None:
            self._renderer = self._new_renderer()
            # Exit handlers run last in, first out: MuJoCo registered the display's own end when it
            # made the renderer, and a context that is freed after that end is an error.
            atexit.register(_close_if_alive, weakref.ref(self))
        self._renderer.update_scene(data, camera)
        return self._renderer.render()

    def close(self) -> None:
        """Free the OpenGL context; the next `render` makes a new one."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _new_renderer(self):
        mujoco = self.mujoco
        try:
            renderer = mujoco.Renderer(self.model, self.image_size, self.image_size)
        except GL_BACKEND_ERRORS as error:
            raise _unusable(self.gl_backend, error) from error
        for flag in ("mjRND_SHADOW", "mjRND_REFLECTION", "mjRND_SKYBOX", "mjRND_HAZE"):
            renderer.scene.flags[getattr(mujoco.mjtRndFlag, flag)] = 0
        return renderer


def _close_if_alive(scene: weakref.ref[Scene]) -> None:
    alive = scene()
    if alive is not None:
        alive.close()


def _unusable(backend: str, error: Exception) -> NoRenderBackend:
    return NoRenderBackend(
        f"MUJOCO_GL: backend {backend!r} cannot render here ({error}); unset it to have one "
        "chosen, or install the library:\napt-get install -y libosmesa6\n"
        "or\napt-get install -y libegl1 libgl1-mesa-dri"
    )
