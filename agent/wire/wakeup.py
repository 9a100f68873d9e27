"""Interrupts a wait in another thread."""

from __future__ import annotations

import contextlib
import socket


class Wakeup:
    """Lets other threads interrupt a `Poller.wait`; `set` after `close` does nothing.

    Sockets and not a pipe: a closed one forgets its descriptor, so a late `set` (a second SIGTERM,
    say) cannot write into a file that was given the same number since.
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self.fd = self._reader.fileno()

    def set(self) -> None:
        try:
            self._writer.send(b"\0")
        except BlockingIOError:
            return  # full: already awake
        except OSError:
            if self._writer.fileno() >= 0:  # not because it is closed
                raise

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._reader.recv(4096):
                pass

    def close(self) -> None:
        self._reader.close()
        self._writer.close()
