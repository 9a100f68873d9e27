"""Whatever the loss of power leaves of the agent's folders, what was promised is there."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from episode_fixtures import make_chunk, make_end, make_meta, make_order
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import HANG_S
from power import LOST, Aftermath, Disk, Drawn

from agent.adapters import AdapterStore
from agent.durable import new_folder, replace_file, replacing, sync_folder
from agent.episode import read_episode
from agent.journal import Journal
from agent.ledger import SealedRow
from agent.recovery import Recovered, set_aside

FEW = settings(max_examples=25)


# ---- the file layer ------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    (tmp_path / "disk").mkdir()
    return Disk(tmp_path / "disk")


def test_what_is_not_synced_may_be_lost_and_what_is_synced_is_not(disk: Disk) -> None:
    """The layer itself: a careless writer loses, whatever it says."""
    found: list[frozenset[tuple[str, bytes]]] = []

    def note(root: Path, promises: tuple[Any, ...]) -> None:
        if promises:
            found.append(frozenset((p.name, p.read_bytes()) for p in root.iterdir()))

    with disk.watched():
        (disk.root / "half").write_bytes(b"whole")
        (disk.root / "half").rename(disk.root / "file")
        disk.promise("file")
    Aftermath(disk, note).of_all()
    assert frozenset() in found
    assert frozenset({("file", b"")}) in found
    assert frozenset({("file", bytes(5))}) in found
    assert frozenset({("file", b"whole")}) in found


def replace_in_parts(path: Path, data: bytes) -> None:
    with replacing(path) as file:
        file.write(data[:1])
        file.write(data[1:])


@pytest.mark.parametrize("replace", [replace_file, replace_in_parts])
def test_a_file_is_the_old_one_or_the_new_one(
    disk: Disk, replace: Callable[[Path, bytes], None]
) -> None:
    path = disk.root / "file"
    with disk.watched():
        for data in (b"first", b"second, and longer", b"3"):
            replace(path, data)
            disk.promise(data)

    def check(root: Path, promises: tuple[bytes, ...]) -> None:
        file = root / "file"
        content = file.read_bytes() if file.exists() else None
        known = [None, b"first", b"second, and longer", b"3"]
        assert content in known
        assert known.index(content) >= len(promises)

    Aftermath(disk, check).of_all()


def test_a_new_folder_is_whole_or_not_there(disk: Disk) -> None:
    files = {"a": b"1" * 100, "b": b"2" * 10}
    with disk.watched():
        with new_folder(disk.root / "deep" / "made") as folder:
            for name, data in files.items():
                (folder / name).write_bytes(data)
        disk.promise("made")

    def check(root: Path, promises: tuple[str, ...]) -> None:
        made = root / "deep" / "made"
        if promises or made.exists():
            assert {path.name: path.read_bytes() for path in made.iterdir()} == files

    Aftermath(disk, check).of_all()


def test_a_file_that_is_set_aside_is_never_lost(disk: Disk) -> None:
    (disk.root / "x.mcap").write_bytes(b"torn")
    disk = Disk(disk.root)
    with disk.watched():
        set_aside(disk.root / "x.mcap", "torn")
        sync_folder(disk.root)
        disk.promise("aside")

    def check(root: Path, promises: tuple[str, ...]) -> None:
        here, aside = root / "x.mcap", root / "quarantine" / "x.mcap"
        there = [path.read_bytes() for path in (here, aside) if path.exists()]
        assert there
        assert set(there) == {b"torn"}
        if aside.exists() or promises:
            assert aside.with_name("x.mcap.reason").read_text() == "torn\n"

    Aftermath(disk, check).of_all()


def test_a_published_adapter_is_whole_at_every_cut(disk: Disk) -> None:
    store = AdapterStore(disk.root / "adapters")
    facts = {"parent": "base", "task": "t", "base_sha256": "0" * 64, "method": "m", "metrics": {}}
    with disk.watched():
        for number in (1, 2):
            files = {"adapter.bin": bytes([number]) * 50, "config.json": b"{}"}
            disk.promise(store.publish(number, files, **facts).version)

    def check(root: Path, promises: tuple[str, ...]) -> None:
        found = AdapterStore(root / "adapters")
        assert set(promises) <= set(found.versions())
        for version in found.versions():
            found.verify(version)
        found.publish(3, {"adapter.bin": b"3"}, **facts)  # nothing that is left stands in its way

    Aftermath(disk, check).of_all()


# ---- journal and ledger --------------------------------------------------------------------------


class Recording:
    """Drives a real journal and notes what it promises, each as (kind, value)."""

    def __init__(self, disk: Disk, root: Path, flush_interval_s: float = 0.001) -> None:
        self.disk = disk
        self._synced = threading.Semaphore(0)
        self.journal = Journal(root, flush_interval_s, on_synced=self._on_synced)
        self.journal.recover()
        self.journal.start()

    def _on_synced(self, seconds: float) -> None:
        self._synced.release()

    def wait(self, ask: Callable[[Callable[..., None]], None], kind: str, value: Any = None) -> Any:
        """Asks the journal for something, and promises it when the journal says it is durable."""
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def on_durable(*answer: Any) -> None:
            self.disk.promise((kind, value if value is not None else answer[0]))
            answers.put(answer)

        ask(on_durable)
        return answers.get(timeout=HANG_S)

    def append(self, episode_id: str, chunks: int) -> None:
        """Appends chunks and waits until file and folder are said to be synced."""
        while self._synced.acquire(blocking=False):
            pass
        for t in range(chunks):
            self.journal.append(episode_id, make_chunk(t, image_size=4))
        assert self._synced.acquire(timeout=HANG_S)
        # Once the next change is durable, the folder of this sync is, too.
        self.wait(lambda then: self.journal.set_active("base", then), "noted", "base")
        self.disk.promise(("synced", (episode_id, chunks)))

    def seal(self, episode_id: str, chunks: int, outcome: str = "success") -> SealedRow:
        end = make_end(chunks, outcome)
        (row,) = self.wait(
            lambda then: self.journal.seal(episode_id, end, outcome != "aborted", then), "sealed"
        )
        return row


def record_two_lives(disk: Disk) -> None:
    """Orders, four episodes, an acknowledgement, a death with one open, and a life after it."""
    root = disk.root / "agent"
    life = Recording(disk, root)
    orders = [make_order("a"), make_order("b")]
    life.wait(lambda then: life.journal.post_orders(orders, lambda: then(orders)), "orders")
    metas = [make_meta(slot_id=f"a#{k}") for k in range(3)]
    for meta in metas:
        life.journal.open(meta)
        life.append(meta.episode_id, 2)
    first = life.seal(metas[0].episode_id, 2)
    life.seal(metas[1].episode_id, 2, "aborted")
    acked = {first.episode_id: first.sha256}
    life.wait(lambda then: life.journal.ack(acked, lambda _: then(first.episode_id)), "acked")
    life.wait(lambda then: life.journal.set_active("v00001-0", then), "active", "v00001-0")
    life.journal.close(HANG_S)  # the third stays open: its file is torn
    life = Recording(disk, root, flush_interval_s=HANG_S)
    disk.promise(("recovered", metas[2].episode_id))
    last = make_meta(slot_id="a#1")
    life.journal.open(last)
    life.journal.append(last.episode_id, make_chunk(0, image_size=4))  # sealed before it is synced
    life.seal(last.episode_id, 1)
    life.journal.close(HANG_S)


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    root = tmp_path_factory.mktemp("disk")
    disk = Disk(root)
    with disk.watched():
        record_two_lives(disk)
    return disk


def boot(root: Path, promises: tuple[tuple[str, Any], ...]) -> Recovered:
    """On what is left: every promise holds."""
    journal = Journal(root / "agent")
    recovered = journal.recover()
    rows = {row.episode_id: row for row in journal._reader.episodes()}
    payloads = {row.episode_id: journal.payload(row) for row in journal.fetch_rows(0, -1)}
    for episode_id, payload in payloads.items():
        assert hashlib.sha256(payload).hexdigest() == rows[episode_id].sha256
        assert read_episode(payload).end.outcome == rows[episode_id].outcome
    for kind, value in promises:
        _check_promise(kind, value, recovered, rows, payloads)
    assert len(set(recovered.filled.values())) == len(recovered.filled)
    journal.close(HANG_S)
    return recovered


def boot_twice(root: Path, promises: tuple[tuple[str, Any], ...]) -> None:
    """The second boot changes nothing."""
    first, second = boot(root, promises), boot(root, promises)
    assert (second.aborted, second.quarantined) == ([], {})
    assert (second.filled, second.orders) == (first.filled, first.orders)


def _check_promise(kind: str, value: Any, recovered: Any, rows: Any, payloads: Any) -> None:
    if kind == "orders":
        assert recovered.orders == value
    elif kind == "active":
        assert value in recovered.activations
    elif kind == "acked":
        assert rows[value].state == "acked"
    elif kind == "recovered":
        assert (rows[value].state, rows[value].outcome) == ("sealed", "aborted")
    elif kind == "sealed":
        row = rows[value.episode_id]
        assert (row.sha256, row.outcome, row.counted) == (
            value.sha256,
            value.outcome,
            value.counted,
        )
        assert row.state == "acked" or row.episode_id in payloads
        assert value.slot_id not in recovered.filled or row.counted or row.outcome == "aborted"
    elif kind == "synced" and value[0] in payloads:
        chunks = read_episode(payloads[value[0]]).chunks
        assert len(chunks) >= value[1]
        for t, chunk in enumerate(chunks):
            assert np.array_equal(chunk.choices_KA, make_chunk(t, image_size=4).choices_KA)
    elif kind == "synced":
        assert rows[value[0]].state == "acked"


def test_the_journal_keeps_its_promises_after_every_cut(lives: Disk) -> None:
    Aftermath(lives, boot).of_all([LOST])


def test_the_journal_keeps_its_promises_whatever_survives(lives: Disk) -> None:
    aftermath = Aftermath(lives, boot_twice)

    @FEW
    @given(st.data())
    def cut_anywhere(data: st.DataObject) -> None:
        cut = data.draw(st.sampled_from(lives.cuts))
        aftermath.of(cut, Drawn(lambda low, high: data.draw(st.integers(low, high))))

    cut_anywhere()
