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

from agent.durable import sync_folder
from deploy.local.processes import ProcessFailed
from deploy.local.runfolder import STATE_NAME, RunFolder, read_state, recorded_settings, write_state
from deploy.local.settings import RunConfig

FORK_FILE = "fork.json"  # the learner's: from which checkpoint other settings may go on
BEGINNING_FILE = "beginning.json"
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
        state = read_state(beginning)
        if not state.get("finished"):
            raise ProcessFailed(f"{beginning} is not finished: nothing can go on from it")
        partial = run_dir.with_name(f".{run_dir.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(beginning, partial, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
    (partial / "learner" / "results.json").unlink()
    sha256 = _last_checkpoint(partial / "learner" / "learner.db")
    if sha256 is not None:
        _write(partial / "learner" / FORK_FILE, {"checkpoint_sha256": sha256})
    _write(partial / BEGINNING_FILE, {"folder": beginning.name, "sessions": len(state["sessions"])})
    write_state(
        partial,
        {name: state[name] for name in ("versions", "sessions")}
        | {"settings": recorded_settings(config)},
    )
    os.sync()  # what the name promises is on the disk
    shutil.rmtree(run_dir, ignore_errors=True)  # a run that was killed before it had a state
    partial.rename(run_dir)
    sync_folder(run_dir.parent)


def inherited_sessions(run_dir: Path) -> int:
    """How many of the run's sessions were its beginning's."""
    path = run_dir / BEGINNING_FILE
    return int(json.loads(path.read_text())["sessions"]) if path.is_file() else 0


def _last_checkpoint(path: Path) -> str | None:
    """SHA-256 of the last committed update's checkpoint; None if nothing was learned."""
    with closing(sqlite3.connect(path)) as db:
        row = db.execute(
            "SELECT checkpoint_sha256 FROM updates ORDER BY update_id DESC LIMIT 1"
        ).fetchone()
    return None if row is None else str(row[0])


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values) + "\n")
