"""The operator side of the protocol: orders, finished episodes, activation.

One learner epoch is served at a time; how its episodes go out is `agent.server.delivery`'s matter.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from agent.ledger import EpisodeState, SealedRow
from agent.order_slots import slot_id_of
from agent.process.clock import by_wall_clock
from agent.process.shown import printable, shown
from agent.server.activation import Activation
from agent.server.core import Core
from agent.server.delivery import Delivery
from agent.server.episodes import Episodes
from agent.server.exchange import Exchange
from agent.server.faults import answering
from agent.server.validation import (
    REASON_MAX_CHARS,
    check_name,
    check_protocol_version,
    checked_order,
)
from agent.wire.errors import WireError
from agent.wire.messages import (
    LEARNER_REVISION,
    PROTOCOL_VERSION,
    AckEpisodes,
    Activate,
    FetchEpisodes,
    FetchPart,
    LearnerHello,
    LearnerWelcome,
    Ok,
    Order,
    PostOrders,
    RejectEpisodes,
    Rollback,
    ServerStatus,
    Status,
)

log = logging.getLogger(__name__)


class Operator:
    """Requests of the learner and of operators."""

    def __init__(
        self,
        core: Core,
        activation: Activation,
        episodes: Episodes,
        delivery: Delivery,
        has_activated: bool,
    ) -> None:
        """has_activated: whether a version was ever activated here."""
        self._has_activated = has_activated
        self._refused = 0  # orders, as counted so far
        self._damaged: set[str] = set()  # ids of episodes whose files were found so
        self._core = core
        self._activation = activation
        self._episodes = episodes
        self._delivery = delivery
        self._epoch = 0
        # Episode id -> when it was sealed; the oldest first.
        self._unacked = {r.episode_id: r.sealed_unix_s for r in core.journal.fetch_rows(0, -1)}
        episodes.subscribe(self._on_sealed)

    # ---- requests ----------------------------------------------------------------------------

    def learner_hello(self, message: LearnerHello, exchange: Exchange) -> None:
        """Opens an epoch: what is unacknowledged will be sent again."""
        check_protocol_version(message.protocol_version)
        check_name("learner_id", message.learner_id)
        if message.epoch < max(self._epoch, 1):
            raise WireError("stale_epoch", f"epoch {message.epoch}, this server has {self._epoch}")
        self._epoch = message.epoch
        self._delivery.open_epoch(message.epoch, message.revision)
        welcome = LearnerWelcome(
            protocol_version=PROTOCOL_VERSION,
            server_id=self._core.state.server_id,
            policy=self._core.policy.name,
            base_sha256=self._core.policy.base_sha256,
            active_version=self._core.state.active_version,
        )
        if message.revision >= 1:
            welcome = replace(welcome, revision=LEARNER_REVISION, has_activated=self._has_activated)
        exchange.reply(welcome)

    def post_orders(self, message: PostOrders, exchange: Exchange) -> None:
        """Takes orders once their versions are resident; the reply comes when they are durable."""
        self._check_epoch(message.epoch)
        orders = [checked_order(order) for order in message.orders]
        _check_held(message)
        for order in orders:
            self._core.policy.check_instruction(order.instruction)
        known = {order.order_id for order in self._core.book.orders()}
        versions = {order.version for order in orders if order.order_id not in known}
        self._load_then(
            sorted(versions), exchange, partial(self._accept, orders, message.held, exchange)
        )

    def fetch(self, message: FetchEpisodes, exchange: Exchange) -> None:
        """Answers with sealed episodes, now or as soon as there is one."""
        self._check_epoch(message.epoch)
        self._delivery.fetch(message, exchange)

    def fetch_part(self, message: FetchPart, exchange: Exchange) -> None:
        """Answers with some of a large episode's bytes."""
        self._check_epoch(message.epoch)
        self._delivery.fetch_part(message, exchange)

    def reject(self, message: RejectEpisodes, exchange: Exchange) -> None:
        """The learner cannot use these: they no longer count, their slots are free again."""
        self._check_epoch(message.epoch)
        reasons = {e: printable(why, REASON_MAX_CHARS) for e, why in message.episodes.items()}

        def on_durable(freed: dict[str, str]) -> None:
            self._on_freed(freed)
            self._core.metrics.episodes_quarantined_total.labels("rejected").inc(len(freed))
            exchange.reply(Ok())

        self._core.journal.reject(
            reasons, lambda freed: self._core.mailbox.post(lambda: on_durable(freed), exchange)
        )

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
        self._has_activated = True
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
        self._delivery.look(time.monotonic())

    def on_damaged(self, row: SealedRow, reason: str) -> None:
        """A sealed episode's file is not what was sealed: its slot is to be run again."""
        if row.episode_id in self._damaged:
            return
        self._damaged.add(row.episode_id)
        log.error("episode %s is set aside: %s", row.episode_id, reason)
        self._core.metrics.episodes_quarantined_total.labels("altered").inc()
        # One that was acknowledged meanwhile is the learner's, whatever became of the copy here.
        self._core.journal.reject(
            {row.episode_id: reason},
            lambda freed: self._core.mailbox.post(lambda: self._on_freed(freed)),
            (EpisodeState.SEALED,),
        )

    def _on_freed(self, freed: dict[str, str]) -> None:
        for episode_id, slot_id in freed.items():
            self._unacked.pop(episode_id, None)
            if slot_id and self._core.book.reopen(slot_id, episode_id):
                log.warning("slot %s is run again: %s is of no use", slot_id, episode_id)

    def tick(self, now_s: float) -> None:
        """Ends a long poll that got nothing, and shows what waits."""
        self._delivery.look(now_s)
        metrics, refused = self._core.metrics, self._core.book.refused()
        for why in list(refused.values())[self._refused :]:
            log.error("an order is refused: %s", why)
            metrics.orders_refused_total.inc()
        self._refused = len(refused)
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

    def _accept(self, orders: list[Order], held: dict[str, str], exchange: Exchange) -> None:
        self._core.book.post(orders)
        self._core.state.register(orders)
        self._core.success.register(orders)
        held = self._core.book.hold(held)
        self._core.journal.post_orders(
            orders, lambda: self._core.mailbox.post(lambda: exchange.reply(Ok()), exchange), held
        )


def _check_held(message: PostOrders) -> None:
    """Raises WireError("bad_message") for a slot that is none of the message's orders."""
    slots = {slot_id_of(order, k) for order in message.orders for k in range(order.slots)}
    foreign = sorted(message.held.keys() - slots)
    if foreign:
        raise WireError("bad_message", f"held: {shown(foreign[0])} is no slot of these orders")
    for slot_id, episode_id in message.held.items():
        check_name(f"held[{slot_id}]", episode_id)
