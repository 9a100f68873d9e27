"""The tabletop suite as the bridge drives it: one scene and renderer, one environment per body."""

from __future__ import annotations

import numpy as np

from agent.wire.errors import ConfigError
from sim_bridge.gl import NoRenderBackend
from sim_bridge.robot import Observation, UnknownTask
from sim_bridge.tabletop.env import TabletopEnv
from sim_bridge.tabletop.scene import Scene
from sim_bridge.tabletop.tasks import TASKS, TaskSpec, task_by_slug

ACTION_DIM = 7
PROPRIO_DIM = 8


class TabletopBody:
    """One environment with one task; actions f32[7] in [-1, 1], units in `TabletopEnv`."""

    def __init__(self, scene: Scene, task: TaskSpec) -> None:
        self.action_low_A = np.full(ACTION_DIM, -1.0, np.float32)
        self.action_high_A = np.full(ACTION_DIM, 1.0, np.float32)
        self.env = TabletopEnv(scene, task)

    @property
    def success(self) -> bool:
        """Whether the task's predicate holds now."""
        return self.env.success_now

    def reset(self, split: str, init_state: int) -> None:
        """Puts the scene into that init state and lets it settle."""
        self.env.reset(split, init_state)

    def observe(self) -> Observation:
        """Renders both cameras."""
        seen = self.env.observe()
        return Observation({name: seen[name] for name in ("agentview", "wrist")}, seen["proprio"])

    def apply(self, action_A: np.ndarray) -> bool:
        """One control step of 1/20 s; the scene can always go on."""
        self.env.step(action_A)
        return False

    def close(self) -> None:
        """The scene is the suite's; nothing else is held."""


class TabletopSuite:
    """Makes tabletop bodies on one shared scene."""

    name = "tabletop"
    tasks = tuple(task.slug for task in TASKS)
    action_dim = ACTION_DIM
    proprio_dim = PROPRIO_DIM
    cameras = ("agentview", "wrist")

    def __init__(self, image_size: int) -> None:
        """Raises ConfigError when nothing here can render or the image size is out of range."""
        try:
            self._scene = Scene(image_size)
        except (NoRenderBackend, ValueError) as error:
            raise ConfigError(str(error)) from error

    def extend_scene(self, assets: str, bodies: str) -> None:
        """Adds MuJoCo elements to the scene's <asset> and <worldbody>; before any body is made."""
        self._scene.close()
        self._scene = Scene(self._scene.image_size, assets, bodies)

    def make_body(self, task: str) -> TabletopBody:
        """A fresh environment for `task`. Raises UnknownTask."""
        if task not in self.tasks:
            raise UnknownTask(self.name, task, self.tasks)
        return TabletopBody(self._scene, task_by_slug(task))

    def close(self) -> None:
        """Frees the renderer."""
        self._scene.close()
