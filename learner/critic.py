"""The critic: the expected outcome of an episode, read from the policy's own hidden state."""

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from learner.batch import Chunks, Samples
from learner.policy import Scores
from learner.randomness import keyed_rng

LAST_LAYER_STD = 0.02


class Critic(nn.Module):
    """What PPO asks of whatever judges its chunks.

    monte_carlo: it learns the discounted return of the episode itself, not the lambda-return,
    which counts on its own values.
    """

    monte_carlo = False

    @abstractmethod
    def predict(self, scores: Scores, samples: Chunks, rows: np.ndarray) -> Tensor:
        """The return expected after each of these chunks f32[B], with gradient to the trunk, too.

        Args:
            scores: the policy's, of the same rows.
        """

    def baseline(
        self, predicted_B: Tensor, scores: Scores, samples: Samples, rows: np.ndarray
    ) -> Tensor:
        """The return expected at each observation, whatever is done there, f32[B].

        For a critic that sees no actions this is what it predicted.
        """
        return predicted_B

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


class ValueHead(Critic):
    """An MLP over h0, the hidden state that predicts the first action token: one value a chunk.

    H - hidden sizes - 1, GELU between, no bias in the last layer. That layer starts at normal
    (0, .02), so the first values are close to 0; the others start as torch starts them. Float32
    whatever the policy's dtype: values are differenced, and bfloat16 has three digits.

    Source: RL4VLA (Liu et al. 2025), which finds h0 on the shared trunk better than the last
    token's state or the concatenation of all, and RLinf's head of 512 and 128.

    Args:
        state_size: H, the language model's width.
        hidden_sizes: widths of the inner layers.
        seed: of the weights; torch's global RNG is left as it was.
        task_index: where a task has a head of its own, it begins with weights of its own.
    """

    def __init__(
        self, state_size: int, hidden_sizes: Sequence[int], seed: int, task_index: int = 0
    ) -> None:
        super().__init__()
        widths = [state_size, *hidden_sizes]
        layers: list[nn.Module] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(keyed_rng(seed, "critic", task_index).integers(2**31)))
            for inner, outer in pairwise(widths):
                layers += [nn.Linear(inner, outer, dtype=torch.float32), nn.GELU()]
            last = nn.Linear(widths[-1], 1, bias=False, dtype=torch.float32)
            nn.init.normal_(last.weight, std=LAST_LAYER_STD)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, state_BH: Tensor) -> Tensor:
        """Values of the states, f32[B], with gradient to the states too."""
        values_B1: Tensor = self.layers(state_BH.float())
        return values_B1.squeeze(-1)

    def predict(self, scores: Scores, samples: Chunks, rows: np.ndarray) -> Tensor:
        """The value of the state, whatever was chosen."""
        values_B: Tensor = self(scores.state_BH)
        return values_B
