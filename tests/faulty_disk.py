"""A disk that refuses: calls of `os` that fail while a test says so."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
DAMAGED = OSError(errno.EIO, os.strerror(errno.EIO))


class FaultyDisk:
    """`error` is what the calls named `of` raise while it is set; the first write does half of its
    work instead. failed: how often."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *of: str) -> None:
        self.error: OSError | None = None
        self.failed = 0
        for name in of:
            monkeypatch.setattr(os, name, self._wrap(getattr(os, name), name))

    def _wrap(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def maybe(first: Any, *rest: Any, **options: Any) -> Any:
            if self.error is None:
                return call(first, *rest, **options)
            self.failed += 1
            if name == "write" and self.failed == 1 and len(rest[0]) > 1:
                return call(first, rest[0][: len(rest[0]) // 2])
            raise self.error

        return maybe
