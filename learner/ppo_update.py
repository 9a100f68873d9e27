"""One PPO update of adapter and critic from one iteration's samples."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from agent.wire.messages import Outcome
from learner.advantages import episode_advantages, explained_variance, normalise_batch
from learner.algorithm_config import PpoConfig
from learner.batch import Samples, micro_batches
from learner.critic import Critic
from learner.loss import LossSums, grpo_loss, value_loss
from learner.policy import LoraPolicy
from learner.randomness import keyed_rng
from learner.ratio import count_units
from learner.served import Agreement, ServedCheck, correct
from learner.stopping import Stopped
from learner.update import (
    AddGradient,
    UpdateReport,
    UpdateSettings,
    clear_gradient,
    clip_gradient,
    float_tensor,
    mean_figures,
    no_other_term,
)


@dataclass(frozen=True)
class Evaluated:
    """Samples, corrected if need be, and the critic's word on them before the update, f64[B]."""

    samples: Samples
    values_B: np.ndarray  # of each chunk
    baselines_B: np.ndarray  # of each chunk's observation: the same if the critic sees no actions
    agreement: Agreement


@dataclass(frozen=True)
class Judged:
    """Samples with normalised advantages; values before the update and their targets, f64[B]."""

    samples: Samples
    values_B: np.ndarray
    returns_B: np.ndarray

    @property
    def trained_rows(self) -> np.ndarray:
        """Chunks with an executed action and a known advantage, i64."""
        return np.flatnonzero(self.samples.mask_BK.any(axis=1))


def judge(
    samples: Samples,
    values_B: np.ndarray,
    outcomes: Mapping[int, str],
    ppo: PpoConfig,
    monte_carlo: bool = False,
) -> Judged:
    """Advantages of all chunks from the values of their observations and the episodes' ends.

    Args:
        outcomes: by trajectory index. The reward is 1 for a success, else 0.
        monte_carlo: the critic's target is the discounted return, not the lambda-return.
    """
    advantages_B, returns_B = np.zeros(len(samples)), np.zeros(len(samples))
    mask_BK = samples.mask_BK.copy()
    for index in np.unique(samples.trajectory_B):
        rows = np.flatnonzero(samples.trajectory_B == index)
        outcome = outcomes[int(index)]
        advantages_of = partial(
            episode_advantages,
            values_B[rows],
            success=outcome == Outcome.SUCCESS,
            cut_off=ppo.bootstrap_at_limit and outcome == Outcome.TIMEOUT,
            gamma=ppo.gamma,
        )
        advantages_B[rows], known = advantages_of(decay=ppo.gae_lambda)
        # At lambda 1 all values but a cut-off's last cancel out: what remains is the return.
        summed_T = advantages_of(decay=1.0)[0] if monte_carlo else advantages_B[rows]
        returns_B[rows] = summed_T + values_B[rows]
        mask_BK[rows[known:]] = 0.0
    trained_B = mask_BK.any(axis=1)
    normalised_B = np.zeros(len(samples))
    normalised_B[trained_B] = normalise_batch(advantages_B[trained_B])
    judged = replace(samples, advantages_B=normalised_B, mask_BK=mask_BK)
    return Judged(judged, values_B, returns_B)


