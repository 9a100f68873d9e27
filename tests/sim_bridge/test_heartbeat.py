"""A bridge's signs of life: a file for containers, pings for systemd."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from scripted_server import ScriptedServer, make_lease
from service_manager import Manager
from test_process import ROOT, sim, stay, wait_until

from agent.wire.errors import ConfigError
from sim_bridge.heartbeat import Heartbeat, check, main


class Clock:
    now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


def test_the_file_holds_the_time_of_the_last_answer_at_most_once_a_second(tmp_path: Path) -> None:
    path, clock = tmp_path / "run" / "heartbeat", Clock()
    heartbeat = Heartbeat(path, clock)
    heartbeat.observe(0)
    assert not path.exists()
    written = []
    for answered in range(1, 41):
        answered_unix_s = clock.now_s
        heartbeat.observe(answered)
        if path.read_text() not in written:
            written.append(path.read_text())
            assert float(path.read_text()) == answered_unix_s
        clock.now_s += 0.25
    assert len(written) == 10
    clock.now_s += 60
    heartbeat.observe(40)  # seen at the last pass, but not written then
    assert float(path.read_text()) == answered_unix_s
    clock.now_s += 60
    heartbeat.observe(40)
    assert float(path.read_text()) == answered_unix_s
    assert os.listdir(path.parent) == ["heartbeat"]


def test_the_file_of_the_process_before_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat"
    path.write_text("1.0\n")
    Heartbeat(path)
    assert not path.exists()


def test_a_path_that_cannot_be_written_is_bad_input() -> None:
    with pytest.raises(ConfigError, match="heartbeat_path: cannot write"):
        Heartbeat(Path("/proc/none/heartbeat"))


def test_a_later_failure_is_reported_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder, clock = tmp_path / "run", Clock()
    heartbeat = Heartbeat(folder / "heartbeat", clock)
    folder.rmdir()
    for answered in range(1, 4):
        heartbeat.observe(answered)
        clock.now_s += 5
    assert capsys.readouterr().err.count("heartbeat_path") == 1


@pytest.mark.parametrize(
    ("content", "is_alive", "text"),
    [
        ("1000.0\n", True, "10.0 s ago"),
        ("979.0\n", False, "31.0 s ago, at most 30 s"),
        ("1100.0\n", False, "-90.0 s ago"),
        ("", False, "does not hold"),
        (None, False, "no answer yet"),
    ],
)
def test_the_check(tmp_path: Path, content: str | None, is_alive: bool, text: str) -> None:
    path = tmp_path / "heartbeat"
    if content is not None:
        path.write_text(content)
    verdict, line = check(path, 30.0, 1010.0)
    assert verdict == is_alive
    assert text in line
    assert "\n" not in line


def test_the_command_says_so_by_its_status(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(tmp_path / "heartbeat")]) == 1
    Heartbeat(tmp_path / "heartbeat").observe(1)
    assert main([str(tmp_path / "heartbeat"), "--max-age-s", "60"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.slow
def test_a_worker_tells_systemd_and_keeps_its_heartbeat(tmp_path: Path) -> None:
    manager, path = Manager(f"{tmp_path}/notify"), tmp_path / "heartbeat"
    with ScriptedServer([make_lease(k, horizon_steps=1 << 20) for k in range(2)]) as server:
        stay(server)
        words = sim(server, tmp_path, f"heartbeat_path={path}")
        environment = {**os.environ, **manager.watching()}
        with subprocess.Popen(
            words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
        ) as worker:
            manager.wait_for("READY=1")
            for _ in range(3):
                manager.wait_for("WATCHDOG=1")
            wait_until(path.exists)
            check = [sys.executable, "-m", "sim_bridge.heartbeat", str(path)]
            done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == (0, "")
            worker.terminate()
            manager.wait_for("STOPPING=1")
        assert worker.returncode == 0
    manager.close()


def test_another_programs_file_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    beside = tmp_path / "notes.txt.next"
    beside.write_text("mine, too")
    with pytest.raises(ConfigError, match="is another program's file"):
        Heartbeat(path, Clock())
    assert (path.read_text(), beside.read_text()) == ("mine", "mine, too")
