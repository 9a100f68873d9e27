"""The files of a published model folder, and strict reading of each kind.

config.json, dataset_statistics.json, preprocessor_config.json, tokenizer.json
model.safetensors, or shards and model.safetensors.index.json
action_head--<step>_checkpoint.pt            oft-l1
proprio_projector--<step>_checkpoint.pt      with proprio
vision_backbone--<step>_checkpoint.pt        with FiLM: replaces the towers
noisy_action_projector--<step>_checkpoint.pt diffusion, which is recognised and refused
lora_adapter/                                what training merged into the weights
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from agent.model.config import read_json
from agent.model.errors import ModelFolderError
from agent.process.stand_ins import describe_stand_in

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
COMPONENTS = ("action_head", "proprio_projector", "noisy_action_projector", "vision_backbone")
ADAPTER_FOLDER = "lora_adapter"


def component_name(component: str, step: int | str) -> str:
    """The published file name of a component at a training step."""
    return f"{component}--{step}_checkpoint.pt"


@dataclass(frozen=True)
class ModelFolder:
    """What is there. Nothing but names has been read.

    shards: safetensors files, the keys of each known only to the file itself.
    components: component -> file.
    """

    path: Path
    shards: tuple[Path, ...]
    components: dict[str, Path]
    has_adapter: bool

    @classmethod
    def open(cls, path: Path) -> "ModelFolder":
        """Look which files there are.

        Raises:
            ModelFolderError: no config, no usable weights, two files of one component, or a link
                that leads nowhere.
        """
        _refuse_broken_links(path)
        if not (path / "config.json").exists():
            raise ModelFolderError(
                f"{path / 'config.json'} does not exist: expected an OpenVLA folder"
            )
        components = {}
        for component in COMPONENTS:
            files = sorted(path.glob(component_name(component, "*")))
            if len(files) > 1:
                raise ModelFolderError(
                    f"{path} holds {[file.name for file in files]}: keep the one step that the "
                    "weights belong to"
                )
            if files:
                components[component] = files[0]
        has_adapter = (path / ADAPTER_FOLDER).is_dir()
        return cls(path, tuple(_find_shards(path, has_adapter)), components, has_adapter)


def _refuse_broken_links(path: Path) -> None:
    for file in sorted(path.iterdir()) if path.is_dir() else []:
        if file.is_symlink() and not file.exists():
            raise ModelFolderError(f"{file} {describe_stand_in(file)}")


def _find_shards(path: Path, has_adapter: bool) -> list[Path]:
    is_sharded = (path / INDEX_FILE).exists()
    if (path / SINGLE_FILE).exists():
        if is_sharded:
            raise ModelFolderError(
                f"{path} holds both {SINGLE_FILE} and {INDEX_FILE}: remove the one that is stale"
            )
        return [path / SINGLE_FILE]
    if is_sharded:
        weight_map = read_json(path / INDEX_FILE).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelFolderError(f"{path / INDEX_FILE} lacks weight_map; fetch it again")
        names = sorted({str(name) for name in weight_map.values()})
        for name in names:
            if Path(name).name != name or not (path / name).is_file():
                raise ModelFolderError(
                    f"{path / INDEX_FILE} names {name!r}, which is not there; fetch it"
                )
        return [path / name for name in names]
    ways_out = ""
    if any(path.glob("pytorch_model*.bin")):
        ways_out = "; pickled weights are never loaded: convert them to safetensors"
    elif has_adapter:
        ways_out = f"; merge {ADAPTER_FOLDER} into its base first: perennial model merge"
    raise ModelFolderError(f"{path} holds neither {SINGLE_FILE} nor {INDEX_FILE}{ways_out}")


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except OSError as error:  # the library says of any such file that it is not there
        what = "is not there" if not file.exists() else "cannot be read by this user"
        raise ModelFolderError(f"{file} {what}: put it there, and make it readable") from error


@contextmanager
def open_shard(file: Path) -> Iterator[Any]:
    """A safetensors file for reading. Raises ModelFolderError when it is damaged."""
    try:
        with _open(file) as shard:
            yield shard
    except SafetensorError as error:
        what = describe_stand_in(file) or (
            f"is damaged or incomplete ({file.stat().st_size:,} bytes): fetch it again"
        )
        raise ModelFolderError(f"{file} {what}") from error


def read_shapes(folder: ModelFolder) -> dict[str, tuple[int, ...]]:
    """Key -> shape of every stored tensor, from the files' headers alone.

    Raises:
        ModelFolderError: a damaged shard, a key in two shards, or an index that disagrees.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in folder.shards:
        with open_shard(file) as shard:
            found = {key: tuple(shard.get_slice(key).get_shape()) for key in shard.keys()}  # noqa: SIM118
        twice = sorted(set(found) & set(shapes))
        if twice:
            raise ModelFolderError(
                f"{file} repeats keys of another shard: {twice[:8]}; fetch the shards again"
            )
        shapes.update(found)
    if folder.shards[0].name != SINGLE_FILE:
        differing = sorted(set(shapes) ^ set(read_json(folder.path / INDEX_FILE)["weight_map"]))
        if differing:
            raise ModelFolderError(
                f"{folder.path / INDEX_FILE} and its shards differ in {differing[:8]}; fetch "
                "the index and the shards of one revision"
            )
    return shapes


