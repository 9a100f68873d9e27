"""Random adapters of the tiny model as PEFT wraps and saves them, and small models to trace."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from model_fixtures import random_inputs, tiny_config, tiny_model
from peft import PeftModel
from torch import Tensor, nn

from agent.model.config import OpenVLAConfig
from agent.model.lora import attach_lora, read_adapter, save_adapter
from agent.model.nano import as_cnn, init_nano
from agent.model.network import PolicyNetwork
from agent.model.openvla import OpenVLA
from agent.model.slots import SlotBank

RANKS = {1: 4, 2: 2, 3: 3}
"""Adapter ranks by slot."""


def randomise(peft_model: PeftModel, seed: int) -> PeftModel:
    """Make every adapter weight nonzero."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.05)
    return peft_model


def train_fake_adapter(
    folder: Path, rank: int, alpha: float, seed: int, model: PolicyNetwork | None = None
) -> PeftModel:
    """An adapter with all weights nonzero, saved to `folder`, on `model` or a fresh tiny one."""
    peft_model = randomise(attach_lora(model or tiny_model(), rank, alpha), seed)
    save_adapter(peft_model, folder)
    return peft_model


def shallow_model(layers: int = 1, **changes: Any) -> OpenVLA:
    """A tiny model of one running block a tower and few Llama layers: quick to wrap and trace."""
    config = tiny_config()
    towers = tuple(dataclasses.replace(tower, depth=2) for tower in config.towers)
    text = {**config.text_config, "num_hidden_layers": layers}
    config = dataclasses.replace(config, vision_towers=towers, text_config=text, **changes)
    return init_nano(config, seed=0).eval()


def variant_model(variant: str) -> PolicyNetwork:
    """A shallow model of any variant; the causal one has one image, one step and no proprio."""
    if variant == "cnn":
        return init_nano(as_cnn(tiny_config()), seed=0).eval()
    choices = {"num_images": 1, "chunk_size": 1, "use_proprio": False}
    return shallow_model(2, variant=variant, **(choices if variant == "openvla" else {}))


def answer(model: nn.Module, config: OpenVLAConfig, batch: int = 2) -> Tensor:
    """Logits or means of a variant for `batch` fixed rows."""
    ids, pixels, proprio = random_inputs(config, batch)
    shape = (batch, config.chunk_size, config.action_dim)
    tokens = torch.arange(batch * shape[1] * shape[2]).view(shape)
    given = {"tokens_BKA": tokens} if config.variant == "openvla" else {}
    output = model(ids, pixels, proprio if config.use_proprio else None, **given)
    return output.means_BKA if output.logits_BKAV is None else output.logits_BKAV


def write_adapters(folder: Path, make: Callable[[], PolicyNetwork]) -> dict[int, PeftModel]:
    """An adapter of another rank for every slot of RANKS, in `folder`; PEFT models by slot."""
    return {
        slot: train_fake_adapter(folder / str(slot), rank, alpha=8.0, seed=slot, model=make())
        for slot, rank in RANKS.items()
    }


def fill_bank(bank: SlotBank, folder: Path) -> None:
    """Load what `write_adapters` wrote."""
    for slot in RANKS:
        bank.load(slot, *read_adapter(folder / str(slot)))
