"""A run's folder: its lock, its configuration, and whether it is finished.

state.json holds what the supervisor alone knows: its sessions, their restarts, the settings that
the run was begun with.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agent.durable import LOCK_NAME, make_folder, replace_file, set_aside, take_lock
from agent.process.changes import Difference, explain, find_differences
from agent.process.clock import go_on_from, share_clock, unix_s
from agent.process.json_files import DamagedFile
from agent.process.settings import settings_text
from deploy.local.composition import compose_tree
from deploy.local.overrides import Override, has_value, parse_overrides
from deploy.local.placement import BadSetting, make_socket_folder, socket_folder
from deploy.local.recorded import (
    STATE_NAME,
    read_results,
    read_state,
    rebuild_state,
    write_state,
)
from deploy.local.settings import RunConfig

KEEP_S = 5.0
# What may differ when a run is resumed: it changes neither the numbers nor the files.
FREE_SECTIONS = (
    "run_dir",
    "workers",
    "report",
    "probe",
    "probe_rate_hz",
    "restart_limit",
    "restart_backoff_s",
    "stop_limit_s",
    "ready_limit_s",
    "hang_limit_s",
    "parent_pid",
)
# Models of ours: those that come along, and those that `make nano-baselines` trains.
OWN_MODELS = (
    "agent/assets/nano",
    "agent/assets/nano-libero",
    "runs/nano-scratch/model",
    "runs/nano-cnn/model",
)
OPEN_TABLES = ("agent.tasks.",)  # may get entries at any time: robots' own tasks

log = logging.getLogger(__name__)


class RunFolder:
    """One run's folder. Raises BadSetting wherever it cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state: dict[str, Any] = {}
        self._session: dict[str, Any] = {}
        self._kept_unix_s = 0.0  # as state.json has it

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder for this process, making it if needed.

        A run that could not begin leaves no lock, and no folder that was made for it.
        """
        try:
            made = make_folder(self.path)
            before = set(os.listdir(self.path))
            descriptor = os.open(self.path / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise BadSetting(
                f"run_dir: cannot write to {self.path} ({error.strerror}); "
                "choose another run_dir=FOLDER"
            ) from error
        in_use = f"{self.path} is in use by another run; stop that, or choose another run_dir"
        with hold_lock(descriptor, self.path / LOCK_NAME, in_use):
            try:
                yield
            finally:
                if set(os.listdir(self.path)) - before == {LOCK_NAME}:
                    _remove_lock(self.path, made)

    @contextmanager
    def sockets(self) -> Iterator[None]:
        """The private folder of the run's sockets, made anew and removed at the end.

        What a killed run left there is removed first; hold the lock.
        """
        folder = socket_folder(self.path)
        make_socket_folder(folder)  # refuses what is not ours before it is touched
        for leftover in folder.iterdir():
            if leftover.is_socket():
                leftover.unlink()
        try:
            yield
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def state_path(self) -> Path:
        """What `keep` writes."""
        return self.path / STATE_NAME

    def client_logs(self, workers: int) -> list[Path]:
        """The simulator workers' logs of answered episode ends.

        Also of those that only an earlier start had, which may have run on another machine.
        """
        present = {self.path / f"sim-{index}" / "client.jsonl" for index in range(workers)}
        return sorted(present | set(self.path.glob("sim-*/client.jsonl")))

    def is_finished(self) -> bool:
        """Whether an earlier start of the run came to its end, and its results are whole."""
        if not find_state(self.path).get("finished"):
            return False
        try:
            read_results(self.path)
        except DamagedFile as error:
            log.warning("%s; the run goes on, for its learner to write them anew", error.what)
            return False
        return True

    def prepare(self, config: RunConfig, versions: dict[str, str]) -> bool:
        """Writes the configuration and opens a session; True if the run was begun before.

        Raises BadSetting if it was begun with other settings; those that came or went with a
        release may differ as changes.py says.
        """
        settings = recorded_settings(config)
        self._state = find_state(self.path)
        is_resumed = bool(self._state)
        if is_resumed:
            self._refuse_changes(self._state["settings"], settings, config.overrides)
        files = _settings_files(self.path, config)
        if not is_resumed:
            _refuse_foreign(files)
        for name in ("config", "logs"):
            (self.path / name).mkdir(exist_ok=True)
        sessions = self._state.get("sessions", [])
        go_on_from(max((session["ended_unix_s"] for session in sessions), default=0.0))
        share_clock()
        now_s = unix_s()
        self._session = {"began_unix_s": now_s, "ended_unix_s": now_s, "restarts": {}}
        self._state = {
            "settings": settings,
            "versions": versions,
            "sessions": [*sessions, self._session],
        }
        _set_damaged_aside(self.state_path)
        self._save()  # before the files: they are ours from then on
        for path, values in files.items():
            replace_file(path, settings_text(values).encode())
        return is_resumed

    def withdraw(self, config: RunConfig) -> None:
        """Takes back what `prepare` wrote for a run that then could not begin.

        Else the settings that were refused would have to be kept for ever.
        """
        for path in _settings_files(self.path, config):
            path.unlink(missing_ok=True)
        (self.path / STATE_NAME).unlink(missing_ok=True)  # until now they were ours
        for name in ("config", "logs"):
            with contextlib.suppress(OSError):  # other files in it are not ours to remove
                (self.path / name).rmdir()

    def keep(self, restarts: dict[str, int], *, finished: bool = False) -> None:
        """Notes that the session still lasts; writes every few seconds, and when it is finished.

        Raises StorageError; the next call then tries again.
        """
        now_s = unix_s()
        if finished or now_s - self._kept_unix_s >= KEEP_S:
            self._session |= {"ended_unix_s": now_s, "restarts": restarts}
            self._state["finished"] = finished
            self._save()

    def _save(self) -> None:
        write_state(self.path, self._state)
        self._kept_unix_s = self._session["ended_unix_s"]

    def _refuse_changes(
        self, recorded: dict[str, Any], present: dict[str, Any], overrides: tuple[str, ...]
    ) -> None:
        differences = changed_settings(recorded, present, overrides)
        refused = [d for d in differences if d.kind != "gone"]
        if refused:
            raise BadSetting(
                f"{self.path} was {explain(refused)}; resume it with the same settings, or choose "
                "another run_dir=FOLDER (of setup: --state-dir FOLDER)"
            )
        for gone in (d for d in differences if d.kind == "gone"):
            log.warning(
                "%s was begun with %s=%s, which is set no more; going on without",
                self.path,
                gone.key,
                json.dumps(gone.recorded),
            )


def _settings_files(run_dir: Path, config: RunConfig) -> dict[Path, dict[str, Any]]:
    """A file for the whole composition and one for each process, with what is in it."""
    named = {"run": config.tree, **config.processes}
    return {run_dir / "config" / f"{name}.yaml": values for name, values in named.items()}


@contextmanager
def hold_lock(descriptor: int, path: Path, in_use: str) -> Iterator[None]:
    """Holds the open file `path` for this process and closes it.

    Raises BadSetting if another process does, StorageError where files cannot be locked.
    """
    try:
        if not take_lock(descriptor, path) or not _is_at(descriptor, path):
            raise BadSetting(in_use)
        yield
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`: who held it before may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _remove_lock(folder: Path, made: list[Path]) -> None:
    """Removes the lock, which is held, of a folder that holds nothing new, and folders made for it.

    made: from the innermost outwards.
    """
    with contextlib.suppress(OSError):  # something else is in one of them by now
        (folder / LOCK_NAME).unlink()
        for path in made:
            path.rmdir()


def _refuse_foreign(files: Iterable[Path]) -> None:
    """Raises BadSetting if one of the files is there that a new run would write."""
    if there := [path for path in files if os.path.lexists(path)]:
        raise BadSetting(
            f"{there[0]} is there and {STATE_NAME} is not: the folder is another program's; choose "
            "another run_dir=FOLDER (of setup: --state-dir FOLDER)"
        )


def recorded_settings(config: RunConfig) -> dict[str, Any]:
    """The settings of a run that decide its numbers and files, as JSON has them."""
    return _plain(config.tree)


def _plain(tree: dict[str, Any]) -> dict[str, Any]:
    kept = _portable({k: v for k, v in tree.items() if k not in FREE_SECTIONS})
    plain: dict[str, Any] = json.loads(json.dumps(kept))
    return plain


def changed_settings(
    recorded: dict[str, Any], present: dict[str, Any], overrides: tuple[str, ...]
) -> list[Difference]:
    """How `present`, composed from `overrides`, differs from what was recorded of a run.

    The run's own settings come before those of processes, which follow from them.
    """
    recorded = _plain(recorded)
    if recorded == present:
        return []  # composing the defaults takes longer than all else
    # What the shipped configuration gives where nobody sets what the record does not have.
    kept = [o.text for o in parse_overrides(overrides) if not _sets_new(o, recorded)]
    defaults = json.loads(json.dumps(compose_tree(kept)))
    found = find_differences(recorded, present, defaults)
    differences = sorted(found, key=lambda d: (d.key.count("."), d.key))
    return [d for d in differences if not _is_added_entry(d)]


def _portable(settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` as they read wherever the package lies: its own models by their place in it."""
    model = settings.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("model_dir"), str):
        return settings  # damaged, or no run's: whoever compares says so
    for name in OWN_MODELS:
        if Path(model["model_dir"]).match(f"*/{name}"):
            return {**settings, "model": {**model, "model_dir": name}}
    return settings


