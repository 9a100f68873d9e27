"""A program with closed or narrow streams says what it can, and writes into no file of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANG_S

ROOT = Path(__file__).parents[2]
PROGRAM = """
import os, sys
from agent.process import run_command, stoppable
from agent.process.terminal import is_terminal, new_console

def main():
    file = os.open("mine", os.O_WRONLY | os.O_CREAT)
    assert file > 2, file
    print("\\ud800 ü", flush=True)
    is_terminal(sys.stdout)
    new_console().print("ü" * 3)
    print("seen", file=sys.stderr, flush=True)
    return 0

if sys.argv[1] == "command":
    run_command(main)
with stoppable("test"):
    sys.exit(main())
"""


def run(kind: str, redirection: str, folder: Path, **variables: str) -> tuple[int, str]:
    """The status, and what was said on both streams that are open."""
    script = folder / "program.py"
    script.write_text(PROGRAM)
    done = subprocess.run(
        ["/bin/sh", "-c", f'"$0" "$1" "$2" {redirection}', sys.executable, str(script), kind],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True, timeout=HANG_S, check=False,
    )  # fmt: skip
    return done.returncode, (done.stdout + done.stderr).decode("latin-1")


@pytest.mark.parametrize("kind", ["command", "process"])
@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_lead_nowhere(kind: str, redirection: str, tmp_path: Path) -> None:
    status, said = run(kind, redirection, tmp_path)
    assert status == 0, said
    assert "Traceback" not in said
    assert (tmp_path / "mine").read_bytes() == b""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("kind", ["command", "process"])
def test_a_letter_that_cannot_be_printed_is_escaped(
    kind: str, encoding: str, tmp_path: Path
) -> None:
    status, said = run(kind, "", tmp_path, PYTHONIOENCODING=encoding)
    assert status == 0, said
    assert "\\ud800 " in said
    assert said.endswith("seen\n")


def test_a_command_says_that_its_output_cannot_be_written(tmp_path: Path) -> None:
    status, said = run("command", ">/dev/full", tmp_path)
    assert status == 1
    (line,) = said.splitlines()
    assert "the output cannot be written: No space left on device" in line
