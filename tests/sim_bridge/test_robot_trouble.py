"""What a robot's runtime does when the robot itself fails, blocks, or is spoken of too early."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
from scripted_server import CHUNK_STEPS, ScriptedServer

from agent.wire.errors import ConfigError
from agent.wire.messages import (
    Act,
    Chunk,
    EpisodeEnd,
    EpisodeSealed,
    EpisodeStart,
    EpisodeStarted,
    Executed,
    Fault,
    Outcome,
)
from agent.wire.sockets import DealerClient
from sim_bridge.client import RequestTable
from sim_bridge.robot import BridgeError
from sim_bridge.robots import __main__ as process
from sim_bridge.robots import runtime as runtime_module
from sim_bridge.robots.config import LimitsConfig, RobotConfig
from sim_bridge.robots.guard import Guard, make_limits
from sim_bridge.robots.judge import Judge, Silent
from sim_bridge.robots.running import EpisodeLost
from sim_bridge.robots.runtime import MISHAPS_MAX, Pace, Runtime
from sim_bridge.robots.session import Session
from sim_bridge.robots.simulated import SimulatedRobot
from sim_bridge.toy import ToySuite

STEPS, TASK = 10, "move_left"
PAUSE_S = 10_000.0


def never() -> bool:
    return False


class Arm(SimulatedRobot):
    """Fails at each of its methods that is named in `broken`; blocks at its action number
    `blocks_at`, for so long on the runtime's clock.
    """

    def __init__(self) -> None:
        super().__init__(ToySuite())
        self.broken: set[str] = set()
        self.calls: list[str] = []
        self.blocks_at, self.blocked_s = -1, 0.0

    def clock(self) -> float:
        return time.monotonic() + self.blocked_s

    def reset(self, task: str, split: str, init_state: int) -> None:
        self._call("reset")
        super().reset(task, split, init_state)

    def apply(self, action_A: np.ndarray) -> bool:
        self._call("apply")
        if self.calls.count("apply") == self.blocks_at:
            self.blocked_s += PAUSE_S
        return super().apply(action_A)

    def hold(self) -> None:
        self._call("hold")

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.broken:
            raise ZeroDivisionError(f"a bug of the driver in {name}")


class Told:
    """What the server was told; it answers actions that move nothing, but see `actions_KA`."""

    def __init__(self) -> None:
        self.actions_KA = np.zeros((CHUNK_STEPS, 7), np.float32)
        self.ends: list[EpisodeEnd] = []
        self.codes: list[int] = []
        self.fault: Callable[[Act], bool] = lambda act: False
        self.unkept: type | None = None  # the reply that says so of its episode

    def answer(self, message: object, reply: object) -> list[object]:
        if isinstance(message, Act) and self.fault(message):
            return [Fault("bad_array", "proprio")]
        if isinstance(message, Act | EpisodeEnd):
            self.codes += message.executed.tolist()
        if isinstance(message, EpisodeEnd):
            self.ends.append(message)
            reply = EpisodeSealed(message.episode_id, message.outcome, False)
        if isinstance(reply, EpisodeStarted | Chunk | EpisodeSealed):
            return [replace(reply, recorded=type(reply) is not self.unkept)]
        return [reply]


@contextmanager
def driving(arm: Arm, told: Told, judge: Judge | None = None) -> Iterator[Runtime]:
    with ScriptedServer([]) as server:
        server.policy = lambda lease, step: told.actions_KA
        server.answer = told.answer
        with DealerClient(server.endpoint) as dealer:
            session = Session(RequestTable(dealer, 5.0), "arm")
            welcome = session.greet("test", never)
            assert welcome is not None
            guard = Guard(make_limits(LimitsConfig(), welcome.action_dim))
            limits = {"stale_s": 100.0, "watchdog_s": PAUSE_S * 2, "give_up_s": PAUSE_S * 3}
            pace = Pace(rate_hz=500.0, lead_ticks=0, **limits)
            yield Runtime(arm, session, welcome, guard, judge or Silent(), pace, arm.clock)
            arm.broken.clear()
            arm.close()


def test_a_reset_that_fails_is_an_episode_that_went_wrong() -> None:
    arm, told = Arm(), Told()
    arm.broken = {"reset"}
    with driving(arm, told) as runtime:
        for _ in range(MISHAPS_MAX):
            with pytest.raises(EpisodeLost, match=r"reset: ZeroDivisionError: a bug"):
                runtime.run_episode(TASK, STEPS, never)
            assert arm.calls.pop() == "hold"
        with pytest.raises(BridgeError, match=r"in a row went wrong; reset"):
            runtime.run_episode(TASK, STEPS, never)
    assert told.ends == []


def test_a_task_that_the_robot_does_not_have_ends_the_process_at_once() -> None:
    arm = Arm()
    with driving(arm, Told()) as runtime, pytest.raises(ConfigError, match="no task 'fly'"):
        runtime.run_episode("fly", STEPS, never)
    assert arm.calls == ["reset", "hold"]


def test_a_robot_that_cannot_hold_aborts_its_episodes_and_is_left_alone() -> None:
    arm, told = Arm(), Told()
    arm.broken = {"hold"}
    with driving(arm, told) as runtime:
        for _ in range(MISHAPS_MAX):
            assert runtime.run_episode(TASK, STEPS, never).outcome == Outcome.ABORTED
        with pytest.raises(BridgeError, match=r"in a row went wrong;.*driver in hold"):
            runtime.run_episode(TASK, STEPS, never)
    assert len(told.ends) == MISHAPS_MAX
    assert all("driver in hold" in end.reason for end in told.ends)


def test_a_robot_that_fails_to_hold_only_at_the_end_aborts_too() -> None:
    class Breaks(Arm):
        def apply(self, action_A: np.ndarray) -> bool:
            limited = super().apply(action_A)
            if self.calls.count("apply") == STEPS:
                self.broken = {"hold"}
            return limited

    told = Told()
    with driving(Breaks(), told) as runtime:
        assert runtime.run_episode(TASK, STEPS, never).outcome == Outcome.ABORTED
    assert told.ends[0].reason.startswith("hold: ZeroDivisionError")


def test_an_action_that_fails_is_followed_by_a_hold() -> None:
    arm, told = Arm(), Told()
    arm.broken = {"apply"}
    with driving(arm, told) as runtime:
        assert runtime.run_episode(TASK, STEPS, never).outcome == Outcome.ABORTED
    assert arm.calls[arm.calls.index("apply") + 1] == "hold"
    assert "driver in apply" in told.ends[0].reason


def test_what_was_planned_before_a_pause_of_the_robots_is_not_executed() -> None:
    arm, told = Arm(), Told()
    arm.blocks_at = 2
    with driving(arm, told) as runtime:
        assert runtime.run_episode(TASK, STEPS, never).steps == STEPS
    run, not_run = int(Executed.RUN), int(Executed.NOT_RUN)
    assert told.codes[:CHUNK_STEPS] == [run, run, not_run, not_run]
    assert told.codes.count(run) == STEPS


def test_what_the_bodys_own_walls_changed_is_told_as_limited() -> None:
    told = Told()
    told.actions_KA[1, 0] = 5.0
    with driving(Arm(), told) as runtime:
        runtime.run_episode(TASK, CHUNK_STEPS, never)
    assert told.codes == [Executed.RUN, Executed.LIMITED, Executed.RUN, Executed.RUN]


def test_what_was_said_before_an_episode_does_not_end_it() -> None:
    class Early(Silent):
        said: Outcome | None = Outcome.SUCCESS

        def outcome(self) -> Outcome | None:
            said, self.said = self.said, None
            return said

    told = Told()
    with driving(Arm(), told, Early()) as runtime:
        assert runtime.run_episode(TASK, STEPS, never).outcome == Outcome.TIMEOUT


def test_a_refused_observation_shifts_no_codes_and_the_episode_is_ended() -> None:
    told = Told()
    told.fault = lambda act: act.step_index == 1
    with driving(Arm(), told) as runtime:
        assert runtime.run_episode(TASK, STEPS, never).outcome == Outcome.ABORTED
    (end,) = told.ends
    assert len(end.executed) == 0, "the observation took the codes with it"


@pytest.mark.parametrize("kind", [EpisodeStarted, Chunk, EpisodeSealed])
def test_an_episode_that_the_agent_does_not_keep_is_counted(kind: type) -> None:
    told = Told()
    with driving(Arm(), told) as runtime:
        runtime.run_episode(TASK, STEPS, never)
        assert runtime.figures.summary()["episodes_unkept"] == 0
        told.unkept = kind
        runtime.run_episode(TASK, STEPS, never)
        assert runtime.figures.summary()["episodes_unkept"] == 1


def test_a_chunk_of_another_shape_is_not_played() -> None:
    arm, told = Arm(), Told()
    told.actions_KA = np.zeros((CHUNK_STEPS, 6), np.float32)
    with driving(arm, told) as runtime:
        assert runtime.run_episode(TASK, STEPS, never).outcome == Outcome.ABORTED
    assert "apply" not in arm.calls
    assert "expected (4, 7)" in told.ends[0].reason


@pytest.mark.parametrize("silent_to", [EpisodeStart, Act, EpisodeEnd])
def test_a_robot_told_to_stop_holds_until_it_is_left_though_the_server_is_silent(
    silent_to: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_module, "STOP_LIMIT_S", 0.3)
    arm, told = Arm(), Told()
    asked_s: list[float] = []
    held_s: list[float] = []

    def answer(message: object, reply: object) -> list[object]:
        if isinstance(message, silent_to):
            asked_s.append(time.monotonic())
            return []
        return Told.answer(told, message, reply)

    def is_told() -> bool:
        return bool(asked_s) and time.monotonic() > asked_s[0] + 0.1

    monkeypatch.setattr(told, "answer", answer)
    monkeypatch.setattr(arm, "hold", lambda: held_s.append(time.monotonic()))
    with driving(arm, told) as runtime:
        with suppress(EpisodeLost):  # if it cannot even be ended
            runtime.run_episode(TASK, STEPS if silent_to is EpisodeEnd else 10**6, is_told)
        left_s = time.monotonic()
    assert left_s - asked_s[0] < 60  # give_up_s is hours
    assert sum(at > asked_s[0] for at in held_s) > 10  # at every tick, not once


def test_a_driver_that_cannot_be_made_or_closed_has_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path
) -> None:
    class Sticky(Arm):
        def close(self) -> None:
            if "apply" not in self.calls:
                return super().close()
            raise ZeroDivisionError("a bug of the driver in close")

    module = ModuleType("driver_of_ones_own")
    module.Arm = Sticky
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with ScriptedServer([]) as server:
        config = RobotConfig(
            robot=f"{module.__name__}:Arm", task=TASK, episodes=1, horizon_steps=8, lead_ticks=0,
            endpoint=server.endpoint, log_path=f"{tmp_path}/robot.jsonl",
        )  # fmt: skip
        process._work(config)
        said = capsys.readouterr()
        assert "close: ZeroDivisionError: a bug of the driver in close" in said.err
        assert '"executed": 3' in said.out, "the summary is told all the same"
        module.Arm = lambda: 1 / 0
        with pytest.raises(BridgeError, match=r"driver_of_ones_own:Arm\(\): ZeroDivisionError"):
            process._work(config)
