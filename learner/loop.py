"""Sequential learning of a suite's tasks on one adapter: the whole algorithm on one page.

    evaluate the base
    for each task:
        until its budget is spent:
            collect groups of episodes from the version served
            learn from them: a fixed number of optimiser steps
            checkpoint, commit, publish, activate
        evaluate

No reference model, KL penalty, entropy bonus or replay: what a continual-learning method does
besides is behind its hooks (`learner.continual.method`). Every step can be killed and
repeated: orders, commits, publishes and activations are idempotent, and what is ordered and
computed next is a function of the last committed checkpoint and of the episodes alone.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from agent.durable import StorageError
from agent.process.optional import PackageError
from agent.process.shown import printable
from agent.wire.messages import BASE_VERSION
from learner.checkpoint import Place
from learner.config import LearnerConfig
from learner.continual.method import ContinualMethod
from learner.curriculum import Stage, is_finished, stages
from learner.evaluation import (
    ROLLOUT,
    Cell,
    conditions,
    count_cell,
    empty_matrices,
    plan_row,
)
from learner.filmstrip import save_filmstrip
from learner.groups import Group
from learner.matrix import SuccessMatrix
from learner.metrics import Exports
from learner.ordering import collect_orders
from learner.progress import ProgressLog
from learner.publication import Publication
from learner.receiver import Inbox
from learner.store import EpisodeRow
from learner.unusable import UnusableEpisode
from learner.update import UpdateReport

log = logging.getLogger(__name__)


class Teacher(Protocol):
    """A method of learning: GRPO, PPO, or the supervised control."""

    def new_optimizer(self) -> torch.optim.Optimizer:
        """A fresh optimiser of everything that the method trains."""

    def collect(self, place: Place, version: str) -> list[Group]:
        """The groups of one iteration, complete; none for a supervised method.

        They are from `version`, which the policy equals, or, in an asynchronous run, from one that
        is a bounded number of updates older; then what comes next is ordered as well.
        """

    def learn(
        self, optimizer: torch.optim.Optimizer, groups: list[Group], place: Place
    ) -> UpdateReport:
        """Change the policy's adapter by one iteration."""


@dataclass(frozen=True)
class Watchers:
    """Where a run shows itself: metrics, JSON lines and contact sheets."""

    exports: Exports
    progress: ProgressLog
    filmstrips: Path


