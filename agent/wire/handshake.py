"""The client's side of CURVE: a handshake that cannot succeed becomes an error instead of silence.

libzmq tells a client little of why a handshake failed: a refused key comes as an event of its own,
while a server that cuts the connection, as it does for a message that is not for its key, looks
like one that is just being stopped. So after a few failures in a row the server's greeting is read:
it names the mechanism, and only a server that is up sends one.
"""

from __future__ import annotations

import socket as posix
import time
from collections import deque

import zmq
from zmq.utils.monitor import recv_monitor_message

from agent.wire.client_list import brief_key
from agent.wire.errors import HandshakeRefused
from agent.wire.keys import ClientKeys
from agent.wire.monitor import monitor

FAILURES = 3  # in a row ...
WITHIN_S = 5.0  # ... within this time: a restart and a busy server look different
GREETING_LIMIT_S = 1.0
_EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_REFUSED = 400  # ZAP's status for a client that is not let in
# ZMTP 3: signature and major version. A server that has these sends its whole greeting; with a
# mechanism in ours it might hang up before that.
_OPENING = b"\xff" + bytes(8) + b"\x7f\x03"
_GREETING_BYTES = 64


class HandshakeWatch:
    """Watches the handshakes of one client, over all the sockets that it uses in turn."""

    def __init__(self, endpoint: str, keys: ClientKeys | None) -> None:
        self._endpoint, self._keys = endpoint, keys
        self._failed_s: deque[float] = deque(maxlen=FAILURES)
        self._watched: zmq.Socket[bytes] | None = None
        self.events: zmq.Socket[bytes] | None = None  # readable when `check` has something to do

    def attach(self, socket: zmq.Socket[bytes]) -> None:
        """Watches `socket` from now on; to be called before it connects."""
        self.detach()
        self.events = monitor(socket, _EVENTS)
        self._watched = socket

    def detach(self) -> None:
        """Lets go of the socket, which is still open."""
        if self._watched is not None and self.events is not None:
            self._watched.disable_monitor()
            self.events.close()
        self._watched = self.events = None

    def check(self) -> None:
        """Takes note of what happened. Raises HandshakeRefused if waiting would not help."""
        assert self.events is not None
        error = ""
        while self.events.poll(0):
            event = recv_monitor_message(self.events)
            kind, value = event["event"], event["value"]
            if kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                error = ""
                self._failed_s.clear()
            elif kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH and value == _REFUSED:
                error = self._unknown_key()
            elif value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
                error = self._other_mechanism()
            else:
                self._failed_s.append(time.monotonic())
        if not error and len(self._failed_s) == FAILURES:
            if self._failed_s[-1] - self._failed_s[0] <= WITHIN_S:
                error = self._explain(read_mechanism(self._endpoint))
            self._failed_s.clear()
        if error:
            raise HandshakeRefused(f"{self._endpoint}: {error}")

    def _explain(self, mechanism: str | None) -> str:
        if mechanism is None:
            return ""  # nobody is there, as while a server starts
        if mechanism != ("NULL" if self._keys is None else "CURVE"):
            return self._other_mechanism()
        return "" if self._keys is None else self._wrong_server_key(self._keys)

    def _unknown_key(self) -> str:
        if self._keys is None:
            return "the server lets nobody in"
        key = self._keys.pair.public
        return (
            f"the server refused this client's key ({brief_key(key)}); have its operator run: "
            f"perennial keys allow KEYS NAME '{key}' --may act,report"
        )

    def _other_mechanism(self) -> str:
        if self._keys is None:
            return (
                "the server demands CURVE and this client has no keys; have its operator run "
                "`perennial keys add`, and set keys_dir to the folder that it makes"
            )
        return (
            "the server does not use CURVE; set its keys_dir, or, on a trusted network only, "
            'this client\'s keys_dir to ""'
        )

    def _wrong_server_key(self, keys: ClientKeys) -> str:
        return (
            "the server cuts every handshake: most likely it has another key than "
            f"{keys.folder / 'server.key'} says ({brief_key(keys.server_public)}); copy the "
            "present one there, or mend the address"
        )


def read_mechanism(endpoint: str) -> str | None:
    """The security mechanism in a ZMTP 3 server's greeting; None if no such server answers."""
    try:
        with _dial(endpoint) as connection:
            connection.sendall(_OPENING)
            greeting = b""
            while len(greeting) < _GREETING_BYTES:
                part = connection.recv(_GREETING_BYTES - len(greeting))
                if not part:
                    return None
                greeting += part
    except OSError:
        return None
    if greeting[0] != 0xFF or greeting[9] != 0x7F or greeting[10] < 3:
        return None
    return greeting[12:32].rstrip(b"\0").decode("ascii", "replace")


def _dial(endpoint: str) -> posix.socket:
    scheme, _, address = endpoint.partition("://")
    if scheme == "tcp":
        host, _, port = address.rpartition(":")
        return posix.create_connection((host.strip("[]"), int(port)), GREETING_LIMIT_S)
    connection = posix.socket(posix.AF_UNIX, posix.SOCK_STREAM)
    connection.settimeout(GREETING_LIMIT_S)
    try:
        connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection
