"""A simulated arm as lerobot's own kind of robot, with two cameras that see its first joint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from lerobot.robots import Robot, RobotConfig

JOINTS = [f"joint{k}" for k in range(6)]
KEYS = [f"{joint}.pos" for joint in (*JOINTS, "gripper")]
FOLLOWED = 0.5  # share of the way to its goal that the arm goes between two calls


@RobotConfig.register_subclass("simulated_arm")
@dataclass(kw_only=True)
class SimulatedArmConfig(RobotConfig):
    """image_height, image_width: pixels of its cameras."""

    image_height: int = 48
    image_width: int = 64
    calibrated: bool = True


class SimulatedArm(Robot):
    """Joints in degrees, which follow their goals a share at every reading."""

    config_class = SimulatedArmConfig
    name = "simulated_arm"

    def __init__(self, config: SimulatedArmConfig) -> None:
        super().__init__(config)
        self.config = config
        self.joints = dict.fromkeys(KEYS, 10.0)
        self.goal = dict(self.joints)
        self.sent: list[dict[str, float]] = []
        self._connected = False

    @property
    def observation_features(self) -> dict[str, Any]:
        shape = (self.config.image_height, self.config.image_width, 3)
        return {**dict.fromkeys(KEYS, float), "load": (1,), "front": shape, "hand": shape}

    @property
    def action_features(self) -> dict[str, Any]:
        return dict.fromkeys(KEYS, float)

    @property
    def is_connected(self) -> bool:
        return self._connected

    @property
    def is_calibrated(self) -> bool:
        return self.config.calibrated

    def connect(self, calibrate: bool = True) -> None:
        assert not calibrate, "would ask a person"
        self._connected = True

    def calibrate(self) -> None:
        raise AssertionError("never asked for")

    def configure(self) -> None:
        """Nothing to configure."""

    def get_observation(self) -> dict[str, Any]:
        assert self._connected
        for key in KEYS:
            self.joints[key] += FOLLOWED * (self.goal[key] - self.joints[key])
        picture = np.zeros(self.observation_features["front"], np.uint8)
        picture[:, :, 1] = np.clip(self.joints[KEYS[0]], 0, 255)
        return {**self.joints, "load": np.array([0.25]), "front": picture, "hand": picture.copy()}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        assert self._connected
        assert action.keys() == self.action_features.keys()
        self.goal = dict(action)
        self.sent.append(action)
        return action

    def disconnect(self) -> None:
        self._connected = False
