"""The journal's thread: it owns every episode file and every ledger write of the agent.

Each round takes what has piled up, writes it, syncs each sealed file once and commits one
transaction for all of it (group commit). Order at a seal: end record, flush, fdatasync, sync of
the folder, ledger commit (which waits for the disk), `on_durable`. An episode's row is committed
before its file exists, so a file without a row is never ours.

What the disk refuses for now is tried again, from where it was, until it is taken; meanwhile
`trouble` says so, chunks wait in the queue, and whoever hands them over may give episodes up. A
given-up episode is sealed as aborted once the disk takes it. Any other error ends the thread.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from agent.durable import explain_trouble, may_pass, sync_folder, write_synced
from agent.episode import ChunkRecord, EndRecord, EpisodeMeta
from agent.episode_writer import EpisodeWriter
from agent.ledger import Ledger, SealedRow
from agent.recovery import PROBE_NAME, episode_path, seal_open

_MAX_ROUND = 512  # commands of one group commit
_IDLE_WAIT_S = 1.0
RETRY_PAUSE_S = 0.25  # between attempts at what the disk refuses
_PROBE_BYTES = 1 << 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Open:
    meta: EpisodeMeta
    owner: str


@dataclass(frozen=True, slots=True)
class Append:
    episode_id: str
    chunk: ChunkRecord


@dataclass(frozen=True, slots=True)
class Seal:
    episode_id: str
    end: EndRecord
    counted: bool
    on_durable: Callable[[SealedRow], None]
    on_lost: Callable[[], None]  # it was given up before it was durable


@dataclass(frozen=True, slots=True)
class Change:
    """A ledger write; `then` gets its result once it is durable."""

    apply: Callable[[Ledger], Any]
    then: Callable[[Any], None]


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Keep no more of an open episode, unless its seal is durable already."""

    episode_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Finish what came before and return."""


Command = Open | Append | Seal | Change | GiveUp | Stop


@dataclass(frozen=True, slots=True)
class Trouble:
    """The disk does not take what it is given: since when (monotonic), and why in one line."""

    since_s: float
    text: str


@dataclass(slots=True)
class _Round:
    """What one group commit makes durable; files: what is known of those sealed so far."""

    opened: dict[str, Open] = field(default_factory=dict)
    seals: dict[str, Seal] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    files: dict[str, tuple[str, int]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.opened or self.seals or self.changes)


class JournalWriter:
    """Carries out commands; see the module's docstring for the promises.

    Args:
        on_synced: gets the seconds that each wait for the disk took.
        on_aborted: gets the rows of given-up episodes once they are durable.
    """

    def __init__(
        self,
        folder: Path,
        ledger: Ledger,
        flush_interval_s: float,
        on_synced: Callable[[float], None],
    ) -> None:
        self._folder = folder
        self._on_synced = on_synced
        self.on_aborted: Callable[[list[SealedRow]], None] = lambda rows: None
        self._ledger = ledger
        self._flush_interval_s = flush_interval_s
        self.written_bytes = 0  # of chunks, ever; other threads read it
        self.changes_done = 0  # likewise
        self.trouble: Trouble | None = None  # likewise
        self.busy_since_s: float | None = None  # likewise; while the disk is being written
        self._writers: dict[str, EpisodeWriter] = {}
        self._unsynced: dict[str, EpisodeWriter] = {}  # with chunks newer than the last sync
        self._sync_due_s = 0.0  # of the oldest of them, monotonic
        self._todo = _Round()
        self._to_create: dict[str, EpisodeMeta] = {}  # with a row and without a file
        self._held: list[Command] = []  # for episodes whose row is not durable yet, or in trouble
        self._given_up: dict[str, str] = {}  # episode id -> why, until that is durable
        self._folder_changed = False
        self._stopping = False

    def run(self, queue: SimpleQueue[Command]) -> None:
        """Serve `queue` until Stop. Raises what time does not mend, and ends."""
        try:
            while self._held or not self._stopping:
                commands = self._give_up(self._take(queue))
                if self.trouble is None:
                    self._write(commands)
                else:
                    self._held = commands
                self._attempt()
        finally:
            for writer in self._writers.values():
                writer.abandon()

    def _take(self, queue: SimpleQueue[Command]) -> list[Command]:
        """What was held, then what has piled up; waits for the first one if there is nothing.

        In trouble it waits a while, so that the disk is not asked all the time.
        """
        commands, self._held = self._held, []
        if self.trouble is not None:
            time.sleep(RETRY_PAUSE_S)
        wait_s = self._sync_due_s - time.monotonic() if self._unsynced else _IDLE_WAIT_S
        try:
            if not commands and self.trouble is None:
                commands.append(queue.get(timeout=max(wait_s, 0.0)))
            while len(commands) < _MAX_ROUND or self.trouble is not None:
                commands.append(queue.get_nowait())
        except Empty:
            pass  # nothing more to take now
        return commands

    def _write(self, commands: list[Command]) -> None:
        """Buffer the chunks; the rest is for the next commit."""
        todo = self._todo
        for command in commands:
            match command:
                case Open(meta):
                    todo.opened[meta.episode_id] = command
                case Append(episode_id) | Seal(episode_id) if episode_id in todo.opened:
                    self._held.append(command)
                case Append(episode_id, chunk):
                    self._append(episode_id, chunk)
                case Seal(episode_id):
                    todo.seals[episode_id] = command
                case Change():
                    todo.changes.append(command)
                case Stop():
                    self._stopping = True

    def _append(self, episode_id: str, chunk: ChunkRecord) -> None:
        if not self._unsynced:
            self._sync_due_s = time.monotonic() + self._flush_interval_s
        writer = self._unsynced[episode_id] = self._writers[episode_id]
        writer.append(chunk)
        self.written_bytes += chunk.size_bytes

    # ---- trouble -------------------------------------------------------------------------------

    def _attempt(self) -> None:
        """Writes all that is due. Raises what time does not mend, also when it shall stop."""
        self.busy_since_s = time.monotonic()
        try:
            self._work()
            if self.trouble is not None:
                self._probe()
        except Exception as error:
            is_stopping = self._stopping or any(isinstance(c, Stop) for c in self._held)
            if is_stopping or not may_pass(error):
                raise
            self._suffer(error)
        else:
            if self.trouble is not None:
                lasted_s = time.monotonic() - self.trouble.since_s
                _log.warning("the journal is written again, after %.1f s", lasted_s)
                self.trouble = None
        finally:
            self.busy_since_s = None

    def _suffer(self, error: Exception) -> None:
        text, since_s = self.explain(error), time.monotonic()
        if self.trouble is not None:
            since_s = self.trouble.since_s
        if self.trouble is None or self.trouble.text != text:
            _log.error("the journal is not written, which is tried again: %s", text)
        self.trouble = Trouble(since_s, text)

    def explain(self, error: Exception) -> str:
        """One line that names the file, or the folder, which the error is about."""
        is_of_ledger = isinstance(error, sqlite3.Error)
        return explain_trouble(error, self._ledger.path if is_of_ledger else self._folder)

    def _probe(self) -> None:
        """Writes more than the least: a disk that is all but full is not yet over its trouble."""
        path = self._folder / PROBE_NAME
        path.unlink(missing_ok=True)  # of an attempt that was refused
        try:
            write_synced(path, bytes(_PROBE_BYTES))
        finally:
            path.unlink(missing_ok=True)
        with self._ledger.transaction():
            self._ledger.touch()

    def _give_up(self, commands: list[Command]) -> list[Command]:
        """Takes in what is given up; returns what is left of the commands."""
        given_up = {c.episode_id: c.reason for c in commands if isinstance(c, GiveUp)}
        for episode_id, reason in given_up.items():
            self._forget(episode_id, reason)
        left: list[Command] = []
        for command in commands:
            match command:
                case GiveUp():
                    pass
                case Open(meta) if meta.episode_id in given_up:
                    self._given_up.pop(meta.episode_id, None)  # it has no row
                case Append(episode_id, chunk) if episode_id in given_up:
                    self.written_bytes += chunk.size_bytes
                case Seal(episode_id) if episode_id in given_up:
                    command.on_lost()
                case _:
                    left.append(command)
        return left

    def _forget(self, episode_id: str, reason: str) -> None:
        """Drops what is pending of an episode; one whose seal is durable stays as it is."""
        todo = self._todo
        if todo.opened.pop(episode_id, None) is not None:
            return  # it has no row
        self._unsynced.pop(episode_id, None)
        writer = self._writers.pop(episode_id, None)
        if writer is not None:
            writer.abandon()
        todo.files.pop(episode_id, None)
        seal = todo.seals.pop(episode_id, None)
        if seal is not None:
            seal.on_lost()
        self._to_create.pop(episode_id, None)
        self._given_up[episode_id] = reason  # of no account where no row is open

    def _seal_given_up(self) -> None:
        for reason in set(self._given_up.values()):
            ids = {i for i, why in self._given_up.items() if why == reason}
            rows, distrusted = seal_open(self._folder, self._ledger, reason, ids)
            for episode_id, (_, why) in distrusted.items():
                _log.warning("quarantined %s: %s", episode_id, why)
            for episode_id in ids:
                del self._given_up[episode_id]
            self.on_aborted(rows)

    # ---- the disk ------------------------------------------------------------------------------

    def _work(self) -> None:
        """All that is due; after an error it goes on where it was."""
        if self._todo:
            self._commit()
        self._create()
        if self._given_up:
            self._seal_given_up()
        if self._unsynced and (self._stopping or time.monotonic() >= self._sync_due_s):
            self._sync()

    def _commit(self) -> None:
        todo = self._todo
        for seal in todo.seals.values():
            if seal.episode_id not in todo.files:
                with self._timed():
                    file = self._writers[seal.episode_id].seal(seal.end)
                todo.files[seal.episode_id] = file
                self._unsynced.pop(seal.episode_id, None)
                del self._writers[seal.episode_id]
        if todo.seals:
            self._sync_folder()
        with self._ledger.transaction():
            for opening in todo.opened.values():
                self._ledger.add_episode(opening.meta, opening.owner)
            rows = {
                i: self._ledger.seal_episode(i, seal.end, seal.counted, *todo.files[i])
                for i, seal in todo.seals.items()
            }
            results = [change.apply(self._ledger) for change in todo.changes]
        self._todo = _Round()
        self._to_create |= {i: opening.meta for i, opening in todo.opened.items()}
        for episode_id, seal in todo.seals.items():
            seal.on_durable(rows[episode_id])
        for change, result in zip(todo.changes, results, strict=True):
            self.changes_done += 1
            change.then(result)

    def _create(self) -> None:
        """Begins the files of episodes whose rows are durable."""
        while self._to_create:
            episode_id, meta = next(iter(self._to_create.items()))
            writer = EpisodeWriter(episode_path(self._folder, episode_id), meta)
            self._writers[episode_id] = writer
            self._folder_changed = True
            del self._to_create[episode_id]

    def _sync(self) -> None:
        """Make every buffered chunk survive a loss of power."""
        for episode_id, writer in list(self._unsynced.items()):
            with self._timed():
                writer.sync()
            del self._unsynced[episode_id]
        self._sync_folder()

    def _sync_folder(self) -> None:
        if self._folder_changed:
            with self._timed():
                sync_folder(self._folder)
            self._folder_changed = False

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started_s = time.perf_counter()
        yield
        self._on_synced(time.perf_counter() - started_s)
