"""Reads JSON-lines files while other processes append to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agent.process.shown import LINE_MAX_CHARS, printable


class JsonTail:
    """The complete lines added to `path` since the last call; the file may not exist yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        """New lines, oldest first. A line torn by a crash of its writer is left out."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        return [line for raw in complete.splitlines() if (line := _parse(raw)) is not None]


def _parse(raw: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return _harmless(line) if isinstance(line, dict) else None


def _harmless(value: Any) -> Any:
    """Names and reasons in these lines come from other machines, and are shown."""
    if isinstance(value, str):
        return printable(value, LINE_MAX_CHARS)
    if isinstance(value, dict):
        return {_harmless(key): _harmless(each) for key, each in value.items()}
    return [_harmless(each) for each in value] if isinstance(value, list) else value
