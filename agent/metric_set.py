"""Metrics declared as attributes of a class, and their text for Prometheus.

`requests_total: Counter = counter("Answered requests.", "code")` in a subclass of `MetricSet` makes
the series `perennial_requests_total`: the name in the code is the name in Prometheus.

The text is made on the thread that asks for it. What cannot be collected costs its own series and
nothing else.
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
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agent.wire.errors import PerennialError

log = logging.getLogger(__name__)

PREFIX = "perennial_"
SCRAPE_WAIT_S = 4.0  # for another scrape to end; Prometheus gives up after 5 s
LOG_EVERY_S = 60.0  # of one collector's errors

disable_created_metrics()  # a second series for every counter, which nobody asks for


class ScrapeBusy(PerennialError):
    """Another scrape has not ended: a collector hangs."""


@dataclass(frozen=True, slots=True)
class Spec:
    """One metric as declared. labels: "name" or, for a closed set, "name=value|value"."""

    kind: str  # counter | gauge | optional | histogram | state
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


def state(help: str, *states: str) -> Any:
    """One series a state, of which one is 1."""
    return Spec("state", help, states=states)


class OptionalGauge(Collector):
    """A gauge without labels that is absent until it is set, and again when cleared."""

    def __init__(self, name: str, help: str, registry: CollectorRegistry) -> None:
        self._name, self._help = name, help
        self._value: float | None = None
        registry.register(self)

    def set(self, value: float) -> None:
        self._value = value

    def clear(self) -> None:
        self._value = None

    def describe(self) -> Iterable[Metric]:
        """The family without its value."""
        return [GaugeMetricFamily(self._name, self._help)]

    def collect(self) -> Iterable[Metric]:
        """The family."""
        return [GaugeMetricFamily(self._name, self._help, value=self._value)]


@dataclass(frozen=True, slots=True)
class Source:
    """What is measured when somebody asks: `measure` sets the gauges that it `fills`."""

    measure: Callable[[], None]
    fills: tuple[Gauge | OptionalGauge, ...]


class MetricSet:
    """The declared metrics of a class and its bases, as attributes of an instance.

    Args:
        clock: of the errors' log [s].
    """

    collector_errors_total: Counter = counter(
        "Collections that failed: the series of that collector were left out.", "collector"
    )

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = CollectorRegistry()
        self._families: dict[str, Collector] = {}
        self._sources: dict[str, Source] = {}
        self._scraping = threading.Lock()
        self._clock = clock
        self._logged_s: dict[str, float] = {}
        self._families["process"] = ProcessCollector(registry=self.registry)
        for _, name, spec in declared(type(self)):
            self._families[name] = spec.make(PREFIX + name, self.registry)
            setattr(self, name, self._families[name])

    def add_source(
        self, name: str, measure: Callable[[], None], *fills: Gauge | OptionalGauge
    ) -> None:
        """Has `measure` called at every scrape, on the thread of the scrape.

        If it raises, the metrics that it fills are left out.
        """
        self._sources[name] = Source(measure, fills)

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
            for name, source in list(self._sources.items()):  # others may be added meanwhile
                self._measure(name, source)
            return b"".join(self._render(name, family) for name, family in self._families.items())
        finally:
            self._scraping.release()

    def _measure(self, name: str, source: Source) -> None:
        try:
            source.measure()
        except Exception as error:  # whatever it is, the other series are served
            self._report(name, error)
            for filled in source.fills:
                filled.clear()

    def _render(self, name: str, family: Collector) -> bytes:
        try:
            return generate_latest(family)
        except Exception as error:  # whatever it is, the other series are served
            self._report(name, error)
            return b""

    def _report(self, name: str, error: Exception) -> None:
        self.collector_errors_total.labels(name).inc()
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
