import dataclasses
import hashlib
import sqlite3
import threading

import numpy as np
import pytest

from agent.durable import StorageError
from agent.wire.messages import Order, SealedEpisode
from learner.receiver import Inbox
from learner.stopping import Stopped
from learner.store import EpisodeConflict, LearnerStore, StoreError, UpdateRow


def sealed(index, slot="train/0/1/0/0#0", outcome="success", counted=True, phase="train"):
    payload = np.frombuffer(f"episode {index}".encode(), dtype=np.uint8)
    return SealedEpisode(
        f"{index:032x}", hashlib.sha256(payload).hexdigest(), slot.split("#")[0], slot, "toy",
        "left", "train", 0, phase, "base", outcome, 9, counted, payload,
    )  # fmt: skip


def update(update_id=1, version="v00001-aaaaaaaaaaaa"):
    return UpdateRow(update_id, 0, update_id, "update-1", "f" * 64, version, "base", {"loss": 1.0})


@pytest.fixture
def store(tmp_path):
    return LearnerStore(tmp_path / "learner.db")


@pytest.fixture
def inbox(tmp_path, store):
    return Inbox(tmp_path / "episodes", store)


def test_a_kill_in_the_middle_of_a_commit_is_undone_from_a_journal_on_disk(tmp_path, store):
    with sqlite3.connect(tmp_path / "learner.db") as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_epochs_are_never_reused_even_after_a_restart(tmp_path, store):
    assert [store.next_epoch() for _ in range(3)] == [1, 2, 3]
    store.close()
    assert LearnerStore(tmp_path / "learner.db").next_epoch() == 4


def test_a_database_that_is_removed_while_it_is_written_is_noticed(tmp_path, store):
    store.next_epoch()
    (tmp_path / "learner.db").unlink()
    with pytest.raises(StorageError, match=r"learner\.db was removed or replaced"):
        store.add_episode(sealed(1), "1")


def test_an_episode_gets_its_disposition_at_once_unless_an_update_decides(store):
    store.add_episode(sealed(1, "t#0"), "1")
    store.add_episode(sealed(2, "t#0", counted=False), "2")
    store.add_episode(sealed(3, "e#0", phase="eval"), "3")
    store.add_episode(sealed(4, "t#1", outcome="aborted", counted=False), "4")
    store.add_episode(sealed(5, "e#1", phase="eval", outcome="aborted", counted=False), "5")
    counts = store.counts()
    assert counts["collected"] == 5
    assert (counts["pending"], counts["surplus"], counts["eval"]) == (1, 1, 1)
    assert counts["aborted"] == 2


def test_a_commit_is_all_or_nothing(store):
    store.add_episode(sealed(1, "t#0"), "1")
    store.add_episode(sealed(2, "e#0", phase="eval"), "2")
    with pytest.raises(StoreError, match="already has a disposition"):
        store.commit_update(
            update(), {sealed(1).episode_id: "trained", sealed(2).episode_id: "trained"}
        )
    assert store.last_update() is None
    assert store.counts()["pending"] == 1
    store.commit_update(update(), {sealed(1).episode_id: "trained"})
    assert store.last_update().version == "v00001-aaaaaaaaaaaa"


def test_no_episode_is_trained_twice(store):
    store.add_episode(sealed(1), "1")
    store.commit_update(update(), {sealed(1).episode_id: "trained"})
    with pytest.raises(StoreError):
        store.commit_update(update(2), {sealed(1).episode_id: "trained"})
    with pytest.raises(StoreError, match="already committed"):
        store.commit_update(update(1), {})
    with pytest.raises(StoreError, match="not among"):
        store.commit_update(update(3), {sealed(1).episode_id: "burnt"})


def test_training_curves_count_what_each_update_used(store):
    outcomes = ["success", "timeout", "success", "failure", "intervened", "success"]
    for index, outcome in enumerate(outcomes):
        store.add_episode(sealed(index, f"t#{index}", outcome), str(index))
    store.add_episode(sealed(8, "e#0", phase="eval"), "8")
    store.add_episode(sealed(9, "t#0", counted=False), "9")
    ids = [sealed(index).episode_id for index in range(len(outcomes))]
    assert store.training_curves() == {}
    store.commit_update(update(1), dict.fromkeys(ids[:2], "trained"))
    store.commit_update(update(2), dict.fromkeys(ids[2:5], "filtered"))
    assert store.training_curves() == {"left": [(1, 2), (1, 3)]}


def test_two_counted_episodes_of_one_slot_are_refused(store):
    store.add_episode(sealed(1, "t#0"), "1")
    with pytest.raises(EpisodeConflict, match="t#0"):
        store.add_episode(sealed(2, "t#0"), "2")


def test_activation_survives(store):
    store.commit_update(update(), {})
    assert not store.last_update().activated
    store.mark_activated(1)
    assert store.last_update().activated
    assert store.version_after(0) == "v00001-aaaaaaaaaaaa"
    assert store.version_after(1) is None


def test_a_repeated_episode_is_acknowledged_again_and_held_once(inbox, store):
    accepted = inbox.accept([sealed(1)])
    assert inbox.accept([sealed(1)]) == accepted == {sealed(1).episode_id: sealed(1).sha256}
    assert store.counts()["collected"] == 1
    held = (inbox.folder / f"{sealed(1).episode_id}.mcap").read_bytes()
    assert held == b"episode 1"


def other_bytes(index):
    return dataclasses.replace(sealed(index + 100), episode_id=sealed(index).episode_id)


@pytest.mark.parametrize(
    "bad",
    [
        dataclasses.replace(sealed(1), payload=sealed(2).payload),
        other_bytes(1),
        sealed(2),  # the slot is taken
        dataclasses.replace(sealed(3, "t#9"), episode_id="../../etc/passwd"),
    ],
    ids=["altered bytes", "same id, other hash", "slot taken", "path in id"],
)
def test_what_contradicts_is_put_aside_and_never_acknowledged(inbox, store, bad):
    inbox.accept([sealed(1)])
    assert inbox.accept([bad]) == {}
    assert store.counts()["quarantined"] == 1
    assert store.counts()["collected"] == 1
    assert (inbox.folder / f"{sealed(1).episode_id}.mcap").read_bytes() == b"episode 1"
    assert len(list(inbox.quarantine.iterdir())) == 1


def order(order_id, slots):
    return Order(order_id, "toy", "left", "move left", "train", 0, 9, slots, "train", "base",
                 1.0, 0, order_id)  # fmt: skip


def test_waiting_ends_when_every_slot_is_filled_in_slot_order(inbox):
    orders = [order("a", 2), order("b", 1)]
    inbox.accept([sealed(3, "b#0"), sealed(2, "a#1"), sealed(9, "a#1", counted=False)])
    late = threading.Timer(0.05, lambda: inbox.accept([sealed(1, "a#0", outcome="failure")]))
    late.start()
    rows = inbox.wait_for(orders, lambda: False)
    late.join()
    assert {slot: row.success for slot, row in rows.items()} == {
        "a#0": False, "a#1": True, "b#0": True,
    }  # fmt: skip


def test_a_waiter_learns_of_a_stop_and_of_the_receiver_s_end(inbox):
    with pytest.raises(Stopped):
        inbox.wait_for([order("a", 1)], lambda: True)
    inbox.fail(OSError("disk full"))
    with pytest.raises(OSError, match="disk full"):
        inbox.wait_for([order("a", 1)], lambda: False)
