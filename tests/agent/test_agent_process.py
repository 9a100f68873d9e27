"""The agent as a process: one-line errors, readiness, a clean stop, and no orphan."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from patience import HANG_S
from process_fixtures import COMMAND, ROOT, agent_process, wait_for_endpoints
from server_fixtures import start_own

from agent.wire.messages import EpisodeEnd, EpisodeStart, Hello, Status
from agent.wire.sockets import DealerClient

NONE_EXECUTED = np.zeros(0, np.uint8)


def run_agent(
    *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    command = [*COMMAND, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=HANG_S,
        check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["no_such_key=1"], "no_such_key"),
        (["policy.kind=oracle"], "expected one of vla, noop"),
        (["max_batch=many"], "max_batch"),
        (["--config", "/nowhere.yaml"], "no such file"),
        (["policy.kind=vla", "policy.model_dir=/nowhere"], "/nowhere/config.json"),
        (["robots_endpoint=tcp://0.0.0.0:1"], "insecure=true"),
        (["http_host=0.0.0.0"], "http_open=true"),
        (["state_dir=/proc/agent"], "/proc/agent"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_2(tmp_path, arguments, text):
    done = run_agent("policy.kind=noop", f"state_dir={tmp_path}/agent", *arguments)
    assert done.returncode == 2, done.stderr
    assert text in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_missing_compiler_is_one_line(tmp_path):
    done = run_agent(
        "policy.compile=true",
        f"state_dir={tmp_path}/agent",
        environment={**os.environ, "CXX": "/nowhere/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
    )
    assert done.returncode == 2, done.stderr
    assert "policy.compile=false" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_second_agent_on_the_same_folder_or_port_is_refused(tmp_path):
    with agent_process(tmp_path) as process:
        endpoints = wait_for_endpoints(tmp_path, process)
        done = run_agent("policy.kind=noop", f"state_dir={tmp_path}/agent")
        assert done.returncode == 2
        assert "in use by process" in done.stderr
        port = endpoints["http"].rsplit(":", 1)[1]
        done = run_agent("policy.kind=noop", f"state_dir={tmp_path}/other", f"http_port={port}")
        assert done.returncode == 2
        assert "choose another port" in done.stderr


@pytest.mark.slow
def test_sigterm_seals_open_episodes_and_exits_0(tmp_path):
    with agent_process(tmp_path) as process:
        endpoints = wait_for_endpoints(tmp_path, process)
        with urllib.request.urlopen(f"{endpoints['http']}/readyz", timeout=HANG_S) as response:
            assert response.status == 200
        with urllib.request.urlopen(f"{endpoints['http']}/metrics", timeout=HANG_S) as response:
            assert b"\nperennial_ready 1.0" in response.read()
        with DealerClient(endpoints["robots"]) as client:
            episode = start_own(client)
            process.send_signal(signal.SIGTERM)
            assert process.wait(HANG_S) == 0
    with agent_process(tmp_path), DealerClient(f"ipc://{tmp_path}/r.sock") as client:
        end = EpisodeEnd(episode.episode_id, "aborted", 0, NONE_EXECUTED)
        assert client.request(end, timeout_s=5, retries=5).outcome == "aborted"


@pytest.mark.slow
def test_a_collector_that_hangs_for_ever_does_not_keep_the_process(tmp_path):
    hanging = (
        "import shutil, sys, threading\n"
        "shutil.disk_usage = lambda path: threading.Event().wait()\n"
        "from agent.__main__ import main\n"
        "sys.exit(main())\n"
    )
    with agent_process(tmp_path, command=[sys.executable, "-c", hanging]) as process:
        endpoints = wait_for_endpoints(tmp_path, process)
        with urllib.request.urlopen(f"{endpoints['http']}/metrics", timeout=HANG_S) as response:
            page = response.read()
        assert b'\nperennial_collector_errors_total{collector="disk_state"} 1.0' in page
        assert b"\nperennial_ready 1.0" in page
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_S) == 0
        assert process.stderr.read().count("collector disk_state has not answered") == 1


@pytest.mark.slow
def test_a_kill_loses_no_sealed_episode(tmp_path):
    with agent_process(tmp_path) as process:
        endpoints = wait_for_endpoints(tmp_path, process)
        with DealerClient(endpoints["robots"]) as client:
            ended = [start_own(client) for _ in range(3)]
            for episode in ended:
                client.request(EpisodeEnd(episode.episode_id, "aborted", 0, NONE_EXECUTED))
            start_own(client)
            os.kill(process.pid, signal.SIGKILL)
    (tmp_path / "agent" / "endpoints.json").unlink()
    with agent_process(tmp_path) as process:
        endpoints = wait_for_endpoints(tmp_path, process)
        with DealerClient(endpoints["operator"]) as operator:
            assert operator.request(Status()).episodes_unacked >= 3
        with DealerClient(endpoints["robots"]) as client:
            for episode in ended:
                end = EpisodeEnd(episode.episode_id, "aborted", 0, NONE_EXECUTED)
                assert client.request(end).episode_id == episode.episode_id
            client.request(Hello("robot", ""))
            assert client.request(EpisodeStart("robot", "again", task="own")).version == "base"


@pytest.mark.slow
def test_the_agent_dies_with_its_parent(tmp_path):
    script = (
        "import subprocess, sys, time\n"
        "print(subprocess.Popen(sys.argv[1:]).pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    arguments = ["policy.kind=noop", f"state_dir={tmp_path}/agent", "die_with_parent=true"]
    arguments.append(f"robots_endpoint=ipc://{tmp_path}/r.sock")
    parent = subprocess.Popen(
        [sys.executable, "-c", script, *COMMAND, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    child = int(parent.stdout.readline())
    wait_for_endpoints(tmp_path, parent)
    parent.kill()
    parent.wait(HANG_S)
    parent.stdout.close()
    deadline_s = time.monotonic() + HANG_S
    while is_running(child) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not is_running(child)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
