"""Trouble that passes while a run goes on: told while it lasts, never the run's end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.durable import StorageError, explain_trouble, may_pass
from agent.process import OutputFailed


class Passing:
    """What a disk, or the machine, refuses at present. Each part of the run is tried again."""

    def __init__(self) -> None:
        self._told: dict[str, str] = {}  # by part

    @contextmanager
    def borne(self, part: str, path: Path) -> Iterator[None]:
        """Notes an error inside that may pass; other errors are raised.

        part: what could not be done then, for a person. path: what it is about.
        """
        try:
            yield
        except (OSError, StorageError, OutputFailed) as error:
            trouble = error.trouble if isinstance(error, OutputFailed) else error
            if not may_pass(trouble):
                raise
            named = getattr(trouble, "filename", None)
            self._told[part] = f"{part}: {explain_trouble(trouble, Path(named or path))}"
        else:
            self._told.pop(part, None)

    def describe(self) -> str:
        """All that lasts, in one line; "" where nothing does."""
        return "; ".join(self._told.values())