def _sets_new(override: Override, recorded: dict[str, Any]) -> bool:
    """Whether it concerns a setting that was not there when the run was begun."""
    return any(
        key.partition(".")[0] not in FREE_SECTIONS and not has_value(recorded, key)
        for key in override.keys
    )


def _is_added_entry(difference: Difference) -> bool:
    return difference.kind == "new" and difference.key.startswith(OPEN_TABLES)


def find_state(run_dir: Path) -> dict[str, Any]:
    """The run's state.json, or what is known without it if it is damaged; empty if there is no run.

    Raises BadSetting where nothing is known.
    """
    path = run_dir / STATE_NAME
    # A new run writes its state first: a folder with settings and a ledger has lost it.
    if not os.path.lexists(path) and not (run_dir / "agent" / "agent.db").is_file():
        return {}
    try:
        return read_state(run_dir)
    except DamagedFile as damaged:
        try:
            state = rebuild_state(run_dir, damaged)
        except DamagedFile as error:
            if not os.path.lexists(path):
                return {}  # somebody else's ledger
            raise BadSetting(str(error)) from error
        log.warning("%s; going on with config/run.yaml and the learner's log", damaged.what)
        return state


def _set_damaged_aside(path: Path) -> None:
    """Makes room for a new state.json without losing what is there. Raises StorageError."""
    if os.path.lexists(path):
        try:
            read_state(path.parent)
        except DamagedFile:
            log.warning("%s is kept as %s", path, set_aside(path))
