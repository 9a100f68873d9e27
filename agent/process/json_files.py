"""Reads JSON that one of our processes wrote: a file or a line, checked whole before it is used.

A disk loses the end of a file, alters a few bytes, or has something else in its place. What is read
back is therefore held against a shape, and what does not fit is one sentence, never a KeyError far
from the file. A shape is one of:

    str, bool, int, float, dict, list    a value of that kind; a float is finite, and may be whole
    range(0, 10)                         a whole number in it
    re.compile("a|b")                    text that matches completely
    [shape]                              a list of such values
    {"name": shape, "other?": shape}     an object with these names, `other` if it has it; and more
    {str: shape}                         an object with any names
    (shape, None)                        one of several; None is null
    object                               anything
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.process.errors import PerennialError
from agent.process.shown import shown
from agent.process.stand_ins import describe_stand_in

MAX_BYTES = 64 << 20
COUNT = range(2**53)
_LARGEST = 1e15  # of numbers of ours, whatever they count
_SHOWN_CHARS = 60
_KINDS = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    dict: "an object",
    list: "a list",
    type(None): "null",
}


class DamagedFile(PerennialError):
    """A file does not hold what we wrote; `what` says which and in what way."""

    def __init__(self, what: str, way_out: str) -> None:
        super().__init__(f"{what}; {way_out}")
        self.what = what


class Misfit(ValueError):
    """What a text holds in place of the JSON that was expected."""


def read_json(
    path: Path, shape: Any, way_out: str, check: Callable[[Any], None] | None = None
) -> Any:
    """What the file holds, in the given shape.

    Args:
        way_out: what a user can do, in words that follow a semicolon.
        check: raises Misfit for values of the right shape that cannot be.

    Raises:
        DamagedFile: it holds anything else, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        value = parse_json(data, shape)
        if check is not None:
            check(value)
    except OSError as error:
        what = describe_stand_in(path) or f"cannot be read ({error.strerror or error})"
        raise DamagedFile(f"{path} {what}", way_out) from error
    except Misfit as error:
        what = describe_stand_in(path) or f"is damaged: {error}"
        raise DamagedFile(f"{path} {what}", way_out) from error
    return value


def parse_json(data: bytes, shape: Any) -> Any:
    """The value that the JSON text `data` holds. Raises Misfit unless it has that shape."""
    if len(data) > MAX_BYTES:
        raise Misfit(f"expected at most {MAX_BYTES >> 20} MiB")
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Misfit(json_fault(error)) from error
    require_shape(value, shape)
    return value


def json_fault(error: Exception) -> str:
    """What is wrong with a text, where `json.loads` or decoding it raised `error`."""
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is no UTF-8 text"
    if isinstance(error, RecursionError):
        return "its values are nested too deeply"
    if not isinstance(error, json.JSONDecodeError):
        return "it holds a number that is none"  # of thousands of digits
    if not error.doc.strip("\0 \t\r\n"):
        return "it is empty" if not error.doc else "it holds nothing but blanks"
    where = f"line {error.lineno}, column {error.colno}"
    is_cut = error.pos >= len(error.doc.rstrip())
    return f"it ends at {where}" if is_cut else f"no JSON at {where}"


def require_shape(value: Any, shape: Any, place: str = "") -> None:
    """Raises Misfit that names the first place where the value does not have the shape."""
    if isinstance(shape, tuple):
        if not any(_fits(value, each) for each in shape):
            raise Misfit(_expected(place, " or ".join(map(_name, shape)), value))
    elif isinstance(shape, dict):
        _require_members(value, shape, place)
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise Misfit(_expected(place, "a list", value))
        for index, each in enumerate(value):
            require_shape(each, shape[0], f"{place}[{index}]")
    elif not _is_of(value, shape):
        raise Misfit(_expected(place, _name(shape), value))


def _require_members(value: Any, shape: dict[Any, Any], place: str) -> None:
    if not isinstance(value, dict):
        raise Misfit(_expected(place, "an object", value))
    if str in shape:
        for name, each in value.items():
            require_shape(each, shape[str], f"{place}.{name}".lstrip("."))
        return
    for name, each in shape.items():
        key = name.removesuffix("?")
        if key in value:
            require_shape(value[key], each, f"{place}.{key}".lstrip("."))
        elif key == name:
            raise Misfit(f"{place}: {key} is missing".removeprefix(": "))


def _is_of(value: Any, shape: Any) -> bool:
    """Whether a single value is of a kind, in a range, or matches a pattern."""
    is_bool = isinstance(value, bool)
    if shape is None or shape is object:
        return shape is object or value is None
    if isinstance(shape, range):
        return isinstance(value, int) and not is_bool and value in shape
    if isinstance(shape, re.Pattern):
        return isinstance(value, str) and shape.fullmatch(value) is not None
    if shape is float:
        is_number = isinstance(value, int | float) and not is_bool
        return is_number and -_LARGEST <= value <= _LARGEST and math.isfinite(value)
    return isinstance(value, shape) and is_bool == (shape is bool)


def _fits(value: Any, shape: Any) -> bool:
    try:
        require_shape(value, shape)
    except Misfit:
        return False
    return True


def _name(shape: Any) -> str:
    if shape is None:
        return "null"
    if isinstance(shape, range):
        return f"a whole number from {shape.start} to {shape.stop - 1}"
    if isinstance(shape, re.Pattern):
        return f"text like {shape.pattern}"
    if isinstance(shape, dict | list):
        return _KINDS[type(shape)]
    return _KINDS[shape]


def _expected(place: str, wanted: str, value: Any) -> str:
    got = _KINDS[type(value)]
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        got = shown(value, _SHOWN_CHARS) if isinstance(value, str) else _number(value)
    return f"{place}: expected {wanted}, got {got}".removeprefix(": ")


def _number(value: int | float) -> str:
    is_long = isinstance(value, int) and value.bit_length() > 200
    return "a number of too many digits" if is_long else f"{value!r:.{_SHOWN_CHARS}}"


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")
