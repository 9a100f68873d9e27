"""Suite "toy": a point on a plane that must move one way; the fast body for tests.

A point starts near the middle of the square [-1, 1]^2. Actions 0 and 1 move it by up to
`STEP_LENGTH` along x and y, the other five do nothing. A task is solved once the point has moved
`GOAL_DISTANCE` along the task's direction from where it started. With uniformly random actions a
random walk of `HORIZON_STEPS` steps gets there in about 40% of the episodes, and a mean action of
a quarter of the range along the direction in nearly all, so a policy has an easy slope to climb.
"""

from __future__ import annotations

import hashlib

import numpy as np

from sim_bridge.robot import Observation, UnknownTask, require_init_state

IMAGE_SIZE = 16  # pixels per side
ACTION_DIM = 7
PROPRIO_DIM = 8
HORIZON_STEPS = 24
STEP_LENGTH = 0.1  # [square's half side per step] at action 1
GOAL_DISTANCE = 0.22  # [square's half side]
START_SPREAD = 0.2  # [square's half side]
INIT_STATES = {"train": 50, "eval": 50}
CAMERAS = ("agentview", "wrist")

DIRECTIONS: dict[str, tuple[float, float]] = {
    "move_left": (-1.0, 0.0),
    "move_right": (1.0, 0.0),
    "move_up": (0.0, 1.0),
    "move_down": (0.0, -1.0),
}
INSTRUCTIONS = {slug: slug.replace("_", " ") for slug in DIRECTIONS}


class ToyBody:
    """A point with a task; deterministic given (task, split, init_state, actions)."""

    def __init__(self, task: str) -> None:
        """task: one of `DIRECTIONS`."""
        self.action_low_A = np.full(ACTION_DIM, -1.0, np.float32)
        self.action_high_A = np.full(ACTION_DIM, 1.0, np.float32)
        self._task = task
        self._direction = np.asarray(DIRECTIONS[task])
        self._start = np.zeros(2)
        self._position = np.zeros(2)

    @property
    def success(self) -> bool:
        """Whether the point has moved far enough along the task's direction."""
        moved = float((self._position - self._start) @ self._direction)
        return moved >= GOAL_DISTANCE

    def reset(self, split: str, init_state: int) -> None:
        """Puts the point where (task, split, init_state) say."""
        require_init_state(split, init_state, INIT_STATES)
        name = f"{self._task}/{split}/{init_state}".encode()
        seed = int.from_bytes(hashlib.sha256(name).digest()[:8], "big")
        self._start = np.random.default_rng(seed).uniform(-START_SPREAD, START_SPREAD, 2)
        self._position = self._start.copy()

    def observe(self) -> Observation:
        """agentview: the square, the goal side in green. wrist: its middle, twice as near."""
        proprio = np.zeros(PROPRIO_DIM, np.float32)
        proprio[:2] = self._position
        proprio[2:4] = self._start
        views = {"agentview": self._draw(1.0), "wrist": self._draw(0.5)}
        return Observation(views, proprio)

    def apply(self, action_A: np.ndarray) -> bool:
        """Moves the point, which can always go on."""
        step = STEP_LENGTH * np.asarray(action_A[:2], np.float64)
        self._position = np.clip(self._position + step, -1.0, 1.0)
        return False

    def close(self) -> None:
        """Nothing is held."""

    def _draw(self, half_side: float) -> np.ndarray:
        """u8[H, W, 3]: +x to the right, +y up; the point red, the side to reach green."""
        image = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        x, y = self._direction
        if x:
            image[:, 0 if x < 0 else -1, 1] = 255
        else:
            image[0 if y > 0 else -1, :, 1] = 255
        unit = np.clip(self._position / half_side, -1.0, 1.0) * 0.5 + 0.5
        column, row = np.minimum((unit * IMAGE_SIZE).astype(int), IMAGE_SIZE - 1)
        image[IMAGE_SIZE - 1 - row, column, 0] = 255
        return image


class ToySuite:
    """Makes toy bodies; they share nothing."""

    name = "toy"
    tasks = tuple(DIRECTIONS)
    action_dim = ACTION_DIM
    proprio_dim = PROPRIO_DIM
    cameras = CAMERAS

    def make_body(self, task: str) -> ToyBody:
        """A point with `task` to do. Raises UnknownTask."""
        if task not in DIRECTIONS:
            raise UnknownTask(self.name, task, self.tasks)
        return ToyBody(task)

    def close(self) -> None:
        """Nothing is held."""
