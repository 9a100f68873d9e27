"""Bounds what the connections of a server's socket take: how many they are, and what each sends.

libzmq knows no such bounds. Its monitor tells of every connection. Where there is one too many, the
one that has told us least is cut: one that only connects and says nothing never takes the place of
a client that works. One that sends a message without an end is cut, and its address is not let in
for a while.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from agent.wire import tcp
from agent.wire.flood import DROPPED_PARTS, Dropped, Pauses
from agent.wire.flood_watch import FloodWatch
from agent.wire.monitor import monitor
from agent.wire.wakeup import Wakeup

LOG_EVERY_S = 10.0
YOUNG_S = 2.0  # a connection that is younger may not have had time to say anything
TOO_MANY, FLOOD, SILENT = "too_many", "flood", "silent"
_IDLE_S = 1.0  # between two looks where there is no connection
_LOOK_S = 0.02  # between two looks at what they send ...
_NEXT_LOOK_S = 0.005  # ... and where somebody has sent much
_LOOK_SHARE = 0.05  # of a core's time at most
_JOIN_S = 5.0
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
    """A connection that was accepted.

    Attributes:
        addresses: ours and the peer's, None for one that was gone at once.
        heard_bytes, heard_s: what had come in all, and when the last of it did.
    """

    since_s: float
    addresses: tuple[Any, Any] | None
    is_cut: bool = False
    heard_bytes: int = 0
    heard_s: float = 0.0

    @property
    def own(self) -> str:
        """Our end's host, "" for one without (ipc)."""
        return _host(self.addresses[0]) if self.addresses else ""

    @property
    def peer(self) -> str:
        """The other end's host, "" for one without (ipc)."""
        return _host(self.addresses[1]) if self.addresses else ""


