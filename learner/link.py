"""The learner's side of the operator connection: epochs, retries, one method a request."""

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

from agent.durable import may_pass
from agent.process.shown import printable
from agent.wire.codec import DEFAULT_LIMITS, encode
from agent.wire.errors import ConfigError, PerennialError, RequestTimeout, WireError
from agent.wire.messages import (
    LEARNER_REVISION,
    AckEpisodes,
    Activate,
    Activated,
    EpisodePart,
    Episodes,
    FetchEpisodes,
    FetchPart,
    LearnerHello,
    LearnerWelcome,
    Order,
    PostOrders,
    RejectEpisodes,
    SealedEpisode,
)
from agent.wire.sockets import DealerClient
from learner.stopping import Stopped
from learner.store import LearnerStore

log = logging.getLogger(__name__)

ORDERS_PER_MESSAGE = 200
HELD_BYTES = 64  # of one held slot, besides the order's id
TRANSIENT_CODES = ("timeout", "overloaded", "deadline", "server_restarted")
RETRY_PAUSE_S = 0.5
LOG_EVERY_S = 10.0


class LearnerSuperseded(PerennialError):
    """Another learner has said hello to the agent with a newer epoch; this one must not go on."""


class Session:
    """The learner epoch that all threads of this process share.

    A new epoch is opened at start, and whenever a reply may have been lost: episodes the agent
    has sent in an epoch are not sent again in that epoch, so a lost reply needs a new one.
    """

    def __init__(
        self,
        store: LearnerStore,
        learner_id: str,
        base_sha256: str,
        on_opened: Callable[[LearnerWelcome], None] = lambda welcome: None,
    ) -> None:
        """on_opened: called with the agent's answer whenever an epoch was opened."""
        self._store, self._learner_id, self._base_sha256 = store, learner_id, base_sha256
        self._on_opened = on_opened
        self._lock = threading.Lock()
        self._epoch = 0
        self.has_agent = False  # whether the last request was answered; any thread may ask

    @property
    def is_open(self) -> bool:
        """Whether the agent has ever opened an epoch."""
        return self._epoch > 0

    def epoch(self, client: DealerClient, lost: int | None = None) -> int:
        """The epoch to use; opens one if there is none or `lost` is still the current one.

        Raises:
            WireError: the agent did not take the hello.
            ConfigError: the agent serves another base model.
        """
        with self._lock:
            if self._epoch == 0 or self._epoch == lost:
                epoch = self._store.next_epoch()
                welcome = self._say_hello(client, epoch)
                if welcome.base_sha256 != self._base_sha256:
                    raise ConfigError(
                        f"the agent serves base model {welcome.base_sha256[:12]}, the learner has "
                        f"{self._base_sha256[:12]}: give both the same model folder"
                    )
                self._epoch = epoch
                log.info("epoch %d opened with agent %s", epoch, welcome.server_id)
                self._on_opened(welcome)
            return self._epoch

    def _say_hello(self, client: DealerClient, epoch: int) -> LearnerWelcome:
        """An agent of an older release refuses the field that it does not know."""
        hello = LearnerHello(self._learner_id, epoch, revision=LEARNER_REVISION)
        try:
            welcome: LearnerWelcome = client.request(hello)
        except WireError as error:
            if error.code != "bad_message":
                raise
            welcome = client.request(replace(hello, revision=0))
            log.warning("the agent is of an older release: damaged episodes are not run again")
        return welcome


