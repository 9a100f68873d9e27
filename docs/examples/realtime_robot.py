"""A robot in real time: perennial robot robot=realtime_robot:Arm task=TASK"""

import numpy as np

from agent.wire.messages import Outcome
from sim_bridge.robot import Observation

IMAGES = {"agentview": (224, 224, 3), "wrist": (224, 224, 3)}  # what your server wants


class Arm:  # stands for your driver; no call waits for a movement to end
    def __init__(self) -> None:
        self.joints_A = np.zeros(7, np.float32)
        self.steps = 0

    def reset(self, task: str, split: str, init_state: int) -> None:
        """Makes ready; may take its time."""
        self.joints_A[:] = 0.0

    def observe(self) -> Observation:
        """u8[H, W, 3] RGB of each camera, and proprio f32[P]."""
        images = {camera: np.zeros(shape, np.uint8) for camera, shape in IMAGES.items()}
        return Observation(images, np.resize(self.joints_A, 8))

    def position(self) -> np.ndarray:
        """Of the grasp point, m; only looked at when limits.metres_per_unit is set."""
        return np.full(3, np.nan)

    def apply(self, action_A: np.ndarray) -> None:
        """Starts one action; it has passed the limits of the settings."""
        self.joints_A += action_A
        self.steps += 1

    def hold(self) -> None:
        """Nothing fresh has come: keep still."""

    def outcome(self) -> Outcome | None:
        """Your success predicate; leave it None where a person or a program judges."""
        return Outcome.SUCCESS if self.joints_A[0] > 1.0 else None

    def close(self) -> None:
        """Torque off, connections closed."""

    def summary(self) -> dict[str, object]:  # optional: joins the JSON line at the end
        return {"steps": self.steps}
