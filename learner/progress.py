"""The run's record for people and plots: one JSON line an event, and the final result."""

import json
from pathlib import Path
from typing import Any

from agent.durable import replace_file
from agent.process.clock import unix_s


class ProgressLog:
    """Appends to progress.jsonl; a line torn by a crash is closed off first."""

    def __init__(self, path: Path) -> None:
        torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        self._file = path.open("a", encoding="utf-8")
        if torn:
            self._file.write("\n")

    def write(self, event: str, **fields: Any) -> None:
        """Append one event and hand it to the operating system."""
        line = {"event": event, "unix_s": round(unix_s(), 3), **fields}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def last_stamp_s(path: Path) -> float:
    """When the last whole line of a progress log was written [Unix s]; 0 if there is none."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    for line in reversed(lines[-2:]):  # a crash may have torn the very last one
        try:
            return float(json.loads(line)["unix_s"])
        except (ValueError, TypeError, KeyError):
            continue
    return 0.0


def write_json(path: Path, values: Any) -> None:
    """Replace a JSON file so that a reader sees the old content or the new, never half."""
    replace_file(path, (json.dumps(values, indent=1) + "\n").encode())
