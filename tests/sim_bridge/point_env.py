"""A Gymnasium environment with nested dict observations, for the adapter's tests."""

import gymnasium
import numpy as np


class PointEnv(gymnasium.Env):
    """A point that has to get as far as `goal` along x; one action is one number."""

    def __init__(self, goal: float = 1.0, limit: int = 20) -> None:
        self.goal, self.limit = goal, limit
        self.action_space = gymnasium.spaces.Box(-0.5, 0.5, (2,), np.float32)
        self.observation_space = gymnasium.spaces.Dict(
            {
                "pixels": gymnasium.spaces.Dict(
                    {"top": gymnasium.spaces.Box(0, 255, (16, 16, 3), np.uint8)}
                ),
                "position": gymnasium.spaces.Box(-9, 9, (2,), np.float64),
                "speed": gymnasium.spaces.Box(-9, 9, (), np.float64),
            }
        )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.steps = self.np_random.uniform(-0.1, 0.1, 2), 0
        return self._see(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.at = self.at + action
        self.steps += 1
        reached = bool(self.at[0] >= self.goal)
        return self._see(), float(reached), False, self.steps >= self.limit, {"is_success": reached}

    def _see(self):
        shade = np.full((16, 16, 3), int(np.clip(100 + 50 * self.at[0], 0, 255)), np.uint8)
        return {
            "pixels": {"top": shade},
            "position": self.at.astype(np.float64),
            "speed": np.array(0.5),
        }


gymnasium.register("perennial_tests/Point-v0", entry_point=PointEnv)
