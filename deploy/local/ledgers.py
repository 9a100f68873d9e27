"""Reads the ledgers of agent and learner, also while their owners write to them."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

from agent.process.errors import PerennialError

BUSY_LIMIT_S = 10.0
BRIEF_LIMIT_S = 0.1  # where nobody waits for it
PERIOD_S = 1.0  # between two readings


class RecordError(PerennialError):
    """A record of the run is missing or unreadable; one line."""


def query(
    path: Path, sql: str, *values: object, limit_s: float = BUSY_LIMIT_S
) -> list[tuple[Any, ...]]:
    """What a ledger says, read-only. limit_s: for its owner to let go of it.

    Raises RecordError if it is missing or unreadable.
    """
    if not path.is_file():
        raise RecordError(f"{path} is missing: the run folder is not complete")
    try:
        where = f"{path.resolve().as_uri()}?mode=ro"
        connection = sqlite3.connect(where, uri=True, timeout=limit_s)
        try:
            return connection.execute(sql, values).fetchall()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise RecordError(f"{path} cannot be read: {error}") from error


def achieved(run_dir: Path, name: str) -> int | None:
    """How much the run's process `name` has made durable; None where that cannot be read.

    learner: counted episodes that it keeps, and updates. A simulator: answered episode ends that
    count. Agent and probe: counted episodes, of whoever played them.
    """
    try:
        if name == "learner":
            # Robots and the probe go on whatever the learner does: their episodes do not count.
            kept = "SELECT COUNT(*) FROM episodes WHERE counted = 1"
            sql = f"SELECT ({kept}) + (SELECT COUNT(*) FROM updates)"
            ((count,),) = query(run_dir / "learner" / "learner.db", sql, limit_s=BRIEF_LIMIT_S)
            return int(count)
        if name.startswith("sim"):
            ends = (run_dir / name / "client.jsonl").read_bytes()
            return ends.count(b'"counted":true') + ends.count(b'"counted": true')
        sql = "SELECT COUNT(*) FROM episodes WHERE counted = 1"
        ((count,),) = query(run_dir / "agent" / "agent.db", sql, limit_s=BRIEF_LIMIT_S)
        return int(count)
    except (RecordError, OSError):
        return None


class ActivationTail:
    """The versions that the agent has made active since the last call, oldest first."""

    def __init__(self, ledger: Path) -> None:
        """ledger: the agent's; it may not exist yet."""
        self._ledger = ledger
        self._seq = 0
        self._read_at_s = -PERIOD_S

    def read(self) -> list[str]:
        """New ones; none while the ledger cannot be read, and between two readings."""
        now_s = time.monotonic()
        if now_s - self._read_at_s < PERIOD_S:
            return []
        self._read_at_s = now_s
        sql = "SELECT seq, version FROM activations WHERE seq > ? ORDER BY seq"
        try:
            rows = query(self._ledger, sql, self._seq, limit_s=BRIEF_LIMIT_S)
        except RecordError:
            return []  # shown when it can be read again
        if rows:
            self._seq = rows[-1][0]
        return [version for _, version in rows]
