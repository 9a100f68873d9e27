"""Whoever only connects takes nothing from those that work."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from patience import HANG_S

from agent.http import HTTP_CONNECTIONS_MAX, Health, HttpServer
from agent.process.descriptors import free_descriptors, raise_descriptor_limit
from agent.process.startup import BAD_INPUT
from agent.wire import connections
from agent.wire.messages import Ok, Status
from agent.wire.sockets import DealerClient, RouterSocket

LIMIT_S = 60.0
ROOT = Path(__file__).parents[2]
KEPT = 8


def wait_for(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def address_of(endpoint: str) -> tuple[str, int]:
    host, port = endpoint.removeprefix("tcp://").rsplit(":", 1)
    return host, int(port)


def is_ended(peer: socket.socket) -> bool:
    """Whether the server has cut a connection; its greeting may come before the end."""
    peer.setblocking(False)
    try:
        while True:
            if not peer.recv(1 << 16):
                return True
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def answer(router: RouterSocket, client: DealerClient) -> None:
    """One request of a client of this thread."""
    client.send(Status())
    received = []
    wait_for(lambda: received.append(router.receive()) or received[-1] is not None)
    request_id = client._pending.copy().pop()
    assert router.send(received[-1].peer, Ok(), request_id)
    assert client.poll(LIMIT_S)[0][1] == Ok()


@pytest.fixture
def router() -> Iterator[RouterSocket]:
    with RouterSocket(
        "tcp://127.0.0.1:0", connections_max=KEPT, on_cut=lambda reason: None
    ) as router:
        yield router


def test_idle_connections_are_cut_and_never_the_clients_that_work(
    router: RouterSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "YOUNG_S", 0.0)
    with ExitStack() as stack:
        first = stack.enter_context(DealerClient(router.endpoint))
        answer(router, first)
        idle = [
            stack.enter_context(socket.create_connection(address_of(router.endpoint)))
            for _ in range(3 * KEPT)
        ]
        wait_for(lambda: sum(map(is_ended, idle)) >= 2 * KEPT + 1)
        answer(router, first)
        late = stack.enter_context(DealerClient(router.endpoint))
        answer(router, late)
        answer(router, first)
        assert len([c for c in router._connections._open.values() if not c.is_cut]) <= KEPT


def test_who_leaves_makes_room(router: RouterSocket) -> None:
    for _ in range(3):
        with ExitStack() as stack:
            peers = [
                stack.enter_context(socket.create_connection(address_of(router.endpoint)))
                for _ in range(KEPT)
            ]
            wait_for(lambda: len(router._connections._open) == KEPT)
            assert not any(map(is_ended, peers))
        wait_for(lambda: not router._connections._open)


def test_of_peers_on_this_machine_the_newest_is_cut(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/x.sock"
    with RouterSocket(endpoint, connections_max=2) as router, ExitStack() as stack:
        first = stack.enter_context(DealerClient(endpoint))
        answer(router, first)
        idle = []
        for _ in range(4):
            idle.append(stack.enter_context(socket.socket(socket.AF_UNIX)))
            idle[-1].connect(f"{tmp_path}/x.sock")
        wait_for(lambda: sum(map(is_ended, idle)) == 3)
        answer(router, first)


def test_a_socket_can_be_made_while_libzmq_still_closes_the_last_one() -> None:
    for _ in range(600):  # their objects take each other's places in memory
        with RouterSocket("tcp://127.0.0.1:0") as router, DealerClient(router.endpoint):
            pass


def test_idle_connections_do_not_keep_prometheus_out() -> None:
    server = HttpServer("127.0.0.1", 0, lambda: b"", lambda: Health(True, True))
    server.start()
    host, port = server.url.removeprefix("http://").rsplit(":", 1)
    with ExitStack() as stack:
        stack.callback(server.close)
        idle = [
            stack.enter_context(socket.create_connection((host, int(port))))
            for _ in range(2 * HTTP_CONNECTIONS_MAX)
        ]
        with urllib.request.urlopen(f"{server.url}/healthz", timeout=LIMIT_S) as response:
            assert response.status == 200
        wait_for(lambda: sum(map(is_ended, idle)) > HTTP_CONNECTIONS_MAX)
        assert not is_ended(idle[-1])


def test_a_process_may_open_what_its_administrator_allows() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
        assert raise_descriptor_limit() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
        free = free_descriptors()
        with open(os.devnull):
            assert free_descriptors() == free - 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_too_few_open_files_are_refused_in_one_line(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "agent", f"state_dir={tmp_path}"]
    done = subprocess.run(
        ["/bin/sh", "-c", 'ulimit -n 20; exec "$@"', "sh", *words],
        check=False, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S,
    )  # fmt: skip
    assert done.returncode == BAD_INPUT
    assert len(done.stderr.splitlines()) == 1
    assert "may hold 20 files open" in done.stderr
    assert "ulimit -Hn" in done.stderr
