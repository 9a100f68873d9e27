"""CRL-VLA: on earlier tasks the policy keeps its distribution and a frozen critic its values.

    loss = PPO + alpha KL_old(pi_old || pi) + beta_V mean_old (V_frozen - V_old)^2

PPO's critic is then `learner.dual_critic`: its Monte-Carlo head gives the advantages and learns the
discounted returns (the paper's eta is PPO's `value_coef`, on half the clipped square that PPO's
value loss is). Nothing of its own before the second task. Between two tasks:

    the frozen head becomes a copy of the Monte-Carlo head, which begins anew
    what is remembered gets new answers, by the policy and the frozen head as they now are
    chunks of the task that is over join it, with such answers

So pi_old is always the policy of the end of the task before, on all earlier tasks' chunks, and the
drift of the values, which is reported, begins at 0 with every task. The frozen head cannot move;
only the trunk under it can, and what holds it is the regulation's gradient in the adapter.

Source: CRL-VLA, its loss, step between tasks and weights. Ours, where the paper is open: the KL is
exact and a mean over the dimensions of a chunk, as PPO's policy loss is one over tokens; the memory
is cumulative, a seeded choice of the chunks of each task's last iteration; its answers are renewed,
for the values of one head cannot be held to another's. There is no early stop at a KL target.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from learner.batch import Chunks, micro_batches
from learner.config import LearnerConfig
from learner.continual.memory import Memory, thin_out
from learner.continual.method import ContinualMethod
from learner.continual.past import Past
from learner.continual.settings import CrlVlaConfig
from learner.divergence import divergence, record_distribution
from learner.dual_critic import DualCritic
from learner.policy import LoraPolicy
from learner.randomness import keyed_rng
from learner.update import float_tensor

OLD_VALUES = "old_values"


class CrlVla(ContinualMethod):
    """See above. The memory's targets are the old distributions.

    `old_values_B` are the frozen head's of the memory's chunks, in their order, f32.
    """

    def __init__(
        self,
        config: LearnerConfig,
        settings: CrlVlaConfig,
        policy: LoraPolicy,
        critic: DualCritic,
        past: Past,
    ) -> None:
        self._config, self._settings = config, settings
        self._policy, self._critic, self._past = policy, critic, past
        self.memory, self.old_values_B = Memory(), np.zeros(0, np.float32)

    def before_task(self, task_index: int, version: str) -> str:
        """The step between two tasks."""
        if task_index == 0:
            return version
        self._critic.begin_task(task_index)
        if self.memory.rows is not None:
            targets_BX, self.old_values_B = self._answers(self.memory.rows)
            self.memory.retarget(targets_BX)
        self._remember(task_index - 1)
        return version

    def add_gradient(self, update_id: int, step: int) -> dict[str, float]:
        """That of both terms on one batch of the memory; reports them without their weights.

        crl_kl [nats a dimension], crl_value_loss (mean square), crl_value_drift (mean distance).
        """
        memory, figures = self.memory.rows, self.memory.figures()
        if memory is None:
            return figures
        settings, kl, square, drift = self._settings, 0.0, 0.0, 0.0
        drawn = self.memory.draw(settings.batch_size, self._config.seed, update_id, step)
        for rows, fill in micro_batches(memory, drawn, self._config.micro_batch):
            scores = self._policy.score(memory, rows)
            device = scores.state_BH.device
            weights_B = float_tensor(fill / len(drawn), device)
            old_BKAP = float_tensor(memory.targets_BX[rows], device)
            kl_B = divergence(old_BKAP, scores.distribution).mean((1, 2))
            moved_B = self._critic.remember(scores, memory, rows)
            moved_B = moved_B - float_tensor(self.old_values_B[rows], device)
            kl_part, square_part = (kl_B * weights_B).sum(), (moved_B.square() * weights_B).sum()
            (settings.kl_weight * kl_part + settings.value_weight * square_part).backward()
            kl, square = kl + kl_part.item(), square + square_part.item()
            drift += (moved_B.detach().abs() * weights_B).sum().item()
        return figures | {"crl_kl": kl, "crl_value_loss": square, "crl_value_drift": drift}

    def state(self) -> dict[str, Tensor]:
        """The memory and the old values; the critic's heads are part of the critic."""
        held = self.memory.state()
        return held | {OLD_VALUES: torch.from_numpy(self.old_values_B)} if held else {}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """As `state` returned them."""
        self.memory.load_state(tensors)
        self.old_values_B = tensors.get(OLD_VALUES, torch.zeros(0)).cpu().numpy()

    def _remember(self, task_index: int) -> None:
        episodes = self._past.read_whole(self._past.last_rows(task_index))
        samples = self._past.samples(episodes)
        if samples is None:
            return
        rng = keyed_rng(self._config.seed, "crl_vla", task_index)
        chunks = thin_out(samples, self._settings.chunks_per_task, rng)
        targets_BX, values_B = self._answers(chunks)
        tasks = self._config.suite.train_tasks
        metas = [episode.meta for episode in episodes]
        self.memory.insert(tasks[task_index], chunks, tasks[: task_index + 1], metas, targets_BX)
        self.old_values_B = np.concatenate([self.old_values_B, values_B])

    @torch.no_grad()
    def _answers(self, chunks: Chunks) -> tuple[np.ndarray, np.ndarray]:
        """Distributions (B, K, A, P) and the frozen head's values f32[B] as things are."""
        targets: dict[int, np.ndarray] = {}
        values: dict[int, float] = {}
        for rows, _ in micro_batches(chunks, np.arange(len(chunks)), self._config.micro_batch):
            scores = self._policy.score(chunks, rows)
            old_BKAP = record_distribution(scores.distribution).cpu().numpy()
            remembered = self._critic.remember(scores, chunks, rows).tolist()
            targets |= dict(zip(rows.tolist(), old_BKAP, strict=True))
            values |= dict(zip(rows.tolist(), remembered, strict=True))
        order = range(len(chunks))
        values_B = np.array([values[i] for i in order], np.float32)
        return np.stack([targets[i] for i in order]), values_B
