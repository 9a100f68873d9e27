"""The ledger's rules hold in the database itself."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from episode_fixtures import make_end, make_meta, make_order

from agent.durable import StorageError, may_pass
from agent.ledger import EpisodeState, Ledger, LedgerReader
from agent.recovery import recover_state


def seal(ledger: Ledger, slot_id: str = "", counted: bool = True) -> str:
    meta = make_meta(slot_id=slot_id)
    with ledger.transaction():
        ledger.add_episode(meta)
        ledger.seal_episode(meta.episode_id, make_end(1), counted, "a" * 64, 10)
    return meta.episode_id


def test_at_most_one_counted_episode_per_slot(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "agent.db")
    first = seal(ledger, "o#0")
    seal(ledger, "o#0", counted=False)
    with pytest.raises(sqlite3.IntegrityError):
        seal(ledger, "o#0")
    assert ledger.filled() == {"o#0": first}
    seal(ledger), seal(ledger)  # a robot's own tasks have no slot
    with ledger.transaction():
        ledger.quarantine_episode(first, "altered")
    assert ledger.filled() == {}
    second = seal(ledger, "o#0")
    assert ledger.filled() == {"o#0": second}


@pytest.mark.parametrize("name", ["agent.db", "agent.db-wal"])
@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_ledger_that_is_removed_while_it_is_written_is_noticed(
    tmp_path: Path, name: str, is_replaced: bool
) -> None:
    ledger = Ledger(tmp_path / "agent.db")
    seal(ledger)
    copy = (tmp_path / name).read_bytes()
    (tmp_path / name).rename(tmp_path / "elsewhere")
    if is_replaced:
        (tmp_path / name).write_bytes(copy)
    with pytest.raises(StorageError, match=f"{name} was removed or replaced") as caught:
        seal(ledger)
    assert not may_pass(caught.value)


def test_an_episode_is_opened_and_sealed_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "agent.db")
    meta = make_meta()
    with ledger.transaction():
        ledger.add_episode(meta)
    with pytest.raises(sqlite3.IntegrityError), ledger.transaction():
        ledger.add_episode(meta)
    with ledger.transaction():
        row = ledger.seal_episode(meta.episode_id, make_end(1), True, "a" * 64, 10)
    with pytest.raises(StorageError, match="not open"), ledger.transaction():
        ledger.seal_episode(meta.episode_id, make_end(1), True, "b" * 64, 10)
    assert ledger.episode(meta.episode_id) == row
    assert row.counted is True


def test_a_failed_transaction_leaves_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "agent.db")
    meta = make_meta()

    def fail_late() -> None:
        with ledger.transaction():
            ledger.add_episode(meta)
            ledger.seal_episode(meta.episode_id, make_end(1), True, "a" * 64, 10)
            ledger.add_orders([make_order()])
            ledger.add_activation("v1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_late()
    assert (ledger.episodes(), ledger.orders(), ledger.activations()) == ([], [], [])
    seal(ledger)
    assert [row.sealed_seq for row in ledger.episodes()] == [1]


def test_seal_order_is_monotone_over_restarts(tmp_path: Path) -> None:
    ids = []
    for _ in range(3):
        ledger = Ledger(tmp_path / "agent.db")
        ids += [seal(ledger), seal(ledger)]
        with ledger.transaction():
            ledger.ack({ids[-1]: "a" * 64})
        ledger.close()
    rows = LedgerReader(tmp_path / "agent.db").episodes()
    assert sorted(row.sealed_seq for row in rows) == [1, 2, 3, 4, 5, 6]
    assert [r.episode_id for r in sorted(rows, key=lambda r: r.sealed_seq)] == ids


def test_unacked_pages_in_seal_order(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "agent.db")
    ids = [seal(ledger) for _ in range(5)]
    with ledger.transaction():
        ledger.ack({ids[1]: "a" * 64})
    reader = LedgerReader(tmp_path / "agent.db")
    page = reader.unacked(0, 2)
    assert [row.episode_id for row in page] == [ids[0], ids[2]]
    assert [row.episode_id for row in reader.unacked(page[-1].sealed_seq, 9)] == ids[3:]


def test_ack_refuses_strangers_and_other_hashes(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "agent.db")
    sealed, other = seal(ledger), seal(ledger)
    with ledger.transaction():
        acked, refused = ledger.ack({sealed: "a" * 64, other: "b" * 64, "f" * 32: "a" * 64})
        assert acked == [sealed]
        assert refused.keys() == {other, "f" * 32}
        assert ledger.ack({sealed: "a" * 64}) == ([sealed], {})
    states = {row.episode_id: row.state for row in ledger.episodes()}
    assert states == {sealed: EpisodeState.ACKED, other: EpisodeState.SEALED}


def test_orders_keep_their_posting_order_and_first_content(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "agent.db")
    orders = [make_order("b"), make_order("a"), make_order("c", temperature=0.5)]
    with ledger.transaction():
        ledger.add_orders(orders[:2])
        ledger.add_orders([make_order("a", slots=9), *orders])
    assert LedgerReader(tmp_path / "agent.db").orders() == orders


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"order_id": 7}', "\x00" * 9, b"\xff"])
def test_an_entry_that_a_disk_has_altered_is_left_out_alone(tmp_path: Path, text: object) -> None:
    ledger = Ledger(tmp_path / "agent.db")
    orders = [make_order("a"), make_order("b")]
    first, second = make_meta(), make_meta()
    with ledger.transaction():
        ledger.add_orders(orders)
        ledger.add_episode(first)
        ledger.add_episode(second)
    with closing(sqlite3.connect(tmp_path / "agent.db")) as db, db:
        db.execute("UPDATE orders SET body = ? WHERE order_id = 'a'", (text,))
        db.execute("UPDATE episodes SET meta = ? WHERE episode_id = ?", (text, first.episode_id))
    assert ledger.orders() == orders[1:]
    assert ledger.metas(EpisodeState.OPEN) == {first.episode_id: None, second.episode_id: second}
    found = recover_state(make_folder(tmp_path / "episodes"), ledger)
    assert found.orders == orders[1:]
    assert found.aborted == [second.episode_id]
    states = {row.episode_id: row.state for row in ledger.episodes()}
    assert states[first.episode_id] == EpisodeState.QUARANTINED


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize("content", [None, b"", b"not a database" * 100])
def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "agent.db"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StorageError, match=r"agent\.db"):
        LedgerReader(path)


def test_a_ledger_of_version_2_is_read_as_it_is_and_migrated_by_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    ledger = Ledger(path)
    old, still_open = seal(ledger, "o#0"), make_meta()
    with ledger.transaction():
        ledger.add_episode(still_open, "arm-1")
    rows, metas = ledger.episodes(), ledger.metas(EpisodeState.OPEN)
    ledger.close()
    with closing(sqlite3.connect(path)) as db:
        db.executescript("ALTER TABLE episodes DROP COLUMN owner; PRAGMA user_version = 2;")
    assert LedgerReader(path).episodes() == rows  # nothing is changed by those who only read
    for _ in range(2):
        ledger = Ledger(path)
        assert ledger.episodes() == rows
        assert ledger.metas(EpisodeState.OPEN) == metas == {still_open.episode_id: still_open}
        assert ledger.owner(old) is None
        new = make_meta()
        with ledger.transaction():
            ledger.add_episode(new, "arm-1")
        assert ledger.owner(new.episode_id) == "arm-1"
        with ledger.transaction():
            ledger.quarantine_episode(new.episode_id, "for the next round")
        ledger.close()
        rows = LedgerReader(path).episodes()


@pytest.mark.parametrize("version", [1, 4])
def test_a_ledger_of_another_version_is_refused(tmp_path: Path, version: int) -> None:
    path = tmp_path / "agent.db"
    Ledger(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {version}")
    for opened in (LedgerReader, Ledger):
        with pytest.raises(StorageError, match=f"ledger version {version}, expected 3"):
            opened(path)


@pytest.mark.parametrize("where", ["middle", "end"])
def test_damage_within_a_ledger_is_found_when_it_is_opened_and_is_one_line(
    tmp_path: Path, where: str
) -> None:
    path = tmp_path / "agent.db"
    ledger = Ledger(path)
    with ledger.transaction():
        ledger.add_orders(make_order(order_id=f"train/0/0/0/{n}") for n in range(300))
    ledger.close()
    whole = path.read_bytes()
    page_bytes = 4096
    first = len(whole) // page_bytes // 2 if where == "middle" else len(whole) // page_bytes - 2
    torn = bytearray(whole)
    torn[first * page_bytes : (first + 2) * page_bytes] = b"\xff" * (2 * page_bytes)
    path.write_bytes(bytes(torn))
    with pytest.raises(StorageError, match=r"agent\.db: .*damaged: put back a copy") as caught:
        Ledger(path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == torn
