"""A UNIX datagram socket that stands for systemd's end of sd_notify."""

import select
import socket
import time

from patience import HANG_S

WATCHDOG_S = 0.4


class Manager:
    """systemd's end of the socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address[0] == "@" else address)

    def environment(self, **more: str) -> dict[str, str]:
        """What a process is told by systemd."""
        return {"NOTIFY_SOCKET": self.address, **more}

    def watching(self) -> dict[str, str]:
        """The environment of a process that must give a sign of life every WATCHDOG_S."""
        return self.environment(WATCHDOG_USEC=str(round(WATCHDOG_S * 1e6)))

    def receive(self, limit_s: float = HANG_S) -> str | None:
        """The next message, or None after `limit_s`."""
        if not select.select([self._socket], [], [], limit_s)[0]:
            return None
        return self._socket.recv(4096).decode()

    def receive_all(self) -> list[str]:
        """All messages that are there already."""
        return list(iter(lambda: self.receive(0), None))

    def wait_for(self, start: str) -> str:
        """The first message from now on that begins with `start`."""
        deadline_s = time.monotonic() + HANG_S
        while time.monotonic() < deadline_s:
            message = self.receive(1)
            if message is not None and message.startswith(start):
                return message
        raise AssertionError(f"no {start} came")

    def close(self) -> None:
        """Stop listening; the address stays."""
        self._socket.close()
