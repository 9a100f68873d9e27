"""A run's folder: its lock, its configuration, and whether it is finished.

state.json holds what the supervisor alone knows: its sessions, their restarts, the settings that
the run was begun with.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy.local.placement import BadSetting, make_socket_folder, socket_folder
from deploy.local.settings import RunConfig

# What may differ when a run is resumed: it changes neither the numbers nor the files.
STATE_NAME = "state.json"
KEEP_S = 5.0
FREE_SECTIONS = (
    "run_dir",
    "report",
    "probe",
    "probe_rate_hz",
    "restart_limit",
    "restart_backoff_s",
    "stop_limit_s",
    "ready_limit_s",
)


class RunFolder:
    """One run's folder. Raises BadSetting wherever it cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state: dict[str, Any] = {}
        self._session: dict[str, Any] = {}

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder for this process, making it if needed."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise BadSetting(
                f"run_dir: cannot write to {self.path} ({error.strerror}); "
                "choose another run_dir=FOLDER"
            ) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BadSetting(
                    f"{self.path} is in use by another run; stop that, or choose another run_dir"
                ) from error
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def sockets(self) -> Iterator[None]:
        """The private folder of the run's sockets, made anew and removed at the end.

        What a killed run left there is removed first; hold the lock.
        """
        folder = socket_folder(self.path)
        make_socket_folder(folder)  # refuses what is not ours before it is touched
        for leftover in folder.iterdir():
            leftover.unlink()
        try:
            yield
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def client_logs(self, workers: int) -> list[Path]:
        """The simulator workers' logs of answered episode ends."""
        return [self.path / f"sim-{index}" / "client.jsonl" for index in range(workers)]

    def is_finished(self) -> bool:
        """Whether an earlier start of the run came to its end."""
        return bool(read_state(self.path).get("finished"))

    def prepare(self, config: RunConfig, versions: dict[str, str]) -> bool:
        """Writes the configuration and opens a session; True if the run was begun before.

        Raises BadSetting if it was begun with other settings.
        """
        from omegaconf import OmegaConf

        settings = {k: v for k, v in config.tree.items() if k not in FREE_SECTIONS}
        self._state = read_state(self.path)
        is_resumed = bool(self._state)
        if is_resumed:
            self._refuse_changes(self._state["settings"], settings)
        for name in ("config", "logs"):
            (self.path / name).mkdir(exist_ok=True)
        for name, values in {"run": config.tree, **config.processes}.items():
            OmegaConf.save(OmegaConf.create(values), self.path / "config" / f"{name}.yaml")
        now_s = time.time()
        self._session = {"began_unix_s": now_s, "ended_unix_s": now_s, "restarts": {}}
        sessions = [*self._state.get("sessions", []), self._session]
        self._state = {"settings": settings, "versions": versions, "sessions": sessions}
        self._save()
        return is_resumed

    def keep(self, restarts: dict[str, int], *, finished: bool = False) -> None:
        """Notes that the session still lasts; writes every few seconds, and when it is finished."""
        now_s = time.time()
        if finished or now_s - self._session["ended_unix_s"] >= KEEP_S:
            self._session |= {"ended_unix_s": now_s, "restarts": restarts}
            self._state["finished"] = finished
            self._save()

    def _save(self) -> None:
        """Replaces state.json, so that a reader sees the old content or the new."""
        partial = self.path / "state.json.partial"
        partial.write_text(json.dumps(self._state, indent=1) + "\n")
        partial.replace(self.path / STATE_NAME)

    def _refuse_changes(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        old, new = flatten(before), flatten(json.loads(json.dumps(now)))
        # A key that only one of them has came or went with a release: that must not end the run.
        changed = sorted(key for key in old.keys() & new.keys() if old[key] != new[key])
        if changed:
            key = changed[0]
            raise BadSetting(
                f"{self.path} was begun with {key}={old[key]}, not {new[key]}"
                + (f" (and {len(changed) - 1} more differ)" if len(changed) > 1 else "")
                + "; resume it with the same settings, or choose another run_dir=FOLDER"
            )


def read_state(run_dir: Path) -> dict[str, Any]:
    """The run's state.json; empty if there is none. Raises BadSetting if it is not one of ours."""
    path = run_dir / STATE_NAME
    try:
        state = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BadSetting(f"{path} cannot be read ({error}); choose another run_dir") from error
    if not isinstance(state, dict) or "sessions" not in state:
        raise BadSetting(f"{path} is no run's state; choose another run_dir")
    return state


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value for a tree of dicts; lists are values."""
    if not isinstance(node, dict):
        return {prefix: node}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
