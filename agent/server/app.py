"""The composition root of the policy server: makes the parts, runs them, stops them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from agent.adapters import AdapterStore
from agent.config import AgentConfig
from agent.episode import mint_episode_id
from agent.http import Health
from agent.journal import Journal, JournalFailed
from agent.metrics import AgentMetrics
from agent.orders import OrderBook
from agent.policy import Policy, UnknownInstruction
from agent.recovery import Recovered
from agent.server.activation import Activation
from agent.server.clients import Clients
from agent.server.core import Core
from agent.server.delivery import Delivery
from agent.server.endpoints import bind_sockets
from agent.server.episodes import Episodes
from agent.server.exchange import Mailbox
from agent.server.faults import answering
from agent.server.inference import Inference
from agent.server.loop import MAX_WAIT_S, Handlers, Loop
from agent.server.measuring import measure_when_asked
from agent.server.open_episode import EpisodeRules
from agent.server.operator import Operator
from agent.server.recording import Recording
from agent.server.residency import Residency
from agent.server.state import ServerState, Task
from agent.server.watchdog import watch
from agent.success import SuccessRecord
from agent.wire import messages as m
from agent.wire.codec import DEFAULT_LIMITS
from agent.wire.errors import ConfigError
from agent.wire.wakeup import Wakeup

log = logging.getLogger(__name__)

TICK_S = 0.25  # housekeeping
RELOAD_S = 5.0  # between attempts to load the active version, and those that slots wait for
RESTORE_LIMIT_S = 120.0  # for loading the active version at start
DRAIN_LIMIT_S = 5.0  # for answering what is in flight when stopping
SEAL_LIMIT_S = 10.0  # for seals that somebody waits for when stopping
ABORT_LIMIT_S = 1.0  # for those that nobody waits for: else the next start does it
STANDSTILL_SHARE = 0.5  # of lease_s, beyond a wait for messages: those that came are not read yet
ALIVE_LIMIT_S = 30.0  # without a turn of the loop the process counts as stuck


class Server:
    """A policy server; `run` it in one thread, then `close` it there.

    The state directory and the sockets are taken before `load_policy` is called, which may last.
    Raises ConfigError, StorageError (StateLocked: another process holds the state directory).
    """

    def __init__(
        self, config: AgentConfig, load_policy: Callable[[], Policy], metrics: AgentMetrics
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._state = ServerState()
        self._book = OrderBook(config.lease_s, mint_episode_id)
        self._is_ready = False
        self._tick_at_s = self._reload_at_s = 0.0
        self._turned_s = float("inf")
        self._resources = ExitStack()
        with self._resources as stack:
            self._wakeup = Wakeup()
            stack.callback(self._wakeup.close)
            self._journal = Journal(
                Path(config.state_dir),
                config.journal_flush_interval_s,
                on_synced=metrics.episode_store_fsync_seconds.observe,
            )
            stack.callback(lambda: self._journal.close(SEAL_LIMIT_S))
            self._robots, self._operator_socket = bind_sockets(config, metrics, stack)
            self._assemble(load_policy(), stack)
            self._resources = stack.pop_all()

    @property
    def robots_endpoint(self) -> str:
        """Where robots and simulators connect."""
        return self._robots.endpoint

    @property
    def operator_endpoint(self) -> str:
        """Where the learner and operators connect."""
        return self._operator_socket.endpoint

    def health(self) -> Health:
        """For the HTTP thread."""
        now_s, batch_since_s = time.monotonic(), self._inference.running_since_s
        silence_s = now_s - self._loop.last_turn_s
        if self._is_ready and silence_s > ALIVE_LIMIT_S:
            return Health(False, False, f"the loop has not turned for {silence_s:.0f} s")
        if batch_since_s is not None and now_s - batch_since_s > self._inference.batch_limit_s:
            return Health(False, False, f"one batch has taken {now_s - batch_since_s:.0f} s so far")
        if self._journal.failure is not None:
            return Health(False, False, str(self._journal.failure))
        if self._state.is_stopping:
            return Health(True, False, "stopping")
        if self._is_ready and self._state.active_fault:
            return Health(True, False, self._state.active_fault)
        if not self._robots.is_open:
            return Health(True, False, "nobody new is let in: the authenticator has ended")
        if not self._is_ready:
            return Health(True, False, "starting")
        return Health(True, True, self._state.recording_fault)

    def status_line(self) -> str:
        """What people want to see first; for the loop's thread."""
        if not self._is_ready:
            return "loading the active adapter"
        if self._state.active_fault:
            return f"not ready: {self._state.active_fault}"
        if self._state.recording_fault:
            return f"serving {self._state.active_version}; {self._state.recording_fault}"
        return f"serving {self._state.active_version}, {len(self._episodes)} episodes open"

    def wake(self) -> None:
        """Makes the loop look at `should_stop` at once; callable from signal handlers."""
        self._wakeup.set()

    def run(self, should_stop: Callable[[], bool], on_ready: Callable[[], None]) -> None:
        """Serves until `should_stop`, then answers what is in flight and seals what is open.

        `on_ready` is called when the active version is there and messages are answered from now on.
        Raises JournalFailed when the journal has ended for what time does not mend.
        """
        self._journal.start(
            lambda rows: self._mailbox.post(lambda: self._episodes.on_aborted(rows))
        )
        self._restore(should_stop)
        if should_stop():
            return
        self._is_ready = True
        on_ready()
        log.info(
            "serving robots at %s, operators at %s", self._robots.endpoint, self.operator_endpoint
        )
        self._watchdog.start()
        while not should_stop() and self._journal.failure is None:
            self._loop.run_once()
        self._stop()
        if self._journal.failure is not None:
            raise JournalFailed(str(self._journal.failure))

    def close(self) -> None:
        """Lets go of sockets, threads and the state directory."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- making ------------------------------------------------------------------------------

    def _assemble(self, policy: Policy, stack: ExitStack) -> None:
        config, metrics, state = self._config, self._metrics, self._state
        recovered = self._journal.recover()
        for reason, count in recovered.distrusted.items():
            metrics.episodes_quarantined_total.labels(reason).inc(count)
        self._book.restore(recovered.orders, recovered.filled)
        success = SuccessRecord(metrics)
        success.restore(recovered.orders, self._journal.history())
        self._register_tasks(policy, recovered)
        store = AdapterStore(Path(config.adapters_dir))
        mailbox = self._mailbox = Mailbox(self._wakeup)
        self._inference = Inference(policy, mailbox, metrics, config.max_batch, config.max_wait_s)
        stack.callback(self._inference.close)
        self._residency = Residency(
            store,
            policy,
            self._inference,
            mailbox,
            metrics,
            config.policy.adapter_slots,
            self._versions_in_use,
        )
        stack.callback(self._residency.close)
        core = Core(
            state,
            policy,
            self._book,
            self._journal,
            store,
            self._inference,
            self._residency,
            mailbox,
            metrics,
            success,
        )
        self._activation = Activation(core, recovered.activations)
        self._clients = Clients(core, config.lease_s, config.max_message_bytes)
        rules = EpisodeRules(
            config.lease_s,
            config.max_open_episodes,
            config.keep_eval_images_per_task,
            config.max_chunk_bytes,
            config.max_episode_bytes,
        )
        self._episodes = Episodes(core, self._clients, rules)
        self._episodes.subscribe(success.on_sealed)
        self._recording = Recording(core, self._episodes)
        # The learner reads with the default limits, whatever this server's own may be.
        max_bytes = min(config.max_message_bytes, DEFAULT_LIMITS.max_message_bytes)
        delivery = Delivery(core, max_bytes // 2)
        stack.callback(delivery.close)
        self._operator = Operator(
            core, self._activation, self._episodes, delivery, bool(recovered.activations)
        )
        delivery.on_damaged(self._operator.on_damaged)
        tables = [
            (self._robots, self._client_handlers()),
            (self._operator_socket, self._operator_handlers()),
        ]
        self._loop = Loop(tables, mailbox, self._wakeup, state, metrics, self._turn)
        self._watchdog = watch(self._loop, self._inference, metrics)
        stack.callback(self._watchdog.close)
        measure_when_asked(metrics, config)

    def _register_tasks(self, policy: Policy, recovered: Recovered) -> None:
        for slug, task in self._config.tasks.items():
            try:
                policy.check_instruction(task.instruction)
            except UnknownInstruction as error:
                raise ConfigError(f"tasks.{slug}: {error}") from error
            self._state.tasks[slug] = Task(task.suite, task.instruction)
        self._state.register(recovered.orders)

    def _client_handlers(self) -> Handlers:
        return {
            m.Hello: self._clients.hello,
            m.Assign: self._clients.assign,
            m.Telemetry: self._clients.telemetry,
            m.EpisodeStart: self._episodes.start,
            m.Act: self._episodes.act,
            m.EpisodeEnd: self._episodes.end,
        }

    def _operator_handlers(self) -> Handlers:
        return {
            m.LearnerHello: self._operator.learner_hello,
            m.PostOrders: self._operator.post_orders,
            m.FetchEpisodes: self._operator.fetch,
            m.FetchPart: self._operator.fetch_part,
            m.RejectEpisodes: self._operator.reject,
            m.AckEpisodes: self._operator.ack,
            m.Activate: self._operator.activate,
            m.Rollback: self._operator.rollback,
            m.Status: self._operator.status,
        }

    # ---- running -----------------------------------------------------------------------------

    def _turn(self, now_s: float) -> float | None:
        """What is done once a turn of the loop, besides answering."""
        gap_s, self._turned_s = now_s - self._turned_s, now_s
        with answering(None, "housekeeping"):
            if gap_s - MAX_WAIT_S > self._config.lease_s * STANDSTILL_SHARE:
                log.warning("the server stood still for %.1f s: no lease ran out by that", gap_s)
                self._clients.renew(now_s, gap_s)
                self._episodes.renew(now_s)
            if now_s >= self._tick_at_s:
                self._tick_at_s = now_s + TICK_S
                self._tick(now_s)
        return self._inference.pump(now_s, len(self._episodes))

    def _tick(self, now_s: float) -> None:
        if self._journal.failure is not None:
            return  # the loop ends
        self._recording.tick(now_s)
        self._clients.tick(now_s)
        self._episodes.tick(now_s)
        self._operator.tick(now_s)
        if now_s >= self._reload_at_s:
            self._reload_at_s = now_s + RELOAD_S
            self._activation.restore()
            self._load_ordered_versions()

    def _load_ordered_versions(self) -> None:
        """After a restart, slots wait for versions that nobody asks for any more."""
        for version in self._book.free_versions():
            self._residency.ensure(version, lambda _: None, is_retry=True)

    def _versions_in_use(self) -> set[str]:
        ordered = self._book.needed_versions()
        return ordered | self._episodes.versions() | self._activation.versions()

    def _restore(self, should_stop: Callable[[], bool]) -> None:
        """Loads the active version before the first message is looked at, if that can be done."""
        deadline_s = time.monotonic() + RESTORE_LIMIT_S
        self._activation.restore()
        while not self._activation.is_restored and not should_stop():
            if time.monotonic() > deadline_s:
                log.error("no version was loaded within %g s: going on without", RESTORE_LIMIT_S)
                return
            self._loop.run_actions()
            time.sleep(0.005)

    def _stop(self) -> None:
        self._state.is_stopping = True
        self._run_until(lambda: self._inference.is_idle, DRAIN_LIMIT_S)
        if self._journal.trouble is not None:
            self._recording.stop("the server was stopped meanwhile")
        if self._journal.failure is None:
            self._episodes.abort_all("the server was stopped")
            is_awaited = self._episodes.are_awaited
            self._run_until(self._is_done, SEAL_LIMIT_S if is_awaited else ABORT_LIMIT_S)
        if self._journal.failure is not None:
            self._episodes.fail_ends(self._journal.failure)
        log.info("stopped with %d episodes open", len(self._episodes))

    def _is_done(self) -> bool:
        return not len(self._episodes) or self._journal.failure is not None

    def _run_until(self, condition: Callable[[], bool], limit_s: float) -> None:
        deadline_s = time.monotonic() + limit_s
        while not condition() and time.monotonic() < deadline_s:
            self._loop.run_once()
