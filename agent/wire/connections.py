"""Bounds the connections of a server's socket: each holds a descriptor that files need, too.

libzmq knows no such bound. Its monitor tells of every connection; where there is one too many, the
one that has told us least is cut: one that only connects and says nothing never takes the place of
a client that works.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from agent.wire.monitor import monitor
from agent.wire.wakeup import Wakeup

LOG_EVERY_S = 10.0
YOUNG_S = 2.0  # a connection that is younger may not have had time to say anything
_POLL_S = 1.0
_JOIN_S = 5.0
_BYTES_RECEIVED = 128  # offset in Linux's struct tcp_info
_EVENTS = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_MONITOR_STOPPED
)

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Connection:
    since_s: float
    address: Any
    is_cut: bool = False


class Connections(threading.Thread):
    """Watches one bound socket until this is closed; make it before the socket is bound.

    Args:
        limit: connections at most.
        on_cut: called for each that is cut.
        on_refused: called with each handshake that libzmq has refused: (code, our address).
    """

    def __init__(
        self,
        watched: zmq.Socket[bytes],
        limit: int,
        on_cut: Callable[[], None],
        on_refused: Callable[[int, str], None],
    ) -> None:
        super().__init__(name="connections", daemon=True)
        self._limit = limit
        self._on_cut = on_cut
        self._on_refused = on_refused
        self._open: dict[int, _Connection] = {}  # by descriptor, the oldest first
        self._logged_s = float("-inf")
        self._closing = threading.Event()
        self._watched = watched
        self._wakeup = Wakeup()
        self._events = monitor(watched, _EVENTS)
        self.start()

    def run(self) -> None:
        """Takes in what happens; cuts what is too many once nothing more has happened."""
        with self._events:
            poller = zmq.Poller()
            poller.register(self._events, zmq.POLLIN)
            poller.register(self._wakeup.fd, zmq.POLLIN)
            while not self._closing.is_set():
                if poller.poll(round(_POLL_S * 1000)) and not self._take_all():
                    return
                self._cut()

    def close(self) -> None:
        """Ends the thread; to be called before the watched socket is closed.

        libzmq tells of the monitor's end in a blocking call: it must be over before nobody listens
        any more, or its thread that closes sockets waits for ever.
        """
        if not self.is_alive():
            return
        self._watched.disable_monitor()
        self._closing.set()
        self._wakeup.set()
        self.join(_JOIN_S)
        self._wakeup.close()

    def _take_all(self) -> bool:
        """Takes in all events so far; False if there will be no more."""
        while self._events.poll(0):
            event = recv_monitor_message(self._events)
            kind, value = event["event"], event["value"]
            if kind == zmq.EVENT_MONITOR_STOPPED:
                return False
            if kind == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                self._on_refused(value, event["endpoint"].decode())
                continue
            self._open.pop(value, None)
            if kind == zmq.EVENT_ACCEPTED:
                self._open[value] = _Connection(time.monotonic(), _peer(value))
        return True

    def _cut(self) -> None:
        kept = {fd: c for fd, c in self._open.items() if not c.is_cut}
        surplus = len(kept) - self._limit
        if surplus <= 0:
            return
        now_s = time.monotonic()
        ranks = {fd: _rank(now_s - c.since_s, _received_bytes(fd)) for fd, c in kept.items()}
        for fd in sorted(kept, key=ranks.__getitem__)[:surplus]:
            self._shut(fd, kept[fd])
        if time.monotonic() - self._logged_s > LOG_EVERY_S:
            self._logged_s = time.monotonic()
            log.warning("cut %d connections: %d at most are kept", surplus, self._limit)

    def _shut(self, descriptor: int, connection: _Connection) -> None:
        """Ends a connection as its peer would; libzmq closes it then."""
        connection.is_cut = True
        self._on_cut()
        if _peer(descriptor) != connection.address:
            return  # it has gone meanwhile
        shared = socket.socket(fileno=descriptor)
        try:
            shared.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the peer was faster
        finally:
            shared.detach()


def _rank(age_s: float, received_bytes: int | None) -> tuple[bool, float, float]:
    """What is cut first has the lowest: it had time to speak, said least, and is the oldest.

    Of peers on this machine, which cannot be told apart by what they said, it is the newest.
    """
    if received_bytes is None:
        return False, float("inf"), age_s
    return age_s < YOUNG_S, received_bytes, -age_s


def _peer(descriptor: int) -> Any:
    """Both ends' addresses of a connection; None if there is none at this descriptor."""
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return None
        shared = socket.socket(fileno=descriptor)
        try:
            return shared.getsockname(), shared.getpeername()
        finally:
            shared.detach()
    except OSError:
        return None


def _received_bytes(descriptor: int) -> int | None:
    """What a peer has sent; None where the system does not count it (ipc)."""
    try:
        shared = socket.socket(fileno=descriptor)
        try:
            told = shared.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
        finally:
            shared.detach()
        return int(struct.unpack_from("Q", told, _BYTES_RECEIVED)[0])
    except (OSError, struct.error):
        return None