def stream_tensors(folder: ModelFolder) -> Iterator[tuple[str, Tensor]]:
    """Every stored tensor, one at a time, mapped from its file: copy what outlives the step.

    The pages of a file stay mapped while it is read, so no more than one file is in host memory.
    """
    for file in folder.shards:
        with open_shard(file) as shard:
            for key in shard.keys():  # noqa: SIM118 - no mapping
                yield key, shard.get_tensor(key)


def read_component(file: Path) -> dict[str, Tensor]:
    """Tensors of a `.pt` file; the `module.` that DistributedDataParallel writes is taken off.

    Raises:
        ModelFolderError: no plain dictionary of tensors. Nothing else is ever unpickled.
    """
    # Mapped, not read: a look at the shapes alone costs nothing.
    stored = load_saved(file, mmap=is_zipfile(file))
    if not isinstance(stored, dict) or not all(_is_plain(v) for v in stored.values()):
        raise ModelFolderError(
            f"{file} must hold a dictionary of dense tensors: save the module's state dict"
        )
    tensors = {str(key).removeprefix("module."): value for key, value in stored.items()}
    if len(tensors) != len(stored):
        twice = sorted(key for key in tensors if f"module.{key}" in stored and key in stored)
        raise ModelFolderError(
            f"{file} holds keys with and without `module.`: {twice[:8]}; keep one of each"
        )
    return tensors


def load_saved(file: Path, mmap: bool = False) -> Any:
    """What `torch.save` wrote: tensors, numbers and text in plain containers.

    Raises:
        ModelFolderError: damaged, or holding anything else, which is never unpickled.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle makes the unpickler raise nearly anything
        if what := describe_stand_in(file):
            raise ModelFolderError(f"{file} {what}") from error
        # The library's text advises to unpickle whatever it is; only the name in it is of use.
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        held = f" ({foreign[1]})" if foreign else f" ({file.stat().st_size:,} bytes)"
        raise ModelFolderError(
            f"{file} is damaged or holds more than tensors{held}, and is not loaded. Fetch it "
            "again; a file that holds other objects must be saved anew as a plain state dict"
        ) from error


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def hash_folder(path: Path, architecture: dict[str, Any] | None = None) -> str:
    """SHA-256 (hex) of all that decides the policy's answers.

    Args:
        architecture: the config fields stated beside the folder; {} hashes the files alone.
    """
    patterns = ("*.json", "*.safetensors", "*_checkpoint.pt")
    files = sorted({file for pattern in patterns for file in path.glob(pattern)})
    if not files:
        raise ModelFolderError(f"{path} holds no model files")
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.name} {content}\n".encode())
    if architecture:
        digest.update(json.dumps(architecture, sort_keys=True).encode())
    return digest.hexdigest()
