"""LoRA adapters: which modules they touch, training through PEFT, and the plain PEFT folder.

The target list is the published reinforcement-learning one: every projection of both towers
(patch convolutions included), of the projector and of the language model, and `lm_head`. Modules
whose output is never used (last vision blocks, attention pooling) are left out: they would carry
zero gradients for ever.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from agent.model.openvla import OpenVLA

VISION_SUFFIXES = ("proj", "qkv", "fc1", "fc2", "q", "kv", "fc3")
LLAMA_SUFFIXES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TARGET_SUFFIXES = {*VISION_SUFFIXES, *LLAMA_SUFFIXES, "lm_head"}
KEY_PREFIX = "base_model.model."
CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"


class AdapterError(ValueError):
    """An adapter does not fit the model; the message names tensor, expected and got."""


@dataclass(frozen=True)
class LoraSpec:
    """The part of adapter_config.json that decides what the tensors mean."""

    rank: int
    alpha: float
    use_rslora: bool = False

    @property
    def scale(self) -> float:
        """Factor on B A x: alpha / r, or alpha / sqrt(r) for rsLoRA."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "LoraSpec":
        """Parse adapter_config.json content.

        Raises:
            AdapterError: not LoRA, or a variant this code would compute wrongly.
        """
        if values.get("peft_type") != "LORA":
            raise AdapterError(f"adapter peft_type must be LORA, got {values.get('peft_type')!r}")
        variants = ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern")
        unsupported = [name for name in variants if values.get(name)]
        if values.get("bias", "none") != "none":
            unsupported.append("bias")
        if values.get("modules_to_save"):
            unsupported.append("modules_to_save")
        if unsupported:
            raise AdapterError(f"adapter uses {unsupported}; only plain LoRA can be served")
        rank, alpha = values.get("r"), values.get("lora_alpha")
        if not isinstance(rank, int) or rank < 1:
            raise AdapterError(f"adapter rank r must be a positive integer, got {rank!r}")
        if not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise AdapterError(f"adapter lora_alpha must be a finite number, got {alpha!r}")
        return cls(rank, float(alpha), bool(values.get("use_rslora", False)))


def lora_targets(model: OpenVLA) -> list[str]:
    """Names of the live target modules, in module order."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        and name.rsplit(".", 1)[-1] in TARGET_SUFFIXES
        and not name.startswith("proprio_projector.")
        and not is_dead(model, name)
    ]


def is_dead(model: OpenVLA, name: str) -> bool:
    """Whether a module is stored but never run."""
    backbone = model.vision_backbone
    return any(
        name.startswith(
            (
                f"vision_backbone.{tower}.blocks.{len(getattr(backbone, tower).blocks) - 1}.",
                f"vision_backbone.{tower}.attn_pool.",
            )
        )
        for tower in ("featurizer", "fused_featurizer")
    )


def attach_lora(model: OpenVLA, rank: int, alpha: float) -> PeftModel:
    """Freeze `model` and add a trainable adapter to its live targets, in place.

    A is Gaussian and B zero (torch's global RNG), so the policy starts unchanged. The wrapped
    network is `peft_model.get_base_model()`.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT takes any number
        lora_dropout=0.0,
        bias="none",
        init_lora_weights="gaussian",
        target_modules=lora_targets(model),
    )
    peft_model = get_peft_model(model, config)
    assert isinstance(peft_model, PeftModel)
    return peft_model


def save_adapter(peft_model: PeftModel, folder: Path) -> None:
    """Write a plain PEFT folder (config and float32 safetensors) that stock PEFT loads.

    The bytes depend on the weights and the config alone: target names are sorted, because PEFT
    keeps them in a set. Durability and hashing are the adapter store's duty.
    """
    config = peft_model.peft_config["default"].to_dict()
    config = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    config.update(peft_type="LORA", inference_mode=True, base_model_name_or_path="")
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG_NAME).write_text(text, encoding="utf-8")
    state = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    tensors = {k: v.detach().cpu().contiguous() for k, v in sorted(state.items())}
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})


def read_adapter(folder: Path) -> tuple[dict[str, Tensor], LoraSpec]:
    """Tensors and spec of a PEFT folder.

    Raises:
        AdapterError: a file is missing or malformed.
    """
    try:
        values = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS_NAME)
    except OSError as error:
        raise AdapterError(
            f"{folder} must hold {CONFIG_NAME} and {WEIGHTS_NAME}: {error}"
        ) from error
    except ValueError as error:
        raise AdapterError(f"{folder / CONFIG_NAME} is not JSON: {error}") from error
    return tensors, LoraSpec.from_dict(values)


def load_lora_weights(peft_model: PeftModel, tensors: dict[str, Tensor]) -> None:
    """Copy adapter tensors into an attached adapter, to train on from there.

    Raises:
        AdapterError: a name or shape differs from the attached adapter's.
    """
    wanted = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    wrong = sorted(set(wanted) ^ set(tensors))
    wrong += [k for k in wanted if k in tensors and wanted[k].shape != tensors[k].shape]
    if wrong:
        raise AdapterError(
            f"adapter differs from the attached one in {len(wrong)} tensors: {wrong[:6]}"
        )
    set_peft_model_state_dict(peft_model, tensors)


def pair_adapter_tensors(
    model: OpenVLA, targets: list[str], tensors: dict[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Adapter tensors as {module: (A, B)}, exactly one pair a target.

    Pairs of dead modules and PEFT's copy of `lm_head.base_layer.weight` are dropped: foreign
    trainers write both, and neither can change an action.

    Raises:
        AdapterError: missing, unknown or non-finite tensors.
    """
    pairs: dict[str, dict[str, Tensor]] = {name: {} for name in targets}
    unknown = []
    for key, tensor in tensors.items():
        name = key.removeprefix(KEY_PREFIX)
        module, _, part = name.partition(".lora_")
        if module in pairs and part in ("A.weight", "B.weight"):
            pairs[module][part[0]] = tensor
            if not torch.isfinite(tensor).all():
                raise AdapterError(f"adapter tensor {key} holds NaN or infinity")
        elif not (is_dead(model, module) or name.endswith(".base_layer.weight")):
            unknown.append(key)
    missing = [name for name, pair in pairs.items() if set(pair) != {"A", "B"}]
    if missing or unknown:
        raise AdapterError(
            f"adapter does not fit the model: {len(missing)} modules lack lora_A or lora_B "
            f"{missing[:6]}, {len(unknown)} unknown tensors {unknown[:6]}"
        )
    return {name: (pair["A"], pair["B"]) for name, pair in pairs.items()}
