"""What the supervisor hears of a child: that it is ready, and that its work gets on.

It speaks systemd's sd_notify(3), as the processes do to the services' manager: each of them sends a
ping from its own work and from no timer, so one that stands still falls silent, and one that works
long does not.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

STOPPED_LIMIT_S = 20.0  # for a process that a signal has stopped: it cannot even be busy
LONGEST_LOOK_S = (
    1.0  # counted between two looks: the supervisor itself, or the machine, stood still
)
_MAX_BYTES = 4096


class Signs:
    """The socket of one child, and how long it has been silent.

    Args:
        path: of the socket; short, as sockets' paths must be.
        limit_s: silence after which a child that was ready counts as hung, until it asks for more
            with WATCHDOG_USEC because its steps are long.
        ready_limit_s: time after which a child that is not ready counts as hung.
    """

    def __init__(
        self,
        path: Path,
        limit_s: float,
        ready_limit_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._own_limit_s, self._ready_limit_s = path, limit_s, ready_limit_s
        self._limit_s = limit_s
        self._clock = clock
        self._socket: socket.socket | None = None
        self.is_ready = False
        self._looked_at_s = self._silent_s = self._stopped_s = 0.0

    def expect(self) -> dict[str, str]:
        """Forgets the child before; returns the next one's part of the environment."""
        if self._socket is None:
            self._path.unlink(missing_ok=True)
            bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            try:
                bound.bind(str(self._path))
            except OSError:
                bound.close()
                raise
            self._socket = bound
        self._receive()
        self.is_ready = False
        self._limit_s = self._own_limit_s
        self._silent_s = self._stopped_s = 0.0
        self._looked_at_s = self._clock()
        usec = str(round(self._limit_s * 1e6))
        return {"NOTIFY_SOCKET": str(self._path), "WATCHDOG_USEC": usec, "WATCHDOG_PID": ""}

    def find_hang(self, pid: int) -> str:
        """Why the child counts as hung; "" while it does not. To be asked all the time.

        Only time counts in which it was asked: who was stopped with the supervisor is not blamed.
        """
        now_s = self._clock()
        looked_s = min(now_s - self._looked_at_s, LONGEST_LOOK_S)
        self._looked_at_s = now_s
        self._silent_s = 0.0 if self._receive() else self._silent_s + looked_s
        self._stopped_s = self._stopped_s + looked_s if _is_stopped(pid) else 0.0
        if self._stopped_s > STOPPED_LIMIT_S:
            return f"a signal had stopped it for {self._stopped_s:.0f} s"
        if not self.is_ready and self._silent_s > self._ready_limit_s:
            return f"it was not ready after {self._silent_s:.0f} s"
        if self.is_ready and self._silent_s > self._limit_s:
            return f"it gave no sign of life for {self._silent_s:.0f} s"
        return ""

    def close(self) -> None:
        """Hears no more."""
        if self._socket is not None:
            self._socket.close()
            self._path.unlink(missing_ok=True)
            self._socket = None

    def _receive(self) -> bool:
        """Takes what was sent; whether it shows that the child gets on."""
        is_alive = False
        while self._socket is not None:
            try:
                lines = self._socket.recv(_MAX_BYTES).split(b"\n")
            except BlockingIOError:
                break
            is_alive = is_alive or b"READY=1" in lines or b"WATCHDOG=1" in lines
            self.is_ready = self.is_ready or b"READY=1" in lines
            for line in lines:
                self._take_limit(line)
        return is_alive

    def _take_limit(self, line: bytes) -> None:
        """A child knows how long its steps may take; it cannot make the limit shorter."""
        name, _, value = line.partition(b"=")
        if name == b"WATCHDOG_USEC" and value.isdigit():
            self._limit_s = max(self._own_limit_s, int(value) / 1e6)


def _is_stopped(pid: int) -> bool:
    """Whether SIGSTOP or the like holds the process; never, where the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return status.rpartition(b")")[2].split()[:1] == [b"T"]
