"""The run's record for people and plots: one JSON line an event, and the final result."""

import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from agent.durable import replace_file, storage_errors
from agent.process.clock import unix_s
from agent.process.json_files import Misfit, parse_json
from learner.patience import until_taken

LOOKED_AT = 100  # lines, for one that is whole


class ProgressLog:
    """Appends to progress.jsonl; a line torn by a crash is closed off first. For any thread.

    should_stop: whether to give up waiting for a disk that takes nothing.
    """

    def __init__(self, path: Path, should_stop: Callable[[], bool] = lambda: False) -> None:
        self._path, self._should_stop = path, should_stop
        self._lock = threading.Lock()
        with storage_errors(path):
            self._file = path.open("ab", buffering=0)
            is_torn = self._file.tell() > 0 and not path.read_bytes().endswith(b"\n")
        if is_torn:
            self._append(b"\n")

    def write(self, event: str, **fields: Any) -> None:
        """Append one event and hand it to the operating system. Raises StorageError, Stopped."""
        line = {"event": event, "unix_s": round(unix_s(), 3), **fields}
        data = (json.dumps(line) + "\n").encode()
        with self._lock:
            until_taken(lambda: self._append(data), self._should_stop)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, data: bytes) -> None:
        """The whole line, or nothing of it."""
        with storage_errors(self._path):
            start = self._file.seek(0, os.SEEK_END)
            try:
                rest = data
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError:
                self._file.truncate(start)
                raise


def last_stamp_s(path: Path) -> float:
    """When the last whole line of a progress log was written [Unix s]; 0 if there is none.

    Raises StorageError.
    """
    if not path.exists():
        return 0.0
    with storage_errors(path):
        lines = path.read_bytes().splitlines()
    for line in reversed(lines[-LOOKED_AT:]):  # a crash tears the last one, a disk damages some
        with suppress(Misfit):
            return float(parse_json(line, {"unix_s": float})["unix_s"])
    return 0.0


def write_json(path: Path, values: Any) -> None:
    """Replace a JSON file so that a reader sees the old content or the new, never half."""
    replace_file(path, (json.dumps(values, indent=1) + "\n").encode())
