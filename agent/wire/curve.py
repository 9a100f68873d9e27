"""The server's side of CURVE: who is let in, and what becomes of those who are not.

The well-known authenticator of pyzmq answers libzmq's question whether a client's key is known.
What libzmq refuses by itself (no CURVE, another server's key) shows up as events of the socket.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import zmq

from agent.wire.admission import ZAP_DOMAIN, Admission, address_in
from agent.wire.client_list import CLIENTS_FILE, Client, ClientList, brief_key
from agent.wire.keys import load_server_keys

LOG_EVERY_S = 5.0  # of one peer
PEERS_MAX = 64  # with a line in that time
_CROWD = "..."  # stands for all the others; no address and no client's name

UNKNOWN_KEY, NO_CURVE, WRONG_SERVER_KEY = "unknown_key", "no_curve", "wrong_server_key"
BAD_HANDSHAKE, FORBIDDEN = "bad_handshake", "forbidden"
REASONS = (UNKNOWN_KEY, NO_CURVE, WRONG_SERVER_KEY, BAD_HANDSHAKE, FORBIDDEN)
_BY_PROTOCOL_ERROR = {
    zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: (NO_CURVE, "it does not use CURVE"),
    zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: (
        WRONG_SERVER_KEY,
        "what it sent is not for this server's key; it has another server.key",
    ),
}

log = logging.getLogger(__name__)


class Refusals:
    """Counts who is refused, and logs few of them: nobody can flood the log. For any thread.

    A peer gets one line in LOG_EVERY_S for each reason, PEERS_MAX peers at most; where there are
    more, one line says so. Each reason has its table: a crowd without keys does not hide a client
    that lacks a permission.
    """

    def __init__(
        self, count: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._count = count
        self._clock = clock
        self._lock = threading.Lock()
        self._logged_s: dict[str, OrderedDict[str, float]] = {r: OrderedDict() for r in REASONS}

    def note(self, reason: str, peer: str, source: str, text: str) -> None:
        """reason: one of REASONS. peer: what is limited. source: what is logged of the peer.

        `peer` must be nothing that the other side can choose anew each time, as it can a key.
        """
        self._count(reason)
        with self._lock:
            logged_s, now_s = self._logged_s[reason], self._clock()
            while logged_s and now_s - next(iter(logged_s.values())) >= LOG_EVERY_S:
                logged_s.popitem(last=False)
            if peer not in logged_s and len(logged_s) >= PEERS_MAX:
                peer, source = _CROWD, "others"
                text = f"{reason}: more than {PEERS_MAX} peers, which are only counted"
            if peer in logged_s:
                return
            logged_s[peer] = now_s
        log.warning("refused %s: %s", source, text)


class Door:
    """Makes a server's sockets encrypted ones, and knows who sent a message.

    Close it after its sockets. Raises ConfigError for keys or clients that cannot be read.
    """

    def __init__(self, folder: Path, count: Callable[[str], None]) -> None:
        """folder: made by `perennial keys init`. count: called with the reason of each refusal."""
        self._pair = load_server_keys(folder)
        self._clients = ClientList(folder / CLIENTS_FILE)
        self.refusals = Refusals(count)
        self.admission = _KnownClients(self._clients, self.refusals)
        self.admission.configure_curve_callback(ZAP_DOMAIN, self.admission)
        self.admission.start()

    def secure(self, socket: zmq.Socket[bytes]) -> None:
        """Makes a socket of the admission's context a CURVE server, before it is bound."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self._pair.public.encode())
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._pair.secret.encode())
        self.admission.guard(socket)

    def note_handshake(self, code: int, endpoint: str) -> None:
        """A handshake at our address `endpoint` was refused by libzmq, with its protocol error."""
        reason, text = _BY_PROTOCOL_ERROR.get(
            zmq.Event(code), (BAD_HANDSHAKE, f"ZMTP protocol error {code:#x}")
        )
        # libzmq tells which of our addresses it was, but not who the peer is.
        self.refusals.note(reason, endpoint, f"a peer at {endpoint}", text)

    def identify(self, frame: zmq.Frame) -> Client:
        """Who sent the message of this frame, by the list of clients as it is now."""
        try:
            key = str(frame.get("User-Id"))
        except zmq.ZMQError:  # without this property it did not come through the door
            key = ""
        return self._clients.find(key) or Client("", key, frozenset())

    def close(self) -> None:
        """Stops the threads; the sockets are closed before."""
        self.admission.close()


class _KnownClients(Admission):
    """Lets in the keys of a list. The default user id, which is the key, stays: a client that was
    removed and made anew under the same name is another one."""

    def __init__(self, clients: ClientList, refusals: Refusals) -> None:
        super().__init__()
        self._known = clients
        self._refusals = refusals
        self._peer = ""

    async def answer(self, question: list[bytes]) -> None:
        self._peer = address_in(question)
        await super().answer(question)

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a key is known; called on the authenticator's thread, one at a time."""
        public = key.decode("ascii")
        if self._known.find(public) is not None:
            return True
        peer = self._peer or "a local peer"
        source = f"{peer} with the key {brief_key(public)}"
        text = f"unknown key; to let it in: perennial keys allow KEYS NAME '{public}' --may act"
        self._refusals.note(UNKNOWN_KEY, peer, source, text)
        return False