class Connections(threading.Thread):
    """Watches one bound socket until this is closed; make it before the socket is bound.

    Args:
        limit: connections at most.
        watch: of what they send.
        pauses: of addresses that have sent a flood; whoever lets connections in heeds them.
        on_cut: called for each that is cut, with TOO_MANY, FLOOD or SILENT.
        on_refused: called with each handshake that libzmq has refused: (code, our address).

    Attributes:
        is_drained: to be set while no message waits to be taken, by whoever takes them.
        silence_limit_s: without a byte of a peer over a network, after which it is given up.
    """

    def __init__(
        self,
        watched: zmq.Socket[bytes],
        limit: int,
        watch: FloodWatch,
        pauses: Pauses,
        on_cut: Callable[[str], None],
        on_refused: Callable[[int, str], None],
        silence_limit_s: float,
    ) -> None:
        super().__init__(name="connections", daemon=True)
        self.is_drained = False
        self.silence_limit_s = silence_limit_s
        self._limit = limit
        self._watch = watch
        self._on_cut = on_cut
        self._on_refused = on_refused
        self._open: dict[int, _Connection] = {}  # by descriptor, the oldest first
        self._own: set[str] = set()  # addresses of this machine
        self._pauses = pauses
        self._dropped = Dropped()
        self._told: deque[tuple[int | None, str, int]] = deque()  # of dropped parts
        self._logged_s: dict[str, float] = {}  # by reason
        self._next_look_s = self._next_silence_s = 0.0
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
                events = dict(poller.poll(max(1, round(self._wait_s() * 1000))))
                if self._wakeup.fd in events:
                    self._wakeup.clear()
                if self._events in events and not self._take_all():
                    return
                self._cut_surplus()
                self._hear_of_dropped()
                if self._open and time.monotonic() >= self._next_look_s:
                    self._look()

    def note_taken(self, descriptor: int, size_bytes: int) -> None:
        """A message of this connection was taken."""
        self._watch.note_taken(descriptor, size_bytes)

    def note_dropped(self, descriptor: int | None, address: str, parts: int) -> None:
        """So many parts were read only to be dropped; for the thread that reads them."""
        self._told.append((descriptor, address, parts))
        self._wakeup.set()

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

    def _wait_s(self) -> float:
        return max(0.0, self._next_look_s - time.monotonic()) if self._open else _IDLE_S

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
            self._watch.forget(value)
            if kind == zmq.EVENT_ACCEPTED:
                connection = _Connection(time.monotonic(), tcp.addresses_of(value))
                self._open[value] = connection
                self._own.add(connection.own)
                self._watch.begin(value)
        return True

    def _cut_surplus(self) -> None:
        kept = self._kept()
        surplus = len(kept) - self._limit
        if surplus <= 0:
            return
        now_s = time.monotonic()
        ranks = {fd: _rank(now_s - c.since_s, tcp.counters_of(fd)) for fd, c in kept.items()}
        for fd in sorted(kept, key=ranks.__getitem__)[:surplus]:
            self._shut(fd, kept[fd], TOO_MANY)
        self._log(TOO_MANY, f"cut {surplus} connections: {self._limit} at most are kept")

    def _look(self) -> None:
        """Cuts the connections that send a flood."""
        began_s, kept = time.monotonic(), self._kept()
        known = [fd for fd, c in kept.items() if self._pauses.is_known(c.peer, began_s)]
        floods = self._watch.look(kept, known, is_drained=self.is_drained)
        for descriptor, what in floods.items():
            self._cut_flood(descriptor, kept[descriptor], what)
        if began_s >= self._next_silence_s:
            self._next_silence_s = began_s + self.silence_limit_s / 10
            self._cut_silent(kept, began_s)
        ended_s = time.monotonic()
        pause_s = _NEXT_LOOK_S if self._watch.is_suspicious else _LOOK_S
        self._next_look_s = ended_s + max(pause_s, (ended_s - began_s) / _LOOK_SHARE)

    def _cut_silent(self, kept: dict[int, _Connection], now_s: float) -> None:
        for descriptor, connection in kept.items():
            counters = tcp.counters_of(descriptor)
            if counters is None or connection.is_cut:
                continue
            if counters.received_bytes != connection.heard_bytes or not connection.heard_s:
                connection.heard_bytes, connection.heard_s = counters.received_bytes, now_s
            elif now_s - connection.heard_s > self.silence_limit_s:
                self._shut(descriptor, connection, SILENT)

    def _hear_of_dropped(self) -> None:
        """Cuts the connections of which too many parts had to be dropped."""
        while self._told:
            descriptor, address, parts = self._told.popleft()
            now_s = time.monotonic()
            # Or more would come each second than can be dropped in one.
            self._pauses.prolong(address, now_s)
            if not self._dropped.add(address or f"descriptor {descriptor}", parts, now_s):
                continue
            what = f"messages of more than {DROPPED_PARTS} parts in all"
            if descriptor is not None and (connection := self._open.get(descriptor)) is not None:
                counters = tcp.counters_of(descriptor)
                # The one that sent them may be gone, and another have its descriptor.
                if counters is None or counters.received_bytes >= 2 * parts:
                    self._cut_flood(descriptor, connection, what)
                    continue
            if address:
                self._pause(address, what)

    def _cut_flood(self, descriptor: int, connection: _Connection, what: str) -> None:
        if connection.is_cut:
            return
        self._shut(descriptor, connection, FLOOD)
        self._pause(connection.peer, what)

    def _pause(self, address: str, what: str) -> None:
        if not address:
            self._log(FLOOD, f"cut a connection of this machine: it sent {what}")
            return
        now_s, shared = time.monotonic(), address in self._own
        pause_s = self._pauses.begin(address, now_s, shared=shared)
        text = f"cut a connection of {address}: it sent {what}; no new one for {pause_s:.0f} s"
        self._log(FLOOD, text)

    def _shut(self, descriptor: int, connection: _Connection, reason: str) -> None:
        """Ends a connection as its peer would; libzmq closes it then."""
        connection.is_cut = True
        self._on_cut(reason)
        if tcp.addresses_of(descriptor) == connection.addresses:  # else it has gone meanwhile
            tcp.end(descriptor)

    def _kept(self) -> dict[int, _Connection]:
        return {fd: c for fd, c in self._open.items() if not c.is_cut}

    def _log(self, reason: str, text: str) -> None:
        now_s = time.monotonic()
        if now_s - self._logged_s.get(reason, float("-inf")) > LOG_EVERY_S:
            self._logged_s[reason] = now_s
            log.warning("%s", text)


def _host(address: Any) -> str:
    return str(address[0]) if isinstance(address, tuple) else ""


def _rank(age_s: float, counters: tcp.Counters | None) -> tuple[bool, float, float]:
    """What is cut first has the lowest: it had time to speak, said least, and is the oldest.

    Of peers on this machine, which cannot be told apart by what they said, it is the newest.
    """
    if counters is None:
        return False, float("inf"), age_s
    return age_s < YOUNG_S, counters.received_bytes, -age_s
