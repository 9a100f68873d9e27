"""Killed at any moment, the journal keeps every episode that it has reported, once."""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from episode_fixtures import make_chunk, make_end, make_meta
from patience import HANG_S

from agent.episode import EpisodeMeta, read_episode
from agent.episode_writer import EpisodeWriter
from agent.journal import Journal
from agent.ledger import EpisodeRow, EpisodeState, Ledger
from agent.recovery import RESTART_REASON

JOURNALLING = """
import sys, itertools
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from episode_fixtures import make_chunk, make_end, make_meta
from agent.journal import Journal
journal = Journal(Path(sys.argv[1]), flush_interval_s=0.02)
journal.recover()
journal.start()
def report(row):
    sys.stdout.write(f"{row.episode_id} {row.sha256} {int(row.counted)}\\n")
    sys.stdout.flush()
print("ready", flush=True)
CHUNKS = [make_chunk(t, image_size=24) for t in range(6)]
for i in itertools.count():
    metas = [make_meta(slot_id=f"{sys.argv[3]}/{i}#{k}") for k in range(4)]
    for meta in metas:
        journal.open(meta)
    for t in range(6):
        for meta in metas:
            journal.append(meta.episode_id, CHUNKS[t])
    for k, meta in enumerate(metas):
        outcome = ("success", "failure", "timeout", "aborted")[k]
        journal.seal(meta.episode_id, make_end(6, outcome), outcome != "aborted", report)
    while journal._queue.qsize() > 100:
        pass
"""


