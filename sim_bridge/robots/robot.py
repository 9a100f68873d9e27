"""What a robot must offer so that the real-time runtime can drive it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from agent.wire.messages import Outcome
from sim_bridge.robot import Observation


class Robot(Protocol):
    """One robot doing one task at a time. Every call must return well within a control period.

    Any exception it raises ends its episode as aborted, or keeps it from beginning; a ConfigError
    of `reset` ends the process.
    """

    def reset(self, task: str, split: str, init_state: int) -> None:
        """Makes ready for an episode; may take its time. split is "" for a task of its own."""

    def observe(self) -> Observation:
        """What the policy needs to see, as it is now."""

    def position(self) -> np.ndarray:
        """Of the grasp point, f64[3], m, in the frame of the limits' box."""

    def apply(self, action_A: np.ndarray) -> bool | None:
        """Starts to execute one action, f32[A]; returns without waiting for its end.

        True if a limit of its own changed the action, which is then reported as limited.
        """

    def hold(self) -> None:
        """Keeps still; called at every tick for which there is no fresh action."""

    def outcome(self) -> Outcome | None:
        """How the episode has ended; None while it goes on."""

    def close(self) -> None:
        """Stops safely and lets the hardware go; called once."""


@runtime_checkable
class Reporting(Protocol):
    """A robot that has something of its own to add to the summary of the process."""

    def summary(self) -> dict[str, object]:
        """Figures since it was made."""
