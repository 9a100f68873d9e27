"""How far the policy's distributions have moved from recorded ones.

Axes: B chunk samples, K actions of a chunk, A action dimensions, P parameters of a distribution.
"""

import torch
from torch import Tensor

from agent.model.distributions import ActionDistribution, LaplaceDistribution, TokenDistribution


def record_distribution(distribution: ActionDistribution) -> Tensor:
    """All that the distribution is, temperature included, float32 (B, K, A, P), without gradient.

    Of a discrete policy the log-probabilities of all bins [nats], of a regressing one mean and
    spread in normalised units.
    """
    if isinstance(distribution, TokenDistribution):
        return _logprobs(distribution).detach()
    assert isinstance(distribution, LaplaceDistribution), "there are two kinds"
    mean_BKA, spread_BKA = _moments(distribution)
    return torch.stack([mean_BKA, spread_BKA], dim=-1).detach()


def divergence(recorded_BKAP: Tensor, distribution: ActionDistribution) -> Tensor:
    """KL(recorded || distribution) of every dimension [nats], (B, K, A), with gradient.

    Exact, no estimate from samples. For Laplace(m, b) and Laplace(n, c), d = |m - n|:
    log(c / b) + (d + b exp(-d / b)) / c - 1.
    """
    if isinstance(distribution, TokenDistribution):
        gap_BKAV = recorded_BKAP - _logprobs(distribution)
        return (recorded_BKAP.exp() * gap_BKAV).sum(-1)
    assert isinstance(distribution, LaplaceDistribution), "there are two kinds"
    mean_BKA, spread_BKA = _moments(distribution)
    old_mean_BKA, old_spread_BKA = recorded_BKAP.unbind(-1)
    gap_BKA = (mean_BKA - old_mean_BKA).abs()
    overlap_BKA = old_spread_BKA * torch.exp(-gap_BKA / old_spread_BKA)
    return torch.log(spread_BKA / old_spread_BKA) + (gap_BKA + overlap_BKA) / spread_BKA - 1.0


def _logprobs(distribution: TokenDistribution) -> Tensor:
    return torch.log_softmax(distribution.logits_BKAV.float() / distribution.temperature, dim=-1)


def _moments(distribution: LaplaceDistribution) -> tuple[Tensor, Tensor]:
    mean_BKA = distribution.means_BKA.float()
    return mean_BKA, (distribution.scale_A * distribution.temperature).expand_as(mean_BKA)
