"""What a command prints: alive on a terminal, few short lines where its output is none.

A pipe, a log file and TERM=dumb get no control code, no colour, no drawn box and no line that is
broken where a terminal would end; how far long work is, is told once every PLAIN_PERIOD_S.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

PLAIN_PERIOD_S = 30.0
LINE_CHARS = 79
CUT = "..."
_NO_TERMINALS = ("", "dumb", "unknown")
_UNBROKEN = 10_000  # columns of what is no terminal


def is_terminal(stream: TextIO) -> bool:
    """Whether a person looks at `stream` on something that can move a cursor."""
    return stream.isatty() and os.environ.get("TERM", "") not in _NO_TERMINALS


def new_console(stream: TextIO | None = None) -> Console:
    """A console on `stream` (standard output); plain where that is no terminal.

    FORCE_COLOR and the like change nothing there. What the stream cannot encode becomes a "?".
    """
    from rich.console import Console

    stream = stream or sys.stdout
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="replace")
    if is_terminal(stream):
        return Console(file=stream)
    return Console(file=stream, force_terminal=False, no_color=True, width=_UNBROKEN)


def fit(line: str, chars: int = LINE_CHARS) -> str:
    """`line` in so many characters at most, its end cut."""
    return line if len(line) <= chars else line[: chars - len(CUT)] + CUT


def clock(seconds: float) -> str:
    """`12:05`, minutes and seconds."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"


@contextmanager
def telling(line: Callable[[], str], console: Console | None = None) -> Iterator[None]:
    """Prints `line`, behind the time since the beginning, every PLAIN_PERIOD_S meanwhile.

    A single step may take longer than that: a thread prints. On a terminal nothing is printed.
    line: called on that thread. console: on standard error, where none is given.
    """
    console = console or new_console(sys.stderr)
    if console.is_terminal:
        yield
        return
    began_s, ended = time.monotonic(), threading.Event()

    def tell() -> None:
        while not ended.wait(PLAIN_PERIOD_S):
            told = fit(f"{clock(time.monotonic() - began_s)}  {line()}")
            console.print(told, highlight=False, markup=False)

    thread = threading.Thread(target=tell, name="telling", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Count(Protocol):
    """How far a long piece of work is."""

    def update(self, done: int, what: str = "", total: int | None = None) -> None:
        """So much of the total is done; `what` and `total` replace the former ones."""

    def advance(self, more: int = 1) -> None:
        """So much more is done."""

    def say(self, line: str) -> None:
        """Prints a line besides."""


@contextmanager
def counting(
    what: str, total: int | None, stream: TextIO | None = None, *, done: int = 0
) -> Iterator[Count]:
    """Shows a Count meanwhile: a bar on a terminal, else a line now and then.

    total: None while it is not known. stream: standard error, where nothing is said.
    """
    console = new_console(stream or sys.stderr)
    if not console.is_terminal:
        plain = _PlainCount(console, what, total, done)
        with telling(plain.describe, console):
            yield plain
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Left

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Left())
    with Progress(*columns, console=console) as bars:
        yield _BarCount(bars, bars.add_task(what, total=total, completed=done))


class _BarCount:
    def __init__(self, bars: Progress, task: TaskID) -> None:
        self._bars, self._task = bars, task

    def update(self, done: int, what: str = "", total: int | None = None) -> None:
        self._bars.update(self._task, completed=done, description=what or None, total=total)

    def advance(self, more: int = 1) -> None:
        self._bars.advance(self._task, more)

    def say(self, line: str) -> None:
        self._bars.console.print(line, highlight=False, markup=False)


class _PlainCount:
    def __init__(self, console: Console, what: str, total: int | None, done: int) -> None:
        self._console = console
        self._what, self._total, self._done = what, total, done

    def describe(self) -> str:
        of = "" if self._total is None else f" of {self._total}"
        return f"{self._what}: {self._done}{of}"

    def update(self, done: int, what: str = "", total: int | None = None) -> None:
        self._done, self._what = done, what or self._what
        self._total = self._total if total is None else total

    def advance(self, more: int = 1) -> None:
        self.update(self._done + more)

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False)
