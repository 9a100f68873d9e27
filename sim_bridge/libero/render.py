"""Renders LIBERO's cameras in one of two ways; a policy is trained and evaluated on one of them.

`exact` gives the pixels of the distribution's own environment, which published checkpoints saw.
`fast` leaves out reflections and antialiasing and draws simplified shapes, in a tenth of the time:
edges and highlights differ. Both are turned here, once, to what OpenVLA's data shows: the
simulator's raw image turned by 180 degrees. Whoever gets them, policy or recording, must not turn
them again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sim_bridge.libero.env import LiberoEnv
from sim_bridge.libero.simplify import simplify_meshes

CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}
RENDERERS = ("exact", "fast")


class Renderer:
    """Draws what may be seen of one environment."""

    def __init__(self, env: LiberoEnv, image_size: int, renderer: str) -> None:
        """renderer: of `RENDERERS`. Images have `image_size` pixels a side."""
        mujoco = env.mujoco
        if renderer == "fast":
            # Both are read when the renderer makes its context.
            env.model.vis.quality.offsamples = 0
            simplify_meshes(mujoco, env.model)
        # Draws more into the scene, after MuJoCo has: there to be seen, not to be touched.
        self.decorate: Callable[[Any], None] | None = None
        self._env = env
        self._renderer: Any = mujoco.Renderer(env.model, image_size, image_size)
        if renderer == "fast":
            self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._option = mujoco.MjvOption()
        self._option.geomgroup[0] = 0  # collision shapes

    def render(self) -> dict[str, np.ndarray]:
        """Every camera of `CAMERAS`, u8[H, W, 3]."""
        data = self._env.look()
        images = {}
        for name, camera in CAMERAS.items():
            self._renderer.update_scene(data, camera, self._option)
            if self.decorate is not None:
                self.decorate(self._renderer.scene)
            images[name] = turn(self._renderer.render())
        return images

    def close(self) -> None:
        """Frees the OpenGL context."""
        self._renderer.close()


def turn(picture: np.ndarray) -> np.ndarray:
    """A picture of MuJoCo's renderer, u8[H, W, 3], as policies see it.

    MuJoCo turned the raw image upright; mirrored as well it is turned by 180 degrees.
    """
    return np.ascontiguousarray(picture[:, ::-1])
