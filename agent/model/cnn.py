"""The small convolutional policy (variant `cnn`): a baseline without language model or pretraining.

After the "12M" baseline of arXiv 2603.11653: a convolutional encoder, an embedding of the task and
an MLP from both to the logits of a whole chunk. Two things differ from the paper:

* Its task embedding is a row per task number. Robots name tasks in words here, so it is the sum of
  the embeddings of the instruction's words: a known instruction is known again, and a new one made
  of known words is an input like any other. The order of the words is lost.
* It has batch norm, and freezes it in reinforcement learning: statistics of a batch would make a
  row's answer depend on its neighbours, and running ones would drift between serving and training,
  so that what is trained is no longer what was served. Group norm has no statistics to keep.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.model.config import OpenVLAConfig
from agent.model.network import ActionOutput, PolicyNetwork, full_precision
from agent.model.projector import ProprioProjector

RGB = 3  # of the six channels of a picture: the others are the same, normalised for SigLIP
CHANNELS = (RGB, 32, 64, 128, 64)
GROUPS = 8
WORD_DIM = 128


class ConvBlock(nn.Module):
    """GELU(GroupNorm(3x3 convolution of stride 2)): half the side."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size=3, stride=2, padding=1)
        self.norm = nn.GroupNorm(GROUPS, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / 2, W / 2), rounded up."""
        return F.gelu(self.norm(self.conv(x)))


class CameraEncoder(nn.Module):
    """One small network for every camera; places stay places, for an arm has to know where."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ConvBlock(*pair) for pair in pairwise(CHANNELS))
        side = image_size
        for _ in self.blocks:
            side = -(-side // 2)
        self.places = side * side

    def forward(self, pixels_BNCHW: Tensor) -> Tensor:
        """(B, images, 6, H, W) -> (B, images * places, channels)."""
        x = pixels_BNCHW[:, :, :RGB].flatten(0, 1)
        for block in self.blocks:
            x = block(x)
        return x.flatten(2).transpose(1, 2).unflatten(0, pixels_BNCHW.shape[:2]).flatten(1, 2)


class Decoder(nn.Module):
    """The MLP from all features to the logits of a chunk."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, width)
        self.fc2 = nn.Linear(width, width)
        self.head = nn.Linear(width, outputs)

    def forward(self, features_BF: Tensor) -> Tensor:
        """(B, F) -> (B, H), the state that `head` reads."""
        return F.gelu(self.fc2(F.gelu(self.fc1(features_BF))))


class CnnPolicy(PolicyNetwork):
    """Small convolutional policy, in the folder layout and behind the interface of the others.

    Its one hidden state is that of every action of the chunk. Of `text_config` it has the
    vocabulary and, as its own width, `hidden_size`.
    """

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__(config)
        text = config.text_config
        width = int(text["hidden_size"])
        self.words = nn.Embedding(int(text["vocab_size"]), WORD_DIM)
        self.encoder = CameraEncoder(config.image_size)
        self.proprio_projector = (
            ProprioProjector(config.proprio_dim, width) if config.use_proprio else None
        )
        seen = config.num_images * self.encoder.places * CHANNELS[-1]
        felt = width if config.use_proprio else 0
        bins = config.action_tokens * config.n_action_bins
        self.decoder = Decoder(seen + WORD_DIM + felt, width, bins)

    @property
    def output_layer(self) -> nn.Module:
        """The layer that computes the logits of the action bins."""
        return self.decoder.head

    @property
    def word_embedding(self) -> nn.Embedding:
        """What turns the tokens of an instruction into vectors."""
        return self.words

    def forward(
        self,
        input_ids_BL: Tensor,
        pixel_values_BNCHW: Tensor,
        proprio_BP: Tensor | None = None,
        attention_mask_BL: Tensor | None = None,
        tokens_BKA: Tensor | None = None,
    ) -> ActionOutput:
        """Score every action bin of the chunk; `tokens_BKA` is not looked at."""
        self.check_inputs(input_ids_BL, pixel_values_BNCHW, proprio_BP)
        features = [
            self.encoder(pixel_values_BNCHW).flatten(1),
            self._sum_words(input_ids_BL, attention_mask_BL),
        ]
        if self.proprio_projector is not None:
            features.append(self.proprio_projector(proprio_BP).squeeze(1))
        hidden_BH = self.decoder(torch.cat(features, dim=1))
        shape = (self.config.chunk_size, self.config.action_dim)
        hidden_BKAH = hidden_BH[:, None, None].expand(-1, *shape, -1)
        return ActionOutput(self._logits(hidden_BH), None, hidden_BKAH)

    def greedy_tokens(self, hidden_BKAH: Tensor) -> Tensor:
        """The likeliest tokens 0..V-1 of a chunk, int64 (B, K, A)."""
        return self._logits(hidden_BKAH[:, 0, 0]).argmax(-1)

    def _logits(self, hidden_BH: Tensor) -> Tensor:
        """(B, H) -> float32 (B, K, A, V)."""
        config = self.config
        shape = (config.chunk_size, config.action_dim, config.n_action_bins)
        return full_precision(self.decoder.head(hidden_BH)).unflatten(1, shape)

    def _sum_words(self, input_ids_BL: Tensor, mask_BL: Tensor | None) -> Tensor:
        """Sum of the embeddings of the prompt's tokens, pads left out: (B, WORD_DIM).

        Not the mean: one word must not say less in a longer instruction.
        """
        words_BLD = self.words(input_ids_BL)
        if mask_BL is not None:
            words_BLD = words_BLD * mask_BL.to(words_BLD.dtype).unsqueeze(-1)
        return words_BLD.sum(1)
