"""What tells a message without an end from a large one, and how long an address is not let in."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest
from patience import HANG_S

from agent.wire import tcp
from agent.wire.codec import Limits, decode
from agent.wire.connections import FLOOD
from agent.wire.errors import WireError
from agent.wire.flood import (
    DROPPED_FOR_S,
    DROPPED_PARTS,
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    MANY_PARTS,
    PART_BYTES,
    SUSPECT_BYTES,
    TRICKLE_BYTES,
    Dropped,
    Intake,
    Pauses,
    parts_per_byte,
)
from agent.wire.messages import Ok, Status
from agent.wire.sockets import DealerClient, Poller, RouterSocket
from agent.wire.wakeup import Wakeup

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
HANDSHAKE = GREETING + b"\x04" + bytes([len(READY)]) + READY
PEEKED = 4096
ROOT = Path(__file__).parents[2]
LIMIT_BYTES = 1 << 20
RETRIES = round(HANG_S / 0.5)
FLOODS = {
    "large parts": b"\x03" + struct.pack(">Q", 1 << 18) + bytes(1 << 18),
    "empty parts": b"\x01\x00" * (1 << 15),
    "parts of one byte": b"\x01\x01x" * (1 << 15),
    "tiny messages": b"\x00\x00" * (1 << 15),
    "a whole message of a million parts": b"\x01\x01x" * 1_000_000 + b"\x00\x01x",
}


RESET = f"""
import socket, struct, sys, time
from agent.wire import sockets
sockets.HEARTBEAT_S = 0.3
sockets._keep_alive = lambda socket: None  # in whole seconds
with sockets.RouterSocket("tcp://127.0.0.1:0") as router:
    host, port = router.endpoint.removeprefix("tcp://").split(":")
    peer = socket.create_connection((host, int(port)))
    peer.sendall({HANDSHAKE!r})
    time.sleep(0.2)
    message, ping = b"\\x00\\x01x", b"\\x04\\x09\\x04PING\\x00\\x00ab"
    peer.sendall(message * int(sys.argv[1]) + ping * 200 + message)
    time.sleep(0.2)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    time.sleep(0.5)  # the server's own heartbeat would be due
    while router.receive() is not None:
        time.sleep(0.001)
    time.sleep(0.5)
    print("alive")
