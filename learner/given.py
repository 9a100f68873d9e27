"""An adapter of another run, measured in place of the base: on other suites, or at another scale.

It becomes version 1 of the run's own store, to which row 0 is pinned. Nothing is trained from it: a
run's tasks begin at the base, and its updates are numbered from 1.
"""

import json
from pathlib import Path

from agent.adapter_export import read_origin
from agent.adapters import AdapterStore
from agent.model import action_scale
from agent.model.lora import CONFIG_NAME, WEIGHTS_NAME, AdapterError, changes_nothing, read_adapter
from agent.wire.errors import ConfigError
from agent.wire.messages import BASE_VERSION

METHOD = "given"  # in the manifest of what was not learned here


def publish_given(folder: str, scale: float, adapters: AdapterStore, base_sha256: str) -> str:
    """The version with which row 0 is measured: the base, or the adapter in `folder` if there is
    one, its update multiplied by `scale`.

    Raises:
        ConfigError: no adapter that can be read, or one of another base.
        AdapterCorrupt: a published version that is not as it was published.
        AdapterConflict: this run has measured another adapter before.
    """
    if not folder:
        return BASE_VERSION
    origin = read_origin(Path(folder))
    if origin is not None and origin.base_sha256 != base_sha256:
        raise ConfigError(
            f"start_adapter: {folder} was trained on base {origin.base_sha256[:12]}, model_dir is "
            f"{base_sha256[:12]}: give the model that it was trained on"
        )
    manifest = adapters.publish(
        1,
        scaled_files(Path(folder), scale),
        parent=BASE_VERSION,
        task="" if origin is None else origin.task,
        base_sha256=base_sha256,
        method=METHOD,
        metrics={"scale": scale},
        mend=True,
    )
    return manifest.version


def scaled_files(folder: Path, scale: float) -> dict[str, bytes]:
    """The files of an adapter whose update is `scale` times as large; byte for byte at scale 1.

    The factor goes into lora_alpha. A learned spread of actions is no update and stays.

    Raises:
        ConfigError: no adapter that can be read.
    """
    try:
        tensors, spec = read_adapter(folder)
    except AdapterError as error:
        raise ConfigError(f"start_adapter: {error}") from error
    if changes_nothing(tensors, spec):
        raise ConfigError(
            f"start_adapter: {folder} changes nothing, its alpha or all of A or B is zero: to "
            "measure the base, drop start_adapter"
        )
    names = (CONFIG_NAME, WEIGHTS_NAME, action_scale.FILE_NAME)
    files = {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}
    if scale != 1.0:
        values = json.loads(files[CONFIG_NAME])
        values["lora_alpha"] *= scale
        files[CONFIG_NAME] = (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()
    return files
