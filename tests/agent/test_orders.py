"""The order book against a plain model of what it promises."""

from __future__ import annotations

import itertools

import pytest
from episode_fixtures import make_order
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
)

from agent.orders import ABORTS_AT_ONCE, OrderBook, SlotState
from agent.wire.errors import WireError

LEASE_S = 10.0
CLIENTS = st.sampled_from(["a", "b", "c"])


def make_book() -> OrderBook:
    ids = itertools.count()
    return OrderBook(LEASE_S, lambda: f"{next(ids):032x}", slot_aborts_max=3)


def snapshot(book: OrderBook) -> list[str]:
    """Every slot that can be leased now, in lease order."""
    return [lease.slot_id for lease in book.lease("probe", "toy", 10_000, 0.0)]


class Books(RuleBasedStateMachine):
    """Random traffic; `counted` and `posted` are the model."""

    leases = Bundle("leases")
    running = Bundle("running")

    def __init__(self) -> None:
        super().__init__()
        self.book = make_book()
        self.now_s = 0.0
        self.posted: list = []
        self.place: dict[str, int] = {}
        self.counted: dict[str, str] = {}
        self.open: dict[str, str] = {}  # episode -> slot

    @rule(number=st.integers(0, 5), slots=st.integers(1, 3), version=st.sampled_from("xy"))
    def post(self, number: int, slots: int, version: str) -> None:
        order = make_order(f"o{number}", slots, version=version)
        known = next((o for o in self.posted if o.order_id == order.order_id), None)
        if known is not None and known != order:
            with pytest.raises(WireError, match="conflict"):
                self.book.post([make_order(f"new{number}"), order])
            return
        assert self.book.post([order, order]) == ([] if known else [order])
        if known is None:
            self.posted.append(order)
            for k in range(slots):
                self.place[f"{order.order_id}#{k}"] = len(self.place)

    @rule(
        target=leases,
        client=CLIENTS,
        count=st.integers(0, 4),
        versions=st.sampled_from([None, "x"]),
    )
    def lease(self, client: str, count: int, versions: str | None) -> tuple[str, list[str]]:
        got = self.book.lease(client, "toy", count, self.now_s, versions)
        slot_ids = [lease.slot_id for lease in got]
        assert len(got) <= count
        assert all(versions is None or lease.version in versions for lease in got)
        assert slot_ids == sorted(slot_ids, key=self.place.__getitem__)
        assert not set(slot_ids) & (self.counted.keys() | set(self.open.values()))
        return client, slot_ids

    @rule(target=running, lease=leases, key=st.sampled_from("pq"))
    def start(self, lease: tuple[str, list[str]], key: str) -> list[str]:
        client, slot_ids = lease
        started = []
        for slot_id in slot_ids:
            try:
                first = self.book.start(slot_id, client, key, self.now_s)
            except WireError as error:
                if error.code not in ("lease_lost", "episode_open_elsewhere"):
                    raise
                continue
            again = self.book.start(slot_id, client, key, self.now_s)
            assert (again.episode_id, again.is_new) == (first.episode_id, False)
            assert self.open.get(first.episode_id, slot_id) == slot_id
            self.open[first.episode_id] = slot_id
            started.append(first.episode_id)
        return started

    @rule(
        episodes=consumes(running),
        outcome=st.sampled_from(["success", "failure", "timeout", "intervened", "aborted"]),
    )
    def finish(self, episodes: list[str], outcome: str) -> None:
        for episode_id in episodes:
            if episode_id not in self.open:
                with pytest.raises(WireError, match="unknown_episode"):
                    self.book.finish(episode_id, outcome)
                continue
            self._finish(episode_id, outcome)

    def _finish(self, episode_id: str, outcome: str) -> None:
        finished = self.book.finish(episode_id, outcome)
        slot_id = self.open.pop(episode_id)
        assert finished.slot_id == slot_id
        assert finished.counted == (outcome != "aborted")
        assert finished.state is (SlotState.FREE if outcome == "aborted" else SlotState.FILLED)
        if finished.counted:
            assert slot_id not in self.counted, "two counted episodes in one slot"
            self.counted[slot_id] = episode_id

    @rule(episodes=running)
    def touch(self, episodes: list[str]) -> None:
        for episode_id in episodes:
            self.book.touch_episode(episode_id, self.now_s)

    @rule(seconds=st.sampled_from([1.0, 6.0, 11.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        expired = self.book.expire(self.now_s)
        assert set(expired.episode_ids) <= self.open.keys()
        for episode_id in expired.episode_ids:
            self._finish(episode_id, "aborted")
        assert self.book.expire(self.now_s).episode_ids == []

    @invariant()
    def counts_agree(self) -> None:
        assert self.book.filled() == self.counted
        assert self.book.open_slots() == len(self.place) - len(self.counted)

    @invariant()
    def restored_book_is_the_live_one(self) -> None:
        """After a restart (all leases lost) every slot without a counted episode is free."""
        restored = make_book()
        restored.restore(self.book.orders(), self.book.filled())
        expected = [slot for slot in self.place if slot not in self.counted]
        assert restored.filled() == self.counted
        assert restored.open_slots() == len(expected)
        assert snapshot(restored) == expected

    def teardown(self) -> None:
        """Silence frees everything: the live book then leases what the restored one would."""
        for episode_id in self.book.expire(self.now_s + LEASE_S + 1).episode_ids:
            self._finish(episode_id, "aborted")
        assert snapshot(self.book) == [slot for slot in self.place if slot not in self.counted]


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_lost_lease_cannot_be_started_and_the_next_client_gets_the_slot() -> None:
    book = make_book()
    book.post([make_order(slots=1)])
    (lease,) = book.lease("a", "toy", 1, 0.0)
    assert book.lease("b", "toy", 1, 1.0) == []
    assert book.expire(LEASE_S - 0.1).slot_ids == []
    assert book.expire(LEASE_S).slot_ids == [lease.slot_id]
    with pytest.raises(WireError, match="lease_lost"):
        book.start(lease.slot_id, "a", "key", LEASE_S)
    assert book.lease("b", "toy", 1, LEASE_S) == [lease]
    with pytest.raises(WireError, match="lease_lost"):
        book.start(lease.slot_id, "a", "key", LEASE_S)


def test_a_lease_whose_reply_was_lost_is_free_when_its_client_asks_again() -> None:
    book = make_book()
    book.post([make_order(slots=1)])
    (lease,) = book.lease("a", "toy", 1, 0.0)
    for now_s in (3.0, 6.0, 9.0):  # telemetry comes all the time
        book.touch_client("a", now_s)
    assert book.expire(LEASE_S + 1.0).slot_ids == [], "a robot may wait for a person"
    assert book.lease("a", "another-suite", 1, LEASE_S + 1.0) == []
    assert book.lease("a", "toy", 1, LEASE_S - 0.1) == [], "a start may be on its way"
    assert book.lease("a", "toy", 1, LEASE_S + 1.0) == [lease]


def test_an_acting_episode_does_not_expire_and_a_silent_one_does() -> None:
    book = make_book()
    book.post([make_order(slots=2)])
    first, second = (
        book.start(lease.slot_id, "a", "key", 0.0).episode_id
        for lease in book.lease("a", "toy", 2, 0.0)
    )
    book.touch_episode(first, 8.0)
    assert book.expire(12.0).episode_ids == [second]
    assert book.finish(second, "aborted").state is SlotState.FREE
    assert book.expire(12.0).episode_ids == []


def test_only_slots_of_servable_versions_and_of_the_suite_are_leased() -> None:
    book = make_book()
    book.post([make_order("o1", 1, version="v1"), make_order("o2", 1, version="v2")])
    assert book.free_versions() == ["v1", "v2"]
    assert book.lease("a", "tabletop", 2, 0.0) == []
    assert [lease.slot_id for lease in book.lease("a", "toy", 2, 0.0, {"v2"})] == ["o2#0"]
    assert book.free_versions() == ["v1"]


def abort(book: OrderBook, client: str, reason: str | None, now_s: float = 0.0) -> str:
    """Leases one slot, starts it and gives it up; returns its id."""
    (lease,) = book.lease(client, "toy", 1, now_s)
    started = book.start(lease.slot_id, client, f"key{book.open_slots()}", now_s)
    book.finish(started.episode_id, "aborted", reason)
    return lease.slot_id


def test_an_order_is_refused_when_as_many_clients_abort_one_slot_and_alone() -> None:
    book = make_book()
    book.post([make_order("bad", 2), make_order("good", 1)])
    for client in "abc":
        assert book.refused() == {}
        assert abort(book, client, None) == "bad#0"  # silence tells nothing
        assert abort(book, client, "no such\ninit state") == "bad#0"
    assert (
        "slot 0 was aborted 3 times by 3 clients, last by c: no such init" in book.refused()["bad"]
    )
    assert book.refused().keys() == {"bad"}
    assert [lease.slot_id for lease in book.lease("a", "toy", 9, 0.0)] == ["good#0"]
    assert book.open_slots() == 1
    assert book.needed_versions() == {"base"}


def test_one_client_cannot_have_an_order_refused_while_others_are_there() -> None:
    book = make_book()
    book.post([make_order("o", 1)])
    assert book.lease("honest", "tabletop", 1, 0.0) == []
    (lease,) = book.lease("honest", "toy", 1, 0.0)
    book.release("honest")
    for _ in range(50):
        abort(book, "vandal", "because")
    assert book.refused() == {}
    assert book.lease("honest", "toy", 1, 0.0) == [lease]


def test_all_clients_that_are_there_can_have_an_order_refused() -> None:
    book = make_book()
    book.post([make_order("o", 1)])
    abort(book, "gone", None, now_s=0.0)
    for n in range(3):
        assert book.refused() == {}
        abort(book, "a", "broken", now_s=100.0 + n)
        abort(book, "b", "broken", now_s=100.0 + n)
    assert book.refused().keys() == {"o"}


def deliver(book: OrderBook, client: str, now_s: float = 0.0) -> None:
    (lease,) = book.lease(client, "toy", 1, now_s)
    started = book.start(lease.slot_id, client, "key", now_s)
    book.finish(started.episode_id, "success")


def test_made_up_clients_cannot_have_an_order_refused_while_one_that_delivers_is_there() -> None:
    book = make_book()
    book.post([make_order("first", 1), make_order("o", 2)])
    deliver(book, "honest")
    for n in range(20):
        abort(book, f"name-{n}", "no")
    assert book.refused() == {}
    (lease,) = book.lease("honest", "toy", 1, 0.0)
    assert lease.slot_id == "o#0"
    book.finish(book.start("o#0", "honest", "key", 0.0).episode_id, "aborted", "it is bad")
    assert book.refused().keys() == {"o"}


def test_a_client_is_there_as_long_as_its_episode_lasts() -> None:
    book = make_book()
    book.post([make_order("o", 2)])
    (lease,) = book.lease("honest", "toy", 1, 0.0)
    episode_id = book.start(lease.slot_id, "honest", "key", 0.0).episode_id
    for n in range(20):
        book.touch_episode(episode_id, 300.0 + n)
        book.expire(300.0 + n)
        abort(book, "vandal", "no", now_s=300.0 + n)
    assert book.refused() == {}


def test_a_share_of_the_free_slots_is_left_to_those_who_are_there() -> None:
    book = make_book()
    book.post([make_order("o", 16)])
    assert book.allowance("toy", "a", 0.0) == 16, "nobody else is there"
    book.lease("b", "toy", 0, 0.0)
    assert book.allowance("toy", "a", 0.0) == 8
    book.lease("a", "toy", 8, 0.0)
    assert book.allowance("toy", "a", 0.0) == 0
    assert book.allowance("toy", "b", 0.0) == 4
    book.lease("b", "toy", 8, 0.0)
    assert book.allowance("toy", "c", 0.0) == 0
    book.post([make_order("o2", 1)])
    assert book.allowance("toy", "c", 0.0) == 1, "the last one may be had by who holds none"
    assert book.allowance("toy", "b", 0.0) == 0


def test_leases_that_are_hoarded_are_freed_when_another_client_asks_in_vain() -> None:
    book = make_book()
    book.post([make_order("o", 4)])
    book.lease("hoarder", "toy", 4, 0.0)
    book.touch_client("hoarder", LEASE_S)
    assert book.expire(LEASE_S + 1.0).slot_ids == [], "nobody wants them"
    assert book.lease("b", "toy", 1, LEASE_S + 1.0) == []
    expired = book.expire(LEASE_S + 1.0)
    assert (expired.slot_ids, expired.holders) == (["o#1", "o#2", "o#3"], {"hoarder"})
    assert [lease.slot_id for lease in book.lease("b", "toy", 1, LEASE_S + 1.0)] == ["o#1"]
    book.start("o#0", "hoarder", "key", LEASE_S + 1.0)


def test_who_asks_for_suites_that_do_not_exist_costs_no_memory() -> None:
    book = make_book()
    book.post([make_order("o", 1)])
    for n in range(100):
        book.lease("a", f"suite-{n}", 1, 0.0)
        book.lease(f"client-{n}", "toy", 0, 0.0)
    book.expire(100.0)
    assert book._attendance._suites == {"toy": {}}


def test_all_clients_of_one_key_are_one() -> None:
    book = make_book()
    book.post([make_order("o", 1)])
    book.lease("honest", "toy", 0, 0.0)
    for client in "abcdef":
        (lease,) = book.lease(client, "toy", 1, 0.0, who="key")
        book.finish(book.start(lease.slot_id, client, "k", 0.0).episode_id, "aborted", "x")
    assert book.refused() == {}


def test_what_a_client_aborted_repeatedly_it_is_offered_last() -> None:
    book = make_book()
    book.post([make_order("o", 3)])
    assert [abort(book, "a", "x") for _ in range(ABORTS_AT_ONCE)] == ["o#0"] * ABORTS_AT_ONCE
    assert [lease.slot_id for lease in book.lease("a", "toy", 1, 0.0)] == ["o#1"]
    assert [lease.slot_id for lease in book.lease("b", "toy", 1, 0.0)] == ["o#0"]
    book.release("b")
    assert [lease.slot_id for lease in book.lease("a", "toy", 5, 0.0)] == ["o#2", "o#0"]


def test_held_slots_are_not_leased_and_reopened_ones_are() -> None:
    book = make_book()
    book.post([make_order("o", 3)])
    book.lease("a", "toy", 1, 0.0)
    assert book.hold({"o#0": "x", "o#1": "e1"}) == {"o#1": "e1"}
    assert book.filled() == {"o#1": "e1"}
    with pytest.raises(WireError, match="unknown_slot"):
        book.hold({"o#9": "x"})
    assert [lease.slot_id for lease in book.lease("b", "toy", 9, 0.0)] == ["o#2"]
    assert not book.reopen("o#1", "other")
    assert book.reopen("o#1", "e1")
    assert [lease.slot_id for lease in book.lease("b", "toy", 9, 0.0)] == ["o#1"]


def test_refusals() -> None:
    book = make_book()
    with pytest.raises(WireError, match="slots must be"):
        book.post([make_order(slots=0)])
    with pytest.raises(WireError, match="unknown_slot"):
        book.start("nope#0", "a", "key", 0.0)
    with pytest.raises(WireError, match="unknown_slot"):
        book.restore([], {"nope#0": "0" * 32})
    with pytest.raises(WireError, match="bad_outcome"):
        book.finish("0" * 32, "won")