class Loop:
    """One run from wherever it was left to its end."""

    def __init__(
        self,
        config: LearnerConfig,
        teacher: Teacher,
        continual: ContinualMethod,
        publication: Publication,
        inbox: Inbox,
        watchers: Watchers,
        should_stop: Callable[[], bool],
        base_version: str = BASE_VERSION,
    ) -> None:
        """base_version: what row 0 measures."""
        self.base_version = base_version
        self.config, self.teacher, self.publication = config, teacher, publication
        self.continual = continual
        self.inbox, self.watchers, self.should_stop = inbox, watchers, should_stop
        self.link = publication.link
        self.matrices = empty_matrices(config)
        self.optimizer = teacher.new_optimizer()
        self.place = Place()

    def run(self) -> dict[str, SuccessMatrix]:
        """Learn all tasks; returns the success matrices by evaluation mode.

        Raises:
            Stopped: asked to stop; running again resumes.
        """
        self.place = self.publication.resume(self.optimizer)
        self.watchers.exports.metrics.learner_task_index.set(self.place.task_index)
        self.watchers.progress.write(
            "start", version=self.publication.version, **asdict(self.place)
        )
        self._learn_tasks()
        if not self.config.keep_used_episodes:
            self.inbox.drop_used(but_last=False)
        return self.matrices

    def _learn_tasks(self) -> None:
        self.evaluate(row=0)
        if self.config.algorithm.iterations_per_task == 0:
            return
        last_row = self.config.last_row
        for stage in stages(self.config):
            if last_row is not None and stage.row > last_row:
                break
            while not is_finished(self.config, stage, self.place):
                self.iterate(stage)
            self.evaluate(stage.row)
            self.watchers.progress.write(
                "task_done", task_index=stage.task_index, task=stage.name, row=stage.row
            )

    def iterate(self, stage: Stage) -> None:
        """One iteration: collect, learn, commit, publish, activate."""
        task_index, version = stage.task_index, self.publication.version
        if task_index > self.place.task_index:
            self.place = Place(update_id=self.place.update_id, task_index=task_index)
        if self.place.iteration == 0:
            version = self.continual.before_task(task_index, version)
            if self.config.algorithm.fresh_optimizer_per_task:
                self.optimizer = self.teacher.new_optimizer()
        exports, laps_s = self.watchers.exports, [time.monotonic()]
        exports.metrics.learner_task_index.set(task_index)
        groups, report = self._collect_and_learn(version, laps_s)
        self.continual.after_update()
        laps_s.append(time.monotonic())
        exports.enter("publishing")
        episodes = [episode for group in groups for episode in group.episodes]
        self.place = replace(
            self.place,
            update_id=self.place.update_id + 1,
            iteration=self.place.iteration + 1,
            groups_used=self.place.groups_used
            + len({e.order_id for e in episodes})
            + sum(group.refused for group in groups),
            # Slots that nobody can fill are spent, too: they must not prolong the task.
            episodes=self.place.episodes + len(episodes) + sum(group.missing for group in groups),
        )
        dispositions = {
            episode.episode_id: "filtered" if group.degenerate else "trained"
            for group in groups
            for episode in group.episodes
        }
        figures = _figures(report)
        if is_finished(self.config, stage, self.place):
            self.continual.after_task(task_index)
        hold_s = self.publication.commit(
            self.place, self.optimizer, dispositions, figures, parent=version
        )
        exports.commit(dispositions.values())
        if not self.config.keep_used_episodes:
            self.inbox.drop_used(but_last=True)
        laps_s.append(time.monotonic())
        times_s = dict(zip(("wait", "learn", "publish"), np.diff(laps_s).tolist(), strict=True))
        self._show_iteration(stage, groups, figures, times_s, hold_s)

    def _collect_and_learn(
        self, version: str, laps_s: list[float]
    ) -> tuple[list[Group], UpdateReport]:
        """Episodes that turn out to be unusable are run again first: nothing was changed by then.

        laps_s: gets the time [s, monotonic] at which collecting was over.
        """
        exports = self.watchers.exports
        while True:
            exports.enter("collecting")
            groups = self.teacher.collect(self.place, version)
            collected_s = time.monotonic()
            exports.enter("learning")
            try:
                report = self.teacher.learn(self.optimizer, groups, self.place)
            except UnusableEpisode as first:
                self._set_unusable_aside(groups, first)
                continue
            laps_s.append(collected_s)
            return groups, report

    def _set_unusable_aside(self, groups: list[Group], first: UnusableEpisode) -> None:
        """All of the iteration that are, so that they are run again together."""
        found = {first.episode_id: first.reason}
        rows = {row.episode_id: row for group in groups for row in group.episodes}
        for group in groups:
            for row in () if group.degenerate else group.episodes:
                try:
                    self.inbox.read(row)
                except UnusableEpisode as error:
                    found.setdefault(row.episode_id, error.reason)
        for episode_id, reason in found.items():
            self.inbox.set_aside(rows[episode_id], reason)
            self.watchers.progress.write(
                "episode_quarantined", episode_id=episode_id,
                slot_id=rows[episode_id].slot_id, reason=printable(reason),
            )  # fmt: skip

    def evaluate(self, row: int) -> None:
        """Measure row `row` of the success matrices at the version after `row` tasks.

        A row that is already complete is only counted; its line in the log is then a repeat.
        """
        self.watchers.exports.enter("evaluating")
        cells = plan_row(self.config, row, self._versions(row))
        started_s = time.monotonic()
        episodes = self.measure(cells)
        for cell in cells:
            successes, trials = count_cell(cell, episodes)
            self.matrices[cell.mode].record(row, cell.task, successes, trials)
            self.watchers.progress.write(
                "eval", row=row, mode=cell.mode, task=cell.task, version=cell.version,
                **conditions(self.config, cell.mode), successes=successes, trials=trials,
                time_s={"wait": time.monotonic() - started_s},
            )  # fmt: skip
            if row in (0, len(self.config.suite.train_tasks)):
                self._save_filmstrip(cell, episodes)
        self.watchers.exports.note_progress()

    def measure(self, cells: list[Cell]) -> dict[str, EpisodeRow]:
        """Order the trials of all cells of a version at once; returns the episodes by slot id.

        One version after another: the server has room for a few at a time.
        """
        episodes: dict[str, EpisodeRow] = {}
        for version in dict.fromkeys(cell.version for cell in cells):
            orders = [order for cell in cells if cell.version == version for order in cell.orders]
            episodes |= collect_orders(self.link, self.inbox, orders, self.should_stop)
        return episodes

    def _versions(self, row: int) -> Callable[[str], str]:
        """The version that each task is evaluated with in row `row`."""
        if row == 0:
            return lambda task: self.base_version
        trained: dict[str, str] = {}
        for stage in stages(self.config):
            version = self.inbox.store.version_after(stage.task_index)
            if stage.row <= row and version is not None:
                trained |= {task.slug: version for task in stage.tasks}
        return lambda task: self.continual.version_for(task, trained)

    def _show_iteration(
        self,
        stage: Stage,
        groups: list[Group],
        figures: dict[str, float],
        times_s: dict[str, float],
        hold_s: float,
    ) -> None:
        episodes = [episode for group in groups for episode in group.episodes]
        successes = sum(episode.success for episode in episodes)
        degenerate = sum(group.degenerate for group in groups)
        counted = {task.slug: [0, 0] for task in stage.tasks}
        for episode in episodes:
            counted[episode.task][0] += episode.success
            counted[episode.task][1] += 1
        reward_std = [
            float(np.std([e.success for e in group.episodes], ddof=1))
            for group in groups
            if len(group.episodes) > 1
        ]
        self.watchers.exports.observe_iteration(
            len(groups), degenerate, reward_std, figures, times_s
        )
        self.watchers.progress.write(
            "iteration",
            task_index=self.place.task_index,
            task=stage.name,
            update=self.place.update_id,
            iteration=self.place.iteration,
            version=self.publication.version,
            episodes_collected=self.place.episodes,
            **conditions(self.config, ROLLOUT),
            successes=successes,
            trials=len(episodes),
            per_task=counted,
            groups=len(groups),
            degenerate_groups=degenerate,
            missing_episodes=sum(group.missing for group in groups),
            time_s=times_s,
            hold_s=hold_s,
            **figures,
        )

    def _save_filmstrip(self, cell: Cell, episodes: dict[str, EpisodeRow]) -> None:
        path = self.watchers.filmstrips / f"{cell.row}_{cell.task}.png"
        slots = [f"{order.order_id}#{k}" for order in cell.orders for k in range(order.slots)]
        if cell.mode != ROLLOUT or path.exists():
            return
        for slot in filter(episodes.__contains__, slots):
            try:
                if save_filmstrip(self.inbox.read(episodes[slot]), self.config.cameras, path):
                    return
            except UnusableEpisode as error:  # its outcome is known, which is all that counts
                log.warning("no filmstrip of it: %s", error)
            except (PackageError, StorageError, OSError) as error:
                # A picture for people: learning goes on without it.
                log.warning("no filmstrip of %s: %s", cell.task, error)
                return


def _figures(report: UpdateReport) -> dict[str, float]:
    return {
        **report.means,
        "first_clip_fraction": report.first_clip_fraction,
        "grad_norm": report.grad_norm,
        "lp_diff_max": report.agreement.largest,
        "lp_diff_p99": report.agreement.p99,
        "lp_diff_median": report.agreement.median,
        "lp_corrected": float(report.agreement.needs_correction),
        "samples": float(report.samples),
    }
