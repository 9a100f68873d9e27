"""The OpenVLA family: causal OpenVLA (Kim et al., 2024) and OpenVLA-OFT (Kim et al., 2025).

Parallel variants read [BOS][patches of every image][proprio][rest of the prompt ... empty token]
[K * A zero embeddings][STOP, if kept] with full attention in both directions; what belongs to
action position i is read one position before its placeholder. The causal variant reads
[BOS][patches][rest of the prompt ... empty token][tokens so far].
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.model.config import OpenVLAConfig
from agent.model.libraries import LlamaModel
from agent.model.network import ActionOutput, PolicyNetwork, full_precision
from agent.model.projector import FusedProjector, ProprioProjector
from agent.model.regression import RegressionHead
from agent.model.vision import VisionBackbone


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


class OpenVLA(PolicyNetwork):
    """OpenVLA and OpenVLA-OFT under the published key names."""

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__(config)
        llm_dim = config.llama_config().hidden_size
        self.vision_backbone = VisionBackbone(config)
        self.projector = FusedProjector(sum(t.dim for t in config.towers), llm_dim)
        self.language_model = LanguageModel(config)
        self.proprio_projector = (
            ProprioProjector(config.proprio_dim, llm_dim) if config.use_proprio else None
        )
        self.action_head = (
            RegressionHead(llm_dim, config.action_dim) if config.is_regression else None
        )
        self.stop_token_id = config.stop_token_id

    @property
    def output_layer(self) -> nn.Module:
        """The layer that computes the logits of the action bins."""
        return self.language_model.lm_head

    @property
    def word_embedding(self) -> nn.Embedding:
        """What turns the tokens of an instruction into vectors."""
        embedding: nn.Embedding = self.language_model.model.embed_tokens
        return embedding

    def forward(
        self,
        input_ids_BL: Tensor,
        pixel_values_BNCHW: Tensor,
        proprio_BP: Tensor | None = None,
        attention_mask_BL: Tensor | None = None,
        tokens_BKA: Tensor | None = None,
    ) -> ActionOutput:
        """Score every action bin of the chunk, or regress the chunk."""
        hidden = self.hidden_states(
            input_ids_BL, pixel_values_BNCHW, proprio_BP, attention_mask_BL, tokens_BKA
        )
        chunk = (self.config.chunk_size, self.config.action_dim)
        hidden = hidden[:, : self.config.action_tokens]
        hidden_BKAH = hidden.unflatten(1, chunk)
        if self.action_head is not None:
            return ActionOutput(None, full_precision(self.action_head(hidden_BKAH)), hidden_BKAH)
        return ActionOutput(self.action_logits(hidden).unflatten(1, chunk), None, hidden_BKAH)

    def hidden_states(
        self,
        input_ids_BL: Tensor,
        pixel_values_BNCHW: Tensor,
        proprio_BP: Tensor | None = None,
        attention_mask_BL: Tensor | None = None,
        tokens_BKA: Tensor | None = None,
    ) -> Tensor:
        """Final-norm states (B, positions, H) from the empty token to the last position.

        Arguments as `forward`. The first K * A predict the action; with STOP kept the next one
        predicts STOP, and the last is STOP's own.
        """
        self.check_inputs(input_ids_BL, pixel_values_BNCHW, proprio_BP)
        self._check_tokens(input_ids_BL, tokens_BKA)
        prefix = self.embed_prefix(input_ids_BL, pixel_values_BNCHW, proprio_BP, attention_mask_BL)
        tail = self._embed_tail(input_ids_BL, tokens_BKA)
        mask, positions = _extend_mask(attention_mask_BL, prefix.shape[1], tail.shape[1])
        hidden = self.language_model.model(
            inputs_embeds=torch.cat([self.embed_prompt(input_ids_BL, prefix), tail], dim=1),
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
        ).last_hidden_state
        return hidden[:, input_ids_BL.shape[1] + prefix.shape[1] - 1 :]

    def embed_prefix(
        self, input_ids: Tensor, pixels: Tensor, proprio: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """Patch embeddings of every image, then the robot's state: (B, prefix, H)."""
        language = self._mean_prompt(input_ids, mask) if self.config.use_film else None
        prefix = self.projector(self.vision_backbone(pixels, language))
        if self.proprio_projector is not None:
            prefix = torch.cat([prefix, self.proprio_projector(proprio)], dim=1)
        return prefix

    def embed_prompt(self, input_ids: Tensor, prefix: Tensor) -> Tensor:
        """[BOS][prefix][rest of the prompt] as embeddings (B, positions, H)."""
        prompt = self.language_model.model.embed_tokens(input_ids)
        return torch.cat([prompt[:, :1], prefix.to(prompt.dtype), prompt[:, 1:]], dim=1)

    def action_logits(self, hidden: Tensor) -> Tensor:
        """(B, positions, H) -> float32 (B, positions, V) over the action bins."""
        start, stop = self.config.action_vocab_start, self.config.action_vocab_end
        head = self.language_model.lm_head
        if hasattr(head, "rows"):
            return full_precision(head.rows(hidden, start, stop))
        # PEFT's wrapper computes the whole vocabulary; its adapter has no row restriction.
        return full_precision(head(hidden)[..., start:stop])

    def greedy_ids(self, hidden: Tensor) -> Tensor:
        """(B, positions, H) -> the likeliest token ids among `config.greedy_range`, int64."""
        if self.config.greedy_range == "bins":
            return self.action_logits(hidden).argmax(-1) + self.config.action_vocab_start
        return self.language_model.lm_head(hidden).argmax(-1)

    def greedy_tokens(self, hidden_BKAH: Tensor) -> Tensor:
        """The likeliest tokens 0..V-1 of a chunk, int64 (B, K, A); ids outside: the nearest bin."""
        ids = self.greedy_ids(hidden_BKAH.flatten(1, 2))
        return nearest_bins(ids, self.config).view(hidden_BKAH.shape[:3])

    def _embed_tail(self, input_ids: Tensor, tokens: Tensor | None) -> Tensor:
        """What follows the prompt: given tokens but the last, or placeholders and STOP."""
        embed_tokens = self.language_model.model.embed_tokens
        if self.config.is_autoregressive:
            assert tokens is not None
            return embed_tokens(tokens.flatten(1)[:, :-1] + self.config.action_vocab_start)
        weight = embed_tokens.weight
        tail = weight.new_zeros(len(input_ids), self.config.action_tokens, weight.shape[1])
        if not self.config.keep_stop_token:
            return tail
        return torch.cat([tail, embed_tokens(self._stop_ids(input_ids))], dim=1)

    def _stop_ids(self, input_ids: Tensor) -> Tensor:
        return input_ids.new_full((len(input_ids), 1), self.stop_token_id)

    def _mean_prompt(self, input_ids: Tensor, mask: Tensor | None) -> Tensor:
        """Mean embedding of the prompt's tokens and STOP, pads left out: (B, H)."""
        if self.config.keep_stop_token:
            input_ids = torch.cat([input_ids, self._stop_ids(input_ids)], dim=1)
            mask = None if mask is None else torch.cat([mask, mask[:, :1]], dim=1)
        embeddings = self.language_model.model.embed_tokens(input_ids)
        if mask is None:
            return embeddings.mean(1)
        weights = mask.to(embeddings.dtype).unsqueeze(-1)
        return (embeddings * weights).sum(1) / weights.sum(1)

    def _check_tokens(self, input_ids: Tensor, tokens: Tensor | None) -> None:
        config = self.config
        expected = (len(input_ids), config.chunk_size, config.action_dim)
        if config.is_autoregressive and (tokens is None or tuple(tokens.shape) != expected):
            raise ValueError(
                f"tokens: the causal variant needs {expected}, got "
                f"{'none' if tokens is None else tuple(tokens.shape)}; to generate them, use "
                "autoregressive.generate"
            )


def nearest_bins(ids: Tensor, config: OpenVLAConfig) -> Tensor:
    """Token ids to action bins 0..V-1; ids outside them count as the nearest."""
    return (ids - config.action_vocab_start).clamp(0, config.n_action_bins - 1)


def _extend_mask(
    mask: Tensor | None, prefix_length: int, tail_length: int
) -> tuple[Tensor | None, Tensor | None]:
    """Widen a prompt mask to the sequence; positions count the tokens that are there."""
    if mask is None:
        return None, None
    ones = mask.new_ones(len(mask), prefix_length + tail_length)
    parts = [mask[:, :1], ones[:, :prefix_length], mask[:, 1:], ones[:, prefix_length:]]
    full = torch.cat(parts, dim=1)
    return full, (full.long().cumsum(1) - 1).clamp(min=0)
