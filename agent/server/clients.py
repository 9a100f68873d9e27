"""The client side of the protocol: hello, assignments and telemetry."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.metrics import PROTOCOL
from agent.process.shown import printable, shown
from agent.server.cool_off import CoolOff
from agent.server.core import Core
from agent.server.exchange import Exchange
from agent.server.shares import check_share
from agent.server.telemetry import ClientTelemetry
from agent.server.validation import (
    check_name,
    check_protocol_version,
    check_range,
    check_slug,
)
from agent.wire.errors import WireError
from agent.wire.messages import (
    PROTOCOL_VERSION,
    Assign,
    Assignments,
    EpisodeStart,
    Hello,
    Ok,
    Telemetry,
    Welcome,
)
from agent.wire.telemetry import TELEMETRY_NAMES

LEASES_MAX = 256  # of a client that it has not started
LEASES_PER_REPLY = 128  # that fit one header, whatever their instructions are
CLIENTS_MAX = 4096
FORGET_AFTER_S = 600.0  # or after lease_s, whichever is longer
KEEP_SHARE = 0.1  # of lease_s, between two looks at what a client holds
FORMER_MAX = 64  # replaced instances remembered per client
USED_STARTS_MAX = 128  # likewise, of starts whose episode is over or was refused
RETRY_AFTER_S = 0.1  # told to a client that gets no lease
TELL_PAUSE_S = 2.0  # from which on a client's cooling off is in the log

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Client:
    """A client that said hello to this server, and the process instances it was before.

    owner: whose key it said hello with; nobody else's messages can speak for it. party: whose
    limits it counts against. who: answers for what becomes of its work: its key's name, or, where
    there are none, the first client that said hello over its connection.
    """

    owner: str
    instance_id: str
    last_seen_s: float
    party: str
    who: str
    kept_s: float = 0.0  # when it last kept what it holds
    former: deque[str] = field(default_factory=lambda: deque(maxlen=FORMER_MAX))
    used_starts: deque[str] = field(default_factory=lambda: deque(maxlen=USED_STARTS_MAX))


class Clients:
    """Who is there, and who gets which slot."""

    def __init__(self, core: Core, lease_s: float, max_message_bytes: int) -> None:
        """max_message_bytes: of one message, for clients to know before they send it."""
        self._core = core
        self._max_message_bytes = max_message_bytes
        self._lease_s = lease_s
        self._clients: dict[str, Client] = {}
        self._telemetry = ClientTelemetry(core.metrics)
        self._give_back: Callable[[str], None] = lambda client_id: None
        self._keep: Callable[[str, float], None] = lambda client_id, now_s: None
        self._cool_off = CoolOff()

    def on_replaced(self, give_back: Callable[[str], None]) -> None:
        """Has `give_back` called with the id of a client whose process was started again."""
        self._give_back = give_back

    def on_alive(self, keep: Callable[[str, float], None]) -> None:
        """Has `keep` called with the id of a client that gave a sign of life, and the time [s]."""
        self._keep = keep

    def hello(self, message: Hello, exchange: Exchange) -> None:
        """Takes a client in; the reply is the contract."""
        check_protocol_version(message.protocol_version)
        check_name("client_id", message.client_id)
        if message.instance_id:
            check_name("instance_id", message.instance_id)
        self._take_in(message, exchange)
        exchange.reply(
            Welcome(
                protocol_version=PROTOCOL_VERSION,
                server_id=self._core.state.server_id,
                policy=self._core.policy.name,
                active_version=self._core.state.active_version,
                chunk_steps=self._core.policy.chunk_steps,
                action_dim=self._core.policy.action_dim,
                proprio_dim=self._core.policy.proprio_dim,
                images=self._core.policy.images,
                max_message_bytes=self._max_message_bytes,
            )
        )

    def assign(self, message: Assign, exchange: Exchange) -> None:
        """Leases slots whose version can be served now."""
        self.check(message, exchange)
        check_slug("suite", message.suite)
        check_range("count", message.count, 1, LEASES_MAX)
        self.see(message.client_id, exchange.received_s)
        leases = []
        who, versions = self.who(message.client_id), self._core.residency.versions()
        pause_s = self._cool_off.left_s(who, exchange.received_s)
        is_kept = self._core.journal.trouble is None and not self._core.state.recording_fault
        if is_kept and not self._core.state.is_stopping and not pause_s:
            book, now_s = self._core.book, exchange.received_s
            waiting = self._cool_off.waiting(now_s)
            fair = book.allowance(message.suite, who, now_s, versions, waiting)
            fair = min(fair, LEASES_PER_REPLY)
            count = min(message.count, fair, LEASES_MAX - book.leased(who))
            leases = book.lease(message.client_id, message.suite, count, now_s, versions, who)
        exchange.reply(Assignments(leases, 0.0 if leases else max(RETRY_AFTER_S, pause_s)))

    def who(self, client_id: str) -> str:
        """Who answers for a client."""
        client = self._clients.get(client_id)
        return client.who if client is not None else client_id

    def failed(self, who: str, what: str) -> None:
        """The work of a client, or of a key, ended in vain: it gets no more for a while."""
        pause_s = self._cool_off.fail(who, time.monotonic())
        if pause_s >= TELL_PAUSE_S:
            log.warning("no work for %s for %.0f s: %s", shown(who), pause_s, printable(what))

    def delivered(self, who: str) -> None:
        """An episode of a client, or of a key, counted."""
        self._cool_off.deliver(who)

    def telemetry(self, message: Telemetry, exchange: Exchange) -> None:
        """Exports a client's figures."""
        self.check(message, exchange)
        unknown = sorted(message.gauges.keys() - set(TELEMETRY_NAMES))
        if unknown:
            raise WireError(
                "bad_message", f"gauges {unknown[:8]} are not among {list(TELEMETRY_NAMES)}"
            )
        self.see(message.client_id, exchange.received_s)
        self._telemetry.take(message.client_id, message.instance_id, message.gauges)
        exchange.reply(Ok())

    def see(self, client_id: str, now_s: float) -> None:
        """Take note of a sign of life: a message in which nothing is wrong."""
        client = self._clients.get(client_id)
        if client is None:
            return  # forgotten, or a server that was started again: it will be told
        client.last_seen_s = now_s
        if now_s - client.kept_s >= self._lease_s * KEEP_SHARE:
            client.kept_s = now_s
            self._keep(client_id, now_s)

    def check(self, message: Assign | EpisodeStart | Telemetry, exchange: Exchange) -> None:
        """Check that a message is from a client that is here.

        Raises WireError: server_restarted for a client that must say hello, forbidden for one that
        belongs to another key, stale_epoch for a process that is not the client's latest.
        """
        client = self._clients.get(message.client_id)
        if client is None:
            raise WireError("server_restarted", "this server does not know you: say hello first")
        _check_owner(client, message.client_id, exchange.sender)
        if client.instance_id != message.instance_id:
            raise _replaced(message.client_id)

    def use_up(self, client_id: str, start_key: str) -> None:
        """What a client started under this key is over, or was refused: no copy may begin it."""
        client = self._clients.get(client_id)
        if client is not None:
            client.used_starts.append(start_key)

    def check_unused(self, client_id: str, start_key: str) -> None:
        """Raises WireError("lease_lost") for a copy of a start that nobody waits for any more."""
        client = self._clients.get(client_id)
        if client is not None and start_key in client.used_starts:
            raise WireError(
                "lease_lost",
                f"start_key {start_key!r} belongs to a start that was refused or whose episode is "
                "over; make a new key for each start",
            )

    def tick(self, now_s: float) -> None:
        """Forgets clients that were silent for long, and counts the others."""
        limit_s = max(FORGET_AFTER_S, self._lease_s)
        silent = [k for k, c in self._clients.items() if now_s - c.last_seen_s > limit_s]
        for client_id in silent:
            self._forget(client_id)
        seen = {k for k, c in self._clients.items() if now_s - c.last_seen_s <= self._lease_s}
        self._core.metrics.clients_cooling_off.set(len(self._cool_off.waiting(now_s)))
        self._core.metrics.sessions_active.labels(PROTOCOL).set(len(seen))
        self._telemetry.show(seen)

    def renew(self, now_s: float, gap_s: float) -> None:
        """The server stood still for so long: none of it was its clients' silence."""
        for client in self._clients.values():
            client.last_seen_s = min(client.last_seen_s + gap_s, now_s)

    def _make_room(self, exchange: Exchange) -> None:
        """For one client id more. Raises WireError("overloaded")."""
        if len(self._clients) >= CLIENTS_MAX:
            client_id, client = min(self._clients.items(), key=lambda item: item[1].last_seen_s)
            if exchange.received_s - client.last_seen_s > self._lease_s:  # it holds nothing
                self._forget(client_id)
        held = sum(client.party == exchange.party for client in self._clients.values())
        check_share("client ids", CLIENTS_MAX, held, len(self._clients))

    def _forget(self, client_id: str) -> None:
        del self._clients[client_id]
        self._telemetry.forget(client_id)

    def _take_in(self, message: Hello, exchange: Exchange) -> None:
        """Knows the client from now on; what its former process held is given back."""
        client, now_s = self._clients.get(message.client_id), exchange.received_s
        if client is None:
            self._make_room(exchange)
            here = (each.who for each in self._clients.values() if each.party == exchange.party)
            who = exchange.sender or next(here, message.client_id)
            self._clients[message.client_id] = Client(
                exchange.sender, message.instance_id, now_s, exchange.party, who
            )
            return
        _check_owner(client, message.client_id, exchange.sender)
        if client.instance_id != message.instance_id:
            if message.instance_id in client.former:  # a hello that was under way for long
                raise _replaced(message.client_id)
            self._give_back(message.client_id)
            client.former.append(client.instance_id)
            client.instance_id = message.instance_id
        client.party = exchange.party
        client.used_starts.clear()  # whoever says hello begins anew, with keys of its own
        self.see(message.client_id, now_s)


def _check_owner(client: Client, client_id: str, sender: str) -> None:
    if client.owner != sender:
        raise WireError(
            "forbidden",
            f"client_id {client_id!r} is in use with another key than that of {sender!r}; choose "
            "another client_id",
        )


def _replaced(client_id: str) -> WireError:
    return WireError(
        "stale_epoch",
        f"a newer process has said hello as client {client_id!r}; "
        "processes that run at the same time need a client_id each",
    )
