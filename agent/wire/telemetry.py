"""What clients tell of themselves in `Telemetry`: the names, and totals that make a histogram.

But for `envs`, the bodies that there are now, every figure is a total since the client's process
began, so that a message that is lost or comes twice costs nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import accumulate

SIM_NAMES = (
    "envs", "step_seconds", "render_seconds", "wait_seconds", "steps", "requests_resent",
)  # fmt: skip

DIM_GROUPS = ("position", "rotation", "gripper", "other")
TICK_FATES = ("executed", "held", "missed")
LATENESS_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)
AGE_BOUNDS_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 1, 2, 5)
LATENESS, AGE = "tick_lateness_seconds", "observation_age_seconds"


def part_names(name: str, bounds: tuple[float, ...]) -> tuple[str, ...]:
    """Of a histogram's totals: observations up to each bound, all of them, and their sum."""
    return (*(f"{name}_le_{bound:g}" for bound in bounds), f"{name}_le_inf", f"{name}_sum")


ROBOT_NAMES = (
    *(f"ticks_{fate}" for fate in TICK_FATES),
    *(f"clamped_{group}" for group in DIM_GROUPS),
    "watchdog_trips",
    "chunks_stale",
    *part_names(LATENESS, LATENESS_BOUNDS_S),
    *part_names(AGE, AGE_BOUNDS_S),
)
TELEMETRY_NAMES = (*SIM_NAMES, *ROBOT_NAMES)


class Tally:
    """A histogram's totals on the client's side."""

    def __init__(self, name: str, bounds: tuple[float, ...]) -> None:
        self._names, self._bounds = part_names(name, bounds), bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """One observation."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def totals(self) -> dict[str, float]:
        """Under the names of `part_names`."""
        values = [*map(float, accumulate(self._counts)), self._sum]
        assert math.isfinite(self._sum), self._names[0]
        return dict(zip(self._names, values, strict=True))
