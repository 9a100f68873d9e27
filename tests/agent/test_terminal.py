"""What goes to a pipe: no control codes, no boxes, no broken lines, few lines."""

import io
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
from patience import HANG_S

from agent.process import terminal
from agent.process.terminal import counting, fit, is_terminal, new_console

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


def test_a_step_that_takes_long_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    period_s = 0.01
    monkeypatch.setattr(terminal, "PLAIN_PERIOD_S", period_s)
    stream, began_s = io.StringIO(), time.monotonic()
    with counting("frames", 4000, stream, done=100) as count:
        count.update(130, "frames, loss 0.032")
        while len(stream.getvalue().splitlines()) < 3:  # nothing is counted meanwhile
            assert time.monotonic() < began_s + HANG_S
            time.sleep(period_s)
    elapsed_s = time.monotonic() - began_s
    lines = stream.getvalue().splitlines()
    assert 3 <= len(lines) <= elapsed_s / period_s
    assert {line.split("  ", 1)[1] for line in lines} == {"frames, loss 0.032: 130 of 4000"}
    time.sleep(3 * period_s)
    assert stream.getvalue().splitlines() == lines, "nothing is told when the work is over"


def test_a_cut_line_shows_that_it_was_cut() -> None:
    assert fit("short") == "short"
    assert fit("x" * 200, 20) == "x" * 17 + "..."