def journal_until_killed(root: Path, name: str, delay_s: float) -> dict[str, tuple[str, bool]]:
    """{episode id: (SHA-256, counted)} of what a process reported before its kill -9."""
    process = subprocess.Popen(
        [sys.executable, "-c", JOURNALLING, str(root), str(Path(__file__).parent), name],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(delay_s)
    process.kill()
    output, _ = process.communicate(timeout=HANG_S)
    assert process.returncode == -signal.SIGKILL
    lines = [line.split() for line in output.splitlines(keepends=True) if line.endswith("\n")]
    assert len({line[0] for line in lines}) == len(lines), "reported twice"
    return {episode_id: (sha256, counted == "1") for episode_id, sha256, counted in lines}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_kill_9_loses_nothing_reported(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    reported: dict[str, tuple[str, bool]] = {}
    for life in range(2):
        reported |= journal_until_killed(tmp_path, f"life{life}", rng.uniform(0.01, 0.4))
    journal = Journal(tmp_path)
    recovered = journal.recover()
    assert recovered.quarantined == {}
    rows = journal.fetch_rows(0, 1_000_000)
    by_id = {row.episode_id: row for row in rows}
    assert len(by_id) == len(rows)
    assert reported.keys() <= by_id.keys()
    for row in rows:
        data = journal.payload(row)
        episode = read_episode(data)
        assert hashlib.sha256(data).hexdigest() == row.sha256
        assert (episode.meta.episode_id, episode.end.outcome) == (row.episode_id, row.outcome)
        for t, chunk in enumerate(episode.chunks):
            expected = make_chunk(t, image_size=24)
            assert np.array_equal(chunk.images["wrist"], expected.images["wrist"])
        if row.episode_id in reported:
            assert (row.sha256, row.counted) == reported[row.episode_id]
            assert len(episode.chunks) == 6
        elif row.reason == RESTART_REASON:
            assert (row.outcome, row.counted) == ("aborted", False)
    assert set(recovered.filled.values()) == {row.episode_id for row in rows if row.counted}
    files = {path.name for path in (tmp_path / "episodes").iterdir()}
    assert files == {f"{row.episode_id}.mcap" for row in rows}
    journal.close(10)


@pytest.mark.slow
def test_recovery_can_itself_be_killed_and_repeated(tmp_path: Path) -> None:
    """Recovering a copy in which the files were rewritten but no row was committed."""
    journal_until_killed(tmp_path, "life", 0.2)
    ledger_before = (tmp_path / "agent.db").read_bytes()
    wal_before = (tmp_path / "agent.db-wal").read_bytes()
    first = Journal(tmp_path)
    aborted = first.recover().aborted
    first.close(10)
    (tmp_path / "agent.db").write_bytes(ledger_before)
    (tmp_path / "agent.db-wal").write_bytes(wal_before)
    (tmp_path / "episodes" / ".rewrite-x.mcap").write_bytes(b"half")
    second = Journal(tmp_path)
    again = second.recover()
    assert again.aborted == aborted
    assert again.quarantined == {}
    for row in second.fetch_rows(0, 1_000_000):
        assert read_episode(second.payload(row)).end.outcome == row.outcome
    second.close(10)


# ---- one damaged thing at a time ---------------------------------------------------------------


def torn_state(root: Path, *, flushed: int = 3) -> tuple[EpisodeMeta, Path]:
    """A ledger with one open episode whose file has `flushed` whole chunks and no end."""
    (root / "episodes").mkdir(parents=True)
    meta = make_meta(slot_id="o#0")
    ledger = Ledger(root / "agent.db")
    with ledger.transaction():
        ledger.add_episode(meta)
    ledger.close()
    path = root / "episodes" / f"{meta.episode_id}.mcap"
    writer = EpisodeWriter(path, meta)
    for t in range(flushed):
        writer.append(make_chunk(t))
        writer.flush()
    writer.abandon()
    return meta, path


def recover(root: Path) -> tuple[Journal, dict[str, str], EpisodeRow]:
    journal = Journal(root)
    recovered = journal.recover()
    assert recovered.filled == {}
    (row,) = journal._reader.episodes()
    journal.close(10)
    return journal, recovered.quarantined, row


@pytest.mark.parametrize("cut", [0, 1, 100])
def test_a_torn_file_is_sealed_as_aborted_with_its_readable_chunks(
    tmp_path: Path, cut: int
) -> None:
    meta, path = torn_state(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - cut])
    _, quarantined, row = recover(tmp_path)
    assert quarantined == {}
    assert (row.state, row.outcome, row.counted) == (EpisodeState.SEALED, "aborted", False)
    assert row.reason == RESTART_REASON
    episode = read_episode(path)
    assert episode.meta == meta
    # The cut falls into the index records behind the last block, or into the block.
    assert len(episode.chunks) == (3 if cut < 100 else 2)
    assert not episode.end.executed_TK.any()


@pytest.mark.parametrize("state", ["empty", "missing", "meta only"])
def test_an_episode_that_had_hardly_begun_is_sealed_as_aborted(tmp_path: Path, state: str) -> None:
    meta, path = torn_state(tmp_path, flushed=0)
    if state == "empty":
        path.write_bytes(b"")
    elif state == "missing":
        path.unlink()
    _, _, row = recover(tmp_path)
    assert (row.state, row.outcome) == (EpisodeState.SEALED, "aborted")
    assert read_episode(path).meta == meta


@pytest.mark.parametrize("damage", ["zeros", "noise", "other episode"])
def test_a_file_beyond_reading_is_set_aside_with_its_reason(tmp_path: Path, damage: str) -> None:
    meta, path = torn_state(tmp_path)
    if damage == "other episode":
        path.unlink()
        EpisodeWriter(path, make_meta()).abandon()
        content = path.read_bytes()
    else:
        content = bytes(4000) if damage == "zeros" else random.Random(0).randbytes(4000)
        path.write_bytes(content)
    _, quarantined, row = recover(tmp_path)
    assert quarantined.keys() == {meta.episode_id}
    assert (row.state, row.counted) == (EpisodeState.QUARANTINED, False)
    assert row.reason == quarantined[meta.episode_id]
    aside = tmp_path / "episodes" / "quarantine" / path.name
    assert aside.read_bytes() == content
    assert aside.with_name(f"{path.name}.reason").read_text().strip() == row.reason


def test_a_stranger_is_set_aside_and_kept(tmp_path: Path) -> None:
    Journal(tmp_path).close(10)
    stranger = tmp_path / "episodes" / f"{'a' * 32}.mcap"
    stranger.write_bytes(b"whose?")
    (tmp_path / "episodes" / "notes.txt").write_bytes(b"notes")
    journal = Journal(tmp_path)
    assert journal.recover().quarantined == {
        stranger.name: "no ledger row",
        "notes.txt": "no ledger row",
    }
    aside = tmp_path / "episodes" / "quarantine"
    assert (aside / stranger.name).read_bytes() == b"whose?"
    assert journal.recover().quarantined == {}
    journal.close(10)


def sealed_state(root: Path) -> tuple[str, Path]:
    meta, path = torn_state(root)
    path.unlink()
    sha256, size_bytes = EpisodeWriter(path, meta).seal(make_end(0))
    ledger = Ledger(root / "agent.db")
    with ledger.transaction():
        ledger.seal_episode(meta.episode_id, make_end(0), True, sha256, size_bytes)
    ledger.close()
    return meta.episode_id, path


@pytest.mark.parametrize("damage", ["altered", "missing"])
def test_a_sealed_file_that_changed_is_quarantined_and_its_slot_is_free(
    tmp_path: Path, damage: str
) -> None:
    episode_id, path = sealed_state(tmp_path)
    if damage == "altered":
        path.write_bytes(path.read_bytes() + b"!")
    else:
        path.unlink()
    _, quarantined, row = recover(tmp_path)
    assert quarantined.keys() == {episode_id}
    assert row.state == EpisodeState.QUARANTINED
    aside = tmp_path / "episodes" / "quarantine" / path.name
    assert aside.exists() == (damage == "altered")


def test_files_of_acknowledged_episodes_are_removed(tmp_path: Path) -> None:
    """Killed between the commit of an ack and the removal of its file."""
    episode_id, path = sealed_state(tmp_path)
    ledger = Ledger(tmp_path / "agent.db")
    (row,) = ledger.episodes()
    with ledger.transaction():
        ledger.ack({episode_id: row.sha256})
    ledger.close()
    journal = Journal(tmp_path)
    assert journal.recover().filled == {"o#0": episode_id}
    assert not path.exists()
    journal.close(10)
