"""Everything a learner needs to go on: weights, optimiser, RNG, memory, place in the sequence.

A checkpoint is a folder of safetensors files (a critic's and a continual method's only where there
is something to remember) and one JSON file. It is written under another name, synced and renamed;
its SHA-256 is committed by the store afterwards, and a folder the store does not name is discarded
at the next start.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from agent.durable import (
    make_folder,
    may_be_read_later,
    storage_errors,
    sync_folder,
    write_synced,
)
from agent.wire.errors import PerennialError

SCHEMA_VERSION = 1
ADAPTER_FILE = "adapter.safetensors"
CRITIC_FILE = "critic.safetensors"
CONTINUAL_FILE = "continual.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
FILES = (ADAPTER_FILE, OPTIMIZER_FILE, STATE_FILE)
OPTIONAL_FILES = (CRITIC_FILE, CONTINUAL_FILE)
RNG_KEY = "torch_rng_state"
_OURS = re.compile(r"update-\d+|\.update-\d+\.partial")  # anything else in the folder stays


class CheckpointError(PerennialError):
    """A checkpoint cannot be used; the message names the file, what was expected and what is."""


class CheckpointDamaged(CheckpointError):
    """Its files are not those that were committed."""


@dataclass(frozen=True)
class Place:
    """Where in the sequence of tasks a learner is.

    `iteration` counts finished iterations of task `task_index`; `groups_used` and `episodes` count
    within that task, `update_id` over the whole run.
    """

    update_id: int = 0
    task_index: int = 0
    iteration: int = 0
    groups_used: int = 0
    episodes: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """Adapter and optimiser tensors by name, torch's RNG state u8[N], place, and the settings.

    `settings` are the configuration values that must not change on resume. `critic` is empty for a
    method without one, `continual` for one that remembers nothing; both belong to the learner alone
    and are never published.
    """

    place: Place
    adapter: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    torch_rng: Tensor
    settings: dict[str, Any]
    critic: Mapping[str, Tensor] = field(default_factory=dict)
    continual: Mapping[str, Tensor] = field(default_factory=dict)


class CheckpointFolder:
    """The checkpoints of one learner under `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        with storage_errors(root):
            make_folder(root)

    def save(self, checkpoint: Checkpoint) -> tuple[str, str]:
        """Write durably; returns the folder's name and the SHA-256 of its content.

        An uncommitted folder of the same name is replaced.
        """
        name = f"update-{checkpoint.place.update_id:05d}"
        state = {
            "schema": SCHEMA_VERSION,
            "place": asdict(checkpoint.place),
            "settings": checkpoint.settings,
        }
        optimizer = {**checkpoint.optimizer, RNG_KEY: checkpoint.torch_rng}
        files = {
            ADAPTER_FILE: save_tensors(_contiguous(checkpoint.adapter)),
            OPTIMIZER_FILE: save_tensors(_contiguous(optimizer)),
            STATE_FILE: json.dumps(state, indent=1, sort_keys=True).encode(),
        }
        optional = (checkpoint.critic, checkpoint.continual)
        for file, tensors in zip(OPTIONAL_FILES, optional, strict=True):
            if tensors:
                files[file] = save_tensors(_contiguous(tensors))
        partial, final = self.root / f".{name}.partial", self.root / name
        with storage_errors(final):
            for stale in (partial, final):
                if stale.exists():
                    shutil.rmtree(stale)
            partial.mkdir()
            for file, content in files.items():
                write_synced(partial / file, content)
            sync_folder(partial)
            partial.rename(final)
            sync_folder(self.root)
        return name, content_hash(files)

    def load(self, name: str, sha256: str) -> Checkpoint:
        """Read the checkpoint that the store committed under this hash.

        Raises:
            CheckpointDamaged: a file is missing or altered.
            CheckpointError: it is of another schema.
            StorageError: it cannot be read just now.
        """
        folder = self.root / name
        try:
            present = [file for file in OPTIONAL_FILES if (folder / file).exists()]
            files = {file: (folder / file).read_bytes() for file in (*FILES, *present)}
        except OSError as error:
            if may_be_read_later(error):
                with storage_errors(folder):
                    raise
            raise CheckpointDamaged(
                f"checkpoint {folder} is committed but unreadable: {error.strerror}"
            ) from error
        if content_hash(files) != sha256:
            raise CheckpointDamaged(
                f"checkpoint {folder} was altered: expected sha256 {sha256[:12]}, got "
                f"{content_hash(files)[:12]}"
            )
        state = json.loads(files[STATE_FILE])
        if state["schema"] != SCHEMA_VERSION:
            raise CheckpointError(
                f"checkpoint {folder} has schema {state['schema']}, expected {SCHEMA_VERSION}"
            )
        optimizer = load_tensors(files[OPTIMIZER_FILE])
        rng = optimizer.pop(RNG_KEY)
        adapter = load_tensors(files[ADAPTER_FILE])
        critic, continual = (
            load_tensors(files[file]) if file in files else {} for file in OPTIONAL_FILES
        )
        place = Place(**state["place"])
        return Checkpoint(place, adapter, optimizer, rng, state["settings"], critic, continual)

    def keep_only(self, *names: str) -> list[str]:
        """Delete every other checkpoint, half-written ones too; returns what was deleted.

        Raises:
            StorageError: the disk refused.
        """
        with storage_errors(self.root):
            held = sorted(path.name for path in self.root.iterdir() if _OURS.fullmatch(path.name))
            discarded = [each for each in held if each not in names]
            for stale in discarded:
                path = self.root / stale
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        return discarded


def content_hash(files: Mapping[str, bytes]) -> str:
    """SHA-256 over the sorted (name, SHA-256 of content) list of a folder."""
    whole = hashlib.sha256()
    for name in sorted(files):
        whole.update(f"{name} {hashlib.sha256(files[name]).hexdigest()}\n".encode())
    return whole.hexdigest()


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The optimiser's state as f"{parameter name}/{state name}" -> tensor."""
    return {
        f"{name}/{key}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
) -> None:
    """Put the tensors of `optimizer_tensors` back.

    Raises:
        CheckpointError: a tensor belongs to no parameter.
    """
    for key, value in tensors.items():
        name, _, state_name = key.rpartition("/")
        if name not in parameters:
            raise CheckpointError(f"optimiser state {key} belongs to no trained parameter")
        # The optimiser keeps its step count on the CPU wherever the parameter is.
        device = value.device if state_name == "step" else parameters[name].device
        optimizer.state[parameters[name]][state_name] = value.to(device, copy=True)


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
