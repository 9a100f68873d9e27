"""What the journal reports as durable is there, whole, for whoever looks next."""

from __future__ import annotations

import dataclasses
import hashlib
import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from episode_fixtures import make_chunk, make_end, make_meta, make_order
from patience import HANG_S

from agent import journal_writer
from agent.cli_episodes import main as episodes_command
from agent.durable import StateLocked, StorageError
from agent.episode import EpisodeCorrupt, EpisodeInvalid, read_episode
from agent.journal import Journal, JournalFailed
from agent.ledger import SealedRow
from agent.wire.errors import WireError


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = start(tmp_path / "agent")
    yield journal
    if journal.failure is None:
        journal.close(HANG_S)


def start(root: Path) -> Journal:
    journal = Journal(root, flush_interval_s=0.05)
    journal.recover()
    journal.start()
    return journal


def record(
    journal: Journal, chunks: int = 3, outcome: str = "success", **meta: object
) -> SealedRow:
    """One episode, until it is durable."""
    durable: queue.SimpleQueue[SealedRow] = queue.SimpleQueue()
    opened = make_meta(**meta)
    journal.open(opened)
    for t in range(chunks):
        journal.append(opened.episode_id, make_chunk(t))
    end = make_end(chunks, outcome)
    journal.seal(opened.episode_id, end, outcome != "aborted", durable.put)
    return durable.get(timeout=HANG_S)


def acknowledge(journal: Journal, hashes: dict[str, str]) -> dict[str, str]:
    refused: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
    journal.ack(hashes, refused.put)
    return refused.get(timeout=HANG_S)


def test_a_durable_episode_is_fetched_whole(journal: Journal) -> None:
    row = record(journal, slot_id="o#0")
    assert journal.fetch_rows(0, 10) == [row]
    assert journal.row(row.episode_id) == row
    data = journal.payload(row)
    assert (hashlib.sha256(data).hexdigest(), len(data)) == (row.sha256, row.size_bytes)
    episode = read_episode(data)
    assert (episode.meta.episode_id, len(episode.chunks)) == (row.episode_id, 3)
    assert np.array_equal(episode.chunks[1].images["wrist"], make_chunk(1).images["wrist"])
    assert (row.counted, row.outcome, row.steps) == (True, "success", 12)


def test_many_interleaved_episodes_each_keep_their_own_chunks(journal: Journal) -> None:
    durable: queue.SimpleQueue[SealedRow] = queue.SimpleQueue()
    metas = [make_meta(slot_id=f"o#{i}") for i in range(12)]
    for meta in metas:
        journal.open(meta)
    for t in range(5):
        for i, meta in enumerate(metas):
            journal.append(meta.episode_id, make_chunk(t, seed=i))
    for meta in metas:
        journal.seal(meta.episode_id, make_end(5), True, durable.put)
    rows = [durable.get(timeout=HANG_S) for _ in metas]
    assert [row.episode_id for row in rows] == [meta.episode_id for meta in metas]
    assert [row.sealed_seq for row in rows] == list(range(1, 13))
    for i, row in enumerate(rows):
        chunks = read_episode(journal.payload(row)).chunks
        for t, chunk in enumerate(chunks):
            assert np.array_equal(chunk.choices_KA, make_chunk(t, seed=i).choices_KA)


def test_episodes_without_images(journal: Journal) -> None:
    durable: queue.SimpleQueue[SealedRow] = queue.SimpleQueue()
    meta = make_meta()
    journal.open(meta)
    journal.append(meta.episode_id, make_chunk(0, image_size=0))
    journal.seal(meta.episode_id, make_end(1), True, durable.put)
    row = durable.get(timeout=HANG_S)
    assert read_episode(journal.payload(row)).chunks[0].images == {}


def test_acknowledged_files_are_removed_and_others_are_not(journal: Journal) -> None:
    first, second = record(journal), record(journal)
    refused = acknowledge(journal, {first.episode_id: first.sha256, second.episode_id: "0" * 64})
    assert refused.keys() == {second.episode_id}
    assert journal.fetch_rows(0, 10) == [second]
    with pytest.raises(EpisodeCorrupt, match="No such file"):
        journal.payload(first)
    assert journal.payload(second)
    assert acknowledge(journal, {first.episode_id: first.sha256}) == {}


def test_an_altered_payload_is_not_handed_out(journal: Journal, tmp_path: Path) -> None:
    row = record(journal)
    path = tmp_path / "agent" / "episodes" / f"{row.episode_id}.mcap"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(EpisodeCorrupt, match="SHA-256"):
        journal.payload(row)


def test_orders_and_activations_survive(tmp_path: Path) -> None:
    journal = start(tmp_path)
    done = threading.Semaphore(0)
    orders = [make_order("b"), make_order("a")]
    journal.post_orders(orders, done.release)
    journal.post_orders(orders, done.release)
    journal.set_active("v00001-000000000000", lambda row: done.release())
    row = record(journal, slot_id="b#1")
    aborted = record(journal, outcome="aborted", slot_id="b#0")
    assert all(done.acquire(timeout=HANG_S) for _ in range(3))
    journal.close(HANG_S)
    journal = Journal(tmp_path)
    recovered = journal.recover()
    assert recovered.orders == orders
    assert recovered.filled == {"b#1": row.episode_id}
    assert recovered.active_version == "v00001-000000000000"
    assert (recovered.aborted, recovered.quarantined) == ([], {})
    assert journal.fetch_rows(0, 10) == [row, aborted]
    journal.close(HANG_S)


