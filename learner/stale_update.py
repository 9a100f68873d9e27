"""An update on episodes of earlier versions: the decoupled objective of an asynchronous run.

The proximal policy, around which the ratio is clipped, is the policy as it is before the first
step; each token weighs min(pi_prox / pi_acted, cap) (Hilton et al. 2022, "Batch size-invariance for
policy optimization", decoupled PPO; the truncation as in Espeholt et al. 2018). Where the advantage
is negative the loss is bounded as well (dual clip, Ye et al. 2020).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from agent.adapters import AdapterStore
from agent.model.action_scale import read_scale
from agent.model.lora import read_adapter
from agent.wire.messages import BASE_VERSION
from learner.algorithm_config import AsyncConfig
from learner.batch import Samples
from learner.loss import LossSums
from learner.policy import LOG_SCALE, LoraPolicy, Scores
from learner.served import ServedCheck, correct
from learner.update import (
    AddGradient,
    Opening,
    Updater,
    UpdateSettings,
    no_other_term,
)


class EarlierVersions:
    """Lets a policy be, for a moment, what an earlier version was.

    Args:
        policy: as the base model has it.
    """

    def __init__(self, policy: LoraPolicy, adapters: AdapterStore) -> None:
        self._policy, self._adapters = policy, adapters
        self._base = policy.adapter_tensors()

    @contextmanager
    def restored(self, version: str) -> Iterator[None]:
        """The policy is `version` within, and what it was before afterwards.

        Raises:
            UnknownAdapter, AdapterCorrupt: the adapter store does not have it as published.
        """
        present = self._policy.adapter_tensors()
        self._policy.load_adapter(self._tensors(version))
        try:
            yield
        finally:
            self._policy.load_adapter(present)

    def _tensors(self, version: str) -> dict[str, torch.Tensor]:
        if version == BASE_VERSION:
            return self._base
        folder = self._adapters.verify(version)
        tensors, _ = read_adapter(folder)
        if LOG_SCALE in self._policy.parameters:
            tensors[LOG_SCALE] = read_scale(folder, self._policy.model.config).log()
        return tensors


class StaleUpdater(Updater):
    """One iteration's optimisation on samples that earlier versions made.

    Args:
        ages_B: i64[B], how many updates old each sample's version is; for the report.
    """

    def __init__(
        self,
        policy: LoraPolicy,
        optimizer: torch.optim.Optimizer,
        settings: UpdateSettings,
        asynchronous: AsyncConfig,
        earlier: EarlierVersions,
        ages_B: np.ndarray,
        should_stop: Callable[[], bool] = lambda: False,
        add_gradient: AddGradient = no_other_term,
    ) -> None:
        settings = replace(settings, clip=replace(settings.clip, dual=asynchronous.dual_clip))
        super().__init__(policy, optimizer, settings, should_stop, add_gradient)
        self._weight_cap, self._earlier, self._ages_B = asynchronous.weight_cap, earlier, ages_B
        # Filled in while the first minibatch is computed; None at any other time.
        self._opening_BKA: np.ndarray | None = None

    def open(self, samples: Samples | None, members: np.ndarray, update_id: int) -> Opening:
        """Check a seeded chunk of each trajectory against its version; correct all of them.

        The first minibatch is scored once: what its gradient comes from is the proximal policy's.
        """
        if samples is None:
            return super().open(None, members, update_id)
        check = ServedCheck(self.settings.served)
        rows = self.rows_to_check(samples, update_id)
        for version in np.unique(samples.version_B[rows]):
            with self._earlier.restored(str(version)):
                self.score(samples, rows[samples.version_B[rows] == version], check)
        agreement = check.conclude()
        later = np.flatnonzero(~np.isin(samples.trajectory_B, members))
        proximal_BKA = samples.logprobs_BKA.copy()
        proximal_BKA[later] = self.score(samples, later)
        self._opening_BKA = proximal_BKA
        sums = self.accumulate_gradient(samples, members)
        self._opening_BKA = None
        figures = behaviour_figures(samples, proximal_BKA, self._weight_cap)
        figures["staleness_mean"] = float(self._ages_B.mean())
        corrected = correct(samples, proximal_BKA, self._weight_cap)
        return Opening(corrected, sums, agreement, figures)

    def _loss(
        self, samples: Samples, rows: np.ndarray, scale_B: np.ndarray, scores: Scores
    ) -> tuple[torch.Tensor, LossSums]:
        if self._opening_BKA is not None:
            self._opening_BKA[rows] = scores.logprobs_BKA.detach().float().cpu().numpy()
            samples = correct(samples, self._opening_BKA, self._weight_cap)
        return super()._loss(samples, rows, scale_B, scores)


def behaviour_figures(
    samples: Samples, proximal_BKA: np.ndarray, weight_cap: float
) -> dict[str, float]:
    """Of the trained tokens: mean of pi_prox / pi_acted, and the share that is above the cap."""
    ratio_BKA = np.exp(proximal_BKA.astype(np.float64) - samples.logprobs_BKA)
    ratios = ratio_BKA[samples.mask_BK > 0]
    return {
        "behaviour_ratio_mean": float(ratios.mean()),
        "behaviour_capped": float((ratios > weight_cap).mean()),
    }
