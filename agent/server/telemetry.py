"""What simulator workers and robots tell of themselves, summed over all of them."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Protocol

from agent.metrics import AgentMetrics
from agent.wire.telemetry import (
    AGE,
    AGE_BOUNDS_S,
    DIM_GROUPS,
    LATENESS,
    LATENESS_BOUNDS_S,
    TICK_FATES,
    part_names,
)


class Sum(Protocol):
    """A total that clients' shares are added to."""

    def inc(self, amount: float) -> None:
        """Adds."""


class ClientTelemetry:
    """Totals that only grow, whatever clients are started again, and how many bodies there are.

    A client tells its totals since its start. What it tells first is where its share begins: after
    a restart of the server, what came before is not counted a second time.
    """

    def __init__(self, metrics: AgentMetrics) -> None:
        self._envs = metrics.sim_envs
        self._totals: dict[str, Sum] = {**_sim_totals(metrics), **_robot_totals(metrics)}
        self._told: dict[str, tuple[str, dict[str, float]]] = {}  # client -> (instance, figures)

    def take(self, client_id: str, instance_id: str, figures: Mapping[str, float]) -> None:
        """Adds what came since the instance's last message."""
        instance, before = self._told.get(client_id, ("", {}))
        if instance != instance_id:
            before = {}
        told = {**before, **figures}
        for name, total in self._totals.items():
            if name in figures:
                base = before.get(name, figures[name])
                total.inc(max(0.0, figures[name] - base))
                told[name] = max(base, figures[name])  # a late message takes nothing back
        self._told[client_id] = instance_id, told

    def show(self, present: Container[str]) -> None:
        """Counts the bodies of the clients that are there."""
        envs = [figures.get("envs", 0.0) for k, (_, figures) in self._told.items() if k in present]
        self._envs.set(sum(envs))

    def forget(self, client_id: str) -> None:
        """The client has been silent for long."""
        self._told.pop(client_id, None)


def _sim_totals(metrics: AgentMetrics) -> dict[str, Sum]:
    seconds = metrics.sim_seconds_total
    return {
        **{f"{part}_seconds": seconds.labels(part) for part in ("step", "render", "wait")},
        "steps": metrics.sim_steps_total,
        "requests_resent": metrics.sim_requests_resent_total,
    }


def _robot_totals(metrics: AgentMetrics) -> dict[str, Sum]:
    ticks, clamped = metrics.robot_ticks_total, metrics.actions_clamped_total
    lateness, age = metrics.tick_lateness_seconds, metrics.observation_age_seconds
    return {
        **{f"ticks_{fate}": ticks.labels(fate) for fate in TICK_FATES},
        **{f"clamped_{group}": clamped.labels(group) for group in DIM_GROUPS},
        "watchdog_trips": metrics.robot_watchdog_trips_total,
        "chunks_stale": metrics.chunks_stale_total,
        **dict(zip(part_names(LATENESS, LATENESS_BOUNDS_S), lateness.parts, strict=True)),
        **dict(zip(part_names(AGE, AGE_BOUNDS_S), age.parts, strict=True)),
    }
