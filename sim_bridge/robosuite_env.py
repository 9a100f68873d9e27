"""robosuite 1.5 as the Gymnasium environment `sim_bridge.robosuite_env:Robosuite-v0`.

robosuite's own wrapper tells neither success nor the hand's rotation as three numbers, and takes
no seed. LIBERO needs robosuite 1.4: the two do not share an installation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

CONTROL_HZ = 20
CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}
Seen = dict[str, np.ndarray | Callable[[], np.ndarray]]


class RobosuiteEnv(gymnasium.Env[Any, np.ndarray]):
    """One task of robosuite with one arm, moved by its operational-space controller.

    Actions: f[7], pose change of the hand (a unit is 5 cm, 0.5 rad) and gripper (-1 open, +1
    closed). Observations: "agentview" and "wrist", to be called for u8[H, W, 3], upright, so that
    only what is looked at is rendered; "position" f[3] m and "rotation" f[3] axis-angle, in the
    world's frame; "gripper" f[2] m. `info["is_success"]` is the task's predicate. Never ends by
    itself.
    """

    def __init__(self, env_name: str, robot: str = "Panda", image_size: int = 224) -> None:
        from sim_bridge.gl import select_backend

        select_backend()  # before the simulator is imported
        import robosuite
        from robosuite.controllers import load_composite_controller_config

        logging.getLogger("robosuite_logs").setLevel(logging.ERROR)  # it warns of absent limbs
        self._image_size = image_size
        self._env = robosuite.make(
            env_name,
            robots=robot,
            controller_configs=load_composite_controller_config(controller="BASIC", robot=robot),
            has_renderer=False,
            has_offscreen_renderer=True,
            use_camera_obs=False,
            control_freq=CONTROL_HZ,
            ignore_done=True,
        )
        low_A, high_A = (limits_A.astype(np.float32) for limits_A in self._env.action_spec)
        self.action_space = gymnasium.spaces.Box(low_A, high_A)
        image = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        vectors = {
            name: gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float64)
            for name, size in (("position", 3), ("rotation", 3), ("gripper", 2))
        }
        self.observation_space = gymnasium.spaces.Dict({**dict.fromkeys(CAMERAS, image), **vectors})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Seen, dict[str, Any]]:
        """A scene drawn from `seed` alone, whatever was before."""
        super().reset(seed=seed)
        # What draws an object's place keeps the generator that it was made with.
        self._env.rng = self._env.placement_initializer.rng = self.np_random
        for sampler in getattr(self._env.placement_initializer, "samplers", {}).values():
            sampler.rng = self.np_random
        return self._see(self._env.reset()), {}

    def step(self, action: np.ndarray) -> tuple[Seen, float, bool, bool, dict[str, Any]]:
        """One control step of 1 / CONTROL_HZ s."""
        seen, reward, _, _ = self._env.step(action)
        success = bool(self._env._check_success())
        return self._see(seen), float(reward), False, False, {"is_success": success}

    def close(self) -> None:
        """Frees the model and its renderer."""
        self._env.close()

    def _see(self, seen: dict[str, np.ndarray]) -> Seen:
        from robosuite.utils.transform_utils import quat2axisangle

        pictures: Seen = {name: self._picture(camera) for name, camera in CAMERAS.items()}
        return pictures | {
            "position": seen["robot0_eef_pos"],
            "rotation": quat2axisangle(seen["robot0_eef_quat"]),
            "gripper": seen["robot0_gripper_qpos"],
        }

    def _picture(self, camera: str) -> Callable[[], np.ndarray]:
        side = self._image_size

        def look() -> np.ndarray:
            image = self._env.sim.render(camera_name=camera, width=side, height=side)
            return np.ascontiguousarray(image[::-1])  # robosuite's rows go from bottom to top

        return look


gymnasium.register(
    "Robosuite-v0",
    entry_point=f"{__name__}:RobosuiteEnv",
    disable_env_checker=True,  # its pictures are callables
    order_enforce=False,
)
