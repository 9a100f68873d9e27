"""One GRPO update of the adapter from one iteration's samples, and what any update shares."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agent.wire.errors import PerennialError
from learner.batch import Samples, micro_batches, split_trajectories
from learner.config import LearnerConfig
from learner.loss import Clip, LossSums, grpo_loss
from learner.policy import LOG_SCALE, LoraPolicy, Scores
from learner.randomness import keyed_rng
from learner.served import Agreement, ServedCheck, ServedLimits, correct
from learner.stopping import Stopped


class NonFiniteGradient(PerennialError):
    """A step that would make the weights NaN or infinite."""


@dataclass(frozen=True)
class UpdateSettings:
    """How an update is computed; see the learner's configuration for the meaning of each."""

    optimizer_steps: int  # of an epoch
    micro_batch: int
    clip: Clip
    clip_norm: float
    served: ServedLimits
    seed: int
    epochs: int = 1

    @classmethod
    def of(cls, config: LearnerConfig) -> "UpdateSettings":
        """Those of a learner's configuration."""
        algorithm = config.algorithm
        return cls(
            optimizer_steps=algorithm.optimizer_steps_per_iteration,
            epochs=algorithm.epochs,
            micro_batch=config.micro_batch,
            clip=Clip(algorithm.clip_low, algorithm.clip_high),
            clip_norm=algorithm.clip_norm,
            served=ServedLimits.of(config),
            seed=config.seed,
        )


@dataclass(frozen=True)
class Opening:
    """What precedes the first step: the first minibatch's gradient is set, no weight is changed."""

    samples: Samples | None  # as they are trained on
    sums: LossSums  # of the first minibatch
    agreement: Agreement = field(default_factory=Agreement)
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class UpdateReport:
    """What an update did."""

    means: dict[str, float]
    first_clip_fraction: float
    grad_norm: float  # mean over the steps, before clipping
    agreement: Agreement  # of recomputed and recorded log-probabilities, before the first step
    samples: int


def build_optimizer(
    parameters: Mapping[str, Tensor],
    learning_rate: float,
    weight_decay: float,
    factor_of: Callable[[str], float] = lambda name: 1.0,
) -> torch.optim.AdamW:
    """AdamW as the recipe runs it (betas .9/.999, eps 1e-8).

    factor_of: of a parameter's name, what its learning rate is multiplied by.

    The recipe decays weights by torch's default 0.01 without meaning to; ours defaults to 0,
    because decay pulls an adapter back to the base model, which a task sequence would read as
    forgetting. A learned action scale is never decayed: its logarithm's zero means nothing.
    """
    by_rate: dict[float, list[Tensor]] = {}
    for name, tensor in parameters.items():
        if name != LOG_SCALE:
            by_rate.setdefault(learning_rate * factor_of(name), []).append(tensor)
    groups: list[dict[str, Any]] = [{"params": same, "lr": lr} for lr, same in by_rate.items()]
    if LOG_SCALE in parameters:
        groups.append({"params": [parameters[LOG_SCALE]], "weight_decay": 0.0})
    return torch.optim.AdamW(
        groups,
        lr=learning_rate,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=weight_decay,
    )


AddGradient = Callable[[int, int], dict[str, float]]


def no_other_term(update_id: int, step: int) -> dict[str, float]:
    """Adds nothing."""
    return {}


