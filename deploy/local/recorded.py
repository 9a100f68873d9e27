"""What a run's folder says of the run itself: its state, and the settings that it has.

The two hold much of each other. Where one is damaged it is made again from the other.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agent.durable import replace_file
from agent.process.errors import ConfigError
from agent.process.json_files import DamagedFile, Misfit, read_json, require_shape
from agent.process.yaml_file import read_yaml
from deploy.local.shapes import EVENT, RESULTS, SETTINGS, STATE, check_results
from deploy.local.tail import JsonTail

STATE_NAME = "state.json"
_FROM_BACKUP = "restore it from a backup, or choose another run_dir=FOLDER"


def write_state(run_dir: Path, state: dict[str, Any]) -> None:
    """Replaces state.json: a reader, or a loss of power, sees the old content or the new.

    Raises StorageError.
    """
    replace_file(run_dir / STATE_NAME, (json.dumps(state, indent=1) + "\n").encode())


def read_state(run_dir: Path) -> dict[str, Any]:
    """What state.json holds. Raises DamagedFile."""
    state: dict[str, Any] = read_json(run_dir / STATE_NAME, STATE, _FROM_BACKUP)
    return state


def rebuild_state(run_dir: Path, damaged: DamagedFile) -> dict[str, Any]:
    """What can be said in place of a state.json that is damaged.

    Settings are those of config/run.yaml, the learner's log says from when to when it ran. Whether
    the run is finished and how often its processes were started again is not known.

    Raises DamagedFile, about state.json, where the settings are damaged as well.
    """
    try:
        settings = read_settings(run_dir)
    except DamagedFile:
        raise damaged from None
    return {"settings": settings, "versions": {}, "sessions": _find_sessions(run_dir)}


def read_settings(run_dir: Path) -> dict[str, Any]:
    """The composition in config/run.yaml. Raises DamagedFile."""
    settings = _read_yaml(run_dir)
    _require_settings(run_dir, settings)
    return settings


def rebuild_settings(run_dir: Path, damaged: DamagedFile) -> dict[str, Any]:
    """The settings that decide a run's numbers, as state.json has them.

    Raises DamagedFile, about config/run.yaml, where state.json is damaged as well.
    """
    try:
        settings: dict[str, Any] = read_state(run_dir)["settings"]
        _require_settings(run_dir, settings)
    except DamagedFile:
        raise damaged from None
    return settings


def read_results(run_dir: Path) -> dict[str, Any]:
    """The learner's results. Raises DamagedFile."""
    results: dict[str, Any] = read_json(
        run_dir / "learner" / "results.json",
        RESULTS,
        "start the run again with the same command: it plays nothing again, and its learner "
        "writes them anew from what it keeps",
        check_results,
    )
    return results


def _read_yaml(run_dir: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    path = run_dir / "config" / "run.yaml"
    try:
        loaded = OmegaConf.to_container(OmegaConf.create(read_yaml(path)[0]), resolve=True)
    except ConfigError as error:
        what = str(error).partition(";")[0].removeprefix("--config: ").removeprefix(str(path))
        raise _damaged(path, f"is damaged: {what.lstrip(':, ')}") from error
    except (OmegaConfBaseException, ValueError, RecursionError) as error:
        raise _damaged(path, "is damaged: its references stand for nothing") from error
    if not isinstance(loaded, dict):
        raise _damaged(path, "is damaged: expected settings, one `key: value` a line")
    return {str(key): value for key, value in loaded.items()}


def _require_settings(run_dir: Path, settings: dict[str, Any]) -> None:
    try:
        require_shape(settings, SETTINGS)
    except Misfit as error:
        raise _damaged(run_dir / "config" / "run.yaml", f"is damaged: {error}") from error


def _damaged(path: Path, what: str) -> DamagedFile:
    return DamagedFile(f"{path} {what}", _FROM_BACKUP)


def _find_sessions(run_dir: Path) -> list[dict[str, Any]]:
    """One, from the learner's first to its last line."""
    try:
        lines = JsonTail(run_dir / "learner" / "progress.jsonl", EVENT).read()
    except OSError:
        return []  # who reads more of it says so
    stamps_s = [line["unix_s"] for line in lines]
    if not stamps_s:
        return []
    return [{"began_unix_s": min(stamps_s), "ended_unix_s": max(stamps_s), "restarts": {}}]
