"""What goes to a pipe: no control codes, no boxes, no broken lines, few lines."""

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANG_S

from agent.process.terminal import (
    PLAIN_PERIOD_S,
    counting,
    fit,
    is_terminal,
    new_console,
)

ROOT = Path(__file__).parents[2]
LONG = "a line that is longer than eighty columns " * 4
PROGRAM = f"""
import sys
from agent.process.terminal import counting, new_console
from rich.table import Table
new_console().print({LONG!r}, "[not a tag] → ±", markup=False)
table = Table(box=None)
for column in range(30):
    table.add_column(f"column {{column}}")
table.add_row(*(["60% n=50"] * 30))
new_console().print(table)
with counting("steps", 1000, sys.stdout) as count:
    for _ in range(1000):
        count.advance()
"""


@pytest.mark.parametrize(
    "environment",
    [{}, {"FORCE_COLOR": "1"}, {"TTY_COMPATIBLE": "1"}, {"COLUMNS": "20"}, {"NO_COLOR": "1"}],
    ids=str,
)
def test_a_pipe_gets_whole_lines_and_nothing_else(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        capture_output=True,
        timeout=HANG_S,
        check=True,
        env={**os.environ, **environment, "TERM": "xterm", "PYTHONIOENCODING": "ascii"},
    )
    lines = done.stdout.decode("ascii").splitlines()
    assert lines[0].startswith(LONG)
    assert "[not a tag] ? ?" in lines[0]
    assert len(lines) == 3, "a table's head and row; work that is soon done is not told"
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize(
    ("term", "is_alive"), [("xterm", True), ("dumb", False), ("unknown", False), ("", False)]
)
def test_a_dumb_terminal_is_none(
    term: str, is_alive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream:
        assert is_terminal(stream) == is_alive
        assert new_console(stream).is_terminal == is_alive
    os.close(ours)


def test_long_work_is_told_every_half_minute_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    stream = io.StringIO()
    with counting("frames", 4000, stream, done=100) as count:
        for step in range(3600):  # an hour
            count.update(100 + step, f"frames, loss {1 / (step + 1):.3f}")
            now_s += 1.0
        count.say("done")
    lines = stream.getvalue().splitlines()
    assert len(lines) <= 3600 / PLAIN_PERIOD_S + 1
    assert lines[0] == "0:30  frames, loss 0.032: 130 of 4000"
    assert lines[-1] == "done"


def test_a_cut_line_shows_that_it_was_cut() -> None:
    assert fit("short") == "short"
    assert fit("x" * 200, 20) == "x" * 17 + "..."
