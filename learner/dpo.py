"""DPO as a teaching method: of episodes with one start, a success is preferred to a failure.

    collect the iteration's groups from the version served, as GRPO does
    pair successes and failures of each group; a group of one outcome has no pair and is filtered
    for each minibatch of pairs: -log sigmoid(beta * margin), one optimiser step

Each iteration's reference is the policy that collected it: online, iterative DPO. It holds the
policy near where it was within an iteration, and moves on with the next. RL4VLA (Liu et al. 2025)
ranks DPO behind PPO and GRPO, for its sparse reward and the shift away from where its pairs come
from; with new pairs every iteration only the first of these reasons remains.
"""

from collections.abc import Callable

import torch

from learner.batch import Trajectory, build_samples
from learner.checkpoint import Place
from learner.config import LearnerConfig
from learner.continual.method import ContinualMethod
from learner.dpo_update import DpoUpdater
from learner.groups import Group
from learner.grpo import GrpoTeacher
from learner.link import AgentLink
from learner.policy import LoraPolicy
from learner.preference import pair_outcomes
from learner.receiver import Inbox
from learner.update import UpdateReport, UpdateSettings


class DpoTeacher:
    """DPO in a loop. It asks for the same episodes as GRPO and filters the same groups."""

    def __init__(
        self,
        config: LearnerConfig,
        policy: LoraPolicy,
        inbox: Inbox,
        link: AgentLink,
        should_stop: Callable[[], bool],
        continual: ContinualMethod,
    ) -> None:
        assert config.algorithm.dpo is not None, "the configuration checks it"
        self._config, self._dpo = config, config.algorithm.dpo
        self._policy, self._inbox, self._should_stop = policy, inbox, should_stop
        self._continual = continual
        self._grpo = GrpoTeacher(config, policy, inbox, link, should_stop, continual)

    def new_optimizer(self) -> torch.optim.Optimizer:
        """AdamW on the adapter."""
        return self._grpo.new_optimizer()

    def collect(self, place: Place, version: str) -> list[Group]:
        """GRPO's groups, with replacements of degenerate ones within the allowance."""
        return self._grpo.collect(place, version)

    def learn(
        self, optimizer: torch.optim.Optimizer, groups: list[Group], place: Place
    ) -> UpdateReport:
        """Take the iteration's optimiser steps; an episode that is in no pair is not even read."""
        rows = [
            group.episodes[member]
            for group in groups
            for pair in pair_outcomes(group.advantages_G > 0)  # outcomes as the control has them
            for member in pair
        ]
        trajectories = [
            Trajectory(index, self._inbox.read(row), 0.0) for index, row in enumerate(rows)
        ]
        updater = DpoUpdater(
            self._policy,
            optimizer,
            UpdateSettings.of(self._config),
            self._dpo.beta,
            self._should_stop,
            self._continual.add_gradient,
        )
        samples = build_samples(trajectories, self._config.cameras)
        return updater.run(samples, len(rows) // 2, place.update_id + 1)
