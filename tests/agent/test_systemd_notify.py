"""What processes tell systemd: a UNIX datagram socket stands for systemd's end."""

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator

import pytest
from patience import HANG_S
from process_fixtures import ROOT, agent_process, wait_for_endpoints
from server_fixtures import observe, running, start_own
from service_manager import WATCHDOG_S, Manager

from agent.server import inference
from agent.wire.systemd import MAIN, STATUS_PERIOD_S, ServiceManager

ONE_PER_S = str(4_000_000)  # WATCHDOG_USEC with which a ping is due once a second


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path) -> Iterator[Manager]:
    names = {"path": f"{tmp_path}/notify", "abstract": f"@perennial-{os.getpid()}-{tmp_path.name}"}
    manager = Manager(names[request.param])
    yield manager
    manager.close()


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_ready_status_and_stopping_arrive_as_one_datagram_each(manager):
    client = ServiceManager(environment=manager.environment())
    client.show("loading\nthe model")
    client.ready("serving base")
    client.show("serving base")
    client.stopping()
    client.stopping()
    client.show("too late")
    assert manager.receive_all() == [
        "STATUS=loading the model",
        "READY=1\nSTATUS=serving base",
        "STOPPING=1\nSTATUS=stopping",
    ]


def test_pings_follow_beats_four_times_per_limit(manager):
    clock = Clock()
    client = ServiceManager(environment=manager.environment(WATCHDOG_USEC=ONE_PER_S), clock=clock)
    for _ in range(100):  # as long as nothing beats, nothing is sent
        client.beat()
        clock.now_s += 0.1
    assert len(manager.receive_all()) == 10
    clock.now_s += 1000
    assert manager.receive_all() == []
    client.beat()
    assert manager.receive_all() == ["WATCHDOG=1"]


def test_long_steps_raise_the_limit_and_leave_the_pings_as_frequent(manager):
    clock = Clock()
    client = ServiceManager(environment=manager.environment(WATCHDOG_USEC=ONE_PER_S), clock=clock)
    client.allow(96.0)
    assert manager.receive_all() == ["WATCHDOG_USEC=100000000"]
    for _ in range(100):
        client.beat()
        clock.now_s += 0.1
    assert len(manager.receive_all()) == 10
    ServiceManager(environment=manager.environment()).allow(96.0)
    assert manager.receive_all() == [], "nobody watches it"


def test_no_thread_can_vouch_for_another(manager):
    clock = Clock()
    environment = manager.environment(WATCHDOG_USEC=ONE_PER_S)
    client = ServiceManager((MAIN, "receiver"), environment, clock)

    def beat_as_receiver() -> None:
        thread = threading.Thread(target=client.beat, name="receiver")
        thread.start()
        thread.join(HANG_S)

    for _ in range(3):
        client.beat()
        clock.now_s += 10
    assert manager.receive_all() == []
    beat_as_receiver()
    assert manager.receive_all() == ["WATCHDOG=1"]
    clock.now_s += 10
    beat_as_receiver()
    assert manager.receive_all() == []
    client.beat()
    assert manager.receive_all() == ["WATCHDOG=1"]


def test_the_status_is_asked_now_and_then(manager):
    clock = Clock()
    client = ServiceManager(environment=manager.environment(), clock=clock)
    asked = []

    def status() -> str:
        asked.append(clock.now_s)
        return f"{len(asked)} asked"

    for _ in range(20):
        client.beat(status)
        clock.now_s += STATUS_PERIOD_S / 4
    assert manager.receive_all() == [f"STATUS={count} asked" for count in range(1, 6)]


@pytest.mark.parametrize(
    "environment", [{}, {"WATCHDOG_USEC": ONE_PER_S}, {"NOTIFY_SOCKET": ""}], ids=str
)
def test_without_systemd_nothing_happens(environment, caplog):
    client = ServiceManager(environment=environment)
    client.ready("")
    client.beat(lambda: pytest.fail("nobody wants to know"))
    client.stopping()
    client.close()
    assert caplog.records == []


@pytest.mark.parametrize("pid", ["1", str(os.getpid())], ids=["another", "this"])
def test_only_the_process_that_is_watched_pings(manager, pid):
    environment = manager.environment(WATCHDOG_USEC=ONE_PER_S, WATCHDOG_PID=pid)
    client = ServiceManager(environment=environment)
    client.beat()
    assert manager.receive_all() == (["WATCHDOG=1"] if pid == str(os.getpid()) else [])


