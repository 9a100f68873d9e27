"""Malformed input of every kind the wire can carry: a typed error or a counted drop, never harm.

Every case runs against a real server while another client keeps being served.
"""

import os
import socket
import struct
import threading
import time

import msgpack
import numpy as np
import psutil
import pytest
import zmq
from patience import HANG_S
from server_fixtures import A, K, P, finish, make_order, observe, post, running, start_own

from agent.wire.codec import decode, encode
from agent.wire.errors import WireError
from agent.wire.messages import (
    PROTOCOL_VERSION,
    Act,
    Activate,
    Assign,
    EpisodeEnd,
    EpisodeStart,
    Fault,
    Hello,
    Outcome,
    Status,
    Telemetry,
)

GROWTH_LIMIT_BYTES = 64 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("malformed")) as running_server:
        client = running_server.client()
        episode = start_own(client, "warm-up")
        for step in range(50):
            client.request(observe(episode.episode_id, step))
        yield running_server


@pytest.fixture(autouse=True)
def others_keep_being_served(server):
    """A bystander asks throughout; memory stays bounded."""
    before_bytes = psutil.Process().memory_info().rss
    client = server.client()
    stop, served, failures = threading.Event(), [], []

    def ask() -> None:
        try:
            episode = start_own(client, "bystander")
            step = 0
            while not stop.is_set() or len(served) < 3:
                served.append(client.request(observe(episode.episode_id, step)))
                step += 1
            client.request(finish(episode.episode_id, Outcome.ABORTED))
        except WireError as error:
            failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    yield
    stop.set()
    thread.join(HANG_S)
    client.close()
    assert not failures
    assert len(served) >= 3
    assert psutil.Process().memory_info().rss - before_bytes < GROWTH_LIMIT_BYTES


class RawPeer:
    """A DEALER without our codec."""

    def __init__(self, endpoint: str) -> None:
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(endpoint)

    def ask(self, *frames: bytes) -> Fault:
        self.socket.send_multipart(frames)
        assert self.socket.poll(int(HANG_S * 1000)), "no reply"
        return decode(self.socket.recv_multipart()).message


@pytest.fixture
def raw(server):
    peer = RawPeer(server.server.robots_endpoint)
    yield peer
    peer.socket.close()


def frames_of(message, request_id: int = 1) -> list[bytes]:
    return [bytes(frame) for frame in encode(message, request_id)]


def with_header(frames: list[bytes], **changes) -> list[bytes]:
    return [msgpack.packb({**msgpack.unpackb(frames[0]), **changes}), *frames[1:]]


GOOD = frames_of(
    Act("e", 0, {"a": np.zeros((8, 8, 3), "u1")}, np.zeros(P, "f4"), np.zeros(0, "u1"))
)
FRAME_CASES = {
    "nothing": ([b""], "bad_message"),
    "no msgpack": ([b"\xc1" * 40], "bad_message"),
    "truncated header": ([GOOD[0][:-5], *GOOD[1:]], "bad_message"),
    "truncated array": ([GOOD[0], GOOD[1][:-1], *GOOD[2:]], "bad_array"),
    "missing frame": (GOOD[:-1], "bad_array"),
    "extra frame": ([*GOOD, b"x"], "bad_message"),
    "10000 parts": ([b"x"] * 10_000, "too_large"),
    "10000 empty parts": ([b""] * 10_000, "too_large"),
    "header of a megabyte": ([b"\x90" * (1 << 20)], "too_large"),
    "many objects in the header": ([b"\xdd\x00\x00\xf0\x00" + b"\x90" * 0xF000], "bad_message"),
    "nested arrays": ([b"\x91" * 60_000], "bad_message"),
    "other protocol version": (with_header(GOOD, v=PROTOCOL_VERSION + 1), "version_mismatch"),
    "unknown type": (with_header(GOOD, t="Shutdown"), "unknown_type"),
    "operator's message": (frames_of(Activate(0, "base")), "unknown_type"),
    "a reply as request": (frames_of(Fault("internal", "boo")), "unknown_type"),
    "deadline NaN": (with_header(GOOD, dl=float("nan")), "bad_message"),
}


