"""The worker against a real socket: every answered end is logged once, whatever the wire does."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from faulty_disk import FULL, FaultyDisk
from patience import HANG_S
from scripted_server import CHUNK_STEPS, ScriptedServer, make_lease

from agent.wire.errors import ConfigError
from agent.wire.messages import (
    Act,
    Assign,
    Chunk,
    EpisodeEnd,
    EpisodeSealed,
    EpisodeStart,
    Fault,
    Hello,
)
from agent.wire.sockets import DealerClient
from sim_bridge import lines
from sim_bridge import worker as worker_module
from sim_bridge.client import MAX_REFUSALS, RequestTable
from sim_bridge.log import EndLine, EndLog, read_log
from sim_bridge.robot import Suite
from sim_bridge.toy import ToyBody, ToySuite
from sim_bridge.worker import Worker

UNREADABLE = Chunk("", 0, np.full((CHUNK_STEPS, 7), np.nan, np.float32), "base")


def work(
    server: ScriptedServer,
    path: Path,
    until: Callable[[Counter[str]], bool],
    envs: int = 3,
    suite: Suite | None = None,
    request_timeout_s: float = 0.1,
) -> Worker:
    """Runs a worker until its counts satisfy `until`; fails after HANG_S."""
    deadline_s = time.monotonic() + HANG_S
    with DealerClient(server.endpoint) as dealer:
        requests = RequestTable(dealer, request_timeout_s)
        worker = Worker(suite or ToySuite(), requests, EndLog(path), "sim-0", envs)

        def should_stop() -> bool:
            assert time.monotonic() < deadline_s, f"still running: {worker.counts}"
            return until(worker.counts)

        worker.run(should_stop)
    return worker


def ends(count: int) -> Callable[[Counter[str]], bool]:
    return lambda counts: sum(counts.values()) - counts["dropped"] >= count


def assert_logged_once(server: ScriptedServer, path: Path) -> list[EndLine]:
    """The log holds exactly the sealed episodes, each once, as they were sealed."""
    lines = read_log(path)
    logged = sorted((line.episode_id, line.slot_id, line.outcome, line.steps) for line in lines)
    sealed = sorted(
        (name, served.lease.slot_id, str(served.end.outcome), served.end.steps)
        for name, served in server.sealed.items()
        if served.end
    )
    assert logged == sealed
    return lines


def test_runs_every_lease_once(tmp_path: Path) -> None:
    tasks = ("move_left", "move_right", "move_up", "move_down")
    with ScriptedServer([make_lease(k, tasks[k % 4]) for k in range(10)]) as server:
        work(server, tmp_path / "client.jsonl", ends(10))
        lines = assert_logged_once(server, tmp_path / "client.jsonl")
        assert sorted(line.slot_id for line in lines) == [f"order/0#{k}" for k in range(10)]
        assert {line.outcome for line in lines} == {"success"}
        assert all(line.versions == ["base"] and line.counted for line in lines)
        for served in server.sealed.values():  # 0.22 of the way at 0.1 a step: three steps
            assert [list(codes) for codes in served.executed] == [[1, 1, 1, 0]]


def test_horizon_ends_in_the_middle_of_a_chunk(tmp_path: Path) -> None:
    with ScriptedServer([make_lease(0, horizon_steps=6)]) as server:
        server.policy = lambda lease, step: np.zeros((CHUNK_STEPS, 7), np.float32)
        work(server, tmp_path / "client.jsonl", ends(1))
        (line,) = assert_logged_once(server, tmp_path / "client.jsonl")
        assert (line.outcome, line.steps) == ("timeout", 6)
        (served,) = server.sealed.values()
        assert [list(codes) for codes in served.executed] == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_actions_beyond_the_limits_are_coded_as_limited(tmp_path: Path) -> None:
    def push(lease: object, step: int) -> np.ndarray:
        actions_KA = np.zeros((CHUNK_STEPS, 7), np.float32)
        actions_KA[1, 6] = 1.5
        return actions_KA

    with ScriptedServer([make_lease(0, horizon_steps=4)]) as server:
        server.policy = push
        work(server, tmp_path / "client.jsonl", ends(1))
        (served,) = server.sealed.values()
        assert [list(codes) for codes in served.executed] == [[1, 2, 1, 1]]


def test_lost_replies_are_asked_for_again(tmp_path: Path) -> None:
    seen: Counter[str] = Counter()

    def lose_every_third(message: object, reply: object) -> list[object]:
        if isinstance(message, Assign):  # a lost Assignments needs its lease to expire
            return [reply]
        seen[type(message).__name__] += 1
        return [] if seen[type(message).__name__] % 3 == 1 else [reply]

    with ScriptedServer([make_lease(k) for k in range(6)]) as server:
        server.answer = lose_every_third
        worker = work(server, tmp_path / "client.jsonl", ends(6))
        lines = assert_logged_once(server, tmp_path / "client.jsonl")
        assert len({line.slot_id for line in lines}) == len(lines) == 6
        assert len(server.episodes) == 6  # a repeated start is the same episode
        assert worker.summary()["resent"]


def test_no_work_is_asked_for_before_the_last_ends_are_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "RETRY_PAUSE_S", 0.01)
    disk, path = FaultyDisk(monkeypatch, "write"), tmp_path / "client.jsonl"
    seen: list[type] = []

    def watch(message: object, reply: object) -> list[object]:
        seen.append(type(message))
        if isinstance(message, EpisodeEnd) and disk.error is None and not disk.failed:
            disk.error = FULL
            seen.clear()
        return [reply]

    def is_over(counts: Counter[str]) -> bool:
        if disk.failed > 6:  # the other bodies have ended what they were in, and wait
            disk.error = None
        return ends(8)(counts)

    with ScriptedServer([make_lease(k) for k in range(8)]) as server:
        server.answer = watch
        work(server, path, is_over)
        assert len(assert_logged_once(server, path)) == 8
    assert seen.index(Assign) >= 2, "the two others' ends came first"
    assert seen[: seen.index(Assign)].count(EpisodeEnd) == 2


def test_repeated_replies_change_nothing(tmp_path: Path) -> None:
    with ScriptedServer([make_lease(k) for k in range(6)]) as server:
        server.answer = lambda message, reply: [reply, reply]
        work(server, tmp_path / "client.jsonl", ends(6))
        assert len(assert_logged_once(server, tmp_path / "client.jsonl")) == 6
        acts = [(m.episode_id, m.step_index) for m in server.received if isinstance(m, Act)]
        assert len(acts) == len(set(acts))


def test_server_restart_drops_open_episodes_and_goes_on(tmp_path: Path) -> None:
    with ScriptedServer([make_lease(k, horizon_steps=40) for k in range(6)]) as server:
        server.policy = lambda lease, step: np.zeros((CHUNK_STEPS, 7), np.float32)

        def restart_at_the_ninth_act(message: object, reply: object) -> list[object]:
            acts = sum(isinstance(each, Act) for each in server.received)
            if isinstance(message, Act) and acts == 9:
                server.restart()
                return []
            return [reply]

        server.answer = restart_at_the_ninth_act
        worker = work(server, tmp_path / "client.jsonl", ends(6))
        lines = assert_logged_once(server, tmp_path / "client.jsonl")
        assert len({line.slot_id for line in lines}) == len(lines) == 6
        assert worker.counts["dropped"] == 3


def test_an_end_sealed_before_a_restart_is_still_logged(tmp_path: Path) -> None:
    with ScriptedServer([make_lease(0)]) as server:

        def restart_at_the_first_end(message: object, reply: object) -> list[object]:
            if isinstance(message, EpisodeEnd) and server.server_id == "first":
                server.restart()
                return []
            return [reply]

        server.answer = restart_at_the_first_end
        worker = work(server, tmp_path / "client.jsonl", ends(1))
        (line,) = assert_logged_once(server, tmp_path / "client.jsonl")
        assert line.outcome == "success"
        assert worker.counts["dropped"] == 0


def test_an_episode_that_a_new_server_has_begun_is_played(tmp_path: Path) -> None:
    """Its start was answered, and the answer lost, before the hello told of the new server."""
    with ScriptedServer([make_lease(0)]) as server:

        def begin_unheard(message: object, reply: object) -> list[object]:
            if isinstance(message, EpisodeStart):
                server.server_id = "second"
                return [reply] if greeted else []
            if isinstance(message, Hello) and server.server_id == "second":
                greeted.append(message)
            return [reply]

        greeted: list[object] = []
        server.answer = begin_unheard
        worker = work(server, tmp_path / "client.jsonl", ends(1))
        (line,) = assert_logged_once(server, tmp_path / "client.jsonl")
        assert (line.outcome, worker.counts["dropped"]) == ("success", 0)
        assert greeted


def test_a_start_that_is_refused_before_the_hello_is_asked_again(tmp_path: Path) -> None:
    """Another copy of it came after the hello and began the episode."""
    with ScriptedServer([make_lease(0)]) as server:

        def refuse_once(message: object, reply: object) -> list[object]:
            if isinstance(message, EpisodeStart) and server.server_id == "first":
                server.server_id = "second"
                return [Fault("server_restarted", "say hello")]
            return [reply]

        server.answer = refuse_once
        worker = work(server, tmp_path / "client.jsonl", ends(1))
        (line,) = assert_logged_once(server, tmp_path / "client.jsonl")
        assert (line.outcome, worker.counts["dropped"]) == ("success", 0)


@pytest.mark.parametrize("code", ["overloaded", "internal", ""])
def test_a_start_that_may_have_begun_is_asked_for_until_that_is_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """A worker that gave it up would leave an open episode behind. code "": no readable answer."""
    monkeypatch.setattr(worker_module, "PAUSE_S", 0.01)
    refused: list[object] = []

    def begin_unheard(message: object, reply: object) -> list[object]:
        if isinstance(message, EpisodeStart) and len(refused) <= MAX_REFUSALS:
            refused.append(message)
            return [Fault(code, "made up") if code else UNREADABLE]
        return [reply]

    with ScriptedServer([make_lease(0)]) as server:
        server.answer = begin_unheard
        worker = work(server, tmp_path / "client.jsonl", ends(1))
        (line,) = assert_logged_once(server, tmp_path / "client.jsonl")
        assert (line.outcome, worker.counts["dropped"]) == ("success", 0)
        assert len(server.episodes) == 1
        assert len({start.start_key for start in refused}) == 1


@pytest.mark.parametrize("code", ["bad_array", "unknown_episode", "wrong_step", "lease_lost"])
def test_a_fault_of_one_body_does_not_disturb_the_others(tmp_path: Path, code: str) -> None:
    with ScriptedServer([make_lease(k) for k in range(6)]) as server:

        def refuse_slot_2(message: object, reply: object) -> list[object]:
            if isinstance(message, Act):
                lease = server.episodes[message.episode_id].lease
                if lease.slot_id.endswith("#2"):
                    return [Fault(code, "made up")]
            return [reply]

        server.answer = refuse_slot_2
        work(server, tmp_path / "client.jsonl", lambda counts: sum(counts.values()) == 6)
        lines = assert_logged_once(server, tmp_path / "client.jsonl")
        good = [line.slot_id for line in lines if line.outcome == "success"]
        assert sorted(good) == [f"order/0#{k}" for k in (0, 1, 3, 4, 5)]
        assert all(line.slot_id.endswith("#2") for line in lines if line.outcome == "aborted")


def nan_chunk(chunk: Chunk) -> Chunk:
    return replace(chunk, actions=np.full_like(chunk.actions, np.nan))


BAD_CHUNKS: dict[str, Callable[[Chunk], Chunk]] = {
    "nan": nan_chunk,
    "short": lambda chunk: replace(chunk, actions=chunk.actions[:2]),
    "double": lambda chunk: replace(chunk, actions=chunk.actions.astype(np.float64)),
    "other_step": lambda chunk: replace(chunk, step_index=chunk.step_index + 1),
    "other_episode": lambda chunk: replace(chunk, episode_id="0" * 32),
    "other_version": lambda chunk: replace(chunk, version="v00001-0123456789ab"),
}


@pytest.mark.parametrize("kind", BAD_CHUNKS)
def test_a_bad_chunk_aborts_its_episode_unplayed(tmp_path: Path, kind: str) -> None:
    with ScriptedServer([make_lease(k) for k in range(4)]) as server:

        def spoil_slot_1(message: object, reply: object) -> list[object]:
            if isinstance(message, Act) and isinstance(reply, Chunk):
                lease = server.episodes[message.episode_id].lease
                if lease.slot_id.endswith("#1"):
                    return [BAD_CHUNKS[kind](reply)]
            return [reply]

        server.answer = spoil_slot_1
        work(server, tmp_path / "client.jsonl", ends(4))
        lines = assert_logged_once(server, tmp_path / "client.jsonl")
        found = {line.slot_id[-1]: (line.outcome, line.steps) for line in lines}
        assert found == {
            "0": ("success", 3),
            "1": ("aborted", 0),
            "2": ("success", 3),
            "3": ("success", 3),
        }


class BrittleBody(ToyBody):
    """Breaks at its second step in init state 1."""

    def reset(self, split: str, init_state: int) -> None:
        super().reset(split, init_state)
        self.steps_left = 1 if init_state == 1 else 99

    def apply(self, action_A: np.ndarray) -> bool:
        if self.steps_left == 0:
            raise RuntimeError("the arm fell off")
        self.steps_left -= 1
        return super().apply(action_A)


class BrittleSuite(ToySuite):
    made = 0

    def make_body(self, task: str) -> ToyBody:
        self.made += 1
        return BrittleBody(task)


def test_a_broken_body_aborts_its_episode_and_is_made_anew(tmp_path: Path) -> None:
    suite = BrittleSuite()
    with ScriptedServer([make_lease(k) for k in range(4)]) as server:
        work(server, tmp_path / "client.jsonl", ends(4), envs=1, suite=suite)
        lines = assert_logged_once(server, tmp_path / "client.jsonl")
        assert [line.outcome for line in lines] == ["success", "aborted", "success", "success"]
        assert suite.made == 2
        reasons = [m.reason for m in server.received if isinstance(m, EpisodeEnd) and m.reason]
        assert reasons == ["step: RuntimeError: the arm fell off"]


def test_an_end_is_in_the_log_before_the_next_lease_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "client.jsonl"
    found = []
    with ScriptedServer([make_lease(k) for k in range(5)]) as server:

        def look(message: object, reply: object) -> list[object]:
            if isinstance(message, Assign):
                found.append((len(read_log(path)), len(server.sealed)))
            return [reply]

        server.answer = look
        work(server, path, ends(5), envs=1, request_timeout_s=5.0)
    assert len(found) >= 5
    assert all(logged == sealed for logged, sealed in found)


def test_a_stopped_worker_ends_its_open_episodes_as_aborted(tmp_path: Path) -> None:
    with ScriptedServer([make_lease(k, horizon_steps=10_000) for k in range(3)]) as server:
        server.policy = lambda lease, step: np.zeros((CHUNK_STEPS, 7), np.float32)
        work(
            server,
            tmp_path / "client.jsonl",
            lambda _: sum(isinstance(each, Act) for each in server.received) > 10,
        )
        lines = assert_logged_once(server, tmp_path / "client.jsonl")
        assert [line.outcome for line in lines] == ["aborted"] * 3
        assert not any(line.counted for line in lines)


def test_a_slow_body_is_not_taken_for_idleness(tmp_path: Path) -> None:
    """Each of its steps takes longer than a worker without a lease would stay."""
    late_s = 0.0

    class SlowBody(ToyBody):
        def apply(self, action_A: np.ndarray) -> bool:
            nonlocal late_s
            late_s += 2.0
            return super().apply(action_A)

    suite = ToySuite()
    suite.make_body = SlowBody  # type: ignore[method-assign]
    path = tmp_path / "client.jsonl"
    with (
        ScriptedServer([make_lease(k) for k in range(2)]) as server,
        DealerClient(server.endpoint) as dealer,
    ):
        requests = RequestTable(dealer, 5.0)
        clock = lambda: time.monotonic() + late_s  # noqa: E731
        worker = Worker(suite, requests, EndLog(path), "sim-0", 1, clock=clock)
        worker.run(lambda: False, idle_exit_s=1.0)
        assert [line.outcome for line in assert_logged_once(server, path)] == ["success"] * 2


def test_a_refused_start_gives_the_slot_up_and_asks_again(tmp_path: Path) -> None:
    with ScriptedServer([make_lease(0), make_lease(1)]) as server:

        def refuse_first(message: object, reply: object) -> list[object]:
            if isinstance(message, EpisodeStart) and message.slot_id.endswith("#0"):
                return [Fault("lease_lost", "made up")]
            return [reply]

        server.answer = refuse_first
        worker = work(server, tmp_path / "client.jsonl", ends(1), envs=1)
        assert worker.counts == {"dropped": 1, "success": 1}


def test_transient_refusals_are_retried(tmp_path: Path) -> None:
    refused: set[object] = set()

    def overloaded_once(message: object, reply: object) -> list[object]:
        if isinstance(reply, Chunk | EpisodeSealed) and type(reply) not in refused:
            refused.add(type(reply))
            return [Fault("overloaded", "made up")]
        return [reply]

    with ScriptedServer([make_lease(0)]) as server:
        server.answer = overloaded_once
        worker = work(server, tmp_path / "client.jsonl", ends(1))
        assert worker.counts == {"success": 1}
        assert len(refused) == 2


def test_an_episode_that_the_agent_does_not_keep_is_counted(tmp_path: Path) -> None:
    def lose_the_first(message: object, reply: object) -> list[object]:
        if isinstance(reply, Chunk) and reply.episode_id == next(iter(server.episodes)):
            return [replace(reply, recorded=False)]
        return [reply]

    with ScriptedServer([make_lease(k) for k in range(3)]) as server:
        server.answer = lose_the_first
        worker = work(server, tmp_path / "client.jsonl", ends(3))
        assert worker.summary()["episodes_unkept"] == 1


def test_a_policy_that_does_not_fit_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with ScriptedServer([]) as server:
        server.action_dim = 6
        with pytest.raises(ConfigError, match="action_dim: policy 'scripted' has 6, suite 'toy'"):
            work(server, tmp_path / "client.jsonl", ends(1))


def test_a_lease_of_a_task_that_the_suite_lacks_ends_the_worker(tmp_path: Path) -> None:
    with ScriptedServer([make_lease(0, "fold_laundry")]) as server:
        with pytest.raises(ConfigError, match=r"suite 'toy' has no task 'fold_laundry'; .*move_up"):
            work(server, tmp_path / "client.jsonl", ends(1))
        assert not any(isinstance(each, EpisodeStart) for each in server.received)
