"""Is what is trained what was served? Recorded against recomputed log-probabilities.

In float32 every difference above a tolerance refuses the samples. A bfloat16 base rounds server and
learner apart, so there the distribution decides: up to a trusted 99% quantile the recorded values
are used as they are; beyond it the learner's own, computed before the first step, become the
proximal policy, and each token (or whatever else has one ratio) gets the truncated importance
weight min(pi_prox / pi_served, cap) (Espeholt et al. 2018; Hilton et al. 2022 for the decoupled
clip); far beyond, something else is wrong, and the samples are refused.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from agent.wire.errors import PerennialError
from learner.batch import Samples
from learner.config import LearnerConfig
from learner.policy import Scores
from learner.ratio import pool_log_ratio

QUANTILE = 0.99


class ServedTrainedMismatch(PerennialError):
    """The learner's log-probabilities are not the recorded ones: the samples are not on-policy."""


@dataclass(frozen=True)
class ServedLimits:
    """[nats]. tolerance: of float32, None for a base of lower precision.

    trusted, refused: 99% quantiles. weight_cap: largest importance weight.
    """

    tolerance: float | None
    trusted: float
    refused: float
    weight_cap: float

    @classmethod
    def of(cls, config: LearnerConfig) -> "ServedLimits":
        """Those of a learner's configuration."""
        rounding, exact = config.rounding, config.dtype == "float32"
        return cls(
            config.logprob_tolerance if exact else None,
            rounding.trusted_p99,
            rounding.refused_p99,
            rounding.weight_cap,
        )


@dataclass(frozen=True)
class Agreement:
    """|recomputed - recorded| over the tokens looked at [nats], and whether to correct it."""

    median: float = 0.0
    p99: float = 0.0
    largest: float = 0.0
    needs_correction: bool = False


class ServedCheck:
    """Collects differences of scored samples; all before a weight is changed."""

    def __init__(self, limits: ServedLimits) -> None:
        self._limits = limits
        self._differences: list[np.ndarray] = []
        self._worst = (0.0, "nothing was looked at")

    def observe(self, samples: Samples, rows: np.ndarray, scores: Scores) -> None:
        """Scores of these samples under the policy that is said to have served them.

        Raises:
            ServedTrainedMismatch: in float32, a difference above the tolerance.
        """
        rows, first = np.unique(rows, return_index=True)  # a short batch repeats a row
        recomputed = scores.logprobs_BKA.detach().float().cpu().numpy()[first]
        differences = np.abs(recomputed - samples.logprobs_BKA[rows])
        worst = int(differences.max(axis=(1, 2)).argmax())
        largest, row = float(differences[worst].max()), rows[worst]
        if not largest < self._worst[0]:  # NaN is worse than anything
            self._worst = (largest, _describe(samples, int(row)))
        self._differences.append(differences.ravel())
        tolerance = self._limits.tolerance
        if tolerance is not None and not largest <= tolerance:
            raise _mismatch(self._worst[1], f"by {largest:.3g}", f"{tolerance:g}")

    def conclude(self) -> Agreement:
        """What was seen.

        Raises:
            ServedTrainedMismatch: the quantile is above the refused one.
        """
        if not self._differences:
            return Agreement()
        found = np.concatenate(self._differences)
        median, p99 = (float(np.quantile(found, q)) for q in (0.5, QUANTILE))
        if self._limits.tolerance is None and not p99 <= self._limits.refused:
            raise _mismatch(
                self._worst[1],
                f"by {p99:.3g} at the 99% quantile, {self._worst[0]:.3g} at most,",
                f"a quantile of {self._limits.refused:g}",
            )
        must = self._limits.tolerance is None and p99 > self._limits.trusted
        return Agreement(median, p99, float(found.max()), must)


def correct(
    samples: Samples, proximal_BKA: np.ndarray, weight_cap: float, level: str = "token"
) -> Samples:
    """The samples with `proximal_BKA` as old log-probabilities and truncated importance weights.

    level: what has one weight, at all its tokens, as it has one ratio (`learner.ratio`).
    """
    log_ratio_BKA = torch.from_numpy(proximal_BKA.astype(np.float64) - samples.logprobs_BKA)
    log_ratio, _ = pool_log_ratio(log_ratio_BKA, torch.from_numpy(samples.mask_BK), level)
    ratio_BKA = log_ratio.exp().expand_as(log_ratio_BKA).numpy()
    return replace(
        samples,
        logprobs_BKA=proximal_BKA.astype(np.float32),
        importance_BKA=np.minimum(ratio_BKA, weight_cap).astype(np.float32),
    )


def _describe(samples: Samples, row: int) -> str:
    return (
        f"episode {samples.episode_id_B[row]}, step {samples.step_index_B[row]}, served by "
        f"{samples.version_B[row]}"
    )


def _mismatch(where: str, how_much: str, accepted: str) -> ServedTrainedMismatch:
    return ServedTrainedMismatch(
        f"{where}: the recorded log-probabilities differ from the learner's {how_much} nats, at "
        f"most {accepted} is accepted. Wrong version, wrong pixels, or a base model that is not "
        "the learner's"
    )
