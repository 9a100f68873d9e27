"""Which slot of which order runs where: the order book, pure and in memory.

No IO, no clock, no randomness but the id mint handed in: the same calls give the same answers.
A slot is free, leased (a client may start it), running (one open episode) or filled (one counted
episode). Free slots are leased in the order in which they were posted. A slot whose episode is
aborted becomes free again; at most one episode counts per slot.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Mapping

from agent.attendance import Attendance
from agent.order_slots import Expired, Finished, Slot, SlotState, Started, slot_id_of
from agent.process.shown import printable
from agent.wire.errors import WireError
from agent.wire.messages import Order, Outcome, SlotLease

QUIET_LIMIT_S = 600.0  # or lease_s: without a word about an episode, however lively its client
# An order is refused once so many different clients have aborted one of its slots, or, where there
# are fewer, each of them that often: one client alone cannot speak for the others. Those who are
# there and get other work done must be among them: names are made up in no time.
SLOT_ABORTS_MAX = 8
ABORTS_AT_ONCE = 2  # after so many of one slot its client is offered all others first


class OrderBook:
    """Orders, slots and leases.

    Args:
        lease_s: seconds of silence after which a lease or an open episode expires.
        mint: makes a fresh episode id.
        slot_aborts_max: different clients that abort one slot, after which no more of its order
            is leased; or aborts by each client that is there.
    """

    def __init__(
        self, lease_s: float, mint: Callable[[], str], slot_aborts_max: int = SLOT_ABORTS_MAX
    ) -> None:
        if not lease_s > 0:
            raise ValueError(f"lease_s must be > 0, got {lease_s}")
        self._lease_s = lease_s
        self._mint = mint
        self._slot_aborts_max = slot_aborts_max
        self._refused: dict[str, str] = {}  # order id -> why
        self._attendance = Attendance()
        self._orders: dict[str, Order] = {}
        self._slots: dict[str, Slot] = {}
        self._free: dict[tuple[str, str], list[tuple[int, str]]] = {}  # (suite, version) -> heap
        self._held: dict[str, Slot] = {}  # slot id -> leased or running slot, oldest lease first
        self._running: dict[str, Slot] = {}  # episode id -> slot
        self._filled = 0

    def post(self, orders: Iterable[Order]) -> list[Order]:
        """Add orders, all or none; returns the new ones.

        Raises WireError("conflict") if an order id is known with other content, ("bad_message")
        for an order without a slot.
        """
        new: dict[str, Order] = {}
        for order in orders:
            known = self._orders.get(order.order_id) or new.get(order.order_id)
            if known is not None and known != order:
                raise WireError("conflict", f"order {order.order_id!r} exists with other content")
            if order.slots < 1:
                raise WireError(
                    "bad_message", f"order {order.order_id!r}: slots must be >= 1: {order.slots}"
                )
            if known is None:
                new[order.order_id] = order
        for order in new.values():
            self._orders[order.order_id] = order
            self._attendance.open(order.suite)
            for index in range(order.slots):
                slot = Slot(slot_id_of(order, index), order, index, place=len(self._slots))
                self._slots[slot.slot_id] = slot
                self._set_free(slot)
        return list(new.values())

    def hold(self, held: Mapping[str, str]) -> dict[str, str]:
        """Fill free slots that need no episode, {slot id: episode id}; returns those it filled.

        Slots that are leased, running or filled go on as they are. Raises
        WireError("unknown_slot").
        """
        free = {s: e for s, e in held.items() if self._slot(s).state is SlotState.FREE}
        for slot_id, episode_id in free.items():
            self._fill(self._slots[slot_id], episode_id)
        self._drop_from_heaps(free)
        return free

    def reopen(self, slot_id: str, episode_id: str) -> bool:
        """Free a slot whose counted episode turned out to be of no use; False if it has another."""
        slot = self._slots.get(slot_id)
        if slot is None or (slot.state, slot.episode_id) != (SlotState.FILLED, episode_id):
            return False
        self._filled -= 1
        self._set_free(slot)
        return True

    def restore(self, orders: Iterable[Order], filled: Mapping[str, str]) -> None:
        """Rebuild an empty book from the journal: orders as posted, {slot id: episode id}.

        Raises WireError("unknown_slot") for a filled slot that no order has.
        """
        self.post(orders)
        for slot_id, episode_id in filled.items():
            self._fill(self._slot(slot_id), episode_id)
        self._drop_from_heaps(filled)

    # ---- what clients do ---------------------------------------------------------------------

    def lease(
        self,
        client_id: str,
        suite: str,
        count: int,
        now_s: float,
        versions: Collection[str] | None = None,
        who: str = "",
    ) -> list[SlotLease]:
        """Lease up to `count` free slots of `suite`, in posting order.

        Those that this client has aborted repeatedly come last: another one may try them first.
        Who asks for more and has left a lease unstarted for `lease_s` never got to know of it (the
        reply was lost); that slot is free again.

        versions: lease only slots pinned to one of these (those the policy can serve now);
        None means any. who: answers for the client, if it is not itself.
        """
        who = who or client_id
        self._free_unknown(client_id, suite, now_s)
        leases: list[SlotLease] = []
        again: list[Slot] = []
        heaps = self._heaps(suite, versions)
        while len(leases) < count and any(heaps):
            _, slot_id = heapq.heappop(min(filter(None, heaps), key=lambda heap: heap[0]))
            slot = self._slots[slot_id]
            if slot.order.order_id in self._refused:
                continue
            if slot.aborts[who] >= ABORTS_AT_ONCE:
                again.append(slot)
            else:
                leases.append(self._lease(slot, client_id, who, now_s))
        for slot in again:
            if len(leases) < count:
                leases.append(self._lease(slot, client_id, who, now_s))
            else:
                self._set_free(slot)
        self._attendance.ask(suite, who, now_s, in_vain=not leases)
        return leases

    def allowance(
        self,
        suite: str,
        who: str,
        now_s: float,
        versions: Collection[str] | None = None,
        waiting: Collection[str] = (),
    ) -> int:
        """How many free slots of `suite` somebody may lease now, so that others get some, too.

        Where nobody else is there, all of them. Else what they have leased and not started may be
        as much as they leave, and one slot if they have leased none. waiting: who gets nothing now.
        """
        free = sum(map(len, self._heaps(suite, versions)))  # and some of refused orders
        if not self._there(suite, now_s).keys() - {who, *waiting}:
            return free
        leased = (slot for slot in self._held.values() if slot.state is SlotState.LEASED)
        mine = sum(slot.who == who and slot.order.suite == suite for slot in leased)
        return max((free - mine) // 2, 0 if mine else min(free, 1))

    def start(self, slot_id: str, client_id: str, start_key: str, now_s: float) -> Started:
        """Open the episode of a slot leased to this client; a repeated start gets the same one.

        Raises WireError: unknown_slot, lease_lost (expired, or leased to another client),
        episode_open_elsewhere (running under another start key).
        """
        slot = self._slot(slot_id)
        if slot.client_id != client_id or slot.state not in (SlotState.LEASED, SlotState.RUNNING):
            raise WireError(
                "lease_lost",
                f"slot {slot_id!r} is {slot.state.name.lower()} and not leased to {client_id!r}",
            )
        is_new = slot.state is SlotState.LEASED
        if is_new:
            slot.state, slot.start_key, slot.episode_id = SlotState.RUNNING, start_key, self._mint()
            self._running[slot.episode_id] = slot
        elif slot.start_key != start_key:
            raise WireError(
                "episode_open_elsewhere", f"slot {slot_id!r} has open episode {slot.episode_id}"
            )
        slot.spoken_of_s, slot.expires_s = now_s, now_s + self._lease_s
        return Started(slot.episode_id, slot.order, slot.index, is_new)

    def touch_episode(self, episode_id: str, now_s: float) -> None:
        """A sign of life of one open episode; episodes that run in no slot are ignored."""
        slot = self._running.get(episode_id)
        if slot is not None:
            slot.spoken_of_s, slot.expires_s = now_s, now_s + self._lease_s

    def touch_client(self, client_id: str, now_s: float) -> None:
        """A sign of life of a client keeps what it holds, but for what it seems to have lost."""
        quiet_s = max(QUIET_LIMIT_S, self._lease_s)
        for slot in self._held.values():
            if slot.client_id == client_id and now_s - slot.spoken_of_s < quiet_s:
                slot.expires_s = now_s + self._lease_s

    def touch_all(self, now_s: float) -> None:
        """Keep all that is held: the silence so far was not the clients'."""
        for slot in self._held.values():
            slot.spoken_of_s, slot.expires_s = now_s, now_s + self._lease_s

    # ---- what ends a lease -------------------------------------------------------------------

    def expire(self, now_s: float) -> Expired:
        """Free the leases that ran out; name the open episodes that did, in lease order.

        A named episode stays open, and is named again, until the caller finishes it. Of leases that
        were left unstarted for `lease_s`, a client that lives keeps one; the others are freed if
        somebody else has asked in vain.
        """
        self._attendance.forget(now_s, {slot.who for slot in self._held.values()})
        silent = [slot for slot in self._held.values() if slot.expires_s <= now_s]
        leased = [slot for slot in silent if slot.state is SlotState.LEASED]
        leased += self._hoarded(now_s)
        holders = frozenset(slot.who for slot in leased)
        for slot in leased:
            self._set_free(slot)
        return Expired(
            [slot.slot_id for slot in leased],
            [slot.episode_id for slot in silent if slot.state is SlotState.RUNNING],
            holders,
        )

    def release(self, client_id: str) -> int:
        """Free the leases that a client has not started; returns how many there were."""
        held = [s for s in self._held.values() if s.client_id == client_id]
        leased = [slot for slot in held if slot.state is SlotState.LEASED]
        for slot in leased:
            self._set_free(slot)
        return len(leased)

    def finish(
        self, episode_id: str, outcome: str, reason: str | None = None, tries: int = 1
    ) -> Finished:
        """Close an open episode: it counts and fills its slot unless it was aborted.

        reason: what the client says of an abort, which then counts against the slot, as so many
        `tries`; None for aborts that tell nothing of it, such as silence.

        Raises WireError: unknown_episode if it is open in no slot, bad_outcome.
        """
        if outcome not in set(Outcome):
            raise WireError("bad_outcome", f"{outcome!r:.40}, expected one of {[*Outcome]}")
        slot = self._running.get(episode_id)
        if slot is None:
            raise WireError("unknown_episode", f"{episode_id!r:.60} is open in no slot")
        if outcome == Outcome.ABORTED:
            if reason is not None:
                self._blame(slot, reason, tries)
            self._set_free(slot)
        else:
            self._attendance.deliver(slot.order.suite, slot.who)
            del self._running[episode_id], self._held[slot.slot_id]
            self._fill(slot, episode_id)
        return Finished(slot.slot_id, slot.state is SlotState.FILLED, slot.state)

    def refused(self) -> dict[str, str]:
        """{order id: why} of the orders that cannot be carried out; all others go on."""
        return dict(self._refused)

    def leased(self, who: str) -> int:
        """The leases that somebody answers for and that were not started."""
        held = (slot for slot in self._held.values() if slot.who == who)
        return sum(slot.state is SlotState.LEASED for slot in held)

    # ---- figures -----------------------------------------------------------------------------

    def open_slots(self) -> int:
        """Slots that still need an episode (free, leased or running) and can get one."""
        return len(self._slots) - self._filled - sum(map(self._count_unfilled, self._refused))

    def free_versions(self) -> list[str]:
        """The versions that free slots are pinned to, those of the oldest slot first."""
        oldest: dict[str, int] = {}
        for (_, version), heap in self._free.items():
            if heap:
                oldest[version] = min(heap[0][0], oldest.get(version, heap[0][0]))
        return sorted(oldest, key=oldest.__getitem__)

    def needed_versions(self) -> set[str]:
        """The versions that slots without an episode are pinned to, running ones included."""
        waiting = [order for id, order in self._orders.items() if id not in self._refused]
        return {order.version for order in waiting if self._count_unfilled(order.order_id)}

    def filled(self) -> dict[str, str]:
        """{slot id: counted episode id}."""
        return {s.slot_id: s.episode_id for s in self._slots.values() if s.state.name == "FILLED"}

    def orders(self) -> list[Order]:
        """All orders, as posted."""
        return list(self._orders.values())

    def _count_unfilled(self, order_id: str) -> int:
        order = self._orders[order_id]
        slots = (self._slots[slot_id_of(order, k)] for k in range(order.slots))
        return sum(slot.state is not SlotState.FILLED for slot in slots)

    def _slot(self, slot_id: str) -> Slot:
        slot = self._slots.get(slot_id)
        if slot is None:
            raise WireError("unknown_slot", f"no order has slot {slot_id!r:.120}")
        return slot

    def _blame(self, slot: Slot, reason: str, tries: int) -> None:
        slot.aborts[slot.who] += tries
        limit, suite = self._slot_aborts_max, slot.order.suite
        there = self._there(suite, self._attendance.last_asked_s(suite))
        by_all = min((slot.aborts[who] for who in there), default=0) >= limit
        by_witnesses = all(
            slot.aborts[who] for who, has_delivered in there.items() if has_delivered
        )
        if (len(slot.aborts) >= limit and by_witnesses) or by_all:
            self._refused[slot.order.order_id] = (
                f"order {slot.order.order_id!r}: slot {slot.index} was aborted "
                f"{slot.aborts.total()} times by {len(slot.aborts)} clients, last by "
                f"{slot.client_id}: {printable(' '.join(reason.split()))}; "
                "mend the cause, then start the agent again"
            )

    def _there(self, suite: str, now_s: float) -> dict[str, bool]:
        holding = (slot.who for slot in self._held.values() if slot.order.suite == suite)
        return self._attendance.there(suite, now_s, holding)

    def _hoarded(self, now_s: float) -> list[Slot]:
        """Leases that others want, all but the oldest of those who left them unstarted for long.

        None that has run out: those are freed whoever wants them.
        """
        old = [
            slot
            for slot in self._held.values()
            if slot.state is SlotState.LEASED
            and now_s - slot.spoken_of_s >= self._lease_s
            and now_s < slot.expires_s
        ]
        kept: set[str] = set()
        hoarded = []
        for slot in old:
            if slot.who in kept and self._attendance.is_wanted(slot.order.suite, slot.who, now_s):
                hoarded.append(slot)
            kept.add(slot.who)
        return hoarded

    def _heaps(self, suite: str, versions: Collection[str] | None) -> list[list[tuple[int, str]]]:
        return [
            heap
            for (of_suite, version), heap in self._free.items()
            if of_suite == suite and (versions is None or version in versions)
        ]

    def _free_unknown(self, client_id: str, suite: str, now_s: float) -> None:
        """Free what a client of `suite` has leased and, it seems, never been told of."""
        for slot in [s for s in self._held.values() if s.client_id == client_id]:
            is_old = now_s - slot.spoken_of_s >= self._lease_s
            if slot.state is SlotState.LEASED and slot.order.suite == suite and is_old:
                self._set_free(slot)

    def _lease(self, slot: Slot, client_id: str, who: str, now_s: float) -> SlotLease:
        slot.state, slot.client_id, slot.who = SlotState.LEASED, client_id, who
        slot.spoken_of_s, slot.expires_s = now_s, now_s + self._lease_s
        self._held[slot.slot_id] = slot
        return slot.lease(self._lease_s)

    def _fill(self, slot: Slot, episode_id: str) -> None:
        slot.state, slot.client_id, slot.start_key = SlotState.FILLED, "", ""
        slot.episode_id = episode_id
        self._filled += 1

    def _drop_from_heaps(self, slot_ids: Collection[str]) -> None:
        for heap in self._free.values():
            heap[:] = [entry for entry in heap if entry[1] not in slot_ids]
            heapq.heapify(heap)

    def _set_free(self, slot: Slot) -> None:
        self._held.pop(slot.slot_id, None)
        self._running.pop(slot.episode_id, None)
        slot.state, slot.client_id, slot.start_key, slot.episode_id = SlotState.FREE, "", "", ""
        heap = self._free.setdefault((slot.order.suite, slot.order.version), [])
        heapq.heappush(heap, (slot.place, slot.slot_id))
