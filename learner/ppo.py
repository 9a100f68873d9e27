"""PPO as a teaching method: a critic judges every chunk, every episode trains.

    collect the iteration's episodes from the version served, as GRPO does
    score all chunks with the policy as it is: check served = trained, note values
    advantages by GAE from values and outcomes, normalised over the batch
    for each minibatch of chunks: clipped policy loss + value loss, one optimiser step

The critic reads h0 on the shared trunk and its gradient flows into the adapter, as in RL4VLA. There
is one critic over all tasks: h0 has read the instruction, so it knows the task; what the critic has
learned of earlier tasks is where the next begins; and a fresh one would waste a task's first
iterations on advantages without a baseline. No entropy bonus, no KL penalty.
"""

from collections.abc import Callable
from dataclasses import replace

import torch

from learner.batch import Trajectory, build_samples
from learner.checkpoint import Place
from learner.config import LearnerConfig
from learner.continual.method import ContinualMethod
from learner.critic import Critic
from learner.groups import Group
from learner.grpo import GrpoTeacher
from learner.link import AgentLink
from learner.policy import LoraPolicy
from learner.ppo_update import PpoUpdater
from learner.receiver import Inbox
from learner.update import UpdateReport, UpdateSettings


class PpoTeacher:
    """PPO in a loop. It asks for the same episodes as GRPO; none of them is filtered."""

    def __init__(
        self,
        config: LearnerConfig,
        policy: LoraPolicy,
        critic: Critic,
        inbox: Inbox,
        link: AgentLink,
        should_stop: Callable[[], bool],
        continual: ContinualMethod,
    ) -> None:
        assert config.algorithm.ppo is not None, "the configuration checks it"
        self._config, self._ppo = config, config.algorithm.ppo
        self._policy, self._critic = policy, critic
        self._inbox, self._should_stop, self._continual = inbox, should_stop, continual
        self._grpo = GrpoTeacher(config, policy, inbox, link, should_stop, continual)

    def new_optimizer(self) -> torch.optim.Optimizer:
        """AdamW on adapter and critic, each with its learning rate."""
        optimizer = self._grpo.new_optimizer()
        optimizer.add_param_group({"params": self._critic.trained, "lr": self._ppo.value_lr})
        return optimizer

    def collect(self, place: Place, version: str) -> list[Group]:
        """GRPO's episodes; where all outcomes are equal the critic still tells them apart."""
        groups = self._grpo.collect(place, version)
        return [replace(group, degenerate=False) for group in groups]

    def learn(
        self, optimizer: torch.optim.Optimizer, groups: list[Group], place: Place
    ) -> UpdateReport:
        """Take the iteration's optimiser steps on all its episodes."""
        rows = [row for group in groups for row in group.episodes]
        trajectories = [
            Trajectory(index, self._inbox.read(row), 0.0) for index, row in enumerate(rows)
        ]
        updater = PpoUpdater(
            self._policy,
            self._critic,
            optimizer,
            UpdateSettings.of(self._config),
            self._ppo,
            self._should_stop,
            self._continual.add_gradient,
        )
        samples = build_samples(trajectories, self._config.cameras)
        outcomes = {index: row.outcome for index, row in enumerate(rows)}
        return updater.run(samples, outcomes, place.update_id + 1)
