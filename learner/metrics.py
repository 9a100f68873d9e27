"""The learner's Prometheus metrics, on their own registry and HTTP port."""

from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

UPDATE_BUCKETS_S = (0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)


class LearnerMetrics:
    """Every metric of the learning process; names carry base units and bounded labels."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        new: dict[str, Any] = {"registry": self.registry, "namespace": "perennial"}
        self.updates = Counter("grpo_updates", "Committed updates", **new)
        self.degenerate_groups = Counter(
            "grpo_degenerate_groups", "Groups whose outcomes were all equal", **new
        )
        self.groups = Counter("grpo_groups", "Groups collected", **new)
        self.update_seconds = Histogram(
            "grpo_update_seconds", "Time of one iteration by part", ["part"],
            buckets=UPDATE_BUCKETS_S, **new,
        )  # fmt: skip
        self.reward_std = Gauge(
            "grpo_group_reward_std", "Mean reward standard deviation within groups", **new
        )
        self.kl = Gauge("grpo_kl", "Estimated KL(old || new) of the last update, nats", **new)
        self.clip_fraction = Gauge("grpo_clip_fraction", "Share of clipped tokens", **new)
        self.grad_norm = Gauge("grpo_grad_norm", "Mean gradient norm before clipping", **new)
        self.entropy = Gauge("grpo_entropy", "Mean policy entropy per token, nats", **new)
        self.logprob_difference = Gauge(
            "grpo_logprob_difference_max", "Largest |recomputed - recorded| log-probability", **new
        )
        self.logprob_difference_p99 = Gauge(
            "grpo_logprob_difference_p99", "99% quantile of the same", **new
        )
        self.value_loss = Gauge("ppo_value_loss", "The critic's loss in the last update", **new)
        self.explained_variance = Gauge(
            "ppo_explained_variance",
            "Share of the returns' variance that the critic foresaw; 0: no better than their mean",
            **new,
        )
        self.task_index = Gauge("learner_task_index", "Index of the task being trained", **new)
        self.success = Gauge(
            "eval_success_rate", "Success rate by matrix row", ["row", "mode", "task"], **new
        )

    def observe_iteration(
        self,
        task_index: int,
        groups: int,
        degenerate: int,
        reward_std: Sequence[float],
        figures: Mapping[str, float],
        times_s: Mapping[str, float],
    ) -> None:
        """Take in one finished iteration; `figures` are those of its progress line."""
        self.updates.inc()
        self.groups.inc(groups)
        self.degenerate_groups.inc(degenerate)
        self.task_index.set(task_index)
        for part, seconds in times_s.items():
            self.update_seconds.labels(part).observe(seconds)
        if reward_std:
            self.reward_std.set(sum(reward_std) / len(reward_std))
        for gauge, name in (
            (self.kl, "approx_kl"),
            (self.clip_fraction, "clip_fraction"),
            (self.grad_norm, "grad_norm"),
            (self.entropy, "entropy"),
            (self.logprob_difference, "lp_diff_max"),
            (self.logprob_difference_p99, "lp_diff_p99"),
            (self.value_loss, "value_loss"),
            (self.explained_variance, "explained_variance"),
        ):
            if name in figures:
                gauge.set(figures[name])

    def serve(self, port: int) -> str:
        """Serve /metrics on loopback; returns the URL. Raises OSError if the port is taken."""
        server, _ = start_http_server(port, addr="127.0.0.1", registry=self.registry)
        return f"http://127.0.0.1:{server.server_port}"
