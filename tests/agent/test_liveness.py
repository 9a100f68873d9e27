"""Who keeps a lease and who does not, and what becomes of peers that are gone."""

import socket
import struct
import time
from contextlib import suppress

import numpy as np
import pytest
import zmq
from server_fixtures import K, P, finish, make_order, observe, post, running, start_own, take_slot

from agent.orders import OrderBook
from agent.wire import sockets
from agent.wire.codec import decode, encode
from agent.wire.errors import WireError
from agent.wire.messages import (
    Assign,
    Chunk,
    EpisodeStart,
    Hello,
    Outcome,
    Telemetry,
)
from agent.wire.sockets import Poller, RouterSocket
from agent.wire.wakeup import Wakeup

LEASE_S = 0.8
SILENCE_S = 2 * LEASE_S
HANG_S = 60.0


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("liveness"), lease_s=LEASE_S) as running_server:
        post(running_server.operator(), make_order(slots=64))
        yield running_server


def for_a_while(say) -> None:
    ends_s = time.monotonic() + SILENCE_S
    while time.monotonic() < ends_s:
        say()
        time.sleep(LEASE_S / 10)


SIGNS = {
    "telemetry": lambda name: Telemetry(name, {"envs": 1.0}),
    "hello": lambda name: Hello(name, "test"),
    "assign": lambda name: Assign(name, "another-suite", 1),
}


def test_a_client_that_is_not_silent_keeps_all_it_holds(server):
    client = server.client()
    held = {}
    for sign in SIGNS:
        name = f"lively-{sign}"
        _, running_slot = take_slot(client, name)
        leased = client.request(Assign(name, "toy", 1)).leases[0]
        held[name] = running_slot, start_own(client, name), leased
    _, paused = take_slot(client, "two-arms")
    busy = start_own(client, "two-arms")

    def say() -> None:
        for sign, make in SIGNS.items():
            client.request(make(f"lively-{sign}"))
        client.request(observe(busy.episode_id, 0))  # repeats count, and count for the other arm

    for_a_while(say)
    for name, (running_slot, own, leased) in held.items():
        for episode in (running_slot, own):  # a person has moved the robot meanwhile
            assert client.request(observe(episode.episode_id, 0)).step_index == 0
            client.request(finish(episode.episode_id))
        started = client.request(EpisodeStart(name, "k", slot_id=leased.slot_id))
        client.request(finish(started.episode_id, Outcome.ABORTED, chunks=0))
    assert client.request(observe(paused.episode_id, 0)).step_index == 0
    for episode in (paused, busy):
        client.request(finish(episode.episode_id))


def test_the_time_that_a_server_stands_still_is_nobodys_silence(server):
    client = server.client()
    _, running_slot = take_slot(client, "patient")
    own = start_own(client, "patient")
    leased = client.request(Assign("patient", "toy", 1)).leases[0]
    server.server._mailbox.post(lambda: time.sleep(SILENCE_S))
    for episode in (running_slot, own):
        assert client.request(observe(episode.episode_id, 0)).step_index == 0
        client.request(finish(episode.episode_id))
    started = client.request(EpisodeStart("patient", "k", slot_id=leased.slot_id))
    client.request(finish(started.episode_id, Outcome.ABORTED, chunks=0))


MALFORMED = {
    "observation": lambda episode, name: observe(episode, 0, proprio=np.zeros(P - 1, np.float32)),
    "wrong step": lambda episode, name: observe(episode, 7),
    "told too much": lambda episode, name: observe(episode, 0, executed=np.ones(K, np.uint8)),
    "gauge": lambda episode, name: Telemetry(name, {"no such": 1.0}),
    "count": lambda episode, name: Assign(name, "toy", -1),
    "start key": lambda episode, name: EpisodeStart(name, "../x", task="own"),
    "end": lambda episode, name: finish(episode, "won"),
}


def test_a_malformed_request_keeps_nothing(server):
    client = server.client()
    episodes = {}
    for number, kind in enumerate(MALFORMED):
        episodes[kind] = f"confused-{number}", start_own(client, f"confused-{number}").episode_id

    def say() -> None:
        for kind, (name, episode_id) in episodes.items():
            with suppress(WireError):  # in the end even their end is known
                client.request(MALFORMED[kind](episode_id, name))

    for_a_while(say)
    for _, episode_id in episodes.values():
        with pytest.raises(WireError, match="no message for"):
            client.request(observe(episode_id, 0))


