"""The clipped policy loss with its diagnostics, and the critic's loss. Pure functions.

Axes: B chunk samples, K actions of a chunk, A action dimensions.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from learner.ratio import pool_log_ratio


@dataclass(frozen=True)
class Clip:
    """Bounds of the probability ratio: [1 - low, 1 + high] (DAPO's clip-higher: .2 and .28).

    dual: where the advantage A is negative, the loss is at most dual * |A|, whatever the ratio (Ye
    et al. 2020); None: no such bound.
    """

    low: float
    high: float
    dual: float | None = None


@dataclass
class LossSums:
    """Diagnostics of any number of micro-batches, as sums over trained tokens.

    What gets one ratio is a unit (`learner.ratio`): how many there are and how many are clipped.
    KL and entropy are of tokens whatever the unit, so that levels can be compared.
    """

    tokens: float = 0.0
    units: float = 0.0
    clipped: float = 0.0
    kl: float = 0.0
    entropy: float = 0.0
    loss: float = 0.0
    ratio_max: float = 0.0

    def add(self, other: "LossSums") -> None:
        """Fold another micro-batch in."""
        self.tokens += other.tokens
        self.units += other.units
        self.clipped += other.clipped
        self.kl += other.kl
        self.entropy += other.entropy
        self.loss += other.loss
        self.ratio_max = max(self.ratio_max, other.ratio_max)

    def means(self) -> dict[str, float]:
        """Means; `approx_kl` is Schulman's k3 estimate of KL(old || new), per token [nats]."""
        n = max(self.tokens, 1.0)
        return {
            "loss": self.loss,
            "clip_fraction": self.clipped / max(self.units, 1.0),
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
    importance_BKA: Tensor | None = None,
    level: str = "token",
) -> tuple[Tensor, LossSums]:
    """Sum over units of max(-A r, -A clip(r)) * mask * weight, r = exp(lp - lp_old) of a unit.

    The recipe averages loss * mask * (T_max / L) over [N, T_max, A] entries of N trajectories;
    T_max cancels, so with weight = 1 / (N L A), L the trajectory's unmasked actions, this sum is
    the same number: each trajectory counts once, whatever its length. N counts every collected
    trajectory; those of degenerate groups have zero advantage and are simply not among the B.

    Args:
        logprobs_BKA: under the policy being trained, with gradient [nats].
        old_logprobs_BKA: recorded when the action was sampled.
        entropy_BKA: for the diagnostics only.
        mask_BK: 1 where the action was executed as the policy's own.
        weights_B: 1 / (N L A) of the sample's trajectory; 0 for rows that only fill a batch. PPO
            has one weight for all of a minibatch, 1 / its units.
        importance_BKA: factor on each unit's loss where the old log-probabilities are not those
            of the policy that acted (`learner.served`), the same at all its tokens; None is 1.
        level: what is a unit: token, action or chunk (`learner.ratio`). GRPO's is the token.
    """
    log_ratio_BKA = logprobs_BKA - old_logprobs_BKA
    log_ratio, mask = pool_log_ratio(log_ratio_BKA, mask_BK, level)
    ratio = log_ratio.exp()
    clipped_ratio = ratio.clamp(1.0 - clip.low, 1.0 + clip.high)
    advantage = advantages_B[:, None, None]
    plain, clipped = -advantage * ratio, -advantage * clipped_ratio
    weight = (mask * weights_B[:, None, None]).expand_as(ratio)
    worse, is_clipped = torch.maximum(plain, clipped), clipped > plain
    if clip.dual is not None:
        beyond = (advantage < 0) & (ratio > clip.dual)
        worse = torch.where(beyond, -advantage * clip.dual, worse)
        is_clipped = is_clipped | beyond
    if importance_BKA is not None:
        worse = worse * importance_BKA[:, : ratio.shape[1], : ratio.shape[2]]
    loss = (worse * weight).sum()
    with torch.no_grad():
        used = weight > 0
        sums = token_sums(log_ratio_BKA, entropy_BKA, mask_BK * weights_B[:, None] > 0)
        sums.units = float(used.sum())
        sums.clipped = float((is_clipped & used).sum())
        sums.loss = float(loss)
        sums.ratio_max = float(ratio[used].max()) if used.any() else 0.0
    return loss, sums


@torch.no_grad()
def token_sums(log_ratio_BKA: Tensor, entropy_BKA: Tensor, used_BK: Tensor) -> LossSums:
    """The diagnostics that are of tokens: their number, KL, entropy; and the largest ratio."""
    used = used_BK[:, :, None].expand_as(log_ratio_BKA)
    log_ratio = log_ratio_BKA[used]
    ratio = log_ratio.exp()
    return LossSums(
        tokens=float(used.sum()),
        kl=float((ratio - 1.0 - log_ratio).sum()),
        entropy=float(entropy_BKA[used].sum()),
        ratio_max=float(ratio.max()) if used.any() else 0.0,
    )


def value_loss(
    values_B: Tensor,
    old_values_B: Tensor,
    returns_B: Tensor,
    weights_B: Tensor,
    value_clip: float,
    huber_delta: float,
) -> Tensor:
    """Sum over chunks of weight * max(huber(V - R), huber(V_clipped - R)).

    V_clipped = V_old + clamp(V - V_old, -value_clip, value_clip): a value that has already moved
    that far towards its target has no gradient, one that has moved away from it keeps it.
    huber(e) = e^2 / 2 up to |e| = delta, delta (|e| - delta / 2) beyond.

    Source: the clipped value loss of OpenAI's PPO (Baselines `ppo2`), with Huber for the square
    as RLinf and RL4VLA compute it.

    Args:
        values_B: under the critic being trained, with gradient.
        old_values_B: before the update.
        returns_B: the targets.
    """
    clipped_B = old_values_B + (values_B - old_values_B).clamp(-value_clip, value_clip)
    plain, clipped = (
        F.huber_loss(values, returns_B, reduction="none", delta=huber_delta)
        for values in (values_B, clipped_B)
    )
    return (torch.maximum(plain, clipped) * weights_B).sum()
