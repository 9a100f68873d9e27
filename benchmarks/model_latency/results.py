"""Results on disk: written after every cell, so a sweep can stop anywhere and go on later."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

OK, OUT_OF_MEMORY, UNAVAILABLE, FAILED = "ok", "out of memory", "not available", "failed"


class ResultsError(ValueError):
    """A results file that cannot be continued."""


@dataclass(frozen=True)
class Record:
    """What became of a cell; `values` are numbers by name, seconds end in `_s`."""

    status: str
    reason: str = ""
    values: dict[str, float] = field(default_factory=dict)


class Results:
    """The records of one machine in one JSON file.

    Args:
        setting: what must be the same for all records (device, size, library versions, ...).
    """

    def __init__(self, path: Path, setting: dict[str, Any]) -> None:
        self.path, self.setting = path, setting
        self.records: dict[str, Record] = {}
        if not path.exists():
            return
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            self.records = {name: Record(**values) for name, values in stored["cells"].items()}
            had = stored["setting"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResultsError(f"{path} is no results file of this benchmark: {error}") from error
        if had != setting:
            raise ResultsError(
                f"{path} was measured with {had}, now it is {setting}; choose another --out"
            )

    def is_settled(self, name: str) -> bool:
        """Whether a cell need not be measured again: it has an answer, and did not just fail."""
        return name in self.records and self.records[name].status != FAILED

    def add(self, name: str, record: Record) -> None:
        """Keep a record and write the file, whole or not at all."""
        self.records[name] = record
        cells = {name: asdict(record) for name, record in self.records.items()}
        text = json.dumps({"setting": self.setting, "cells": cells}, indent=1) + "\n"
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, self.path)
