"""The operator side of the protocol: orders, finished episodes, activation.

One learner epoch is served at a time. Episodes go out in seal order, each once per epoch; a learner
that may have missed a reply opens a new epoch and gets everything unacknowledged again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from agent.episode import EpisodeCorrupt
from agent.ledger import SealedRow
from agent.process.clock import by_wall_clock
from agent.server.activation import Activation
from agent.server.core import Core
from agent.server.episodes import Episodes
from agent.server.exchange import Exchange
from agent.server.faults import answering
from agent.server.validation import check_name, check_protocol_version, check_range, checked_order
from agent.wire.errors import WireError
from agent.wire.messages import (
    PROTOCOL_VERSION,
    AckEpisodes,
    Activate,
    FetchEpisodes,
    LearnerHello,
    LearnerWelcome,
    Ok,
    Order,
    PostOrders,
    Rollback,
    SealedEpisode,
    ServerStatus,
    Status,
)
from agent.wire.messages import (
    Episodes as EpisodesReply,
)

log = logging.getLogger(__name__)

FETCH_MAX = 32  # episodes a reply; each is one part of the message
FETCH_MAX_WAIT_S = 60.0


@dataclass(slots=True)
class ParkedFetch:
    """A long poll that waits for an episode to be sealed."""

    exchange: Exchange
    limit: int
    until_s: float


class Operator:
    """Requests of the learner and of operators."""

    def __init__(
        self, core: Core, activation: Activation, episodes: Episodes, max_reply_bytes: int
    ) -> None:
        self._core = core
        self._activation = activation
        self._episodes = episodes
        self._max_reply_bytes = max_reply_bytes
        self._epoch = 0
        self._sent_seq = 0  # the last sealed_seq sent in this epoch
        self._parked: ParkedFetch | None = None
        # Episode id -> when it was sealed; the oldest first.
        self._unacked = {r.episode_id: r.sealed_unix_s for r in core.journal.fetch_rows(0, -1)}
        self._altered: set[str] = set()  # ids of episodes found so, to count each once
        episodes.subscribe(self._on_sealed)

    # ---- requests ----------------------------------------------------------------------------

    def learner_hello(self, message: LearnerHello, exchange: Exchange) -> None:
        """Opens an epoch: what is unacknowledged will be sent again."""
        check_protocol_version(message.protocol_version)
        check_name("learner_id", message.learner_id)
        if message.epoch < max(self._epoch, 1):
            raise WireError("stale_epoch", f"epoch {message.epoch}, this server has {self._epoch}")
        if self._parked is not None:
            self._parked.exchange.fail("stale_epoch", f"epoch {message.epoch} was opened")
            self._parked = None
        self._epoch, self._sent_seq = message.epoch, 0
        exchange.reply(
            LearnerWelcome(
                protocol_version=PROTOCOL_VERSION,
                server_id=self._core.state.server_id,
                policy=self._core.policy.name,
                base_sha256=self._core.policy.base_sha256,
                active_version=self._core.state.active_version,
            )
        )

    def post_orders(self, message: PostOrders, exchange: Exchange) -> None:
        """Takes orders once their versions are resident; the reply comes when they are durable."""
        self._check_epoch(message.epoch)
        orders = [checked_order(order) for order in message.orders]
        for order in orders:
            self._core.policy.check_instruction(order.instruction)
        known = {order.order_id for order in self._core.book.orders()}
        versions = {order.version for order in orders if order.order_id not in known}
        self._load_then(sorted(versions), exchange, lambda: self._accept(orders, exchange))

    def fetch(self, message: FetchEpisodes, exchange: Exchange) -> None:
        """Answers with sealed episodes, now or as soon as there is one.

        Refused (order_refused) once an order cannot be carried out: it would be waited for in vain.
        """
        self._check_epoch(message.epoch)
        check_range("limit", message.limit, 1, 1 << 31)
        check_range("wait_s", message.wait_s, 0.0, FETCH_MAX_WAIT_S)
        if self._parked is not None:
            self._parked.exchange.reply(EpisodesReply([]))
        limit = min(message.limit, FETCH_MAX)
        self._parked = ParkedFetch(exchange, limit, exchange.received_s + message.wait_s)
        self._answer_fetch(exchange.received_s)

    def ack(self, message: AckEpisodes, exchange: Exchange) -> None:
        """The learner holds these episodes; the reply comes when that is durable here."""
        self._check_epoch(message.epoch)

        def on_durable(refused: dict[str, str]) -> None:
            for episode_id in message.episodes.keys() - refused.keys():
                self._unacked.pop(episode_id, None)
            if refused:
                episode_id, reason = next(iter(refused.items()))
                raise WireError("conflict", f"episode {episode_id!r:.60} {reason}")
            exchange.reply(Ok())

        self._core.journal.ack(
            message.episodes,
            lambda refused: self._core.mailbox.post(lambda: on_durable(refused), exchange),
        )

    def activate(self, message: Activate, exchange: Exchange) -> None:
        """Serves a version to new episodes of robots' own tasks; epoch 0 is an operator."""

        def check() -> None:
            if message.epoch != 0:
                self._check_epoch(message.epoch)

        check()
        self._activation.activate(message.version, exchange, check)

    def rollback(self, message: Rollback, exchange: Exchange) -> None:
        """Back to the version before the active one."""
        self._activation.rollback(exchange, message.again)

    def status(self, message: Status, exchange: Exchange) -> None:
        """Figures for people."""
        exchange.reply(
            ServerStatus(
                server_id=self._core.state.server_id,
                policy=self._core.policy.name,
                active_version=self._core.state.active_version,
                resident_versions=self._core.residency.versions(),
                open_episodes=len(self._episodes),
                open_slots=self._core.book.open_slots(),
                episodes_unacked=len(self._unacked),
                requests=self._core.state.requests,
            )
        )

    # ---- what happens meanwhile --------------------------------------------------------------

    def _on_sealed(self, row: SealedRow) -> None:
        """A seal is durable: whoever waits for episodes gets it."""
        self._unacked[row.episode_id] = row.sealed_unix_s
        if self._parked is not None:
            self._answer_fetch(time.monotonic())

    def tick(self, now_s: float) -> None:
        """Ends a long poll that got nothing."""
        if self._parked is not None and now_s >= self._parked.until_s:
            self._answer_fetch(now_s)
        metrics = self._core.metrics
        metrics.episodes_unacked.set(len(self._unacked))
        if self._unacked:
            oldest = next(iter(self._unacked.values()))
            metrics.oldest_unacked_timestamp_seconds.set(by_wall_clock(oldest))
        else:
            metrics.oldest_unacked_timestamp_seconds.clear()

    def _check_epoch(self, epoch: int) -> None:
        if epoch < self._epoch:
            raise WireError("stale_epoch", f"epoch {epoch} was replaced by {self._epoch}")
        if epoch > self._epoch:
            raise WireError("server_restarted", f"epoch {epoch} is not open here: say hello first")

    def _load_then(
        self, versions: list[str], exchange: Exchange, action: Callable[[], None]
    ) -> None:
        if not versions:
            action()
            return

        def on_loaded(result: float | WireError) -> None:
            if isinstance(result, WireError):
                exchange.fail(result.code, result.message)
            else:
                with answering(exchange, "post orders"):
                    self._load_then(versions[1:], exchange, action)

        self._core.residency.ensure(versions[0], on_loaded)

    def _accept(self, orders: list[Order], exchange: Exchange) -> None:
        self._core.book.post(orders)
        self._core.state.register(orders)
        self._core.success.register(orders)
        self._core.journal.post_orders(
            orders, lambda: self._core.mailbox.post(lambda: exchange.reply(Ok()), exchange)
        )

    def _answer_fetch(self, now_s: float) -> None:
        parked = self._parked
        assert parked is not None
        with answering(parked.exchange, "fetch episodes"):
            self._core.book.check_refused()
            items = self._next_items(parked.limit)
            if items or now_s >= parked.until_s:
                parked.exchange.reply(EpisodesReply(items))
        if not parked.exchange.is_open:
            self._parked = None

    def _next_items(self, limit: int) -> list[SealedEpisode]:
        """The next episodes in seal order that fit one message; at least one if there is any."""
        items: list[SealedEpisode] = []
        size_bytes = 0
        for row in self._core.journal.fetch_rows(self._sent_seq, limit):
            size_bytes += row.size_bytes
            if items and size_bytes > self._max_reply_bytes:
                break
            self._sent_seq = row.sealed_seq
            try:
                items.append(_sealed_episode(row, self._core.journal.payload(row)))
            except EpisodeCorrupt as error:
                # Not sent; the recovery at the next start sets it aside and frees its slot.
                log.error("episode %s is not handed over: %s", row.episode_id, error)
                if row.episode_id not in self._altered:  # it is met again in every epoch
                    self._altered.add(row.episode_id)
                    self._core.metrics.episodes_quarantined_total.labels("altered").inc()
        return items


def _sealed_episode(row: SealedRow, payload: bytes) -> SealedEpisode:
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
    )