def mean_figures(steps: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each figure over the steps that have it."""
    names = dict.fromkeys(name for figures in steps for name in figures)
    return {n: float(np.mean([figures[n] for figures in steps if n in figures])) for n in names}


def clip_gradient(parameters: Iterable[Tensor], clip_norm: float) -> float:
    """Scale the gradient down to `clip_norm` if it is longer; returns its norm before.

    Raises:
        NonFiniteGradient: it is not finite.
    """
    norm = torch.nn.utils.clip_grad_norm_(list(parameters), clip_norm)
    if not torch.isfinite(norm):
        raise NonFiniteGradient(
            f"the gradient's norm is {norm.item()}; this step was not taken. Start anew with a "
            "lower learning rate, and check the weights with `perennial model verify`"
        )
    return float(norm)


def clear_gradient(parameters: Iterable[Tensor]) -> None:
    """Zeros everywhere, not None: every parameter takes part in every step."""
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)


def float_tensor(values: np.ndarray, device: torch.device) -> Tensor:
    """A column of samples as float32 on the policy's device."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(device)


class Updater:
    """One iteration's optimisation of `policy` on `samples`.

    Args:
        samples: chunk samples of the usable groups; None if every group was degenerate.
        trajectories: how many were collected, those of degenerate groups included.
        should_stop: asked between micro-batches; True raises Stopped.
        add_gradient: of (update id, step), adds that of another loss term before each step.
    """

    def __init__(
        self,
        policy: LoraPolicy,
        optimizer: torch.optim.Optimizer,
        settings: UpdateSettings,
        should_stop: Callable[[], bool] = lambda: False,
        add_gradient: AddGradient = no_other_term,
    ) -> None:
        self.policy, self.optimizer, self.settings = policy, optimizer, settings
        self.should_stop, self.add_gradient = should_stop, add_gradient

    def run(self, samples: Samples | None, trajectories: int, update_id: int) -> UpdateReport:
        """Take the fixed number of optimiser steps.

        A minibatch without usable samples steps on a zero gradient, exactly as if its samples
        had been computed and masked.

        Raises:
            ServedTrainedMismatch: before any weight is changed.
            NonFiniteGradient: earlier steps may have been taken.
            Stopped: the weights may have changed; resume from the last checkpoint.
        """
        settings, total, norms = self.settings, LossSums(), []
        others: list[dict[str, float]] = []
        minibatches = [
            members
            for epoch in range(settings.epochs)
            for members in split_trajectories(
                trajectories, settings.optimizer_steps, settings.seed, update_id, epoch
            )
        ]
        opening = self.open(samples, minibatches[0], update_id)
        for step, members in enumerate(minibatches):
            sums = self.accumulate_gradient(opening.samples, members) if step else opening.sums
            others.append(self.add_gradient(update_id, step))
            norms.append(self._step())
            total.add(sums)
        means = total.means() | mean_figures(others) | opening.figures
        means["loss"] /= len(minibatches)
        return UpdateReport(
            means,
            first_clip_fraction=opening.sums.means()["clip_fraction"],
            grad_norm=float(np.mean(norms)),
            agreement=opening.agreement,
            samples=0 if samples is None else len(samples),
        )

    def open(self, samples: Samples | None, members: np.ndarray, update_id: int) -> Opening:
        """The first minibatch's gradient; all samples are corrected if their check asks for it.

        A seeded chunk of each trajectory is checked, then every chunk of the first minibatch.
        """
        check = ServedCheck(self.settings.served)
        if samples is None:
            return Opening(None, self.accumulate_gradient(None, members))
        self.score(samples, self.rows_to_check(samples, update_id), check)
        if not check.conclude().needs_correction:
            sums = self.accumulate_gradient(samples, members, check)
            if not check.conclude().needs_correction:
                return Opening(samples, sums, check.conclude())
        samples = self._correct(samples, check)
        return Opening(samples, self.accumulate_gradient(samples, members), check.conclude())

    def accumulate_gradient(
        self, samples: Samples | None, members: np.ndarray, check: ServedCheck | None = None
    ) -> LossSums:
        """Set the gradient of one minibatch's loss, its trajectories named by `members`.

        `check` sees every score of the minibatch, if it is given.
        """
        clear_gradient(self.policy.parameters.values())
        sums = LossSums()
        if samples is None:
            return sums
        rows = np.flatnonzero(np.isin(samples.trajectory_B, members))
        for batch, fill in micro_batches(samples, rows, self.settings.micro_batch):
            if self.should_stop():
                raise Stopped
            scores = self.policy.score(samples, batch)
            if check is not None:
                check.observe(samples, batch, scores)
            loss, part = self._loss(samples, batch, fill / len(members), scores)
            loss.backward()
            sums.add(part)
        return sums

    def _loss(
        self, samples: Samples, rows: np.ndarray, scale_B: np.ndarray, scores: Scores
    ) -> tuple[Tensor, LossSums]:
        tensor = partial(float_tensor, device=scores.logprobs_BKA.device)
        return grpo_loss(
            scores.logprobs_BKA,
            tensor(samples.logprobs_BKA[rows]),
            scores.entropy_BKA,
            tensor(samples.advantages_B[rows]),
            tensor(samples.mask_BK[rows]),
            tensor(samples.weights_B[rows] * scale_B),
            self.settings.clip,
            tensor(samples.importance_BKA[rows]),
        )

    def _step(self) -> float:
        norm = clip_gradient(self.policy.parameters.values(), self.settings.clip_norm)
        self.optimizer.step()
        return norm

    def rows_to_check(self, samples: Samples, update_id: int) -> np.ndarray:
        """A seeded row of each trajectory."""
        rng = keyed_rng(self.settings.seed, "verify", update_id)
        rows = [
            rng.choice(np.flatnonzero(samples.trajectory_B == index))
            for index in np.unique(samples.trajectory_B)
        ]
        return np.array(rows)

    def _correct(self, samples: Samples, check: ServedCheck) -> Samples:
        """All samples against the policy as it is; before the first step."""
        proximal_BKA = self.score(samples, np.arange(len(samples)), check)
        return correct(samples, proximal_BKA, self.settings.served.weight_cap)

    @torch.no_grad()
    def score(
        self, samples: Samples, rows: np.ndarray, check: ServedCheck | None = None
    ) -> np.ndarray:
        """Log-probabilities of these rows under the policy as it is, f32[rows, K, A]."""
        logprobs = np.zeros_like(samples.logprobs_BKA)
        for batch, _ in micro_batches(samples, rows, self.settings.micro_batch):
            if self.should_stop():
                raise Stopped
            scores = self.policy.score(samples, batch)
            if check is not None:
                check.observe(samples, batch, scores)
            logprobs[batch] = scores.logprobs_BKA.float().cpu().numpy()
        return logprobs[rows]
