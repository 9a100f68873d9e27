"""Reads JSON-lines files while other processes append to them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.process.json_files import Misfit, parse_json, require_shape
from agent.process.shown import LINE_MAX_CHARS, printable

log = logging.getLogger(__name__)


class JsonTail:
    """The complete lines added to `path` since the last call; the file may not exist yet.

    A line that is damaged, or that a crash of its writer has torn, is left out: the first one of a
    file is logged, and `left_out` counts them.
    """

    def __init__(
        self,
        path: Path,
        shape: Mapping[str, Any] | None = None,
        kinds: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """shape: of each line. kinds: what a line has besides, by its "event"."""
        self._path, self._offset = path, 0
        self._shape, self._kinds = dict(shape or {}), kinds or {}
        self.left_out = 0

    def read(self) -> list[dict[str, Any]]:
        """New lines, oldest first. Raises OSError."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        return [line for raw in complete.split(b"\n") if (line := self._parse(raw)) is not None]

    def _parse(self, raw: bytes) -> dict[str, Any] | None:
        if not raw:
            return None
        try:
            line: dict[str, Any] = parse_json(raw, self._shape)
            require_shape(line, self._kinds.get(str(line.get("event")), {}))
        except Misfit as error:
            self.left_out += 1
            if self.left_out == 1:
                log.warning("%s: a damaged line is left out: %s", self._path, error)
            return None
        harmless: dict[str, Any] = _harmless(line)
        return harmless


def _harmless(value: Any) -> Any:
    """Names and reasons in these lines come from other machines, and are shown."""
    if isinstance(value, str):
        return printable(value, LINE_MAX_CHARS)
    if isinstance(value, dict):
        return {_harmless(key): _harmless(each) for key, each in value.items()}
    return [_harmless(each) for each in value] if isinstance(value, list) else value
