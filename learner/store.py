"""The learner's database: which episodes it holds, what became of each, and every update.

One transaction commits an update (checkpoint hash, version, every episode's disposition). It comes
after the checkpoint's fsync and rename and before the idempotent publish, so that a process killed
at any point resumes without losing an episode or training on one twice.
"""

import json
import logging
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.database import DatabasePlace, check_database
from agent.process.clock import unix_s
from agent.process.json_files import Misfit, parse_json
from agent.process.shown import printable
from agent.wire.errors import PerennialError
from agent.wire.messages import Outcome, Phase, SealedEpisode
from learner.store_schema import DISPOSITIONS, SCHEMA

log = logging.getLogger(__name__)


class StoreError(PerennialError):
    """The database refuses something that would break its invariants; nothing was changed."""


class EpisodeConflict(StoreError):
    """An episode contradicts what the store holds: same id, other bytes, or a slot taken twice."""


@dataclass(frozen=True)
class EpisodeRow:
    """One received episode; `disposition` is None until an update has used it."""

    episode_id: str
    order_id: str
    slot_id: str
    task: str
    phase: str
    version: str
    outcome: str
    steps: int
    counted: bool
    file: str
    disposition: str | None

    @property
    def success(self) -> bool:
        """Whether the episode counts as a success; every other counted outcome is a failure."""
        return self.outcome == Outcome.SUCCESS


@dataclass(frozen=True)
class UpdateRow:
    """One committed update: iteration `iteration` of task `task_index`, published as `version`."""

    update_id: int
    task_index: int
    iteration: int
    checkpoint: str  # folder name
    checkpoint_sha256: str
    version: str
    parent: str  # the version it was trained from
    metrics: dict[str, Any]
    activated: bool = False


_EPISODE_COLUMNS = ", ".join(EpisodeRow.__dataclass_fields__)


