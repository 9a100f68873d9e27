"""Every metric that the agent exports: names, labels and buckets in one place.

Labels are bounded: a task is a slug of an order or of the config, never an instruction or an id.
"""

from __future__ import annotations

import math
from collections import deque

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LATENCY_BUCKETS_S = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5,
)  # fmt: skip
PAUSE_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
STEP_BUCKETS = (25, 50, 100, 150, 220, 300, 400, 520, 800)
SUCCESS_WINDOWS = (20, 100)
TELEMETRY_GAUGES = ("envs", "step_seconds", "render_seconds", "wait_seconds")
WILSON_Z = 1.96


class AgentMetrics:
    """The agent's metrics in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._make_serving_metrics()
        self._make_adapter_metrics()
        self._make_episode_metrics()
        self._recent: dict[tuple[str, str], deque[bool]] = {}
        self._info_labels: tuple[str, str, str] | None = None

    def _make_serving_metrics(self) -> None:
        registry = self.registry
        self.requests = Counter(
            "perennial_requests_total",
            "Answered requests by message type and result code.",
            ("type", "code"),
            registry=registry,
        )
        self.dropped = Counter(
            "perennial_dropped_messages_total",
            "Messages nobody could be answered for, by reason.",
            ("reason",),
            registry=registry,
        )
        self.duration = Histogram(
            "perennial_request_duration_seconds",
            "Time of an observation's request by stage.",
            ("stage",),
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.inference_busy = Counter(
            "perennial_inference_busy_seconds_total",
            "Time in which the policy computed, each batch counted once.",
            registry=registry,
        )
        self.batch_size = Histogram(
            "perennial_batch_size",
            "Observations per call of the policy.",
            buckets=BATCH_BUCKETS,
            registry=registry,
        )
        self.inflight = Gauge(
            "perennial_inflight_requests", "Observations waiting for a chunk.", registry=registry
        )
        self.sessions = Gauge(
            "perennial_sessions_active", "Clients seen within the lease time.", registry=registry
        )
        self.client = Gauge(
            "perennial_client_gauge", "Last value a client told.", ("name",), registry=registry
        )

    def _make_adapter_metrics(self) -> None:
        registry = self.registry
        self.adapter_version = Gauge(
            "perennial_adapter_version", "Number of the active version.", registry=registry
        )
        self.adapter_info = Gauge(
            "perennial_adapter_info",
            "1 for the active version.",
            ("version", "sha12", "parent"),
            registry=registry,
        )
        self.swaps = Counter(
            "perennial_adapter_swaps_total",
            "Activations by result.",
            ("result",),
            registry=registry,
        )
        self.swap_pause = Histogram(
            "perennial_adapter_swap_pause_seconds",
            "Time the inference loop was held to copy an adapter in.",
            buckets=PAUSE_BUCKETS_S,
            registry=registry,
        )

    def _make_episode_metrics(self) -> None:
        registry = self.registry
        self.episodes = Counter(
            "perennial_episodes_total",
            "Sealed episodes.",
            ("task", "outcome", "phase"),
            registry=registry,
        )
        self.episode_steps = Histogram(
            "perennial_episode_steps",
            "Control steps of sealed episodes.",
            ("task", "outcome"),
            buckets=STEP_BUCKETS,
            registry=registry,
        )
        self.success_rate = Gauge(
            "perennial_task_success_rate",
            "Share of successes among the last episodes of a task.",
            ("task", "window", "phase"),
            registry=registry,
        )
        self.success_wilson_low = Gauge(
            "perennial_task_success_wilson_low",
            "Lower end of the 95% Wilson interval of the largest window.",
            ("task", "phase"),
            registry=registry,
        )
        self.last_episode = Gauge(
            "perennial_task_last_episode_timestamp_seconds",
            "When a task's last episode was sealed.",
            ("task",),
            registry=registry,
        )
        self.open_episodes = Gauge(
            "perennial_open_episodes", "Episodes that run now.", registry=registry
        )
        self.open_slots = Gauge(
            "perennial_open_slots", "Slots of orders without a counted episode.", registry=registry
        )
        self.unacked = Gauge(
            "perennial_episodes_unacked",
            "Sealed episodes that the learner has not acknowledged.",
            registry=registry,
        )
        self.quarantined = Counter(
            "perennial_episodes_quarantined_total",
            "Torn episode files put aside at start.",
            registry=registry,
        )

    def observe_episode(
        self, task: str, phase: str, outcome: str, steps: int, sealed_unix_s: float
    ) -> None:
        """Counts a sealed episode; aborted ones do not enter the success rates."""
        self.episodes.labels(task, outcome, phase).inc()
        self.episode_steps.labels(task, outcome).observe(steps)
        self.last_episode.labels(task).set(sealed_unix_s)
        if outcome == "aborted":
            return
        recent = self._recent.setdefault((task, phase), deque(maxlen=max(SUCCESS_WINDOWS)))
        recent.append(outcome == "success")
        for window in SUCCESS_WINDOWS:
            last = list(recent)[-window:]
            self.success_rate.labels(task, str(window), phase).set(sum(last) / len(last))
        low = wilson_low(sum(recent), len(recent))
        self.success_wilson_low.labels(task, phase).set(low)

    def set_active(self, version: str, number: int, parent: str) -> None:
        """Shows the active version; its predecessor's info series disappears."""
        self.adapter_version.set(number)
        if self._info_labels is not None:
            self.adapter_info.remove(*self._info_labels)
        self._info_labels = (version, version.partition("-")[2], parent)
        self.adapter_info.labels(*self._info_labels).set(1)


def wilson_low(successes: int, trials: int) -> float:
    """Lower end of the 95% Wilson score interval (Wilson, 1927); 0 without trials."""
    if trials == 0:
        return 0.0
    rate, z2 = successes / trials, WILSON_Z**2
    centre = rate + z2 / (2 * trials)
    margin = WILSON_Z * math.sqrt(rate * (1 - rate) / trials + z2 / (4 * trials**2))
    return max(0.0, min(rate, (centre - margin) / (1 + z2 / trials)))  # rounding
