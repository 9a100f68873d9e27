"""The ledger's SQLite file: its schema, how it is made and opened."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from agent.database import check_database
from agent.durable import StorageError, database_errors

SCHEMA_VERSION = 3
# version -> what makes the next one of it. Rows stay readable at each, before and after.
_MIGRATIONS = {2: "ALTER TABLE episodes ADD COLUMN owner TEXT"}
_BUSY_TIMEOUT_S = 5.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS orders (
    place INTEGER PRIMARY KEY AUTOINCREMENT,  -- posting order
    order_id TEXT NOT NULL UNIQUE,
    task TEXT NOT NULL,
    phase TEXT NOT NULL,
    body TEXT NOT NULL                        -- the Order as JSON
);
CREATE TABLE IF NOT EXISTS episodes (
    episode_id TEXT PRIMARY KEY,
    order_id TEXT NOT NULL,
    slot_id TEXT NOT NULL,
    suite TEXT NOT NULL,
    task TEXT NOT NULL,
    split TEXT NOT NULL,
    init_state INTEGER NOT NULL,
    phase TEXT NOT NULL,
    version TEXT NOT NULL,
    state TEXT NOT NULL,
    outcome TEXT NOT NULL DEFAULT '',
    steps INTEGER NOT NULL DEFAULT 0,
    counted INTEGER NOT NULL DEFAULT 0,
    sha256 TEXT NOT NULL DEFAULT '',
    size_bytes INTEGER NOT NULL DEFAULT 0,
    sealed_seq INTEGER NOT NULL DEFAULT 0,
    sealed_unix_s REAL NOT NULL DEFAULT 0,
    reason TEXT NOT NULL DEFAULT '',
    meta TEXT NOT NULL,                       -- the EpisodeMeta as JSON
    owner TEXT                                -- NULL: recorded before version 3
);
CREATE UNIQUE INDEX IF NOT EXISTS one_counted_per_slot
    ON episodes (slot_id) WHERE counted = 1 AND slot_id != '';
CREATE UNIQUE INDEX IF NOT EXISTS episodes_by_seq ON episodes (sealed_seq) WHERE sealed_seq > 0;
CREATE INDEX IF NOT EXISTS episodes_by_state ON episodes (state, sealed_seq);
CREATE TABLE IF NOT EXISTS activations (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    version TEXT NOT NULL,
    unix_s REAL NOT NULL,
    after_sealed_seq INTEGER NOT NULL         -- the last episode sealed before
);
"""
# Came within version 3: programs that do not know it read and write the rest as ever.
_HELD_SLOTS = """
CREATE TABLE IF NOT EXISTS held_slots (       -- that need no episode: the learner holds one
    slot_id TEXT PRIMARY KEY,
    episode_id TEXT NOT NULL
);
"""


def open_ledger(path: Path, mode: str) -> sqlite3.Connection:
    """mode: ro or rw. Raises StorageError if the file is missing, foreign or unreadable.

    An older version that can be migrated can also be read as it is; only `owner` is not there.
    """
    db = _connect(path, mode)
    with database_errors(path):
        found = db.execute("PRAGMA user_version").fetchone()[0]
    if found != SCHEMA_VERSION and found not in _MIGRATIONS:
        raise StorageError(
            f"{path}: ledger version {found}, expected {SCHEMA_VERSION}: it was written by another "
            "version of Perennial; use that one, or another folder"
        )
    return db


def create_ledger(path: Path) -> None:
    """Makes the file, or brings one of an older version up to date. Raises StorageError."""
    with database_errors(path):
        check_database(path)
    db = _connect(path, "rwc")
    with database_errors(path), closing(db):
        db.execute("PRAGMA journal_mode = WAL")
        found = db.execute("PRAGMA user_version").fetchone()[0]
        if found == 0:
            _change(db, _SCHEMA, SCHEMA_VERSION)
        while found in _MIGRATIONS:
            _change(db, f"{_MIGRATIONS[found]};", found + 1)
            found += 1
        db.executescript(_HELD_SLOTS)


def _change(db: sqlite3.Connection, statements: str, version: int) -> None:
    """All or nothing."""
    db.executescript(f"BEGIN; {statements} PRAGMA user_version = {version}; COMMIT")


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    with database_errors(path):
        db = sqlite3.connect(
            uri,
            uri=True,
            timeout=_BUSY_TIMEOUT_S,
            isolation_level=None,  # transactions are explicit
            check_same_thread=False,
        )
    db.row_factory = sqlite3.Row
    return db
