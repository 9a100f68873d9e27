"""The receiving thread: fetch sealed episodes, make them durable here, acknowledge them."""

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from agent.durable import LOST, make_folder, replace_file, storage_errors, sync_folder
from agent.episode import (
    Episode,
    EpisodeCorrupt,
    EpisodeInvalid,
    check_episode_id,
    read_episode,
)
from agent.process.shown import printable
from agent.wire.errors import WireError
from agent.wire.messages import LearnerWelcome, Order, SealedEpisode
from learner.link import AgentLink
from learner.patience import until_taken
from learner.stopping import Stopped
from learner.store import EpisodeConflict, EpisodeRow, LearnerStore
from learner.unusable import UnusableEpisode

log = logging.getLogger(__name__)

RECEIVER_THREAD = "receiver"
FETCH_LIMIT = 16
FETCH_WAIT_S = 1.0
PART_BYTES = 4 << 20  # of a large episode: what is in memory of it at once
PARTIAL_PREFIX = ".partial-"


class Inbox:
    """Episodes on disk and in the store; lets a thread wait until slots are filled."""

    def __init__(
        self,
        folder: Path,
        store: LearnerStore,
        on_kept: Callable[[SealedEpisode], None] = lambda episode: None,
        on_quarantined: Callable[[], None] = lambda: None,
        on_refused: Callable[[str, str], None] = lambda order_id, why: None,
    ) -> None:
        """on_kept: called with every episode that is new and durable, on the receiving thread.
        on_quarantined: called for every episode that is put aside. on_refused: called with every
        order that is given up, and why.
        """
        self.folder, self.store = folder, store
        self._on_kept, self._on_quarantined, self._on_refused = on_kept, on_quarantined, on_refused
        # Asked before an episode is read or kept, by either thread, which shows that it gets on;
        # and whether to give up waiting for a disk that takes nothing.
        self.should_stop: Callable[[], bool] = lambda: False
        self.restarts = 0  # of the agent: how often an epoch was opened with it
        self.quarantine = folder / "quarantine"
        with storage_errors(folder):
            make_folder(self.quarantine)
        self._arrived = threading.Condition()
        self._failure: BaseException | None = None

    def accept(self, episodes: Sequence[SealedEpisode]) -> dict[str, str]:
        """Make episodes durable; returns {episode_id: sha256} of those to acknowledge.

        An episode whose bytes do not have the stated hash, or whose id is held with other bytes,
        is put aside and not acknowledged.
        """
        accepted = {}
        for episode in episodes:
            self.should_stop()
            problem = self._problem(episode)
            if problem is None:
                problem = self._keep(episode)
            if problem is None:
                accepted[episode.episode_id] = episode.sha256
            else:
                self._put_aside(episode, problem)
        with self._arrived:
            self._arrived.notify_all()
        return accepted

    def accept_file(self, episode: SealedEpisode, path: Path) -> bool:
        """Take a large episode whose bytes lie, checked, at `path` in this folder."""
        known = self.store.known_sha256(episode.episode_id)
        if known is None:
            with storage_errors(path), path.open("rb") as file:
                os.fsync(file.fileno())
            target = self.folder / f"{episode.episode_id}.mcap"
            with storage_errors(target):
                path.replace(target)
                sync_folder(self.folder)
            self.store.add_episode(episode, target.name)
            self._on_kept(episode)
        with self._arrived:
            self._arrived.notify_all()
        return known in (None, episode.sha256)

    def refuse(self, refused: Mapping[str, str]) -> None:
        """Give up orders that no client can carry out: nobody waits for them any longer."""
        new = until_taken(lambda: self.store.refuse_orders(refused), self.should_stop)
        for order_id, why in new.items():
            log.error("given up: %s", printable(why, 600))
            self._on_refused(order_id, why)
        with self._arrived:
            self._arrived.notify_all()

    def note_epoch(self, welcome: LearnerWelcome) -> None:
        """The agent was started, or its connection lost: it may know less than before."""
        if welcome.revision >= 1 and not welcome.has_activated:
            self.store.note_lost_activation()
        with self._arrived:
            self.restarts += 1
            self._arrived.notify_all()

    def read(self, row: EpisodeRow) -> Episode:
        """The episode of a row, every checksum verified.

        Raises:
            UnusableEpisode: its file is damaged or gone.
        """
        self.should_stop()
        path = self.folder / row.file
        try:
            data = until_taken(path.read_bytes, self.should_stop, is_read=True)
        except OSError as error:
            if error.errno not in LOST:
                with storage_errors(path):
                    raise
            raise UnusableEpisode(row.episode_id, f"{path}: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != self.store.known_sha256(row.episode_id):
            raise UnusableEpisode(row.episode_id, f"{path}: its bytes are not those received")
        try:
            return read_episode(data)
        except EpisodeCorrupt as error:
            raise UnusableEpisode(row.episode_id, f"{path}: {error}") from error

    def set_aside(self, row: EpisodeRow, reason: str) -> None:
        """Quarantine an episode that no update can use; its slot waits for another one."""
        log.error("episode %s quarantined: %s", row.episode_id, reason)
        path = self.folder / row.file

        def put_aside() -> None:
            with storage_errors(path):
                if path.exists():
                    path.replace(self.quarantine / path.name)
                sync_folder(self.quarantine)
                sync_folder(self.folder)
            self.store.reject(row.episode_id, reason)

        until_taken(put_aside, self.should_stop)
        self._on_quarantined()

    def fail(self, error: BaseException) -> None:
        """Let every waiter raise: no more episodes will come."""
        with self._arrived:
            self._failure = error
            self._arrived.notify_all()

    def wait_for(
        self,
        orders: Iterable[Order],
        should_stop: Callable[[], bool],
        on_progress: Callable[[int, int], None] = lambda done, wanted: None,
        on_restart: Callable[[], None] = lambda: None,
        restarts: int | None = None,
    ) -> dict[str, EpisodeRow]:
        """The counted episode of every slot of `orders`, by slot id, when all are there.

        Orders that were given up have none. on_restart: called when the agent was started anew
        since there had been so many `restarts`.

        Raises:
            Stopped: asked to stop first. Also whatever ended the receiving thread.
        """
        orders = list(orders)
        restarts = self.restarts if restarts is None else restarts
        while True:
            if self.restarts != restarts:
                restarts = self.restarts
                on_restart()
            with self._arrived:
                if self._failure is not None:
                    raise self._failure
                refused = self.store.refused_orders(order.order_id for order in orders)
                alive = [order for order in orders if order.order_id not in refused]
                rows = self.store.counted_episodes(order.order_id for order in alive)
                wanted = sum(order.slots for order in alive)
                on_progress(len(rows), wanted)
                if len(rows) == wanted:
                    return rows
                if should_stop():
                    raise Stopped
                self._arrived.wait(0.5)

    def drop_used(self, but_last: bool = False) -> None:
        """Delete the files of episodes that an update has used; what became of them stays known.

        but_last: keep those of the last update.
        """

        def drop() -> None:
            for name in self.store.used_files(but_last):
                with storage_errors(self.folder / name):
                    (self.folder / name).unlink(missing_ok=True)

        until_taken(drop, self.should_stop)

    def idle(self, should_stop: Callable[[], bool]) -> None:
        """Wait for nothing but the end, while episodes may still come.

        Raises whatever ended the receiving thread.
        """
        while not should_stop():
            with self._arrived:
                if self._failure is not None:
                    raise self._failure
                self._arrived.wait(0.5)

    def _problem(self, episode: SealedEpisode) -> str | None:
        try:
            check_episode_id(episode.episode_id)
        except EpisodeInvalid as error:
            return str(error)
        sha256 = hashlib.sha256(episode.payload.tobytes()).hexdigest()
        if sha256 != episode.sha256:
            return f"its bytes have sha256 {sha256[:12]}, stated is {episode.sha256[:12]}"
        known = self.store.known_sha256(episode.episode_id)
        if known not in (None, sha256):
            return f"it is held with sha256 {known}, this one has {sha256}"
        return None

    def _keep(self, episode: SealedEpisode) -> str | None:
        if self.store.known_sha256(episode.episode_id) is not None:
            return None
        path = self.folder / f"{episode.episode_id}.mcap"
        replace_file(path, episode.payload.tobytes())
        try:
            self.store.add_episode(episode, path.name)
        except EpisodeConflict as error:
            path.unlink()
            return str(error)
        self._on_kept(episode)
        return None

    def _put_aside(self, episode: SealedEpisode, reason: str) -> None:
        log.error("episode %s quarantined: %s", episode.episode_id[:64], reason)
        sha256 = hashlib.sha256(episode.payload.tobytes()).hexdigest()
        replace_file(self.quarantine / f"{sha256}.mcap", episode.payload.tobytes())
        self.store.quarantine(episode.episode_id, sha256, reason)
        self._on_quarantined()


class Receiver(threading.Thread):
    """Feeds an Inbox from the agent until stopped; an error ends it and reaches the waiters."""

    def __init__(self, link: AgentLink, inbox: Inbox, stop: threading.Event) -> None:
        super().__init__(name=RECEIVER_THREAD, daemon=True)
        self._link, self._inbox, self._stop_event = link, inbox, stop

    def run(self) -> None:
        """Fetch, keep, acknowledge."""
        try:
            while not self._stop_event.is_set():
                episodes = self._link.fetch(FETCH_LIMIT, FETCH_WAIT_S)
                small = [episode for episode in episodes if not episode.size_bytes]
                stopping = self._stop_event.is_set
                accepted = until_taken(partial(self._inbox.accept, small), stopping)
                for episode in episodes:
                    if episode.size_bytes and until_taken(
                        partial(self._take_large, episode), stopping
                    ):
                        accepted[episode.episode_id] = episode.sha256
                if accepted:
                    self._link.acknowledge(accepted)
        except Stopped:
            log.info("receiver stopped")
        except BaseException as error:  # handed to the thread that waits, which raises it
            self._inbox.fail(error)
        finally:
            self._link.close()

    def _take_large(self, episode: SealedEpisode) -> bool:
        """Fetch an episode in parts, going on with what a former process has of it.

        False if it is not to be had: the agent found it damaged and has its slot run again.
        """
        check_episode_id(episode.episode_id)
        path = self._inbox.folder / f"{PARTIAL_PREFIX}{episode.episode_id}"
        for stale in self._inbox.folder.glob(f"{PARTIAL_PREFIX}*"):
            if stale != path:
                stale.unlink()
        if self._inbox.store.known_sha256(episode.episode_id) == episode.sha256:
            return True
        for _ in range(2):  # the first time what was left may be of no use
            if not self._fetch_parts(episode, path):
                path.unlink(missing_ok=True)
                return False
            with storage_errors(path), path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if sha256 == episode.sha256:
                return self._inbox.accept_file(episode, path)
            log.warning("episode %s came altered in its parts; again", episode.episode_id)
            path.unlink()
        self._link.reject({episode.episode_id: "its parts do not make what was sealed"})
        return False

    def _fetch_parts(self, episode: SealedEpisode, path: Path) -> bool:
        with storage_errors(path), path.open("ab") as file:
            while (held := file.tell()) < episode.size_bytes:
                if self._stop_event.is_set():
                    raise Stopped
                try:
                    data = self._link.fetch_part(episode.episode_id, held, PART_BYTES)
                except WireError as error:
                    if error.code != "unknown_episode":
                        raise
                    log.error("episode %s is not to be had: %s", episode.episode_id, error)
                    return False
                if not data:
                    return True  # shorter than it was said to be: its hash tells
                file.write(data)
        return True