@pytest.mark.parametrize(("frames", "code"), FRAME_CASES.values(), ids=FRAME_CASES.keys())
def test_malformed_frames_get_a_typed_fault(raw, frames, code):
    fault = raw.ask(*frames)
    assert isinstance(fault, Fault)
    assert fault.code == code


def act_case(**changes):
    return lambda episode_id: observe(episode_id, 0, **changes)


IMAGE = np.zeros((16, 16, 3), np.uint8)
ACT_CASES = {
    "NaN in proprio": act_case(proprio=np.full(P, np.nan, np.float32)),
    "infinite proprio": act_case(proprio=np.full(P, np.inf, np.float32)),
    "short proprio": act_case(proprio=np.zeros(P - 1, np.float32)),
    "double proprio": act_case(proprio=np.zeros(P)),
    "float image": act_case(images={"agentview": IMAGE.astype("f4"), "wrist": IMAGE}),
    "grey image": act_case(images={"agentview": IMAGE[:, :, 0], "wrist": IMAGE}),
    "tiny image": act_case(images={"agentview": IMAGE[:4], "wrist": IMAGE}),
    "wide image": act_case(images={"agentview": np.zeros((8, 2049, 3), "u1"), "wrist": IMAGE}),
    "missing camera": act_case(images={"agentview": IMAGE}),
    "strange camera": act_case(images={"agentview": IMAGE, "../wrist": IMAGE}),
    "executed at the start": act_case(executed=np.ones(K, np.uint8)),
}


@pytest.mark.parametrize("make_act", ACT_CASES.values(), ids=ACT_CASES.keys())
def test_malformed_observations_change_nothing(server, make_act):
    client = server.client()
    episode = start_own(client)
    with pytest.raises(WireError) as caught:
        client.request(make_act(episode.episode_id))
    assert caught.value.code == "bad_array"
    assert client.request(observe(episode.episode_id, 0)).actions.shape == (K, A)
    for executed in (np.full(K, 4, np.uint8), np.ones(K + 1, np.uint8), np.ones(K, np.int32)):
        with pytest.raises(WireError, match="executed"):
            client.request(observe(episode.episode_id, 1, executed=executed))
    for outcome in ("won", "", "SUCCESS"):
        with pytest.raises(WireError, match="bad_outcome"):
            client.request(finish(episode.episode_id, outcome))
    with pytest.raises(WireError, match="steps"):
        client.request(EpisodeEnd(episode.episode_id, "success", -1, np.ones(K, np.uint8)))
    assert client.request(finish(episode.episode_id)).outcome == "success"


MESSAGE_CASES = {
    "client id with a path": (Hello("../../etc", ""), "bad_message"),
    "empty client id": (Hello("", ""), "bad_message"),
    "wrong protocol": (Hello("c", "", protocol_version=99), "version_mismatch"),
    "assign without hello": (Assign("stranger", "toy"), "server_restarted"),
    "too many slots": (Assign("robot", "toy", 10**9), "bad_message"),
    "no slots": (Assign("robot", "toy", 0), "bad_message"),
    "start key with a path": (EpisodeStart("robot", "../x", task="own"), "bad_message"),
    "unknown task": (EpisodeStart("robot", "k", task="../own"), "unknown_task"),
    "unknown slot": (EpisodeStart("robot", "k", slot_id="../../x#0"), "unknown_slot"),
    "slot and task": (EpisodeStart("robot", "k", slot_id="x#0", task="own"), "bad_message"),
    "neither": (EpisodeStart("robot", "k"), "bad_message"),
    "unknown episode": (observe("../../../etc/passwd", 0), "unknown_episode"),
    "end of nothing": (finish("../ledger", Outcome.SUCCESS), "unknown_episode"),
    "unknown gauge": (Telemetry("robot", {"cpu'; drop": 1.0}), "bad_message"),
    "infinite gauge": (Telemetry("robot", {"envs": float("inf")}), "bad_message"),
}


