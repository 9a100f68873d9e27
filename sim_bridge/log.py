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

from agent.durable import make_folder, may_pass, storage_errors, sync_folder
from agent.process.json_files import Misfit, parse_json
from agent.wire.errors import ConfigError
from sim_bridge.lines import LineFile
from sim_bridge.robot import BridgeError

FIRST_LINES_BYTES = 1 << 20


class LogError(BridgeError):
    """A line of a log is not what this module writes."""


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
    """Append-only `client.jsonl`; a line torn by a crash is repaired when the log is opened.

    A disk that takes nothing for a while costs nothing: lines wait in memory.
    """

    def __init__(self, path: Path) -> None:
        """Opens or creates `path` and its folder. Raises ConfigError, StorageError."""
        self._file = open_lines(path, EndLine.__dataclass_fields__, is_synced=True)

    @property
    def is_durable(self) -> bool:
        """Whether every line is."""
        return self._file.is_settled

    def append(self, line: EndLine) -> None:
        """Takes one line; it is durable once `sync` says so."""
        self._file.append((json.dumps(asdict(line), separators=(",", ":")) + "\n").encode())

    def sync(self) -> bool:
        """Makes every line durable, and says whether they are; free when there is none.

        Where they are not, the disk is in trouble that may pass: call it again. Raises StorageError
        for trouble that does not pass.
        """
        return self._file.settle()

    def close(self) -> None:
        """Syncs and closes; the log takes nothing afterwards.

        Raises StorageError when lines are lost because the disk takes nothing.
        """
        self._file.close()


def open_lines(path: Path, names: Iterable[str], *, is_synced: bool) -> LineFile:
    """The file of JSON lines at `path`, made with its folder if needed, its torn tail repaired.

    names: fields that each line has. is_synced: as of LineFile. Raises ConfigError where it cannot
    be written, StorageError where it cannot at present.
    """
    try:
        make_folder(path.parent)
        _refuse_foreign(path, names)
        _repair_tail(path)
        file = LineFile(path, is_synced=is_synced)
        sync_folder(path.parent)
        return file
    except OSError as error:
        if may_pass(error):
            with storage_errors(path):
                raise
        raise ConfigError(
            f"log_path: cannot write '{path}' ({error.strerror}); name another path or free it"
        ) from error


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


def _refuse_foreign(path: Path, names: Iterable[str]) -> None:
    """Raises ConfigError if `path` holds anything but JSON lines with these fields, OSError.

    One of its first lines is enough: others may be damaged.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        beginning = file.read(FIRST_LINES_BYTES)
    first, _, others = beginning.partition(b"\n")
    whole = len(first) < len(beginning) and b"\0" not in first
    if not whole:  # torn by a loss of power: the beginning of a line, then nothing or zeros
        start, first = f'{{"{next(iter(names))}":'.encode(), first.split(b"\0")[0]
        if first.startswith(start) or start.startswith(first):
            return
    if not any(_has_fields(line, names) for line in (first, *others.split(b"\n"))):
        raise ConfigError(
            f"log_path: '{path}' is another program's file, or damaged; name another path, or move "
            "it away"
        )


def _has_fields(line: bytes, names: Iterable[str]) -> bool:
    try:
        parse_json(line, dict.fromkeys(names, object))
    except Misfit:
        return False
    return True


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
