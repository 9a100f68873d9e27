"""A fixed rate on a monotonic clock, and what became of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import numpy as np

from agent.wire.telemetry import LATENESS, LATENESS_BOUNDS_S, Tally

LATE_SHARE = 0.1  # of a period; a tick that comes later is called late
RECENT_TICKS = 200_000  # of which quantiles are told: nearly three hours at 20 Hz


class TickReport:
    """How punctual the ticks were since the process began."""

    def __init__(self, period_s: float) -> None:
        self.tally = Tally(LATENESS, LATENESS_BOUNDS_S)
        self.missed = 0  # ticks that did not take place, because the one before took too long
        self._period_s = period_s
        self._ticks = self._late = 0
        self._recent_s: deque[float] = deque(maxlen=RECENT_TICKS)

    def add(self, lateness_s: float) -> None:
        """A tick took place."""
        self._ticks += 1
        self._late += lateness_s > LATE_SHARE * self._period_s
        self._recent_s.append(lateness_s)
        self.tally.add(lateness_s)

    def summary(self) -> dict[str, float]:
        """ticks, late, missed, and the lateness' median, 99th percentile and maximum in s."""
        lateness = np.array(self._recent_s or [0.0])
        median_s, p99_s = np.quantile(lateness, [0.5, 0.99])
        return {
            "ticks": self._ticks,
            "late": self._late,
            "missed": self.missed,
            "lateness_p50_s": float(median_s),
            "lateness_p99_s": float(p99_s),
            "lateness_max_s": float(lateness.max()),
        }


class FixedRate:
    """Ticks at `rate_hz`, counted from 0 at the first `wait`, and again after each `restart`.

    Tick n is due n periods after the first. A tick that was overslept by a whole period or more is
    missed, not made up for: the ticks after it are due when they would have been.
    """

    def __init__(
        self,
        rate_hz: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.report = TickReport(1.0 / rate_hz)
        self._period_s = 1.0 / rate_hz
        self._clock, self._sleep = clock, sleep
        self._first_s: float | None = None
        self._tick = -1

    def restart(self) -> None:
        """The next tick is number 0 and due when it is waited for: nothing before it was missed."""
        self._first_s, self._tick = None, -1

    def wait(self) -> int:
        """Sleeps until the next tick is due, and returns its number."""
        if self._first_s is None:
            self._first_s = self._clock()
        now_s, due_tick = self._clock(), self._tick + 1
        overslept = int((now_s - self._due_s(due_tick)) / self._period_s)
        if overslept > 0:
            self.report.missed += overslept
            due_tick += overslept
        while (left_s := self._due_s(due_tick) - self._clock()) > 0:
            self._sleep(left_s)
        self._tick = due_tick
        self.report.add(max(0.0, self._clock() - self._due_s(due_tick)))
        return due_tick

    def time_left_s(self) -> float:
        """Until the next tick is due; 0 if it is."""
        if self._first_s is None:
            return 0.0
        return max(0.0, self._due_s(self._tick + 1) - self._clock())

    def _due_s(self, tick: int) -> float:
        assert self._first_s is not None
        return self._first_s + tick * self._period_s
