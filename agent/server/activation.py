"""The active version: what robots' own tasks are served with, and the way back."""

from __future__ import annotations

import logging
import time

from agent.ledger import ActivationRow
from agent.server.core import Core
from agent.server.exchange import Exchange
from agent.server.faults import answering
from agent.wire.errors import WireError
from agent.wire.messages import BASE_VERSION, Activated

log = logging.getLogger(__name__)


class Activation:
    """Switches versions. Open episodes keep theirs; only the journal's word makes it effective."""

    def __init__(self, core: Core, activations: list[str]) -> None:
        """activations: the history, oldest first; its last version is loaded by `restore`."""
        self._core = core
        self._path = [BASE_VERSION]  # the active version last, the one to go back to before it
        for version in activations:
            self._step(version)
        self._wanted, self._path = self._path, [BASE_VERSION]
        self._show()

    def versions(self) -> set[str]:
        """The active version and the one a rollback needs."""
        return {*self._path[-2:], *self._wanted[-2:]}

    def restore(self) -> None:
        """Verifies and loads the last active version; the base is served until it is there."""
        version = self._wanted[-1]

        def on_loaded(result: float | WireError) -> None:
            if isinstance(result, WireError):
                log.error("active version %s cannot be served, the base is: %s", version, result)
                self._core.success.on_activated(ActivationRow(BASE_VERSION, time.time(), 0))
            else:
                self._path = self._wanted
                self._show()
            self._wanted = []

        self._core.residency.ensure(version, on_loaded)

    @property
    def is_restored(self) -> bool:
        """Whether `restore` has ended."""
        return not self._wanted

    def activate(self, version: str, exchange: Exchange) -> None:
        """Loads a version if needed, makes it the active one, and answers with Activated."""
        self._switch(version, exchange, "ok")

    def rollback(self, exchange: Exchange) -> None:
        """Answers with Activated. Raises WireError("conflict") if there is no way back."""
        if len(self._path) < 2:
            raise WireError("conflict", f"{self._path[-1]} is the first version: no way back")
        self._switch(self._path[-2], exchange, "rolled_back")

    def _switch(self, version: str, exchange: Exchange, result: str) -> None:
        def on_loaded(hold_s: float | WireError) -> None:
            if isinstance(hold_s, WireError):
                exchange.fail(hold_s.code, hold_s.message)
            elif version == self._path[-1]:
                exchange.reply(Activated(version, self._previous(), hold_s))
            else:
                with answering(exchange, f"activating {version}"):
                    self._core.journal.set_active(
                        version,
                        lambda row: self._core.mailbox.post(
                            lambda: on_durable(hold_s, row), exchange
                        ),
                    )

        def on_durable(hold_s: float, row: ActivationRow) -> None:
            if version != self._path[-1]:
                self._step(version)
                self._core.metrics.adapter_swaps_total.labels(result).inc()
                self._core.success.on_activated(row)
                self._show()
                log.info("active version is %s, inference was held %.1f ms", version, hold_s * 1e3)
            exchange.reply(Activated(version, self._previous(), hold_s))

        self._core.residency.ensure(version, on_loaded)

    def _step(self, version: str) -> None:
        """Going to the version before the present one is going back."""
        if self._path[-2:-1] == [version]:
            self._path.pop()
        elif version != self._path[-1]:
            self._path.append(version)

    def _previous(self) -> str:
        return self._path[-2] if len(self._path) > 1 else self._path[-1]

    def _show(self) -> None:
        version = self._path[-1]
        self._core.state.active_version = version
        number, parent = 0, ""
        if version != BASE_VERSION:
            manifest = self._core.store.manifest(version)
            number, parent = manifest.number, manifest.parent
        metrics = self._core.metrics
        metrics.adapter_version.set(number)
        metrics.adapter_info.clear()  # of the version before
        metrics.adapter_info.labels(version, version.partition("-")[2], parent).set(1)
