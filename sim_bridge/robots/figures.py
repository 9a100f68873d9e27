"""What became of ticks, chunks and actions: for the summary at the end, and for telemetry."""

from __future__ import annotations

from collections import Counter, deque

import numpy as np

from agent.wire.telemetry import AGE, AGE_BOUNDS_S, DIM_GROUPS, Tally
from sim_bridge.robots.clock import TickReport
from sim_bridge.robots.guard import Guard
from sim_bridge.robots.playback import Playback
from sim_bridge.unkept import Unkept

RECENT_CHUNKS = 20_000  # of which delays and jumps are told at the end
COUNTED = ("executed", "held", "watchdog_trips", "episodes_lost")


class Figures:
    """Since the process began.

    counts: see COUNTED. age: of an observation when the first action that answers it is executed.
    unkept: episodes that the agent acted in and did not keep.
    """

    def __init__(self, rate_hz: float, ticks: TickReport, guard: Guard) -> None:
        self.counts: Counter[str] = Counter()
        self.unkept = Unkept()
        self.age = Tally(AGE, AGE_BOUNDS_S)
        self._rate_hz, self._ticks, self._guard = rate_hz, ticks, guard
        self._chunks = self._stale = 0
        self._delays_ticks: deque[int] = deque(maxlen=RECENT_CHUNKS)
        self._seam_jumps: deque[float] = deque(maxlen=RECENT_CHUNKS)
        self._running: Playback | None = None

    def begin(self, playback: Playback) -> None:
        """An episode begins, which is played so; the one before is over."""
        if (over := self._running) is not None:
            self._chunks += len(over.delays_ticks)
            self._stale += over.stale
            self._delays_ticks.extend(over.delays_ticks)
            self._seam_jumps.extend(over.seam_jumps)
        self._running = playback

    def summary(self) -> dict[str, object]:
        """Punctuality, delays and what became of ticks."""
        running = self._running
        delays = [*self._delays_ticks, *(running.delays_ticks if running else [])]
        jumps = [*self._seam_jumps, *(running.seam_jumps if running else [])]
        return {
            "rate_hz": self._rate_hz,
            **self._ticks.summary(),
            **{name: self.counts[name] for name in COUNTED},
            "episodes_unkept": self.unkept.count,
            "clamped": dict(self._guard.clamped),
            "chunks": self._chunks + (len(running.delays_ticks) if running else 0),
            "chunks_stale": self._stale_so_far(),
            "delay_ticks_mean": float(np.mean(delays)) if delays else 0.0,
            "delay_ticks_p99": float(np.quantile(delays, 0.99)) if delays else 0.0,
            "delay_ticks_max": max(delays, default=0),
            "seam_jump_mean": float(np.mean(jumps)) if jumps else 0.0,
        }

    def telemetry(self) -> dict[str, float]:
        """The figures named `agent.wire.telemetry.ROBOT_NAMES`."""
        counts, clamped = self.counts, self._guard.clamped
        return {
            "ticks_executed": float(counts["executed"]),
            "ticks_held": float(counts["held"]),
            "ticks_missed": float(self._ticks.missed),
            **{f"clamped_{group}": float(clamped[group]) for group in DIM_GROUPS},
            "watchdog_trips": float(counts["watchdog_trips"]),
            "chunks_stale": float(self._stale_so_far()),
            **self._ticks.tally.totals(),
            **self.age.totals(),
        }

    def _stale_so_far(self) -> int:
        return self._stale + (self._running.stale if self._running else 0)
