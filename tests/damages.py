"""Ways in which a file that a process reads back can be damaged, for any file and for JSON."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Damage = Callable[[Path], None]
NEST = 100_000  # brackets within each other: no parser that calls itself survives them
WRONG = ("text", 7, -1, 1.5, None, True, [], {}, [[1]], {"a": 1})


def byte_damages(seed: int = 0) -> Iterator[tuple[str, Damage]]:
    """Damage to any file, by name: cut, altered, replaced, gone."""
    for share in (0.0, 0.1, 0.5, 0.9):
        yield f"cut at {share:.0%}", lambda path, share=share: _cut(path, share)
    yield "last byte lost", lambda path: path.write_bytes(path.read_bytes()[:-2])
    for number in range(5):
        yield f"4 bytes altered, {number}", lambda path, n=number: alter(path, seed + n)
    yield "garbage", lambda path: path.write_bytes(random.Random(seed).randbytes(2000))
    yield "zeros", lambda path: path.write_bytes(bytes(path.stat().st_size))
    yield "not UTF-8", lambda path: path.write_bytes(b"\xff\xfe" + path.read_bytes() + b"\xe4\n")
    yield "folder", _make_folder
    yield "link to nothing", lambda path: _make_link(path, "nothing-there")
    yield "link to itself", lambda path: _make_link(path, path.name)


def json_damages(value: Any, most: int = 400) -> Iterator[tuple[str, bytes]]:
    """Texts in place of a JSON file that holds `value`: other types at the top and at each place,
    keys that are missing, numbers that are none; at most so many, evenly chosen.
    """
    tops = ("null", "[]", "{}", "7", '"text"', "[1, 2]", "[" * NEST, "NaN", '{"a": ' * NEST)
    yield from ((f"top {text[:10]}", text.encode()) for text in tops)
    found = list(_changed(value, "$"))
    step = max(1, len(found) // most)
    yield from ((name, json.dumps(each).encode()) for name, each in found[::step])


def alter(path: Path, seed: int = 0, count: int = 4) -> None:
    """Turns over a few bytes at one place."""
    data = bytearray(path.read_bytes())
    start = random.Random(seed).randrange(max(1, len(data) - count))
    for index in range(start, min(len(data), start + count)):
        data[index] ^= random.Random(seed + index).randrange(1, 256)
    path.write_bytes(bytes(data))


def _cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def _make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _make_link(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def remove(path: Path) -> None:
    """Whatever is there goes."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _changed(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """The value with one thing of it changed, each."""
    for number in (float("nan"), float("inf"), 1e300, 10**400, -5):
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{where} is {number!r:.10}", number
    for wrong in WRONG:
        if type(wrong) is not type(value) or not isinstance(value, str | int | float):
            yield f"{where} is {wrong!r}", wrong
    if isinstance(value, str):
        yield f"{where} is other text", value[::-1] + "\x1b[31m\n"
        yield f"{where} is empty", ""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, each in items:
            if isinstance(value, dict):
                yield f"{where}.{key} missing", {k: v for k, v in value.items() if k != key}
            elif key == 0:
                yield f"{where}[0] missing", value[1:]
            if isinstance(value, dict) or key in (0, len(value) - 1):
                for name, changed in _changed(each, f"{where}.{key}"):
                    copy = dict(value) if isinstance(value, dict) else list(value)
                    copy[key] = changed
                    yield name, copy
