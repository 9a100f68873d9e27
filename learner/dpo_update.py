"""One DPO update of the adapter from pairs of an iteration's episodes.

A trajectory is longer than a micro-batch, so that no graph holds a whole margin. Its gradient is
exact all the same, in two passes over a minibatch: the first, without gradient, finds each pair's
margin and with it the loss's slope there; in the second every token's log-probability has the
slope of its trajectory as a constant factor, for the margin is a sum of them.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from learner.batch import Samples, micro_batches
from learner.loss import LossSums, token_sums
from learner.policy import LoraPolicy
from learner.preference import preference_loss
from learner.served import ServedCheck
from learner.stopping import Stopped
from learner.update import (
    AddGradient,
    Updater,
    UpdateReport,
    UpdateSettings,
    clear_gradient,
    float_tensor,
    no_other_term,
)


class DpoUpdater(Updater):
    """One iteration's optimisation on pairs: trajectory 2p of the samples is preferred to 2p + 1.

    What an `Updater` counts and deals into minibatches are the pairs. The reference is the policy
    that collected the episodes: their recorded log-probabilities, or what takes their place where
    they are not exact (`learner.served`; the importance weights are not needed, for a preference
    loss does not ask who acted). Every margin thus begins at 0.
    """

    def __init__(
        self,
        policy: LoraPolicy,
        optimizer: torch.optim.Optimizer,
        settings: UpdateSettings,
        beta: float,
        should_stop: Callable[[], bool] = lambda: False,
        add_gradient: AddGradient = no_other_term,
    ) -> None:
        super().__init__(policy, optimizer, settings, should_stop, add_gradient)
        self.beta = beta
        self._last_margins_P = np.zeros(0)

    def run(self, samples: Samples | None, trajectories: int, update_id: int) -> UpdateReport:
        """As an `Updater`'s, `trajectories` being pairs.

        Reports in addition the mean margin [nats] of the last minibatch that has pairs, before its
        step, and the share of its pairs whose margin is positive.
        """
        report = super().run(samples, trajectories, update_id)
        margins_P = self._last_margins_P
        if not len(margins_P):
            return report
        told = {"margin": float(margins_P.mean()), "preferred": float((margins_P > 0).mean())}
        return replace(report, means=report.means | told)

    def accumulate_gradient(
        self, samples: Samples | None, members: np.ndarray, check: ServedCheck | None = None
    ) -> LossSums:
        """Set the gradient of the loss of one minibatch, its pairs named by `members`.

        `check` sees every score of the first pass, if it is given.
        """
        clear_gradient(self.policy.parameters.values())
        sums = LossSums()
        if samples is None or not len(members):
            return sums
        pair_B = samples.trajectory_B // 2
        sign_B = 1.0 - 2.0 * (samples.trajectory_B % 2)  # of a trajectory in its margin
        rows = np.flatnonzero(np.isin(pair_B, members))
        margins = np.zeros(members.max() + 1)
        np.add.at(margins, pair_B[rows], (sign_B * self._log_ratios(samples, rows, check))[rows])
        margins_P = torch.tensor(margins[members], requires_grad=True)
        loss = preference_loss(margins_P, self.beta)
        (slopes_P,) = torch.autograd.grad(loss, margins_P)
        slopes = np.zeros_like(margins)
        slopes[members] = slopes_P.numpy()
        factor_B = np.zeros(len(samples))
        factor_B[rows] = slopes[pair_B[rows]] * sign_B[rows]
        for batch, fill in micro_batches(samples, rows, self.settings.micro_batch):
            sums.add(self._backward(samples, batch, fill, factor_B))
        sums.loss = loss.item()
        self._last_margins_P = margins[members]
        return sums

    @torch.no_grad()
    def _log_ratios(
        self, samples: Samples, rows: np.ndarray, check: ServedCheck | None
    ) -> np.ndarray:
        """log pi - log ref of each chunk's executed tokens, f64[B]; 0 but at `rows`."""
        sums_B = np.zeros(len(samples))
        for batch, _ in micro_batches(samples, rows, self.settings.micro_batch):
            if self.should_stop():
                raise Stopped
            scores = self.policy.score(samples, batch)
            if check is not None:
                check.observe(samples, batch, scores)
            logprobs_BKA = scores.logprobs_BKA.double().cpu().numpy()
            log_ratio_BKA = logprobs_BKA - samples.logprobs_BKA[batch]
            sums_B[batch] = (log_ratio_BKA.sum(axis=2) * samples.mask_BK[batch]).sum(axis=1)
        return sums_B

    def _backward(
        self, samples: Samples, batch: np.ndarray, fill: np.ndarray, factor_B: np.ndarray
    ) -> LossSums:
        """Add the gradient of sum(factor * log pi) over the executed tokens of one micro-batch."""
        if self.should_stop():
            raise Stopped
        scores = self.policy.score(samples, batch)
        tensor = partial(float_tensor, device=scores.logprobs_BKA.device)
        used_BK = tensor(samples.mask_BK[batch] * fill[:, None])
        factor_BK = tensor(factor_B[batch])[:, None] * used_BK
        (scores.logprobs_BKA.sum(2) * factor_BK).sum().backward()
        log_ratio_BKA = scores.logprobs_BKA.detach() - tensor(samples.logprobs_BKA[batch])
        return token_sums(log_ratio_BKA, scores.entropy_BKA, used_BK > 0)