"""


# ---- how closely parts stand -------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 5, 20])
def test_short_parts_are_seen_wherever_the_piece_begins(size: int) -> None:
    rng = np.random.default_rng(size)
    parts = [b"\x01" + bytes([size]) + rng.bytes(size) for _ in range(PEEKED)]
    stream = b"".join(parts)
    for start in range(size + 2):
        found = parts_per_byte(stream[start : start + PEEKED], encrypted=False)
        assert found == pytest.approx(1 / (size + 2), rel=0.1)


@pytest.mark.parametrize("level", range(4))
def test_pictures_do_not_look_like_parts(level: int) -> None:
    rng = np.random.default_rng(level)
    for _ in range(200):
        picture = rng.integers(0, 2 << (2 * level), PEEKED, dtype=np.uint8).tobytes()
        assert parts_per_byte(picture, encrypted=False) == 0.0
    assert parts_per_byte(bytes(PEEKED), encrypted=False) == 0.0  # all black


def test_the_last_parts_of_a_message_are_none_without_an_end() -> None:
    whole = b"\x01\x01x" * 63 + b"\x00\x01x"
    assert parts_per_byte(whole * 20, encrypted=False) == 0.0
    assert parts_per_byte(b"", encrypted=False) == parts_per_byte(b"", encrypted=True) == 0.0


def test_encrypted_parts_are_counted() -> None:
    part = b"\x00\x22\x07MESSAGE" + bytes(8) + b"x" * 18
    assert parts_per_byte(part * 400, encrypted=True) == pytest.approx(1 / len(part))
    assert parts_per_byte(part * 64 + b"x" * 9000, encrypted=True) == 0.0  # one message may


# ---- what was sent since a message was taken ---------------------------------------------------


def test_a_picture_that_looks_like_parts_is_told_from_them_by_the_memory() -> None:
    intake = Intake()
    intake.begin(10_000, 100, 1 << 30)
    sent_bytes, density = 1 << 20, 1 / 3
    takes = round(sent_bytes * density * PART_BYTES)
    looks = {"sent_bytes": sent_bytes, "segments": 120, "parts_per_byte": density}
    picture = {**looks, "memory_bytes": (1 << 30) + 2 * sent_bytes}
    assert not intake.has_many_parts(**picture, is_certain=False)
    assert intake.has_many_parts(**picture, is_certain=True)
    assert intake.has_many_parts(**looks, memory_bytes=(1 << 30) + takes, is_certain=False)


def test_few_parts_and_long_segments_are_let_be() -> None:
    intake = Intake()
    few = MANY_PARTS - 1
    assert not intake.has_many_parts(2 * few, 1, 1 << 40, 0.5, True)
    sent_bytes = 32 << 20
    assert not intake.has_many_parts(sent_bytes, sent_bytes // 536, 1 << 40, 0.0, True)


def test_a_trickle_is_told_from_a_slow_link_by_the_memory() -> None:
    intake = Intake()
    sent_bytes = 1 << 20
    segments = sent_bytes // 60
    trickle = sent_bytes // 2 * PART_BYTES  # of empty parts
    assert not intake.has_many_parts(sent_bytes, segments, 2 * sent_bytes, 0.0, True)
    assert intake.has_many_parts(sent_bytes, segments, trickle, 0.0, False)
    early = TRICKLE_BYTES - 1  # the process grows meanwhile
    assert not intake.has_many_parts(sent_bytes, segments, early, 0.0, True)


def test_a_message_is_too_long_only_where_none_waits_to_be_taken() -> None:
    intake = Intake()
    assert not any(intake.is_too_long(1000, 100, is_drained=False) for _ in range(3))
    assert not intake.is_too_long(150, 100, is_drained=True)
    assert intake.is_too_long(150, 100, is_drained=True)
    intake.begin(150, 3, 0)
    assert not intake.is_too_long(150, 100, is_drained=True)
    assert intake.is_too_long(201, 100, is_drained=True)


# ---- what follows ------------------------------------------------------------------------------


def test_an_address_waits_longer_each_time_and_is_forgotten() -> None:
    pauses = Pauses()
    assert pauses.begin("a", 0.0, shared=False) == FIRST_PAUSE_S
    assert pauses.begin("a", 0.5, shared=False) == FIRST_PAUSE_S - 0.5  # the same flood
    assert pauses.is_paused("a", 0.9)
    assert not pauses.is_paused("a", 1.0)
    assert not pauses.is_paused("b", 0.9)
    now_s = 1.0
    for _ in range(40):
        now_s += pauses.begin("a", now_s, shared=False)
    assert pauses.begin("a", now_s, shared=False) == LONGEST_PAUSE_S
    assert pauses.begin("b", 1e6, shared=True) == FIRST_PAUSE_S
    assert pauses.begin("b", 1e6 + 1, shared=True) == FIRST_PAUSE_S  # others must get in
    assert pauses.begin("a", 2e6, shared=False) == FIRST_PAUSE_S


def test_an_address_waits_until_what_it_had_sent_is_dropped() -> None:
    pauses = Pauses()
    pauses.prolong("a", 0.0)
    assert not pauses.is_paused("a", 0.0)  # a message of too many parts alone is no flood
    pauses.begin("a", 0.0, shared=True)
    for tenth in range(50):
        pauses.prolong("a", tenth / 10)
    assert pauses.is_paused("a", 5.0)
    assert not pauses.is_paused("a", 4.9 + FIRST_PAUSE_S)
    pauses.prolong("a", 6.0)
    assert not pauses.is_paused("a", 6.0)


def test_dropped_parts_are_forgiven_in_time() -> None:
    dropped = Dropped()
    assert not dropped.add("a", DROPPED_PARTS, 0.0)
    assert not dropped.add("b", DROPPED_PARTS, 0.0)
    assert not dropped.add("a", DROPPED_PARTS, DROPPED_FOR_S)
    assert dropped.add("a", DROPPED_PARTS, DROPPED_FOR_S + 1.0)


# ---- with libzmq -------------------------------------------------------------------------------


class Answering(threading.Thread):
    """Answers whatever is asked, and remembers why connections were cut."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.cuts: list[str] = []
        self.router = RouterSocket(
            "tcp://127.0.0.1:0", Limits(LIMIT_BYTES), on_cut=self.cuts.append
        )
        self.endpoint = self.router.endpoint
        self._wakeup, self._is_over = Wakeup(), False
        self.start()

    def run(self) -> None:
        with self.router:
            poller = Poller([self.router], self._wakeup)
            while not self._is_over:
                poller.wait(0.2)
                while not self._is_over and (received := self.router.receive()) is not None:
                    with suppress(WireError):  # the other peers' are none of ours
                        envelope = decode(received.frames)
                        self.router.send(received.peer, Ok(), envelope.request_id)

    def end(self) -> None:
        self._is_over = True
        self._wakeup.set()
        self.join(HANG_S)
        self._wakeup.close()


