"""Whether a SQLite file can be trusted, before it is opened and while it is written."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from agent.durable import StorageError

BUSY_TIMEOUT_S = 5.0


def check_database(path: Path) -> None:
    """Read through the file if there is one; raises sqlite3.DatabaseError where it is damaged."""
    if not path.exists():
        return
    with closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)) as database:
        found = str(database.execute("PRAGMA quick_check(1)").fetchone()[0])
    if found != "ok":
        damage = sqlite3.DatabaseError(" ".join(found.split()))
        damage.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise damage


class DatabasePlace:
    """Where an open database is in its folder.

    SQLite goes on writing to files that were removed or replaced meanwhile, and says that all is
    well: what is written then is gone when the process ends.
    """

    def __init__(self, path: Path) -> None:
        """The database at `path` is open, and in WAL mode if it can be."""
        self._files = [path, path.with_name(f"{path.name}-wal")]
        self._found = [_identity(file) for file in self._files]

    def check(self) -> None:
        """Raises StorageError if what was written since is not in the folder."""
        for file, found in zip(self._files, self._found, strict=True):
            if found is not None and _identity(file) != found:
                raise StorageError(
                    f"{file} was removed or replaced while it was in use: what was written to it "
                    "is lost; put back a copy, or start anew in another folder"
                )


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(file)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