def test_a_bad_record_is_refused_and_changes_nothing(journal: Journal) -> None:
    meta = make_meta()
    journal.open(meta)
    journal.append(meta.episode_id, make_chunk(0))
    bad = dataclasses.replace(make_chunk(1), proprio=np.full(5, np.nan, np.float32))
    with pytest.raises(EpisodeInvalid, match="proprio"):
        journal.append(meta.episode_id, bad)
    with pytest.raises(EpisodeInvalid, match="chunk 2, expected chunk 1"):
        journal.append(meta.episode_id, make_chunk(2))
    with pytest.raises(EpisodeInvalid, match="executed"):
        journal.seal(meta.episode_id, make_end(2), True, lambda row: None)
    with pytest.raises(WireError, match="conflict"):
        journal.open(meta)
    with pytest.raises(WireError, match="unknown_episode"):
        journal.append("0" * 32, make_chunk(0))
    with pytest.raises(EpisodeInvalid, match="episode id"):
        journal.open(make_meta(episode_id="../x"))
    durable: queue.SimpleQueue[SealedRow] = queue.SimpleQueue()
    journal.seal(meta.episode_id, make_end(1), True, durable.put)
    assert len(read_episode(journal.payload(durable.get(timeout=HANG_S))).chunks) == 1


def test_one_holder_at_a_time(journal: Journal, tmp_path: Path) -> None:
    with pytest.raises(StateLocked, match="in use by process"):
        Journal(tmp_path / "agent")
    journal.close(HANG_S)
    start(tmp_path / "agent").close(HANG_S)


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="choose another path"):
        Journal(tmp_path / "file" / "agent")


def test_a_full_disk_is_never_a_silent_loss(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = record(journal)

    def full(self: object, end: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal_writer.EpisodeWriter, "seal", full)
    meta, durable = make_meta(), []
    journal.open(meta)
    journal.seal(meta.episode_id, make_end(0), True, durable.append)
    with pytest.raises(JournalFailed, match="No space left"):
        journal.close(HANG_S)
    assert durable == []
    with pytest.raises(JournalFailed, match="start the server again"):
        journal.open(make_meta())
    assert journal.failure is not None
    assert kept.sha256


def test_close_finishes_what_was_handed_over(tmp_path: Path) -> None:
    journal = start(tmp_path)
    durable: queue.SimpleQueue[SealedRow] = queue.SimpleQueue()
    metas = [make_meta() for _ in range(5)]
    for meta in metas:
        journal.open(meta)
        journal.append(meta.episode_id, make_chunk(0))
        journal.seal(meta.episode_id, make_end(1), True, durable.put)
    journal.close(HANG_S)
    assert durable.qsize() == 5


def test_the_episodes_command(
    tmp_path: Path, journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    journal.post_orders([make_order("greedy", phase="eval", temperature=0.0)], lambda: None)
    row, other = record(journal), record(journal, outcome="failure")
    record(journal, order_id="greedy", phase="eval")
    run = str(tmp_path)
    assert episodes_command(["list", run]) == 0
    listed = capsys.readouterr().out
    assert "1 of     2 succeeded  left\n" in listed  # of no order that is known
    assert "1 of     1 succeeded  left  T = 0\n" in listed
    assert episodes_command(["show", run, row.episode_id]) == 0
    assert "chunk   2" in capsys.readouterr().out
    assert episodes_command(["verify", run]) == 0
    path = tmp_path / "agent" / "episodes" / f"{other.episode_id}.mcap"
    path.write_bytes(path.read_bytes()[:-1])
    assert episodes_command(["verify", run]) == 1
    assert episodes_command(["show", run, "zz"]) == 2
    assert episodes_command(["list", str(tmp_path / "nothing")]) == 2
    assert "no agent.db" in capsys.readouterr().err


def test_chunks_that_wait_for_the_disk_are_bounded_by_their_bytes(tmp_path: Path) -> None:
    size_bytes = make_chunk(0).size_bytes
    journal = Journal(tmp_path / "agent", queue_limit_bytes=3 * size_bytes)
    journal.recover()
    meta = make_meta()
    journal.open(meta)
    for t in range(3):  # nothing is written yet
        journal.append(meta.episode_id, make_chunk(t))
    with pytest.raises(WireError, match="wait for the disk") as caught:
        journal.append(meta.episode_id, make_chunk(3))
    assert caught.value.code == "overloaded"
    journal.start()
    for _ in range(2):  # rounds: the first makes the episode durable, the second takes its chunks
        round_done = threading.Event()
        journal.set_active("base", lambda row, done=round_done: done.set())
        assert round_done.wait(HANG_S)
    journal.append(meta.episode_id, make_chunk(3))  # the refused one, where it left off
    durable: queue.SimpleQueue[SealedRow] = queue.SimpleQueue()
    journal.seal(meta.episode_id, make_end(4, "success"), True, durable.put)
    row = durable.get(timeout=HANG_S)
    assert len(read_episode(tmp_path / "agent" / "episodes" / f"{row.episode_id}.mcap").chunks) == 4
    journal.close(HANG_S)
