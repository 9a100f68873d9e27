"""ZeroMQ sockets; nothing else in `agent` imports zmq. Sockets move frames, the codec reads them.

A DEALER with request ids instead of a REQ socket: a REQ that times out once is stuck for good.
After a timeout the client's socket is rebuilt, so a late reply is never taken for a current one.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import zmq

from agent.wire.codec import DEFAULT_LIMITS, Envelope, Frame, Limits, decode, encode
from agent.wire.errors import ConfigError, RequestTimeout, WireError
from agent.wire.messages import Fault

IPC_PATH_MAX_BYTES = 107  # sockaddr_un.sun_path
QUEUED_MESSAGES_MAX = 64  # per connection and direction
_LOOPBACK = re.compile(r"^(ipc://.+|inproc://.+|tcp://(127\.\d+\.\d+\.\d+|localhost|\[::1\]):.+)$")


@dataclass(frozen=True, slots=True)
class Received:
    """One multipart message as it arrived; `refused` says why its frames were thrown away."""

    peer: bytes
    frames: list[Frame]
    refused: WireError | None = None


class RouterSocket:
    """A bound ROUTER: receives from any number of peers and answers each by its routing id.

    The transport cuts a connection that claims a part above `limits.max_message_bytes` before
    reading it; part count and total size are checked here, before anything is decoded.
    """

    def __init__(
        self, endpoint: str, limits: Limits = DEFAULT_LIMITS, *, insecure: bool = False
    ) -> None:
        check_endpoint(endpoint, bind=True, insecure=insecure)
        self.limits = limits
        self._socket = _make_socket(zmq.ROUTER, limits)
        # Mandatory: a reply that cannot be routed raises here and is counted, not lost silently.
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._socket.close()
            raise ConfigError(
                f"cannot bind {endpoint}: {zmq.strerror(error.errno or 0)}; choose another"
            ) from error
        self.endpoint = bytes(self._socket.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()

    def receive(self) -> Received | None:
        """The next message, or None at once if there is none."""
        try:
            peer = self._socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None
        frames: list[Frame] = []
        parts = size_bytes = 0
        while self._socket.rcvmore:
            frame = self._socket.recv(copy=False)
            parts += 1
            size_bytes += len(frame.buffer)
            if parts <= self.limits.max_parts and size_bytes <= self.limits.max_message_bytes:
                frames.append(frame.buffer)
            else:
                frames.clear()
        if parts > self.limits.max_parts:
            text = f"{parts} parts, at most {self.limits.max_parts} are accepted"
        elif size_bytes > self.limits.max_message_bytes:
            text = f"{size_bytes} bytes, at most {self.limits.max_message_bytes} are accepted"
        else:
            return Received(peer, frames)
        return Received(peer, [], WireError("too_large", text))

    def send(self, peer: bytes, message: object, request_id: int) -> bool:
        """Answers a peer without waiting; False if it is gone or does not drain its replies.

        Arrays are sent from where they are: do not write to them afterwards.
        """
        frames = encode(message, request_id)
        try:
            self._socket.send_multipart([peer, *frames], zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                return False
            raise
        return True

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Wakeup:
    """Lets other threads interrupt a `Poller.wait`."""

    def __init__(self) -> None:
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self._write_fd, False)

    def set(self) -> None:
        with contextlib.suppress(BlockingIOError):  # the pipe is full: already awake
            os.write(self._write_fd, b"\0")

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._read_fd, 4096):
                pass

    def close(self) -> None:
        os.close(self._read_fd)
        os.close(self._write_fd)


class Poller:
    """Waits for several sockets and one `Wakeup`."""

    def __init__(self, sockets: list[RouterSocket], wakeup: Wakeup) -> None:
        self._wakeup = wakeup
        self._poller = zmq.Poller()
        self._by_key: dict[Any, RouterSocket] = {}
        for socket in sockets:
            self._poller.register(socket._socket, zmq.POLLIN)
            self._by_key[socket._socket] = socket
        self._poller.register(wakeup._read_fd, zmq.POLLIN)

    def wait(self, timeout_s: float) -> list[RouterSocket]:
        """The sockets with something to receive; empty after `timeout_s` or a wake-up."""
        events = dict(self._poller.poll(max(0, round(timeout_s * 1000))))
        if self._wakeup._read_fd in events:
            self._wakeup.clear()
        return [socket for key, socket in self._by_key.items() if key in events]


class DealerClient:
    """A client of one ROUTER; for use by one thread.

    Either `request` (send, wait, retry), or `send` many and `poll` for the replies as they come.
    The server's restart is bridged by the transport; requests that were in flight then time out.
    """

    def __init__(
        self, endpoint: str, timeout_s: float = 10.0, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        check_endpoint(endpoint, bind=False, insecure=True)
        self.endpoint = endpoint
        self.timeout_s = timeout_s
        self._limits = limits
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
        server has not taken the last QUEUED_MESSAGES_MAX messages.
        """
        request_id = next(self._ids)
        frames = encode(message, request_id, self.timeout_s if timeout_s is None else timeout_s)
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=True)
        except zmq.Again as error:
            raise WireError(
                "overloaded", f"{self.endpoint} takes no more messages", request_id
            ) from error
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
        self._socket.close()
        self._pending.clear()
        self._inbox.clear()
        self._socket = self._connect()

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connect(self) -> zmq.Socket[bytes]:
        socket = _make_socket(zmq.DEALER, self._limits)
        socket.setsockopt(zmq.RECONNECT_IVL, 50)  # ms
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)  # ms
        socket.connect(self.endpoint)
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
        if not self._socket.poll(round(timeout_s * 1000) or int(timeout_s > 0)):
            return False
        frames = [frame.buffer for frame in self._socket.recv_multipart(copy=False)]
        envelope: Envelope = decode(frames, self._limits)
        if envelope.request_id in self._pending:
            self._pending.discard(envelope.request_id)
            self._inbox.append((envelope.request_id, envelope.message))
        return True


def _make_socket(kind: int, limits: Limits) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, limits.max_message_bytes)
    socket.setsockopt(zmq.RCVHWM, QUEUED_MESSAGES_MAX)
    socket.setsockopt(zmq.SNDHWM, QUEUED_MESSAGES_MAX)
    return socket


def check_endpoint(endpoint: str, *, bind: bool, insecure: bool) -> None:
    """Raises ConfigError for an address that cannot work or must not be bound."""
    if not re.match(r"^(tcp|ipc|inproc)://.", endpoint):
        raise ConfigError(f"endpoint {endpoint!r}: expected tcp://HOST:PORT or ipc://PATH")
    if bind and not insecure and not _LOOPBACK.match(endpoint):
        raise ConfigError(
            f"endpoint {endpoint} is reachable from other machines without encryption; "
            "bind to 127.0.0.1, or set insecure=true if the network is trusted"
        )
    if endpoint.startswith("ipc://"):
        path = Path(endpoint.removeprefix("ipc://"))
        if len(os.fsencode(path)) > IPC_PATH_MAX_BYTES:
            raise ConfigError(
                f"endpoint {endpoint} is longer than the {IPC_PATH_MAX_BYTES} bytes the system "
                "allows; choose a shorter folder"
            )
        if bind and not path.parent.is_dir():
            raise ConfigError(f"endpoint {endpoint}: no folder {path.parent}; create it first")
