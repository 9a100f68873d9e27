"""Drives one robot at a fixed rate: chunks are asked for while actions are executed.

One thread. Each tick: what the server answered is taken, the robot is observed if a chunk is
wanted, and one action is executed, or the robot holds. Nothing waits for the network but the time
that is left of a tick.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from agent.process.clock import unix_s
from agent.wire.errors import ConfigError
from agent.wire.messages import (
    Act,
    EpisodeEnd,
    EpisodeSealed,
    EpisodeStart,
    EpisodeStarted,
    Fault,
    Outcome,
    Telemetry,
    Welcome,
)
from sim_bridge.log import EndLine
from sim_bridge.robot import BridgeError
from sim_bridge.robots.clock import FixedRate
from sim_bridge.robots.figures import Figures
from sim_bridge.robots.guard import Guard
from sim_bridge.robots.judge import Judge
from sim_bridge.robots.playback import Playback
from sim_bridge.robots.robot import Robot
from sim_bridge.robots.running import EpisodeLost, RunningEpisode
from sim_bridge.robots.session import Session, describe
from sim_bridge.worker import GONE_CODES

ACT, TELEMETRY = "act", "telemetry"  # keys of open requests
TELEMETRY_PERIOD_S = 1.0
STOP_LIMIT_S = 1.0  # for ending the open episode once told to stop
MISHAPS_MAX = 3  # episodes in a row that went wrong, before the robot is left alone

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
    """Ticks of one action each. lead_ticks, blend_ticks: as of Playback.

    stale_s: an answer to an older observation is refused. watchdog_s: without a fresh action for so
    long, the robot is reported as held; give_up_s: and its episode is given up.
    """

    rate_hz: float = 20.0
    lead_ticks: int = 4
    blend_ticks: int = 0
    stale_s: float = 1.0
    watchdog_s: float = 0.5
    give_up_s: float = 20.0


class Runtime:
    """Episodes of one robot, one after the other."""

    def __init__(
        self,
        robot: Robot,
        session: Session,
        welcome: Welcome,
        guard: Guard,
        judge: Judge,
        pace: Pace,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate = FixedRate(pace.rate_hz, clock, sleep)
        self.figures = Figures(pace.rate_hz, self._rate.report, guard)
        self._unheld = ""  # why the robot did not hold when it was last told to
        self._mishaps, self._last_mishap = 0, ""  # since the last episode that went well
        self._tell_at_s = clock()
        self._robot, self._session, self._welcome = robot, session, welcome
        self._guard, self._judge = guard, judge
        self._pace, self._clock = pace, clock

    def run_episode(
        self, task: str, horizon_steps: int, should_stop: Callable[[], bool]
    ) -> EndLine:
        """One episode of `task` to its durable end.

        Raises EpisodeLost when the robot could not be reset, the server no longer has it, or
        `should_stop` came before it began; BridgeError when it was refused, or when episode after
        episode goes wrong; ConfigError of the robot's reset.
        """
        if self._mishaps >= MISHAPS_MAX:
            raise BridgeError(f"{MISHAPS_MAX} episodes in a row went wrong; {self._last_mishap}")
        pace = self._pace
        chunk_steps, stale_ticks = self._welcome.chunk_steps, pace.stale_s * pace.rate_hz
        playback = Playback(chunk_steps, pace.lead_ticks, pace.blend_ticks, stale_ticks)
        self._reset(task)
        self._tell(at_once=True)
        started = self._start(task, should_stop)
        self.figures.begin(playback)
        episode = RunningEpisode(started, playback, self._clock())
        self._rate.restart()
        try:
            outcome, reason = self._play(episode, horizon_steps, should_stop)
            sealed, reason = self._end(episode, outcome, reason, should_stop)
        except EpisodeLost as error:
            self.figures.counts["episodes_lost"] += 1
            self._note_mishap(str(error))
            raise
        if reason and not should_stop():
            log.warning("aborted: %s", reason)
            self._note_mishap(reason)
        else:
            self._mishaps = 0
        return EndLine(
            started.episode_id, "", task, "", 0, "serve", started.version, episode.versions,
            sealed.outcome, episode.steps, sealed.counted, unix_s(),
        )  # fmt: skip

    def hold_until(self, is_done: Callable[[], bool], should_stop: Callable[[], bool]) -> None:
        """Holds between two episodes, there for the server, until `is_done` or `should_stop`."""
        while not is_done() and not should_stop():
            self._stand_still()
            self._tell()
            self._session.requests.receive(1.0 / self._pace.rate_hz)

    # ---- the conversation around an episode ----------------------------------------------------

    def _reset(self, task: str) -> None:
        try:
            self._robot.reset(task, "", 0)
        except ConfigError:
            self._stand_still()
            raise
        except Exception as error:  # the robot's, whatever it is: its state is unknown
            self._stand_still()
            reason = f"reset: {type(error).__name__}: {error}"
            self._note_mishap(reason)
            raise EpisodeLost(reason) from error
        self._guard.reset()

    def _start(self, task: str, should_stop: Callable[[], bool]) -> EpisodeStarted:
        session = self._session
        start = EpisodeStart(session.client_id, uuid.uuid4().hex, "", task, session.instance_id)
        reply = self._ask_holding(start, should_stop)
        if isinstance(reply, Fault) and reply.code == "server_restarted":
            session.greet_again(self._welcome, should_stop)
            reply = self._ask_holding(start, should_stop)
        if reply is None:
            raise EpisodeLost("the client was stopped before the episode began")
        if isinstance(reply, Fault) and reply.code in GONE_CODES:
            self._note_mishap(f"start: {describe(reply)}")
            raise EpisodeLost(f"episode of '{task}': {describe(reply)}")
        if not isinstance(reply, EpisodeStarted):
            raise BridgeError(f"episode of '{task}': {describe(reply)}")
        self.figures.unkept.note(reply)
        return reply

    def _ask_holding(self, message: object, is_over: Callable[[], bool]) -> object:
        """The reply, or None once `is_over`; the robot holds while the server is waited for."""
        return self._session.ask(message, is_over, self._stand_still, 1.0 / self._pace.rate_hz)

    def _tell(self, at_once: bool = False) -> None:
        now_s = self._clock()
        if at_once or now_s >= self._tell_at_s:
            self._tell_at_s = now_s + TELEMETRY_PERIOD_S
            session = self._session
            told = Telemetry(session.client_id, self.figures.telemetry(), session.instance_id)
            session.requests.ask(TELEMETRY, told)

    def _note_mishap(self, reason: str) -> None:
        self._mishaps, self._last_mishap = self._mishaps + 1, reason

    # ---- ticks ---------------------------------------------------------------------------------

    def _play(
        self, episode: RunningEpisode, horizon_steps: int, should_stop: Callable[[], bool]
    ) -> tuple[Outcome, str]:
        """Ticks until the episode is over: its outcome, and why if that is not plain."""
        try:
            self._judge.outcome()  # what was said before is about no episode
            while True:
                tick = self._next_tick(episode)
                self._take_answers(episode, tick, 0.0)
                if should_stop():
                    return Outcome.ABORTED, "the client was stopped"
                if episode.playback.wants_chunk(tick):
                    self._ask_for_chunk(episode, tick)
                self._act(episode, tick)
                self._tell()
                outcome = self._robot.outcome() or self._judge.outcome()
                if outcome is not None:
                    return outcome, ""
                if episode.steps >= horizon_steps:
                    return Outcome.TIMEOUT, ""
                if self._clock() - episode.fresh_s > self._pace.give_up_s:
                    return Outcome.ABORTED, f"no chunk for {self._pace.give_up_s:g} s"
                self._take_answers(episode, tick + 1, self._rate.time_left_s())
        except EpisodeLost:
            self._stand_still()
            raise
        except Exception as error:  # the robot's, whatever it is: its state is unknown
            self._stand_still()
            return Outcome.ABORTED, f"{type(error).__name__}: {error}"

    def _stand_still(self) -> str:
        """Holds; why the robot could not, or ""."""
        try:
            self._robot.hold()
        except Exception as error:  # the robot's, whatever it is: there is nothing left to try
            failed = f"hold: {type(error).__name__}: {error}"
            if failed != self._unheld:  # it is tried again at every tick
                log.warning("the robot does not %s", failed)
            self._unheld = failed
            return failed
        self._unheld = ""
        return ""

    def _next_tick(self, episode: RunningEpisode) -> int:
        """Its number among those that took place: one that was missed skips no action.

        But after a pause longer than `stale_s`, say of a driver that blocked, nothing that was
        planned before it is executed.
        """
        self._rate.wait()
        now_s = self._clock()
        pause_s = now_s - episode.ticked_s - 1.0 / self._pace.rate_hz
        if pause_s > self._pace.stale_s:
            log.warning("no tick for %.2f s: what was planned is stale", pause_s)
            episode.playback.expire()
        episode.ticked_s = now_s
        episode.tick += 1
        return episode.tick

    def _act(self, episode: RunningEpisode, tick: int) -> None:
        wanted_A = episode.playback.action(tick)
        now_s = self._clock()
        if wanted_A is None:
            self._robot.hold()
            self.figures.counts["held"] += 1
            if not episode.held and now_s - episode.fresh_s > self._pace.watchdog_s:
                episode.held = True
                self.figures.counts["watchdog_trips"] += 1
                log.warning("no fresh chunk for %.2f s: holding", now_s - episode.fresh_s)
            return
        if episode.held:
            log.warning("chunks are back after %.2f s: going on", now_s - episode.fresh_s)
        episode.held, episode.fresh_s = False, now_s
        if episode.unused_s is not None:
            self.figures.age.add(now_s - episode.unused_s)
            episode.unused_s = None
        safe_A, limited = self._guard.apply(wanted_A, self._robot.position())
        changed = self._robot.apply(safe_A)
        episode.playback.played(tick, safe_A, limited or bool(changed))
        episode.steps += 1
        self.figures.counts["executed"] += 1

    def _ask_for_chunk(self, episode: RunningEpisode, tick: int) -> None:
        episode.seen_s = self._clock()
        seen = self._robot.observe()
        self._judge.see(seen)
        executed = episode.playback.take_settled(tick)
        act = Act(episode.id, episode.step_index, seen.images, seen.proprio, executed)
        episode.playback.ask(tick)
        self._session.requests.ask(ACT, act)

    def _take_answers(self, episode: RunningEpisode, tick: int, wait_s: float) -> None:
        """Answers that came within `wait_s`; they count for the action of `tick`."""
        for answer in self._session.requests.receive(wait_s):
            if answer.key != ACT:
                continue
            self.figures.unkept.note(answer.reply)
            shape_KA = self._welcome.chunk_steps, self._welcome.action_dim
            actions_KA = episode.read_chunk(answer.reply, shape_KA)
            if episode.playback.receive(tick, actions_KA):
                episode.unused_s = episode.seen_s
            else:
                log.warning("a chunk came %d ticks late: stale", episode.playback.delays_ticks[-1])

    def _end(
        self,
        episode: RunningEpisode,
        outcome: Outcome,
        reason: str,
        should_stop: Callable[[], bool],
    ) -> tuple[EpisodeSealed, str]:
        """Holds, and ends the episode at the server: its answer, and what went wrong up to then.

        A silent server is waited for `give_up_s`, or STOP_LIMIT_S once told to stop; meanwhile the
        robot holds. Raises EpisodeLost.
        """
        failed = self._stand_still()
        share_s = self._pace.give_up_s / 2, STOP_LIMIT_S / 2
        failed = self._await_chunk(episode, self._patience(*share_s, should_stop)) or failed
        if failed:
            outcome, reason = Outcome.ABORTED, reason or failed
        self._tell(at_once=True)
        end = EpisodeEnd(episode.id, outcome, episode.steps, episode.playback.take_all(), reason)
        reply = self._ask_holding(end, self._patience(*share_s, should_stop))
        self.figures.unkept.note(reply)
        if not isinstance(reply, EpisodeSealed):
            raise EpisodeLost(f"episode {episode.id}: {describe(reply)}")
        return reply, reason

    def _patience(
        self, limit_s: float, stop_limit_s: float, should_stop: Callable[[], bool]
    ) -> Callable[[], bool]:
        """Whether a wait that begins now is over: after `limit_s`, or `stop_limit_s` after it was
        first seen that the process shall stop.
        """
        ends_s = self._clock() + limit_s
        is_told = False

        def is_over() -> bool:
            nonlocal ends_s, is_told
            if not is_told and should_stop():
                ends_s, is_told = min(ends_s, self._clock() + stop_limit_s), True
            return self._clock() > ends_s

        return is_over

    def _await_chunk(self, episode: RunningEpisode, is_over: Callable[[], bool]) -> str:
        """Holds until no observation is unanswered; what went wrong, or "". Raises EpisodeLost.

        A chunk still on its way counts at the server: its actions have to be told of, too.
        """
        failed, requests = "", self._session.requests
        try:
            while requests.is_open(ACT) and not is_over():
                self._take_answers(episode, self._next_tick(episode), 0.0)
                failed = self._stand_still() or failed
        except EpisodeLost:
            raise
        except BridgeError as error:
            failed = str(error)
        if requests.is_open(ACT):
            requests.cancel(ACT)
            failed = failed or "no answer to the last observation"
        return failed
