"""Large episodes come in parts: whole, once, also when the learner is killed between them."""

import hashlib
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.wire.codec import DEFAULT_LIMITS, decode, encode
from agent.wire.errors import WireError
from agent.wire.messages import Order, PostOrders, SealedEpisode
from learner import receiver
from learner.link import pages
from learner.receiver import Inbox, Receiver
from learner.store import LearnerStore

PART = 1000


class Killed(BaseException):
    """The process ends here."""


class Link:
    """Stands where an AgentLink does: offers one episode whose bytes are `data`."""

    def __init__(self, data, stop, killed_after=None, altered=0, gone=False):
        self.data, self.stop, self.gone = data, stop, gone
        self.killed_after, self.altered = killed_after, altered
        self.offsets, self.acked, self.rejected = [], {}, {}
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.offered = False

    def fetch(self, limit, wait_s):
        if self.offered:
            self.stop.set()
            return []
        self.offered = True
        return [
            SealedEpisode(
                "a" * 32, self.sha256, "o", "o#0", "toy", "left", "train", 0, "train", "base",
                "success", 5, True, np.zeros(0, np.uint8), len(self.data),
            )
        ]  # fmt: skip

    def fetch_part(self, episode_id, offset, length):
        if self.gone:
            raise WireError("unknown_episode", "it was found damaged")
        if len(self.offsets) == self.killed_after:
            raise Killed
        self.offsets.append(offset)
        part = self.data[offset : offset + length]
        if self.altered:
            self.altered -= 1
            part = bytes(len(part))
        return part

    def acknowledge(self, sha256_by_id):
        self.acked |= sha256_by_id

    def reject(self, reasons):
        self.rejected |= reasons

    def close(self):
        pass


def receive(folder, data, **trouble):
    """One life of a learner; returns its link and its inbox."""
    store = LearnerStore(folder / "learner.db")
    stop = threading.Event()
    link, inbox = Link(data, stop, **trouble), Inbox(folder / "episodes", store)
    worker = Receiver(link, inbox, stop)
    worker.start()
    worker.join(60)
    assert not worker.is_alive()
    return link, inbox


def held(inbox):
    return {path.name: path.read_bytes() for path in inbox.folder.iterdir() if path.is_file()}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(receiver, "PART_BYTES", PART)


@settings(max_examples=15)
@given(
    size=st.sampled_from([1, PART - 1, PART, PART + 1, 3 * PART, 3 * PART + 7]),
    kills=st.lists(st.integers(0, 4), max_size=3),
)
def test_an_episode_of_any_size_survives_kills_between_its_parts(tmp_path_factory, size, kills):
    folder = tmp_path_factory.mktemp("learner")
    data = np.random.default_rng(size).bytes(size)
    offsets = []
    for killed_after in [*kills, None]:
        link, inbox = receive(folder, data, killed_after=killed_after)
        offsets += link.offsets
    assert held(inbox) == {f"{'a' * 32}.mcap": data}
    assert link.acked == {"a" * 32: link.sha256}
    assert len(set(offsets)) == len(offsets), "a part was fetched twice"
    assert inbox.store.counts()["pending"] == 1


def test_parts_altered_on_the_way_are_fetched_again(tmp_path):
    data = np.random.default_rng(0).bytes(2500)
    link, inbox = receive(tmp_path, data, altered=1)
    assert held(inbox) == {f"{'a' * 32}.mcap": data}
    assert link.acked
    assert not link.rejected


def test_what_never_comes_whole_is_rejected_and_nothing_is_left_of_it(tmp_path):
    link, inbox = receive(tmp_path, np.random.default_rng(0).bytes(2500), altered=99)
    assert held(inbox) == {}
    assert link.acked == {}
    assert link.rejected.keys() == {"a" * 32}
    assert inbox.store.counts()["collected"] == 0


def test_an_episode_that_the_agent_found_damaged_meanwhile_is_left_out(tmp_path):
    link, inbox = receive(tmp_path, b"x" * 2500, gone=True)
    assert held(inbox) == {}
    assert link.acked == link.rejected == {}


def test_what_is_left_of_another_episode_is_removed(tmp_path):
    receive(tmp_path, b"x" * 2500, killed_after=1)
    (tmp_path / "episodes" / f".partial-{'b' * 32}").write_bytes(b"left")
    _, inbox = receive(tmp_path, b"x" * 2500)
    assert held(inbox).keys() == {f"{'a' * 32}.mcap"}


@settings(max_examples=20)
@given(
    lengths=st.lists(st.integers(0, 8000), min_size=1, max_size=40),
    copies=st.integers(1, 20),
)
def test_orders_of_any_size_travel_in_messages_that_the_agent_reads(lengths, copies):
    orders = [
        Order(
            f"o/{i}", "toy", "left", "m" * length, "train", 0, 9, 16, "train", "base", 1.0, 0, "n"
        )
        for i, length in enumerate(lengths * copies)
    ]
    parts = pages(orders)
    assert [order for part in parts for order in part] == orders
    for part in parts:
        held_slots = {f"{o.order_id}#{k}": "e" * 32 for o in part for k in range(o.slots)}
        frames = encode(PostOrders(1, part, held_slots), 1)
        assert decode(frames, DEFAULT_LIMITS).message.orders == part
