"""Adapter versions outside the store: plain PEFT folders that still know where they come from."""

import json
import shutil
from pathlib import Path

from agent.adapters import MANIFEST_NAME, AdapterCorrupt, AdapterStore, Manifest, verify_copy
from agent.durable import new_folder, storage_errors
from agent.records import from_json
from agent.wire.errors import ConfigError, WireError

EXPORTED_MANIFEST_NAME = "perennial-manifest.json"
PEFT_CONFIG_NAME = "adapter_config.json"


def export_version(store: AdapterStore, version: str, out: Path, base_name: str) -> None:
    """Copy a verified version to the new folder `out`, in the layout that stock PEFT loads.

    Args:
        base_name: what adapter_config.json is to name as the base, a path or a hub id; "" leaves
            it open.

    Raises:
        UnknownAdapter, AdapterCorrupt: no such version, or not as it was published.
        ConfigError: `out` exists.
        StorageError: the disk refused; nothing is left at `out`.
    """
    folder = store.verify(version)
    if out.is_symlink() or out.exists():
        raise ConfigError(f"{out} exists: name a new folder, nothing is overwritten")
    with new_folder(out) as temporary:
        for path in folder.iterdir():
            name = EXPORTED_MANIFEST_NAME if path.name == MANIFEST_NAME else path.name
            shutil.copyfile(path, temporary / name)
        _name_base(temporary / PEFT_CONFIG_NAME, base_name)


def read_origin(folder: Path) -> Manifest | None:
    """The manifest of a version, stored or copied (verified), or of an exported one; else None.

    Raises:
        AdapterCorrupt: the version is not as it was published, or its manifest is unreadable.
    """
    if (folder / MANIFEST_NAME).exists():
        return verify_copy(folder)
    exported = folder / EXPORTED_MANIFEST_NAME
    if not exported.exists():
        return None
    try:
        with storage_errors(exported):
            return from_json(Manifest, exported.read_bytes(), EXPORTED_MANIFEST_NAME)
    except WireError as error:
        raise AdapterCorrupt(f"{exported} is unreadable: {error}") from error


def _name_base(path: Path, base_name: str) -> None:
    if base_name:
        values = {
            **json.loads(path.read_text(encoding="utf-8")),
            "base_model_name_or_path": base_name,
        }
        path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
