"""A robot's conversation: what it tells of itself, and what it does when the server is not well."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from faulty_disk import FULL, FaultyDisk
from scripted_server import ScriptedServer

from agent.wire.messages import (
    Act,
    EpisodeEnd,
    EpisodeSealed,
    EpisodeStart,
    Fault,
    Hello,
    Outcome,
    Telemetry,
)
from agent.wire.sockets import DealerClient
from agent.wire.telemetry import ROBOT_NAMES
from sim_bridge import lines
from sim_bridge.client import RequestTable
from sim_bridge.log import EndLog, read_log
from sim_bridge.robot import BridgeError
from sim_bridge.robots import runtime as runtime_module
from sim_bridge.robots.config import LimitsConfig
from sim_bridge.robots.guard import Guard, make_limits
from sim_bridge.robots.judge import make_judge
from sim_bridge.robots.runtime import MISHAPS_MAX, EpisodeLost, Pace, Runtime
from sim_bridge.robots.session import Session
from sim_bridge.robots.simulated import SimulatedRobot
from sim_bridge.toy import ToySuite

STEPS, TASK = 12, "move_left"


def never() -> bool:
    return False


@contextmanager
def running(answer: Callable[[object, object], list[object]]) -> Iterator[Runtime]:
    """A robot whose server answers zeros, but for what `answer` makes of it."""
    with ScriptedServer([]) as server:
        server.policy = lambda lease, step: np.full((4, 7), [0, 0, 0, 2, 0, 0, 0], np.float32)
        server.answer = answer
        with DealerClient(server.endpoint) as dealer:
            session = Session(RequestTable(dealer, 5.0), "arm")
            welcome = session.greet("test", never)
            assert welcome is not None
            guard = Guard(make_limits(LimitsConfig(low=[-1.0], high=[1.0]), welcome.action_dim))
            pace = Pace(rate_hz=500.0, lead_ticks=0, stale_s=30.0, watchdog_s=20.0, give_up_s=30.0)
            robot = SimulatedRobot(ToySuite())
            yield Runtime(robot, session, welcome, guard, make_judge("robot"), pace)
            robot.close()


def test_a_robot_tells_totals_from_0_to_all_of_its_episode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime_module, "TELEMETRY_PERIOD_S", 0.0)
    told: list[dict[str, float]] = []
    order: list[type] = []

    def listen(message: object, reply: object) -> list[object]:
        order.append(type(message))
        if isinstance(message, Telemetry):
            told.append(message.gauges)
        return [reply]

    with running(listen) as runtime:
        line = runtime.run_episode(TASK, STEPS, never)
        summary = runtime.figures.summary()
    assert (line.outcome, line.steps) == (Outcome.TIMEOUT, STEPS)
    assert all(set(figures) == set(ROBOT_NAMES) for figures in told)
    assert set(told[0].values()) == {0.0}
    for name in ROBOT_NAMES:
        totals = [figures[name] for figures in told]
        assert totals == sorted(totals), name
    last = told[-1]
    assert order[-2:] == [Telemetry, EpisodeEnd]
    assert last["ticks_executed"] == summary["executed"] == STEPS
    assert last["clamped_rotation"] == STEPS
    assert last["clamped_position"] == 0
    assert last["observation_age_seconds_le_inf"] == STEPS / 4, "once a chunk"
    assert last["observation_age_seconds_sum"] > 0


def test_a_server_that_was_started_again_is_greeted_and_the_episode_begins() -> None:
    messages: list[object] = []

    def forget_once(message: object, reply: object) -> list[object]:
        messages.append(message)
        starts = [each for each in messages if isinstance(each, EpisodeStart)]
        if isinstance(message, EpisodeStart) and len(starts) == 1:
            return [Fault("server_restarted", "say hello")]
        return [reply]

    with running(forget_once) as runtime:
        assert runtime.run_episode(TASK, STEPS, never).outcome == Outcome.TIMEOUT
    kinds = [type(each) for each in messages if isinstance(each, Hello | EpisodeStart)]
    assert kinds == [Hello, EpisodeStart, Hello, EpisodeStart]


def test_a_start_whose_episode_is_over_is_a_lost_episode_and_the_next_one_is_not() -> None:
    """The robot stood still for so long that the server gave the episode up."""
    starts: list[object] = []

    def refuse_once(message: object, reply: object) -> list[object]:
        if isinstance(message, EpisodeStart):
            starts.append(message)
            if len(starts) == 1:
                return [Fault("lease_lost", "is over")]
        return [reply]

    with running(refuse_once) as runtime:
        with pytest.raises(EpisodeLost, match="is over"):
            runtime.run_episode(TASK, STEPS, never)
        assert runtime.run_episode(TASK, STEPS, never).outcome == Outcome.TIMEOUT


def test_a_robot_whose_episodes_go_wrong_in_a_row_is_left_alone() -> None:
    reasons = []

    def refuse(message: object, reply: object) -> list[object]:
        if isinstance(message, EpisodeEnd):
            reasons.append(message.reason)
            return [EpisodeSealed(message.episode_id, message.outcome, False)]
        return [Fault("bad_array", "no such camera") if isinstance(message, Act) else reply]

    with running(refuse) as runtime:
        for _ in range(MISHAPS_MAX):
            assert runtime.run_episode(TASK, STEPS, never).outcome == Outcome.ABORTED
        with pytest.raises(BridgeError, match=r"in a row went wrong.*no such camera"):
            runtime.run_episode(TASK, STEPS, never)
    assert len(reasons) == MISHAPS_MAX
    assert all("no such camera" in reason for reason in reasons)


def test_an_episode_that_the_server_lost_is_lost_and_the_next_one_is_not() -> None:
    lost = []

    def lose_one(message: object, reply: object) -> list[object]:
        if isinstance(message, Act) and message.step_index == 1 and not lost:
            lost.append(message)
            return [Fault("unknown_episode", "gone")]
        return [reply]

    with running(lose_one) as runtime:
        with pytest.raises(EpisodeLost, match="gone"):
            runtime.run_episode(TASK, STEPS, never)
        assert runtime.run_episode(TASK, STEPS, never).outcome == Outcome.TIMEOUT
        assert runtime.figures.summary()["episodes_lost"] == 1


def test_a_robot_holds_and_begins_no_episode_while_its_log_waits_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "RETRY_PAUSE_S", 0.0)
    disk = FaultyDisk(monkeypatch, "write")
    messages: list[type] = []

    def listen(message: object, reply: object) -> list[object]:
        messages.append(type(message))
        return [reply]

    with running(listen) as runtime:
        log, holds = EndLog(tmp_path / "client.jsonl"), 0

        def hold() -> None:
            nonlocal holds
            holds += 1
            disk.error = FULL if holds < 5 else None

        monkeypatch.setattr(runtime._robot, "hold", hold)
        log.append(runtime.run_episode(TASK, STEPS, never))
        begun, holds, disk.error = messages.count(EpisodeStart), 0, FULL
        runtime.hold_until(log.sync, never)
        assert holds == 5
        assert log.is_durable
        assert messages.count(EpisodeStart) == begun
        log.close()
    assert len(read_log(tmp_path / "client.jsonl")) == 1
