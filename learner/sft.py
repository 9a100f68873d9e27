"""Supervised fine-tuning of the adapter on one task's demonstrations: the control beside GRPO."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from agent.model.network import ActionOutput
from learner.checkpoint import Place
from learner.config import LearnerConfig
from learner.continual.method import ContinualMethod
from learner.curriculum import stage_at
from learner.demonstrations import Demonstrations, load_demonstrations
from learner.groups import Group
from learner.policy import LoraPolicy
from learner.randomness import keyed_rng
from learner.served import Agreement
from learner.stopping import Stopped
from learner.update import (
    AddGradient,
    UpdateReport,
    build_optimizer,
    clip_gradient,
    mean_figures,
    no_other_term,
)


@dataclass(frozen=True)
class SftSettings:
    """One iteration is `steps` AdamW steps on batches of `batch_size` frames."""

    steps: int
    batch_size: int
    clip_norm: float
    seed: int


class SupervisedUpdater:
    """`supervised_loss` on the expert's chunks, same adapter, same optimiser.

    Args:
        demos: frames of the tasks learned now.
        cameras: in the policy's order; the shards' arrays bear their names.
    """

    def __init__(
        self,
        policy: LoraPolicy,
        optimizer: torch.optim.Optimizer,
        demos: Demonstrations,
        cameras: list[str],
        settings: SftSettings,
        should_stop: Callable[[], bool] = lambda: False,
        add_gradient: AddGradient = no_other_term,
    ) -> None:
        self.policy, self.optimizer, self.settings = policy, optimizer, settings
        self.demos, self.cameras, self.should_stop = demos, cameras, should_stop
        self.add_gradient = add_gradient
        chunk = demos.actions[:, : policy.network.config.chunk_size]
        codec, is_regression = policy.model.actions, policy.network.config.is_regression
        self._targets = (
            codec.to_normalised(chunk).astype(np.float32)
            if is_regression
            else codec.to_tokens(chunk)
        )

    def run(self, update_id: int) -> UpdateReport:
        """One iteration; its batches are a pure function of (seed, update, step).

        Raises:
            NonFiniteGradient: earlier steps may have been taken.
            Stopped: asked to stop; resume from the last checkpoint.
        """
        settings = self.settings
        losses: list[float] = []
        norms: list[float] = []
        others: list[dict[str, float]] = []
        parameters = list(self.policy.parameters.values())
        for step in range(settings.steps):
            if self.should_stop():
                raise Stopped
            rng = keyed_rng(settings.seed, f"sft/{update_id}", step)
            loss = self._loss(rng.integers(len(self.demos), size=settings.batch_size))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            others.append(self.add_gradient(update_id, step))
            norms.append(clip_gradient(parameters, settings.clip_norm))
            self.optimizer.step()
            losses.append(loss.item())
        frames = settings.steps * settings.batch_size
        return UpdateReport(
            {"loss": float(np.mean(losses))} | mean_figures(others),
            0.0,
            float(np.mean(norms)),
            Agreement(),
            frames,
        )

    def _loss(self, rows: np.ndarray) -> torch.Tensor:
        images = np.stack([getattr(self.demos, camera)[rows] for camera in self.cameras], axis=1)
        instructions = [self.demos.instructions[task] for task in self.demos.task[rows]]
        targets = self._targets[rows]
        output = self.policy.forward(images, self.demos.proprio[rows], instructions, targets)
        return supervised_loss(output, torch.from_numpy(targets).to(self.policy.device))


def supervised_loss(output: ActionOutput, targets_BKA: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the action bins, or mean absolute error of a regressing policy."""
    if output.logits_BKAV is not None:
        return F.cross_entropy(output.logits_BKAV.flatten(0, 2), targets_BKA.flatten())
    assert output.means_BKA is not None
    return F.l1_loss(output.means_BKA, targets_BKA)


class SftTeacher:
    """The supervised method in a loop: no episodes are collected, each task brings its shards."""

    def __init__(
        self,
        config: LearnerConfig,
        policy: LoraPolicy,
        should_stop: Callable[[], bool],
        continual: ContinualMethod,
    ) -> None:
        self._config, self._policy, self._should_stop = config, policy, should_stop
        self._continual = continual
        self._demos: dict[int, Demonstrations] = {}

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
        """Nothing to collect."""
        return []

    def learn(
        self, optimizer: torch.optim.Optimizer, groups: list[Group], place: Place
    ) -> UpdateReport:
        """One iteration on the demonstrations of the task at `place`."""
        config = self._config
        if place.task_index not in self._demos:
            folders = [Path(folder) for folder in config.sft.demonstrations]
            tasks = [task.slug for task in stage_at(config, place.task_index).tasks]
            self._demos = {place.task_index: load_demonstrations(folders, tasks)}
        settings = SftSettings(
            config.sft.steps_per_iteration,
            config.sft.batch_size,
            config.algorithm.clip_norm,
            config.seed,
        )
        updater = SupervisedUpdater(
            self._policy,
            optimizer,
            self._demos[place.task_index],
            config.cameras,
            settings,
            self._should_stop,
            self._continual.add_gradient,
        )
        return updater.run(place.update_id + 1)
