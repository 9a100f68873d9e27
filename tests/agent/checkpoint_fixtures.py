"""Model folders with every key of the published 7B, at a width that fits a test."""

import json
from pathlib import Path

import torch
from torch import Tensor

from agent.model.autoregressive import generate
from agent.model.config import OpenVLAConfig
from agent.model.openvla import OpenVLA
from agent.model.towers import TowerConfig

KEYS_FILE = Path(__file__).parents[1] / "golden" / "openvla_oft" / "openvla7b_state_dict_keys.txt"
VOCABULARY = 320
BOUNDS = {"q01": [-0.5] * 7, "q99": [0.5] * 7, "mask": [True] * 6 + [False]}
STATISTICS = {"libero": {"action": BOUNDS, "proprio": {"q01": [-1.0] * 8, "q99": [1.0] * 8}}}


def published_keys() -> set[str]:
    """Names of the 982 tensors of openvla-7b."""
    return {line.split("\t")[0] for line in KEYS_FILE.read_text().splitlines() if "\t" in line}


def narrow_config(depths: tuple[int, int, int] = (24, 27, 32), **stated: object) -> OpenVLAConfig:
    """The published architecture a few channels wide.

    Args:
        depths: of the two towers and the language model.
        stated: fields of the config.
    """
    dino_depth, siglip_depth, llm_depth = depths
    return OpenVLAConfig.from_dict(
        {
            "text_config": {
                "model_type": "llama",
                "pad_token_id": VOCABULARY,
                "vocab_size": VOCABULARY + 64,
                "hidden_size": 8,
                "intermediate_size": 12,
                "num_hidden_layers": llm_depth,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "torch_dtype": "bfloat16",
            },
            "timm_model_ids": [
                "vit_large_patch14_reg4_dinov2.lvd142m",
                "vit_so400m_patch14_siglip_224",
            ],
            "vision_towers": [
                TowerConfig("dinov2", 8, dino_depth, 2, 12, 14, registers=4),
                TowerConfig("siglip", 12, siglip_depth, 2, 10, 14),
            ],
            "image_sizes": [28, 28],
            "pad_token_id": VOCABULARY,
            "pad_to_multiple_of": 64,
            "norm_stats": STATISTICS,
        },
        **stated,
    )


@torch.no_grad()
def random_model(config: OpenVLAConfig, seed: int = 0) -> OpenVLA:
    """Every parameter random and exact in bfloat16, the stored precision."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        model = OpenVLA(config)
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator).mul(0.3).bfloat16())
    rotary = type(model.language_model.model.rotary_emb)
    model.language_model.model.rotary_emb = rotary(config.llama_config())
    return model.eval()


@torch.no_grad()
def outputs(model: OpenVLA) -> tuple[Tensor, ...]:
    """What the model computes on two seeded observations, whatever its variant."""
    config = model.config
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, VOCABULARY - 256, (2, 6), generator=generator)
    ids[:, 0] = config.bos_token_id
    size = config.image_size
    pixels = torch.randn(2, config.num_images, 6, size, size, generator=generator)
    if config.is_autoregressive:
        noise = torch.zeros(2, 1, config.action_dim, config.n_action_bins)
        return tuple(generate(model, ids, pixels, torch.zeros(2), noise))
    proprio = torch.rand(2, config.proprio_dim, generator=generator)
    found = model(ids, pixels, proprio if config.use_proprio else None)
    return tuple(part for part in found if part is not None)


def forget(folder: Path, *fields: str) -> None:
    """Take extension fields out of config.json, where a published one has none."""
    file = folder / "config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in values.items() if k not in fields}))
