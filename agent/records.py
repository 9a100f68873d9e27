"""Dataclasses to and from plain values (JSON columns, packed maps), checked field by field."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, TypeVar, cast

import numpy as np

from agent.process.json_files import json_fault
from agent.wire.errors import WireError
from agent.wire.schema import reader_of

T = TypeVar("T")


class _ArraysInPlace:
    """`unpack` has already put the arrays where they belong."""

    def take(self, spec: Any, path: str) -> np.ndarray:
        if not isinstance(spec, np.ndarray):
            raise WireError("bad_message", f"{path}: expected an array, got {type(spec).__name__}")
        return spec


def from_plain(cls: type[T], value: Any, path: str) -> T:
    """The dataclass that `value` (a dict of exactly its fields) describes.

    Raises WireError("bad_message") for a missing, extra or wrongly typed field.
    """
    return cast(T, reader_of(cls)(value, path, _ArraysInPlace()))


def to_plain(record: Any) -> dict[str, Any]:
    """Field name -> value, not copied and not recursed into."""
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def from_json(cls: type[T], text: str | bytes, path: str) -> T:
    """Like `from_plain`; text that is not JSON also raises WireError("bad_message")."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WireError("bad_message", f"{path}: not JSON: {json_fault(error)}") from error
    return from_plain(cls, value, path)


def to_json(record: Any) -> str:
    """One line. Raises ValueError for a number that is not finite."""
    return json.dumps(to_plain(record), allow_nan=False)
