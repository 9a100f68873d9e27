"""Bodies at the rate of a robot, on a clock that only waiting, answers and slow bodies move."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from scripted_server import CHUNK_STEPS, ScriptedServer, make_lease

from agent.wire.errors import ConfigError
from agent.wire.messages import Act, EpisodeEnd, EpisodeStart
from sim_bridge.client import RequestTable
from sim_bridge.config import SimConfig
from sim_bridge.log import EndLog
from sim_bridge.toy import ToyBody, ToySuite
from sim_bridge.worker import Worker

HORIZON = 10  # two whole chunks and half a one


class TimedDealer:
    """A socket whose server answers at once, or `latency_s` later, and on which time passes."""

    endpoint = "inproc://timed"

    def __init__(self, server: ScriptedServer, latency_s: float = 0.0) -> None:
        self.now_s, self.polls = 0.0, 0
        self.sent: list[tuple[float, object]] = []
        self._server, self._latency_s = server, latency_s
        self._replies: list[tuple[float, int, object]] = []

    def send(self, message: object) -> int:
        self.sent.append((self.now_s, message))
        number = len(self.sent)
        self._replies.append((self.now_s + self._latency_s, number, self._server._reply(message)))
        return number

    def poll(self, timeout_s: float) -> list[tuple[int, object]]:
        self.polls += 1
        if self._replies:
            timeout_s = min(timeout_s, max(0.0, self._replies[0][0] - self.now_s))
        self.now_s += timeout_s
        due = [reply for reply in self._replies if reply[0] <= self.now_s]
        self._replies = self._replies[len(due) :]
        return [(number, reply) for _, number, reply in due]


class SlowSuite(ToySuite):
    """Bodies whose every step takes `step_s` of the dealer's clock."""

    def __init__(self, dealer: TimedDealer, step_s: float) -> None:
        self.dealer, self.step_s = dealer, step_s

    def make_body(self, task: str) -> ToyBody:
        body = ToyBody(task)
        apply = body.apply

        def slowly(action_A: np.ndarray) -> bool:
            self.dealer.now_s += self.step_s
            return apply(action_A)

        body.apply = slowly  # type: ignore[method-assign]
        return body


def play(
    tmp_path: Path,
    pace_hz: float | None,
    episodes: int = 1,
    latency_s: float = 0.0,
    step_s: float = 0.0,
) -> tuple[TimedDealer, dict[str, list[float]]]:
    """The dealer, and when each episode's observations and end were sent [s]."""
    server = ScriptedServer([make_lease(k, horizon_steps=HORIZON) for k in range(episodes)])
    server.policy = lambda lease, step: np.zeros((CHUNK_STEPS, 7), np.float32)
    dealer = TimedDealer(server, latency_s)
    requests = RequestTable(dealer, 100.0, clock=lambda: dealer.now_s)
    worker = Worker(
        SlowSuite(dealer, step_s), requests, EndLog(tmp_path / "client.jsonl"), "sim-0", episodes,
        clock=lambda: dealer.now_s, pace_hz=pace_hz,
    )  # fmt: skip
    with server:
        worker.run(lambda: sum(worker.counts.values()) == episodes)
    assert worker.counts == {"timeout": episodes}
    told: dict[str, list[float]] = defaultdict(list)
    for at_s, message in dealer.sent:
        if isinstance(message, Act | EpisodeEnd):
            told[message.episode_id].append(at_s)
    return dealer, told


def steps_between(times_s: list[float]) -> list[float]:
    return [round(gap, 9) for gap in np.diff(times_s)]


def test_a_chunk_takes_as_long_as_its_steps_and_the_last_one_counts_those_it_had(
    tmp_path: Path,
) -> None:
    _, told = play(tmp_path, pace_hz=10.0, episodes=3)
    assert len(told) == 3
    assert all(steps_between(times_s) == [0.4, 0.4, 0.2] for times_s in told.values())


def test_without_a_pace_nothing_waits(tmp_path: Path) -> None:
    _, told = play(tmp_path, pace_hz=None)
    assert [steps_between(times_s) for times_s in told.values()] == [[0.0, 0.0, 0.0]]


def test_a_body_without_actions_waits_for_its_next_chunk(tmp_path: Path) -> None:
    _, told = play(tmp_path, pace_hz=10.0, latency_s=0.3)
    assert [steps_between(times_s) for times_s in told.values()] == [[0.7, 0.7, 0.5]]


def test_what_computing_takes_is_part_of_the_time_and_not_made_up_for_if_longer(
    tmp_path: Path,
) -> None:
    for step_s, gaps in ((0.05, [0.4, 0.4, 0.2]), (0.2, [0.8, 0.8, 0.4])):
        folder = tmp_path / str(step_s)
        folder.mkdir()
        _, told = play(folder, pace_hz=10.0, step_s=step_s)
        assert [steps_between(times_s) for times_s in told.values()] == [gaps]


def test_the_worker_sleeps_meanwhile(tmp_path: Path) -> None:
    dealer, _ = play(tmp_path, pace_hz=1.0, episodes=2)
    begin_s = next(at_s for at_s, message in dealer.sent if isinstance(message, EpisodeStart))
    assert dealer.now_s - begin_s >= HORIZON
    # It wakes every WAIT_S = .1 s, for what was sent, and once for every message that it takes.
    assert dealer.polls <= 10 * (dealer.now_s + 1) + 3 * len(dealer.sent)


def test_impossible_paces_are_refused() -> None:
    for pace_hz in (0.0, -20.0, 1e6):
        with pytest.raises(ConfigError, match="pace_hz"):
            SimConfig(pace_hz=pace_hz)
