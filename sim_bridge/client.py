"""Pipelined requests with timeouts: what is asked, how long ago, and what to ask again.

Every request has a key of the caller's choosing (a lane's number, "assign", ...), at most one per
key. A request without an answer after `request_timeout_s` is sent again, unchanged, under a new
id; the protocol makes that harmless. The first answer to any of its sendings wins and later ones
are dropped and counted, so the caller sees exactly one answer per request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol

from agent.wire.errors import ConfigError, WireError
from agent.wire.messages import Fault
from sim_bridge.robot import BridgeError

# Refusals that pass by themselves: the same request is sent again after a pause.
TRANSIENT_CODES = frozenset({"overloaded", "deadline", "timeout", "internal"})
MAX_REFUSALS = 8  # transient refusals of one request before the last one is its answer
FIRST_PAUSE_S = 0.05  # doubled at each refusal, at most the request timeout


class Superseded(BridgeError):
    """Another process has said hello as this client; this one must not go on."""


class Dealer(Protocol):
    """The pipelined half of `agent.wire.sockets.DealerClient`."""

    endpoint: str

    def send(self, message: Any) -> int:
        """Queues a request and returns its id. Raises WireError when the queue is full."""

    def poll(self, timeout_s: float) -> list[tuple[int, Any]]:
        """Replies that arrived, waiting up to `timeout_s` for the first. Raises WireError."""


@dataclass(slots=True)
class Request:
    """One open request.

    sent: how often it went out. resend_at_s: when it does next. heard: sendings that were refused
    for now. refused: those of them that were the newest one.
    """

    key: Hashable
    message: Any
    asked_at_s: float
    resend_at_s: float
    sent: int = 1
    heard: int = 0
    refused: int = 0
    ids: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands for a reply that could not be decoded; the server did serve the request."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The one answer to a request; `sent` sendings and `elapsed_s` after it was first asked."""

    key: Hashable
    request: Any
    reply: Any
    sent: int
    elapsed_s: float


class RequestTable:
    """The open requests of one client over one dealer socket; single-threaded."""

    def __init__(
        self,
        dealer: Dealer,
        request_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """request_timeout_s: silence after which a request is sent again."""
        self._dealer = dealer
        self._timeout_s = request_timeout_s
        self._clock = clock
        self._by_key: dict[Hashable, Request] = {}
        self._by_id: dict[int, Request] = {}
        self.unexpected_replies = 0  # late duplicates and replies to cancelled requests
        self.unreadable_replies = 0
        self.resent = 0
        self.answered = 0

    @property
    def endpoint(self) -> str:
        """Where the server is asked."""
        return self._dealer.endpoint

    def ask(self, key: Hashable, message: Any, delay_s: float = 0.0) -> None:
        """Sends `message`, after `delay_s`; an open request of the same key is cancelled."""
        self.cancel(key)
        asked_at_s = self._clock() + max(0.0, delay_s)
        if delay_s > 0:  # `receive` sends it
            request = Request(key, message, asked_at_s, asked_at_s, sent=0)
        else:
            request = Request(key, message, asked_at_s, asked_at_s + self._timeout_s)
            self._transmit(request)  # what cannot be sent is not open, either
        self._by_key[key] = request

    def cancel(self, key: Hashable) -> None:
        """Forgets the request of `key`; its answer, if it still comes, is dropped."""
        request = self._by_key.pop(key, None)
        if request is not None:
            for request_id in request.ids:
                self._by_id.pop(request_id, None)

    def is_open(self, key: Hashable) -> bool:
        """Whether `key` waits for an answer."""
        return key in self._by_key

    def unanswered(self) -> int:
        """The most often that any open request was sent without a word from the server."""
        open_requests = self._by_key.values()
        return max((request.sent - request.heard for request in open_requests), default=0)

    def receive(self, wait_s: float) -> list[Answer]:
        """Sends what is due, again or at last, then returns the answers, waiting up to `wait_s`.

        A transient Fault is an answer only when it came `MAX_REFUSALS` times; until then the
        request is sent again after a pause. Raises Superseded, and ConfigError when the server
        does not let this client do what it asks.
        """
        now = self._clock()
        for request in self._by_key.values():
            if now >= request.resend_at_s:
                self.resent += request.sent > 0
                request.sent += 1
                request.resend_at_s = now + self._timeout_s
                self._transmit(request)
        answers = []
        for request_id, reply in self._poll(self._bounded(wait_s, now)):
            answer = self._match(request_id, reply)
            if answer is not None:
                answers.append(answer)
        return answers

    def _poll(self, wait_s: float) -> list[tuple[int, Any]]:
        """Replies; one that cannot be decoded still answers the request it names."""
        try:
            return self._dealer.poll(wait_s)
        except WireError as error:
            self.unreadable_replies += 1
            return [(error.request_id, Unreadable(error.code, error.message))]

    def _match(self, request_id: int, reply: Any) -> Answer | None:
        request = self._by_id.get(request_id)
        if request is None:
            self.unexpected_replies += 1
            return None
        now = self._clock()
        if isinstance(reply, Fault) and reply.code == "stale_epoch":
            raise Superseded(f"{self.endpoint}: {reply.message}")
        if isinstance(reply, Fault) and reply.code == "forbidden":
            raise ConfigError(f"{self.endpoint}: {reply.message}")
        if isinstance(reply, Fault) and reply.code in TRANSIENT_CODES:
            request.heard += 1
            if request_id != request.ids[-1]:
                return None  # after a silence all come at once; the newest is yet to be answered
            request.refused += 1
            if request.refused < MAX_REFUSALS:
                pause_s = FIRST_PAUSE_S * 2**request.refused
                request.resend_at_s = min(request.resend_at_s, now + pause_s)
                return None
        self.cancel(request.key)
        self.answered += 1
        elapsed_s = now - request.asked_at_s
        return Answer(request.key, request.message, reply, request.sent, elapsed_s)

    def _transmit(self, request: Request) -> None:
        try:
            request_id = self._dealer.send(request.message)
        except WireError as error:
            if error.code != "overloaded":  # it would be no other at another time
                raise BridgeError(error.message) from error
            return  # the queue to a silent server is full: this sending counts as lost
        request.ids.append(request_id)
        self._by_id[request_id] = request

    def _bounded(self, wait_s: float, now: float) -> float:
        """`wait_s`, but no longer than until the next request is due."""
        due_s = min(
            (request.resend_at_s for request in self._by_key.values()), default=now + wait_s
        )
        return max(0.0, min(wait_s, due_s - now))


def describe_reply(reply: object) -> str:
    """A reply that was not hoped for, for a person."""
    if isinstance(reply, Fault | Unreadable):
        return f"{type(reply).__name__} {reply.code}: {reply.message}"
    return f"unexpected {type(reply).__name__}"
