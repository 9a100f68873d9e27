"""ZeroMQ sockets. They move frames, the codec reads them.

A DEALER with request ids instead of a REQ socket: a REQ that times out once is stuck for good.
After a timeout the client's socket is rebuilt, so a late reply is never taken for a current one.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import zmq

from agent.wire.admission import Admission
from agent.wire.client_list import ANYBODY, Client
from agent.wire.codec import (
    CLIENT_HEADER_BYTES,
    DEFAULT_LIMITS,
    Envelope,
    Frame,
    Limits,
    check_fits,
    decode,
    encode,
    peek_request_id,
)
from agent.wire.connections import Connections
from agent.wire.endpoints import address_of, check_endpoint, is_ipv6
from agent.wire.errors import ConfigError, HandshakeRefused, RequestTimeout, WireError
from agent.wire.flood import Pauses
from agent.wire.flood_watch import FloodWatch
from agent.wire.handshake import HandshakeWatch
from agent.wire.keys import ClientKeys
from agent.wire.messages import Fault, Welcome
from agent.wire.wakeup import Wakeup

if TYPE_CHECKING:
    from agent.wire.curve import Door  # clients need no authenticator

DROPPED_TOLD = 1 << 12  # parts that are read to be dropped, before anybody hears of them
QUEUED_MESSAGES_MAX = 64  # per connection, until the network takes them
CONNECTIONS_MAX = 1024  # of one socket
# A client asks for a sign of life, which is one to the server, too. Either side gives up a
# connection without: a cable was pulled, a machine is gone, a process stands still. The server
# itself must not ask: libzmq 4.3.5 ends the process when it is about to ask a peer that has reset
# its connection while messages of it wait.
HEARTBEAT_S = 5.0
SILENCE_LIMIT_S = 20.0
HANDSHAKE_LIMIT_S = 10.0  # for a connection that is no peer yet


@dataclass(frozen=True, slots=True)
class Received:
    """One multipart message as it arrived; `refused` says why its frames were thrown away.

    sender: by its key, as the list of clients is now; ANYBODY on a socket without keys.
    """

    peer: bytes
    frames: list[Frame]
    sender: Client = ANYBODY
    refused: WireError | None = None


class RouterSocket:
    """A bound ROUTER: receives from any number of peers and answers each by its routing id.

    The transport cuts a connection that claims a part above `limits.max_message_bytes` before
    reading it; part count and total size are checked here, before anything is decoded. With a
    `door` the socket is encrypted and knows its clients; it must be closed before the door.
    """

    def __init__(
        self,
        endpoint: str,
        limits: Limits = DEFAULT_LIMITS,
        *,
        insecure: bool = False,
        door: Door | None = None,
        connections_max: int = CONNECTIONS_MAX,
        on_cut: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """on_cut: called with the reason for every connection that is cut, see `Connections`."""
        check_endpoint(endpoint, bind=True, insecure=insecure, encrypted=door is not None)
        self.limits = limits
        self.door = door
        self._admission = _admission_of(endpoint) if door is None else door.admission
        context = zmq.Context.instance() if self._admission is None else self._admission.context
        self._socket = _make_socket(zmq.ROUTER, limits, endpoint, context)
        if door is not None:
            door.secure(self._socket)
        elif self._admission is not None:
            self._admission.guard(self._socket)
        # Mandatory: a reply that cannot be routed raises here and is counted, not lost silently.
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        # A client that chose its own routing id and comes back takes the place of its former self.
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        on_refused = _ignore if door is None else door.note_handshake
        watch = FloodWatch(limits.max_message_bytes, encrypted=door is not None)
        self._connections = Connections(
            self._socket,
            connections_max,
            watch,
            Pauses() if self._admission is None else self._admission.pauses,
            on_cut,
            on_refused,
            silence_limit_s=HEARTBEAT_S + SILENCE_LIMIT_S,
        )
        try:
            self._socket.bind(address_of(endpoint))
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(
                f"cannot bind {endpoint}: {zmq.strerror(error.errno or 0)}; choose another"
            ) from error
        self.endpoint = bytes(self._socket.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()

    @property
    def is_open(self) -> bool:
        """False if new clients cannot be let in any more, which would be a bug."""
        return self._admission is None or self._admission.is_alive()

    def receive(self) -> Received | None:
        """The next message, or None at once if there is none."""
        try:
            identity = self._socket.recv(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        peer = identity.bytes
        sender = ANYBODY if self.door is None else self.door.identify(identity)
        frames: list[Frame] = []
        header: Frame = b""
        parts = size_bytes = 0
        more = identity.more
        while more and parts < self.limits.max_parts:
            frame = self._socket.recv(copy=False)
            parts, more = parts + 1, frame.more
            size_bytes += len(frame.buffer)
            if parts == 1:
                header = frame.buffer
            if size_bytes <= self.limits.max_message_bytes:
                frames.append(frame.buffer)
            else:
                frames.clear()
        source = _descriptor_of(identity)
        if source is not None:
            self._connections.note_taken(source, size_bytes)
        if more:
            frames.clear()
            dropped = self._drop_rest(identity)
            text = f"{parts + dropped} parts, at most {self.limits.max_parts} are accepted"
        elif size_bytes > self.limits.max_message_bytes:
            text = (
                f"{size_bytes} bytes, at most {self.limits.max_message_bytes} are accepted: send "
                "less at once, or raise max_message_bytes"
            )
        else:
            return Received(peer, frames, sender)
        return Received(peer, [], sender, WireError("too_large", text, peek_request_id(header)))

    def _drop_rest(self, identity: zmq.Frame) -> int:
        """Reads the message to its end: nothing else can be read before. Returns how many parts.

        All others wait meanwhile, so nothing is done here that can be left. The connection is
        accused while it goes on, or more messages of the kind would come.
        """
        receive, parts, more = self._socket.recv, 0, True
        while more:
            some = 0
            while more and some < DROPPED_TOLD:
                more = receive(copy=False).more
                some += 1
            parts += some
            self._connections.note_dropped(_descriptor_of(identity), _address_of(identity), some)
        return parts

    def send(self, peer: bytes, message: object, request_id: int) -> bool:
        """Answers a peer without waiting; False if it is gone or does not drain its replies.

        Arrays are sent from where they are: do not write to them afterwards. Raises WireError for
        a message that no peer would take.
        """
        frames = encode(message, request_id)
        check_fits(frames, DEFAULT_LIMITS, message, "a client")
        try:
            self._socket.send_multipart([peer, *frames], zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                return False
            raise
        return True

    def close(self) -> None:
        self._connections.close()
        self._socket.close()
        if self.door is None and self._admission is not None:
            self._admission.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Poller:
    """Waits for several sockets and one `Wakeup`."""

    def __init__(self, sockets: list[RouterSocket], wakeup: Wakeup) -> None:
        self._wakeup = wakeup
        self._poller = zmq.Poller()
        self._by_key: dict[Any, RouterSocket] = {}
        for socket in sockets:
            self._poller.register(socket._socket, zmq.POLLIN)
            self._by_key[socket._socket] = socket
        self._poller.register(wakeup.fd, zmq.POLLIN)

    def wait(self, timeout_s: float) -> list[RouterSocket]:
        """The sockets with something to receive; empty after `timeout_s` or a wake-up."""
        for socket in self._by_key.values():
            socket._connections.is_drained = True  # this would return at once otherwise
        events = dict(self._poller.poll(max(0, round(timeout_s * 1000))))
        for socket in self._by_key.values():
            socket._connections.is_drained = False
        if self._wakeup.fd in events:
            self._wakeup.clear()
        return [socket for key, socket in self._by_key.items() if key in events]


class DealerClient:
    """A client of one ROUTER; for use by one thread.

    Either `request` (send, wait, retry), or `send` many and `poll` for the replies as they come.
    The server's restart is bridged by the transport; requests that were in flight then time out.
    A server that is down is waited for. Where keys stand in the way (`keys`: this client's and its
    server's, None for a connection in clear), both ways raise HandshakeRefused, a ConfigError.
    """

    def __init__(
        self,
        endpoint: str,
        timeout_s: float = 10.0,
        limits: Limits = DEFAULT_LIMITS,
        keys: ClientKeys | None = None,
    ) -> None:
        check_endpoint(endpoint, bind=False, encrypted=keys is not None)
        self.endpoint = endpoint
        self.timeout_s = timeout_s
        self._limits = limits
        self._taken = DEFAULT_LIMITS  # by the server, which says so in its Welcome
        self._keys = keys
        self._watch = HandshakeWatch(endpoint, keys)
        self._ids = itertools.count(1)
        self._pending: set[int] = set()
        self._inbox: list[tuple[int, Any]] = []
        self._socket = self._connect()

    def request(self, message: object, timeout_s: float | None = None, retries: int = 0) -> Any:
        """The reply to one message.

        Each of the 1 + `retries` attempts waits `timeout_s`; a repeat is safe because every
        request of the protocol is idempotent. Raises WireError with the code of a `Fault`, and
        RequestTimeout (a WireError) when no attempt was answered; after a timed-out attempt all
        requests in flight on this client are forgotten.
        """
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        started_s = time.monotonic()
        for _attempt in range(1 + retries):
            request_id = self.send(message, timeout_s)
            reply = self._await(request_id, time.monotonic() + timeout_s)
            if isinstance(reply, Fault):
                raise WireError(reply.code, reply.message, request_id)
            if reply is not None:
                return reply
            self.reset()
        elapsed_s = time.monotonic() - started_s
        raise RequestTimeout(self.endpoint, elapsed_s, type(message).__name__)

    def send(self, message: object, timeout_s: float | None = None) -> int:
        """Queues a message and returns its request id; arrays are copied.

        `timeout_s` travels as the request's deadline. Raises WireError("overloaded") when the
        server has not taken the last QUEUED_MESSAGES_MAX messages, or with another code for a
        message that the server would not take; HandshakeRefused.
        """
        if self._is_refused:
            self.reset()  # libzmq does not try again, the caller may: it may be let in by now
        request_id = next(self._ids)
        frames = encode(message, request_id, self.timeout_s if timeout_s is None else timeout_s)
        check_fits(frames, self._taken, message, self.endpoint)
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=True)
        except zmq.Again as error:
            self._check_handshake()  # after a refusal there is nowhere to send to
            text = f"{self.endpoint} takes no more messages"
            raise WireError("overloaded", text, request_id) from error
        self._pending.add(request_id)
        return request_id

    def poll(self, timeout_s: float) -> list[tuple[int, Any]]:
        """Replies to messages in flight, Faults included; empty after `timeout_s` without one."""
        deadline_s = time.monotonic() + timeout_s
        while not self._inbox:
            remaining_s = deadline_s - time.monotonic()
            if not self._receive(max(0.0, remaining_s)) and remaining_s <= 0:
                break
        while self._receive(0.0):
            pass
        replies, self._inbox = self._inbox, []
        return replies

    def reset(self) -> None:
        """Forgets everything in flight and connects anew."""
        self.close()
        self._pending.clear()
        self._inbox.clear()
        self._socket = self._connect()

    def close(self) -> None:
        self._watch.detach()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connect(self) -> zmq.Socket[bytes]:
        socket = _make_socket(zmq.DEALER, self._limits, self.endpoint, zmq.Context.instance())
        socket.setsockopt(zmq.RECONNECT_IVL, 50)  # ms
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)  # ms
        socket.setsockopt(zmq.CONNECT_TIMEOUT, round(HANDSHAKE_LIMIT_S * 1000))
        if self._keys is not None:
            socket.setsockopt(zmq.CURVE_PUBLICKEY, self._keys.pair.public.encode())
            socket.setsockopt(zmq.CURVE_SECRETKEY, self._keys.pair.secret.encode())
            socket.setsockopt(zmq.CURVE_SERVERKEY, self._keys.server_public.encode())
        self._is_refused = False
        self._watch.attach(socket)
        self._poller = zmq.Poller()
        self._poller.register(socket, zmq.POLLIN)
        self._poller.register(self._watch.events, zmq.POLLIN)
        socket.connect(address_of(self.endpoint))
        return socket

    def _await(self, request_id: int, deadline_s: float) -> Any:
        while (remaining_s := deadline_s - time.monotonic()) > 0:
            self._receive(remaining_s)
            for position, (reply_id, reply) in enumerate(self._inbox):
                if reply_id == request_id:
                    del self._inbox[position]
                    return reply
        return None

    def _receive(self, timeout_s: float) -> bool:
        """Moves one reply into the inbox; False if none came in time."""
        ready = dict(self._poller.poll(round(timeout_s * 1000) or int(timeout_s > 0)))
        if self._watch.events in ready:
            self._check_handshake()
        if self._socket not in ready:
            return False
        frames = [frame.buffer for frame in self._socket.recv_multipart(copy=False)]
        envelope: Envelope = decode(frames, self._limits)
        if isinstance(envelope.message, Welcome):
            self._taken = Limits(
                envelope.message.max_message_bytes, max_header_bytes=CLIENT_HEADER_BYTES
            )
        if envelope.request_id in self._pending:
            self._pending.discard(envelope.request_id)
            self._inbox.append((envelope.request_id, envelope.message))
        return True

    def _check_handshake(self) -> None:
        try:
            self._watch.check()
        except HandshakeRefused:
            self._is_refused = True
            raise


def _descriptor_of(frame: zmq.Frame) -> int | None:
    """Of the connection that a message came over; None if libzmq does not tell."""
    try:
        return int(frame.get(zmq.SRCFD))
    except zmq.ZMQError:
        return None


def _address_of(frame: zmq.Frame) -> str:
    """The address that a message came from; "" for a peer without (ipc)."""
    try:
        return str(frame.get("Peer-Address"))
    except zmq.ZMQError:
        return ""


def _admission_of(endpoint: str) -> Admission | None:
    """Of a socket without keys; None where its peers have no addresses."""
    if not endpoint.startswith("tcp://"):
        return None
    admission = Admission()
    admission.start()
    return admission


def _ignore(code: int, endpoint: str) -> None:
    """Without keys there is nobody to tell of a refused handshake."""


def _make_socket(
    kind: int, limits: Limits, endpoint: str, context: zmq.Context[zmq.Socket[bytes]]
) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    # Not always: "localhost" would then be looked for at ::1 alone.
    socket.setsockopt(zmq.IPV6, int(is_ipv6(endpoint)))
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, limits.max_message_bytes)
    socket.setsockopt(zmq.SNDHWM, QUEUED_MESSAGES_MAX)
    socket.setsockopt(zmq.HANDSHAKE_IVL, round(HANDSHAKE_LIMIT_S * 1000))
    # libzmq 4.3.5 ends the process where a peer reset its connection while its next message was one
    # too many and a PING is due or behind that. `FloodWatch` bounds what waits at a server; at a
    # client its requests do.
    socket.setsockopt(zmq.RCVHWM, 0)
    if kind != zmq.ROUTER:
        socket.setsockopt(zmq.HEARTBEAT_IVL, round(HEARTBEAT_S * 1000))
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, round(SILENCE_LIMIT_S * 1000))
        socket.setsockopt(zmq.HEARTBEAT_TTL, round((HEARTBEAT_S + SILENCE_LIMIT_S) * 1000))
    _keep_alive(socket)
    return socket


def _keep_alive(socket: zmq.Socket[bytes]) -> None:
    """Has the kernel notice a dead peer, also one that a sending waits for."""
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, round(SILENCE_LIMIT_S))
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, round(HEARTBEAT_S))
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
    socket.setsockopt(zmq.TCP_MAXRT, round(SILENCE_LIMIT_S * 1000))
