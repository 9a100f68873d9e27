"""Tells a peer that sends a message without an end from one that sends a large message.

libzmq keeps the parts of a message until the last one has come, however many they are, and takes 64
bytes for each part beside its contents: an empty part is two bytes on the wire. It neither bounds
this nor tells of it. What is known is how many bytes a peer has sent since a message of it was
taken, what lies unread in the kernel, and the memory of the process. Nothing here touches a socket;
times are the caller's clock [s].
"""

from __future__ import annotations

from dataclasses import dataclass

PART_BYTES = 64  # libzmq's of a part, beside its contents
MANY_PARTS = 1 << 14  # of one message, or of all that wait to be taken of one connection
DROPPED_PARTS = 1 << 15  # of an address ...
DROPPED_FOR_S = 10.0  # ... within this time
SUSPECT_BYTES = 2 * MANY_PARTS  # no message of fewer bytes has so many parts
PEEKED_BYTES = 4096
PEEKED_ENCRYPTED_BYTES = 4 * PEEKED_BYTES  # an empty part has about 40
SHORT_SEGMENT_BYTES = 256  # a sender of large messages seldom sends so little at a time
TINY_GROWTH = 4  # times what came: parts and tiny messages take more memory, large ones do not
TRICKLE_BYTES = 16 << 20  # the process grows by less for reasons of its own
WAITING_GROWTH_BYTES = 64 << 20  # tiny messages may wait until the process has grown by so much
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
FORGET_AFTER_S = 120.0
ADDRESSES_MAX = 1024  # that are remembered
_CHAIN_PARTS = 128  # that follow one another: more than a message may have
_CHAIN_STARTS = 256  # a short part is no longer
_CURVE_PART = b"\x07MESSAGE"  # each encrypted part begins so; encrypted bytes do not by chance


@dataclass(slots=True)
class Intake:
    """What a connection has sent since a message of it was last taken.

    Attributes:
        read_bytes, segments: the connection's counters then.
        memory_bytes: of the process, when it had sent little since.
        is_over: it had sent too much at the last look, and no message was there to be taken.
    """

    read_bytes: int = 0
    segments: int = 0
    memory_bytes: int = 0
    is_over: bool = False

    def begin(self, read_bytes: int, segments: int, memory_bytes: int) -> None:
        """A message was taken."""
        self.read_bytes, self.segments = read_bytes, segments
        self.memory_bytes, self.is_over = memory_bytes, False

    def is_too_long(self, sent_bytes: int, limit_bytes: int, is_drained: bool) -> bool:
        """Whether it is one message without an end; messages that wait to be taken are many.

        Args:
            sent_bytes: since `begin`.
            is_drained: no message waits to be taken. Where little is too much it must be so at two
                looks: one may have come just now.
        """
        was_over = self.is_over
        self.is_over = sent_bytes > limit_bytes and is_drained
        return self.is_over and (was_over or sent_bytes > 2 * limit_bytes)

    def has_many_parts(
        self,
        sent_bytes: int,
        segments: int,
        memory_bytes: int,
        parts_per_byte: float,
        is_certain: bool,
    ) -> bool:
        """Whether what was sent since `begin` must be a great many parts.

        Args:
            segments: the connection's counter now.
            parts_per_byte: of what lies unread, see `parts_per_byte`.
            is_certain: those are parts for certain. Otherwise a picture may look like them, whose
                bytes are all 1: then the memory tells, for parts take more of it than a picture.
        """
        grown_bytes = memory_bytes - self.memory_bytes
        short = SHORT_SEGMENT_BYTES * (segments - self.segments)
        if SUSPECT_BYTES <= sent_bytes < short:
            # A slow link or a tunnel may cut a picture as small: then the memory tells.
            return grown_bytes >= max(TRICKLE_BYTES, TINY_GROWTH * sent_bytes)
        parts = sent_bytes * parts_per_byte
        return parts >= MANY_PARTS and (is_certain or grown_bytes >= parts * PART_BYTES / 2)


def parts_per_byte(unread: bytes, *, encrypted: bool) -> float:
    """How closely short parts stand in a piece of a connection's bytes; 0.0 if it shows few."""
    if encrypted:
        parts, length = unread.count(_CURVE_PART), len(unread)
    else:
        parts, length = _chain(unread)
    return parts / length if parts >= _CHAIN_PARTS else 0.0


def _chain(unread: bytes) -> tuple[int, int]:
    """How many short parts follow one another to the end of the piece, and their bytes.

    Each says by its first byte that it is short and that another one follows, by its second how
    long it is. Where one begins is not known.
    """
    dead: set[int] = set()  # no chain goes on from there
    for start in range(min(_CHAIN_STARTS, len(unread))):
        at, chain = start, []
        while at < len(unread) and unread[at] == 1 and at not in dead:
            chain.append(at)
            at += 2 + (unread[at + 1] if at + 1 < len(unread) else 0)
        if at >= len(unread):
            return len(chain), len(unread) - start
        dead.update(chain)
    return 0, len(unread)


class Dropped:
    """Parts that were read only to be dropped and are not forgiven yet, by whose they are."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[float, float]] = {}  # parts, at which time

    def add(self, who: str, parts: int, now_s: float) -> bool:
        """Whether these were too many."""
        before, since_s = self._of.pop(who, (0.0, now_s))
        forgiven = (now_s - since_s) * DROPPED_PARTS / DROPPED_FOR_S
        held = max(0.0, before - forgiven) + parts
        while len(self._of) >= ADDRESSES_MAX:
            del self._of[next(iter(self._of))]  # heard of least recently
        self._of[who] = held, now_s
        return held > DROPPED_PARTS


@dataclass(slots=True)
class _Pause:
    floods: int = 0
    until_s: float = 0.0


class Pauses:
    """Addresses that sent a flood are not let in for a while, each time longer."""

    def __init__(self) -> None:
        self._of: dict[str, _Pause] = {}

    def begin(self, address: str, now_s: float, *, shared: bool) -> float:
        """An address sent a flood; returns how long it is not let in.

        shared: others have it, too, as on this machine. They must get in between, so it is short.
        """
        self._forget(now_s)
        pause = self._of.setdefault(address, _Pause())
        if pause.until_s <= now_s:  # several connections at once are one flood
            longest_s = FIRST_PAUSE_S if shared else LONGEST_PAUSE_S
            pause.until_s = now_s + min(FIRST_PAUSE_S * 2.0**pause.floods, longest_s)
            pause.floods = min(pause.floods + 1, 16)
        return pause.until_s - now_s

    def prolong(self, address: str, now_s: float) -> None:
        """What an address that is not let in had sent still has to be dropped."""
        if self.is_paused(address, now_s):
            pause = self._of[address]
            pause.until_s = max(pause.until_s, now_s + FIRST_PAUSE_S)

    def is_paused(self, address: str, now_s: float) -> bool:
        """Whether it is not let in now; for any thread."""
        pause = self._of.get(address)
        return pause is not None and now_s < pause.until_s

    def is_known(self, address: str, now_s: float) -> bool:
        """Whether it sent a flood not long ago."""
        return address in self._of and now_s < self._of[address].until_s + FORGET_AFTER_S

    def _forget(self, now_s: float) -> None:
        for address in [a for a in self._of if not self.is_known(a, now_s)]:
            del self._of[address]
        while len(self._of) >= ADDRESSES_MAX:
            del self._of[next(iter(self._of))]