class LearnerStore:
    """SQLite, WAL, `synchronous=FULL`; safe to share between the receiver and the main thread."""

    def __init__(self, path: Path) -> None:
        """Open or create.

        Raises:
            StoreError: the file is damaged, or is no such database.
        """
        try:
            check_database(path)
            self._db = sqlite3.connect(path, check_same_thread=False, timeout=30.0)
            self._db.isolation_level = None  # transactions are explicit
            self._lock = threading.RLock()
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA foreign_keys=ON")
            self._db.executescript(SCHEMA)
            self._place = DatabasePlace(path)
        except sqlite3.DatabaseError as error:
            way_out = "restore it from a backup, or begin a new run in another folder"
            if isinstance(error, sqlite3.OperationalError):
                way_out = "check the disk and who may write there"
            raise StoreError(f"{path}: {printable(error)}; {way_out}") from error

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def next_epoch(self) -> int:
        """A learner epoch never used before, durably."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO counters VALUES ('epoch', 1)"
                " ON CONFLICT (name) DO UPDATE SET value = value + 1"
            )
            return int(self._one("SELECT value FROM counters WHERE name = 'epoch'")[0])

    def known_sha256(self, episode_id: str) -> str | None:
        """The hash under which an episode is held, None if it is not."""
        with self._lock:
            row = self._one("SELECT sha256 FROM episodes WHERE episode_id = ?", episode_id)
        return None if row is None else str(row[0])

    def add_episode(self, episode: SealedEpisode, file: str) -> None:
        """Record an episode whose file is already durable; a repeat changes nothing.

        Evaluation, surplus and aborted episodes get their disposition at once; an episode to
        train on gets it from the update that uses it.

        Raises:
            EpisodeConflict: the id is held with another hash, or its slot has a counted episode.
        """
        with self._transaction():
            known = self.known_sha256(episode.episode_id)
            if known == episode.sha256:
                return
            if known is not None:
                raise EpisodeConflict(
                    f"episode {episode.episode_id} is held with sha256 {known[:12]}, got "
                    f"{episode.sha256[:12]}"
                )
            try:
                self._db.execute(
                    "INSERT INTO episodes (episode_id, sha256, order_id, slot_id, suite, task,"
                    " split, init_state, phase, version, outcome, steps, counted, file,"
                    " disposition) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                    (
                        episode.episode_id, episode.sha256, episode.order_id, episode.slot_id,
                        episode.suite, episode.task, episode.split, episode.init_state,
                        str(episode.phase), episode.version, str(episode.outcome), episode.steps,
                        int(episode.counted), file, self._disposition(episode),
                    ),
                )  # fmt: skip
            except sqlite3.IntegrityError as error:
                raise EpisodeConflict(
                    f"slot {episode.slot_id} already has a counted episode; "
                    f"{episode.episode_id} cannot count too"
                ) from error

    def quarantine(self, episode_id: str, sha256: str, reason: str) -> None:
        """Record content that was refused; the episode held under this id, if any, stays."""
        with self._transaction():
            self._db.execute(
                "INSERT OR IGNORE INTO quarantined VALUES (?,?,?,?)",
                (episode_id, sha256, reason, unix_s()),
            )

    def reject(self, episode_id: str, reason: str) -> None:
        """Forget an episode that no update has used and none can; the agent is to be told.

        Raises:
            StoreError: it is not held, or was used.
        """
        with self._transaction():
            found = self._one(
                "SELECT sha256 FROM episodes WHERE episode_id = ? AND update_id IS NULL", episode_id
            )
            if found is None:
                raise StoreError(f"episode {episode_id} is unknown or used: cannot be rejected")
            self._db.execute("DELETE FROM episodes WHERE episode_id = ?", (episode_id,))
            self._db.execute(
                "INSERT OR IGNORE INTO quarantined VALUES (?,?,?,?)",
                (episode_id, found[0], reason, unix_s()),
            )
            self._db.execute("INSERT OR REPLACE INTO rejected VALUES (?,?)", (episode_id, reason))

    def rejected(self) -> dict[str, str]:
        """{episode id: why} of the rejections that the agent may not know of."""
        with self._lock:
            return dict(self._db.execute("SELECT episode_id, reason FROM rejected").fetchall())

    def forget_rejected(self, episode_ids: Iterable[str]) -> None:
        """The agent knows of these rejections."""
        with self._transaction():
            self._db.executemany(
                "DELETE FROM rejected WHERE episode_id = ?", [(e,) for e in episode_ids]
            )

    def refuse_orders(self, refused: Mapping[str, str]) -> dict[str, str]:
        """Record orders that cannot be carried out, {order id: why}; returns those that are new.

        What was collected of them teaches nothing: it is filtered.
        """
        new = {}
        with self._transaction():
            for order_id, reason in refused.items():
                cursor = self._db.execute(
                    "INSERT OR IGNORE INTO refused_orders VALUES (?,?,?)",
                    (order_id, reason, unix_s()),
                )
                if cursor.rowcount:
                    new[order_id] = reason
                    self._db.execute(
                        "UPDATE episodes SET disposition = 'filtered'"
                        " WHERE order_id = ? AND disposition IS NULL",
                        (order_id,),
                    )
        return new

    def refused_orders(self, order_ids: Iterable[str]) -> set[str]:
        """Those of the orders that were given up."""
        with self._lock:
            known = {row[0] for row in self._db.execute("SELECT order_id FROM refused_orders")}
        return known.intersection(order_ids)

    def counted_episodes(self, order_ids: Iterable[str]) -> dict[str, EpisodeRow]:
        """Counted episodes of the orders, by slot id."""
        found: dict[str, EpisodeRow] = {}
        with self._lock:
            for order_id in order_ids:
                rows = self._db.execute(
                    f"SELECT {_EPISODE_COLUMNS} FROM episodes WHERE order_id = ? AND counted = 1",
                    (order_id,),
                )
                found |= {row.slot_id: row for row in map(_episode_row, rows)}
        return found

    def last_episodes(self, task_index: int) -> list[EpisodeRow]:
        """The episodes that the last update of a task used, in order of arrival."""
        with self._lock:
            rows = self._db.execute(
                f"SELECT {_EPISODE_COLUMNS} FROM episodes WHERE update_id = (SELECT MAX(update_id)"
                " FROM updates WHERE task_index = ?) ORDER BY seq",
                (task_index,),
            )
            return [_episode_row(values) for values in rows]

    def used_files(self, but_last: bool = False) -> list[str]:
        """Names of the files of episodes that were used, trained on or filtered.

        but_last: without the last update's, which is made again should its checkpoint be lost.
        """
        with self._lock:
            rows = self._db.execute(
                "SELECT file FROM episodes WHERE update_id <= (SELECT MAX(update_id) FROM updates)"
                " - ? OR (update_id IS NULL AND disposition = 'filtered')",
                (int(but_last),),
            )
            return [str(file) for (file,) in rows]

    def undo_last_update(self) -> None:
        """Take the newest update back: its episodes wait for it again.

        Only for an update whose checkpoint is lost, and which is therefore made once more.
        """
        with self._transaction():
            newest, version = self._one(
                "SELECT update_id, version FROM updates ORDER BY update_id DESC LIMIT 1"
            )
            self._db.execute("INSERT OR IGNORE INTO undone VALUES (?)", (version,))
            self._db.execute(
                "UPDATE episodes SET disposition = NULL, update_id = NULL WHERE update_id = ?",
                (newest,),
            )
            self._db.execute("DELETE FROM updates WHERE update_id = ?", (newest,))

    def commit_update(self, update: UpdateRow, dispositions: dict[str, str]) -> None:
        """Commit an update and what it did with each episode, all or nothing.

        Raises:
            StoreError: an episode is unknown or already used, the update exists, or a
                disposition is not one of DISPOSITIONS.
        """
        unknown = sorted(set(dispositions.values()) - set(DISPOSITIONS))
        if unknown:
            raise StoreError(f"dispositions {unknown} are not among {DISPOSITIONS}")
        with self._transaction():
            values = (
                update.update_id, update.task_index, update.iteration, update.checkpoint,
                update.checkpoint_sha256, update.version, update.parent,
                json.dumps(update.metrics), unix_s(),
            )  # fmt: skip
            try:
                self._db.execute("INSERT INTO updates VALUES (?,?,?,?,?,?,?,?,0,?)", values)
            except sqlite3.IntegrityError as error:
                raise StoreError(f"update {update.update_id} is already committed") from error
            for episode_id, disposition in dispositions.items():
                cursor = self._db.execute(
                    "UPDATE episodes SET disposition = ?, update_id = ?"
                    " WHERE episode_id = ? AND disposition IS NULL",
                    (disposition, update.update_id, episode_id),
                )
                if cursor.rowcount != 1:
                    raise StoreError(
                        f"update {update.update_id}: episode {episode_id} is unknown or already "
                        "has a disposition; nothing was committed"
                    )

    def mark_activated(self, update_id: int) -> None:
        """Record that the agent serves this update's version (or served it once)."""
        with self._transaction():
            self._db.execute("UPDATE updates SET activated = 1 WHERE update_id = ?", (update_id,))

    def undone_versions(self) -> set[str]:
        """What was published by updates that were taken back."""
        with self._lock:
            return {str(row[0]) for row in self._db.execute("SELECT version FROM undone")}

    def note_lost_activation(self) -> None:
        """The agent knows of no activation: the newest version is to be activated again."""
        with self._transaction():
            self._db.execute(
                "UPDATE updates SET activated = 0"
                " WHERE update_id = (SELECT MAX(update_id) FROM updates)"
            )

    def last_update(self) -> UpdateRow | None:
        """The newest committed update."""
        return next(iter(self.last_updates(1)), None)

    def last_updates(self, count: int) -> list[UpdateRow]:
        """The newest committed updates, the last one first."""
        names = list(UpdateRow.__dataclass_fields__)
        with self._lock:
            rows = self._db.execute(
                f"SELECT {', '.join(names)} FROM updates ORDER BY update_id DESC LIMIT ?", (count,)
            ).fetchall()
        return [_update_row(dict(zip(names, row, strict=True))) for row in rows]

    def version_after(self, task_index: int) -> str | None:
        """The last version trained on the task with this index."""
        with self._lock:
            row = self._one(
                "SELECT version FROM updates WHERE task_index = ? ORDER BY update_id DESC LIMIT 1",
                task_index,
            )
        return None if row is None else str(row[0])

    def parent_of(self, update_id: int) -> str:
        """The version that a committed update has improved."""
        with self._lock:
            row = self._one("SELECT parent FROM updates WHERE update_id = ?", update_id)
        return str(row[0])

    def counts(self) -> dict[str, int]:
        """Episodes held (`collected`), by disposition, waiting for one, and quarantined."""
        with self._lock:
            rows = self._db.execute("SELECT disposition, COUNT(*) FROM episodes GROUP BY 1")
            by_disposition = {name or "pending": int(count) for name, count in rows}
            quarantined = self._one("SELECT COUNT(*) FROM quarantined")[0]
        counts = {name: by_disposition.get(name, 0) for name in (*DISPOSITIONS, "pending")}
        return {"collected": sum(counts.values()), **counts, "quarantined": int(quarantined)}

    def training_curves(self) -> dict[str, list[tuple[int, int]]]:
        """By task, (successes, trials) of the episodes that each update used, in order."""
        with self._lock:
            rows = self._db.execute(
                "SELECT task, SUM(outcome = ?), COUNT(*) FROM episodes"
                " WHERE disposition IN ('trained', 'filtered') AND update_id IS NOT NULL"
                " GROUP BY update_id, task"
                " ORDER BY update_id, task",
                (Outcome.SUCCESS,),
            ).fetchall()
        curves: dict[str, list[tuple[int, int]]] = {}
        for task, successes, trials in rows:
            curves.setdefault(task, []).append((int(successes), int(trials)))
        return curves

    def totals(self) -> tuple[dict[str, int], int]:
        """Episodes by disposition, and updates committed."""
        counts = self.counts()
        with self._lock:
            updates = int(self._one("SELECT COUNT(*) FROM updates")[0])
        return {name: counts[name] for name in DISPOSITIONS}, updates

    def _disposition(self, episode: SealedEpisode) -> str | None:
        known = immediate_disposition(episode)
        if known is None and self.refused_orders([episode.order_id]):
            return "filtered"  # as those that came before it was given up
        return known

    def _one(self, sql: str, *parameters: object) -> Any:
        return self._db.execute(sql, parameters).fetchone()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
                self._place.check()
            except BaseException:
                if self._db.in_transaction:  # a full disk may have undone it already
                    self._db.execute("ROLLBACK")
                raise


def immediate_disposition(episode: SealedEpisode) -> str | None:
    """The disposition an episode has on arrival, None if an update decides it."""
    if episode.outcome == Outcome.ABORTED:
        return "aborted"
    if not episode.counted:
        return "surplus"
    return "eval" if episode.phase == Phase.EVAL else None


def _episode_row(values: tuple[Any, ...]) -> EpisodeRow:
    row = EpisodeRow(*values)
    return EpisodeRow(**{**row.__dict__, "counted": bool(row.counted)})


def _update_row(values: dict[str, Any]) -> UpdateRow:
    try:
        metrics = parse_json(str(values["metrics"]).encode(), {str: object})
    except Misfit as error:
        log.error("update %s: its figures are damaged and left out: %s", values["update_id"], error)
        metrics = {}
    return UpdateRow(**values | {"metrics": metrics, "activated": bool(values["activated"])})
