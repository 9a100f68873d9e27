"""The journal: what the server hands its episodes, orders and activations to.

Records are checked here, in the caller's thread, and written by the journal's own thread
(`agent.journal_writer`), which reports back when they survive a loss of power.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path
from queue import SimpleQueue
from types import MappingProxyType

from agent.durable import (
    LOST,
    StorageError,
    database_errors,
    explain_trouble,
    locked,
    make_folder,
    storage_errors,
    sync_folder,
)
from agent.episode import ChunkRecord, EndRecord, EpisodeChecker, EpisodeCorrupt, EpisodeMeta
from agent.journal_writer import (
    Append,
    Change,
    Command,
    GiveUp,
    JournalWriter,
    Open,
    Seal,
    Stop,
    Trouble,
)
from agent.ledger import ActivationRow, EpisodeRow, EpisodeState, Ledger, LedgerReader, SealedRow
from agent.recovery import Recovered, episode_path, recover_state, set_aside
from agent.wire.errors import PerennialError, WireError
from agent.wire.messages import Order

LEDGER_NAME = "agent.db"
EPISODES_NAME = "episodes"
QUEUE_LIMIT_BYTES = 256 << 20  # of chunks: bounds the memory that a slow disk can cost
CHANGES_MAX = 64  # orders, activations and acknowledgements that wait in trouble
STALL_S = 30.0  # after which a disk that says nothing counts as trouble

_log = logging.getLogger(__name__)


class JournalFailed(PerennialError):
    """The journal has stopped for what time does not mend; nothing more becomes durable."""


class Journal:
    """The agent's durable memory under `root`: agent.db, episodes/, lock.

    Call `recover`, then `start`, then the rest. `open`, `append` and `seal` are for one caller
    thread; all callbacks run in the journal's thread and must not block or raise.

    Args:
        root: state directory, created if needed; held alone until `close`.
        flush_interval_s: at most this long after `append` a chunk survives a loss of power.
        queue_limit_bytes: chunks that wait for the disk; beyond it `append` is refused.
        on_synced: gets the seconds that each wait for the disk took.
    """

    def __init__(
        self,
        root: Path,
        flush_interval_s: float = 0.25,
        queue_limit_bytes: int = QUEUE_LIMIT_BYTES,
        on_synced: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """Raises StateLocked if another process holds `root`, StorageError."""
        if not flush_interval_s > 0:
            raise ValueError(f"flush_interval_s must be > 0, got {flush_interval_s}")
        self._root = root
        self._folder = root / EPISODES_NAME
        self._queue: SimpleQueue[Command] = SimpleQueue()
        self._queue_limit_bytes = queue_limit_bytes
        self._put_bytes = self._put_changes = 0  # ever, the former of chunks; the caller's thread
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._failure: JournalFailed | None = None
        self._checkers: dict[str, EpisodeChecker] = {}  # of open episodes; the caller's thread
        self._resources = ExitStack()
        with self._resources as stack:
            stack.enter_context(locked(root))
            with storage_errors(self._folder):
                make_folder(self._folder)
            self._ledger = Ledger(root / LEDGER_NAME)
            stack.callback(self._ledger.close)
            self._reader = LedgerReader(root / LEDGER_NAME)
            stack.callback(self._reader.close)
            self._writer = JournalWriter(self._folder, self._ledger, flush_interval_s, on_synced)
            self._resources = stack.pop_all()

    # ---- life --------------------------------------------------------------------------------

    def recover(self) -> Recovered:
        """Seal, set aside or remove what the last process left. Raises StorageError."""
        with storage_errors(self._root), database_errors(self._root / LEDGER_NAME):
            recovered = recover_state(self._folder, self._ledger)
            sync_folder(self._root)
            sync_folder(self._root.parent)
        return recovered

    def start(self, on_aborted: Callable[[list[SealedRow]], None] = lambda rows: None) -> None:
        """on_aborted: gets the rows of given-up episodes once they are durable."""
        self._writer.on_aborted = on_aborted
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Write what was handed over, then let go of `root`; open episodes stay torn.

        Raises JournalFailed if something handed over is not durable.
        """
        if self._thread.is_alive():
            self._queue.put(Stop())
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                raise JournalFailed(f"the journal did not stop within {timeout_s:.1f} s")
        self._resources.close()
        self._check_alive()

    @property
    def failure(self) -> JournalFailed | None:
        """Why the journal has stopped; callbacks still pending will then never come."""
        return self._failure

    @property
    def trouble(self) -> Trouble | None:
        """What keeps the disk from taking anything at present; it is tried again all the time."""
        trouble, busy_since_s = self._writer.trouble, self._writer.busy_since_s
        if trouble is None and busy_since_s is not None:
            silent_s = time.monotonic() - busy_since_s
            if silent_s > STALL_S:
                text = f"{self._root}: the disk has not answered for {silent_s:.0f} s; look at it"
                return Trouble(busy_since_s, text)
        return trouble

    @property
    def is_full(self) -> bool:
        """Whether so many chunks wait for the disk that no more are taken."""
        return self.waiting_bytes >= self._queue_limit_bytes

    # ---- writing -----------------------------------------------------------------------------

    def open(self, meta: EpisodeMeta, owner: str = "") -> None:
        """Begin an episode; owner: the client whose key opens it, "" where none is needed.

        Raises EpisodeInvalid, JournalFailed, WireError("conflict", "overloaded").
        """
        if meta.episode_id in self._checkers:
            raise WireError("conflict", f"episode {meta.episode_id} is open already")
        self._check_room()
        self._checkers[meta.episode_id] = EpisodeChecker(meta)
        self._put(Open(meta, owner))

    def append(self, episode_id: str, chunk: ChunkRecord) -> None:
        """Add the next chunk; its arrays must not change afterwards.

        Raises WireError("unknown_episode", "overloaded"), EpisodeInvalid, JournalFailed; the
        episode is then as it was.
        """
        checker = self._checker(episode_id)
        self._check_room()
        checker.chunk(chunk)
        self._put(Append(episode_id, chunk))
        self._put_bytes += chunk.size_bytes

    def seal(
        self,
        episode_id: str,
        end: EndRecord,
        counted: bool,
        on_durable: Callable[[SealedRow], None],
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        """End an episode. Raises WireError("unknown_episode"), EpisodeInvalid, JournalFailed.

        on_lost: called instead of `on_durable` if it is given up before its end is durable.
        """
        self._checker(episode_id).end(end)
        self._put(Seal(episode_id, end, counted, on_durable, on_lost))
        del self._checkers[episode_id]

    def give_up(self, episode_id: str, reason: str) -> None:
        """Keep no more of an episode, unless its end is durable already. Raises JournalFailed.

        What there is of it is sealed as aborted, with `reason`, once the disk takes it.
        """
        self._checkers.pop(episode_id, None)
        self._put(GiveUp(episode_id, reason))

    def post_orders(
        self,
        orders: Iterable[Order],
        on_durable: Callable[[], None],
        held: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Add orders; those known by id are left alone.

        held: {slot id: episode id} of slots that need no episode.

        Raises JournalFailed, WireError("overloaded") while the disk takes nothing.
        """
        posted, needless = list(orders), dict(held)

        def apply(ledger: Ledger) -> None:
            ledger.add_orders(posted)
            ledger.hold_slots(needless)

        self._put_change(Change(apply, lambda _: on_durable()))

    def set_active(self, version: str, on_durable: Callable[[ActivationRow], None]) -> None:
        """Add `version` to the history of activations.

        Raises JournalFailed, WireError("overloaded") while the disk takes nothing.
        """
        self._put_change(Change(lambda ledger: ledger.add_activation(version), on_durable))

    def ack(self, hashes: Mapping[str, str], on_durable: Callable[[dict[str, str]], None]) -> None:
        """The learner holds {episode id: sha256}; their files are removed once this is durable.

        `on_durable` gets {refused id: why}, empty if all is well. Raises JournalFailed,
        WireError("overloaded") while the disk takes nothing and many wait: they make room.
        """
        held = dict(hashes)

        def then(result: tuple[list[str], dict[str, str]]) -> None:
            acked, refused = result
            for episode_id in acked:
                path = episode_path(self._folder, episode_id)
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:  # the next start removes it
                    _log.warning("%s", explain_trouble(error, path))
            on_durable(refused)

        self._put_change(Change(lambda ledger: ledger.ack(held), then), is_tried=True)

    def reject(
        self,
        episodes: Mapping[str, str],
        on_durable: Callable[[dict[str, str]], None],
        states: Collection[EpisodeState] = (EpisodeState.SEALED, EpisodeState.ACKED),
    ) -> None:
        """Quarantine those of {episode id: why} in one of the `states`; files are set aside.

        `on_durable` gets {episode id: slot id if it counted, else ""}. Raises JournalFailed.
        """
        bad = dict(episodes)

        def then(freed: dict[str, str]) -> None:
            for episode_id in freed:
                path = episode_path(self._folder, episode_id)
                try:
                    if path.exists():
                        set_aside(path, bad[episode_id])
                except (OSError, StorageError) as error:  # the next start does it
                    _log.warning("%s is not set aside: %s", path, error)
            on_durable(freed)

        self._put_change(Change(lambda ledger: ledger.reject(bad, states), then), is_tried=True)

    # ---- reading (a connection of its own: sees what is durable) -----------------------------

    def fetch_rows(self, after_seq: int, limit: int) -> list[SealedRow]:
        """Sealed, unacknowledged episodes with sealed_seq > after_seq, in seal order."""
        with database_errors(self._root / LEDGER_NAME):
            return self._reader.unacked(after_seq, limit)

    def row(self, episode_id: str) -> EpisodeRow | None:
        """What the ledger knows of one episode."""
        with database_errors(self._root / LEDGER_NAME):
            return self._reader.episode(episode_id)

    def owner(self, episode_id: str) -> str | None:
        """The client whose key opened an episode; None: unknown, or older than that column."""
        with database_errors(self._root / LEDGER_NAME):
            return self._reader.owner(episode_id)

    def history(self) -> Iterator[EpisodeRow | ActivationRow]:
        """Every durable seal and activation, in order; finish with it before reading on."""
        with database_errors(self._root / LEDGER_NAME):
            yield from self._reader.history()

    def payload(self, row: SealedRow) -> bytes:
        """The file of a sealed episode; any thread may ask.

        Raises EpisodeCorrupt if it was altered or cannot be read, StorageError for what passes.
        """
        with self._reading(row.episode_id) as file:
            data = file.read(row.size_bytes + 1)
        self._check_hash(row, hashlib.sha256(data).hexdigest())
        return data

    def verify(self, row: SealedRow) -> None:
        """Read through the file of a sealed episode, in bounded memory; errors as of `payload`."""
        with self._reading(row.episode_id) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        self._check_hash(row, sha256)

    def part(self, episode_id: str, offset: int, length: int) -> bytes:
        """Some of a sealed episode's file, nothing of it checked; errors as of `payload`."""
        with self._reading(episode_id) as file:
            file.seek(offset)
            return file.read(length)

    @contextmanager
    def _reading(self, episode_id: str) -> Iterator[BufferedReader]:
        path = episode_path(self._folder, episode_id)
        try:
            with open(path, "rb") as file:
                yield file
        except OSError as error:
            if error.errno in LOST:
                raise EpisodeCorrupt(f"{path}: {error.strerror}") from error
            with storage_errors(path):
                raise

    def _check_hash(self, row: SealedRow, sha256: str) -> None:
        if sha256 != row.sha256:
            path = episode_path(self._folder, row.episode_id)
            raise EpisodeCorrupt(f"{path}: SHA-256 {sha256}, sealed with {row.sha256}")

    # ---- the caller's side of the queue ------------------------------------------------------

    def _checker(self, episode_id: str) -> EpisodeChecker:
        checker = self._checkers.get(episode_id)
        if checker is None:
            raise WireError("unknown_episode", f"{episode_id!r:.60} is not open in the journal")
        return checker

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise JournalFailed(str(self._failure))  # a new one: an old one's traceback grows

    def _check_room(self) -> None:
        self._check_alive()
        if self.is_full:
            raise WireError(
                "overloaded",
                f"{self.waiting_bytes >> 20} MiB of chunks wait for the disk; try later",
            )

    @property
    def waiting_bytes(self) -> int:
        """Of chunks that were handed over and not yet written; for the caller's thread."""
        return self._put_bytes - self._writer.written_bytes

    def _put_change(self, change: Change, *, is_tried: bool = False) -> None:
        """is_tried: it may wait while the disk takes nothing."""
        trouble = self.trouble
        waiting = self._put_changes - self._writer.changes_done
        if trouble is not None and (not is_tried or waiting >= CHANGES_MAX):
            raise WireError("overloaded", f"nothing can be kept now ({trouble.text}); try later")
        self._put(change)
        self._put_changes += 1

    def _put(self, command: Command) -> None:
        self._check_alive()
        self._queue.put(command)

    def _run(self) -> None:
        try:
            self._writer.run(self._queue)
        except Exception as error:  # the one place: every later call gets it as JournalFailed
            told = error
            if isinstance(error, OSError | sqlite3.Error):
                told = StorageError(self._writer.explain(error))
            else:
                _log.exception("the journal has stopped")
            self._failure = JournalFailed(
                f"the journal in {self._root} has stopped: {type(error).__name__}: {told}; "
                "mend the cause and start the server again"
            )
