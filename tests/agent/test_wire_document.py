"""What docs/wire-protocol.md says in numbers is what the code does."""

import re
from pathlib import Path

import pytest
import zmq

from agent.config import AgentConfig
from agent.orders import QUIET_LIMIT_S
from agent.server.clients import LEASES_PER_REPLY
from agent.server.validation import REASON_MAX_CHARS
from agent.wire import sockets
from agent.wire.arrays import MAX_DIMS
from agent.wire.codec import CLIENT_HEADER_BYTES, DEFAULT_LIMITS
from agent.wire.messages import PROTOCOL_VERSION, Welcome
from agent.wire.schema import defaults_of
from agent.wire.sockets import DealerClient, RouterSocket

TEXT = (Path(__file__).parents[2] / "docs" / "wire-protocol.md").read_text()
FLAT = " ".join(TEXT.split())
ROWS = re.findall(r"^\| `(ZMQ_[A-Z_]+)` \| ([^|]+) \| ([^|]+) \|$", TEXT, re.M)
MIB, KIB = 1 << 20, 1 << 10
# What decides whether a dead peer is noticed, and a request ever lost or answered.
MENTIONED = {
    "ZMQ_ROUTING_ID", "ZMQ_HEARTBEAT_IVL", "ZMQ_HEARTBEAT_TIMEOUT", "ZMQ_HEARTBEAT_TTL",
    "ZMQ_IMMEDIATE", "ZMQ_LINGER", "ZMQ_SNDHWM", "ZMQ_RCVHWM", "ZMQ_MAXMSGSIZE",
    "ZMQ_HANDSHAKE_IVL", "ZMQ_CONNECT_TIMEOUT", "ZMQ_RECONNECT_IVL",
}  # fmt: skip


def test_the_table_says_of_each_option_what_a_client_must_or_must_not():
    assert {name for name, _, _ in ROWS} >= MENTIONED
    for name, _, rule in ROWS:
        assert re.match("must|must not|may", rule), name


@pytest.mark.parametrize(("name", "value"), [row[:2] for row in ROWS])
def test_the_python_client_has_what_the_table_says(name, value):
    with DealerClient("tcp://127.0.0.1:1") as client:
        has = client._socket.getsockopt(getattr(zmq, name.removeprefix("ZMQ_")))
    assert (has or "none") == "none" if name == "ZMQ_ROUTING_ID" else has == int(value)


def test_every_option_that_the_client_sets_is_in_the_table():
    source = Path(sockets.__file__).read_text()
    both = source[source.index("def _make_socket") :]
    own = source[source.index("def _connect") : source.index("def _await")]
    options = set(re.findall(r"setsockopt\(zmq\.([A-Z0-9_]+)", own + both))
    listed = {name.removeprefix("ZMQ_") for name, _, _ in ROWS}
    # IPV6 follows from the address; the keys have a section of their own.
    assert {o for o in options if not o.startswith("CURVE")} - {"IPV6"} <= listed


def test_the_server_notices_silence_as_it_says():
    with RouterSocket("tcp://127.0.0.1:0") as router:
        assert router._socket.getsockopt(zmq.HEARTBEAT_IVL) == 0
        limit_s = router._connections.silence_limit_s
        handshake_s = router._socket.getsockopt(zmq.HANDSHAKE_IVL) / 1000
    assert "It sends no PING" in FLAT
    assert f"nothing came for {limit_s:g} s, or for {handshake_s:g} s in the handshake" in FLAT


def test_limits_are_as_it_says():
    config, limits = AgentConfig(), DEFAULT_LIMITS
    assert limits.max_message_bytes == config.max_message_bytes
    assert limits.max_message_bytes == defaults_of(Welcome)["max_message_bytes"]
    assert QUIET_LIMIT_S == 600
    for sentence in (
        f"# Wire protocol, version {PROTOCOL_VERSION}",
        f"{limits.max_parts} parts, {limits.max_message_bytes // MIB} MiB a message, "
        f"{limits.max_header_bytes // MIB} MiB for the header, "
        f"{limits.max_string_bytes // KIB} KiB a string, {MAX_DIMS} dimensions",
        f"takes {CLIENT_HEADER_BYTES // KIB} KiB of header",
        f"keeps {REASON_MAX_CHARS} characters",
        f"`max_message_bytes`, *later*, {limits.max_message_bytes // MIB} MiB",
        f"a reply has {LEASES_PER_REPLY} leases at most",
        f"in all ({config.max_episode_bytes // MIB} MiB as shipped)",
        "An episode or lease of which nothing was said for ten minutes",
    ):
        assert sentence in FLAT, sentence
