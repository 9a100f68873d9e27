"""The active version: what robots' own tasks are served with, and the way back.

Switches are serial: each is loaded, journaled and answered before the next one is looked at, so
that the last decision wins and the journal tells what was served in which order. The journal says
what is active. Where its last version cannot be read, the newest one before it that can stands in,
and the base never does: without any, robots' own tasks are refused until a version is there again.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from agent.adapters import AdapterError, version_number
from agent.durable import StorageError
from agent.ledger import ActivationRow
from agent.process.clock import unix_s
from agent.server.core import Core
from agent.server.exchange import Exchange
from agent.server.faults import answering
from agent.wire.errors import WireError
from agent.wire.messages import BASE_VERSION, Activated

log = logging.getLogger(__name__)

SWITCHES_MAX = 64  # that wait for their turn
STAND_INS_MAX = 8  # versions before the active one that are tried in its place


@dataclass(slots=True)
class Switch:
    """A wish for another version.

    version: None for the one before the active one. again: whether that may follow another such
    switch. check: raises WireError at its turn if it must
    not be made any more.
    """

    version: str | None
    exchange: Exchange
    check: Callable[[], None]
    again: bool = True


class Activation:
    """Switches versions. Open episodes keep theirs; only the journal's word makes it effective."""

    def __init__(self, core: Core, activations: list[str]) -> None:
        """activations: the history, oldest first; its last version is loaded by `restore`."""
        self._core = core
        self._path = [BASE_VERSION]  # the active version last, the one to go back to before it
        self._went_back = False  # with the last switch
        for version in activations:
            self._step(version)
        self._switches: deque[Switch] = deque()  # the first one is being made
        self._target = ""  # its version
        self._served = ""  # the active version or what stands in for it; "": nothing
        self._is_seeking = False
        self._show()

    def versions(self) -> set[str]:
        """The active version, the one a rollback needs, what stands in and what comes next."""
        return {*self._path[-2:], self._served, self._target} - {""}

    # ---- restoring ---------------------------------------------------------------------------

    def restore(self) -> None:
        """Loads the active version or, where it cannot be read, the newest before it that can.

        Does nothing where the active version is served, so it may be asked for every now and then.
        """
        if self._is_seeking or self._served == self._path[-1]:
            return
        self._is_seeking = True
        if not self._served and not self._core.state.active_fault:
            self._core.state.active_fault = f"the active version {self._path[-1]} is being loaded"
        self._seek(self._candidates(), "")

    @property
    def is_restored(self) -> bool:
        """Whether it is decided what is served, if anything."""
        return not self._is_seeking

    def _candidates(self) -> list[str]:
        """What is better than what is served now, the best first."""
        if self._path[-1] == BASE_VERSION:
            return [BASE_VERSION]
        newest = [v for v in dict.fromkeys(reversed(self._path)) if v != BASE_VERSION]
        newest = newest[: STAND_INS_MAX + 1]
        return newest[: newest.index(self._served)] if self._served in newest else newest

    def _seek(self, versions: list[str], why: str) -> None:
        """why: the active version cannot be served, once that is known."""
        active = self._path[-1]
        if not versions:
            self._is_seeking = False
            if not self._served:
                self._refuse(
                    f"the active version {active} cannot be served ({why}); mend its folder, or "
                    "activate another version"
                )
            return

        def on_loaded(result: float | WireError) -> None:
            if active != self._path[-1]:
                self._is_seeking = False  # a switch was made meanwhile
            elif isinstance(result, WireError):
                self._seek(versions[1:], why or result.message)
            else:
                self._is_seeking = False
                self._resume(versions[0], why)

        self._core.residency.ensure(versions[0], on_loaded, is_retry=True)

    def _resume(self, version: str, why: str) -> None:
        """Serves a version that an earlier process, or this one, has made active before."""
        if version != self._path[-1]:
            log.error("%s stands in for the active version %s: %s", version, self._path[-1], why)
        else:
            log.info("the active version %s is loaded", version)
        self._serve(version)
        self._core.success.on_activated(ActivationRow(version, unix_s(), 0))

    def _refuse(self, fault: str) -> None:
        if fault != self._core.state.active_fault:
            log.error("robots' own tasks are refused: %s", fault)
        self._core.state.active_fault = fault
        self._core.metrics.adapter_unreadable.set(1)

    # ---- switching ---------------------------------------------------------------------------

    def activate(
        self, version: str, exchange: Exchange, check: Callable[[], None] = lambda: None
    ) -> None:
        """Loads a version if needed, makes it the active one, and answers with Activated.

        check: raises WireError when its turn comes if it must not be made any more.
        """
        self._enqueue(Switch(version, exchange, check))

    def rollback(self, exchange: Exchange, again: bool = True) -> None:
        """Answers with Activated, or with the Fault conflict if there is no way back.

        again: whether to go on from a version that was gone back to.
        """
        self._enqueue(Switch(None, exchange, lambda: None, again))

    def _enqueue(self, switch: Switch) -> None:
        for waiting in self._switches:
            if waiting.version == switch.version and waiting.exchange.is_expired(
                switch.exchange.received_s
            ):
                # Whoever gave up and asks again keeps the place: it decides nothing new.
                waiting.exchange.fail("deadline", "asked again")
                waiting.exchange = switch.exchange
                return
        if len(self._switches) >= SWITCHES_MAX:
            raise WireError("overloaded", f"{SWITCHES_MAX} switches wait already")
        self._switches.append(switch)
        if len(self._switches) == 1:
            self._begin()

    def _begin(self) -> None:
        """Looks at the switches that wait until one of them takes time."""
        while self._switches:
            switch = self._switches[0]
            with answering(switch.exchange, "switching versions"):
                self._target = self._decide(switch)
                self._core.residency.ensure(self._target, self._on_loaded)
                return
            self._switches.popleft()

    def _decide(self, switch: Switch) -> str:
        """The version that a switch asks for. Raises WireError if it is not to be made."""
        if switch.exchange.is_expired(time.monotonic()):
            raise WireError("deadline", "the switches before this one took too long")
        switch.check()
        if switch.version is not None:
            return switch.version
        if self._went_back and not switch.again:
            raise WireError(
                "conflict",
                f"{self._path[-1]} is active since a rollback; to go further back, say --again, or "
                "activate a version by its name",
            )
        if len(self._path) < 2:
            raise WireError("conflict", f"{self._path[-1]} is the first version: no way back")
        return self._path[-2]

    def _on_loaded(self, result: float | WireError) -> None:
        exchange, version = self._switches[0].exchange, self._target
        with answering(exchange, f"activating {version}"):
            if isinstance(result, WireError):
                raise result
            if version != self._path[-1]:
                self._core.journal.set_active(
                    version,
                    lambda row: self._core.mailbox.post(lambda: self._on_durable(result, row)),
                )
                return
            if version != self._served:
                self._resume(version, "")
            exchange.reply(Activated(version, self._previous(), result))
        self._conclude()

    def _on_durable(self, hold_s: float, row: ActivationRow) -> None:
        switch, version = self._switches[0], self._target
        with answering(switch.exchange, f"activating {version}"):
            self._step(version)
            self._serve(version)
            self._core.success.on_activated(row)
            swaps = self._core.metrics.adapter_swaps_total
            swaps.labels("rolled_back" if switch.version is None else "ok").inc()
            log.info("active version is %s, inference was held %.1f ms", version, hold_s * 1e3)
            switch.exchange.reply(Activated(version, self._previous(), hold_s))
        self._conclude()

    def _conclude(self) -> None:
        """The first switch was answered: the next one's turn."""
        self._switches.popleft()
        self._target = ""
        self._begin()

    def _step(self, version: str) -> None:
        """Going to the version before the present one is going back."""
        self._went_back = self._path[-2:-1] == [version]
        if self._went_back:
            self._path.pop()
        elif version != self._path[-1]:
            self._path.append(version)

    def _previous(self) -> str:
        return self._path[-2] if len(self._path) > 1 else self._path[-1]

    def _serve(self, version: str) -> None:
        self._served = version
        self._core.state.active_fault = ""
        self._core.metrics.adapter_unreadable.set(version != self._path[-1])
        self._show()

    def _show(self) -> None:
        """The version that is served; while there is none, the one that should be."""
        version, metrics = self._served or self._path[-1], self._core.metrics
        self._core.state.active_version = version
        metrics.adapter_version.set(version_number(version) if version != BASE_VERSION else 0)
        metrics.adapter_info.clear()  # of the version before
        if self._served:
            sha12 = version.partition("-")[2]
            metrics.adapter_info.labels(version, sha12, self._parent(version)).set(1)

    def _parent(self, version: str) -> str:
        """From the manifest; "" for the base, and for one that has gone since it was loaded."""
        if version == BASE_VERSION:
            return ""
        try:
            return self._core.store.manifest(version).parent
        except (AdapterError, StorageError):
            return ""
