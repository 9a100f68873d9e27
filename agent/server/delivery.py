"""How finished episodes reach the learner: in seal order, each once in an epoch.

A learner that may have missed a reply opens a new epoch and gets everything unacknowledged again.
Files are read on a thread of their own, so that no robot waits for the learner's disk traffic, and
never more than one message's worth of them at once. One too large for a message is only offered;
the learner fetches it in parts and checks the whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np

from agent.durable import StorageError
from agent.episode import EpisodeCorrupt
from agent.ledger import EpisodeState, SealedRow
from agent.server.core import Core
from agent.server.exchange import Exchange
from agent.server.faults import answering
from agent.server.validation import check_name, check_range
from agent.wire.errors import WireError
from agent.wire.messages import (
    EpisodePart,
    Episodes,
    FetchEpisodes,
    FetchPart,
    SealedEpisode,
)

FETCH_MAX = 32  # episodes a reply; each is one part of the message
FETCH_MAX_WAIT_S = 60.0
PART_BYTES_MAX = 8 << 20
NEWS_MAX = 128  # refused orders a reply: that many reasons fit its header
PARTS_WAITING_MAX = 4  # a learner asks for one at a time

OnDamaged = Callable[[SealedRow, str], None]


@dataclass(slots=True)
class ParkedFetch:
    """A long poll that waits for an episode to be sealed."""

    exchange: Exchange
    limit: int
    until_s: float


@dataclass(frozen=True, slots=True)
class Read:
    """What became of the next episodes: those to send, and those found damaged with the reason."""

    items: list[SealedEpisode]
    damaged: list[tuple[SealedRow, str]]


class Delivery:
    """One learner's place in the stream of sealed episodes; all but `_read` is the loop's thread's.

    Args:
        max_reply_bytes: of the payloads in one message.
    """

    def __init__(self, core: Core, max_reply_bytes: int) -> None:
        self._core = core
        self._max_reply_bytes = max_reply_bytes
        self._epoch = self._revision = 0
        self._sent_seq = 0  # the last sealed_seq sent in this epoch
        self._told: set[str] = set()  # refused orders that this epoch was told of
        self._parked: ParkedFetch | None = None
        self._is_reading = False
        self._parts = 0  # asked and not answered
        self._on_damaged: OnDamaged = lambda row, reason: None
        self._reader = ThreadPoolExecutor(1, "delivery")

    def on_damaged(self, on_damaged: OnDamaged) -> None:
        """Has it called with every episode whose file is not what was sealed."""
        self._on_damaged = on_damaged

    def close(self) -> None:
        """Waits for a running read."""
        self._reader.shutdown(wait=True, cancel_futures=True)

    def open_epoch(self, epoch: int, revision: int) -> None:
        """Begins again with the first unacknowledged episode."""
        if self._parked is not None:
            self._parked.exchange.fail("stale_epoch", f"epoch {epoch} was opened")
            self._parked = None
        self._epoch, self._revision = epoch, revision
        self._sent_seq = 0
        self._told.clear()

    def fetch(self, message: FetchEpisodes, exchange: Exchange) -> None:
        """Answers with the next episodes, or when there is none, at the end of the wait."""
        check_range("limit", message.limit, 1, 1 << 31)
        check_range("wait_s", message.wait_s, 0.0, FETCH_MAX_WAIT_S)
        if self._parked is not None:
            self._parked.exchange.reply(Episodes([]))
        limit = min(message.limit, FETCH_MAX)
        self._parked = ParkedFetch(exchange, limit, exchange.received_s + message.wait_s)
        self.look(exchange.received_s)

    def look(self, now_s: float) -> None:
        """Answers whoever waits, if there is something to say by now."""
        parked = self._parked
        if parked is None or self._is_reading:
            return
        with answering(parked.exchange, "fetch episodes"):
            self._check_old_learner()
            rows = self._next_rows(parked.limit)
            if rows:
                self._is_reading = True
                future = self._reader.submit(self._read, rows)
                done = partial(self._on_read, self._epoch, rows, future)
                future.add_done_callback(lambda _: self._core.mailbox.post(done))
            elif self._news() or now_s >= parked.until_s:
                self._answer([])
        if not parked.exchange.is_open:
            self._parked = None

    def fetch_part(self, message: FetchPart, exchange: Exchange) -> None:
        """Answers with bytes of one sealed episode."""
        check_name("episode_id", message.episode_id)
        check_range("length", message.length, 1, 1 << 31)
        row = self._core.journal.row(message.episode_id)
        if row is None or row.state != EpisodeState.SEALED:
            raise _not_here(message.episode_id)
        check_range("offset", message.offset, 0, row.size_bytes)
        if self._parts >= PARTS_WAITING_MAX:
            raise WireError("overloaded", f"{self._parts} parts are being read already")
        self._parts += 1
        length = min(message.length, PART_BYTES_MAX, self._max_reply_bytes)
        future = self._reader.submit(
            self._core.journal.part, message.episode_id, message.offset, length
        )
        done = partial(self._on_part, row, message.offset, exchange, future)
        future.add_done_callback(lambda _: self._core.mailbox.post(done, exchange))

    # ---- reading -----------------------------------------------------------------------------

    def _next_rows(self, limit: int) -> list[SealedRow]:
        """The next episodes that fit one message together; alone the one that fits none."""
        rows: list[SealedRow] = []
        size_bytes = 0
        for row in self._core.journal.fetch_rows(self._sent_seq, limit):
            size_bytes += row.size_bytes
            if rows and size_bytes > self._max_reply_bytes:
                break
            rows.append(row)
        if rows and self._is_large(rows[0]) and self._revision < 1:
            raise WireError(
                "too_large",
                f"episode {rows[0].episode_id} has {rows[0].size_bytes} bytes, more than the "
                f"{self._max_reply_bytes} of one message, and this learner cannot fetch it in "
                "parts: start one of the agent's own release",
            )
        return rows

    def _is_large(self, row: SealedRow) -> bool:
        return row.size_bytes > self._max_reply_bytes

    def _read(self, rows: list[SealedRow]) -> Read:
        """On the reading thread. Raises StorageError for trouble that may pass."""
        read = Read([], [])
        for row in rows:
            try:
                if self._is_large(row):
                    self._core.journal.verify(row)
                    read.items.append(_offer(row))
                else:
                    read.items.append(_sealed_episode(row, self._core.journal.payload(row)))
            except EpisodeCorrupt as error:
                read.damaged.append((row, str(error)))
        return read

    def _on_read(self, epoch: int, rows: list[SealedRow], future: Future[Read]) -> None:
        self._is_reading = False
        parked = self._parked
        error = future.exception()
        if error is not None:
            if parked is not None:
                self._parked = None
                _fail(parked.exchange, error)
            return
        read = future.result()
        for row, reason in read.damaged:
            self._on_damaged(row, reason)
        if epoch == self._epoch and parked is not None:
            self._sent_seq = rows[-1].sealed_seq
            if read.items:
                self._answer(read.items)
        self.look(time.monotonic())

    def _on_part(
        self, row: SealedRow, offset: int, exchange: Exchange, future: Future[bytes]
    ) -> None:
        self._parts -= 1
        error = future.exception()
        if isinstance(error, EpisodeCorrupt):
            self._on_damaged(row, str(error))
            raise _not_here(row.episode_id)
        if error is not None:
            _fail(exchange, error)
        else:
            data = np.frombuffer(future.result(), np.uint8)
            exchange.reply(EpisodePart(row.episode_id, offset, data))

    # ---- answering ---------------------------------------------------------------------------

    def _news(self) -> dict[str, str]:
        """Some refused orders that the learner does not know of; the next reply has more."""
        refused = self._core.book.refused() if self._revision >= 1 else {}
        news = (order_id for order_id in refused if order_id not in self._told)
        return {order_id: refused[order_id] for order_id in islice(news, NEWS_MAX)}

    def _check_old_learner(self) -> None:
        """One that cannot go on without an order is told why it waits in vain."""
        if self._revision < 1:
            for why in self._core.book.refused().values():
                raise WireError("order_refused", why)

    def _answer(self, items: list[SealedEpisode]) -> None:
        parked, news = self._parked, self._news()
        assert parked is not None, "only who waits is answered"
        self._told |= news.keys()
        self._parked = None
        parked.exchange.reply(Episodes(items, news))


def _fail(exchange: Exchange, error: BaseException) -> None:
    """What a disk refuses now it may grant later: the learner asks again."""
    if isinstance(error, StorageError):
        error = WireError("overloaded", str(error))
    with answering(exchange, "reading episodes"):
        raise error


def _not_here(episode_id: str) -> WireError:
    return WireError("unknown_episode", f"episode {episode_id} is not sealed here")


def _offer(row: SealedRow) -> SealedEpisode:
    """A large episode without its bytes."""
    return _sealed_episode(row, b"", row.size_bytes)


def _sealed_episode(row: SealedRow, payload: bytes, size_bytes: int = 0) -> SealedEpisode:
    return SealedEpisode(
        episode_id=row.episode_id,
        sha256=row.sha256,
        order_id=row.order_id,
        slot_id=row.slot_id,
        suite=row.suite,
        task=row.task,
        split=row.split,
        init_state=row.init_state,
        phase=row.phase,
        version=row.version,
        outcome=row.outcome,
        steps=row.steps,
        counted=row.counted,
        payload=np.frombuffer(payload, np.uint8),
        size_bytes=size_bytes,
    )