@pytest.mark.parametrize(
    "environment",
    [
        {"NOTIFY_SOCKET": "/nowhere/notify", "WATCHDOG_USEC": ONE_PER_S},
        {"NOTIFY_SOCKET": "vsock:2:1234"},
        {"NOTIFY_SOCKET": "/" + "x" * 200},
    ],
    ids=lambda values: values["NOTIFY_SOCKET"][:20],
)
def test_a_socket_that_does_not_work_is_logged_once(environment, caplog):
    client = ServiceManager(environment=environment)
    client.ready("")
    client.beat(lambda: "fine")
    client.stopping()
    (record,) = caplog.records
    assert environment["NOTIFY_SOCKET"] in record.getMessage()


def test_a_manager_that_goes_away_or_does_not_listen_stops_nobody(tmp_path, caplog):
    manager = Manager(f"{tmp_path}/notify")
    environment = manager.environment(WATCHDOG_USEC="1")
    client = ServiceManager(environment=environment)
    for k in range(10_000):  # more than the socket holds
        client.show(str(k))
    manager.close()
    client.beat()
    client.stopping()
    assert len(caplog.records) == 1


@pytest.mark.parametrize("value", ["soon", "0", "-1"])
def test_a_watchdog_limit_that_is_none_is_logged(tmp_path, caplog, value):
    manager = Manager(f"{tmp_path}/notify")
    client = ServiceManager(environment=manager.environment(WATCHDOG_USEC=value))
    client.beat()
    assert manager.receive_all() == []
    assert "WATCHDOG_USEC" in caplog.text
    manager.close()


def test_a_batch_that_does_not_end_counts_as_a_standstill(tmp_path, monkeypatch):
    def wait_for(alive: bool) -> str:
        deadline_s = time.monotonic() + HANG_S
        while server.server.health().alive != alive:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        return server.server.health().reason

    monkeypatch.setattr(inference, "FIRST_BATCH_LIMIT_S", 0.1)
    with running(tmp_path) as server:
        client = server.client()
        episode = start_own(client)
        server.policy.gate.clear()
        client.send(observe(episode.episode_id, 0))
        assert "one batch has taken" in wait_for(False)
        server.policy.gate.set()
        wait_for(True)


# ---- the agent's process -------------------------------------------------------------------------


@pytest.mark.slow
def test_an_agent_says_ready_pings_and_says_stopping(tmp_path, monkeypatch):
    manager = Manager(f"{tmp_path}/notify")
    for name, value in manager.watching().items():
        monkeypatch.setenv(name, value)
    with agent_process(tmp_path) as process:
        assert manager.receive() == "STATUS=loading the model"
        ready = manager.wait_for("READY=1")
        assert ready == "READY=1\nSTATUS=serving base, 0 episodes open"
        wait_for_endpoints(tmp_path, process)
        for _ in range(3):
            manager.wait_for("WATCHDOG=1")
        process.send_signal(signal.SIGTERM)
        manager.wait_for("STOPPING=1")
        assert process.wait(HANG_S) == 0
    manager.close()


STUCK_AGENT = """
import sys, threading
from agent.server.loop import Loop
from agent.__main__ import main

turn, turns = Loop.run_once, []

def stick(loop):
    turns.append(None)
    if len(turns) == 12:
        print("stuck", flush=True)
        threading.Event().wait()
    turn(loop)

Loop.run_once = stick
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_loop_that_is_stuck_sends_no_more_pings(tmp_path):
    manager = Manager(f"{tmp_path}/notify")
    arguments = ["policy.kind=noop", f"state_dir={tmp_path}/agent", "http_port=0"]
    arguments.append(f"robots_endpoint=ipc://{tmp_path}/r.sock")
    with subprocess.Popen(
        [sys.executable, "-c", STUCK_AGENT, *arguments],
        cwd=ROOT,
        env={**os.environ, **manager.watching()},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            manager.wait_for("READY=1")
            manager.wait_for("WATCHDOG=1")
            assert process.stdout.readline() == "stuck\n"
            manager.receive_all()
            assert manager.receive(3 * WATCHDOG_S) is None
            url = wait_for_endpoints(tmp_path, process)["http"]
            with urllib.request.urlopen(f"{url}/metrics", timeout=HANG_S) as response:
                assert response.status == 200, "its other threads go on"
        finally:
            process.kill()
    manager.close()
