"""What every policy network offers to the server and the learner, whatever is inside it."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from agent.model.config import OpenVLAConfig


class ActionOutput(NamedTuple):
    """One forward pass. One of the first two is there: logits, or the means of a regression.

    Attributes:
        logits_BKAV: float32 (B, K, A, V) over the action bins, V ascending in token id.
        means_BKA: float32 (B, K, A), normalised actions.
        hidden_BKAH: (B, K, A, H) final hidden states that the above were read from;
            `hidden_BKAH[:, 0, 0]` is h0, the state a value head reads.
    """

    logits_BKAV: Tensor | None
    means_BKA: Tensor | None
    hidden_BKAH: Tensor


class PolicyNetwork(nn.Module, ABC):
    """A policy network. Pre- and post-processing live in `processing` and `actions`."""

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(
        self,
        input_ids_BL: Tensor,
        pixel_values_BNCHW: Tensor,
        proprio_BP: Tensor | None = None,
        attention_mask_BL: Tensor | None = None,
        tokens_BKA: Tensor | None = None,
    ) -> ActionOutput:
        """Score every action bin of the chunk, or regress the chunk.

        Args:
            input_ids_BL: int64 (B, L), column 0 BOS and last column the empty token. Shorter
                prompts carry pads between BOS and the rest (`processing.pad_prompts`).
            pixel_values_BNCHW: float (B, images, 6, H, W).
            proprio_BP: float (B, proprio_dim), normalised to [-1, 1]; required exactly when the
                config has `use_proprio`.
            attention_mask_BL: (B, L), 0 on pads; None when no row is padded, which keeps the
                faster attention kernels usable.
            tokens_BKA: int64 action bins 0..V-1 whose probabilities are asked for; the causal
                variant needs them, for each is conditioned on those before it.

        Raises:
            ValueError: a shape does not fit the config.
        """

    @abstractmethod
    def greedy_tokens(self, hidden_BKAH: Tensor) -> Tensor:
        """The likeliest tokens 0..V-1 of a chunk, int64 (B, K, A)."""

    @property
    @abstractmethod
    def output_layer(self) -> nn.Module:
        """The layer that computes the logits of the action bins."""

    @property
    @abstractmethod
    def word_embedding(self) -> nn.Embedding:
        """What turns the tokens of an instruction into vectors; no adapter reaches it."""

    def check_inputs(self, input_ids: Tensor, pixels: Tensor, proprio: Tensor | None) -> None:
        """Raises ValueError for a shape that does not fit the config."""
        config = self.config
        batch, size = len(input_ids), config.image_size
        expected = (batch, config.num_images, 6, size, size)
        if tuple(pixels.shape) != expected:
            raise ValueError(f"pixel_values: expected {expected}, got {tuple(pixels.shape)}")
        if (proprio is not None) != config.use_proprio:
            raise ValueError(
                f"proprio: the config says use_proprio={config.use_proprio}, got "
                f"{'none' if proprio is None else tuple(proprio.shape)}"
            )
        if proprio is not None and tuple(proprio.shape) != (batch, config.proprio_dim):
            raise ValueError(
                f"proprio: expected {(batch, config.proprio_dim)}, got {tuple(proprio.shape)}"
            )


def full_precision(values: Tensor) -> Tensor:
    """At least float32: what probabilities are computed in, whatever the weights' type."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
