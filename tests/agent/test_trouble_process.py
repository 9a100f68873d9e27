"""A real agent whose disk is full, whose ledger is locked, or which half a network connects to."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from process_fixtures import COMMAND, agent_process, wait_for_endpoints
from server_fixtures import start_own

from agent.adapters import AdapterStore
from agent.ledger import LedgerReader
from agent.noop_policy import NoopPolicy
from agent.wire.errors import WireError
from agent.wire.messages import (
    Act,
    Activate,
    EpisodeEnd,
    Executed,
    FetchEpisodes,
    Hello,
    LearnerHello,
    Welcome,
)
from agent.wire.sockets import DealerClient

pytestmark = pytest.mark.slow
LIMIT_S = 120.0
HOLD_LOCK = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


def wait_for(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=LIMIT_S) as response:
        return str(response.read().decode())


class Robot:
    """Acts in episodes of its own task."""

    def __init__(self, client: DealerClient) -> None:
        import numpy as np

        self.client = client
        self.welcome: Welcome = client.request(Hello("robot", "test"))
        self._zeros = np.zeros
        self._full = np.full

    def start(self) -> str:
        self.step = 0
        self.episode_id = start_own(self.client).episode_id
        return self.episode_id

    def act(self) -> bool:
        """Whether what it did is kept."""
        images = {name: self._zeros(shape, "uint8") for name, shape in self.welcome.images.items()}
        proprio = self._zeros(self.welcome.proprio_dim, "float32")
        known = self.welcome.chunk_steps if self.step else 0
        executed = self._full(known, Executed.RUN, "uint8")
        chunk = self.client.request(Act(self.episode_id, self.step, images, proprio, executed))
        self.step += 1
        return bool(chunk.recorded)

    def end(self):
        executed = self._full(self.welcome.chunk_steps, Executed.RUN, "uint8")
        steps = self.step * self.welcome.chunk_steps
        end = EpisodeEnd(self.episode_id, "success", steps, executed)
        return self.client.request(end, timeout_s=10, retries=6)


def outcomes(state_dir: Path) -> dict[str, str]:
    with closing(LedgerReader(state_dir / "agent.db")) as ledger:
        return {row.episode_id: row.outcome for row in ledger.episodes()}


@pytest.mark.parametrize("limit", ["ulimit -n 1024", "ulimit -S -n 64"])
def test_a_thousand_idle_connections_take_nothing_from_a_robot(tmp_path: Path, limit: str) -> None:
    limited = ["bash", "-c", f'{limit}; exec "$@"', "-", *COMMAND]
    bind = "robots_endpoint=tcp://127.0.0.1:0"
    with (
        ExitStack() as stack,
        agent_process(tmp_path, bind, command=limited) as process,
    ):
        endpoints = wait_for_endpoints(tmp_path, process)
        robot = Robot(stack.enter_context(DealerClient(endpoints["robots"], LIMIT_S)))
        robot.start()
        assert robot.act()
        for target in (endpoints["robots"], endpoints["http"]):
            host, port = target.rsplit("/", 1)[1].rsplit(":", 1)
            for _ in range(1000):
                idle = stack.enter_context(socket.socket())
                idle.setblocking(False)
                idle.connect_ex((host, int(port)))
        first = robot.episode_id
        for _ in range(3):
            assert robot.act()
            assert robot.end().outcome == "success"
            robot.start()
        late = stack.enter_context(DealerClient(endpoints["robots"], LIMIT_S))
        assert late.request(Hello("late", "test")).server_id == robot.welcome.server_id
        assert read(f"{endpoints['http']}/healthz") == "ok\n"
        assert "\nperennial_recording 1.0" in read(f"{endpoints['http']}/metrics")
        assert process.poll() is None
        assert outcomes(tmp_path / "agent")[first] == "success"


def test_a_lock_on_the_ledger_that_lasts_costs_no_episode(tmp_path: Path) -> None:
    with agent_process(tmp_path) as process:
        endpoints = wait_for_endpoints(tmp_path, process)
        with DealerClient(endpoints["robots"], LIMIT_S) as client:
            robot = Robot(client)
            first = robot.start()
            assert robot.act()
            words = [sys.executable, "-c", HOLD_LOCK, str(tmp_path / "agent" / "agent.db"), "7"]
            with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as holder:
                assert holder.stdout.readline() == "held\n"
                assert robot.act()
                assert robot.end().outcome == "success"
            assert outcomes(tmp_path / "agent")[first] == "success"
        assert read(f"{endpoints['http']}/healthz") == "ok\n"


def test_what_time_does_not_mend_ends_the_process_with_a_status_and_one_line(
    tmp_path: Path,
) -> None:
    with agent_process(tmp_path) as process:
        endpoints = wait_for_endpoints(tmp_path, process)
        with closing(sqlite3.connect(tmp_path / "agent" / "agent.db")) as db:
            db.execute("DROP TABLE episodes")
        with DealerClient(endpoints["robots"], 5.0) as client:
            robot = Robot(client)
            robot.start()
            assert process.wait(LIMIT_S) == 1
        lines = process.stderr.read().splitlines()
        assert "Traceback" not in "".join(lines)
        assert lines[-1].startswith("perennial serve: the journal in ")
        assert "no such table" in lines[-1]


def test_a_ledger_that_is_removed_while_the_server_runs_ends_it_with_a_status(
    tmp_path: Path,
) -> None:
    with agent_process(tmp_path) as process:
        endpoints = wait_for_endpoints(tmp_path, process)
        with DealerClient(endpoints["robots"], 5.0) as client:
            robot = Robot(client)
            robot.start()
            robot.act()
            for path in (tmp_path / "agent").glob("agent.db*"):
                path.unlink()
            with pytest.raises(WireError):
                robot.end()
            assert process.wait(LIMIT_S) == 1
        last = process.stderr.read().splitlines()[-1]
        assert "agent.db was removed or replaced while it was in use" in last


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "perennial-test", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("may not mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_costs_no_action_and_is_over_by_itself(
    small_disk: Path, tmp_path: Path
) -> None:
    state_dir = small_disk / "agent"
    with agent_process(tmp_path, f"state_dir={state_dir}") as process:
        wait_for((state_dir / "endpoints.json").exists)
        endpoints = json.loads((state_dir / "endpoints.json").read_text())
        metrics = f"{endpoints['http']}/metrics"
        with DealerClient(endpoints["robots"], LIMIT_S) as client:
            robot = Robot(client)
            kept = robot.start()
            assert robot.act()
            assert robot.end().outcome == "success"
            lost = robot.start()
            assert robot.act()
            fill(small_disk / "other")
            wait_for(lambda: not robot.act())
            assert "\nperennial_recording 0.0" in read(metrics)
            assert read(f"{endpoints['http']}/healthz").startswith("ok, but training data is not")
            assert robot.act() is False
            end = robot.end()
            assert (end.outcome, end.counted, end.recorded) == ("aborted", False, False)
            unkept = robot.start()
            assert robot.act() is False
            assert robot.end().outcome == "aborted"
            (small_disk / "other").unlink()
            wait_for(lambda: "\nperennial_recording 1.0" in read(metrics))
            again = robot.start()
            assert robot.act()
            assert robot.end().outcome == "success"
        assert process.poll() is None
        found = outcomes(state_dir)
        assert (found[kept], found[lost], found[again]) == ("success", "aborted", "success")
        assert unkept not in found
        process.terminate()
        assert process.wait(20) == 0
        log = process.stderr.read()
        assert "Traceback" not in log
        assert log.count("episodes are not kept") == 1


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 12))
        except OSError:
            pass


def test_a_server_that_may_open_no_file_serves_all_the_same_and_recovers(tmp_path: Path) -> None:
    binds = [f"{name}_endpoint=tcp://127.0.0.1:0" for name in ("robots", "operator")]
    with agent_process(tmp_path, *binds) as process:
        endpoints = wait_for_endpoints(tmp_path, process)
        version = (
            AdapterStore(tmp_path / "adapters")
            .publish(
                1,
                {"weights.bin": b"x"},
                parent="base",
                task="own",
                base_sha256=NoopPolicy.base_sha256,
                method="test",
                metrics={},
            )
            .version
        )
        with (
            DealerClient(endpoints["robots"], LIMIT_S) as client,
            DealerClient(endpoints["operator"], LIMIT_S) as operator,
        ):
            operator.request(LearnerHello("learner", 1, revision=1))
            robot = Robot(client)
            kept = robot.start()
            assert robot.act()
            assert robot.end().outcome == "success"
            used = {int(name) for name in os.listdir(f"/proc/{process.pid}/fd")}
            limit_descriptors(process.pid, min(set(range(len(used) + 1)) - used))
            robot.start()
            wait_for(lambda: not robot.act())
            assert robot.end().outcome == "aborted"
            for request in (Activate(1, version), FetchEpisodes(1, 10, 0.1)):
                with pytest.raises(WireError, match="raise the limit of open files") as refusal:
                    operator.request(request)
                assert refusal.value.code == "overloaded"  # and not that there is no such version
            limit_descriptors(process.pid, 4096)
            wait_for(lambda: "\nperennial_recording 1.0" in read(f"{endpoints['http']}/metrics"))
            assert operator.request(Activate(1, version)).version == version
            again = robot.start()
            assert robot.act()
            assert robot.end().outcome == "success"
            fetched = operator.request(FetchEpisodes(1, 10, 1.0)).items
            assert {kept} <= {item.episode_id for item in fetched}
        assert outcomes(tmp_path / "agent")[again] == "success"
        process.terminate()
        assert process.wait(20) == 0
        log = process.stderr.read()
        assert "Traceback" not in log
        assert log.count("episodes are not kept") == 1
        assert log.count("the journal is not written") == 1


def limit_descriptors(pid: int, count: int) -> None:
    subprocess.run(["prlimit", f"--nofile={count}:", "--pid", str(pid)], check=True)
