"""A model folder with an adapter merged into its weights, written without loading the model.

Safetensors files are copied and then changed in place, one tensor at a time: W + scale * B A,
summed in float32 and rounded once to the stored type.
"""

import json
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agent.durable import new_folder
from agent.model.adapter_config import AdapterError, LoraSpec
from agent.model.checkpoint import check_folder, read_config
from agent.model.config import read_json
from agent.model.errors import ModelFolderError
from agent.model.film import read_film_backbone, write_film_backbone
from agent.model.folder import ModelFolder, open_shard, read_component
from agent.model.lora import (
    KEY_PREFIX,
    changes_nothing,
    check_pair,
    is_dead,
    is_same_weight,
    lora_targets,
    pair_adapter_tensors,
    read_adapter,
)
from agent.model.network import PolicyNetwork

COPY_BLOCK_BYTES = 16 << 20
HEADER_LENGTH = struct.Struct("<Q")  # of a safetensors file, before its JSON header
STALE_WEIGHTS = ".bin"
"""Pickled copies of the weights, which would no longer be the same."""


@dataclass(frozen=True)
class Merged:
    """What was merged: modules, and the adapter's modules that were left out as never run."""

    modules: int
    dead: int


def merge_adapter(
    base: Path,
    adapter: Path,
    out: Path,
    architecture: dict[str, Any] | None = None,
    *,
    leave_out: Iterable[str] = (),
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Merged:
    """Write `base` with `adapter` merged in, as the new folder `out`.

    Args:
        architecture: config fields that the base's files do not show; they are written into the
            new config.json.
        leave_out: components (`action_head`, ...) that the new folder is not to have.
        report: called with bytes written and bytes in all.

    Raises:
        ModelFolderError: the base is unusable, or `out` exists.
        AdapterError: the adapter does not fit the base, or its values overflow it.
        StorageError: the disk refused; nothing is left at `out`.
    """
    if out.is_symlink() or out.exists():
        raise ModelFolderError(f"{out} exists: name a new folder, nothing is overwritten")
    folder = ModelFolder.open(base)
    config = read_config(folder, architecture)
    model, components = check_folder(folder, config)
    merge, merged = _plan(model, folder, set(components), adapter)
    with new_folder(out) as temporary:
        _write_folder(folder, merge, temporary, leave_out, report)
        if architecture:
            _state_fields(temporary, architecture)
    return merged


@dataclass(frozen=True)
class _Merge:
    """Pairs by module name, of the shards and of the FiLM backbone."""

    spec: LoraSpec
    shards: dict[str, tuple[Tensor, Tensor]]
    backbone: dict[str, tuple[Tensor, Tensor]]

    def apply(self, module: str, weight: Tensor, pair: tuple[Tensor, Tensor]) -> Tensor:
        """W + scale * B A in the type of W."""
        a, b = pair
        factors = b.float().flatten(1), a.float().flatten(1)
        summed = torch.addmm(weight.float().flatten(1), *factors, alpha=self.spec.scale)
        changed = summed.view_as(weight).to(weight.dtype)
        if not torch.isfinite(changed).all():
            raise AdapterError(f"merged into {module}, the adapter overflows {weight.dtype}")
        return changed


def _plan(
    model: PolicyNetwork, folder: ModelFolder, replaced: set[str], adapter: Path
) -> tuple[_Merge, Merged]:
    """Check the adapter against the model; `replaced` are keys that a `.pt` file holds."""
    tensors, spec = read_adapter(adapter)
    copies = {key: tensor for key, tensor in tensors.items() if ".lora_" not in key}
    factors = {key: tensor for key, tensor in tensors.items() if key not in copies}
    _check_copies(folder, copies)
    if changes_nothing(factors, spec):
        raise AdapterError(
            f"{adapter} changes nothing, its alpha or all of A or B is zero: the merged folder "
            "would be the base again"
        )
    pairs = pair_adapter_tensors(model, lora_targets(model), factors, spec)
    for name, (a, b) in pairs.items():
        check_pair(name, a, b, model.get_submodule(name).weight, spec.rank)
    in_backbone = {name for name in pairs if f"{name}.weight" in replaced}
    merge = _Merge(
        spec,
        {name: pair for name, pair in pairs.items() if name not in in_backbone},
        {name: pair for name, pair in pairs.items() if name in in_backbone},
    )
    named = {key.removeprefix(KEY_PREFIX).partition(".lora_")[0] for key in factors}
    return merge, Merged(len(pairs), sum(is_dead(model, name) for name in named))


def _check_copies(folder: ModelFolder, copies: dict[str, Tensor]) -> None:
    """Base weights that PEFT saved along must be this base's."""
    wanted = {key.removeprefix(KEY_PREFIX).replace(".base_layer.", "."): key for key in copies}
    for file in folder.shards if wanted else ():
        with open_shard(file) as shard:
            for name in wanted.keys() & set(shard.keys()):
                weight, copy = shard.get_tensor(name), copies.pop(wanted[name])
                if not is_same_weight(copy, weight):
                    raise AdapterError(
                        f"adapter stores {name}, which differs from the base's: it was trained on "
                        "another base, or trained that layer whole"
                    )
    if copies:
        raise AdapterError(f"adapter does not fit the model: unknown tensors {sorted(copies)[:6]}")


def _write_folder(
    folder: ModelFolder,
    merge: _Merge,
    out: Path,
    leave_out: Iterable[str],
    report: Callable[[int, int], None],
) -> None:
    dropped = {folder.components[name] for name in leave_out if name in folder.components}
    stale = {file.name for file in folder.path.glob("*.safetensors")} - {
        shard.name for shard in folder.shards
    }
    files = [
        file
        for file in sorted(folder.path.iterdir())
        if file.is_file()
        and not file.name.startswith(".")
        and file not in dropped
        and file.suffix != STALE_WEIGHTS
        and file.name not in stale
    ]
    total, done = sum(file.stat().st_size for file in files), 0
    for file in files:
        with file.open("rb") as source, (out / file.name).open("xb") as target:
            while block := source.read(COPY_BLOCK_BYTES):
                target.write(block)
                done += len(block)
                report(done, total)
        if file in folder.shards:
            _merge_shard(file, out / file.name, merge)
    if merge.backbone:
        _merge_backbone(folder.components["vision_backbone"], out, merge)


def _merge_shard(source: Path, target: Path, merge: _Merge) -> None:
    """Replace the adapted weights in the copy `target` of the shard `source`."""
    with target.open("r+b") as file, open_shard(source) as shard:
        (length,) = HEADER_LENGTH.unpack(file.read(HEADER_LENGTH.size))
        header = json.loads(file.read(length))
        for module in sorted(merge.shards):
            key = f"{module}.weight"
            if key not in header:
                continue
            changed = merge.apply(module, shard.get_tensor(key), merge.shards[module])
            start, end = header[key]["data_offsets"]
            assert changed.nbytes == end - start, f"{key}: {changed.nbytes} bytes for {end - start}"
            file.seek(HEADER_LENGTH.size + length + start)
            file.write(changed.flatten().view(torch.uint8).numpy().data)


def _merge_backbone(source: Path, out: Path, merge: _Merge) -> None:
    """The FiLM backbone's own factors are merged on reading; the file then has none."""
    state = read_film_backbone(read_component(source))
    for module, pair in merge.backbone.items():
        state[f"{module}.weight"] = merge.apply(module, state[f"{module}.weight"], pair)
    (out / source.name).unlink()
    torch.save(write_film_backbone(state), out / source.name)


def _state_fields(out: Path, architecture: dict[str, Any]) -> None:
    path = out / "config.json"
    text = json.dumps({**read_json(path), **architecture}, indent=1, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
