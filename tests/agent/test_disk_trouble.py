"""What the disk refuses for a while costs a while; what it refuses for long costs no action."""

from __future__ import annotations

import errno
import os
import queue
import sqlite3
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from episode_fixtures import make_chunk, make_end, make_meta, make_order
from server_fixtures import finish, observe, post, running, start_own, take_slot
from server_fixtures import make_order as make_wire_order

from agent import journal_writer, ledger_file
from agent.durable import StorageError, explain_trouble, may_pass, storage_errors
from agent.episode import read_episode
from agent.episode_writer import EpisodeWriter
from agent.journal import Journal, JournalFailed
from agent.journal_writer import JournalWriter
from agent.ledger import EpisodeRow, Ledger, LedgerReader
from agent.server import recording
from agent.wire.errors import WireError
from agent.wire.messages import Assign, EpisodeStart, Hello

WAIT_S = 60.0
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Faulty:
    """Calls of `os` that fail with `error` while it is set, each after `share` of its work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: OSError | None = None
        self.failed = 0
        self.threads = {"journal"}  # of these alone
        for name in ("write", "fdatasync", "fsync"):
            monkeypatch.setattr(os, name, self._wrap(getattr(os, name), name))

    def _wrap(self, call: Callable[..., object], name: str) -> Callable[..., object]:
        def maybe(descriptor: int, *data: bytes) -> object:
            if self.error is None or threading.current_thread().name not in self.threads:
                return call(descriptor, *data)
            self.failed += 1
            if name == "write" and self.failed % 2 and len(data[0]) > 1:
                return call(descriptor, data[0][: len(data[0]) // 2])  # the first half fits
            raise self.error

        return maybe


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Faulty:
    monkeypatch.setattr(journal_writer, "RETRY_PAUSE_S", 0.02)
    monkeypatch.setattr(recording, "GRACE_S", 0.2)
    return Faulty(monkeypatch)


@pytest.fixture
def journal(tmp_path: Path, disk: Faulty) -> Iterator[Journal]:
    journal = Journal(tmp_path / "agent", flush_interval_s=0.01)
    journal.recover()
    journal.start()
    yield journal
    if journal.failure is None:
        journal.close(WAIT_S)


def wait_for(condition: Callable[[], object]) -> None:
    done = threading.Event()
    for _ in range(round(WAIT_S / 0.01)):
        if condition():
            return
        done.wait(0.01)
    raise AssertionError("not in time")


def sealed_rows(journal: Journal) -> list[EpisodeRow]:
    return journal.fetch_rows(0, -1)


# ---- the journal ---------------------------------------------------------------------------------


def test_what_a_full_disk_has_refused_is_written_once_there_is_room(
    journal: Journal, disk: Faulty
) -> None:
    ends: queue.SimpleQueue[EpisodeRow] = queue.SimpleQueue()
    metas = [make_meta(slot_id=f"o#{k}") for k in range(3)]
    journal.open(metas[0])
    journal.append(metas[0].episode_id, make_chunk(0))
    disk.error = FULL
    for meta in metas[1:]:
        journal.open(meta)
    journal.append(metas[0].episode_id, make_chunk(1))
    for k, meta in enumerate(metas):
        journal.seal(meta.episode_id, make_end(0 if k else 2), True, ends.put)
    wait_for(lambda: journal.trouble is not None and disk.failed > 3)
    assert "No space left on device; free disk space" in journal.trouble.text
    assert ends.empty()
    disk.error = None
    rows = {row.episode_id: row for row in (ends.get(timeout=WAIT_S) for _ in metas)}
    assert len(read_episode(journal.payload(rows[metas[0].episode_id])).chunks) == 2
    assert all(rows[meta.episode_id].counted for meta in metas)
    wait_for(lambda: journal.trouble is None)


def test_a_sync_that_has_failed_is_never_believed_again(tmp_path: Path, disk: Faulty) -> None:
    disk.threads = {threading.current_thread().name}
    writer = EpisodeWriter(tmp_path / "x.mcap", make_meta())
    writer.append(make_chunk(0))
    writer.flush()
    disk.error = OSError(errno.EIO, os.strerror(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        writer.sync()
    disk.error = None
    for _ in range(2):
        with pytest.raises(OSError, match="an earlier sync"):
            writer.seal(make_end(1))
    writer.abandon()


def test_another_process_may_hold_the_ledger_for_a_while(
    tmp_path: Path, disk: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_file, "_BUSY_TIMEOUT_S", 0.05)
    journal = Journal(tmp_path / "agent", flush_interval_s=0.01)
    journal.recover()
    journal.start()
    ends: queue.SimpleQueue[EpisodeRow] = queue.SimpleQueue()
    with closing(sqlite3.connect(tmp_path / "agent" / "agent.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        meta = make_meta()
        journal.open(meta)
        journal.seal(meta.episode_id, make_end(0), True, ends.put)
        wait_for(lambda: journal.trouble is not None)
        assert "another process holds its lock" in journal.trouble.text
        with pytest.raises(WireError, match="nothing can be kept now") as caught:
            journal.post_orders([make_order()], lambda: None)
        assert caught.value.code == "overloaded"
        other.execute("ROLLBACK")
    assert ends.get(timeout=WAIT_S).episode_id == meta.episode_id
    wait_for(lambda: journal.trouble is None)
    done = threading.Event()
    journal.post_orders([make_order()], done.set)
    assert done.wait(WAIT_S)
    journal.close(WAIT_S)


def test_given_up_episodes_are_sealed_as_aborted_and_the_others_go_on(
    journal: Journal, disk: Faulty
) -> None:
    aborted: queue.SimpleQueue[list[EpisodeRow]] = queue.SimpleQueue()
    journal._writer.on_aborted = aborted.put
    lost: queue.SimpleQueue[str] = queue.SimpleQueue()
    ends: queue.SimpleQueue[EpisodeRow] = queue.SimpleQueue()
    kept, running_one, ending, unopened = metas = [make_meta(slot_id=f"o#{k}") for k in range(4)]
    for meta in metas[:3]:
        journal.open(meta)
        journal.append(meta.episode_id, make_chunk(0))
    wait_for(lambda: journal._writer.written_bytes == 3 * make_chunk(0).size_bytes)
    disk.error = FULL
    journal.open(unopened)
    journal.append(running_one.episode_id, make_chunk(1))
    end = make_end(1)
    journal.seal(ending.episode_id, end, True, ends.put, lambda: lost.put(ending.episode_id))
    wait_for(lambda: journal.trouble is not None)
    for meta in (running_one, ending, unopened):
        journal.give_up(meta.episode_id, "not kept: no space")
    assert lost.get(timeout=WAIT_S) == ending.episode_id
    with pytest.raises(WireError, match="unknown_episode"):
        journal.append(running_one.episode_id, make_chunk(2))
    disk.error = None
    rows = aborted.get(timeout=WAIT_S)
    assert kept.episode_id not in {row.episode_id for row in rows}
    assert {running_one.episode_id, ending.episode_id} <= {row.episode_id for row in rows}
    assert all((row.outcome, row.counted) == ("aborted", False) for row in rows)
    reasons = {read_episode(journal.payload(row)).end.reason for row in rows}
    assert reasons == {"not kept: no space"}
    journal.append(kept.episode_id, make_chunk(1))
    journal.seal(kept.episode_id, make_end(2), True, ends.put)
    assert len(read_episode(journal.payload(ends.get(timeout=WAIT_S))).chunks) == 2
    assert ends.empty()
    assert journal.failure is None


def test_chunks_wait_in_bounded_memory(tmp_path: Path, disk: Faulty) -> None:
    size_bytes = make_chunk(0).size_bytes
    journal = Journal(tmp_path / "agent", flush_interval_s=0.01, queue_limit_bytes=3 * size_bytes)
    journal.recover()
    journal.start()
    meta = make_meta()
    journal.open(meta)
    journal.append(meta.episode_id, make_chunk(0))
    wait_for(lambda: journal._writer.written_bytes == size_bytes)
    disk.error = FULL
    taken = 1
    while not journal.is_full:
        journal.append(meta.episode_id, make_chunk(taken))
        taken += 1
        wait_for(lambda: journal.trouble is not None)
    assert taken <= 6
    with pytest.raises(WireError, match="wait for the disk"):
        journal.append(meta.episode_id, make_chunk(taken))
    journal.give_up(meta.episode_id, "full")
    wait_for(lambda: not journal.is_full)
    disk.error = None
    wait_for(lambda: journal.trouble is None)
    journal.close(WAIT_S)


def test_what_time_does_not_mend_ends_the_journal_in_one_line(
    journal: Journal, disk: Faulty, caplog: pytest.LogCaptureFixture
) -> None:
    disk.error = PermissionError(errno.EPERM, os.strerror(errno.EPERM))
    meta = make_meta()
    journal.open(meta)
    wait_for(lambda: journal.failure is not None)
    texts, depths = [], []
    for _ in range(3):
        with pytest.raises(JournalFailed) as caught:
            journal.open(make_meta())
        texts.append(str(caught.value))
        depths.append(len(traceback.extract_tb(caught.value.__traceback__)))
    assert len(set(texts)) == len(set(depths)) == 1  # what is logged of it does not grow
    assert "make the path writable" in texts[0]
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (FULL, True),
        (OSError(errno.EMFILE, "x"), True),
        (OSError(errno.EPERM, "x"), False),
        (ValueError("x"), False),
        (sqlite3.IntegrityError("x"), False),
        (StorageError("x"), False),
    ],
)
def test_only_what_time_can_mend_is_tried_again(error: Exception, passes: bool) -> None:
    assert may_pass(error) == passes
    if isinstance(error, OSError):
        with pytest.raises(StorageError) as caught, storage_errors(Path("x")):
            raise error
        assert may_pass(caught.value) == passes


def test_the_messages_of_sqlite_name_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as db:
        db.execute("CREATE TABLE t (x)")
        db.execute("PRAGMA max_page_count = 3")
        with pytest.raises(sqlite3.OperationalError) as full:
            db.execute("INSERT INTO t VALUES (?)", (bytes(100_000),))
        assert may_pass(full.value)
        assert "free disk space" in explain_trouble(full.value, path)
    path.write_bytes(b"no database at all" * 99)
    with closing(sqlite3.connect(path)) as db, pytest.raises(sqlite3.DatabaseError) as other:
        db.execute("SELECT * FROM t")
    assert not may_pass(other.value)
    assert "put back a copy" in explain_trouble(other.value, path)


# ---- the server ----------------------------------------------------------------------------------


def test_robots_are_served_while_nothing_can_be_kept(tmp_path: Path, disk: Faulty) -> None:
    with running(tmp_path) as server:
        operator, client = server.operator(), server.client()
        post(operator, make_wire_order(slots=3))
        ordered = take_slot(client, "sim")[1]
        assert client.request(observe(ordered.episode_id, 0)).recorded
        own = start_own(client)
        assert own.recorded
        client.request(observe(own.episode_id, 0))
        disk.error = FULL
        client.request(observe(own.episode_id, 1))
        server.wait_until(lambda: server.sample("perennial_recording") == 0)
        assert server.server.health().serving
        assert "No space left" in server.server.health().reason
        for step in (2, 3):
            chunk = client.request(observe(own.episode_id, step))
            assert (chunk.step_index, chunk.recorded) == (step, False)
        ends = [client.request(finish(e.episode_id, chunks=1)) for e in (own, ordered)]
        assert {(e.outcome, e.counted, e.recorded) for e in ends} == {("aborted", False, False)}
        assert client.request(finish(own.episode_id)) == ends[0]  # a repeat
        unkept = start_own(client)
        assert not unkept.recorded
        assert not client.request(observe(unkept.episode_id, 0)).recorded
        assert client.request(Assign("sim", "toy", 1)).leases == []
        disk.error = None
        server.wait_until(lambda: server.sample("perennial_recording") == 1)
        assert not client.request(observe(unkept.episode_id, 1)).recorded  # to its end
        client.request(finish(unkept.episode_id))
        again = take_slot(client, "sim")[1]  # the slot that was lost, and with it the disk is used
        client.request(observe(again.episode_id, 0))
        assert client.request(finish(again.episode_id)).counted
        assert server.sample("perennial_observations_unrecorded_total") == 4
    with closing(LedgerReader(tmp_path / "agent" / "agent.db")) as ledger:
        rows = {row.episode_id: row for row in ledger.episodes()}
    assert unkept.episode_id not in rows
    for lost in (own, ordered):
        row = rows[lost.episode_id]
        assert (row.outcome, row.counted) == ("aborted", False)
        assert row.reason.startswith("not kept: ")
    assert rows[again.episode_id].counted


def test_an_end_that_could_not_be_kept_gives_its_slot_back(tmp_path: Path, disk: Faulty) -> None:
    with running(tmp_path) as server:
        operator, client = server.operator(), server.client()
        post(operator, make_wire_order(slots=1))
        lease, started = take_slot(client, "sim")
        client.request(observe(started.episode_id, 0))
        disk.error = FULL
        end = client.request(finish(started.episode_id))  # waits for the disk, then for nothing
        assert (end.outcome, end.counted, end.recorded) == ("aborted", False, False)
        disk.error = None
        server.wait_until(lambda: server.sample("perennial_recording") == 1)
        again, second = take_slot(client, "sim")
        assert again.slot_id == lease.slot_id
        client.request(observe(second.episode_id, 0))
        assert client.request(finish(second.episode_id)).counted


def test_a_slot_that_was_leased_before_is_not_begun(tmp_path: Path, disk: Faulty) -> None:
    with running(tmp_path) as server:
        operator, client = server.operator(), server.client()
        post(operator, make_wire_order(slots=2))
        client.request(Hello("sim", "test"))
        (lease,) = client.request(Assign("sim", "toy", 1)).leases
        own = start_own(client)
        disk.error = FULL
        client.request(observe(own.episode_id, 0))
        server.wait_until(lambda: server.sample("perennial_recording") == 0)
        with pytest.raises(WireError, match="not kept") as caught:
            client.request(EpisodeStart("sim", "key", slot_id=lease.slot_id))
        assert caught.value.code == "overloaded"
        disk.error = None
        server.wait_until(lambda: server.sample("perennial_recording") == 1)
        assert client.request(EpisodeStart("sim", "key", slot_id=lease.slot_id)).recorded


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_stop_on_a_full_disk_does_not_hang(tmp_path: Path, disk: Faulty) -> None:
    with running(tmp_path) as server:
        own = start_own(server.client())
        disk.error = FULL
        server.client().request(observe(own.episode_id, 0))
        server.wait_until(lambda: server.server._journal.trouble is not None)
        server._stop.set()
        server.server.wake()
        server._thread.join(WAIT_S)
        disk.error = None
    with running(tmp_path) as server:
        server.client().request(finish(own.episode_id, "aborted", chunks=0))


def test_trouble_of_the_ledger_names_the_ledger(tmp_path: Path) -> None:
    with closing(Ledger(tmp_path / "agent.db")) as ledger:
        writer = JournalWriter(tmp_path, ledger, 1.0, lambda seconds: None)
        assert writer.explain(sqlite3.OperationalError("database is locked")).startswith(
            f"{tmp_path / 'agent.db'}: database is locked"
        )
        assert writer.explain(OSError(28, "full")).startswith(f"{tmp_path}: full")