class PpoUpdater:
    """One iteration's optimisation of `policy` and `critic`.

    Each has its own learning rate and its gradient is clipped on its own: the critic's is far
    larger at first and would shrink the policy's to nothing.
    """

    def __init__(
        self,
        policy: LoraPolicy,
        critic: Critic,
        optimizer: torch.optim.Optimizer,
        settings: UpdateSettings,
        ppo: PpoConfig,
        should_stop: Callable[[], bool] = lambda: False,
        add_gradient: AddGradient = no_other_term,
    ) -> None:
        self.policy, self.critic, self.optimizer = policy, critic, optimizer
        self.settings, self.ppo, self.should_stop = settings, ppo, should_stop
        self.add_gradient = add_gradient

    def run(
        self, samples: Samples | None, outcomes: Mapping[int, str], update_id: int
    ) -> UpdateReport:
        """Judge all chunks, then take the optimiser steps; without any chunk, change nothing.

        Raises:
            ServedTrainedMismatch: before any weight is changed.
            Stopped: the weights may have changed; resume from the last checkpoint.
        """
        if samples is None:
            return UpdateReport({}, 0.0, 0.0, Agreement(), 0)
        found = self.evaluate(samples)
        judged = replace(
            judge(found.samples, found.baselines_B, outcomes, self.ppo, self.critic.monte_carlo),
            values_B=found.values_B,
        )
        total, value_total, norms, first_clip = LossSums(), 0.0, [], 0.0
        others: list[dict[str, float]] = []
        minibatches = self._minibatches(judged.trained_rows, update_id)
        for step, rows in enumerate(minibatches):
            sums, value_part = self.accumulate_gradient(judged, rows)
            others.append(self.add_gradient(update_id, step))
            norms.append(self._step())
            total.add(sums)
            value_total += value_part
            if step == 0:
                first_clip = sums.means()["clip_fraction"]
        rows, steps = judged.trained_rows, max(len(minibatches), 1)
        policy_loss, mean_value_loss = total.loss / steps, value_total / steps
        policy_norm, value_norm = np.mean(norms, axis=0) if norms else (0.0, 0.0)
        means = (
            total.means()
            | mean_figures(others)
            | {
                "loss": policy_loss + self.ppo.value_coef * mean_value_loss,
                "policy_loss": policy_loss,
                "value_loss": mean_value_loss,
                "value_mean": float(judged.values_B[rows].mean()) if len(rows) else 0.0,
                "explained_variance": explained_variance(
                    judged.values_B[rows], judged.returns_B[rows]
                ),
                "value_grad_norm": float(value_norm),
            }
        )
        return UpdateReport(means, first_clip, float(policy_norm), found.agreement, len(rows))

    @torch.no_grad()
    def evaluate(self, samples: Samples) -> Evaluated:
        """The critic's word on all chunks as things are.

        The chunks pass through the model anyway, so every one is checked against what was served.
        """
        values_B, baselines_B = np.zeros(len(samples)), np.zeros(len(samples))
        check = ServedCheck(self.settings.served)
        proximal_BKA = np.zeros_like(samples.logprobs_BKA)
        for batch, fill in micro_batches(
            samples, np.arange(len(samples)), self.settings.micro_batch
        ):
            if self.should_stop():
                raise Stopped
            scores = self.policy.score(samples, batch)
            check.observe(samples, batch, scores)
            proximal_BKA[batch] = scores.logprobs_BKA.float().cpu().numpy()
            predicted_B = self.critic.predict(scores, samples, batch)
            baseline_B = self.critic.baseline(predicted_B, scores, samples, batch)
            used = fill > 0
            values_B[batch[used]] = predicted_B.cpu().numpy()[used]
            baselines_B[batch[used]] = baseline_B.cpu().numpy()[used]
        agreement = check.conclude()
        if agreement.needs_correction:
            weight_cap = self.settings.served.weight_cap
            samples = correct(samples, proximal_BKA, weight_cap, self.ppo.ratio)
        return Evaluated(samples, values_B, baselines_B, agreement)

    def accumulate_gradient(self, judged: Judged, rows: np.ndarray) -> tuple[LossSums, float]:
        """Set the gradient of one minibatch's loss; returns diagnostics and the value loss.

        The policy's loss is the mean over the executed tokens of all rows, or over what else has
        one ratio, the critic's the mean over the rows.
        """
        samples, ppo = judged.samples, self.ppo
        clear_gradient([*self.policy.parameters.values(), *self.critic.trained])
        units = count_units(samples.mask_BK[rows], samples.choices_BKA.shape[2], ppo.ratio)
        sums, value_sum = LossSums(), 0.0
        for batch, fill in micro_batches(samples, rows, self.settings.micro_batch):
            if self.should_stop():
                raise Stopped
            scores = self.policy.score(samples, batch)
            tensor = partial(float_tensor, device=scores.logprobs_BKA.device)
            loss, part = grpo_loss(
                scores.logprobs_BKA,
                tensor(samples.logprobs_BKA[batch]),
                scores.entropy_BKA,
                tensor(samples.advantages_B[batch]),
                tensor(samples.mask_BK[batch]),
                tensor(fill / units),
                self.settings.clip,
                tensor(samples.importance_BKA[batch]),
                ppo.ratio,
            )
            critic_loss = value_loss(
                self.critic.predict(scores, samples, batch),
                tensor(judged.values_B[batch]),
                tensor(judged.returns_B[batch]),
                tensor(fill / len(rows)),
                ppo.value_clip,
                ppo.huber_delta,
            )
            (loss + ppo.value_coef * critic_loss).backward()
            sums.add(part)
            value_sum += critic_loss.item()
        return sums, value_sum

    def _minibatches(self, rows: np.ndarray, update_id: int) -> list[np.ndarray]:
        """Every epoch deals all rows out anew, a pure function of the key."""
        parts: list[np.ndarray] = []
        for epoch in range(self.settings.epochs):
            rng = keyed_rng(self.settings.seed, f"ppo_minibatches/{update_id}", epoch)
            parts += np.array_split(rng.permutation(rows), self.settings.optimizer_steps)
        return [part for part in parts if len(part)]

    def _step(self) -> tuple[float, float]:
        """Clip and step; returns the norms of the policy's and the critic's gradient before."""
        clip_norm = self.settings.clip_norm
        policy_norm = clip_gradient(self.policy.parameters.values(), clip_norm)
        value_norm = clip_gradient(self.critic.trained, clip_norm)
        self.optimizer.step()
        return policy_norm, value_norm
