"""The published model folder: config, safetensors (single or sharded), proprio projector.

Keys are accounted for strictly: a folder that lacks, adds or re-shapes one tensor is refused.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from agent.model.config import ModelFolderError, OpenVLAConfig
from agent.model.openvla import OpenVLA

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PROPRIO_PATTERN = "proprio_projector--*_checkpoint.pt"
PROPRIO_PREFIX = "proprio_projector."


def load_model(
    folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu", **overrides: Any
) -> OpenVLA:
    """Load a published OpenVLA-OFT folder, weights cast to `dtype`, in eval mode.

    Args:
        folder: the model folder.
        overrides: config fields that replace the file's (`num_images`, `keep_stop_token`, ...).

    Raises:
        ModelFolderError: files or keys missing, unexpected or mis-shaped.
    """
    folder = Path(folder)
    if any(folder.glob("vision_backbone--*_checkpoint.pt")):
        raise ModelFolderError(f"{folder} holds a FiLM vision backbone, which is not supported")
    config = OpenVLAConfig.from_folder(folder, **overrides)
    with torch.device("meta"):
        model = OpenVLA(config)
    state = read_weights(folder)
    if config.use_proprio:
        state.update(read_proprio_projector(folder))
    load_weights(model, {k: v.to(device=device, dtype=dtype) for k, v in state.items()})
    return model.eval()


def load_weights(model: OpenVLA, state: dict[str, Tensor]) -> None:
    """Make `state` the model's parameters; the model may live on the meta device.

    Raises:
        ModelFolderError: the keys or shapes are not exactly the model's.
    """
    wanted = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    missing = sorted(set(wanted) - set(state))
    unexpected = sorted(set(state) - set(wanted))
    misshaped = [
        f"{k}: expected {wanted[k]}, got {tuple(state[k].shape)}"
        for k in sorted(set(wanted) & set(state))
        if wanted[k] != tuple(state[k].shape)
    ]
    if missing or unexpected or misshaped:
        raise ModelFolderError(
            "the weights do not fit the config: "
            f"{len(missing)} missing {missing[:8]}, {len(unexpected)} unexpected "
            f"{unexpected[:8]}, {len(misshaped)} mis-shaped {misshaped[:8]}"
        )
    model.load_state_dict(state, assign=True)
    # Rotary frequencies are computed, not stored: rebuild them off the meta device.
    device = next(iter(state.values())).device
    rotary = LlamaRotaryEmbedding(model.config.llama_config()).to(device)
    model.language_model.model.rotary_emb = rotary


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Tensors of `model.safetensors`, or of every shard the index names.

    Raises:
        ModelFolderError: no weights, or the index disagrees with the shards.
    """
    if (folder / SINGLE_FILE).exists():
        return load_file(folder / SINGLE_FILE)
    if not (folder / INDEX_FILE).exists():
        raise ModelFolderError(f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}")
    index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
    weight_map: dict[str, str] = index["weight_map"]
    state: dict[str, Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or not (folder / shard).exists():
            raise ModelFolderError(f"{folder / INDEX_FILE} names {shard!r}, which is not there")
        state.update(load_file(folder / shard))
    if set(state) != set(weight_map):
        differing = sorted(set(state) ^ set(weight_map))
        raise ModelFolderError(f"{INDEX_FILE} and its shards differ in {differing[:8]}")
    return state


def read_proprio_projector(folder: Path) -> dict[str, Tensor]:
    """The proprio projector's tensors under the model's key names.

    Raises:
        ModelFolderError: not exactly one projector file.
    """
    files = sorted(folder.glob(PROPRIO_PATTERN))
    if len(files) != 1:
        raise ModelFolderError(
            f"use_proprio needs exactly one {PROPRIO_PATTERN} in {folder}, got "
            f"{[f.name for f in files]}"
        )
    stored = torch.load(files[0], map_location="cpu", weights_only=True)
    return {PROPRIO_PREFIX + k.removeprefix("module."): v for k, v in stored.items()}


def hash_folder(folder: Path) -> str:
    """SHA-256 (hex) over the names and contents of all files that decide the policy's answers."""
    patterns = ("*.json", "*.safetensors", "*_checkpoint.pt")
    files = sorted({file for pattern in patterns for file in folder.glob(pattern)})
    if not files:
        raise ModelFolderError(f"{folder} holds no model files")
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.name} {content}\n".encode())
    return digest.hexdigest()


def save_model(model: OpenVLA, folder: Path, step: int) -> None:
    """Write weights (bfloat16), config and statistics in the published layout.

    The tokenizer and the model card are written by whoever made them.

    Args:
        step: training step, part of the proprio projector's published file name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config
    _write_json(folder / "config.json", config.to_dict())
    _write_json(folder / "dataset_statistics.json", config.norm_stats)
    state = {
        k: v.detach().to("cpu", torch.bfloat16).contiguous()
        for k, v in sorted(model.state_dict().items())
    }
    proprio = {k: state.pop(k) for k in list(state) if k.startswith(PROPRIO_PREFIX)}
    save_file(state, folder / SINGLE_FILE, metadata={"format": "pt"})
    for stale in folder.glob(PROPRIO_PATTERN):
        stale.unlink()
    if proprio:
        published = {"module." + k.removeprefix(PROPRIO_PREFIX): v for k, v in proprio.items()}
        torch.save(published, folder / PROPRIO_PATTERN.replace("*", str(step)))


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
