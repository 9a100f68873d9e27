"""OpenVLA-OFT with discrete action tokens, decoded in parallel (Kim et al., 2025).

The sequence is [BOS][patches of every image][proprio][rest of the prompt ... empty token]
[K * A zero embeddings][STOP, if kept], attention is full in both directions, and the logits of
action token i are read one position before its placeholder.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaModel

from agent.model.config import OpenVLAConfig
from agent.model.projector import FusedProjector, ProprioProjector
from agent.model.vision import VisionBackbone


class ActionOutput(NamedTuple):
    """One forward pass.

    Attributes:
        logits_BKAV: float32 (B, K, A, V) over the action bins, V ascending in token id.
        hidden_BKAH: (B, K, A, H) final-norm hidden states the logits were read from;
            `hidden_BKAH[:, 0, 0]` is h0, the state a value head reads.
    """

    logits_BKAV: Tensor
    hidden_BKAH: Tensor


class VocabularyHead(nn.Linear):
    """An `lm_head` that can compute some rows of the vocabulary only."""

    def rows(self, hidden: Tensor, start: int, stop: int) -> Tensor:
        """(..., H) -> (..., stop - start), the logits of token ids start..stop-1."""
        return F.linear(hidden, self.weight[start:stop])


class LanguageModel(nn.Module):
    """Llama without its generation code, under the published key names."""

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        llama = config.llama_config()
        self.model = LlamaModel(llama)
        self.lm_head = VocabularyHead(llama.hidden_size, llama.vocab_size, bias=False)


class OpenVLA(nn.Module):
    """The policy network. Pre- and post-processing live in `processing` and `actions`."""

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        self.config = config
        llm_dim = config.llama_config().hidden_size
        self.vision_backbone = VisionBackbone(config)
        self.projector = FusedProjector(sum(t.dim for t in config.towers), llm_dim)
        self.language_model = LanguageModel(config)
        self.proprio_projector = (
            ProprioProjector(config.proprio_dim, llm_dim) if config.use_proprio else None
        )
        self.stop_token_id = config.stop_token_id

    def forward(
        self,
        input_ids_BL: Tensor,
        pixel_values_BNCHW: Tensor,
        proprio_BP: Tensor | None = None,
        attention_mask_BL: Tensor | None = None,
    ) -> ActionOutput:
        """Score every action bin of the chunk.

        Args:
            input_ids_BL: int64 (B, L), column 0 BOS and last column the empty token. Shorter
                prompts carry pads between BOS and the rest (`processing.pad_prompts`).
            pixel_values_BNCHW: float (B, images, 6, H, W).
            proprio_BP: float (B, proprio_dim), normalised to [-1, 1]; required exactly when the
                config has `use_proprio`.
            attention_mask_BL: (B, L), 0 on pads; None when no row is padded, which keeps the
                faster attention kernels usable.

        Raises:
            ValueError: a shape does not fit the config.
        """
        self._check_shapes(input_ids_BL, pixel_values_BNCHW, proprio_BP)
        prefix = self.projector(self.vision_backbone(pixel_values_BNCHW))
        if self.proprio_projector is not None:
            prefix = torch.cat([prefix, self.proprio_projector(proprio_BP)], dim=1)
        embeds = self._assemble(input_ids_BL, prefix)
        mask, positions = self._extend_mask(attention_mask_BL, prefix.shape[1])
        hidden = self.language_model.model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        first = input_ids_BL.shape[1] + prefix.shape[1] - 1
        hidden = hidden[:, first : first + self.config.action_tokens]
        chunk = (self.config.chunk_size, self.config.action_dim)
        return ActionOutput(
            self._action_logits(hidden).float().unflatten(1, chunk), hidden.unflatten(1, chunk)
        )

    def _assemble(self, input_ids: Tensor, prefix: Tensor) -> Tensor:
        embed_tokens = self.language_model.model.embed_tokens
        prompt = embed_tokens(input_ids)
        batch, _, dim = prompt.shape
        parts = [
            prompt[:, :1],
            prefix.to(prompt.dtype),
            prompt[:, 1:],
            prompt.new_zeros(batch, self.config.action_tokens, dim),
        ]
        if self.config.keep_stop_token:
            parts.append(embed_tokens(input_ids.new_full((batch, 1), self.stop_token_id)))
        return torch.cat(parts, dim=1)

    def _extend_mask(
        self, mask: Tensor | None, prefix_length: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """Widen a prompt mask to the sequence; positions count the tokens that are there."""
        if mask is None:
            return None, None
        tail = self.config.action_tokens + int(self.config.keep_stop_token)
        batch = len(mask)
        full = torch.cat(
            [
                mask[:, :1],
                mask.new_ones(batch, prefix_length),
                mask[:, 1:],
                mask.new_ones(batch, tail),
            ],
            dim=1,
        )
        return full, (full.long().cumsum(1) - 1).clamp(min=0)

    def _action_logits(self, hidden: Tensor) -> Tensor:
        start, stop = self.config.action_vocab_start, self.config.action_vocab_end
        head = self.language_model.lm_head
        if hasattr(head, "rows"):
            return head.rows(hidden, start, stop)
        # PEFT's wrapper computes the whole vocabulary; its adapter has no row restriction.
        return head(hidden)[..., start:stop]

    def _check_shapes(self, input_ids: Tensor, pixels: Tensor, proprio: Tensor | None) -> None:
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
