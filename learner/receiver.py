"""The receiving thread: fetch sealed episodes, make them durable here, acknowledge them."""

import hashlib
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from agent.durable import make_folder, replace_file, storage_errors
from agent.episode import EpisodeInvalid, check_episode_id
from agent.wire.messages import Order, SealedEpisode
from learner.link import AgentLink
from learner.patience import until_taken
from learner.stopping import Stopped
from learner.store import EpisodeConflict, EpisodeRow, LearnerStore

log = logging.getLogger(__name__)

RECEIVER_THREAD = "receiver"
FETCH_LIMIT = 16
FETCH_WAIT_S = 1.0


class Inbox:
    """Episodes on disk and in the store; lets a thread wait until slots are filled."""

    def __init__(
        self,
        folder: Path,
        store: LearnerStore,
        on_kept: Callable[[SealedEpisode], None] = lambda episode: None,
    ) -> None:
        """on_kept: called with every episode that is new and durable, on the receiving thread."""
        self.folder, self.store = folder, store
        self._on_kept = on_kept
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
    ) -> dict[str, EpisodeRow]:
        """The counted episode of every slot of `orders`, by slot id, when all are there.

        Raises:
            Stopped: asked to stop first. Also whatever ended the receiving thread.
        """
        orders = list(orders)
        wanted = sum(order.slots for order in orders)
        while True:
            with self._arrived:
                if self._failure is not None:
                    raise self._failure
                rows = self.store.counted_episodes(order.order_id for order in orders)
                on_progress(len(rows), wanted)
                if len(rows) == wanted:
                    return rows
                if should_stop():
                    raise Stopped
                self._arrived.wait(0.5)

    def drop_used(self) -> None:
        """Delete the files of episodes that an update has used; what became of them stays known."""
        for name in self.store.used_files():
            (self.folder / name).unlink(missing_ok=True)

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


class Receiver(threading.Thread):
    """Feeds an Inbox from the agent until stopped; an error ends it and reaches the waiters."""

    def __init__(self, link: AgentLink, inbox: Inbox, stop: threading.Event) -> None:
        super().__init__(name=RECEIVER_THREAD, daemon=True)
        self._link, self._inbox, self._stop_event = link, inbox, stop

    def run(self) -> None:
        """Fetch, keep, acknowledge."""
        try:
            while not self._stop_event.is_set():
                fetched = self._link.fetch(FETCH_LIMIT, FETCH_WAIT_S)
                accepted = until_taken(
                    partial(self._inbox.accept, fetched), self._stop_event.is_set
                )
                if accepted:
                    self._link.acknowledge(accepted)
        except Stopped:
            log.info("receiver stopped")
        except BaseException as error:  # handed to the thread that waits, which raises it
            self._inbox.fail(error)
        finally:
            self._link.close()
