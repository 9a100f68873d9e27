"""Wall time of work on a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.model_latency.build import Machine


@dataclass(frozen=True)
class Patience:
    """How long a cell is measured: warm-up calls, then calls until enough or out of time."""

    warmup: int
    repeats: int
    limit_s: float

    def median_s(self, machine: Machine, call: Callable[[], object]) -> float:
        """Median over the calls, each waited for; at least one is timed."""
        for _ in range(self.warmup):
            call()
        machine.synchronize()
        start_s = time.perf_counter()
        times_s: list[float] = []
        while not times_s or (
            len(times_s) < self.repeats and time.perf_counter() - start_s < self.limit_s
        ):
            times_s.append(once_s(machine, call))
        return statistics.median(times_s)


PATIENT = Patience(warmup=5, repeats=50, limit_s=5.0)
QUICK = Patience(warmup=0, repeats=2, limit_s=0.2)


def once_s(machine: Machine, call: Callable[[], object]) -> float:
    """One call, from an idle device to an idle device."""
    machine.synchronize()
    start_s = time.perf_counter()
    call()
    machine.synchronize()
    return time.perf_counter() - start_s