@pytest.mark.parametrize(("message", "code"), MESSAGE_CASES.values(), ids=MESSAGE_CASES.keys())
def test_malformed_requests_get_their_code(server, message, code):
    client = server.client()
    client.request(Hello("robot", ""))
    with pytest.raises(WireError) as caught:
        client.request(message)
    assert caught.value.code == code


def test_unknown_versions_are_refused_everywhere(server):
    operator = server.operator()
    for version in ("v00099-0123456789ab", "../../x", "v" * 5000):
        with pytest.raises(WireError, match="unknown_version"):
            operator.request(Activate(0, version))
        with pytest.raises(WireError, match="unknown_version"):
            post(operator, make_order(version=version))


def test_a_gigabyte_claimed_by_a_raw_socket_is_cut(server):
    """ZMTP 3.0 by hand: greeting, NULL handshake, then a frame that claims 1 GiB."""
    host, port = server.server.robots_endpoint.removeprefix("tcp://").split(":")
    greeting = b"\xff" + b"\0" * 8 + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" * 32
    ready_body = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
    with socket.create_connection((host, int(port)), timeout=HANG_S) as connection:
        connection.sendall(greeting)
        connection.sendall(b"\x04" + bytes([len(ready_body)]) + ready_body)
        connection.sendall(b"\x02" + struct.pack(">Q", 1 << 30) + b"x" * 4096)
        received = b"?"
        deadline_s = time.monotonic() + HANG_S
        while received and time.monotonic() < deadline_s:
            try:
                received = connection.recv(4096)
            except ConnectionResetError:
                received = b""
        assert received == b"", "the server should have cut the connection"


def test_noise_on_the_port_is_ignored(server):
    host, port = server.server.robots_endpoint.removeprefix("tcp://").split(":")
    for noise in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"\xff" * 64, b""):
        with socket.create_connection((host, int(port)), timeout=HANG_S) as connection:
            connection.sendall(noise)


def test_a_reply_to_nobody_is_counted(server):
    before = server.sample("perennial_dropped_messages_total", reason="nobody_to_answer")
    episode = start_own(server.client())
    server.policy.gate.clear()
    peer = RawPeer(server.server.robots_endpoint)
    with server.receiving(1):
        peer.socket.send_multipart(frames_of(observe(episode.episode_id, 0)))
    peer.socket.close()
    time.sleep(0.2)
    server.policy.gate.set()
    deadline_s = time.monotonic() + HANG_S
    after = before
    while after == before and time.monotonic() < deadline_s:
        time.sleep(0.02)
        after = server.sample("perennial_dropped_messages_total", reason="nobody_to_answer")
    assert after == before + 1


def test_a_client_is_told_at_once_that_its_request_is_too_large(server, raw):
    """One of another make by the server, ours before it sends anything."""
    client = server.client()
    client.request(Hello("robot", ""))
    (header,) = frames_of(Assign("robot", "toy", 1))
    body = {**msgpack.unpackb(header)["b"], "suite": "s" * 20_000}
    assert "texts of at most 8192 bytes" in raw.ask(*with_header([header], b=body)).message
    with pytest.raises(WireError, match=r"Assign\.suite: .* has 20000 bytes, at most 8192 fit"):
        client.request(Assign("robot", "s" * 20_000, 1))
    half = np.zeros((20 << 20) // 3 * 3, "u1").reshape(-1, 1, 3)
    pictures = {"agentview": half, "wrist": half}
    with pytest.raises(WireError, match="bytes, at most 33554432 are accepted"):
        client.request(Act("e", 0, pictures, np.zeros(P, "f4"), np.zeros(0, "u1")))


def test_a_flood_of_garbage_leaves_memory_and_state_alone(server, raw):
    rng = np.random.default_rng(0)
    for round_number in range(300):
        frames = [bytearray(frame) for frame in GOOD]
        for _ in range(3):
            frame = frames[rng.integers(len(frames))]
            if frame:
                frame[rng.integers(len(frame))] = rng.integers(256)
        reply = raw.ask(*(bytes(frame) for frame in frames))
        assert isinstance(reply, Fault), round_number
    for _ in range(20):
        assert raw.ask(b"\x90" * (8 << 20)).code == "too_large"
    assert server.operator(epoch=0).request(Status()).open_slots == 0
