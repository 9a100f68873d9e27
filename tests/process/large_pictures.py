"""A robot of one's own whose cameras are larger than its server allows."""

from __future__ import annotations

import numpy as np

from sim_bridge.robot import Observation


class LargePictures:
    """It stands still."""

    def reset(self, task: str, split: str, init_state: int) -> None:
        """Nothing has moved."""

    def observe(self) -> Observation:
        """Two pictures of 288 KiB each."""
        picture = np.zeros((256, 384, 3), np.uint8)
        return Observation({"agentview": picture, "wrist": picture}, np.zeros(8, np.float32))

    def position(self) -> np.ndarray:
        """Not known."""
        return np.full(3, np.nan)

    def apply(self, action_A: np.ndarray) -> bool:
        """As sent."""
        return False

    def hold(self) -> None:
        """It does nothing else."""

    def outcome(self) -> None:
        """Nobody says."""

    def close(self) -> None:
        """Nothing is open."""
