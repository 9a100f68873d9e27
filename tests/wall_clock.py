"""A wall clock that a test sets back and forward."""

import time

import pytest

from agent.process import clock


class WallClock:
    """Stands in for the machine's; `set_by_s` is by how much it is ahead of the real one [s]."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Hold until the test ends, which also puts the process's own time back."""
        self._real_ns = time.time_ns
        self.set_by_s = 0.0
        monkeypatch.setattr(time, "time_ns", self._now_ns)
        monkeypatch.setattr(time, "time", lambda: self._now_ns() / 1e9)
        monkeypatch.setattr(clock._clock, "_origin_ns", clock._clock._origin_ns)

    def _now_ns(self) -> int:
        return self._real_ns() + int(self.set_by_s * 1e9)

    def start_process(self) -> None:
        """Have this process's own time begin now, as in a process that was just started."""
        clock._clock._origin_ns = self._now_ns() - clock.since_boot_ns()
