"""Metrics declared as attributes of a class, and their text for Prometheus.

`requests_total: Counter = counter("Answered requests.", "code")` in a subclass of `MetricSet` makes
the series `perennial_requests_total`: the name in the code is the name in Prometheus.

The text is made on the thread that asks for it, of what is in memory and of what sources measure
meanwhile on threads of their own. What cannot be collected, or not in time, costs its own series
and nothing else. It is left out rather than repeated: Prometheus takes a value on the page for one
of now, and ends the series of a gauge that is missing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Enum,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from agent.metric_sources import Call, Found, Merged, Source
from agent.wire.errors import PerennialError

log = logging.getLogger(__name__)

PREFIX = "perennial_"
SOURCE_LIMIT_S = 3.0  # for all sources of a page together; Prometheus gives up after 5 s
SCRAPE_WAIT_S = 4.0  # for another scrape to end
LOG_EVERY_S = 60.0  # of one collector's errors

disable_created_metrics()  # a second series for every counter, which nobody asks for


class ScrapeBusy(PerennialError):
    """Another scrape has not ended, or what the next one will show is not complete yet."""


@dataclass(frozen=True, slots=True)
class Spec:
    """One metric as declared. labels: "name" or, for a closed set, "name=value|value"."""

    kind: str  # counter | gauge | optional | histogram | told | state
    help: str
    labels: tuple[str, ...] = ()
    unit: str = ""  # where the name does not end in it
    buckets: tuple[float, ...] = ()
    states: tuple[str, ...] = ()

    @property
    def label_names(self) -> tuple[str, ...]:
        """Without their values."""
        return tuple(label.partition("=")[0] for label in self.labels)

    def make(self, name: str, registry: CollectorRegistry) -> Collector:
        """The metric; a counter whose labels are closed sets has all of its series from 0."""
        if self.kind == "optional":
            return OptionalGauge(name, self.help, registry)
        if self.kind == "told":
            return ToldHistogram(name, self.help, self.buckets, registry)
        common: dict[str, Any] = {"registry": registry, "labelnames": self.label_names}
        if self.kind == "histogram":
            return Histogram(name, self.help, buckets=self.buckets, **common)
        if self.kind == "state":
            return Enum(name, self.help, states=self.states, **common)
        if self.kind == "gauge":
            return Gauge(name, self.help, **common)
        made = Counter(name, self.help, **common)
        values = [label.partition("=")[2].split("|") for label in self.labels]
        if values and all(map(all, values)):
            for combination in product(*values):
                made.labels(*combination)
        return made


# These stand for what a MetricSet has there once it is made, hence `Any`.
def counter(help: str, *labels: str) -> Any:
    """Only grows; starts at 0 with the process unless it says otherwise."""
    return Spec("counter", help, labels)


def gauge(help: str, *labels: str, unit: str = "") -> Any:
    """A value that goes up and down."""
    return Spec("gauge", help, labels, unit)


def optional_gauge(help: str, unit: str = "") -> Any:
    """A gauge without labels that is absent while there is no value."""
    return Spec("optional", help, (), unit)


def histogram(help: str, *labels: str, buckets: tuple[float, ...], unit: str = "") -> Any:
    """Observations in buckets of at most so much."""
    return Spec("histogram", help, labels, unit, buckets)


def told_histogram(help: str, buckets: tuple[float, ...], unit: str = "") -> Any:
    """A histogram without labels of what clients have counted."""
    return Spec("told", help, (), unit, buckets)


def state(help: str, *states: str) -> Any:
    """One series a state, of which one is 1."""
    return Spec("state", help, states=states)


class OptionalGauge(Collector):
    """A gauge without labels that is absent until it is set, and again when cleared."""

    def __init__(self, name: str, help: str, registry: CollectorRegistry) -> None:
        self._name, self._help = name, help
        self._value: Callable[[], float | None] = lambda: None
        registry.register(self)

    def set(self, value: float) -> None:
        self._value = lambda: value

    def set_function(self, measure: Callable[[], float]) -> None:
        """Have `measure` called at every scrape, as of a Gauge."""
        self._value = measure

    def clear(self) -> None:
        self._value = lambda: None

    def describe(self) -> Iterable[Metric]:
        """The family without its value."""
        return [GaugeMetricFamily(self._name, self._help)]

    def collect(self) -> Iterable[Metric]:
        """The family."""
        return [GaugeMetricFamily(self._name, self._help, value=self._value())]


class Total:
    """A number that is only added to."""

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float) -> None:
        self.value += amount


class ToldHistogram(Collector):
    """A histogram without labels that is made of totals: observations up to each bound.

    parts: those totals, the one of all observations, and the one of their sum.
    """

    def __init__(
        self, name: str, help: str, bounds: tuple[float, ...], registry: CollectorRegistry
    ) -> None:
        self._name, self._help = name, help
        self._bounds = [*(f"{bound:g}" for bound in bounds), "+Inf"]
        self.parts = [Total() for _ in (*self._bounds, "sum")]
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """The family."""
        *counts, total = [part.value for part in self.parts]
        buckets = list(zip(self._bounds, counts, strict=True))
        return [HistogramMetricFamily(self._name, self._help, buckets, total)]


class MetricSet:
    """The declared metrics of a class and its bases, as attributes of an instance.

    Args:
        clock: of the errors' log [s].
    """

    collector_errors_total: Counter = counter(
        "Collections that failed or hung: the series of that collector were left out.", "collector"
    )

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = CollectorRegistry()
        self._families: dict[str, Collector] = {}
        self._sources: dict[str, Source] = {}
        self._scraping = threading.Lock()
        self._clock = clock
        self._logged_s: dict[str, float] = {}
        self._hung: set[str] = set()  # sources that have not answered in time since
        self._families["process"] = ProcessCollector(registry=self.registry)
        self.add_source("process", lambda: None, self._families["process"])
        for _, name, spec in declared(type(self)):
            self._families[name] = spec.make(PREFIX + name, self.registry)
            setattr(self, name, self._families[name])

    def add_source(
        self, name: str, measure: Callable[[], None], *fills: Collector, **labels: str
    ) -> None:
        """Has `measure` called at every scrape, on a thread of its own.

        fills: the metrics that it sets, of this object. labels: those of its series, where other
        sources fill the same metrics. If it raises, or does not return within SOURCE_LIMIT_S, these
        series are left out. It is not called again before it has returned.
        """
        self._sources[name] = Source(name, measure, fills, labels)

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """Scrapes wait until the block has ended: what it changes is seen at once or not at all."""
        with self._scraping:
            yield

    def text(self) -> bytes:
        """Everything in Prometheus' text format. Raises ScrapeBusy."""
        if not self._scraping.acquire(timeout=SCRAPE_WAIT_S):
            raise ScrapeBusy(f"another scrape has not ended within {SCRAPE_WAIT_S:g} s")
        try:
            measured = self._measure()
            return b"".join(
                self._render(
                    name, Merged(family, measured[family]) if family in measured else family
                )
                for name, family in self._families.items()
            )
        finally:
            self._scraping.release()

    def _measure(self) -> Found:
        """What the sources have found in time, of every metric that one of them fills."""
        sources = list(self._sources.values())  # others may be added meanwhile
        measured: Found = {family: [] for source in sources for family in source.fills}
        calls = [(source.name, self._begin(source)) for source in sources]
        deadline_s = time.monotonic() + SOURCE_LIMIT_S
        for name, call in calls:
            for family, metrics in self._end(name, call, deadline_s).items():
                measured[family] += metrics
        return measured

    def _begin(self, source: Source) -> Call | None:
        former, call = source.last, source.begin()
        late = former.error if former is not None and source.name in self._hung else None
        if late is not None:  # nobody has heard of it: its page was already made
            self._log(source.name, late)
        return call

    def _end(self, name: str, call: Call | None, deadline_s: float) -> Found:
        if call is None or not call.has_ended(deadline_s):
            self.collector_errors_total.labels(name).inc()
            if name not in self._hung:
                self._hung.add(name)
                log.error(
                    "collector %s has not answered within %g s, its series are left out until it "
                    "does; look for a dead network disk",
                    name,
                    SOURCE_LIMIT_S,
                )
            return {}
        if name in self._hung:
            self._hung.discard(name)
            log.info("collector %s answers again", name)
        if call.error is not None:
            self._report(name, call.error)
        return call.found

    def _render(self, name: str, family: Collector) -> bytes:
        try:
            return generate_latest(family)
        except Exception as error:  # whatever it is, the other series are served
            self._report(name, error)
            return b""

    def _report(self, name: str, error: Exception) -> None:
        self.collector_errors_total.labels(name).inc()
        self._log(name, error)

    def _log(self, name: str, error: Exception) -> None:
        now_s = self._clock()
        if now_s >= self._logged_s.get(name, -LOG_EVERY_S) + LOG_EVERY_S:
            self._logged_s[name] = now_s
            log.error("collector %s failed, its series are left out", name, exc_info=error)


def declared(cls: type[MetricSet]) -> Iterator[tuple[type[MetricSet], str, Spec]]:
    """(class that declares it, name without the prefix, declaration), this class's errors last.

    So a scrape counts its own errors.
    """
    for owner in cls.__mro__:
        if issubclass(owner, MetricSet):
            for name, spec in vars(owner).items():
                if isinstance(spec, Spec):
                    yield owner, name, spec
