"""Loading and saving the published model folder.

Keys are accounted for strictly: a folder that lacks, adds or re-shapes one tensor is refused
before a weight is read. Weights then stream to their place one tensor at a time.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from agent.model.building import build_network
from agent.model.config import OpenVLAConfig, read_json
from agent.model.errors import ModelFolderError
from agent.model.film import read_film_backbone, write_film_backbone
from agent.model.folder import (
    COMPONENTS,
    INDEX_FILE,
    SINGLE_FILE,
    ModelFolder,
    component_name,
    read_component,
    read_shapes,
    stream_tensors,
)
from agent.model.libraries import LlamaRotaryEmbedding, StrictDataclassError
from agent.model.network import PolicyNetwork
from agent.model.openvla import OpenVLA

SHARDS = "model-*.safetensors"
HEADS = ("action_head", "proprio_projector")  # components that are modules of the same name
NAMED_IN_ERRORS = 8  # keys
STORED_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def read_config(folder: ModelFolder, architecture: dict[str, Any] | None = None) -> OpenVLAConfig:
    """The config of a folder, completed by what its files show.

    An action head makes it oft-l1; a proprio projector switches proprio on and gives its width;
    a FiLM backbone switches FiLM on. config.json and then `architecture` have the last word.

    Raises:
        ModelFolderError: fields missing, impossible, or unknown.
    """
    stated = {**read_json(folder.path / "config.json"), **(architecture or {})}
    shown: dict[str, Any] = {}
    if "action_head" in folder.components:
        shown["variant"] = "oft-l1"
    if "noisy_action_projector" in folder.components and not stated.get("variant"):
        raise ModelFolderError(
            f"{folder.path} holds a diffusion head ({component_name('noisy_action_projector', '*')}"
            "); it is not served. Use the L1 or the discrete checkpoint"
        )
    if "vision_backbone" in folder.components:
        shown["use_film"] = True
    if "proprio_projector" in folder.components:
        shown["use_proprio"] = True
        fc1 = read_component(folder.components["proprio_projector"]).get("fc1.weight")
        if fc1 is not None and fc1.ndim == 2:
            shown["proprio_dim"] = fc1.shape[1]
    shown = {key: value for key, value in shown.items() if stated.get(key) in (None, "")}
    try:
        config = OpenVLAConfig.from_folder(folder.path, **{**shown, **(architecture or {})})
        config.llama_config()
    except ModelFolderError:
        raise
    except (TypeError, ValueError, AttributeError, StrictDataclassError) as error:
        raise ModelFolderError(
            f"{folder.path / 'config.json'} or the stated architecture holds a value of the wrong "
            f"kind: {' '.join(str(error).split())}"
        ) from error
    return config


def load_model(
    path: Path,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    **architecture: Any,
) -> PolicyNetwork:
    """Load a published OpenVLA or OpenVLA-OFT folder, weights cast to `dtype`, in eval mode.

    Args:
        path: the model folder.
        architecture: config fields that replace the file's (`variant`, `num_images`, ...).

    Raises:
        ModelFolderError: files or keys missing, unexpected, mis-shaped, damaged or not finite.
    """
    folder = ModelFolder.open(Path(path))
    config = read_config(folder, architecture)
    model, components = check_folder(folder, config)
    replaced = frozenset(components)
    wanted = ((key, t) for key, t in stream_tensors(folder) if key not in replaced)
    # Components first: they lie in host memory, which the shards then have to themselves.
    _assign(model, components.items(), dtype, device)
    components.clear()
    _assign(model, wanted, dtype, device)
    if isinstance(model, OpenVLA):
        # Rotary frequencies are computed, not stored: rebuild them off the meta device.
        rotary = LlamaRotaryEmbedding(model.config.llama_config()).to(device)
        model.language_model.model.rotary_emb = rotary
    return model.eval()


def check_folder(
    folder: ModelFolder, config: OpenVLAConfig
) -> tuple[PolicyNetwork, dict[str, Tensor]]:
    """Account for every tensor of a folder; the weights themselves are not read.

    Returns:
        the model on the meta device, and the tensors of the `.pt` files that the config uses,
        under the model's key names. They replace those of the shards.

    Raises:
        ModelFolderError: files or keys missing, unexpected, mis-shaped or damaged.
    """
    with torch.device("meta"):
        model = build_network(config)
    components = _read_components(folder, config)
    found = read_shapes(folder)
    found.update({key: tuple(tensor.shape) for key, tensor in components.items()})
    check_keys(model, found)
    return model, components


def check_keys(model: PolicyNetwork, found: dict[str, tuple[int, ...]]) -> None:
    """Raises ModelFolderError unless `found` (key -> shape) is exactly what the model holds."""
    wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    missing = sorted(set(wanted) - set(found))
    unexpected = sorted(set(found) - set(wanted))
    misshaped = [
        f"{key}: expected {wanted[key]}, got {found[key]}"
        for key in sorted(set(wanted) & set(found))
        if wanted[key] != found[key]
    ]
    if missing or unexpected or misshaped:
        raise ModelFolderError(
            "the weights do not fit the config: "
            f"{len(missing)} missing {missing[:NAMED_IN_ERRORS]}, "
            f"{len(unexpected)} unexpected {unexpected[:NAMED_IN_ERRORS]}, "
            f"{len(misshaped)} mis-shaped {misshaped[:NAMED_IN_ERRORS]}. State the fields that "
            "config.json lacks (architecture.*), or fetch the files of one revision"
        )


def _read_components(folder: ModelFolder, config: OpenVLAConfig) -> dict[str, Tensor]:
    """Tensors of the `.pt` files that the config uses, under the model's key names."""
    tensors: dict[str, Tensor] = {}
    used = {"action_head": config.is_regression, "proprio_projector": config.use_proprio}
    for component in HEADS:
        if used[component]:
            file = _component_file(folder, component)
            stored = read_component(file)
            tensors.update({f"{component}.{key}": value for key, value in stored.items()})
    if config.use_film:
        tensors.update(
            read_film_backbone(read_component(_component_file(folder, "vision_backbone")))
        )
    return tensors


