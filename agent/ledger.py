"""The agent's ledger: orders, episodes and activations in one SQLite file (WAL, FULL).

An episode's row goes open -> sealed -> acked; a file that cannot be trusted makes it quarantined.
`Ledger` writes and belongs to one thread at a time, `LedgerReader` sees what was committed, also
from another process while the server runs. A committed transaction survives a loss of power.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from agent.database import DatabasePlace
from agent.durable import StorageError
from agent.episode import EndRecord, EpisodeMeta
from agent.ledger_file import create_ledger, open_ledger
from agent.process.clock import go_on_from, unix_s
from agent.process.shown import printable
from agent.records import from_json, to_json
from agent.wire.errors import WireError
from agent.wire.messages import Order

T = TypeVar("T")

log = logging.getLogger(__name__)


class EpisodeState(StrEnum):
    OPEN = "open"
    SEALED = "sealed"  # durable, waiting for the learner
    ACKED = "acked"  # durable at the learner
    QUARANTINED = "quarantined"  # kept aside, not to be trusted


@dataclass(frozen=True, slots=True)
class EpisodeRow:
    """One row. sealed_seq: order of sealing from 1, 0 while open; reason: of its end."""

    episode_id: str
    order_id: str
    slot_id: str
    suite: str
    task: str
    split: str
    init_state: int
    phase: str
    version: str
    state: str
    outcome: str
    steps: int
    counted: bool
    sha256: str
    size_bytes: int
    sealed_seq: int
    sealed_unix_s: float
    reason: str


SealedRow = EpisodeRow  # with sha256, size_bytes, sealed_seq and sealed_unix_s set


@dataclass(frozen=True, slots=True)
class ActivationRow:
    """A version that was made active, after the episode with `after_sealed_seq` was sealed."""

    version: str
    unix_s: float
    after_sealed_seq: int


_COLUMNS = ", ".join(EpisodeRow.__dataclass_fields__)


class LedgerReader:
    """A read-only view. Raises StorageError if the file is missing, foreign or unreadable."""

    _mode = "ro"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = open_ledger(path, self._mode)

    def unacked(self, after_seq: int, limit: int) -> list[SealedRow]:
        """Sealed episodes that the learner has not acknowledged, in seal order."""
        return self._rows(
            "state = 'sealed' AND sealed_seq > ? ORDER BY sealed_seq LIMIT ?", after_seq, limit
        )

    def episode(self, episode_id: str) -> EpisodeRow | None:
        rows = self._rows("episode_id = ?", episode_id)
        return rows[0] if rows else None

    def owner(self, episode_id: str) -> str | None:
        """The client whose key opened the episode, "" for one that needed no key.

        None if there is no such episode, or its row is older than this column.
        """
        query = "SELECT owner FROM episodes WHERE episode_id = ?"
        found = self._db.execute(query, (episode_id,)).fetchone()
        return found["owner"] if found else None

    def episodes(self) -> list[EpisodeRow]:
        """Every episode in the order in which they were opened."""
        return self._rows("TRUE ORDER BY rowid")

    def metas(self, state: EpisodeState) -> dict[str, EpisodeMeta | None]:
        """The full metadata of the episodes in one state, by id; None where it is damaged."""
        rows = self._db.execute("SELECT episode_id, meta FROM episodes WHERE state = ?", (state,))
        return {
            episode_id: _whole(EpisodeMeta, text, f"meta of {episode_id}")
            for episode_id, text in rows
        }

    def orders(self) -> list[Order]:
        """All orders, as posted, but for those that are damaged: their learner posts them again."""
        rows = self._db.execute("SELECT order_id, body FROM orders ORDER BY place")
        found = [_whole(Order, text, f"order {order_id}") for order_id, text in rows]
        return [order for order in found if order is not None]

    def filled(self) -> dict[str, str]:
        """{slot id: counted episode id}."""
        query = "SELECT slot_id, episode_id FROM episodes WHERE counted = 1 AND slot_id != ''"
        return dict(self._db.execute(query))

    def held(self) -> dict[str, str]:
        """{slot id: episode id} of slots whose episode only the learner knows."""
        return dict(self._db.execute("SELECT slot_id, episode_id FROM held_slots"))

    def activations(self) -> list[ActivationRow]:
        """What was made active, in order; the last one is active."""
        query = "SELECT version, unix_s, after_sealed_seq FROM activations ORDER BY seq"
        return [ActivationRow(*row) for row in self._db.execute(query)]

    def history(self) -> Iterator[EpisodeRow | ActivationRow]:
        """Every seal and every activation, in the order in which they were committed."""
        sealed = self._iterate("sealed_seq > 0 ORDER BY sealed_seq")
        return heapq.merge(sealed, self.activations(), key=_moment)

    def sealed_bytes(self) -> int:
        """Size of the files that wait for the learner."""
        query = "SELECT IFNULL(SUM(size_bytes), 0) FROM episodes WHERE state = 'sealed'"
        return int(self._db.execute(query).fetchone()[0])

    def close(self) -> None:
        self._db.close()

    def _rows(self, condition: str, *values: object) -> list[EpisodeRow]:
        return list(self._iterate(condition, *values))

    def _iterate(self, condition: str, *values: object) -> Iterator[EpisodeRow]:
        query = f"SELECT {_COLUMNS} FROM episodes WHERE {condition}"
        for row in self._db.execute(query, values):
            yield EpisodeRow(**{**row, "counted": bool(row["counted"])})


class Ledger(LedgerReader):
    """The one writer. Its changes take effect together, at the end of `transaction`."""

    _mode = "rw"

    def __init__(self, path: Path) -> None:
        """Opens or creates. Raises StorageError."""
        create_ledger(path)
        super().__init__(path)
        self._db.execute("PRAGMA synchronous = FULL")
        query = "SELECT IFNULL(MAX(sealed_seq), 0) FROM episodes"
        self._last_seq: int = self._db.execute(query).fetchone()[0]
        go_on_from(self._last_stamp_s())
        self._place = DatabasePlace(path)

    def _last_stamp_s(self) -> float:
        """When the last episode was sealed or version made active [Unix s]; 0 if none was."""
        query = (
            "SELECT MAX(IFNULL((SELECT sealed_unix_s FROM episodes WHERE sealed_seq = ?), 0),"
            " IFNULL((SELECT unix_s FROM activations ORDER BY seq DESC LIMIT 1), 0))"
        )
        return float(self._db.execute(query, (self._last_seq,)).fetchone()[0])

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; durable when the block has ended.

        Raises:
            StorageError: the file is no longer there.
        """
        last_seq = self._last_seq
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
            self._place.check()
        except BaseException:
            self._last_seq = last_seq
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def touch(self) -> None:
        """A write that changes nothing: whether the disk takes one."""
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        self._db.execute(f"PRAGMA user_version = {int(version)}")

    def add_orders(self, orders: Iterable[Order]) -> None:
        """Orders that are there already stay as they are."""
        self._db.executemany(
            "INSERT OR IGNORE INTO orders (order_id, task, phase, body) VALUES (?, ?, ?, ?)",
            [(o.order_id, o.task, o.phase, to_json(o)) for o in orders],
        )

    def add_episode(self, meta: EpisodeMeta, owner: str = "") -> None:
        """A new open episode. Raises sqlite3.IntegrityError for an id that exists."""
        self._db.execute(
            "INSERT INTO episodes (episode_id, order_id, slot_id, suite, task, split, init_state,"
            " phase, version, state, meta, owner)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'open', ?, ?)",
            (
                *(meta.episode_id, meta.order_id, meta.slot_id, meta.suite, meta.task),
                *(meta.split, meta.init_state, meta.phase, meta.version, to_json(meta), owner),
            ),
        )

    def seal_episode(
        self, episode_id: str, end: EndRecord, counted: bool, sha256: str, size_bytes: int
    ) -> SealedRow:
        """open -> sealed, with the next sealed_seq.

        Raises StorageError if the episode is not open, sqlite3.IntegrityError if it would be the
        second counted episode of its slot.
        """
        self._last_seq += 1
        changed = self._db.execute(
            "UPDATE episodes SET state = 'sealed', outcome = ?, steps = ?, counted = ?, sha256 = ?,"
            " size_bytes = ?, sealed_seq = ?, sealed_unix_s = ?, reason = ?"
            " WHERE episode_id = ? AND state = 'open'",
            (
                *(str(end.outcome), end.steps, counted, sha256, size_bytes, self._last_seq),
                *(end.sealed_unix_s, end.reason, episode_id),
            ),
        ).rowcount
        row = self.episode(episode_id)
        if changed != 1 or row is None:
            raise StorageError(f"episode {episode_id} is not open in the ledger: cannot be sealed")
        return row

    def ack(self, hashes: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
        """sealed -> acked for {episode id: sha256}.

        Returns (ids that are acked now, {refused id: why}). Repeating an ack is not refused; an
        unknown id or another hash is.
        """
        acked, refused = [], {}
        for episode_id, sha256 in hashes.items():
            row = self.episode(episode_id)
            if row is None or row.state not in (EpisodeState.SEALED, EpisodeState.ACKED):
                refused[episode_id] = f"is {row.state if row else 'unknown'}, not sealed"
            elif row.sha256 != sha256:
                refused[episode_id] = f"SHA-256 {sha256[:12]}, sealed with {row.sha256[:12]}"
            else:
                acked.append(episode_id)
        self._db.executemany(
            "UPDATE episodes SET state = 'acked' WHERE episode_id = ?", [(e,) for e in acked]
        )
        return acked, refused

    def hold_slots(self, held: Mapping[str, str]) -> None:
        """Slots that need no episode, {slot id: id of the episode that the learner holds}."""
        self._db.executemany("INSERT OR IGNORE INTO held_slots VALUES (?, ?)", list(held.items()))

    def reject(
        self, episodes: Mapping[str, str], states: Collection[EpisodeState]
    ) -> dict[str, str]:
        """Quarantine those of {episode id: reason} that are in one of the `states`.

        Returns {episode id: slot id if it counted, else ""}. Slots held for one are freed, too.
        """
        freed = {}
        for episode_id, reason in episodes.items():
            row = self.episode(episode_id)
            if row is not None and row.state not in states:
                continue
            if row is not None:
                freed[episode_id] = row.slot_id if row.counted else ""
            query = "SELECT slot_id FROM held_slots WHERE episode_id = ?"
            for (slot_id,) in self._db.execute(query, (episode_id,)).fetchall():
                freed[episode_id] = slot_id
            self._db.execute("DELETE FROM held_slots WHERE episode_id = ?", (episode_id,))
            self.quarantine_episode(episode_id, reason)
        return freed

    def quarantine_episode(self, episode_id: str, reason: str) -> None:
        """Any state -> quarantined: it no longer counts and its slot is to be collected again."""
        self._db.execute(
            "UPDATE episodes SET state = 'quarantined', counted = 0, reason = ?"
            " WHERE episode_id = ?",
            (reason, episode_id),
        )

    def add_activation(self, version: str) -> ActivationRow:
        """After every episode sealed so far."""
        row = ActivationRow(version, unix_s(), self._last_seq)
        self._db.execute(
            "INSERT INTO activations (version, unix_s, after_sealed_seq) VALUES (?, ?, ?)",
            (row.version, row.unix_s, row.after_sealed_seq),
        )
        return row


def _moment(row: EpisodeRow | ActivationRow) -> tuple[int, bool]:
    """Sorts an activation right behind the last episode sealed before it."""
    if isinstance(row, ActivationRow):
        return row.after_sealed_seq, True
    return row.sealed_seq, False


def _whole(kind: type[T], text: Any, what: str) -> T | None:
    """What a column holds as JSON; None, and a line in the log, if a disk has damaged it."""
    try:
        return from_json(kind, text, what)
    except (WireError, TypeError) as error:
        log.error("damaged in the ledger, and left out: %s", printable(error))
        return None
