"""Who is there for the work of each suite: the witnesses of what a slot is worth, and its takers.

Pure: times are the caller's clock [s]. A client, or the key that answers for it, is there for a
while after it asked for work, and as long as it holds some, however long an episode takes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

PRESENT_S = 60.0  # after it asked for work
WANTING_S = 5.0  # after it asked in vain; it asks again long before


@dataclass(slots=True)
class _Attendant:
    asked_s: float
    in_vain: bool = False
    has_delivered: bool = False  # an episode that counts, since it came


class Attendance:
    """By suite, for the suites that there is work of."""

    def __init__(self) -> None:
        self._suites: dict[str, dict[str, _Attendant]] = {}

    def open(self, suite: str) -> None:
        """There is work of it from now on."""
        self._suites.setdefault(suite, {})

    def ask(self, suite: str, who: str, now_s: float, *, in_vain: bool) -> None:
        """Somebody asked for work; in_vain: and got none."""
        there = self._suites.get(suite)
        if there is None:
            return  # any client could make up any number of them
        attendant = there.setdefault(who, _Attendant(now_s))
        attendant.asked_s, attendant.in_vain = now_s, in_vain

    def deliver(self, suite: str, who: str) -> None:
        """An episode of theirs counts."""
        attendant = self._suites[suite].get(who)
        if attendant is not None:
            attendant.has_delivered = True

    def last_asked_s(self, suite: str) -> float:
        """When somebody last asked for its work; it was at some time."""
        return max((each.asked_s for each in self._suites[suite].values()), default=0.0)

    def there(self, suite: str, now_s: float, holding: Iterable[str]) -> dict[str, bool]:
        """{who is there: whether they have delivered}; holding: who holds work of this suite."""
        holders = set(holding)
        return {
            who: attendant.has_delivered
            for who, attendant in self._suites.get(suite, {}).items()
            if who in holders or now_s - attendant.asked_s <= PRESENT_S
        }

    def is_wanted(self, suite: str, by_other_than: str, now_s: float) -> bool:
        """Whether somebody else waits for work of the suite and has got none."""
        return any(
            attendant.in_vain and who != by_other_than and now_s - attendant.asked_s <= WANTING_S
            for who, attendant in self._suites.get(suite, {}).items()
        )

    def forget(self, now_s: float, holding: Iterable[str]) -> None:
        """Those who left; holding: who holds work of any suite."""
        holders = set(holding)
        for attendants in self._suites.values():
            gone = [w for w, a in attendants.items() if now_s - a.asked_s > PRESENT_S]
            for who in gone:
                if who not in holders:
                    del attendants[who]
