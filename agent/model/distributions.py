"""What the policy may do at one observation: a distribution for every dimension of a chunk.

A *choice* is what is drawn, recorded and scored: the token of a discrete policy (int64 bins
0..V-1), the normalised action of a regressing one (float32). Dimensions are independent given the
network's output.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from agent.model.network import ActionOutput
from agent.model.sampling import sample_tokens, token_entropy, token_logprobs


class ActionDistribution(Protocol):
    """At temperature 0 a draw is the mode, and log-probabilities are those of temperature 1."""

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the noise that `sample` needs, rows included."""

    def sample(self, noise: Tensor | None) -> Tensor:
        """Choices (B, K, A). Raises ValueError without noise unless the temperature is 0."""

    def logprobs(self, choices_BKA: Tensor) -> Tensor:
        """Log-probability (or log-density) of each choice [nats], float32 (B, K, A)."""

    def entropy(self) -> Tensor:
        """(Differential) entropy [nats], float32 (B, K, A)."""


@dataclass(frozen=True)
class TokenDistribution:
    """softmax(logits / T) over the action bins; the noise is standard Gumbel."""

    logits_BKAV: Tensor
    temperature: float

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return tuple(self.logits_BKAV.shape)

    def sample(self, noise: Tensor | None) -> Tensor:
        return sample_tokens(self.logits_BKAV, self.temperature, noise)

    def logprobs(self, choices_BKA: Tensor) -> Tensor:
        return token_logprobs(self.logits_BKAV, choices_BKA, self.temperature)

    def entropy(self) -> Tensor:
        return token_entropy(self.logits_BKAV, self.temperature)


@dataclass(frozen=True)
class LaplaceDistribution:
    """Laplace(mean, T * scale): the policy whose maximum-likelihood fit is L1 regression.

    So a checkpoint trained with the L1 loss is its mean, and greedy acting is unchanged. The
    noise is standard Laplace; `scale_A` is in normalised units.
    """

    means_BKA: Tensor
    scale_A: Tensor
    temperature: float

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be >= 0, got {self.temperature}")

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return tuple(self.means_BKA.shape)

    def sample(self, noise: Tensor | None) -> Tensor:
        if self.temperature == 0:
            return self.means_BKA
        if noise is None:
            raise ValueError(f"temperature {self.temperature} needs noise, got none")
        return self.means_BKA + self._scale() * noise

    def logprobs(self, choices_BKA: Tensor) -> Tensor:
        scale = self._scale()
        return -(choices_BKA - self.means_BKA).abs() / scale - torch.log(2.0 * scale)

    def entropy(self) -> Tensor:
        return (1.0 + math.log(2.0) + self._scale().log()).expand_as(self.means_BKA)

    def _scale(self) -> Tensor:
        return self.scale_A * (self.temperature or 1.0)


def action_distribution(
    output: ActionOutput, temperature: float, scale_A: Tensor | None = None
) -> ActionDistribution:
    """The distribution of a forward pass.

    Args:
        scale_A: spread of each action dimension at T = 1; needed for a regressing policy only.
    """
    if output.logits_BKAV is not None:
        return TokenDistribution(output.logits_BKAV, temperature)
    assert output.means_BKA is not None
    assert scale_A is not None, "a regressing policy needs scale_A"
    return LaplaceDistribution(output.means_BKA, scale_A, temperature)
