"""Looks at what connections send, and says which of them send a flood."""

from __future__ import annotations

from collections.abc import Iterable

from agent.wire import tcp
from agent.wire.flood import (
    MANY_PARTS,
    PEEKED_BYTES,
    PEEKED_ENCRYPTED_BYTES,
    SUSPECT_BYTES,
    TINY_GROWTH,
    WAITING_GROWTH_BYTES,
    Intake,
    parts_per_byte,
)

TOTAL_MESSAGES = 16  # largest ones that all connections may have sent in part
WAITING_MESSAGES = 64  # largest ones that may wait to be taken of one connection
USUAL_OVER = 16  # messages
LEAST_BYTES = 2  # an empty message on the wire


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
        self._waiting_bytes = WAITING_MESSAGES * max_message_bytes + SUSPECT_BYTES
        self._encrypted = encrypted
        self._intakes: dict[int, Intake] = {}
        # By descriptor; the first three are written by whoever takes messages.
        self._taken: dict[int, int] = {}  # messages
        self._taken_bytes: dict[int, int] = {}
        self._usual_bytes: dict[int, float] = {}  # of its last messages
        self._seen: dict[int, int] = {}  # of `_taken`, at the last look
        self._settled: dict[int, int] = {}  # bytes that came less those taken, while none waited
        self._memory_bytes = self._settled_memory_bytes = 0
        self.is_suspicious = False

    def note_taken(self, descriptor: int, size_bytes: int) -> None:
        """A message of this connection was taken; called by the socket's thread alone."""
        self._taken[descriptor] = self._taken.get(descriptor, 0) + 1
        self._taken_bytes[descriptor] = self._taken_bytes.get(descriptor, 0) + size_bytes
        usual_bytes = self._usual_bytes.get(descriptor, size_bytes)
        self._usual_bytes[descriptor] = usual_bytes + (size_bytes - usual_bytes) / USUAL_OVER

    def begin(self, descriptor: int) -> None:
        """A connection was accepted."""
        if not self._intakes:  # nobody has looked for a while
            self._memory_bytes = self._settled_memory_bytes = tcp.resident_bytes()
        self._intakes[descriptor] = Intake(memory_bytes=self._memory_bytes)
        self._settled[descriptor] = -self._taken_bytes.get(descriptor, 0)

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
        waiting: dict[int, int] = {}
        for descriptor in descriptors:
            counters = tcp.counters_of(descriptor)
            if counters is None or descriptor not in self._intakes:
                continue
            waits_bytes = self._waits(descriptor, counters, is_drained)
            if waits_bytes >= SUSPECT_BYTES:
                waiting[descriptor] = waits_bytes
            sent_bytes = self._measure(descriptor, counters)
            if sent_bytes < SUSPECT_BYTES:
                continue
            sent[descriptor] = sent_bytes
            is_known = descriptor in known
            if why := self._judge(descriptor, counters, sent_bytes, is_known, is_drained):
                floods[descriptor] = why
        self.is_suspicious = bool(sent or waiting)
        rest = {d: s for d, s in sent.items() if d not in floods}
        # While the server stands still, whole messages wait; those are judged below.
        if is_drained and sum(rest.values()) > self._total_bytes:
            worst = max(rest, key=rest.__getitem__)
            floods[worst] = f"{rest[worst]} bytes of all connections' {sum(rest.values())}"
        return floods | self._judge_waiting(waiting)

    def _waits(self, descriptor: int, counters: tcp.Counters, is_drained: bool) -> int:
        """Bytes of whole messages of a connection that libzmq has read and nobody has taken.

        What frames add counts too, until no message waits again.
        """
        left_bytes = counters.received_bytes - self._taken_bytes.get(descriptor, 0)
        if is_drained:
            self._settled[descriptor] = left_bytes
        waits_bytes = left_bytes - self._settled[descriptor]
        if waits_bytes >= SUSPECT_BYTES:
            waits_bytes -= tcp.unread_bytes(descriptor)
        return waits_bytes

    def _judge_waiting(self, waiting: dict[int, int]) -> dict[int, str]:
        """The connection of which too much waits: libzmq itself must not bound it, see sockets."""
        grown_bytes = self._memory_bytes - self._settled_memory_bytes
        if not waiting:
            self._settled_memory_bytes = self._memory_bytes
            return {}
        most = max(waiting, key=waiting.__getitem__)
        if waiting[most] > self._waiting_bytes:
            return {most: f"{waiting[most]} bytes of messages that wait to be taken"}
        # The process grows for other reasons, too: only many messages are to blame.
        many = waiting[most] / (self._usual_bytes.get(most, 0) + LEAST_BYTES) >= MANY_PARTS
        if many and grown_bytes >= max(WAITING_GROWTH_BYTES, TINY_GROWTH * sum(waiting.values())):
            self._settled_memory_bytes = self._memory_bytes  # what it sent so far stays a while
            return {most: f"{waiting[most]} bytes of tiny messages that wait to be taken"}
        return {}

    def _measure(self, descriptor: int, counters: tcp.Counters) -> int:
        """What libzmq has read of a connection since a message of it was taken."""
        intake = self._intakes[descriptor]
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

    def _judge(
        self,
        descriptor: int,
        counters: tcp.Counters,
        sent_bytes: int,
        is_known: bool,
        is_drained: bool,
    ) -> str:
        intake = self._intakes[descriptor]
        unread = tcp.peek(descriptor, PEEKED_ENCRYPTED_BYTES if self._encrypted else PEEKED_BYTES)
        density = parts_per_byte(unread, encrypted=self._encrypted)
        is_certain = self._encrypted or is_known
        memory_bytes, segments = self._memory_bytes, counters.segments
        if intake.has_many_parts(sent_bytes, segments, memory_bytes, density, is_certain):
            return f"more than {MANY_PARTS} parts in {sent_bytes} bytes of one message"
        if intake.is_too_long(sent_bytes, self._limit_bytes, is_drained):
            return f"{sent_bytes} bytes of one message"
        return ""
