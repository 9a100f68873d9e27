"""The server's loop: receive, decode, dispatch, answer. One thread, which owns all state."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from agent.metrics import PROTOCOL, AgentMetrics
from agent.server.exchange import Exchange, Mailbox
from agent.server.faults import answering
from agent.server.permissions import check_kind, check_permission
from agent.server.state import ServerState
from agent.wire.client_list import brief_key
from agent.wire.codec import decode
from agent.wire.curve import FORBIDDEN
from agent.wire.errors import WireError
from agent.wire.messages import Act, Fault
from agent.wire.sockets import Poller, Received, RouterSocket
from agent.wire.wakeup import Wakeup

log = logging.getLogger(__name__)

Handler = Callable[[Any, Exchange], None]
Handlers = Mapping[type, Handler]

BURST = 64  # messages of one socket before the others get their turn ...
BURST_S = 0.05  # ... and the time after which no further one is taken
MAX_WAIT_S = 0.25


class Loop:
    """Serves several sockets, each with its own table {message type: handler}.

    Args:
        turn: called once a turn with the time [s]; returns the seconds until it must be called
            again, or None for no hurry.
    """

    def __init__(
        self,
        tables: list[tuple[RouterSocket, Handlers]],
        mailbox: Mailbox,
        wakeup: Wakeup,
        state: ServerState,
        metrics: AgentMetrics,
        turn: Callable[[float], float | None],
    ) -> None:
        self._tables = {id(socket): (socket, handlers) for socket, handlers in tables}
        self._poller = Poller([socket for socket, _ in tables], wakeup)
        self._mailbox = mailbox
        self._state = state
        self._metrics = metrics
        self._turn = turn
        self._wait_s = 0.0
        self.last_turn_s = time.monotonic()

    def run_once(self) -> None:
        """One turn; waits at most MAX_WAIT_S for something to do."""
        for socket in self._poller.wait(self._wait_s):
            self._receive(socket)
        self.run_actions()
        self.last_turn_s = time.monotonic()
        due_s = self._turn(self.last_turn_s)
        self._wait_s = MAX_WAIT_S if due_s is None else min(due_s, MAX_WAIT_S)

    def run_actions(self) -> None:
        """Does what other threads have posted."""
        for action in self._mailbox.take():
            with answering(action.exchange, "finishing a request"):
                action.run()

    def _receive(self, socket: RouterSocket) -> None:
        _, handlers = self._tables[id(socket)]
        until_s = time.monotonic() + BURST_S
        for _ in range(BURST):
            received = socket.receive()
            if received is None:
                return
            self._dispatch(socket, handlers, received)
            if time.monotonic() >= until_s:
                return

    def _dispatch(self, socket: RouterSocket, handlers: Handlers, received: Received) -> None:
        now_s = time.monotonic()
        self._state.requests += 1
        name = "unreadable"

        def check(kind: type) -> None:
            nonlocal name
            name = kind.__name__
            if kind not in handlers:
                raise WireError("unknown_type", f"{name} is not answered at {socket.endpoint}")
            check_kind(kind, received.sender)

        try:
            if received.refused is not None:
                raise received.refused
            envelope = decode(received.frames, socket.limits, check)
        except WireError as error:
            self._refuse(socket, received, error, name)
            return
        if name == Act.__name__:
            self._metrics.observe_stage("decode", time.monotonic() - now_s)

        def send(reply: object) -> None:
            self._note_forbidden(socket, received, reply)
            self._send(socket, received.peer, envelope.request_id, name, reply)

        expires_s = None if envelope.deadline_s is None else now_s + envelope.deadline_s
        sender = received.sender.name
        exchange = Exchange(send, now_s, expires_s, sender, sender or received.peer.hex())
        with answering(exchange, name):
            check_permission(envelope.message, received.sender)
            handlers[type(envelope.message)](envelope.message, exchange)

    def _refuse(
        self, socket: RouterSocket, received: Received, error: WireError, name: str
    ) -> None:
        fault = Fault(error.code, error.message)
        self._note_forbidden(socket, received, fault)
        # A type that is not answered here is as good as none: it could be any name.
        kind = "unreadable" if error.code not in (FORBIDDEN, "unknown_type") else name
        self._send(socket, received.peer, error.request_id, kind, fault)

    def _note_forbidden(self, socket: RouterSocket, received: Received, reply: object) -> None:
        if isinstance(reply, Fault) and reply.code == FORBIDDEN and socket.door is not None:
            sender = received.sender
            source = f"client {sender.name!r} with the key {brief_key(sender.key)}"
            # By name: those of the list are few, and all keys that left it have none.
            socket.door.refusals.note(FORBIDDEN, sender.name, source, reply.message)

    def _send(
        self, socket: RouterSocket, peer: bytes, request_id: int, name: str, reply: object
    ) -> None:
        started_s = time.monotonic()
        code = reply.code if isinstance(reply, Fault) else "ok"
        self._metrics.requests_total.labels(PROTOCOL, name, code).inc()
        try:
            is_sent = socket.send(peer, reply, request_id)
        except WireError as error:  # no peer would take it
            log.error("the answer to %s cannot travel: %s", name, error.message)
            fault = Fault("internal", f"the answer to {name} cannot travel: {error.message}")
            is_sent = socket.send(peer, fault, request_id)
        if not is_sent:
            self._metrics.dropped_messages_total.labels("nobody_to_answer").inc()
        if name == Act.__name__:
            self._metrics.observe_stage("encode", time.monotonic() - started_s)
