"""Goes on from the end of one run with other settings: a copy of its folder, made ready for them.

Everything that was done comes along: the agent's ledger and adapters, the learner's episodes, the
clients' logs. So nothing is ordered twice, and a recount of the copy agrees.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from agent.durable import LOCK_NAME, new_folder
from agent.process.json_files import COUNT, read_json
from deploy.local.placement import BadSetting
from deploy.local.processes import ProcessFailed
from deploy.local.recorded import STATE_NAME, write_state
from deploy.local.runfolder import RunFolder, find_state, recorded_settings
from deploy.local.settings import RunConfig

FORK_FILE = "fork.json"  # the learner's: from which checkpoint other settings may go on
BEGINNING_FILE = "beginning.json"
UNBEGUN = (LOCK_NAME, "config", "logs")  # all that a run has before its state.json
# Locks, and what the copy makes anew: SQLite's shared memory, what was served where.
LEFT_BEHIND = ("lock", "*.db-shm", "endpoints.json", "summary.json", "plots", FORK_FILE)


def fork_run(beginning: Path, run_dir: Path, config: RunConfig) -> None:
    """Makes `run_dir` a run of `config` that has come as far as the finished run `beginning`.

    Killed at any moment, it can be called again; a run that has begun is left alone. Raises
    ProcessFailed if `beginning` is not finished, OSError, BadSetting.
    """
    if (run_dir / STATE_NAME).exists():
        return
    with RunFolder(beginning).lock():
        state = find_state(beginning)
        if not state.get("finished"):
            raise ProcessFailed(f"{beginning} is not finished: nothing can go on from it")
        _remove_unbegun(run_dir)
        with new_folder(run_dir) as copy:
            ignore = shutil.ignore_patterns(*LEFT_BEHIND)
            shutil.copytree(beginning, copy, ignore=ignore, dirs_exist_ok=True)
            _make_ready(copy, beginning.name, state, config)


def _make_ready(copy: Path, beginning: str, state: dict[str, Any], config: RunConfig) -> None:
    (copy / "learner" / "results.json").unlink(missing_ok=True)
    sha256 = _last_checkpoint(copy / "learner" / "learner.db")
    if sha256 is not None:
        _write(copy / "learner" / FORK_FILE, {"checkpoint_sha256": sha256})
    _write(copy / BEGINNING_FILE, {"folder": beginning, "sessions": len(state["sessions"])})
    kept = {name: state[name] for name in ("versions", "sessions")}
    write_state(copy, kept | {"settings": recorded_settings(config)})


def _remove_unbegun(run_dir: Path) -> None:
    """Remove what a run left that was killed before it had a state.

    Raises BadSetting for a folder with anything else in it: somebody else's.
    """
    if not run_dir.exists():
        return
    others = sorted(path.name for path in run_dir.iterdir() if path.name not in UNBEGUN)
    if run_dir.is_symlink() or others:
        raise BadSetting(
            f"{run_dir} is no run and holds {', '.join(others[:3]) or 'a link'}; move it away, or "
            "choose another out=FOLDER"
        )
    shutil.rmtree(run_dir)


def inherited_sessions(run_dir: Path) -> int:
    """How many of the run's sessions were its beginning's. Raises DamagedFile."""
    path = run_dir / BEGINNING_FILE
    if not os.path.lexists(path):
        return 0
    way_out = "delete it for a cost that has the beginning's part in it"
    return int(read_json(path, {"sessions": COUNT}, way_out)["sessions"])


def _last_checkpoint(path: Path) -> str | None:
    """SHA-256 of the last committed update's checkpoint; None if nothing was learned."""
    with closing(sqlite3.connect(path)) as db:
        row = db.execute(
            "SELECT checkpoint_sha256 FROM updates ORDER BY update_id DESC LIMIT 1"
        ).fetchone()
    return None if row is None else str(row[0])


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values) + "\n")
