"""The client's log: complete lines survive anything, a torn one never spoils its neighbours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from agent.wire.errors import ConfigError
from sim_bridge.log import EndLine, EndLog, LogError, read_log

LINE = EndLine(
    episode_id="0" * 32,
    slot_id="train/0/0#1",
    task="move_left",
    split="train",
    init_state=3,
    phase="train",
    version="base",
    versions=["base"],
    outcome="success",
    steps=5,
    counted=True,
    unix_s=1.5,
)


def write(path: Path, lines: list[EndLine]) -> None:
    log = EndLog(path)
    for line in lines:
        log.append(line)
    log.close()


def test_reads_back_what_was_written_over_several_runs(tmp_path: Path) -> None:
    path = tmp_path / "sim-0" / "client.jsonl"
    lines = [replace(LINE, steps=k) for k in range(5)]
    write(path, lines[:2])
    write(path, lines[2:])
    assert read_log(path) == lines


def test_any_torn_tail_costs_at_most_its_own_line(tmp_path: Path) -> None:
    path = tmp_path / "client.jsonl"
    lines = [replace(LINE, steps=k) for k in range(3)]
    write(path, lines)
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for size in range(last, len(whole) + 1):
        path.write_bytes(whole[:size])
        kept = 3 if size >= len(whole) - 1 else 2  # without its newline a line is still whole
        assert read_log(path) == lines[:kept]
        write(path, [LINE])
        assert read_log(path) == [*lines[:kept], LINE]


@pytest.mark.slow
def test_a_killed_writer_leaves_every_synced_line(tmp_path: Path) -> None:
    path = tmp_path / "client.jsonl"
    code = (
        "import sys; from pathlib import Path; from dataclasses import replace\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from test_log import LINE; from sim_bridge.log import EndLog\n"
        "log = EndLog(Path(sys.argv[1])); k = 0\n"
        "while True:\n"
        "    log.append(replace(LINE, steps=k)); log.sync(); k += 1; print(k, flush=True)\n"
    )
    command = [sys.executable, "-c", code, str(path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        while int(writer.stdout.readline()) < 20:
            pass
        os.kill(writer.pid, signal.SIGKILL)
        synced = [int(line) for line in writer.stdout.read().split("\n")[:-1]]
    steps = [line.steps for line in read_log(path)]
    assert steps == list(range(len(steps)))
    assert len(steps) >= max(synced, default=20)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.replace('"steps":5', '"steps":"5"'),
        lambda text: text.replace('"counted":true', '"counted":1'),
        lambda text: text.replace('"init_state":3', '"init_state":true'),
        lambda text: text.replace('"steps":5,', ""),
        lambda text: text[:40],
        lambda text: "[]",
    ],
)
def test_a_wrong_line_inside_is_named(tmp_path: Path, spoil) -> None:
    path = tmp_path / "client.jsonl"
    write(path, [LINE, LINE])
    good = path.read_text().splitlines()[0]
    path.write_text(f"{good}\n{spoil(good)}\n{good}\n")
    with pytest.raises(LogError, match=r"client\.jsonl:2"):
        read_log(path)


def test_an_unwritable_path_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="log_path: cannot write"):
        EndLog(tmp_path / "file" / "client.jsonl")


@pytest.mark.parametrize("content", ["my notes\nsecond", '{"a": 1}\n', "[1]\n", "torn", '{"episo'])
def test_another_programs_file_is_left_as_it_is(content: str, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(content)
    if content == '{"episo':  # what a loss of power leaves of the first line
        EndLog(path).close()
        assert path.read_text() == ""
        return
    with pytest.raises(ConfigError, match="is another program's file"):
        EndLog(path)
    assert path.read_text() == content
