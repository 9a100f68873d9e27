"""Notices when a thread of the server stands still, and counts it once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agent.metrics import AgentMetrics
from agent.server.inference import Inference
from agent.server.loop import Loop

log = logging.getLogger(__name__)

CHECK_PERIOD_S = 1.0
LOOP_LIMIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Pulse:
    """since_s: when the present turn or batch began, None while there is none. limit_s: for it."""

    since_s: Callable[[], float | None]
    limit_s: Callable[[], float]


class Watchdog:
    """A thread that looks at pulses; `check` is one look.

    Args:
        pulses: name of the stall -> what shows it.
        metrics: gets the stalls by name.
    """

    def __init__(
        self,
        pulses: Mapping[str, Pulse],
        metrics: AgentMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pulses = dict(pulses)
        self._trips = metrics.watchdog_trips_total
        self._clock = clock
        self._counted: dict[str, float] = {}  # name -> since when the last stall counted was
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Looks every `CHECK_PERIOD_S` until `close`."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(CHECK_PERIOD_S)

    def check(self) -> None:
        """Counts every stall that is new."""
        for name, pulse in self._pulses.items():
            since_s = pulse.since_s()
            if since_s is None or since_s == self._counted.get(name):
                continue
            silence_s = self._clock() - since_s
            if silence_s > pulse.limit_s():
                self._counted[name] = since_s
                self._trips.labels(name).inc()
                log.error("%s: nothing for %.1f s", name, silence_s)

    def _run(self) -> None:
        while not self._stop.wait(CHECK_PERIOD_S):
            self.check()


def watch(loop: Loop, inference: Inference, metrics: AgentMetrics) -> Watchdog:
    """The watchdog of a server, to be started once its loop turns."""
    pulses = {
        "loop_stalled": Pulse(lambda: loop.last_turn_s, lambda: LOOP_LIMIT_S),
        "inference_stalled": Pulse(
            lambda: inference.running_since_s, lambda: inference.batch_limit_s
        ),
    }
    return Watchdog(pulses, metrics)
