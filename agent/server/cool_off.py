"""Clients that end their work in vain wait before they get more, each time longer.

A client that aborts, falls silent or lets leases run out costs the others the time of its slots.
One that does so over and over must not keep them all from getting done.
"""

from __future__ import annotations

from dataclasses import dataclass

FREE_FAILURES = 2  # in a row, that cost nothing yet: one crash says little
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 60.0
FAILURES_MAX = 16  # remembered of one client
FORGET_AFTER_S = 600.0  # of good behaviour or absence


@dataclass(slots=True)
class _Record:
    failures: int = 0
    until_s: float = 0.0


class CoolOff:
    """By whoever answers for a client. Pure: times are the caller's clock [s]."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    def fail(self, who: str, now_s: float) -> float:
        """Work ended in vain; returns the pause that follows, which grows with each failure."""
        self._forget(now_s)
        record = self._records.setdefault(who, _Record())
        record.failures = min(record.failures + 1, FAILURES_MAX)
        doublings = record.failures - FREE_FAILURES - 1
        pause_s = min(FIRST_PAUSE_S * 2.0**doublings, LONGEST_PAUSE_S) if doublings >= 0 else 0.0
        record.until_s = max(record.until_s, now_s + pause_s)
        return pause_s

    def deliver(self, who: str) -> None:
        """An episode counted: half of the failures are forgiven."""
        record = self._records.get(who)
        if record is not None:
            record.failures //= 2

    def left_s(self, who: str, now_s: float) -> float:
        """How long it has to wait; 0.0 for a client in good standing."""
        record = self._records.get(who)
        return max(0.0, record.until_s - now_s) if record is not None else 0.0

    def waiting(self, now_s: float) -> list[str]:
        """Those that have to wait."""
        return [who for who, record in self._records.items() if record.until_s > now_s]

    def _forget(self, now_s: float) -> None:
        old = [w for w, record in self._records.items() if now_s - record.until_s > FORGET_AFTER_S]
        for who in old:
            del self._records[who]
