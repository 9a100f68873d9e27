"""The sockets: requests find their replies, every wait is bounded, bad binds are refused."""

import threading
import time

import numpy as np
import pytest
import zmq
from patience import HANG_S

from agent.wire.codec import Limits, decode
from agent.wire.errors import ConfigError, RequestTimeout, WireError
from agent.wire.messages import Chunk, Fault, Hello, Ok, Status
from agent.wire.sockets import DealerClient, Poller, RouterSocket
from agent.wire.wakeup import Wakeup


def bind_when_free(endpoint, within_s=HANG_S):
    """A closed socket gives its port back a moment later."""
    deadline_s = time.monotonic() + within_s
    while True:
        try:
            return RouterSocket(endpoint)
        except ConfigError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.02)


class Answerer(threading.Thread):
    """A ROUTER that answers every request with `reply(message)`; None means silence."""

    def __init__(self, reply, endpoint="tcp://127.0.0.1:0"):
        super().__init__(daemon=True)
        self.reply = reply
        self.router = bind_when_free(endpoint)
        self.endpoint = self.router.endpoint
        self.wakeup = Wakeup()
        self.running = True
        self.start()

    def run(self):
        poller = Poller([self.router], self.wakeup)
        while self.running:
            poller.wait(0.2)
            while (received := self.router.receive()) is not None:
                if received.refused:
                    continue
                envelope = decode(received.frames)
                answer = self.reply(envelope.message)
                if answer is not None:
                    self.router.send(received.peer, answer, envelope.request_id)
        self.router.close()

    def stop(self):
        self.running = False
        self.wakeup.set()
        self.join(HANG_S)
        self.wakeup.close()


@pytest.fixture
def answer():
    servers = []

    def start(reply, endpoint="tcp://127.0.0.1:0"):
        servers.append(Answerer(reply, endpoint))
        return servers[-1]

    yield start
    for server in servers:
        if server.is_alive():
            server.stop()


def test_request_gets_its_reply_and_faults_are_raised(answer):
    def reply(message):
        return Ok() if isinstance(message, Hello) else Fault("unknown_slot", "no such slot")

    with DealerClient(answer(reply).endpoint, timeout_s=HANG_S) as client:
        assert client.request(Hello("c1", "test")) == Ok()
        with pytest.raises(WireError, match="no such slot") as caught:
            client.request(Status())
        assert caught.value.code == "unknown_slot"


def test_pipelined_replies_carry_their_ids(answer):
    server = answer(lambda m: Chunk(m.client_id, 0, np.full(3, len(m.client_id), np.int32), "v"))
    with DealerClient(server.endpoint, timeout_s=HANG_S) as client:
        sent = {client.send(Hello("c" * n, "")): n for n in range(1, 20)}
        replies = {}
        while len(replies) < len(sent):
            got = client.poll(HANG_S)
            assert got
            replies.update(got)
    assert {rid: int(chunk.actions[0]) for rid, chunk in replies.items()} == sent


def test_timeout_names_endpoint_and_elapsed_and_the_client_recovers(answer):
    silent = [True]
    server = answer(lambda _m: None if silent[0] else Ok())
    with DealerClient(server.endpoint) as client:
        with pytest.raises(RequestTimeout, match=r"Hello from tcp://127") as caught:
            client.request(Hello("c", ""), timeout_s=0.05, retries=1)
        assert caught.value.elapsed_s >= 0.1
        assert caught.value.code == "timeout"
        silent[0] = False
        assert client.request(Hello("c", ""), timeout_s=HANG_S) == Ok()


def test_client_reaches_a_restarted_server(answer):
    first = answer(lambda _m: Ok())
    with DealerClient(first.endpoint, timeout_s=HANG_S) as client:
        assert client.request(Status()) == Ok()
        first.stop()
        answer(lambda _m: Fault("server_restarted", "new here"), first.endpoint)
        with pytest.raises(WireError, match="new here"):
            client.request(Status(), timeout_s=2, retries=3)


def test_router_throws_away_too_many_parts_and_too_many_bytes():
    limits = Limits(max_message_bytes=1000, max_parts=4)
    with RouterSocket("tcp://127.0.0.1:0", limits) as router:
        raw = zmq.Context.instance().socket(zmq.DEALER)
        raw.linger = 0
        raw.connect(router.endpoint)
        raw.send_multipart([b"x"] * 100)
        raw.send_multipart([b"x" * 600] * 2)
        raw.send_multipart([b"x"] * 4)
        got = []
        poller = Poller([router], Wakeup())
        deadline_s = time.monotonic() + HANG_S
        while len(got) < 3 and time.monotonic() < deadline_s:
            poller.wait(1.0)
            while (received := router.receive()) is not None:
                got.append(received)
        raw.close()
    assert [r.refused.code if r.refused else None for r in got] == ["too_large", "too_large", None]
    assert [len(r.frames) for r in got] == [0, 0, 4]


def test_reply_to_nobody_is_reported():
    with RouterSocket("tcp://127.0.0.1:0") as router:
        assert router.send(b"nobody", Ok(), 1) is False


def test_wakeup_interrupts_a_wait():
    with RouterSocket("tcp://127.0.0.1:0") as router:
        wakeup = Wakeup()
        poller = Poller([router], wakeup)
        for _ in range(100_000):  # more than a pipe holds: setting never blocks
            wakeup.set()
        assert poller.wait(HANG_S) == []
        assert poller.wait(0.0) == []
        wakeup.close()


@pytest.mark.parametrize(
    ("endpoint", "text"),
    [
        ("tcp://0.0.0.0:5555", "insecure=true"),
        ("tcp://*:5555", "insecure=true"),
        ("tcp://192.168.1.2:5555", "insecure=true"),
        ("http://127.0.0.1:1", "expected tcp://"),
        ("ipc:///nowhere/x.sock", "no folder /nowhere"),
        ("ipc:///tmp/" + "x" * 120, "shorter folder"),
    ],
)
def test_bad_endpoints_are_refused(endpoint, text):
    with pytest.raises(ConfigError, match=text):
        RouterSocket(endpoint)


def test_port_in_use_is_one_clear_line():
    first = RouterSocket("tcp://127.0.0.1:0")
    with first, pytest.raises(ConfigError, match="in use"):
        RouterSocket(first.endpoint)


def test_a_wakeup_after_the_end_reaches_nobody(tmp_path):
    wakeup = Wakeup()
    wakeup.close()
    with (tmp_path / "file").open("wb") as taken, (tmp_path / "other").open("wb") as also:
        wakeup.set()  # those files may have got the descriptors that were closed
        assert taken.tell() == also.tell() == 0
    assert (tmp_path / "file").read_bytes() == (tmp_path / "other").read_bytes() == b""
