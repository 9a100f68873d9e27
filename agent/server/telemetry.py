"""What simulator workers tell of themselves, summed over all of them."""

from __future__ import annotations

from collections.abc import Container, Mapping

from prometheus_client import Counter

from agent.metrics import AgentMetrics


class SimTelemetry:
    """Counters that only grow, whatever clients are started again, and how many bodies there are.

    A worker tells its totals since its start. What it tells first is where its share begins: after
    a restart of the server, what came before is not counted a second time.
    """

    def __init__(self, metrics: AgentMetrics) -> None:
        self._envs = metrics.sim_envs
        seconds = metrics.sim_seconds_total
        self._totals: dict[str, Counter] = {
            **{f"{part}_seconds": seconds.labels(part) for part in ("step", "render", "wait")},
            "steps": metrics.sim_steps_total,
            "requests_resent": metrics.sim_requests_resent_total,
        }
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
