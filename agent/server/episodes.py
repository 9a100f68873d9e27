"""Episodes in progress: start, observations, end, and what silence or a failure does to them.

An observation is keyed (episode id, step index): a repeat gets the stored reply, or joins the
request that is already being answered. An episode's end is answered once its seal is durable.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from agent.episode import EndRecord, EpisodeMeta, mint_episode_id
from agent.journal import QUEUE_LIMIT_BYTES
from agent.ledger import SealedRow
from agent.orders import QUIET_LIMIT_S, SLOT_ABORTS_MAX
from agent.policy import ActRequest, ActResult
from agent.process.clock import unix_s
from agent.process.shown import printable
from agent.server.clients import Clients
from agent.server.core import Core
from agent.server.exchange import Exchange
from agent.server.faults import wire_error_of
from agent.server.inference import Job
from agent.server.open_episode import (
    EpisodeRules,
    OpenEpisode,
    PendingAct,
    count_actions,
    join,
    make_meta,
    observation_bytes,
    own_task_order,
)
from agent.server.past_episodes import PastEpisodes
from agent.server.shares import Backlog, check_share
from agent.server.validation import (
    REASON_MAX_CHARS,
    check_name,
    check_observation,
    checked_end,
)
from agent.wire.errors import PerennialError, WireError
from agent.wire.messages import (
    Act,
    Chunk,
    EpisodeEnd,
    EpisodeSealed,
    EpisodeStart,
    EpisodeStarted,
    Outcome,
    Phase,
)

STRAYED_MAX = 256  # clients that get a line
TOO_LARGE = "too_large"  # begins the reason of an episode that was not recorded whole
# Limits of an ordered episode that only one without end meets. A robot may let chunks grow stale.
CHUNKS_PER_STEP_MAX, CHUNKS_MORE = 4, 64
CLIENT_TIME_MAX_S = 3600.0

log = logging.getLogger(__name__)


class Episodes:
    """All open episodes of the server."""

    def __init__(self, core: Core, clients: Clients, rules: EpisodeRules) -> None:
        self._core = core
        self._clients = clients
        self._rules = rules
        self._subscribers: list[Callable[[SealedRow], None]] = []
        self._open: dict[str, OpenEpisode] = {}
        self._past = PastEpisodes(core.journal)
        self._backlog = Backlog(QUEUE_LIMIT_BYTES)
        self._eval_kept: Counter[tuple[str, str, float]] = Counter()
        self._strayed: set[str] = set()  # clients of whose states far outside the log has a line
        clients.on_replaced(self._give_back)
        clients.on_alive(self._keep)

    def __len__(self) -> int:
        return len(self._open)

    @property
    def are_awaited(self) -> bool:
        """Whether somebody waits for a seal."""
        return any(episode.end_waiters for episode in self._open.values())

    def versions(self) -> set[str]:
        """The versions that open episodes are pinned to."""
        return {episode.meta.version for episode in self._open.values()}

    def subscribe(self, on_sealed: Callable[[SealedRow], None]) -> None:
        """Has `on_sealed` called with every episode whose seal is durable."""
        self._subscribers.append(on_sealed)

    # ---- requests ----------------------------------------------------------------------------

    def start(self, message: EpisodeStart, exchange: Exchange) -> None:
        """Opens the episode of a leased slot, or of a robot's own task on the active version."""
        self._clients.check(message, exchange)
        check_name("start_key", message.start_key)
        if self._core.state.is_stopping:
            raise WireError("overloaded", "the server is stopping")
        if bool(message.slot_id) == bool(message.task):
            raise WireError("bad_message", "episode start: give slot_id or task, not both or none")
        self._clients.see(message.client_id, exchange.received_s)
        self._clients.check_unused(message.client_id, message.start_key)
        open_slot = self._start_slot if message.slot_id else self._start_own
        episode = open_slot(message, exchange)
        exchange.reply(
            EpisodeStarted(episode.meta.episode_id, episode.meta.version, episode.is_recorded)
        )

    def act(self, message: Act, exchange: Exchange) -> None:
        """Answers an observation, at once if it was answered before."""
        episode = self._find(message.episode_id, exchange)
        self._check_endless(episode, message, exchange.received_s)
        pending, step = episode.pending, message.step_index
        if step in episode.replies:
            exchange.reply(episode.replies[step])
        elif pending is not None and step == pending.act.step_index:
            join(pending.waiters, exchange, f"step {step}")
        elif step != episode.chunks or pending is not None:
            raise WireError(
                "wrong_step",
                f"step_index {step}, expected {episode.chunks} or a repeat of "
                f"{sorted(episode.replies)}",
            )
        else:
            check_observation(message, self._core.policy)
            episode.require_known(message.executed, self._core.policy.chunk_steps)
            self._make_room(episode, observation_bytes(message))
            self._note_stray_state(episode.meta, message.proprio)
            self._infer(episode, PendingAct(message, [exchange]), exchange.received_s)
        self._see(episode, exchange.received_s)
        self._clients.see(episode.meta.client_id, exchange.received_s)

    def end(self, message: EpisodeEnd, exchange: Exchange) -> None:
        """Seals an episode; a repeat gets the first end's answer."""
        episode = self._open.get(message.episode_id)
        if episode is None:
            exchange.reply(self._past.end_of(message.episode_id, exchange.sender))
        elif (waiters := episode.owned_by(exchange.sender).end_waiters) is not None:
            join(waiters, exchange, "the end")
        else:
            message = checked_end(message, episode.chunks)
            # Who gives up cannot always say what became of the last actions.
            is_abort = message.outcome == Outcome.ABORTED
            require = episode.require_known if is_abort else episode.require_all
            require(message.executed, self._core.policy.chunk_steps)
            self._seal(episode, message, [exchange])
            count_actions(self._core.metrics, episode, message.executed)

    # ---- silence, failure, shutdown ----------------------------------------------------------

    def tick(self, now_s: float) -> None:
        """Gives up episodes that nobody has spoken of, and frees leases that ran out."""
        expired = self._core.book.expire(now_s)
        for who in expired.holders:
            self._clients.failed(who, "leases ran out that it never started")
        silent = expired.episode_ids
        silent += [
            episode_id
            for episode_id, episode in self._open.items()
            if not episode.meta.slot_id and now_s - episode.kept_s > self._rules.lease_s
        ]
        for episode in [self._open[episode_id] for episode_id in silent]:
            if episode.pending is None:  # else the silence is the server's own
                self._abort(episode, f"no message for {self._rules.lease_s:g} s", in_vain=True)
        self._core.metrics.open_episodes.set(len(self._open))
        self._core.metrics.open_slots.set(self._core.book.open_slots())

    def renew(self, now_s: float) -> None:
        """Keep all episodes and leases: it was the server that stood still, not its clients."""
        self._core.book.touch_all(now_s)
        for episode in self._open.values():
            episode.last_seen_s = episode.kept_s = now_s

    def abort_all(self, reason: str) -> None:
        """Seals what is open as aborted."""
        for episode in list(self._open.values()):
            self._abort(episode, reason)

    def stop_recording(self, why: str) -> None:
        """Keeps no more of any open episode. They are acted in to their ends, which are aborted."""
        for episode in list(self._open.values()):
            self._stop_recording(episode, why)

    def on_aborted(self, rows: list[SealedRow]) -> None:
        """What there was of episodes that could not be kept is durable."""
        for row in rows:
            for notify in self._subscribers:
                notify(row)

    def fail_ends(self, error: PerennialError) -> None:
        """Tells everybody who waits for a seal that it will not come."""
        for episode in self._open.values():
            for waiter in episode.end_waiters or []:
                waiter.fail("internal", str(error))
            if episode.end_waiters:
                episode.end_waiters.clear()

    def _give_back(self, client_id: str) -> None:
        """A client's process was started again: nobody will go on with what the former one held."""
        self._core.book.release(client_id)
        for episode in [e for e in self._open.values() if e.meta.client_id == client_id]:
            self._abort(episode, "the client was started again", in_vain=True)

    def _check_endless(self, episode: OpenEpisode, act: Act, now_s: float) -> None:
        """Ends an ordered episode that will not end by itself; its slot is for others, too.

        Raises WireError("unknown_episode").
        """
        is_new = act.step_index == episode.chunks and episode.pending is None
        if not episode.meta.slot_id or not is_new:
            return
        episode.client_s += now_s - episode.last_seen_s
        limit = CHUNKS_PER_STEP_MAX * episode.meta.horizon_steps + CHUNKS_MORE
        why = ""
        if episode.chunks >= limit:
            why = f"{episode.chunks} observations for {episode.meta.horizon_steps} steps"
        elif episode.client_s > CLIENT_TIME_MAX_S:
            why = f"its client took {episode.client_s:.0f} s between answers"
        if why:
            self._abort(episode, f"it does not end: {why}", in_vain=True)
            raise WireError("unknown_episode", f"episode {act.episode_id} was ended: {why}")

    # ---- starting ----------------------------------------------------------------------------

    def _start_slot(self, message: EpisodeStart, exchange: Exchange) -> OpenEpisode:
        self._check_room(exchange)
        if self._core.state.recording_fault:
            raise WireError("overloaded", self._core.state.recording_fault)
        book, client_id = self._core.book, message.client_id
        try:
            started = book.start(message.slot_id, client_id, message.start_key, exchange.received_s)
        except WireError:
            self._clients.use_up(client_id, message.start_key)
            raise
        episode_id, order, index = started.episode_id, started.order, started.slot_index
        if not started.is_new:
            return self._open[episode_id]
        meta = make_meta(order, index, episode_id, client_id, self._core.policy)
        try:
            return self._register(meta, message.start_key, exchange)
        except PerennialError:
            book.finish(episode_id, Outcome.ABORTED)
            raise

    def _start_own(self, message: EpisodeStart, exchange: Exchange) -> OpenEpisode:
        key = (message.client_id, message.start_key)
        for episode in self._open.values():
            if (episode.meta.client_id, episode.start_key) == key:
                return episode
        self._check_room(exchange)
        task = self._core.state.task(message.task)
        order = own_task_order(message.task, task, self._core.state.version_to_serve())
        meta = make_meta(order, 0, mint_episode_id(), message.client_id, self._core.policy)
        return self._register(meta, message.start_key, exchange)

    def _check_room(self, exchange: Exchange) -> None:
        held = sum(episode.party == exchange.party for episode in self._open.values())
        check_share("open episodes", self._rules.max_open, held, len(self._open))

    def _register(self, meta: EpisodeMeta, start_key: str, exchange: Exchange) -> OpenEpisode:
        is_recorded = not self._core.state.recording_fault
        if is_recorded:
            self._core.journal.open(meta, exchange.sender)
        keep_images = True
        if meta.phase == Phase.EVAL:
            kind = (meta.task, meta.version, meta.temperature)
            keep_images = self._eval_kept[kind] < self._rules.keep_eval_images_per_task
            self._eval_kept[kind] += 1
        episode = OpenEpisode(
            *(meta, start_key, keep_images, exchange.received_s, exchange.sender, exchange.party)
        )
        episode.is_recorded = is_recorded
        self._open[meta.episode_id] = episode
        self._core.residency.touch(meta.version)
        return episode

    # ---- observations ------------------------------------------------------------------------

    def _find(self, episode_id: str, exchange: Exchange) -> OpenEpisode:
        episode = self._open.get(episode_id)
        if episode is not None and episode.owned_by(exchange.sender).end_waiters is None:
            return episode
        raise self._past.why_gone(episode_id, exchange.sender)

    def _see(self, episode: OpenEpisode, now_s: float) -> None:
        """A message about an episode in which nothing was wrong, or its answer."""
        episode.last_seen_s = episode.kept_s = now_s
        self._core.book.touch_episode(episode.meta.episode_id, now_s)

    def _note_stray_state(self, meta: EpisodeMeta, proprio_P: np.ndarray) -> None:
        """Count states that the policy cannot tell apart any more; say so once a client."""
        what = self._core.policy.stray_state(proprio_P)
        if not what:
            return
        self._core.metrics.observations_outside_total.inc()
        if meta.client_id not in self._strayed and len(self._strayed) < STRAYED_MAX:
            self._strayed.add(meta.client_id)
            log.warning(
                "client %s, episode %s: %s; the policy sees it at the bound. Check the units and "
                "the order of proprio, and unnorm_key",
                *(meta.client_id, meta.episode_id, what),
            )

    def _keep(self, client_id: str, now_s: float) -> None:
        """A client is there: nothing that it holds runs out."""
        self._core.book.touch_client(client_id, now_s)
        quiet_s = max(QUIET_LIMIT_S, self._rules.lease_s)
        for episode in self._open.values():
            if episode.meta.client_id == client_id and now_s - episode.last_seen_s < quiet_s:
                episode.kept_s = now_s

    def _make_room(self, episode: OpenEpisode, size_bytes: int) -> None:
        """Take the room for an observation, before any work is done for it.

        A simulator waits for the disk to take what it sent before; a robot does not, and its
        episode is not kept.

        Raises:
            WireError: overloaded.
        """
        if episode.is_recorded:
            try:
                waiting_bytes = self._core.journal.waiting_bytes
                self._backlog.check_disk(episode.party, size_bytes, waiting_bytes)
            except WireError as error:
                if episode.meta.phase != Phase.SERVE:
                    raise
                self._stop_recording(episode, error.message)
        self._backlog.begin(episode.party, size_bytes)

    def _infer(self, episode: OpenEpisode, pending: PendingAct, now_s: float) -> None:
        meta, act = episode.meta, pending.act
        request = ActRequest(
            images=act.images,
            proprio=act.proprio,
            instruction=meta.instruction,
            version=meta.version,
            temperature=meta.temperature,
            noise_key=(meta.run_seed, episode.noise_slot, act.step_index),
        )
        episode.pending = pending
        self._core.inference.submit(
            Job(
                request,
                now_s,
                pending.is_wanted,
                lambda result: self._on_result(episode, pending, result),
                episode.party,
                observation_bytes(act),
            )
        )

    def _on_result(
        self, episode: OpenEpisode, pending: PendingAct, result: ActResult | WireError
    ) -> None:
        self._backlog.end(episode.party, observation_bytes(pending.act))
        if episode.pending is not pending:
            return  # the episode has ended meanwhile; whoever waited was told
        episode.pending = None
        self._see(episode, time.monotonic())
        answer = (
            self._record(episode, pending.act, result) if isinstance(result, ActResult) else result
        )
        for waiter in pending.waiters:
            if isinstance(answer, WireError):
                waiter.fail(answer.code, answer.message)
            else:
                waiter.reply(answer)
        total_s = time.monotonic() - pending.waiters[0].received_s
        self._core.metrics.observe_stage("total", total_s)

    def _record(self, episode: OpenEpisode, act: Act, result: ActResult) -> Chunk | WireError:
        """The reply, once the journal has taken it; a refusal leaves the step to be asked again.

        Where the disk is the cause, the robot gets its actions, and the episode is not kept.
        """
        meta = episode.meta
        record, left_out = episode.fit(episode.record(act, result), self._rules)
        if episode.is_recorded and record is not None:
            try:
                self._core.journal.append(meta.episode_id, record)
                self._backlog.hand_over(episode.party, record.size_bytes)
            except PerennialError as error:
                refusal, trouble = wire_error_of(error, "recording a chunk"), self._disk_fault(meta)
                if refusal.code != "overloaded" or not trouble:
                    return refusal
                self._stop_recording(episode, trouble)
        if not episode.is_recorded:
            self._core.metrics.observations_unrecorded_total.inc()
        if left_out and not episode.left_out:
            log.warning("episode %s is too large to be kept whole: %s", meta.episode_id, left_out)
            self._core.metrics.episodes_too_large_total.inc()
        episode.keep(record, left_out)
        chunk = Chunk(
            *(meta.episode_id, act.step_index, result.actions_KA, meta.version),
            recorded=episode.is_recorded and not episode.is_too_large,
        )
        episode.remember(chunk, act.executed)
        count_actions(self._core.metrics, episode, act.executed)
        episode.seams.sent(self._core.policy.normalise(result.actions_KA))
        return chunk

    def _disk_fault(self, meta: EpisodeMeta) -> str:
        """Why an observation is answered although the journal has no room for it; "" if it isn't.

        A simulator waits for a slow disk, a robot does not.
        """
        trouble = self._core.journal.trouble
        if trouble is not None:
            return trouble.text
        return "the disk is too slow" if meta.phase == Phase.SERVE else ""

    def _stop_recording(self, episode: OpenEpisode, why: str) -> None:
        if episode.is_recorded:
            episode.is_recorded = False
            self._core.journal.give_up(episode.meta.episode_id, f"not kept: {why}")

    # ---- ending ------------------------------------------------------------------------------

    def _abort(self, episode: OpenEpisode, reason: str, in_vain: bool = False) -> None:
        """in_vain: its client is to blame, and gets no more work for a while."""
        if episode.end_waiters is None:
            nothing = np.zeros(0, np.uint8)  # is known of the last actions
            end = EpisodeEnd(episode.meta.episode_id, Outcome.ABORTED, 0, nothing, reason)
            self._seal(episode, end, [])
            if in_vain and episode.meta.slot_id:
                self._clients.failed(self._clients.who(episode.meta.client_id), reason)

    def _seal(self, episode: OpenEpisode, told: EpisodeEnd, waiters: list[Exchange]) -> None:
        meta, end = episode.meta, _as_recorded(episode, told)
        self._clients.use_up(meta.client_id, episode.start_key)
        if not episode.is_recorded:
            self._end_unrecorded(episode, waiters)
            return
        # A slot has one open episode, so the first end that is not an abort fills it.
        counted = bool(meta.slot_id) and end.outcome != Outcome.ABORTED
        executed_TK = episode.executed_TK(end.executed, self._core.policy.chunk_steps)
        record = EndRecord(end.outcome, end.steps, executed_TK, end.reason, unix_s())
        self._core.journal.seal(
            meta.episode_id,
            record,
            counted,
            lambda row: self._core.mailbox.post(lambda: self._on_durable(row)),
            lambda: self._core.mailbox.post(lambda: self._on_lost(meta.episode_id)),
        )
        episode.end_waiters = waiters
        if meta.slot_id:
            self._leave_slot(episode, end, is_told=bool(waiters))
        self._drop_pending(episode)

    def _drop_pending(self, episode: OpenEpisode) -> None:
        if episode.pending is not None:
            for waiter in episode.pending.waiters:
                waiter.fail("unknown_episode", f"episode {episode.meta.episode_id} has ended")
            episode.pending = None

    def _leave_slot(self, episode: OpenEpisode, end: EpisodeEnd, is_told: bool) -> None:
        reason = end.reason if is_told else None
        # The same body would most likely record as much again.
        tries = SLOT_ABORTS_MAX // 2 if episode.is_too_large else 1
        self._core.book.finish(episode.meta.episode_id, end.outcome, reason, tries)
        who = self._clients.who(episode.meta.client_id)
        if end.outcome != Outcome.ABORTED:
            self._clients.delivered(who)
        elif is_told:
            self._clients.failed(who, f"it aborted {episode.meta.slot_id}: {end.reason}")

    def _end_unrecorded(self, episode: OpenEpisode, waiters: list[Exchange]) -> None:
        """The end of an episode that is not kept: nothing has to be durable for its answer."""
        if episode.meta.slot_id:
            self._core.book.finish(episode.meta.episode_id, Outcome.ABORTED)
        self._drop_pending(episode)
        episode.end_waiters = waiters
        self._answer_end(EpisodeSealed(episode.meta.episode_id, Outcome.ABORTED, False, False))

    def _on_lost(self, episode_id: str) -> None:
        """The end of an episode was given up before it was durable: whatever it was, it aborts."""
        meta = self._open[episode_id].meta
        if meta.slot_id:
            self._core.book.reopen(meta.slot_id, episode_id)
        self._answer_end(EpisodeSealed(episode_id, Outcome.ABORTED, False, False))

    def _answer_end(self, sealed: EpisodeSealed) -> None:
        episode = self._open.pop(sealed.episode_id)
        self._past.remember(sealed, episode.owner)
        for waiter in episode.end_waiters or []:
            waiter.reply(sealed)

    def _on_durable(self, row: SealedRow) -> None:
        is_whole = not self._open[row.episode_id].is_too_large
        self._answer_end(EpisodeSealed(row.episode_id, row.outcome, row.counted, is_whole))
        for notify in self._subscribers:
            notify(row)


def _as_recorded(episode: OpenEpisode, told: EpisodeEnd) -> EpisodeEnd:
    """The end that fits what was recorded: of an episode that is not whole none counts."""
    if not episode.left_out:
        return told
    if episode.is_too_large:
        reason = f"{TOO_LARGE}: {episode.left_out}"
        return replace(told, outcome=Outcome.ABORTED, reason=printable(reason, REASON_MAX_CHARS))
    reason = f"{told.reason}; " if told.reason else ""
    reason += f"later pictures were not kept: {episode.left_out}"
    return replace(told, reason=printable(reason, REASON_MAX_CHARS))
