"""Success per task and phase, as it changes from episode to episode.

The figures are a function of the ledger's history alone: at start it is played through the same
methods that take each new episode, so a restart changes no figure.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

from agent.ledger import ActivationRow, EpisodeRow, EpisodeState
from agent.metrics import SUCCESS_WINDOWS, AgentMetrics
from agent.process.clock import by_wall_clock
from agent.wire.messages import BASE_VERSION, Order, Outcome, Phase

BEST_MIN_EPISODES = 20  # in the window, before its rate can be the best
WILSON_Z = 1.96
# The best is the largest of many windows: with 1.96 a policy that never changes would look as if
# it had forgotten for a fifth of all time after 20 000 episodes; with this, for under 1 %.
BEST_Z = 4.0

Task = tuple[str, str]  # (task, phase)


@dataclass(frozen=True, slots=True)
class Count:
    """So many successes of so many trials."""

    successes: int = 0
    trials: int = 0

    def plus(self, success: bool) -> Count:
        """One trial more."""
        return Count(self.successes + success, self.trials + 1)

    @property
    def rate(self) -> float:
        """Share of successes; 0 without trials."""
        return self.successes / self.trials if self.trials else 0.0

    @property
    def low(self) -> float:
        """Lower end of the Wilson interval."""
        return wilson(self.successes, self.trials)[0]

    @property
    def high(self) -> float:
        """Upper end of the Wilson interval."""
        return wilson(self.successes, self.trials)[1]


@dataclass(slots=True)
class Record:
    """What is remembered of one task in one phase."""

    last: deque[bool] = field(default_factory=lambda: deque(maxlen=max(SUCCESS_WINDOWS)))
    window: Count = Count()  # of `last`
    best: Count = Count()
    before_swap: Count = Count()
    since_swap: Count = Count()

    def add(self, success: bool, by_active_version: bool) -> None:
        """Takes one episode."""
        dropped = len(self.last) == self.last.maxlen and self.last[0]
        self.last.append(success)
        self.window = Count(self.window.successes - dropped + success, len(self.last))
        if self.window.trials >= BEST_MIN_EPISODES and self.window.rate >= self.best.rate:
            self.best = self.window
        if by_active_version:
            self.since_swap = self.since_swap.plus(success)

    def swap(self) -> None:
        """Another version was activated."""
        self.before_swap, self.since_swap = self.window, Count()

    def of_last(self, size: int) -> Count:
        """The last `size` episodes at most."""
        last = list(self.last)[-size:]
        return Count(sum(last), len(last))


class SuccessRecord:
    """Takes every sealed episode and activation, and shows what follows in the metrics.

    For one thread.
    """

    def __init__(self, metrics: AgentMetrics) -> None:
        self._metrics = metrics
        self._records: dict[Task, Record] = {}
        self._orders: dict[str, Order] = {}  # those of success-matrix cells
        self._cells: dict[tuple[int, str, str], Count] = {}
        self._active_version = BASE_VERSION
        self._staleness_episodes = 0

    def register(self, orders: Iterable[Order]) -> None:
        """Makes known which orders belong to the success matrix, before their episodes come."""
        self._orders.update((order.order_id, order) for order in orders if order.mode)

    def restore(
        self, orders: Iterable[Order], history: Iterable[EpisodeRow | ActivationRow]
    ) -> None:
        """Takes the orders and plays the history of earlier processes, oldest first.

        No scrape sees a part of it: Prometheus would count the rest as new episodes.
        """
        with self._metrics.unseen():
            self._play(orders, history)

    def _play(self, orders: Iterable[Order], history: Iterable[EpisodeRow | ActivationRow]) -> None:
        self.register(orders)
        for row in history:
            if isinstance(row, EpisodeRow):
                self._take(row)
            elif row.version != self._active_version:
                self._activate(row)
        self._show_swap()
        for task in self._records:
            self._show(task)
        for cell in self._cells:
            self._show_cell(cell)

    def on_sealed(self, row: EpisodeRow) -> None:
        """An episode's seal is durable."""
        self._take(row)
        self._metrics.adapter_staleness_episodes.set(self._staleness_episodes)
        if (row.task, row.phase) in self._records:
            self._show((row.task, row.phase))
        cell = self._cell(row)
        if cell is not None:
            self._show_cell(cell)

    def on_activated(self, row: ActivationRow) -> None:
        """A version's activation is durable."""
        if row.version != self._active_version:
            self._activate(row)
            self._show_swap()

    def _take(self, row: EpisodeRow) -> None:
        metrics = self._metrics
        metrics.episodes_total.labels(row.task, row.outcome, row.phase).inc()
        metrics.episode_steps.labels(row.task, row.outcome).observe(row.steps)
        last = metrics.task_last_episode_timestamp_seconds.labels(row.task)
        last.set_function(partial(by_wall_clock, row.sealed_unix_s))
        self._staleness_episodes += 1
        # What was sealed stays counted when it is distrusted later: a counter never goes back.
        if row.outcome == Outcome.ABORTED or row.state == EpisodeState.QUARANTINED:
            return
        success = row.outcome == Outcome.SUCCESS
        record = self._records.setdefault((row.task, row.phase), Record())
        record.add(success, row.version == self._active_version)
        cell = self._cell(row)
        if cell is not None:
            self._cells[cell] = self._cells.get(cell, Count()).plus(success)

    def _cell(self, row: EpisodeRow) -> tuple[int, str, str] | None:
        """Where an episode belongs in the success matrix."""
        order = self._orders.get(row.order_id)
        if order is None or row.phase != Phase.EVAL or not row.counted:
            return None
        return order.row, order.mode, order.task

    def _activate(self, row: ActivationRow) -> None:
        self._active_version = row.version
        self._staleness_episodes = 0
        self._metrics.adapter_activated_timestamp_seconds.set_function(
            partial(by_wall_clock, row.unix_s)
        )
        for record in self._records.values():
            record.swap()

    def _show(self, task: Task) -> None:
        metrics, record = self._metrics, self._records[task]
        for size in SUCCESS_WINDOWS:
            count, labels = record.of_last(size), (task[0], str(size), task[1])
            metrics.task_success_rate.labels(*labels).set(count.rate)
            metrics.task_success_episodes.labels(*labels).set(count.trials)
        metrics.task_success_wilson_low.labels(*task).set(record.window.low)
        metrics.task_success_wilson_high.labels(*task).set(record.window.high)
        if record.best.trials:
            metrics.task_success_best.labels(*task).set(record.best.rate)
            best_low, _ = wilson(record.best.successes, record.best.trials, BEST_Z)
            metrics.task_success_best_wilson_low.labels(*task).set(best_low)
            forgetting = record.best.rate - record.window.rate
            metrics.task_forgetting.labels(*task).set(max(0.0, forgetting))
        if record.since_swap.trials:
            metrics.task_success_since_swap.labels(*task).set(record.since_swap.rate)
            high = metrics.task_success_since_swap_wilson_high
            high.labels(*task).set(record.since_swap.high)
        metrics.task_episodes_since_swap.labels(*task).set(record.since_swap.trials)

    def _show_swap(self) -> None:
        """What an activation changes: the figures before it are new, those since it are gone."""
        metrics = self._metrics
        metrics.adapter_staleness_episodes.set(self._staleness_episodes)
        metrics.task_success_since_swap.clear()
        metrics.task_success_since_swap_wilson_high.clear()
        for task, record in self._records.items():
            metrics.task_episodes_since_swap.labels(*task).set(record.since_swap.trials)
            if record.before_swap.trials:
                low = metrics.task_success_before_swap_wilson_low
                metrics.task_success_before_swap.labels(*task).set(record.before_swap.rate)
                low.labels(*task).set(record.before_swap.low)

    def _show_cell(self, cell: tuple[int, str, str]) -> None:
        row, mode, task = cell
        labels = (str(row), mode, task)
        self._metrics.eval_success_rate.labels(*labels).set(self._cells[cell].rate)
        self._metrics.eval_episodes.labels(*labels).set(self._cells[cell].trials)


def wilson(successes: int, trials: int, z: float = WILSON_Z) -> tuple[float, float]:
    """The Wilson score interval (Wilson, 1927), of 95% unless `z` says otherwise.

    The whole of [0, 1] without trials.
    """
    if trials == 0:
        return 0.0, 1.0
    rate, z2 = successes / trials, z**2
    centre = rate + z2 / (2 * trials)
    margin = z * math.sqrt(rate * (1 - rate) / trials + z2 / (4 * trials**2))
    low, high = (centre - margin) / (1 + z2 / trials), (centre + margin) / (1 + z2 / trials)
    return max(0.0, min(rate, low)), min(1.0, max(rate, high))  # rounding
