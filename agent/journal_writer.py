"""The journal's thread: it owns every episode file and every ledger write of the agent.

Each round takes what has piled up, writes it, syncs each sealed file once and commits one
transaction for all of it (group commit). Order at a seal: end record, flush, fdatasync, sync of
the folder, ledger commit (which waits for the disk), `on_durable`. An episode's row is committed
before its file exists, so a file without a row is never ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from agent.durable import sync_folder
from agent.episode import ChunkRecord, EndRecord, EpisodeMeta
from agent.episode_writer import EpisodeWriter
from agent.ledger import Ledger, SealedRow
from agent.recovery import episode_path

_MAX_ROUND = 512  # commands of one group commit
_IDLE_WAIT_S = 1.0


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


@dataclass(frozen=True, slots=True)
class Change:
    """A ledger write; `then` gets its result once it is durable."""

    apply: Callable[[Ledger], Any]
    then: Callable[[Any], None]


@dataclass(frozen=True, slots=True)
class Stop:
    """Finish what came before and return."""


Command = Open | Append | Seal | Change | Stop


@dataclass(slots=True)
class _Round:
    """What one group commit makes durable."""

    opened: dict[str, Open] = field(default_factory=dict)
    seals: list[Seal] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.opened or self.seals or self.changes)


class JournalWriter:
    """Carries out commands; see the module's docstring for the promises."""

    def __init__(
        self,
        folder: Path,
        ledger: Ledger,
        flush_interval_s: float,
        on_synced: Callable[[float], None],
    ) -> None:
        self._folder = folder
        self._on_synced = on_synced
        self._ledger = ledger
        self._flush_interval_s = flush_interval_s
        self.written_bytes = 0  # of chunks, ever; other threads read it
        self._writers: dict[str, EpisodeWriter] = {}
        self._unsynced: dict[str, EpisodeWriter] = {}  # with chunks newer than the last sync
        self._sync_due_s = 0.0  # of the oldest of them, monotonic
        self._held: list[Command] = []  # for episodes whose row is not durable yet
        self._folder_changed = False
        self._stopping = False

    def run(self, queue: SimpleQueue[Command]) -> None:
        """Serve `queue` until Stop. Raises whatever the disk or a callback raises, and ends."""
        try:
            while self._held or not self._stopping:
                todo = self._write(self._take(queue))
                if todo:
                    self._commit(todo)
                if self._unsynced and (self._stopping or time.monotonic() >= self._sync_due_s):
                    self._sync()
        finally:
            for writer in self._writers.values():
                writer.abandon()

    def _take(self, queue: SimpleQueue[Command]) -> list[Command]:
        """What was held, then what has piled up; waits for the first one if there is nothing."""
        commands, self._held = self._held, []
        wait_s = self._sync_due_s - time.monotonic() if self._unsynced else _IDLE_WAIT_S
        try:
            if not commands:
                commands.append(queue.get(timeout=max(wait_s, 0.0)))
            while len(commands) < _MAX_ROUND:
                commands.append(queue.get_nowait())
        except Empty:
            pass  # nothing more to take now
        return commands

    def _write(self, commands: list[Command]) -> _Round:
        """Buffer the chunks; returns what has to be committed."""
        todo = _Round()
        for command in commands:
            match command:
                case Open(meta):
                    todo.opened[meta.episode_id] = command
                case Append(episode_id) | Seal(episode_id) if episode_id in todo.opened:
                    self._held.append(command)
                case Append(episode_id, chunk):
                    self._append(episode_id, chunk)
                case Seal():
                    todo.seals.append(command)
                case Change():
                    todo.changes.append(command)
                case Stop():
                    self._stopping = True
        return todo

    def _append(self, episode_id: str, chunk: ChunkRecord) -> None:
        if not self._unsynced:
            self._sync_due_s = time.monotonic() + self._flush_interval_s
        writer = self._unsynced[episode_id] = self._writers[episode_id]
        writer.append(chunk)
        self.written_bytes += chunk.size_bytes

    def _commit(self, todo: _Round) -> None:
        files = []
        for seal in todo.seals:
            self._unsynced.pop(seal.episode_id, None)
            writer = self._writers.pop(seal.episode_id)
            with self._timed():
                files.append(writer.seal(seal.end))
        if files:
            self._sync_folder()
        with self._ledger.transaction():
            for opening in todo.opened.values():
                self._ledger.add_episode(opening.meta, opening.owner)
            rows = [
                self._ledger.seal_episode(seal.episode_id, seal.end, seal.counted, *file)
                for seal, file in zip(todo.seals, files, strict=True)
            ]
            results = [change.apply(self._ledger) for change in todo.changes]
        for seal, row in zip(todo.seals, rows, strict=True):
            seal.on_durable(row)
        for change, result in zip(todo.changes, results, strict=True):
            change.then(result)
        for episode_id, opening in todo.opened.items():
            path = episode_path(self._folder, episode_id)
            self._writers[episode_id] = EpisodeWriter(path, opening.meta)
            self._folder_changed = True

    def _sync(self) -> None:
        """Make every buffered chunk survive a loss of power."""
        for writer in self._unsynced.values():
            with self._timed():
                writer.sync()
        self._unsynced.clear()
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
