"""Looks at what connections send, and says which of them send a flood."""

from __future__ import annotations

from collections.abc import Iterable

from agent.wire import tcp
from agent.wire.flood import (
    MANY_PARTS,
    PEEKED_BYTES,
    PEEKED_ENCRYPTED_BYTES,
    SUSPECT_BYTES,
    Intake,
    parts_per_byte,
)

TOTAL_MESSAGES = 16  # largest ones that all connections may have sent in part


class FloodWatch:
    """The connections of one socket. Everything but `note_taken` is for one thread.

    Args:
        max_message_bytes: the largest message that is accepted.
        encrypted: whether the connections are.

    Attributes:
        is_suspicious: some connection had sent much at the last look; the next should come soon.
    """

    def __init__(self, max_message_bytes: int, *, encrypted: bool) -> None:
        self._limit_bytes = max_message_bytes + max_message_bytes // 4 + SUSPECT_BYTES
        self._total_bytes = TOTAL_MESSAGES * max_message_bytes + SUSPECT_BYTES
        self._encrypted = encrypted
        self._intakes: dict[int, Intake] = {}
        self._seen: dict[int, int] = {}  # of `_taken`, at the last look
        self._taken: dict[int, int] = {}  # messages, by descriptor; written by whoever takes them
        self._memory_bytes = 0
        self.is_suspicious = False

    def note_taken(self, descriptor: int) -> None:
        """A message of this connection was taken; called by the socket's thread alone."""
        self._taken[descriptor] = self._taken.get(descriptor, 0) + 1

    def begin(self, descriptor: int) -> None:
        """A connection was accepted."""
        self._intakes[descriptor] = Intake(memory_bytes=self._memory_bytes)

    def forget(self, descriptor: int) -> None:
        """A connection is gone."""
        self._intakes.pop(descriptor, None)

    def look(
        self, descriptors: Iterable[int], known: Iterable[int], *, is_drained: bool
    ) -> dict[int, str]:
        """Which connections send a flood: {descriptor: what it is}.

        Args:
            descriptors: of the connections to look at.
            known: those whose address has sent a flood not long ago.
            is_drained: whether no message waits to be taken.
        """
        self._memory_bytes = tcp.resident_bytes()
        known, floods = set(known), {}
        sent: dict[int, int] = {}
        for descriptor in descriptors:
            sent_bytes = self._measure(descriptor)
            if sent_bytes < SUSPECT_BYTES:
                continue
            sent[descriptor] = sent_bytes
            if why := self._judge(descriptor, sent_bytes, descriptor in known, is_drained):
                floods[descriptor] = why
        self.is_suspicious = bool(sent)
        rest = {d: s for d, s in sent.items() if d not in floods}
        # While the server stands still, whole messages wait; their number is bounded.
        if is_drained and sum(rest.values()) > self._total_bytes:
            worst = max(rest, key=rest.__getitem__)
            floods[worst] = f"{rest[worst]} bytes of all connections' {sum(rest.values())}"
        return floods

    def _measure(self, descriptor: int) -> int:
        """What libzmq has read of a connection since a message of it was taken."""
        counters = tcp.counters_of(descriptor)
        intake = self._intakes.get(descriptor)
        if counters is None or intake is None:
            return 0
        taken = self._taken.get(descriptor, 0)
        if taken != self._seen.get(descriptor, 0):
            self._seen[descriptor] = taken
            read_bytes = counters.received_bytes - tcp.unread_bytes(descriptor)
            intake.begin(read_bytes, counters.segments, self._memory_bytes)
            return 0
        sent_bytes = counters.received_bytes - intake.read_bytes
        if sent_bytes >= SUSPECT_BYTES:
            sent_bytes -= tcp.unread_bytes(descriptor)
        if sent_bytes < SUSPECT_BYTES:
            intake.memory_bytes = self._memory_bytes
        return sent_bytes

    def _judge(self, descriptor: int, sent_bytes: int, is_known: bool, is_drained: bool) -> str:
        intake, counters = self._intakes[descriptor], tcp.counters_of(descriptor)
        unread = tcp.peek(descriptor, PEEKED_ENCRYPTED_BYTES if self._encrypted else PEEKED_BYTES)
        density = parts_per_byte(unread, encrypted=self._encrypted)
        segments = intake.segments if counters is None else counters.segments
        is_certain = self._encrypted or is_known
        memory_bytes = self._memory_bytes
        if intake.has_many_parts(sent_bytes, segments, memory_bytes, density, is_certain):
            return f"more than {MANY_PARTS} parts in {sent_bytes} bytes of one message"
        if intake.is_too_long(sent_bytes, self._limit_bytes, is_drained):
            return f"{sent_bytes} bytes of one message"
        return ""
