"""Whether a SQLite file can be trusted; what both processes ask before they open theirs."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

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
