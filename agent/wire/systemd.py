"""What a process tells the service manager that started it (sd_notify(3)); silent without one.

The protocol is one datagram a message to the socket in $NOTIFY_SOCKET. No message is worth the
work of its sender: sending never raises, only `ready` may wait, and a first failure is logged.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from agent.process.shown import printable

log = logging.getLogger(__name__)

MAIN = "MainThread"  # Python's name of the thread a process starts with
PINGS_PER_LIMIT = 4  # so that a lost one, or a slow turn, costs nothing
STATUS_PERIOD_S = 5.0
READY_LIMIT_S = 5.0  # a busy manager may take so long to make room for the message


class ServiceManager:
    """Readiness, status and signs of life, for systemd units of Type=notify.

    Args:
        threads: names of the threads without which the process is of no use. One ping goes out
            when all of them have called `beat` since the last one, so that none can vouch for
            another, and no timer for any.
        environment: where NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID are looked up.
    """

    def __init__(
        self,
        threads: Sequence[str] = (MAIN,),
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._threads = frozenset(threads)
        self._silent = set(threads)
        self._clock = clock
        self._lock = threading.Lock()
        self._has_failed = False
        self._is_stopping = False
        self._socket = self._connect(environment.get("NOTIFY_SOCKET", ""))
        self._limit_s = self._read_limit_s(environment) if self._socket else None
        self._ping_at_s = self._status_at_s = clock()
        self._status = ""

    def ready(self, status: str) -> None:
        """Start-up is complete; from now on the manager expects `beat`."""
        self._status = status
        self._send(f"READY=1\nSTATUS={_one_line(status)}", READY_LIMIT_S)

    def allow(self, step_s: float) -> None:
        """One step of the work may take so long, on top of the manager's own limit.

        The manager is told the sum; the pings stay as frequent as its own limit wants them.
        """
        if self._limit_s is not None:
            limit_usec = round((self._limit_s + step_s) * 1e6)
            self._send(f"WATCHDOG_USEC={limit_usec}", READY_LIMIT_S)

    def show(self, status: str) -> None:
        """Sets the line that `systemctl status` shows."""
        if status != self._status and not self._is_stopping:
            self._status = status
            self._send(f"STATUS={_one_line(status)}")

    def stopping(self) -> None:
        """The process begins to stop; callable from signal handlers, again without effect."""
        if not self._is_stopping:
            self._is_stopping = True
            self._send("STOPPING=1\nSTATUS=stopping")

    def beat(self, status: Callable[[], str] | None = None) -> None:
        """The calling thread has just got on with its work; cheap enough for every turn of a loop.

        `status` is asked every few seconds for what to `show`.
        """
        if self._socket is None:
            return
        with self._lock:
            self._silent.discard(threading.current_thread().name)
            now_s = self._clock()
            if self._limit_s is not None and not self._silent and now_s >= self._ping_at_s:
                self._ping_at_s = now_s + self._limit_s / PINGS_PER_LIMIT
                self._silent = set(self._threads)
                self._send("WATCHDOG=1")
            if status is not None and now_s >= self._status_at_s:
                self._status_at_s = now_s + STATUS_PERIOD_S
                self.show(status())

    def close(self) -> None:
        """Lets go of the socket; another thread may still call `beat`."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def _connect(self, address: str) -> socket.socket | None:
        """A socket that sends to `address`: a path, or "@" and a name in the abstract namespace."""
        if not address:
            return None
        if address[0] not in "/@":
            self._on_failure(f"NOTIFY_SOCKET={address!r} is neither a path nor an abstract name")
            return None
        sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            sender.connect("\0" + address[1:] if address[0] == "@" else address)
        except OSError as error:
            sender.close()
            self._on_failure(f"NOTIFY_SOCKET={address!r}: {error.strerror or error}")
            return None
        return sender

    def _read_limit_s(self, environment: Mapping[str, str]) -> float | None:
        """The longest silence; None: the manager does not watch this process."""
        limit, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
        if not limit or (pid and pid != str(os.getpid())):
            return None
        try:
            limit_s = int(limit) / 1e6
        except ValueError:
            limit_s = 0.0
        if limit_s <= 0:
            self._on_failure(f"WATCHDOG_USEC={limit!r} is no number of microseconds")
            return None
        return limit_s

    def _send(self, message: str, timeout_s: float = 0.0) -> None:
        if self._socket is None:
            return
        try:
            self._socket.settimeout(timeout_s)
            self._socket.send(message.encode())
        except OSError as error:
            self._on_failure(f"{message.partition('=')[0]}: {error.strerror or error}")

    def _on_failure(self, text: str) -> None:
        if not self._has_failed:
            self._has_failed = True
            log.warning("the service manager cannot be told: %s", text)


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))
