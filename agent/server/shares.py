"""How the server divides what it has among its clients, so that one leaves room for the others.

A party is whose limits count together: the client with its key, however many connections and client
ids it has, or, on a socket without keys, one connection.
"""

from __future__ import annotations

from collections import Counter, deque

from agent.wire.errors import WireError


def check_share(what: str, total: int, held: int, all_held: int, amount: int = 1) -> None:
    """Check that a party may take `amount` more of `what`.

    It may hold as much as is then still free, and take what is left if it holds nothing: one party
    gets half of all at most, two get a third each.

    Raises:
        WireError: overloaded.
    """
    free = total - all_held - amount
    if free >= 0 and (held == 0 or held + amount <= free):
        return
    raise WireError(
        "overloaded",
        f"{what}: {amount} more, of which you hold {held} and all clients {all_held} of {total}; "
        "each may hold as much as is left free",
    )


class Backlog:
    """The bytes of observations that are being answered, and of those that wait for the disk.

    The journal writes in order, so what it has written so far tells whose bytes those were.
    """

    def __init__(self, limit_bytes: int) -> None:
        """limit_bytes: of either, all parties together."""
        self._limit_bytes = limit_bytes
        self._answering: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()
        self._handed: deque[tuple[int, str, int]] = deque()  # total with it, whose, bytes
        self._handed_bytes = 0  # to the journal, ever

    def begin(self, party: str, size_bytes: int) -> None:
        """Hold an observation's bytes until its answer.

        Raises:
            WireError: overloaded.
        """
        held, all_held = self._answering[party], self._answering.total()
        check_share("bytes in answering", self._limit_bytes, held, all_held, size_bytes)
        self._answering[party] += size_bytes

    def check_disk(self, party: str, size_bytes: int, waiting_bytes: int) -> None:
        """Check that an observation may be recorded once it is answered.

        Args:
            party: whose observation it is.
            size_bytes: of the observation.
            waiting_bytes: of the journal, now.

        Raises:
            WireError: overloaded.
        """
        while self._handed and self._handed[0][0] <= self._handed_bytes - waiting_bytes:
            _, writer, written_bytes = self._handed.popleft()
            _take(self._waiting, writer, written_bytes)
        held = self._waiting[party] + self._answering[party]
        all_held = self._waiting.total() + self._answering.total()
        check_share("bytes for the disk", self._limit_bytes, held, all_held, size_bytes)

    def end(self, party: str, size_bytes: int) -> None:
        """An observation has its answer, or gets none."""
        _take(self._answering, party, size_bytes)

    def hand_over(self, party: str, size_bytes: int) -> None:
        """So many bytes more wait for the disk."""
        self._handed_bytes += size_bytes
        self._handed.append((self._handed_bytes, party, size_bytes))
        self._waiting[party] += size_bytes


def _take(held: Counter[str], party: str, size_bytes: int) -> None:
    held[party] -= size_bytes
    if held[party] <= 0:
        del held[party]
