"""Plain msgpack values to message dataclasses, checked field by field.

The readers are built once per dataclass from its annotations, so `messages.py` is the only place
that says what a message holds. A reader gets the value, its path (for the error) and the array
frames of the message.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable
from typing import Annotated, Any, Protocol, TypeVar, cast

import numpy as np

from agent.wire.arrays import brief
from agent.wire.errors import WireError


class ArraySource(Protocol):
    """Where the arrays of a message are; `spec` is what stands in the body in their place."""

    def take(self, spec: Any, path: str) -> np.ndarray: ...


Text = Annotated[str, "text"]
"""A message's text for people, composed of who knows what: it is cut to what a receiver takes.

Every other string names something, and is refused at its sender if it is too long.
"""

T = TypeVar("T")
Reader = Callable[[Any, str, ArraySource], Any]
_LATER = "later"
_FIELDS: dict[type, dict[str, Reader]] = {}
_DEFAULTS: dict[type, dict[str, Any]] = {}
_TEXTS: dict[type, frozenset[str]] = {}


def later(default: Any = dataclasses.MISSING, factory: Any = dataclasses.MISSING) -> Any:
    """Declare a message's field that came after the first release of its protocol version.

    It does not travel while it has its default, and where it is missing it has it: both sides of
    such a release understand each other as long as neither uses what the other does not know.
    """
    return dataclasses.field(default=default, default_factory=factory, metadata={_LATER: True})


def defaults_of(cls: type) -> dict[str, Any]:
    """The fields declared with `later`, each with its default."""
    if cls not in _DEFAULTS:
        _DEFAULTS[cls] = {
            field.name: field.default
            if field.default is not dataclasses.MISSING
            else cast(Callable[[], Any], field.default_factory)()
            for field in dataclasses.fields(cls)
            if _LATER in field.metadata
        }
    return _DEFAULTS[cls]


class _NoArrays:
    """The array source of values that cannot hold arrays."""

    def take(self, spec: Any, path: str) -> np.ndarray:
        raise WireError("bad_array", f"{path}: arrays are not allowed here, got {brief(spec)}")


def read_plain(cls: type[T], value: Any, path: str) -> T:
    """An array-free dataclass from plain values such as parsed JSON.

    Raises WireError("bad_message") naming the field below `path` that is missing, extra or wrong.
    """
    return reader_of(cls)(value, path, _NoArrays())


def fields_of(cls: type) -> dict[str, Reader]:
    """The fields of a message dataclass, in order, each with its reader."""
    if cls not in _FIELDS:
        hints = typing.get_type_hints(cls)
        _FIELDS[cls] = {f.name: reader_of(hints[f.name]) for f in dataclasses.fields(cls)}
    return _FIELDS[cls]


def texts_of(cls: type) -> frozenset[str]:
    """The fields of a message dataclass that are a `Text`, or a map of names to some."""
    if cls not in _TEXTS:
        hints = typing.get_type_hints(cls, include_extras=True)
        _TEXTS[cls] = frozenset(f for f, hint in hints.items() if hint in (Text, dict[str, Text]))
    return _TEXTS[cls]


def reader_of(hint: Any) -> Reader:
    """The reader of one annotation; it raises WireError(bad_message, bad_array)."""
    if hint in _SCALARS:
        return _SCALARS[hint]
    origin = typing.get_origin(hint)
    if origin is list:
        return _list_reader(reader_of(typing.get_args(hint)[0]))
    if origin is dict:
        return _dict_reader(reader_of(typing.get_args(hint)[1]))
    if dataclasses.is_dataclass(hint):
        return _dataclass_reader(cast(type, hint))
    raise TypeError(f"no wire form for {hint}")


def _read_exactly(kind: type) -> Reader:
    def read(value: Any, path: str, _arrays: ArraySource) -> Any:
        if type(value) is not kind:
            raise WireError(
                "bad_message", f"{path}: expected {kind.__name__}, got {type(value).__name__}"
            )
        return value

    return read


def _read_int(value: Any, path: str, _arrays: ArraySource) -> int:
    if type(value) is not int or not -(1 << 63) <= value < 1 << 63:
        raise WireError("bad_message", f"{path}: expected a 64-bit integer, got {brief(value)}")
    return value


def finite_number(value: Any, path: str) -> float:
    """A float or integer from outside; raises WireError("bad_message") for anything else."""
    try:
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    except OverflowError:  # a whole number that no float holds
        pass
    raise WireError("bad_message", f"{path}: expected a finite number, got {brief(value)}")


def _read_float(value: Any, path: str, _arrays: ArraySource) -> float:
    return finite_number(value, path)


def _read_array(value: Any, path: str, arrays: ArraySource) -> np.ndarray:
    return arrays.take(value, path)


def _list_reader(read: Reader) -> Reader:
    def read_list(value: Any, path: str, arrays: ArraySource) -> list[Any]:
        if type(value) is not list:
            raise WireError("bad_message", f"{path}: expected a list, got {type(value).__name__}")
        return [read(item, f"{path}[{i}]", arrays) for i, item in enumerate(value)]

    return read_list


def _dict_reader(read: Reader) -> Reader:
    def read_dict(value: Any, path: str, arrays: ArraySource) -> dict[str, Any]:
        if type(value) is not dict or any(type(key) is not str for key in value):
            raise WireError("bad_message", f"{path}: expected a map with string keys")
        return {key: read(item, f"{path}[{key!r:.40}]", arrays) for key, item in value.items()}

    return read_dict


def _dataclass_reader(cls: type) -> Reader:
    def read_fields(value: Any, path: str, arrays: ArraySource) -> Any:
        schema, defaults = fields_of(cls), defaults_of(cls)
        if type(value) is not dict or (value.keys() | defaults.keys()) != schema.keys():
            got = sorted(map(brief, value)) if type(value) is dict else type(value).__name__
            raise WireError(
                "bad_message", f"{path}: expected the fields {list(schema)}, got {got!s:.300}"
            )
        given = {f: read for f, read in schema.items() if f in value}
        return cls(**{f: read(value[f], f"{path}.{f}", arrays) for f, read in given.items()})

    return read_fields


_SCALARS: dict[Any, Reader] = {
    str: _read_exactly(str),
    bool: _read_exactly(bool),
    int: _read_int,
    float: _read_float,
    np.ndarray: _read_array,
}
