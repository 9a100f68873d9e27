"""The nano OpenVLA-OFT: the published architecture at tiny width, with a word-level tokenizer.

Beside it the convolutional baseline (`cnn.py`) of about its size: `as_cnn`.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import nn

from agent.model.building import build_network
from agent.model.config import OpenVLAConfig
from agent.model.network import PolicyNetwork
from agent.model.processing import PROMPT_TEMPLATE
from agent.model.vision import LayerScale, VisionTower

UNKNOWN, BOS, STOP, EMPTY, PAD = "<unk>", "<s>", "</s>", "▁", "<PAD>"
# The two fixed phrases of the prompt are one token each: on a CPU every position counts.
PHRASES = [phrase.strip() for phrase in PROMPT_TEMPLATE.split("{task}")]
TOKEN_PATTERN = "|".join([*map(re.escape, PHRASES), r"[A-Za-z0-9]+", r"[^A-Za-z0-9\s]"])
PAD_TO_MULTIPLE_OF = 64


def build_nano_tokenizer(
    instructions: list[str], n_action_bins: int = 256, unlearned: Sequence[str] = ()
) -> Tokenizer:
    """A word-level tokenizer for the prompt template and every word of `instructions`.

    Ids follow the published scheme: 0 unknown, 1 BOS, 2 STOP, words, unused entries, and the
    action bins last in a vocabulary whose size is a multiple of 64; PAD is the id after it.
    New words of `unlearned`, instructions that are to be readable only, come after the others.
    """
    words = _words([PROMPT_TEMPLATE.format(task=""), *(text.lower() for text in instructions)])
    later = _words([text.lower() for text in unlearned])
    entries = [UNKNOWN, BOS, STOP, EMPTY, *words, *(word for word in later if word not in words)]
    unpadded = -(-(len(entries) + n_action_bins) // PAD_TO_MULTIPLE_OF) * PAD_TO_MULTIPLE_OF
    entries += [f"<unused{i}>" for i in range(unpadded - n_action_bins - len(entries))]
    entries += [f"<action{i}>" for i in range(n_action_bins)]
    entries.append(PAD)
    vocabulary = {entry: i for i, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(TOKEN_PATTERN), behavior="removed", invert=True
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return tokenizer


def _words(texts: Sequence[str]) -> list[str]:
    return sorted({word for text in texts for word in re.findall(TOKEN_PATTERN, text)})


def build_nano_config(
    tokenizer: Tokenizer,
    norm_stats: dict[str, Any],
    *,
    image_size: int = 64,
    patch_size: int = 16,
    n_action_bins: int = 256,
    chunk_size: int = 5,
    num_images: int = 2,
    use_proprio: bool = True,
) -> OpenVLAConfig:
    """The nano geometry: towers 96 wide with two running blocks, Llama 128 wide with four layers.

    Args:
        tokenizer: from `build_nano_tokenizer` with the same `n_action_bins`.
        norm_stats: action and proprio statistics by unnorm key.
    """
    unpadded = tokenizer.get_vocab_size() - 1
    tower = {"dim": 96, "depth": 3, "heads": 3, "mlp_dim": 384, "patch_size": patch_size}
    return OpenVLAConfig.from_dict(
        {
            "text_config": {
                "model_type": "llama",
                "pad_token_id": unpadded,
                "vocab_size": unpadded + PAD_TO_MULTIPLE_OF,
                "hidden_size": 128,
                "intermediate_size": 344,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "max_position_embeddings": 256,
                "torch_dtype": "bfloat16",
            },
            "timm_model_ids": ["nano_reg4_dinov2", "nano_siglip"],
            "vision_towers": [
                {"kind": "dinov2", **tower, "registers": 4},
                {"kind": "siglip", **tower},
            ],
            "image_sizes": [image_size, image_size],
            "pad_token_id": unpadded,
            "pad_to_multiple_of": PAD_TO_MULTIPLE_OF,
            "n_action_bins": n_action_bins,
            "norm_stats": norm_stats,
            "vision_backbone_id": "nano",
            "llm_backbone_id": "nano",
            "hf_llm_id": "none",
            "llm_max_length": 256,
            "variant": "oft-discrete",
            "num_images": num_images,
            "use_proprio": use_proprio,
            "chunk_size": chunk_size,
        }
    )


def as_cnn(config: OpenVLAConfig, width: int = 192) -> OpenVLAConfig:
    """The convolutional policy that sees, reads and answers in the shapes of `config`."""
    vocabulary = ("model_type", "pad_token_id", "vocab_size", "torch_dtype")
    text = {name: config.text_config[name] for name in vocabulary}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}  # fit any width; there are none
    return dataclasses.replace(
        config,
        variant="cnn",
        timm_model_ids=(),
        vision_towers=(),
        text_config={**text, **heads, "hidden_size": width},
    )


def init_nano(config: OpenVLAConfig, seed: int) -> PolicyNetwork:
    """A fresh model: variance-preserving weights, residual branches damped by depth.

    The generator is local, so the same seed gives the same weights whatever ran before.
    """
    model = build_network(config)
    generator = torch.Generator().manual_seed(seed)
    llm_layers = config.llama_config().num_hidden_layers
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                std = 1.0 / math.sqrt(module.weight[0].numel())
                if name.endswith(("attn.proj", "mlp.fc2", "o_proj", "down_proj")):
                    std /= math.sqrt(2.0 * llm_layers)
                module.weight.normal_(0.0, std, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0.0, 0.5, generator=generator)
            elif isinstance(module, LayerScale):
                module.scale_factor.fill_(1.0)
            elif isinstance(module, VisionTower):
                module.pos_embed.normal_(0.0, 0.2, generator=generator)
                for prefix in module.prefix_names:
                    getattr(module, prefix).normal_(0.0, 0.2, generator=generator)
        # Start near a uniform policy over the bins.
        model.output_layer.weight.mul_(0.1)
    return model
