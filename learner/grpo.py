"""GRPO as a teaching method: collect groups of episodes, learn from them."""

from collections.abc import Callable
from pathlib import Path

import torch

from agent.adapters import AdapterStore
from learner.batch import Samples, Trajectory, build_samples
from learner.checkpoint import Place
from learner.config import LearnerConfig
from learner.continual.method import ContinualMethod
from learner.groups import Group
from learner.link import AgentLink
from learner.ordering import collect_orders
from learner.policy import LoraPolicy
from learner.receiver import Inbox
from learner.stale_update import EarlierVersions, StaleUpdater
from learner.staleness import ages, collections_ahead, recent_versions
from learner.update import Updater, UpdateReport, UpdateSettings, build_optimizer


class GrpoTeacher:
    """The groups of an iteration come from one pinned version: synchronous, from the newest.

    An asynchronous run (`learner.staleness`) orders iterations ahead, each from the newest version
    that there will be for sure.

    Args:
        policy: as the base model has it.
    """

    def __init__(
        self,
        config: LearnerConfig,
        policy: LoraPolicy,
        inbox: Inbox,
        link: AgentLink,
        should_stop: Callable[[], bool],
        continual: ContinualMethod,
    ) -> None:
        self._config, self._policy, self._continual = config, policy, continual
        self._inbox, self._link, self._should_stop = inbox, link, should_stop
        self._settings = UpdateSettings.of(config)
        self._versions: list[str] = []  # that the episodes last collected may be of
        self._earlier: EarlierVersions | None = None
        if config.algorithm.staleness:
            self._earlier = EarlierVersions(policy, AdapterStore(Path(config.adapters_dir)))

    def new_optimizer(self) -> torch.optim.Optimizer:
        """AdamW on the adapter."""
        algorithm = self._config.algorithm
        return build_optimizer(
            self._policy.parameters,
            algorithm.learning_rate,
            algorithm.weight_decay,
            self._continual.learning_rate_factor,
        )

    def collect(self, place: Place, version: str) -> list[Group]:
        """Order the iteration's groups and wait until every slot has its counted episode.

        In an asynchronous run, also order those that come next; they are waited for in their turn.
        """
        staleness = self._config.algorithm.staleness
        self._versions = recent_versions(self._inbox.store, place, version, staleness)
        collection, *later = collections_ahead(self._config, place, self._versions)
        ahead = [order for each in later for plan in each.first_plans() for order in plan.orders]
        plans = collection.first_plans()
        while plans:
            orders = [order for plan in plans for order in plan.orders]
            episodes = collect_orders(self._link, self._inbox, orders, self._should_stop, ahead)
            plans = collection.complete(plans, episodes)
        return collection.groups

    def learn(
        self, optimizer: torch.optim.Optimizer, groups: list[Group], place: Place
    ) -> UpdateReport:
        """Take the iteration's optimiser steps; degenerate groups are not even read."""
        usable, count = [], 0
        for group in groups:
            for row, advantage in zip(group.episodes, group.advantages_G, strict=True):
                if not group.degenerate:
                    episode = self._inbox.read(row)
                    usable.append(Trajectory(count, episode, float(advantage)))
                count += 1
            count += group.missing
        samples = build_samples(usable, self._config.cameras)
        updater = self._updater(optimizer, samples)
        return updater.run(samples, count, place.update_id + 1)

    def _updater(self, optimizer: torch.optim.Optimizer, samples: Samples | None) -> Updater:
        """What fits the samples' age. Raises StaleSamples if one may not be trained on."""
        algorithm, earlier = self._config.algorithm, self._earlier
        common = (self._policy, optimizer, self._settings)
        hooks = (self._should_stop, self._continual.add_gradient)
        if samples is not None:
            ages_B = ages(samples, self._versions)
            if ages_B.any() and algorithm.asynchronous is not None and earlier is not None:
                return StaleUpdater(*common, algorithm.asynchronous, earlier, ages_B, *hooks)
        return Updater(*common, *hooks)