@pytest.fixture
def answering() -> Iterator[Answering]:
    thread = Answering()
    yield thread
    thread.end()


def greet(endpoint: str) -> socket.socket:
    host, port = endpoint.removeprefix("tcp://").split(":")
    peer = socket.create_connection((host, int(port)), HANG_S)
    peer.sendall(HANDSHAKE)
    return peer


def peek(peer: socket.socket) -> bytes:
    try:
        return peer.recv(4096, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b""


def wait_for_ready(peer: socket.socket) -> None:
    """libzmq takes no message before it has said so."""
    received = b""
    while b"READY" not in received:
        more = peer.recv(4096)
        assert more, "was cut"
        received += more


def connect(endpoint: str) -> socket.socket:
    peer = greet(endpoint)
    wait_for_ready(peer)
    return peer


def pour(peer: socket.socket, block: bytes) -> None:
    """Sends the same again and again until the connection is cut."""
    deadline_s = time.monotonic() + HANG_S
    with suppress(ConnectionError):
        while time.monotonic() < deadline_s:
            peer.sendall(block)
        pytest.fail("was not cut")


def pause(answering: Answering) -> float:
    """Sends a flood; until when this address then has to wait."""
    with connect(answering.endpoint) as peer:
        pour(peer, FLOODS["empty parts"])
    pauses, deadline_s = answering.router._admission.pauses, time.monotonic() + HANG_S
    while "127.0.0.1" not in pauses._of:  # it is cut before
        assert time.monotonic() < deadline_s
        time.sleep(0.001)
    return pauses._of["127.0.0.1"].until_s


@pytest.mark.parametrize("block", FLOODS.values(), ids=FLOODS.keys())
def test_a_flood_is_cut_its_address_waits_and_others_are_answered(
    answering: Answering, block: bytes
) -> None:
    with DealerClient(answering.endpoint, HANG_S) as honest:
        assert honest.request(Status()) == Ok()
        memory_bytes = tcp.resident_bytes()
        with connect(answering.endpoint) as peer:
            pour(peer, block)
        assert honest.request(Status()) == Ok()
        assert answering.cuts[0] == FLOOD
        assert tcp.resident_bytes() - memory_bytes < 256 << 20
        with DealerClient(answering.endpoint, HANG_S) as late:  # waits until the pause is over
            assert late.request(Status(), timeout_s=0.5, retries=RETRIES) == Ok()
        assert honest.request(Status()) == Ok()
        assert answering.cuts == [FLOOD]


def test_nothing_is_read_of_an_address_that_has_to_wait(answering: Answering) -> None:
    """However often it connects, or that would be a flood by itself."""
    until_s = pause(answering)
    with ExitStack() as stack:
        held = [stack.enter_context(greet(answering.endpoint)) for _ in range(20)]
        while time.monotonic() < until_s - 0.2:
            is_in = any(b"READY" in peek(peer) for peer in held)
            assert not is_in or time.monotonic() >= until_s
            time.sleep(0.02)
        for peer in held:
            wait_for_ready(peer)  # and none of them was cut
    assert answering.cuts == [FLOOD]


def test_a_server_ends_while_an_address_waits(answering: Answering) -> None:
    pause(answering)
    admission, deadline_s = answering.router._admission, time.monotonic() + HANG_S
    admission.pauses._of["127.0.0.1"].until_s += 2 * HANG_S
    with greet(answering.endpoint):
        while not admission._waiting:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        answering.end()
    assert not answering.is_alive()
    assert not admission._waiting  # or Python complains of what was never finished


def test_the_largest_message_passes_also_slowly(answering: Answering) -> None:
    """Also one that looks like parts."""
    frame = b"\x02" + struct.pack(">Q", LIMIT_BYTES) + b"\x01" * LIMIT_BYTES
    with connect(answering.endpoint) as peer, DealerClient(answering.endpoint, HANG_S) as honest:
        for start in range(0, len(frame), 1 << 14):
            peer.sendall(frame[start : start + (1 << 14)])
            time.sleep(0.002)
        peer.sendall(frame * 3)
        assert honest.request(Status()) == Ok()
        peer.sendall(frame)
        assert honest.request(Status()) == Ok()
    assert answering.cuts == []


def test_a_picture_in_small_segments_passes(answering: Answering) -> None:
    """As through a tunnel or a slow link that takes little at a time."""
    frame = b"\x02" + struct.pack(">Q", LIMIT_BYTES) + bytes(LIMIT_BYTES)
    with connect(answering.endpoint) as peer, DealerClient(answering.endpoint, HANG_S) as honest:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        slow_bytes = 3 * SUSPECT_BYTES
        for start in range(0, slow_bytes, 128):
            peer.sendall(frame[start : start + 128])
            time.sleep(0.0002)  # else the kernel puts segments together
        peer.sendall(frame[slow_bytes:])
        assert honest.request(Status()) == Ok()
    assert answering.cuts == []


def test_many_tiny_messages_pass(answering: Answering) -> None:
    with connect(answering.endpoint) as peer, DealerClient(answering.endpoint, HANG_S) as honest:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(20_000):
            peer.sendall(b"\x00\x01x")
        assert honest.request(Status()) == Ok()
    assert answering.cuts == []


@pytest.mark.parametrize("size", [40, LIMIT_BYTES // 2])
def test_what_waits_while_the_server_stands_still_is_no_flood(size: int) -> None:
    """Robots of one address, each with as many messages as may wait."""
    frame = b"\x02" + struct.pack(">Q", size) + bytes(size)
    cuts: list[str] = []
    with RouterSocket("tcp://127.0.0.1:0", Limits(LIMIT_BYTES), on_cut=cuts.append) as router:
        peers = [connect(router.endpoint) for _ in range(4)]
        senders = [threading.Thread(target=p.sendall, args=(frame * 64,)) for p in peers]
        for sender in senders:
            sender.start()
        time.sleep(0.5)  # nobody takes a message; several looks
        wakeup = Wakeup()
        poller, taken, deadline_s = Poller([router], wakeup), 0, time.monotonic() + HANG_S
        while taken < 4 * 64 and not cuts and time.monotonic() < deadline_s:
            poller.wait(0.2)
            taken += sum(1 for _ in iter(router.receive, None))
        for sender, peer in zip(senders, peers, strict=True):
            sender.join(HANG_S)
            peer.close()
        wakeup.close()
    assert (cuts, taken) == ([], 4 * 64)


@pytest.mark.parametrize("waiting", [60, 200])
def test_a_peer_that_resets_its_connection_while_messages_wait_ends_no_process(
    waiting: int,
) -> None:
    """Heartbeats of either side, with libzmq's bound; a program of its own, for it would end."""
    words = [sys.executable, "-c", RESET, str(waiting)]
    done = subprocess.run(
        words, check=False, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S
    )
    assert (done.returncode, done.stdout.split()) == (0, ["alive"]), done.stderr
