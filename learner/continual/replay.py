"""Replay: what earlier tasks left in a memory is learned again beside the new task.

    loss += weight * mean over the actions of a batch drawn from the memory, each optimiser step

Experience replay imitates remembered actions, dark experience replay keeps the answers to
remembered observations as they were. A task is remembered when it is over. The public code's
expert replay reads the demonstrations of the whole suite, of later and held-out tasks too.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from agent.episode import EpisodeMeta
from agent.model.network import ActionOutput
from learner.batch import Chunks, micro_batches
from learner.config import LearnerConfig
from learner.continual.memory import Memory, Remembered, thin_out
from learner.continual.method import ContinualMethod
from learner.continual.past import Past
from learner.continual.settings import DerConfig, ErConfig, ReplayConfig
from learner.demonstrations import DemonstrationError, load_episodes, read_tasks
from learner.policy import LoraPolicy
from learner.randomness import keyed_rng
from learner.update import float_tensor


@dataclass(frozen=True)
class Source:
    """What may be remembered of a task; `metas` of the episodes it is from, none of an expert's."""

    chunks: Chunks
    metas: Sequence[EpisodeMeta] = ()


class Replay(ContinualMethod, ABC):
    """A memory and a loss on it. Before the second task there is none."""

    loss_name: str  # of the weighted loss among the figures

    def __init__(
        self, config: LearnerConfig, settings: ReplayConfig, policy: LoraPolicy, past: Past
    ) -> None:
        self._config, self._replay = config, settings
        self._policy, self._past = policy, past
        self.memory = Memory()

    @abstractmethod
    def source(self, task_index: int) -> Source | None:
        """What there is of a learned task, if anything."""

    @abstractmethod
    def losses(self, memory: Remembered, rows: np.ndarray) -> Tensor:
        """The loss of each action of these rows (B, K, A), with gradient."""

    def targets(self, chunks: Chunks) -> np.ndarray | None:
        """What is remembered of the chunks besides, f32 (B, *X)."""
        return None

    def taking_part(self, memory: Remembered) -> np.ndarray:
        """Which actions have a loss, f32 (B, K)."""
        return np.ones_like(memory.mask_BK)

    def before_task(self, task_index: int, version: str) -> str:
        """Remember the task before; in a run that went on from another method's, all before."""
        learned = self._config.suite.train_tasks[:task_index]
        for index, task in enumerate(learned):
            source = self.source(index) if task not in self.memory.tasks else None
            if source is not None:
                rng = keyed_rng(self._config.seed, "replay", index)
                chunks = thin_out(source.chunks, self._replay.chunks_per_task, rng)
                self.memory.insert(task, chunks, learned, source.metas, self.targets(chunks))
        return version

    def add_gradient(self, update_id: int, step: int) -> dict[str, float]:
        """That of one batch of the memory; reports the weighted loss and the memory's size."""
        memory, figures = self.memory.rows, self.memory.figures()
        if memory is None:
            return figures
        drawn = self.memory.draw(self._replay.batch_size, self._config.seed, update_id, step)
        part_BK, total = self.taking_part(memory), 0.0
        actions = part_BK[drawn].sum() * memory.choices_BKA.shape[-1]
        for rows, fill in micro_batches(memory, drawn, self._config.micro_batch):
            weights_BK = self._replay.weight * fill[:, None] * part_BK[rows] / actions
            losses_BKA = self.losses(memory, rows)
            loss = (losses_BKA * float_tensor(weights_BK, losses_BKA.device)[:, :, None]).sum()
            loss.backward()
            total += loss.item()
        return figures | {self.loss_name: total}

    def state(self) -> dict[str, Tensor]:
        """The memory."""
        return self.memory.state()

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """As `state` returned them."""
        self.memory.load_state(tensors)


