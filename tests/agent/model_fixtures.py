"""A tiny random OpenVLA-OFT and inputs for it, shared by the model tests."""

import torch
from torch import Tensor

from agent.model.config import OpenVLAConfig
from agent.model.nano import build_nano_config, build_nano_tokenizer, init_nano
from agent.model.openvla import OpenVLA

INSTRUCTIONS = ["Pick up the red cube", "push the blue cube to the left"]
STATS = {
    "nano": {
        "action": {
            "q01": [-0.5] * 6 + [0.0],
            "q99": [0.7] * 6 + [1.0],
            "mask": [True] * 6 + [False],
        },
        "proprio": {"q01": [-1.0] * 8, "q99": [2.0] * 8},
    }
}


def tiny_config(**choices: int | bool) -> OpenVLAConfig:
    """The nano config at 32 pixels."""
    tokenizer = build_nano_tokenizer(INSTRUCTIONS)
    return build_nano_config(tokenizer, STATS, image_size=32, patch_size=16, **choices)


def tiny_model(seed: int = 0, **choices: int | bool) -> OpenVLA:
    """A seeded tiny model in eval mode."""
    return init_nano(tiny_config(**choices), seed).eval()


def random_inputs(config: OpenVLAConfig, batch: int, seed: int = 1) -> tuple[Tensor, ...]:
    """Seeded ids (B, 9), pixels and proprio."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 12, (batch, 9), generator=generator)
    ids[:, 0], ids[:, -1] = config.bos_token_id, 3
    size = config.image_size
    pixels = torch.randn(batch, config.num_images, 6, size, size, generator=generator)
    return ids, pixels, torch.rand(batch, config.proprio_dim, generator=generator) * 2 - 1
