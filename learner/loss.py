"""The clipped token-level policy loss, and what an operator wants to know about it. Pure.

Axes: B chunk samples, K actions of a chunk, A action dimensions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Clip:
    """Bounds of the probability ratio: [1 - low, 1 + high] (DAPO's clip-higher: .2 and .28)."""

    low: float
    high: float


@dataclass
class LossSums:
    """Diagnostics of any number of micro-batches, as sums over trained tokens."""

    tokens: float = 0.0
    clipped: float = 0.0
    kl: float = 0.0
    entropy: float = 0.0
    loss: float = 0.0
    ratio_max: float = 0.0

    def add(self, other: "LossSums") -> None:
        """Fold another micro-batch in."""
        self.tokens += other.tokens
        self.clipped += other.clipped
        self.kl += other.kl
        self.entropy += other.entropy
        self.loss += other.loss
        self.ratio_max = max(self.ratio_max, other.ratio_max)

    def means(self) -> dict[str, float]:
        """Per-token means; `approx_kl` is Schulman's k3 estimate of KL(old || new) [nats]."""
        n = max(self.tokens, 1.0)
        return {
            "loss": self.loss,
            "clip_fraction": self.clipped / n,
            "approx_kl": self.kl / n,
            "entropy": self.entropy / n,
            "ratio_max": self.ratio_max,
        }


def grpo_loss(
    logprobs_BKA: Tensor,
    old_logprobs_BKA: Tensor,
    entropy_BKA: Tensor,
    advantages_B: Tensor,
    mask_BK: Tensor,
    weights_B: Tensor,
    clip: Clip,
) -> tuple[Tensor, LossSums]:
    """Sum over tokens of max(-A r, -A clip(r)) * mask * weight, r = exp(lp - lp_old).

    The recipe averages loss * mask * (T_max / L) over [N, T_max, A] entries of N trajectories;
    T_max cancels, so with weight = 1 / (N L A), L the trajectory's unmasked actions, this sum is
    the same number: each trajectory counts once, whatever its length. N counts every collected
    trajectory; those of degenerate groups have zero advantage and are simply not among the B.

    Args:
        logprobs_BKA: under the policy being trained, with gradient [nats].
        old_logprobs_BKA: recorded when the action was sampled.
        entropy_BKA: for the diagnostics only.
        mask_BK: 1 where the action was executed as the policy's own.
        weights_B: 1 / (N L A) of the sample's trajectory; 0 for rows that only fill a batch.
    """
    log_ratio = logprobs_BKA - old_logprobs_BKA
    ratio = log_ratio.exp()
    clipped_ratio = ratio.clamp(1.0 - clip.low, 1.0 + clip.high)
    advantage = advantages_B[:, None, None]
    plain, clipped = -advantage * ratio, -advantage * clipped_ratio
    weight_BKA = (mask_BK * weights_B[:, None])[:, :, None].expand_as(ratio)
    loss = (torch.maximum(plain, clipped) * weight_BKA).sum()
    with torch.no_grad():
        used = weight_BKA > 0
        sums = LossSums(
            tokens=float(used.sum()),
            clipped=float(((clipped > plain) & used).sum()),
            kl=float((ratio - 1.0 - log_ratio)[used].sum()),
            entropy=float(entropy_BKA[used].sum()),
            loss=float(loss),
            ratio_max=float(ratio[used].max()) if used.any() else 0.0,
        )
    return loss, sums
