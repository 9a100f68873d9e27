"""A LIBERO suite as the bridge drives it: one environment per body, built for its task."""

from __future__ import annotations

import numpy as np

from agent.wire.errors import ConfigError
from sim_bridge.config import PUBLISHED_MUJOCO
from sim_bridge.gl import NoRenderBackend, select_backend
from sim_bridge.libero.env import ACTION_DIM, PROPRIO_DIM, LiberoEnv, import_simulator
from sim_bridge.libero.protocol import Protocol, protocol_by_name
from sim_bridge.libero.render import CAMERAS, RENDERERS, Renderer
from sim_bridge.libero.tasks import LiberoTask, suite_tasks
from sim_bridge.robot import Observation, UnknownTask


class LiberoBody:
    """One environment with one task; actions f32[7] in [-1, 1], units in `LiberoEnv`."""

    def __init__(
        self, task: LiberoTask, protocol: Protocol, image_size: int, renderer: str
    ) -> None:
        self.action_low_A = np.full(ACTION_DIM, -1.0, np.float32)
        self.action_high_A = np.full(ACTION_DIM, 1.0, np.float32)
        self.env = LiberoEnv(task)
        self._protocol = protocol
        self.renderer = Renderer(self.env, image_size, renderer)

    @property
    def success(self) -> bool:
        """Whether the task's predicate holds now."""
        return self.env.success_now

    def reset(self, split: str, init_state: int) -> None:
        """Puts the scene into that init state of the protocol and lets it settle."""
        self._protocol.start(self.env, split, init_state)

    def observe(self) -> Observation:
        """Renders both cameras."""
        return Observation(self.renderer.render(), self.env.proprio())

    def apply(self, action_A: np.ndarray) -> bool:
        """One control step of 1/20 s; the scene can always go on."""
        self.env.step(action_A)
        return False

    def close(self) -> None:
        """Frees the renderer and the model."""
        self.renderer.close()
        self.env.close()


class LiberoSuite:
    """Makes the bodies of one suite of the distribution."""

    action_dim = ACTION_DIM
    proprio_dim = PROPRIO_DIM
    cameras = tuple(CAMERAS)

    def __init__(
        self,
        name: str,
        image_size: int,
        protocol: str,
        renderer: str,
        mujoco: str = PUBLISHED_MUJOCO,
    ) -> None:
        """mujoco: the version that has to be there; "": any.

        Raises ConfigError for an unknown protocol or renderer, another version of MuJoCo, or when
        nothing can render.
        """
        if renderer not in RENDERERS:
            raise ConfigError(f"renderer: expected one of {', '.join(RENDERERS)}, got '{renderer}'")
        try:
            select_backend()  # before anything imports MuJoCo
        except NoRenderBackend as error:
            raise ConfigError(str(error)) from error
        self.name = name
        self._protocol = protocol_by_name(protocol)
        self._image_size, self._renderer = image_size, renderer
        self._tasks = {task.slug: task for task in suite_tasks(name)}
        self.tasks = tuple(self._tasks)
        import_simulator()
        _require_mujoco(mujoco)

    def make_body(self, task: str) -> LiberoBody:
        """A fresh environment for `task`; takes some seconds. Raises UnknownTask."""
        if task not in self._tasks:
            raise UnknownTask(self.name, task, self.tasks)
        return LiberoBody(self._tasks[task], self._protocol, self._image_size, self._renderer)

    def close(self) -> None:
        """Every body holds its own scene; nothing else is held."""


def _require_mujoco(wanted: str) -> None:
    """Other versions draw and move other scenes than the rates beside this one's name are of."""
    from mujoco import __version__ as installed

    if wanted and installed != wanted:
        raise ConfigError(
            f"mujoco: expected {wanted}, got {installed}, which draws or moves some of LIBERO's "
            f"scenes otherwise; pip install mujoco=={wanted}, or say mujoco={installed} (of a run: "
            f"suite.mujoco={installed}), which becomes part of the protocol's name"
        )
