"""What a model costs, counted from its config: parameters, FLOPs, bytes. Nothing is measured.

Every matrix product of a forward is an entry of `layers.list_layers`; all else follows from it:

* a linear layer on `rows` rows: 2 * rows * inputs * outputs FLOPs (a patch convolution is a linear
  layer on patches);
* self-attention over S tokens of width d, all heads together: QK^T and PV, 4 * S^2 * d. The causal
  variant is counted in full too: a kernel that skips the masked half does up to half of it;
* backward of a layer whose weight is frozen: the gradient of its input alone, as many FLOPs as
  forward. Nothing flows into the pixels;
* a LoRA pair of rank r: 2 * rows * r * (inputs + outputs) forward, twice that backward;
* backward of attention: 5 products against 2, because fused kernels compute QK^T again.

Norms, activations, softmax and rotations are left out (about one FLOP in a thousand), as
`torch.utils.flop_counter` leaves them out.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from agent.model.config import OpenVLAConfig
from agent.model.layers import (
    Attention,
    Layer,
    count_vectors,
    list_attention,
    list_layers,
    llm_attention,
    llm_layers,
)
from agent.model.towers import PUBLISHED_TOWERS

PARTS = ("vision", "projector", "llm", "heads")
BF16_BYTES = 2
TRAINED_BYTES = 4 * 4  # a trained parameter: float32 weight, gradient and two Adam moments
FULL_VOCABULARY = 32_064  # of the published checkpoints, 64 entries of padding included


@dataclass(frozen=True)
class Forward:
    """One pass over the weights for a whole batch."""

    flops_by_part: dict[str, int]
    bytes_read: int

    @property
    def flops(self) -> int:
        """All parts together."""
        return sum(self.flops_by_part.values())


@dataclass(frozen=True)
class PartParameters:
    """Stored parameters of one part, and those of them that no forward uses."""

    stored: int
    never_run: int


@dataclass(frozen=True)
class AdapterSize:
    """LoRA pairs: target modules (two tensors each) and parameters."""

    modules: int
    parameters: int

    @property
    def bytes_bf16(self) -> int:
        """As a slot of the server holds them."""
        return BF16_BYTES * self.parameters

    @property
    def training_bytes(self) -> int:
        """Float32 weights, gradients and Adam moments."""
        return TRAINED_BYTES * self.parameters


def published_config(**choices: Any) -> OpenVLAConfig:
    """The geometry of the published 7B checkpoints; `variant` and other fields as chosen.

    Published configs state four fields of the language model, the rest are LlamaConfig's defaults.
    """
    pad_id = FULL_VOCABULARY - 64
    published = {
        "text_config": {
            "model_type": "llama",
            "pad_token_id": pad_id,
            "torch_dtype": "bfloat16",
            "vocab_size": FULL_VOCABULARY,
        },
        "timm_model_ids": list(PUBLISHED_TOWERS),
        "image_sizes": [224, 224],
        "pad_token_id": pad_id,
        "pad_to_multiple_of": 64,
    }
    return OpenVLAConfig.from_dict(published, **choices)


# ---- parameters and memory -------------------------------------------------------------------


def count_parameters(config: OpenVLAConfig) -> dict[str, PartParameters]:
    """Stored and never-run parameters by part (`PARTS`, parts without any left out)."""
    stored, idle = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)
    for layer in list_layers(config, prompt_tokens=1):
        stored[layer.part] += layer.parameters
        idle[layer.part] += 0 if layer.rows else layer.parameters
    for part, (run, never) in count_vectors(config).items():
        stored[part] += run + never
        idle[part] += never
    return {part: PartParameters(stored[part], idle[part]) for part in PARTS if stored[part]}


def weight_bytes(config: OpenVLAConfig) -> int:
    """All stored weights in bfloat16."""
    return BF16_BYTES * sum(part.stored for part in count_parameters(config).values())


def kv_bytes(config: OpenVLAConfig, tokens: int) -> int:
    """Keys and values of `tokens` positions of one sample, bfloat16."""
    llama = config.llama_config()
    width = llama.num_key_value_heads * llama.head_dim
    return 2 * BF16_BYTES * llama.num_hidden_layers * width * tokens


def count_adapter(config: OpenVLAConfig, rank: int, *, dead: bool) -> AdapterSize:
    """An adapter of the published target list; `dead` includes modules that never run."""
    layers = [layer for layer in list_layers(config, 1) if layer.adapted and (layer.rows or dead)]
    modules = sum(layer.count for layer in layers)
    return AdapterSize(modules, sum(layer.pair_parameters(rank) for layer in layers))


def checkpointed_bytes(config: OpenVLAConfig, prompt_tokens: int) -> int:
    """What full activation checkpointing keeps of one sample: every block's input, bfloat16.

    The inside of the block that is being recomputed comes on top, once.
    """
    attention = list_attention(config, prompt_tokens)
    return BF16_BYTES * sum(a.count * a.tokens * a.width for a in attention)


# ---- inference -------------------------------------------------------------------------------


def chunk_forwards(config: OpenVLAConfig, prompt_tokens: int, batch: int = 1) -> list[Forward]:
    """The forwards of `batch` chunks: one, or a prefill and cached steps if autoregressive.

    The prefill of the causal variant scores the first token, each step one more.
    """
    if not config.is_autoregressive:
        layers = list_layers(config, prompt_tokens)
        return [_forward(config, layers, list_attention(config, prompt_tokens), batch, 0)]
    generated = config.action_tokens
    prefix = config.sequence_length(prompt_tokens) - (generated - 1)
    used = None if config.greedy_range == "vocabulary" else config.n_action_bins
    llm = llm_layers(config, prefix, 1, used)
    prefill = [layer for layer in list_layers(config, prompt_tokens) if layer.part != "llm"] + llm
    vision = [a for a in list_attention(config, prompt_tokens) if a.part != "llm"]
    forwards = [
        _forward(config, prefill, [*vision, llm_attention(config, prefix, prefix)], batch, 0)
    ]
    step = llm_layers(config, 1, 1, used)
    for keys in range(prefix + 1, prefix + generated):
        forwards.append(_forward(config, step, [llm_attention(config, 1, keys)], batch, keys))
    return forwards


def _forward(
    config: OpenVLAConfig,
    layers: Iterable[Layer],
    attention: Iterable[Attention],
    batch: int,
    cached: int,
) -> Forward:
    layers = list(layers)
    flops = dict.fromkeys(PARTS, 0)
    for layer in layers:
        flops[layer.part] += batch * layer.flops
    for product in attention:
        flops[product.part] += batch * product.flops
    # Norms and other vectors are a ten-thousandth of this, the embedding table is only indexed.
    weights = BF16_BYTES * sum(layer.parameters_read for layer in layers)
    return Forward(flops, weights + batch * kv_bytes(config, cached))


def slot_flops(config: OpenVLAConfig, prompt_tokens: int, rank: int, slots: int) -> int:
    """Extra FLOPs of one sample's forward with `slots` adapters: its own, or all of them masked."""
    layers = [layer for layer in list_layers(config, prompt_tokens) if layer.adapted]
    return sum(layer.pair_flops(rank * slots) for layer in layers)


# ---- training --------------------------------------------------------------------------------


def train_flops(
    config: OpenVLAConfig, prompt_tokens: int, rank: int, *, checkpointing: bool
) -> int:
    """One sample's forward and backward with a LoRA adapter over a frozen base.

    PEFT's wrapper of `lm_head` computes the whole vocabulary. Checkpointing runs the blocks of
    both towers and of the language model, their adapters included, once more.
    """
    total = 0
    for layer in list_layers(config, prompt_tokens, whole_vocabulary=True):
        pair = layer.pair_flops(rank) if layer.adapted else 0
        backward = layer.flops + 2 * pair
        if not layer.input_grad:
            # Of its adapter, the weights and what flows between them, but not the input.
            inward = 2 * layer.count * layer.rows * rank * layer.inputs
            backward = 2 * pair - inward if layer.adapted else 0
        again = layer.flops + pair if checkpointing and layer.in_block else 0
        total += layer.flops + pair + backward + again
    for attention in list_attention(config, prompt_tokens):
        again = attention.flops if checkpointing else 0
        total += attention.flops + attention.flops * 5 // 2 + again
    return total