class Er(Replay):
    """Experience replay: the loss of an action is -log pi(action | observation).

    The probability is that of the temperature at which the action was drawn, so that the policy's
    own episodes do not flatten it; demonstrations count at 1, as in supervised fine-tuning. A
    regressing policy has its Laplace density: the distance to its mean over its spread.

    With `demonstrations` the memory holds an expert's, of each learned task as many as asked for:
    the paper's "expert replay" (arXiv 2603.11653). Without them it holds the successful episodes
    of each task's last iteration, of a task without any success nothing.
    """

    loss_name = "er_loss"

    def __init__(
        self, config: LearnerConfig, settings: ErConfig, policy: LoraPolicy, past: Past
    ) -> None:
        super().__init__(config, settings, policy, past)
        self._settings = settings
        self._folders = [Path(folder) for folder in settings.demonstrations]
        if self._folders:
            # Refused now, not when the first task is over; the last one is never replayed.
            read_tasks(self._folders, config.suite.train_tasks[:-1])

    def source(self, task_index: int) -> Source | None:
        """Demonstrations, or the policy's own successes."""
        if self._folders:
            return Source(self._demonstrated(task_index))
        rows = [row for row in self._past.last_rows(task_index) if row.success]
        episodes = self._past.read_whole(rows)
        samples = self._past.samples(episodes)
        return None if samples is None else Source(samples, [e.meta for e in episodes])

    def taking_part(self, memory: Remembered) -> np.ndarray:
        """What was executed as the policy's own."""
        return memory.mask_BK

    def losses(self, memory: Remembered, rows: np.ndarray) -> Tensor:
        """Negative log-likelihood [nats]."""
        return -self._policy.score(memory, rows).logprobs_BKA

    def _demonstrated(self, task_index: int) -> Chunks:
        task, model = self._config.suite.train_tasks[task_index], self._policy.model
        rng = keyed_rng(self._config.seed, "demonstrations", task_index)
        count = self._settings.demonstrations_per_task
        demos = load_episodes(self._folders, task, count, rng)
        actions_BKA = demos.actions[:, : model.config.chunk_size]
        shape = (len(demos), model.config.chunk_size)
        if actions_BKA.shape[:2] != shape:
            raise DemonstrationError(
                f"{self._settings.demonstrations}: frames have {actions_BKA.shape[1]} actions, "
                f"{model.name} needs chunks of {shape[1]}; make the shards again with such chunks"
            )
        is_regression = model.config.is_regression
        code = model.actions.to_normalised if is_regression else model.actions.to_tokens
        choices_BKA = code(actions_BKA).astype(np.float32 if is_regression else np.int64)
        return Chunks(
            images_BNHWC=np.stack([getattr(demos, name) for name in self._config.cameras], axis=1),
            proprio_BP=demos.proprio,
            choices_BKA=choices_BKA,
            mask_BK=np.ones(shape, np.float32),
            temperatures_B=np.ones(len(demos), np.float32),
            instruction_B=np.array([demos.instructions[index] for index in demos.task]),
        )


class Der(Replay):
    """Dark experience replay: the loss is the squared distance of answers then and now.

    An answer is the logits before any softmax, of which the mean over the bins is taken [Buzzega et
    al. 2020, equations 3-4, with the public code's mean for their sum], or the means of a
    regressing policy. The observations are those of all episodes of a task's last iteration.

    teacher previous: the answers of the policy as the task left it. teacher base: those of the
    model without adapter, as the public code has them (there on demonstrations).
    """

    loss_name = "der_loss"

    def __init__(
        self, config: LearnerConfig, settings: DerConfig, policy: LoraPolicy, past: Past
    ) -> None:
        super().__init__(config, settings, policy, past)
        self._from_base = settings.teacher == "base"

    def source(self, task_index: int) -> Source | None:
        """All episodes of the task's last iteration."""
        episodes = self._past.read_whole(self._past.last_rows(task_index))
        samples = self._past.samples(episodes)
        return None if samples is None else Source(samples, [e.meta for e in episodes])

    @torch.no_grad()
    def targets(self, chunks: Chunks) -> np.ndarray:
        """What the teacher answers."""
        found: dict[int, np.ndarray] = {}
        with self._policy.without_adapter() if self._from_base else nullcontext():
            for rows, _ in micro_batches(chunks, np.arange(len(chunks)), self._config.micro_batch):
                answers = _answers(self._policy.score(chunks, rows).output).float().cpu().numpy()
                found |= dict(zip(rows.tolist(), answers, strict=True))
        return np.stack([found[row] for row in range(len(chunks))])

    def losses(self, memory: Remembered, rows: np.ndarray) -> Tensor:
        """Squared distances."""
        answers = _answers(self._policy.score(memory, rows).output)
        return squared_distance(answers, float_tensor(memory.targets_BX[rows], answers.device))


def squared_distance(answers: Tensor, targets: Tensor) -> Tensor:
    """Of each action (B, K, A); that of logits (B, K, A, V) is the mean over the bins."""
    square = (answers.float() - targets).square()
    return square.mean(-1) if square.dim() == 4 else square


def _answers(output: ActionOutput) -> Tensor:
    """Logits (B, K, A, V), or means (B, K, A)."""
    answers = output.means_BKA if output.logits_BKAV is None else output.logits_BKAV
    assert answers is not None, "an output has one of the two"
    return answers
