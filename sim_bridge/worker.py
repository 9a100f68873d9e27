"""The worker: one event loop, one socket, many bodies; no body ever waits for another's answer.

Each pass asks for work for idle lanes, takes the answers that came, makes the log durable, and then
gives the body of one ready lane its turn (a reset, or a whole chunk). While that body moves, the
server already infers for the lanes that wait.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter, deque
from collections.abc import Callable

from agent.process.shown import complain
from agent.wire.messages import (
    Assign,
    Assignments,
    EpisodeEnd,
    EpisodeSealed,
    EpisodeStarted,
    Fault,
    Hello,
    Telemetry,
    Welcome,
)
from sim_bridge.client import (
    TRANSIENT_CODES,
    Answer,
    RequestTable,
    Unreadable,
    describe_reply,
)
from sim_bridge.contract import require_fit
from sim_bridge.lane import BadReply, Lane, Phase
from sim_bridge.log import EndLog
from sim_bridge.player import Player
from sim_bridge.robot import BridgeError, Suite, UnknownTask
from sim_bridge.unkept import Unkept

# The server no longer has the episode or the lease: there is nobody to abort it with.
GONE_CODES = frozenset(
    {"unknown_episode", "unknown_slot", "server_restarted", "lease_lost", "episode_open_elsewhere"}
)
HELLO_AFTER_SENDINGS = 3  # unanswered sendings of one request before the server is greeted anew
WAIT_S = 0.1  # longest wait of one pass when no body has work
PAUSE_S = 0.5  # between hellos, after a refused Assign, and of a lane whose episode went wrong
SHORTEST_RETRY_S = 0.02  # between two Assigns
SILENCE_WARNING_S = 10.0  # between two lines about a server that does not answer
TELEMETRY_PERIOD_S = 1.0
STOP_LIMIT_S = 1.0  # for ending the open episodes when the worker stops


class Worker:
    """Runs leased episodes on `envs` bodies of one suite. Single-threaded."""

    def __init__(
        self,
        suite: Suite,
        requests: RequestTable,
        log: EndLog,
        client_id: str,
        envs: int,
        clock: Callable[[], float] = time.monotonic,
        stop_at_success: bool = True,
        pace_hz: float | None = None,
    ) -> None:
        """pace_hz: rate of the bodies' control steps in real time; None: as fast as they can."""
        self.counts: Counter[str] = Counter()  # outcomes, and "dropped" episodes
        self.wait_s = 0.0  # time in which no body had work
        instance_id = uuid.uuid4().hex
        self.lanes = [
            Lane(Player(suite, stop_at_success), client_id, instance_id) for _ in range(envs)
        ]
        self._suite = suite
        self._requests = requests
        self._log = log
        self._unkept = Unkept()
        self._client_id, self._instance_id = client_id, instance_id
        self._clock = clock
        self._period_s = 1.0 / pace_hz if pace_hz else 0.0
        self._welcome: Welcome | None = None
        self._ready: deque[Lane] = deque()
        self._assign_at_s = self._hello_at_s = self._busy_at_s = clock()
        self._silence_warning_at_s = self._start_warning_at_s = self._telemetry_at_s = clock()

    def run(self, should_stop: Callable[[], bool], idle_exit_s: float | None = None) -> None:
        """Works until `should_stop`, or until nothing was leased for `idle_exit_s`.

        Episodes open at the end are ended as aborted. Raises ConfigError when the server's policy
        or a lease does not fit the suite, BridgeError when it refuses the handshake or a newer
        process has said hello as this client, StorageError when the log cannot be kept.
        """
        self._say_hello()
        while not should_stop() and not self._idle_for(idle_exit_s):
            self.run_pass()
        self._stop()

    def run_pass(self) -> None:
        """One turn of the loop; waits at most `WAIT_S`."""
        self._ask_for_work()
        self._send_telemetry()
        self._take_answers(0.0 if self._ready else WAIT_S)
        if self._requests.unanswered() > HELLO_AFTER_SENDINGS:
            self._on_silence()
        if self._ready:
            self._advance(self._ready.popleft())
            self._busy_at_s = self._clock()  # a turn of a slow body is no idle time

    def summary(self) -> dict[str, object]:
        """What was done and where the time went, for the log and the benchmarks."""
        return {
            "episodes": dict(self.counts),
            "episodes_unkept": self._unkept.count,
            "steps": self.steps(),
            "resent": self._requests.resent,
            "unexpected_replies": self._requests.unexpected_replies,
            "unreadable_replies": self._requests.unreadable_replies,
            **self.time_s(),
        }

    def steps(self) -> int:
        """Control steps since the start."""
        return sum(lane.player.steps for lane in self.lanes)

    def time_s(self) -> dict[str, float]:
        """Seconds since the start in which bodies moved, were rendered, or none had work."""
        spent_s = [lane.player.spent_s for lane in self.lanes]
        return {
            "step_seconds": sum(each["reset"] + each["step"] for each in spent_s),
            "render_seconds": sum(each["observe"] for each in spent_s),
            "wait_seconds": self.wait_s,
        }

    # ---- asking ------------------------------------------------------------------------------

    def _say_hello(self) -> None:
        now = self._clock()
        if now >= self._hello_at_s and not self._requests.is_open("hello"):
            self._hello_at_s = now + PAUSE_S
            name = f"sim_bridge/{self._suite.name}"
            hello = Hello(self._client_id, name, instance_id=self._instance_id)
            self._requests.ask("hello", hello)

    def _on_silence(self) -> None:
        self._say_hello()
        if self._clock() >= self._silence_warning_at_s:
            self._silence_warning_at_s = self._clock() + SILENCE_WARNING_S
            _warn(f"no answer from {self._requests.endpoint}; is the agent running? Still asking")

    def _ask_for_work(self) -> None:
        now = self._clock()
        idle = [lane for lane in self.lanes if lane.phase is Phase.IDLE and lane.free_at_s <= now]
        # What was answered must be durable here before there is more: a disk is waited for.
        is_behind = not self._log.is_durable
        if is_behind or len(idle) < len(self.lanes):
            self._busy_at_s = now
        waits = self._welcome is None or is_behind or now < self._assign_at_s
        if idle and not waits and not self._requests.is_open("assign"):
            suite, count = self._suite.name, len(idle)
            self._requests.ask("assign", Assign(self._client_id, suite, count, self._instance_id))

    def _send_telemetry(self) -> None:
        now = self._clock()
        if self._welcome is not None and now >= self._telemetry_at_s:
            self._telemetry_at_s = now + TELEMETRY_PERIOD_S
            gauges = {
                "envs": float(len(self.lanes)),
                "steps": float(self.steps()),
                "requests_resent": float(self._requests.resent),
                **self.time_s(),
            }
            self._requests.ask("telemetry", Telemetry(self._client_id, gauges, self._instance_id))

    def _advance(self, lane: Lane) -> None:
        if lane.phase is Phase.READY:
            steps, message = lane.player.steps, lane.advance()
            # A paced body is seen, or done, when the last of these steps would have been.
            steps_s = (lane.player.steps - steps) * self._period_s
            self._ask_for(lane, message, lane.answered_at_s + steps_s - self._clock())

    def _ask_for(self, lane: Lane, message: object, delay_s: float = 0.0) -> None:
        if isinstance(message, EpisodeEnd) and message.outcome == "aborted":
            _warn(f"episode {message.episode_id} aborted: {message.reason}")
            lane.free_at_s = self._clock() + PAUSE_S
        self._requests.ask(lane, message, delay_s)

    def _idle_for(self, limit_s: float | None) -> bool:
        return limit_s is not None and self._clock() - self._busy_at_s > limit_s

    # ---- answers -----------------------------------------------------------------------------

    def _take_answers(self, wait_s: float) -> None:
        """Handles what came, and makes the ends among it durable in the log, if its disk allows."""
        started = time.perf_counter()
        answers = self._requests.receive(wait_s)
        if wait_s:
            self.wait_s += time.perf_counter() - started
        for answer in answers:
            if answer.key == "hello":
                self._on_hello(answer.reply)
            elif answer.key == "assign":
                self._on_assign(answer.reply)
            elif answer.key != "telemetry":
                self._on_lane(answer)
        self._log.sync()

    def _on_hello(self, reply: object) -> None:
        if not isinstance(reply, Welcome):
            raise BridgeError(f"hello to {self._requests.endpoint}: {describe_reply(reply)}")
        require_fit(self._suite, reply)
        before, self._welcome = self._welcome, reply
        if before is None or before.server_id == reply.server_id:
            return
        _warn(f"the agent at {self._requests.endpoint} is a new one; starting over")
        # An open Assign stays: its answer may be the new server's. A lease of the old one is lost
        # when it is started.
        for lane in self.lanes:
            # An end may already be durable there, and a start may be the new server's: the request
            # stays and gets its true answer. An episode that nobody knows of would keep its slot.
            if lane.phase not in (Phase.IDLE, Phase.STARTING, Phase.ENDING):
                self._drop(lane, "the server restarted")

    def _on_assign(self, reply: object) -> None:
        now = self._clock()
        if not isinstance(reply, Assignments):
            _warn(f"assign: {describe_reply(reply)}")
            self._assign_at_s = now + PAUSE_S
            self._say_hello()
            return
        self._assign_at_s = now + max(reply.retry_after_s, SHORTEST_RETRY_S)
        for lease in reply.leases:
            if lease.task not in self._suite.tasks:
                raise UnknownTask(self._suite.name, lease.task, self._suite.tasks)
        # A lane that is ending gives its slot up: after a restart the server may lease it again.
        held = {lane.slot_id for lane in self.lanes if lane.phase is not Phase.ENDING}
        assert self._welcome is not None, "nothing is leased before the hello is answered"
        cameras = tuple(self._welcome.images)
        idle = [lane for lane in self.lanes if lane.phase is Phase.IDLE]
        fresh = [lease for lease in reply.leases if lease.slot_id not in held]
        for lane, lease in zip(idle, fresh, strict=False):
            self._requests.ask(lane, lane.take(lease, cameras))

    def _on_lane(self, answer: Answer) -> None:
        """Moves a lane on. Whatever is wrong with its answer ends this lane's episode only."""
        lane, reply = answer.key, answer.reply
        assert isinstance(lane, Lane)
        lane.answered_at_s = self._clock()
        self._unkept.note(reply)
        try:
            if lane.phase is Phase.STARTING and _is_no_answer_to_a_start(reply):
                self._start_again(lane, reply)
            elif isinstance(reply, Fault):
                self._on_fault(lane, reply)
            elif lane.phase is Phase.STARTING and isinstance(reply, EpisodeStarted):
                lane.started(reply)
                self._ready.append(lane)
            elif lane.phase is Phase.WAITING:
                lane.receive_chunk(reply, self._shape_KA())
                self._ready.append(lane)
            elif lane.phase is Phase.ENDING and isinstance(reply, EpisodeSealed):
                line = lane.sealed(reply)
                self._log.append(line)
                self.counts[line.outcome] += 1
                lane.release()
            else:
                raise BadReply(f"{lane.phase.name}: {describe_reply(reply)}")
        except BadReply as error:
            self._give_up(lane, str(error))

    def _on_fault(self, lane: Lane, fault: Fault) -> None:
        if fault.code == "server_restarted":
            self._say_hello()
        if fault.code in GONE_CODES:
            self._drop(lane, describe_reply(fault))
        else:
            self._give_up(lane, describe_reply(fault))

    def _start_again(self, lane: Lane, reply: object) -> None:
        """Asks for the same start until it is plain whether there is an episode.

        It may have begun unheard, or begin with another copy that is still on its way: only the
        same start finds it.
        """
        if isinstance(reply, Fault) and reply.code == "server_restarted":
            self._say_hello()
        elif self._clock() >= self._start_warning_at_s:
            self._start_warning_at_s = self._clock() + SILENCE_WARNING_S
            _warn(f"slot {lane.slot_id}: {describe_reply(reply)}; still asking")
        self._requests.ask(lane, lane.start, PAUSE_S)

    def _give_up(self, lane: Lane, reason: str) -> None:
        """Aborts the lane's episode with the server, or drops it when that cannot be asked."""
        if lane.phase in (Phase.READY, Phase.WAITING):
            self._ask_for(lane, lane.abort(reason))
        else:
            self._drop(lane, reason)

    def _drop(self, lane: Lane, reason: str) -> None:
        _warn(f"slot {lane.slot_id}: episode dropped: {reason}")
        self.counts["dropped"] += 1
        self._requests.cancel(lane)
        lane.release()
        lane.free_at_s = self._clock() + PAUSE_S

    def _shape_KA(self) -> tuple[int, int]:
        assert self._welcome is not None
        return self._welcome.chunk_steps, self._welcome.action_dim

    # ---- the end -----------------------------------------------------------------------------

    def _stop(self) -> None:
        """Ends open episodes as aborted, waiting at most `STOP_LIMIT_S` for the answers."""
        deadline_s = self._clock() + STOP_LIMIT_S
        self._requests.cancel("assign")
        while self._clock() < deadline_s:
            for lane in self.lanes:
                if lane.phase is Phase.READY:  # those that wait soon are
                    self._ask_for(lane, lane.abort("the client was stopped"))
            if all(lane.phase is Phase.IDLE for lane in self.lanes):
                break
            self._take_answers(WAIT_S)
        for lane in self.lanes:
            lane.player.close()
        self._log.close()


def _is_no_answer_to_a_start(reply: object) -> bool:
    """Whether a reply leaves open if the episode has begun, or will."""
    if isinstance(reply, Fault):
        return reply.code in TRANSIENT_CODES or reply.code == "server_restarted"
    return isinstance(reply, Unreadable)


def _warn(text: str) -> None:
    complain("sim_bridge", text)