class AgentLink:
    """Requests to the agent that survive its restarts. One instance a thread.

    Every request is repeated until it is answered, the process is asked to stop, or the agent
    refuses it for a reason that time does not mend (WireError; ConfigError when an older agent
    says that no client can carry out an order, or when it does not let this process in). All of
    them are idempotent.

    Args:
        on_refused: gets {order id: why} of orders that cannot be carried out, with a fetch.
    """

    def __init__(
        self,
        session: Session,
        client: DealerClient,
        stop: threading.Event,
        on_refused: Callable[[dict[str, str]], None] = lambda refused: None,
    ) -> None:
        self._session, self._client, self._stop = session, client, stop
        self._on_refused = on_refused

    def post_orders(
        self, orders: Sequence[Order], held: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Post orders; returns when the agent holds them durably.

        held: {slot id: episode id} of their slots that need no episode.
        """
        for part in pages(orders):
            slots = {f"{order.order_id}#{k}" for order in part for k in range(order.slots)}
            needless = {slot: held[slot] for slot in held.keys() & slots}
            self._request(partial(PostOrders, orders=part, held=needless))

    def fetch(self, limit: int, wait_s: float) -> list[SealedEpisode]:
        """Sealed episodes not yet sent in this epoch; empty after `wait_s` without one.

        The large ones come without their bytes, which `fetch_part` gets.
        """
        reply: Episodes = self._request(
            lambda epoch: FetchEpisodes(epoch, limit, wait_s), extra_s=wait_s
        )
        if reply.refused:
            self._on_refused(reply.refused)
        return reply.items

    def fetch_part(self, episode_id: str, offset: int, length: int) -> bytes:
        """Bytes of a sealed episode's file. Raises WireError("unknown_episode")."""
        part: EpisodePart = self._request(
            lambda epoch: FetchPart(epoch, episode_id, offset, length)
        )
        return part.data.tobytes()

    def reject(self, reasons: dict[str, str]) -> None:
        """Have the slots of these episodes run again, {episode id: why}."""
        self._request(lambda epoch: RejectEpisodes(epoch, reasons))

    def acknowledge(self, sha256_by_id: dict[str, str]) -> None:
        """Tell the agent that these episodes are durable here.

        One that it has set aside meanwhile is held here all the same: that is said and no more.
        """
        try:
            self._request(lambda epoch: AckEpisodes(epoch, sha256_by_id))
        except WireError as error:
            if error.code != "conflict":
                raise
            log.error("an acknowledgement is refused: %s", printable(error.message))

    def activate(self, version: str) -> Activated:
        """Have the agent serve a published version to unpinned episodes."""
        reply: Activated = self._request(lambda epoch: Activate(epoch, version))
        return reply

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _request(self, build: Callable[[int], object], extra_s: float = 0.0) -> Any:
        lost: int | None = None
        started_s = logged_s = time.monotonic()
        while not self._stop.is_set():
            used = lost
            try:
                used = self._session.epoch(self._client, lost)
                reply = self._client.request(build(used), self._client.timeout_s + extra_s)
                self._session.has_agent = True
                return reply
            except sqlite3.Error as error:  # the epoch could not be kept
                if not may_pass(error):
                    raise
                if time.monotonic() - logged_s > LOG_EVERY_S or logged_s == started_s:
                    logged_s = time.monotonic()
                    log.warning("waiting for the disk, %.0f s: %s", logged_s - started_s, error)
            except WireError as error:
                self._session.has_agent = not isinstance(error, RequestTimeout)
                if error.code == "stale_epoch":
                    # Another thread of ours may have opened the newer epoch.
                    if used in (None, self._session.epoch(self._client)):
                        raise LearnerSuperseded(error.message) from error
                    continue
                if error.code in ("order_refused", "forbidden"):  # a new start would not help
                    raise ConfigError(error.message) from error
                if error.code not in TRANSIENT_CODES:
                    raise
                if isinstance(error, RequestTimeout) or error.code == "server_restarted":
                    lost = used
                if time.monotonic() - logged_s > LOG_EVERY_S or logged_s == started_s:
                    logged_s = time.monotonic()
                    log.warning("waiting for the agent, %.0f s: %s", logged_s - started_s, error)
            self._stop.wait(RETRY_PAUSE_S)
        raise Stopped


def pages(orders: Sequence[Order]) -> list[list[Order]]:
    """The orders in messages whose headers, which hold all of an order, the agent accepts."""
    found: list[list[Order]] = [[]]
    room_bytes = limit_bytes = DEFAULT_LIMITS.max_header_bytes // 2  # the rest is for held slots
    for order in orders:
        slot_bytes = len(order.order_id) + HELD_BYTES
        size_bytes = len(encode(PostOrders(0, [order]), 0)[0]) + order.slots * slot_bytes
        if found[-1] and (size_bytes > room_bytes or len(found[-1]) == ORDERS_PER_MESSAGE):
            found.append([])
            room_bytes = limit_bytes
        found[-1].append(order)
        room_bytes -= size_bytes
    return found if orders else []
