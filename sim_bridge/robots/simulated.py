"""A simulated body as a robot: it moves at its ticks, however long those take on the wall clock."""

from __future__ import annotations

import numpy as np

from agent.wire.messages import Outcome
from sim_bridge.robot import Body, Observation, Suite, clip_action

UNKNOWN = np.full(3, np.nan)


class SimulatedRobot:
    """One body of a suite; its outcome is the simulator's."""

    def __init__(self, suite: Suite) -> None:
        self._suite = suite
        self._body: Body | None = None
        self._task = ""
        self._over = False

    def reset(self, task: str, split: str, init_state: int) -> None:
        """Puts the scene into that init state; a task of its own starts from train state 0."""
        if self._body is None or task != self._task:
            self.close()
            self._body, self._task = self._suite.make_body(task), task
        self._body.reset(split or "train", init_state)
        self._over = False

    def observe(self) -> Observation:
        """Renders."""
        return self._the_body().observe()

    def position(self) -> np.ndarray:
        """A simulated body is held by its own walls: not known."""
        return UNKNOWN

    def apply(self, action_A: np.ndarray) -> bool:
        """One control step, within the body's limits; whether they changed the action."""
        body = self._the_body()
        clipped_A, limited = clip_action(body, action_A)
        self._over = body.apply(clipped_A)
        return limited

    def hold(self) -> None:
        """Simulated time stands still with the robot."""

    def outcome(self) -> Outcome | None:
        """Success as the simulator sees it."""
        body = self._the_body()
        if body.success:
            return Outcome.SUCCESS
        return Outcome.FAILURE if self._over else None

    def close(self) -> None:
        """Closes the body, if there is one."""
        body, self._body = self._body, None
        if body is not None:
            body.close()

    def _the_body(self) -> Body:
        assert self._body is not None, "before reset"
        return self._body
