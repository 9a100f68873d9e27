"""The critic: the expected outcome of an episode, read from the policy's own hidden state."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from learner.randomness import keyed_rng

LAST_LAYER_STD = 0.02


class ValueHead(nn.Module):
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
    """

    def __init__(self, state_size: int, hidden_sizes: Sequence[int], seed: int) -> None:
        super().__init__()
        widths = [state_size, *hidden_sizes]
        layers: list[nn.Module] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(keyed_rng(seed, "critic", 0).integers(2**31)))
            for inner, outer in pairwise(widths):
                layers += [nn.Linear(inner, outer, dtype=torch.float32), nn.GELU()]
            last = nn.Linear(widths[-1], 1, bias=False, dtype=torch.float32)
            nn.init.normal_(last.weight, std=LAST_LAYER_STD)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, state_BH: Tensor) -> Tensor:
        """Values of the states, f32[B], with gradient to the states too."""
        values_B1: Tensor = self.layers(state_BH.float())
        return values_B1.squeeze(-1)
