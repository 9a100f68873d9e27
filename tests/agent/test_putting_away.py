"""A command that is told to stop while it writes leaves nothing half written, and says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import HANG_S

ROOT = Path(__file__).parents[2]
# Writes in a way that is named, and lasts until a signal comes.
PROGRAM = """
import sys, time
from pathlib import Path
from agent.durable import new_folder, replacing
from agent.process import run_command
from agent.process.optional import needing

def wait():
    print("ready", flush=True)
    while True:
        time.sleep(0.01)

def main():
    if sys.argv[1] == "folder":
        with new_folder(Path("a/b/out")) as folder, needing("demos"):
            (folder / "half").write_bytes(b"x")
            wait()
    elif sys.argv[1] == "file":
        with replacing(Path("kept")) as file:
            file.write(b"half")
            wait()
    wait()

run_command(main)
"""


@pytest.fixture(autouse=True)
def nothing_is_ignored() -> Iterator[None]:
    """A shell has its background jobs ignore SIGINT, nohup SIGHUP, and children inherit that."""
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("writes", ["folder", "file", "nothing"])
def test_a_signal_leaves_nothing_half_written(
    writes: str, number: signal.Signals, tmp_path: Path
) -> None:
    (tmp_path / "kept").write_bytes(b"whole")
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, writes],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    said = process.communicate(timeout=HANG_S)[1]
    if writes == "nothing":
        assert (process.returncode, said) == (-number, "")
    else:
        (line,) = said.splitlines()
        assert "stopped; nothing is left half done" in line
        assert process.returncode == 128 + number
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_bytes() == b"whole"


HELD = """
import os, sys
from agent.process.stopping import hold_back_interrupts
hold_back_interrupts()
os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])
"""
LATE = """
import time
print("started", flush=True)
input()  # its imports; a signal comes meanwhile
from agent.process import run_command
run_command(lambda: time.sleep(1000))
"""


def test_an_interrupt_waits_until_it_can_end_the_program_quietly(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HELD, LATE],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    said = process.communicate("\n", timeout=HANG_S)[1]
    assert (process.returncode, said) == (-signal.SIGINT, "")
