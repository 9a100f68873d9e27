"""Random models, adapters and inputs, made where they are used.

Timing does not depend on the weights' values, only on their being finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agent.model.config import OpenVLAConfig
from agent.model.cost import published_config
from agent.model.libraries import LlamaRotaryEmbedding
from agent.model.lora import KEY_PREFIX, lora_targets
from agent.model.nano import build_nano_config, build_nano_tokenizer
from agent.model.openvla import OpenVLA
from agent.model.slots import SlotBank

SIZES = ("7b", "nano")
PROMPT_TOKENS = {"7b": 35, "nano": 9}  # of a LIBERO instruction; of a tabletop one
RANK = 32
SLOTS = 5  # the base and four adapters, the server's default


@dataclass(frozen=True)
class Machine:
    """Where and in which arithmetic: bfloat16 on an accelerator, float32 on a CPU."""

    device: torch.device
    size: str

    @property
    def is_cuda(self) -> bool:
        """CUDA graphs, events and memory statistics are there."""
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return torch.bfloat16 if self.is_cuda else torch.float32

    @property
    def name(self) -> str:
        """`NVIDIA H100 80GB HBM3`, or `cpu`."""
        return torch.cuda.get_device_name(self.device) if self.is_cuda else self.device.type

    def synchronize(self) -> None:
        """Wait until the device has done all it was given."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)


def build_config(size: str, **choices: Any) -> OpenVLAConfig:
    """The published geometry, or the nano one, without proprio."""
    if size == "7b":
        return published_config(**choices)
    nano = build_nano_config(build_nano_tokenizer([]), {}, num_images=1, use_proprio=False)
    values = nano.to_dict()
    if choices.get("variant") == "openvla":
        values["chunk_size"] = 1
    return OpenVLAConfig.from_dict(values, **choices)


def build_model(config: OpenVLAConfig, machine: Machine) -> OpenVLA:
    """A random model in eval mode, materialised on the device: nothing is copied from the host."""
    with torch.device("meta"):
        model = OpenVLA(config).to(machine.dtype)
    model.to_empty(device=machine.device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    # Rotary frequencies are computed, not stored: they have no place on the meta device.
    rotary = LlamaRotaryEmbedding(config.llama_config()).to(machine.device)
    model.language_model.model.rotary_emb = rotary
    return model.eval()


def build_adapter(model: OpenVLA) -> dict[str, Tensor]:
    """A random float32 adapter of rank `RANK` on the host, under PEFT's names."""
    tensors = {}
    for name in lora_targets(model):
        module = model.get_submodule(name)
        assert isinstance(module, nn.Linear | nn.Conv2d)
        weight = module.weight
        ones = [1] * (weight.ndim - 2)
        a = torch.randn(RANK, *weight.shape[1:]) * weight[0].numel() ** -0.5
        tensors[f"{KEY_PREFIX}{name}.lora_A.weight"] = a
        tensors[f"{KEY_PREFIX}{name}.lora_B.weight"] = torch.randn(len(weight), RANK, *ones) * 1e-3
    return tensors


def build_bank(model: OpenVLA, **choices: bool) -> SlotBank:
    """`SLOTS` slots of rank `RANK`; the adapters in them are still zero, which costs the same."""
    return SlotBank(model, SLOTS, RANK, **choices)


def build_inputs(config: OpenVLAConfig, batch: int, machine: Machine) -> tuple[Tensor, Tensor]:
    """Prompt ids (B, L) and pixels (B, images, 6, S, S) on the device."""
    length = PROMPT_TOKENS[machine.size]
    ids = torch.randint(4, config.action_vocab_start, (batch, length), device=machine.device)
    ids[:, 0] = config.bos_token_id
    shape = (batch, config.num_images, 6, config.image_size, config.image_size)
    return ids, torch.randn(shape, device=machine.device, dtype=machine.dtype)
