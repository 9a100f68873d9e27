"""LoRA adapters: which modules they touch, training through PEFT, and the plain PEFT folder.

The target list is the published reinforcement-learning one: every projection of both towers
(patch convolutions included), of the projector and of the language model, and `lm_head`. Modules
whose output is never used (last vision blocks, attention pooling) are left out: they would carry
zero gradients for ever. Of the convolutional policy: every convolution, and the linear layers
behind them.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from agent.model.adapter_config import AdapterError, LoraSpec
from agent.model.libraries import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from agent.model.network import PolicyNetwork
from agent.model.openvla import OpenVLA
from agent.process.json_files import json_fault
from agent.process.stand_ins import describe_stand_in

VISION_SUFFIXES = ("proj", "qkv", "fc1", "fc2", "q", "kv", "fc3")
LLAMA_SUFFIXES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CNN_SUFFIXES = ("conv", "fc1", "fc2", "head")
TARGET_SUFFIXES = {*VISION_SUFFIXES, *LLAMA_SUFFIXES, "lm_head", *CNN_SUFFIXES}
OUTSIDE_LORA = ("proprio_projector.", "action_head.")
"""Small modules of their own that are trained whole, and share the towers' layer names."""
KEY_PREFIX = "base_model.model."
CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"
TRAINED, FROZEN = "default", "frozen"
"""PEFT's names of the two adapters that a network in training can have."""
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def lora_targets(model: PolicyNetwork) -> list[str]:
    """Names of the live target modules, in module order."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        and name.rsplit(".", 1)[-1] in TARGET_SUFFIXES
        and not name.startswith(OUTSIDE_LORA)
        and not is_dead(model, name)
    ]


def is_dead(model: PolicyNetwork, name: str) -> bool:
    """Whether a module is stored but never run."""
    if not isinstance(model, OpenVLA):
        return False
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


def attach_lora(model: PolicyNetwork, rank: int, alpha: float) -> PeftModel:
    """Freeze `model` and add a trainable adapter to its live targets, in place.

    A is Gaussian and B zero (torch's global RNG), so the policy starts unchanged. The wrapped
    network is `peft_model.get_base_model()`.
    """
    peft_model = get_peft_model(model, _lora_config(lora_targets(model), rank, alpha))
    assert isinstance(peft_model, PeftModel)
    return peft_model


def set_frozen_update(peft_model: PeftModel, tensors: Mapping[str, Tensor]) -> None:
    """Let a second adapter, float32 and frozen, take part beside the trained one.

    Args:
        tensors: of the trained one's names and of any rank, under the same alpha / r; none takes
            the second adapter away. Torch's global RNG is left as it was.
    """
    if FROZEN in peft_model.peft_config:
        peft_model.delete_adapter(FROZEN)
    if not tensors:
        return
    trained, rank = peft_model.peft_config[TRAINED], rank_of(tensors)
    config = _lora_config(trained.target_modules, rank, trained.lora_alpha * rank / trained.r)
    with torch.random.fork_rng(devices=[]):  # of an initialisation that is written over at once
        peft_model.add_adapter(FROZEN, config)
    set_peft_model_state_dict(peft_model, dict(tensors), adapter_name=FROZEN)
    peft_model.base_model.set_adapter([TRAINED, FROZEN])
    for name, parameter in peft_model.named_parameters():
        if f".{FROZEN}." in name:
            parameter.requires_grad_(False)


def rank_of(tensors: Mapping[str, Tensor]) -> int:
    """Rows of every A of an adapter."""
    return next(len(tensor) for name, tensor in tensors.items() if ".lora_A." in name)


def stack_updates(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapter whose update is the sum of two: A over A, B beside B."""
    return {
        name: torch.cat([tensor, second[name]], dim=0 if ".lora_A." in name else 1)
        for name, tensor in first.items()
    }


def scale_update(tensors: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """The adapter whose update is `factor` times as large; the factor goes into B."""
    return {
        name: tensor * factor if ".lora_B." in name else tensor for name, tensor in tensors.items()
    }


def save_adapter(
    peft_model: PeftModel, folder: Path, tensors: Mapping[str, Tensor] | None = None
) -> None:
    """Write a plain PEFT folder (config and float32 safetensors) that stock PEFT loads.

    The bytes depend on the weights and the config alone: target names are sorted, because PEFT
    keeps them in a set. Durability and hashing are the adapter store's duty.

    Args:
        tensors: instead of the trained adapter's, under the same alpha / r and of any rank.
    """
    state = tensors or get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    config = peft_model.peft_config[TRAINED].to_dict()
    config = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    config.update(peft_type="LORA", inference_mode=True, base_model_name_or_path="")
    rank = rank_of(state)
    if rank != config["r"]:
        config.update(r=rank, lora_alpha=config["lora_alpha"] * rank / config["r"])
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG_NAME).write_text(text, encoding="utf-8")
    contents = {k: v.detach().cpu().contiguous() for k, v in sorted(state.items())}
    save_file(contents, folder / WEIGHTS_NAME, metadata={"format": "pt"})


def read_adapter(folder: Path) -> tuple[dict[str, Tensor], LoraSpec]:
    """Tensors and spec of a PEFT folder.

    Raises:
        AdapterError: a file is missing, malformed, truncated, or a pickle.
    """
    config, weights = folder / CONFIG_NAME, folder / WEIGHTS_NAME
    if not weights.exists() and (folder / PICKLE_NAME).exists():
        raise AdapterError(
            f"{folder / PICKLE_NAME} is a pickle, which can run any code when it is read: where "
            f"you trust it, let PEFT load it and save_pretrained() write {WEIGHTS_NAME}"
        )
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
        tensors = load_file(weights)
    except OSError as error:
        for file in (config, weights):
            if what := describe_stand_in(file):
                raise AdapterError(f"{file} {what}") from error
        missing = next((file.name for file in (config, weights) if not file.exists()), "")
        why = f"{missing} is missing" if missing else error.strerror or "one cannot be read"
        raise AdapterError(f"{folder} must hold {CONFIG_NAME} and {WEIGHTS_NAME}: {why}") from error
    except (ValueError, RecursionError) as error:
        what = describe_stand_in(config) or f"is not JSON ({json_fault(error)})"
        raise AdapterError(f"{config} {what}") from error
    except SafetensorError as error:
        what = describe_stand_in(weights) or "is truncated or no safetensors file: copy it again"
        raise AdapterError(f"{weights} {what}") from error
    if not isinstance(values, dict):
        raise AdapterError(f"{config} must hold a JSON object, got {type(values).__name__}")
    try:
        return tensors, LoraSpec.from_dict(values)
    except AdapterError as error:
        raise AdapterError(f"{config}: {error}") from error


def changes_nothing(tensors: Mapping[str, Tensor], spec: LoraSpec) -> bool:
    """Whether an adapter is the base under another name: alpha, all of A or all of B is zero.

    An adapter begins so, and stays so as long as there was nothing to learn from.
    """
    parts = [[t for name, t in tensors.items() if part in name] for part in (".lora_A", ".lora_B")]
    return spec.scale == 0 or any(not any(t.any() for t in part) for part in parts)


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
    model: PolicyNetwork,
    targets: list[str],
    tensors: dict[str, Tensor],
    spec: LoraSpec | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Adapter tensors as {module: (A, B)}, at most one pair a target.

    Only a target that `spec` does not name may lack its pair. Foreign trainers also write pairs
    of dead modules, which are dropped, and copies of base weights (PEFT's
    `lm_head.base_layer.weight`), which are dropped where they are this model's own.

    Raises:
        AdapterError: missing, unknown or non-finite tensors, or the copy of another base.
    """
    pairs: dict[str, dict[str, Tensor]] = {name: {} for name in targets}
    unknown = []
    for key, tensor in tensors.items():
        name = key.removeprefix(KEY_PREFIX)
        module, _, part = name.partition(".lora_")
        if module in pairs and part in ("A.weight", "B.weight"):
            _check_values(key, tensor)
            pairs[module][part[0]] = tensor
        elif not (is_dead(model, module) or _is_base_copy(model, name, tensor)):
            unknown.append(key)
    missing = [
        name
        for name, pair in pairs.items()
        if set(pair) != {"A", "B"} and (pair or spec is None or spec.targets.name(name))
    ]
    if missing or unknown:
        raise AdapterError(
            f"adapter does not fit the model: {len(missing)} modules lack lora_A or lora_B "
            f"{missing[:6]}, {len(unknown)} unknown tensors {unknown[:6]}"
        )
    found = {name: (pair["A"], pair["B"]) for name, pair in pairs.items() if pair}
    if not found:
        raise AdapterError("adapter does not fit the model: it adapts none of its live modules")
    return found


def check_pair(name: str, a: Tensor, b: Tensor, weight: Tensor, rank: int) -> None:
    """Raises AdapterError unless A and B have the shapes of an update of `weight` at `rank`."""
    expected_a = (rank, *weight.shape[1:])
    expected_b = (len(weight), rank, *([1] * (weight.ndim - 2)))
    if tuple(a.shape) != expected_a or tuple(b.shape) != expected_b:
        raise AdapterError(
            f"adapter shapes of {name}: expected A {expected_a} and B {expected_b}, got "
            f"{tuple(a.shape)} and {tuple(b.shape)}"
        )


def _lora_config(targets: Iterable[str], rank: int, alpha: float) -> LoraConfig:
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT takes any number
        lora_dropout=0.0,
        bias="none",
        init_lora_weights="gaussian",
        target_modules=list(targets),
    )


def is_same_weight(copy: Tensor, weight: Tensor) -> bool:
    """Equal, up to one of them having been rounded to the other's type."""
    return copy.shape == weight.shape and (
        torch.equal(copy.to(weight.dtype), weight) or torch.equal(copy, weight.to(copy.dtype))
    )


def _check_values(key: str, tensor: Tensor) -> None:
    if tensor.dtype not in FLOATS:
        raise AdapterError(f"adapter tensor {key} must be floating point, got {tensor.dtype}")
    if not torch.isfinite(tensor).all():
        raise AdapterError(f"adapter tensor {key} holds NaN or infinity")


def _is_base_copy(model: PolicyNetwork, name: str, tensor: Tensor) -> bool:
    """Whether `name` is a base weight saved along. Raises AdapterError if it is another base's."""
    owner, _, leaf = name.replace(".base_layer.", ".").rpartition(".")
    modules = dict(model.named_modules())
    if owner not in modules:
        return False
    module = getattr(modules[owner], "base", modules[owner])  # below a slot layer
    weight = getattr(module, leaf, None)
    if not isinstance(weight, Tensor):
        return False
    if is_same_weight(tensor.to(weight.device), weight):
        return True
    raise AdapterError(
        f"adapter stores {name}, which differs from this model's: it was trained on another base, "
        "or trained that layer whole; serve it on its own base, merged"
    )
