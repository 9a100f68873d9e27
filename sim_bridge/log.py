"""The client's own record of answered episode ends: one JSON line each, durable before more work.

The checker counts from these lines alone, so a line exists exactly when the client has seen the
answer to its `EpisodeEnd`. Lines are appended, then made durable together by `sync`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from agent.durable import make_folder, sync_folder
from agent.wire.errors import ConfigError
from sim_bridge.robot import BridgeError

FIRST_LINE_BYTES = 1 << 20


class LogError(BridgeError):
    """The log cannot be written any more, or a line of it is not what this module writes."""


@dataclass(frozen=True, slots=True)
class EndLine:
    """One answered `EpisodeEnd`.

    version: the adapter the episode was pinned to; versions: the distinct ones its chunks named,
    in order of appearance. outcome and counted: as the server answered them.
    """

    episode_id: str
    slot_id: str
    task: str
    split: str
    init_state: int
    phase: str
    version: str
    versions: list[str]
    outcome: str
    steps: int
    counted: bool
    unix_s: float


class EndLog:
    """Append-only `client.jsonl`; a line torn by a crash is repaired when the log is opened."""

    def __init__(self, path: Path) -> None:
        """Opens or creates `path` and its folder. Raises ConfigError when it cannot be written."""
        self._path = path
        self._dirty = False
        try:
            make_folder(path.parent)
            refuse_foreign(path, EndLine.__dataclass_fields__)
            _repair_tail(path)
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            sync_folder(path.parent)
        except OSError as error:
            raise ConfigError(
                f"log_path: cannot write '{path}' ({error.strerror}); name another path or free it"
            ) from error

    def append(self, line: EndLine) -> None:
        """Writes one line; it is durable after the next `sync`. Raises LogError."""
        data = (json.dumps(asdict(line), separators=(",", ":")) + "\n").encode()
        try:
            written = os.write(self._fd, data)
        except OSError as error:
            raise LogError(f"log: cannot append to '{self._path}' ({error.strerror})") from error
        if written != len(data):
            raise LogError(
                f"log: wrote {written} of {len(data)} bytes to '{self._path}'; is the disk full?"
            )
        self._dirty = True

    def sync(self) -> None:
        """Makes every appended line durable; free when there is none. Raises LogError."""
        if not self._dirty:
            return
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise LogError(f"log: cannot sync '{self._path}' ({error.strerror})") from error
        self._dirty = False

    def close(self) -> None:
        """Syncs and closes; the log takes nothing afterwards."""
        self.sync()
        os.close(self._fd)


def read_log(path: Path) -> list[EndLine]:
    """The complete lines of `path`, oldest first; a torn last line is left out.

    Raises LogError with the line's number for any other line that is not an `EndLine`.
    """
    lines = path.read_bytes().split(b"\n")
    ends = []
    for number, raw in enumerate(lines, start=1):
        is_tail = number == len(lines)
        if is_tail and not _is_complete(raw):
            break
        ends.append(_parse_line(raw, path, number))
    return ends


def _parse_line(raw: bytes, path: Path, number: int) -> EndLine:
    where = f"{path}:{number}"
    try:
        values: Any = json.loads(raw)
    except ValueError as error:
        raise LogError(f"{where}: expected one JSON object, got {raw[:80]!r}") from error
    names = {item.name for item in fields(EndLine)}
    if not isinstance(values, dict) or set(values) != names:
        raise LogError(f"{where}: expected the fields {sorted(names)}, got {raw[:80]!r}")
    for name, kind in get_type_hints(EndLine).items():
        wanted = getattr(kind, "__origin__", kind)
        is_bool = isinstance(values[name], bool)
        if not isinstance(values[name], wanted) or is_bool != (wanted is bool):
            raise LogError(f"{where}: {name}: expected {wanted.__name__}, got {values[name]!r}")
    return EndLine(**values)


def _is_complete(raw: bytes) -> bool:
    """Whether a line without its newline is whole: a prefix of a JSON object never parses."""
    try:
        json.loads(raw)
    except ValueError:
        return False
    return True


def refuse_foreign(path: Path, names: Iterable[str]) -> None:
    """Raises ConfigError if `path` holds anything but JSON lines with these fields, OSError."""
    if not path.exists():
        return
    with path.open("rb") as file:
        first = file.readline(FIRST_LINE_BYTES)
    whole, first = first.endswith(b"\n") and b"\0" not in first, first.split(b"\0")[0]
    if whole:
        try:
            is_ours = set(json.loads(first)) >= set(names)
        except (ValueError, TypeError):
            is_ours = False
    else:  # torn by a loss of power: the beginning of a line, then nothing or zeros
        start = f'{{"{next(iter(names))}":'.encode()
        is_ours = first.startswith(start) or start.startswith(first)
    if not is_ours:
        raise ConfigError(f"log_path: '{path}' is another program's file; name another path")


def _repair_tail(path: Path) -> None:
    """Ends a whole last line with its newline and cuts a torn one off."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        content = file.read()
        start = content.rfind(b"\n") + 1
        if start == len(content):
            return
        if _is_complete(content[start:]):
            file.write(b"\n")
        else:
            file.truncate(start)
        file.flush()
        os.fsync(file.fileno())
