"""GRPO as a teaching method: collect groups of episodes, learn from them."""

from collections.abc import Callable
from pathlib import Path

import torch

from agent.episode import read_episode
from learner.batch import Trajectory, build_samples
from learner.checkpoint import Place
from learner.config import LearnerConfig
from learner.continual.method import ContinualMethod
from learner.groups import Collection, Group
from learner.link import AgentLink
from learner.policy import LoraPolicy
from learner.receiver import Inbox
from learner.update import Updater, UpdateReport, UpdateSettings, build_optimizer


class GrpoTeacher:
    """Synchronous and on-policy: the groups of an iteration come from one pinned version."""

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
        """Order the iteration's groups and wait until every slot has its counted episode."""
        collection = Collection(self._config, place, version)
        plans = collection.first_plans()
        while plans:
            orders = [order for plan in plans for order in plan.orders]
            self._link.post_orders(orders)
            episodes = self._inbox.wait_for(orders, self._should_stop)
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
                    episode = read_episode(Path(self._inbox.folder, row.file))
                    usable.append(Trajectory(count, episode, float(advantage)))
                count += 1
        updater = Updater(
            self._policy,
            optimizer,
            self._settings,
            self._should_stop,
            self._continual.add_gradient,
        )
        samples = build_samples(usable, self._config.cameras)
        return updater.run(samples, count, place.update_id + 1)
