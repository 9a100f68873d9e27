"""One GRPO update of the adapter from one iteration's samples."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from agent.wire.errors import PerennialError
from learner.batch import Samples, micro_batches, split_trajectories
from learner.loss import Clip, LossSums, grpo_loss
from learner.policy import LoraPolicy, Scores
from learner.randomness import keyed_rng
from learner.stopping import Stopped


class ServedTrainedMismatch(PerennialError):
    """The learner's log-probabilities are not the recorded ones: the samples are not on-policy."""


@dataclass(frozen=True)
class UpdateSettings:
    """How an update is computed; see the learner's configuration for the meaning of each."""

    optimizer_steps: int
    micro_batch: int
    clip: Clip
    clip_norm: float
    logprob_tolerance: float
    seed: int


@dataclass(frozen=True)
class UpdateReport:
    """What an update did; `steps` are the diagnostics of each optimiser step."""

    means: dict[str, float]
    first_clip_fraction: float
    grad_norm: float  # mean over the steps, before clipping
    logprob_difference_max: float  # |recomputed - recorded| before the first step [nats]
    samples: int


def build_optimizer(
    parameters: Mapping[str, Tensor], learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW as the recipe runs it (betas .9/.999, eps 1e-8).

    The recipe decays weights by torch's default 0.01 without meaning to; ours defaults to 0,
    because decay pulls an adapter back to the base model, which a task sequence would read as
    forgetting.
    """
    return torch.optim.AdamW(
        list(parameters.values()),
        lr=learning_rate,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=weight_decay,
    )


class Updater:
    """One iteration's optimisation of `policy` on `samples`.

    Args:
        samples: chunk samples of the usable groups; None if every group was degenerate.
        trajectories: how many were collected, those of degenerate groups included.
        should_stop: asked between micro-batches; True raises Stopped.
    """

    def __init__(
        self,
        policy: LoraPolicy,
        optimizer: torch.optim.Optimizer,
        settings: UpdateSettings,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.policy, self.optimizer, self.settings = policy, optimizer, settings
        self.should_stop = should_stop

    def run(self, samples: Samples | None, trajectories: int, update_id: int) -> UpdateReport:
        """Take the fixed number of optimiser steps.

        A minibatch without usable samples steps on a zero gradient, exactly as if its samples
        had been computed and masked.

        Raises:
            ServedTrainedMismatch: before any weight is changed.
            Stopped: the weights may have changed; resume from the last checkpoint.
        """
        settings, total, norms, first_clip = self.settings, LossSums(), [], 0.0
        difference = 0.0 if samples is None else self._verify_one_chunk_each(samples, update_id)
        minibatches = split_trajectories(
            trajectories, settings.optimizer_steps, settings.seed, update_id
        )
        for step, members in enumerate(minibatches):
            sums, step_difference = self.accumulate_gradient(samples, members, verify=step == 0)
            norms.append(self._step())
            total.add(sums)
            if step == 0:
                first_clip = sums.means()["clip_fraction"]
                difference = max(difference, step_difference)
        means = total.means()
        means["loss"] /= settings.optimizer_steps
        count = 0 if samples is None else len(samples)
        return UpdateReport(means, first_clip, float(np.mean(norms)), difference, count)

    def accumulate_gradient(
        self, samples: Samples | None, members: np.ndarray, verify: bool
    ) -> tuple[LossSums, float]:
        """Set the gradient of one minibatch's loss, its trajectories named by `members`.

        Returns the diagnostics and, when `verify`, the largest log-probability difference.
        """
        self.optimizer.zero_grad(set_to_none=False)
        for parameter in self.policy.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        sums, difference = LossSums(), 0.0
        if samples is None:
            return sums, difference
        rows = np.flatnonzero(np.isin(samples.trajectory_B, members))
        for batch, fill in micro_batches(samples, rows, self.settings.micro_batch):
            if self.should_stop():
                raise Stopped
            scores = self.policy.score(samples, batch)
            if verify:
                difference = max(difference, self._verify(samples, batch, scores))
            loss, part = self._loss(samples, batch, fill / len(members), scores)
            loss.backward()
            sums.add(part)
        return sums, difference

    def _loss(
        self, samples: Samples, rows: np.ndarray, scale_B: np.ndarray, scores: Scores
    ) -> tuple[Tensor, LossSums]:
        device = scores.logprobs_BKA.device

        def tensor(values: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(device)

        return grpo_loss(
            scores.logprobs_BKA,
            tensor(samples.logprobs_BKA[rows]),
            scores.entropy_BKA,
            tensor(samples.advantages_B[rows]),
            tensor(samples.mask_BK[rows]),
            tensor(samples.weights_B[rows] * scale_B),
            self.settings.clip,
        )

    def _step(self) -> float:
        parameters = list(self.policy.parameters.values())
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"the gradient's norm is {norm.item()}; no step was taken")
        self.optimizer.step()
        return float(norm)

    def _verify_one_chunk_each(self, samples: Samples, update_id: int) -> float:
        """Check a seeded chunk of each trajectory; the first minibatch is checked whole later."""
        rng = keyed_rng(self.settings.seed, "verify", update_id)
        rows = np.array(
            [
                rng.choice(np.flatnonzero(samples.trajectory_B == index))
                for index in np.unique(samples.trajectory_B)
            ]
        )
        difference = 0.0
        with torch.no_grad():
            for batch, _ in micro_batches(samples, rows, self.settings.micro_batch):
                if self.should_stop():
                    raise Stopped
                scores = self.policy.score(samples, batch)
                difference = max(difference, self._verify(samples, batch, scores))
        return difference

    def _verify(self, samples: Samples, rows: np.ndarray, scores: Scores) -> float:
        recomputed = scores.logprobs_BKA.detach().cpu().numpy()
        difference_B = np.abs(recomputed - samples.logprobs_BKA[rows]).max(axis=(1, 2))
        worst = int(difference_B.argmax())
        if not difference_B[worst] <= self.settings.logprob_tolerance:
            row = rows[worst]
            raise ServedTrainedMismatch(
                f"episode {samples.episode_id_B[row]}, step {samples.step_index_B[row]}: the "
                f"recorded log-probabilities differ from the learner's by "
                f"{difference_B[worst]:.3g} nats, at most {self.settings.logprob_tolerance:g} is "
                f"accepted; it was served by {samples.version_B[row]}. Wrong version, wrong "
                "pixels, or a base model that is not the learner's"
            )
        return float(difference_B[worst])