def test_what_a_lively_client_has_lost_is_given_up_in_the_end():
    book = OrderBook(30.0, lambda: "episode")
    book.post([make_order(slots=2)])
    lease, idle = book.lease("a", "toy", 2, 0.0)
    book.start(lease.slot_id, "a", "key", 0.0)
    for now_s in range(0, 590, 10):
        book.touch_client("a", float(now_s))
        assert not book.expire(float(now_s)).slot_ids
    for now_s in range(590, 700, 10):
        book.touch_client("a", float(now_s))
    expired = book.expire(700.0)
    assert expired.slot_ids == [idle.slot_id]
    assert expired.episode_ids == ["episode"]


# ---- connections -----------------------------------------------------------------------------


def handshake(endpoint: str) -> socket.socket:
    """A DEALER by hand, which answers no sign of life."""
    host, port = endpoint.removeprefix("tcp://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=HANG_S)
    greeting = b"\xff" + b"\0" * 8 + b"\x7f" + b"\x03\x01" + b"NULL".ljust(20, b"\0") + b"\0" * 32
    ready = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
    connection.sendall(greeting + b"\x04" + bytes([len(ready)]) + ready)
    return connection


def wait_until_cut(connection: socket.socket) -> None:
    try:
        while connection.recv(4096):
            pass
    except ConnectionResetError:
        pass


@pytest.fixture
def brisk(monkeypatch):
    monkeypatch.setattr(sockets, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(sockets, "SILENCE_LIMIT_S", 0.3)
    monkeypatch.setattr(sockets, "HANDSHAKE_LIMIT_S", 0.3)
    monkeypatch.setattr(sockets, "_keep_alive", lambda socket: None)  # in whole seconds


def test_a_peer_that_stands_still_is_noticed(brisk):
    with RouterSocket("tcp://127.0.0.1:0") as router, handshake(router.endpoint) as connection:
        wait_until_cut(connection)


def test_a_connection_that_never_becomes_a_peer_is_closed(brisk):
    with RouterSocket("tcp://127.0.0.1:0") as router:
        host, port = router.endpoint.removeprefix("tcp://").split(":")
        with socket.create_connection((host, int(port)), timeout=HANG_S) as connection:
            wait_until_cut(connection)


def test_a_server_that_stands_still_is_noticed_by_its_client(brisk):
    """A listener that shakes hands and then says nothing is left, and tried anew."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(HANG_S)
        port = listener.getsockname()[1]
        with sockets.DealerClient(f"tcp://127.0.0.1:{port}", timeout_s=1) as client:
            first, _ = listener.accept()
            second, _ = listener.accept()  # it gave the first one up
            first.close()
            second.close()
            assert client.poll(0.0) == []


def test_a_client_that_comes_back_under_its_own_routing_id_is_answered():
    with RouterSocket("tcp://127.0.0.1:0") as router:
        poller = Poller([router], Wakeup())
        left = []
        for number in range(3):  # nobody closes the former connection
            dealer = zmq.Context.instance().socket(zmq.DEALER)
            dealer.linger = 0
            dealer.routing_id = b"my-robot"
            dealer.connect(router.endpoint)
            dealer.send_multipart([bytes(f) for f in encode(Hello("r", ""), number)])
            ends_s = time.monotonic() + HANG_S
            received = None
            while received is None and time.monotonic() < ends_s:
                poller.wait(0.5)
                received = router.receive()
            assert received is not None
            assert router.send(received.peer, Hello("answer", ""), number)
            assert dealer.poll(round(HANG_S * 1000))
            assert decode(dealer.recv_multipart()).request_id == number
            left.append(dealer)
        for dealer in left:
            dealer.close()


def test_a_client_is_answered_over_its_newest_connection(server):
    """Its former ones, which asked too, are dead or not: nobody can tell."""
    first = server.client()
    episode = start_own(first, "mobile")
    server.policy.gate.clear()
    message = observe(episode.episode_id, 0)
    for _ in range(12):  # more than wait together
        server.client().send(message)
    time.sleep(0.2)
    newest = server.client()
    newest.send(message)
    time.sleep(0.2)
    server.policy.gate.set()
    ((_, reply),) = newest.poll(HANG_S)
    assert isinstance(reply, Chunk)
    first.request(finish(episode.episode_id))
