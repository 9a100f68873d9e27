"""What is measured when somebody asks for the metrics, on threads that may hang.

A call that hangs (a dead network disk, a lock that is never given back) cannot be ended from
outside. It is left to itself, and nothing is measured at that source until it has returned: one
source has one thread at most.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

Found = dict[Collector, list[Metric]]  # what a source has measured: family -> its samples


class Call(threading.Thread):
    """One measurement; a daemon, so that a process with a hung one can end."""

    def __init__(self, name: str, measure: Callable[[], Found]) -> None:
        super().__init__(name=f"collect {name}", daemon=True)
        self._measure = measure
        self.found: Found = {}
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        """Measures; whoever waits takes `found` or `error`."""
        try:
            self.found = self._measure()
        except Exception as error:  # whatever it is: reported with the page that misses it
            self.error = error

    def has_ended(self, deadline_s: float) -> bool:
        """Whether it did before `deadline_s` of time.monotonic; waits for that."""
        self.join(max(0.0, deadline_s - time.monotonic()))
        return not self.is_alive()


@dataclass(slots=True)
class Source:
    """`measure` sets the families that it `fills`: all of their series, or those with `labels`."""

    name: str
    measure: Callable[[], None]
    fills: tuple[Collector, ...]
    labels: dict[str, str]
    last: Call | None = field(default=None, init=False)

    def begin(self) -> Call | None:
        """Starts to measure; None while the last call has not returned."""
        if self.last is not None and self.last.is_alive():
            return None
        self.last = Call(self.name, self._find)
        return self.last

    def _find(self) -> Found:
        # The samples are taken here: what a late call sets is never seen half done.
        self.measure()
        return {family: [self._own(metric) for metric in family.collect()] for family in self.fills}

    def _own(self, metric: Metric) -> Metric:
        wanted = self.labels.items()
        metric.samples = [s for s in metric.samples if wanted <= s.labels.items()]
        return metric


class Merged(Collector):
    """A family with the samples that its sources have found: none of them, but its help and type,
    where nothing was found."""

    def __init__(self, family: Collector, found: Iterable[Metric]) -> None:
        self._family, self._found = family, found

    def collect(self) -> Iterable[Metric]:
        """The family."""
        describe = getattr(self._family, "describe", tuple)  # not every collector can
        merged: dict[str, Metric] = {metric.name: metric for metric in describe()}
        for metric in self._found:
            if metric.name in merged:
                merged[metric.name].samples.extend(metric.samples)
            else:
                merged[metric.name] = metric
        return merged.values()