def _component_file(folder: ModelFolder, component: str) -> Path:
    if component not in folder.components:
        raise ModelFolderError(
            f"the config needs {component_name(component, '*')} in {folder.path}; components "
            f"there: {sorted(folder.components) or 'none'}"
        )
    return folder.components[component]


def _assign(
    model: PolicyNetwork, tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype, device: str
) -> None:
    """Make `tensors` the model's parameters; the model may live on the meta device."""
    for key, tensor in tensors:
        if tensor.dtype not in STORED_DTYPES:
            raise ModelFolderError(
                f"{key} is stored as {tensor.dtype}: quantised checkpoints are not read; use the "
                f"published one in {', '.join(str(d) for d in STORED_DTYPES)}"
            )
        # The extremes carry any NaN and infinity, and need no tensor-sized intermediate.
        if not all(bound.isfinite() for bound in torch.aminmax(tensor)):
            raise ModelFolderError(
                f"{key} holds NaN or infinity: the checkpoint is damaged; fetch it again, or take "
                "an earlier training step"
            )
        # A copy in any case: the file stays mapped no longer than it is read.
        placed = tensor.to(device=device, dtype=dtype, copy=True)
        owner, _, leaf = key.rpartition(".")
        module = model.get_submodule(owner)
        setattr(module, leaf, torch.nn.Parameter(placed, requires_grad=False))


def save_model(model: PolicyNetwork, path: Path, step: int, shard_bytes: int | None = None) -> None:
    """Write weights (bfloat16), config and statistics in the published layout.

    The tokenizer and the model card are written by whoever made them.

    Args:
        step: training step, part of the components' published file names.
        shard_bytes: largest size of a weight file; None writes one file.
    """
    path.mkdir(parents=True, exist_ok=True)
    config = model.config
    _write_json(path / "config.json", config.to_dict())
    _write_json(path / "dataset_statistics.json", config.norm_stats)
    stale = [*(component_name(name, "*") for name in COMPONENTS), SINGLE_FILE, INDEX_FILE, SHARDS]
    for file in [file for pattern in stale for file in path.glob(pattern)]:
        file.unlink()
    state = {
        key: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for key, tensor in sorted(model.state_dict().items())
    }
    for component in HEADS:
        prefix = f"{component}."
        part = {key: state.pop(key) for key in list(state) if key.startswith(prefix)}
        _write_component(
            path, component, step, {f"module.{k.removeprefix(prefix)}": v for k, v in part.items()}
        )
    if config.use_film:
        _write_component(path, "vision_backbone", step, write_film_backbone(state))
        state = {key: tensor for key, tensor in state.items() if ".film." not in key}
    _write_shards(path, state, shard_bytes)


def _write_component(path: Path, component: str, step: int, tensors: dict[str, Tensor]) -> None:
    if tensors:
        torch.save(tensors, path / component_name(component, step))


def _write_shards(path: Path, state: dict[str, Tensor], shard_bytes: int | None) -> None:
    metadata = {"format": "pt"}
    if shard_bytes is None:
        save_file(state, path / SINGLE_FILE, metadata=metadata)
        return
    shards: list[dict[str, Tensor]] = [{}]
    for key, tensor in state.items():
        held = sum(t.nbytes for t in shards[-1].values())
        if shards[-1] and held + tensor.nbytes > shard_bytes:
            shards.append({})
        shards[-1][key] = tensor
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = SHARDS.replace("*", f"{number:05d}-of-{len(shards):05d}")
        save_file(shard, path / name, metadata=metadata)
        weight_map.update(dict.fromkeys(shard, name))
    total = sum(tensor.nbytes for tensor in state.values())
    _write_json(path / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
