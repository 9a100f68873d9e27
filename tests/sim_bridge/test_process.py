"""The two commands as processes: help, bad input, a clean end on SIGTERM, death of the parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from patience import HANG_S
from scripted_server import CHUNK_STEPS, ScriptedServer, make_lease

from agent.wire.messages import Act
from sim_bridge.log import read_log

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def command(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def sim(server: ScriptedServer, folder: Path, *more: str) -> list[str]:
    config = str(ROOT / "configs" / "sim.yaml")
    settings = ["suite=toy", "envs=2", f"log_path={folder}/client.jsonl", *more]
    return command("sim_bridge", "--config", config, f"endpoint={server.endpoint}", *settings)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + HANG_S
    while not holds():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.02)


def stay(server: ScriptedServer) -> None:
    """Makes the policy stand still, so that episodes go on until their horizon."""
    server.policy = lambda lease, step: np.zeros((CHUNK_STEPS, 7), np.float32)


def acts(server: ScriptedServer) -> int:
    return sum(isinstance(each, Act) for each in server.received)


@pytest.mark.parametrize("module", ["sim_bridge.__main__", "sim_bridge.probe"])
def test_help_loads_nothing_heavy(module: str) -> None:
    code = (
        f"import sys, {module} as process\n"
        "try: process.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('numpy', 'hydra', 'zmq', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "key=value" in done.stdout
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["suite=moon"], "unknown suite 'moon'; known: "),
        (["envs=0"], "envs: expected 1 to 1024, got 0"),
        (["envz=2"], "envz"),
        (["envs=many"], "many"),
        (["suite=toy", "log_path=/proc/none/client.jsonl"], "log_path: cannot write"),
        (["suite=toy", "endpoint=nowhere"], "endpoint 'nowhere'"),
        (["--config", "/nonexistent.yaml"], "no such file"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path, settings: list[str], expected: str
) -> None:
    config = [] if "--config" in settings else ["--config", str(ROOT / "configs" / "sim.yaml")]
    path = [] if any("log_path" in each for each in settings) else [f"log_path={tmp_path}/c.jsonl"]
    done = subprocess.run(
        command("sim_bridge", *config, *settings, *path),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_sigterm_aborts_open_episodes_and_exits_0(tmp_path: Path) -> None:
    with ScriptedServer([make_lease(k, horizon_steps=1 << 20) for k in range(2)]) as server:
        stay(server)
        with subprocess.Popen(sim(server, tmp_path), stdout=subprocess.PIPE, cwd=ROOT) as process:
            wait_until(lambda: acts(server) > 10)
            process.terminate()
            output, _ = process.communicate(timeout=HANG_S)
        assert process.returncode == 0
        assert json.loads(output)["episodes"] == {"aborted": 2}
        assert {line.outcome for line in read_log(tmp_path / "client.jsonl")} == {"aborted"}


def test_an_idle_worker_leaves_when_told_to(tmp_path: Path) -> None:
    with ScriptedServer([make_lease(0)]) as server:
        done = subprocess.run(
            sim(server, tmp_path, "idle_exit_s=0.3"), cwd=ROOT, timeout=HANG_S, check=False
        )
        assert done.returncode == 0
        assert len(read_log(tmp_path / "client.jsonl")) == 1


def test_a_worker_dies_with_its_parent(tmp_path: Path) -> None:
    with ScriptedServer([make_lease(0, horizon_steps=1 << 20)]) as server:
        stay(server)
        code = (
            "import subprocess, sys, time\n"
            "print(subprocess.Popen(sys.argv[1:]).pid, flush=True); time.sleep(600)"
        )
        worker = sim(server, tmp_path, "die_with_parent=true")
        parent_command = [sys.executable, "-c", code, *worker]
        with subprocess.Popen(parent_command, stdout=subprocess.PIPE, cwd=ROOT) as parent:
            assert parent.stdout is not None
            worker_pid = int(parent.stdout.readline())
            wait_until(lambda: acts(server) > 3)
            os.kill(parent.pid, signal.SIGKILL)
        wait_until(lambda: not is_running(worker_pid))
        (line,) = read_log(tmp_path / "client.jsonl")
        assert line.outcome == "aborted"


def is_running(pid: int) -> bool:
    """Whether a process exists and is not a zombie that nobody reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_the_probe_logs_every_reply_and_ends_its_episodes_as_aborted(tmp_path: Path) -> None:
    config = str(ROOT / "configs" / "probe.yaml")
    path = tmp_path / "probe.jsonl"
    with ScriptedServer([]) as server:
        settings = [f"endpoint={server.endpoint}", f"log_path={path}", "rate_hz=500"]
        probe = command("sim_bridge.probe", "--config", config, "task=move_left", *settings)
        with subprocess.Popen(probe, cwd=ROOT) as process:
            wait_until(lambda: acts(server) > 120)
            process.terminate()
            process.wait(HANG_S)
        assert process.returncode == 0
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        answered = [line for line in lines if line["event"] == "Act"]
        assert len(answered) == acts(server)
        assert {line["version"] for line in answered} == {"base"}
        assert not any(line["error"] for line in lines)
        assert max(line["step_index"] for line in answered) == 49
        assert len(server.episodes) == len(server.sealed) >= 3
        outcomes = {served.end.outcome for served in server.sealed.values() if served.end}
        assert outcomes == {"aborted"}


def test_a_lease_of_an_unknown_task_is_bad_input(tmp_path: Path) -> None:
    with ScriptedServer([make_lease(0, "fold_laundry")]) as server:
        done = subprocess.run(
            sim(server, tmp_path), cwd=ROOT, timeout=HANG_S, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "'toy' has no task 'fold_laundry'; it has: move_left, " in line


def test_a_worker_waits_for_its_full_disk_and_goes_on(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "perennial-test", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("may not mount a tmpfs")
    try:
        with ScriptedServer([make_lease(k) for k in range(400)]) as server:
            words = sim(server, disk)
            with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=ROOT) as worker:
                wait_until(lambda: len(server.sealed) >= 4)
                with (disk / "other").open("wb", buffering=0) as other, suppress(OSError):
                    while True:
                        other.write(bytes(4096))
                path = disk / "client.jsonl"
                wait_until(lambda: len(read_log(path)) < len(server.sealed))
                time.sleep(1.5)  # it asks for nothing more: what it has is two bodies' ends
                held = len(server.sealed)
                assert len(server.leases) > 0
                assert held - len(read_log(path)) <= 2
                time.sleep(0.5)
                assert len(server.sealed) == held
                assert worker.poll() is None
                (disk / "other").unlink()
                wait_until(lambda: len(server.sealed) > held + 4)
                worker.terminate()
                assert worker.wait(HANG_S) == 0
                said = worker.stderr.read() if worker.stderr else ""
            logged = [line.episode_id for line in read_log(path)]
            assert sorted(logged) == sorted(server.sealed)
            assert "Traceback" not in said
            assert said.count("No space left on device") == 1
    finally:
        subprocess.run(["umount", str(disk)], check=True)
