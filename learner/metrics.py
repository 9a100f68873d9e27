"""What the learner writes into its metrics, which `agent.metrics` declares."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from agent.measuring import add_disk_sources, program_version
from agent.metrics import LearnerMetrics
from agent.process.clock import by_wall_clock, unix_s
from learner.config import LearnerConfig
from learner.evaluation import GREEDY, ROLLOUT, conditions

WAITING = "waiting_for_agent"
NEEDS_AGENT = (WAITING, "evaluating", "collecting")  # states in which nothing happens without it


class Exports:
    """The learner's metrics as its threads see them.

    Args:
        clock: Unix time [s], as `agent.process.clock` has it.
    """

    def __init__(self, metrics: LearnerMetrics, clock: Callable[[], float] = unix_s) -> None:
        self.metrics = metrics
        self._clock = clock
        self._state = WAITING
        self._has_agent: Callable[[], bool] = lambda: True
        metrics.build_info.labels(program_version(), "learner").set(1)
        metrics.add_source("learner_state", self._show_state, metrics.learner_state)
        self.note_progress()

    def tell_conditions(self, config: LearnerConfig) -> None:
        """Exports what the run's success rates are measured under."""
        for mode in (ROLLOUT, GREEDY):
            under = conditions(config, mode)
            info = self.metrics.run_info.labels(
                config.suite.name, under["protocol"], mode, f"{under['temperature']:g}",
                under["success"],
            )  # fmt: skip
            info.set(1)

    def measure_disk(self, state_dir: Path) -> None:
        """Exports the space there, measured at every scrape."""
        add_disk_sources(self.metrics, {"state": state_dir})

    def watch_agent(self, has_agent: Callable[[], bool]) -> None:
        """Has the state say so while the agent does not answer and is needed."""
        self._has_agent = has_agent

    def resume(self, counts: Mapping[str, int], updates: int) -> None:
        """Goes on counting from what the store holds."""
        self.metrics.grpo_updates_total.inc(updates)
        for disposition, count in counts.items():
            self.metrics.learner_episodes_total.labels(disposition).inc(count)

    def enter(self, state: str) -> None:
        """What the learner does from now on: a state of `learner_state`."""
        self._state = state

    @property
    def state(self) -> str:
        """The state of `learner_state`, now; any thread may ask."""
        alone = self._state in NEEDS_AGENT and not self._has_agent()
        return WAITING if alone else self._state

    def note_progress(self) -> None:
        """The learner got on."""
        self.metrics.learner_last_progress_timestamp_seconds.set_function(
            partial(by_wall_clock, self._clock())
        )

    def accept_episode(self, disposition: str | None) -> None:
        """An episode is durable here; None: an update will say what becomes of it."""
        self.note_progress()
        if disposition is not None:
            self.metrics.learner_episodes_total.labels(disposition).inc()

    def quarantine_episode(self) -> None:
        """An episode was put aside."""
        self.metrics.learner_episodes_quarantined_total.inc()

    def refuse_order(self) -> None:
        """An order was given up."""
        self.metrics.learner_orders_refused_total.inc()

    def commit(self, dispositions: Iterable[str]) -> None:
        """An update was committed."""
        self.note_progress()
        self.metrics.grpo_updates_total.inc()
        for disposition in dispositions:
            self.metrics.learner_episodes_total.labels(disposition).inc()

    def observe_iteration(
        self,
        groups: int,
        degenerate: int,
        reward_std: Sequence[float],
        figures: Mapping[str, float],
        times_s: Mapping[str, float],
    ) -> None:
        """Takes one finished iteration; `figures` are those of its progress line."""
        metrics = self.metrics
        metrics.grpo_groups_total.inc(groups)
        metrics.grpo_degenerate_groups_total.inc(degenerate)
        for part, seconds in times_s.items():
            metrics.grpo_update_seconds.labels(part).observe(seconds)
        if reward_std:
            metrics.grpo_group_reward_std.set(sum(reward_std) / len(reward_std))
        for gauge, name in (
            (metrics.grpo_kl, "approx_kl"),
            (metrics.grpo_clip_fraction, "clip_fraction"),
            (metrics.grpo_grad_norm, "grad_norm"),
            (metrics.grpo_entropy, "entropy"),
            (metrics.grpo_logprob_difference_max, "lp_diff_max"),
            (metrics.grpo_logprob_difference_p99, "lp_diff_p99"),
            (metrics.ppo_value_loss, "value_loss"),
            (metrics.ppo_explained_variance, "explained_variance"),
        ):
            if name in figures:
                gauge.set(figures[name])

    def _show_state(self) -> None:
        self.metrics.learner_state.state(self.state)
