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


WRITES = """
import sys
from agent.process import run_command, stoppable

def main():
    try:
        print("x" * 5000)
    except OSError as error:
        print(f"mine: {error}", file=sys.stderr)  # taken for an error of its own files
        return 3
    if sys.argv[2:] == ["complain"]:
        print("seen", file=sys.stderr, flush=True)
        return 2
    return 0

if sys.argv[1] == "command":
    run_command(main)
with stoppable("perennial"):
    sys.exit(main())
"""


def write_to(
    kind: str, redirection: str, folder: Path, *words: str, before: str = ":", **variables: str
) -> str:
    """What such a program said on streams that are open, and its status behind it."""
    script = folder / "writes.py"
    script.write_text(WRITES)
    line = f'{before}; "$@" {redirection}; echo "status $?" >&3'
    done = subprocess.run(
        ["/bin/bash", "-c", f"exec 3>&2; {line}", "-", sys.executable, str(script), kind, *words],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=HANG_S, check=False,
    )  # fmt: skip
    return done.stderr


@pytest.mark.parametrize("kind", ["command", "process"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written_is_said_in_a_line(
    kind: str, unbuffered: str, tmp_path: Path
) -> None:
    said = write_to(kind, ">/dev/full", tmp_path, PYTHONUNBUFFERED=unbuffered)
    line, status = said.splitlines()
    assert "standard output: cannot be written (No space left on device): free space" in line
    assert status == "status 1"


@pytest.mark.parametrize("kind", ["command", "process"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_is_cut_is_none(kind: str, unbuffered: str, tmp_path: Path) -> None:
    """A disk that fills up takes the beginning: unbuffered, Python says nothing about the rest."""
    said = write_to(kind, ">cut", tmp_path, before="ulimit -f 1", PYTHONUNBUFFERED=unbuffered)
    assert 0 < (tmp_path / "cut").stat().st_size <= 1024
    assert "standard output: cannot be written (File too large)" in said
    assert said.endswith("status 1\n")


@pytest.mark.parametrize("kind", ["command", "process"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_hears_nothing(kind: str, unbuffered: str, tmp_path: Path) -> None:
    gone = "exec 8> >(exec 0<&-); wait $!"  # nobody holds the pipe's other end any more
    said = write_to(kind, ">&8", tmp_path, before=gone, PYTHONUNBUFFERED=unbuffered)
    assert said == "status 141\n"


@pytest.mark.parametrize("kind", ["command", "process"])
def test_complaints_that_cannot_be_said_change_no_status(kind: str, tmp_path: Path) -> None:
    said = write_to(kind, "2>/dev/full", tmp_path, "complain")
    assert said == "status 2\n"


@pytest.mark.parametrize(
    "words", [["--help"], ["keys", "--help"], ["run", "--help"], ["keys", "init", "keys"]]
)
def test_every_command_says_that_its_output_cannot_be_written(
    words: list[str], tmp_path: Path
) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "deploy.local.cli", *words],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=HANG_S, check=False,
        )  # fmt: skip
    (line,) = done.stderr.splitlines()
    assert "standard output: cannot be written (No space left on device): " in line
    assert done.returncode == 1
