"""Which adapter versions the policy holds: loading, and making room.

Reading, hashing and parsing happen on a loader thread; the inference thread is held only for the
copy. A version that an episode, an order or the rollback still needs is never evicted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from agent.adapters import AdapterError, AdapterStore
from agent.durable import StorageError, may_be_read_later
from agent.metrics import AgentMetrics
from agent.policy import AdapterUnusable, Policy, Staged
from agent.server.exchange import Mailbox
from agent.server.faults import wire_error_of
from agent.server.inference import Inference
from agent.wire.errors import WireError
from agent.wire.messages import BASE_VERSION

log = logging.getLogger(__name__)

EnsureDone = Callable[[float | WireError], None]


class Residency:
    """Resident versions, as the loop's thread knows them.

    Args:
        slots: versions held at once, the base not counted.
        in_use: names the versions that must stay; called when room is needed.
    """

    def __init__(
        self,
        store: AdapterStore,
        policy: Policy,
        inference: Inference,
        mailbox: Mailbox,
        metrics: AgentMetrics,
        slots: int,
        in_use: Callable[[], set[str]],
    ) -> None:
        self._store = store
        self._policy = policy
        self._inference = inference
        self._mailbox = mailbox
        self._metrics = metrics
        self._slots = slots
        self._in_use = in_use
        self._resident: dict[str, None] = {}  # least recently used first
        self._loading: dict[str, list[EnsureDone]] = {}
        self._retried: dict[str, str] = {}  # version -> why it could not be loaded the last time
        self._executor = ThreadPoolExecutor(1, "loader")

    def versions(self) -> list[str]:
        """What can be served now, the base first."""
        return [BASE_VERSION, *(v for v in self._resident if v not in self._loading)]

    def is_resident(self, version: str) -> bool:
        """Whether requests may name this version."""
        return version in self.versions()

    def touch(self, version: str) -> None:
        """Marks a version as just used."""
        if version in self._resident:
            self._resident[version] = self._resident.pop(version)

    def ensure(self, version: str, done: EnsureDone, *, is_retry: bool = False) -> None:
        """Loads a version unless it is resident.

        `done` gets the seconds that inference was held (0.0 if it already was resident), or the
        error: unknown_version (absent, damaged, altered, of another base, misfit), overloaded
        (no slot, or it cannot be read just now).

        is_retry: nobody asks for it just now; a failure is told and counted when it is a new one.
        """
        if is_retry:
            self._retried.setdefault(version, "")
        else:
            self._retried.pop(version, None)
        if version in self._loading:
            self._loading[version].append(done)
        elif self.is_resident(version):
            self.touch(version)
            done(0.0)
        else:
            self._loading[version] = [done]
            future = self._executor.submit(self._read, version)
            future.add_done_callback(
                lambda future: self._mailbox.post(partial(self._on_read, version, future))
            )

    def close(self) -> None:
        """Waits for a running load."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _read(self, version: str) -> Staged:
        try:
            manifest = self._store.manifest(version)
            if manifest.base_sha256 != self._policy.base_sha256:
                raise AdapterUnusable(
                    f"{version} was trained on base {manifest.base_sha256[:12]}, this server has "
                    f"{self._policy.base_sha256[:12]}: serve that model, or another version"
                )
            return self._policy.stage(version, self._store.verify(version))
        except StorageError as error:
            if may_be_read_later(error):
                raise
            raise AdapterUnusable(f"{version} cannot be read: {error}") from error

    def _on_read(self, version: str, future: Future[Staged]) -> None:
        error = future.exception()
        if error is not None:
            is_refused = isinstance(error, AdapterError | AdapterUnusable)
            is_refused = is_refused and not may_be_read_later(error)
            if is_refused and self._is_new(version, str(error)):
                log.warning("adapter %s is not served: %s", version, error)
                self._metrics.adapter_swaps_total.labels("verify_failed").inc()
            self._conclude(version, wire_error_of(error, f"loading {version}"))
        elif not self._make_room():
            text = f"no room for {version}: all {self._slots} adapter slots are in use"
            if self._is_new(version, text):
                log.warning("%s", text)
            self._conclude(version, WireError("overloaded", text))
        else:
            # Takes its slot now, but is not resident before `_conclude`.
            self._resident[version] = None
            self._inference.install(future.result(), partial(self._on_installed, version))

    def _on_installed(self, version: str, result: float | WireError) -> None:
        if isinstance(result, WireError):
            self._resident.pop(version, None)
        self._conclude(version, result)

    def _conclude(self, version: str, result: float | WireError) -> None:
        if not isinstance(result, WireError):
            self._retried.pop(version, None)
        waiting = self._loading.pop(version)
        for done in waiting:
            done(result)

    def _is_new(self, version: str, reason: str) -> bool:
        """Whether this was not the reason of the retry before, too."""
        former = self._retried.get(version)
        if former is not None:
            self._retried[version] = reason
        return former != reason

    def _make_room(self) -> bool:
        if len(self._resident) < self._slots:
            return True
        needed = self._in_use() | self._loading.keys()
        victim = next((version for version in self._resident if version not in needed), None)
        if victim is None:
            return False
        del self._resident[victim]
        self._inference.drop(victim)
        return True
