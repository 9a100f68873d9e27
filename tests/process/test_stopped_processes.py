"""A client or a server that stands still for a while is noticed, and goes on when it is let go."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from observed_run import process
from paced_worker import TASK, connections, seconds_until, watching, worker
from patience import HANG_S
from test_minimal_robot import noop_server

from agent.wire.messages import Outcome
from agent.wire.sockets import HEARTBEAT_S, SILENCE_LIMIT_S
from sim_bridge.log import read_log

pytestmark = pytest.mark.slow

LEASE_S = 5.0
STANDSTILL_S = HEARTBEAT_S + SILENCE_LIMIT_S + 5.0  # both sides give the connection up meanwhile


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process does nothing meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_client_that_stands_still_loses_its_slot_and_goes_on_later(tmp_path: Path) -> None:
    settings = f"lease_s={LEASE_S}", "robots_endpoint=tcp://127.0.0.1:0"
    with (
        noop_server(tmp_path, TASK, *settings) as (endpoint, server_pid),
        watching(tmp_path) as server,
        worker(tmp_path / "first", endpoint) as first,
    ):
        port = int(endpoint.rpartition(":")[2])
        server.order("a")
        seconds_until(lambda: server.status().open_episodes == 1, "the first begins", HANG_S)
        with stopped(first.pid):
            stopped_s = time.monotonic()
            seconds_until(lambda: server.status().open_episodes == 0, "the end of its episode")
            freed_s = time.monotonic() - stopped_s
            with worker(tmp_path / "second", endpoint) as second:
                seconds_until(lambda: server.status().open_episodes == 1, "the second begins")
                taken_s = time.monotonic() - stopped_s
                seconds_until(lambda: bool(second.ends()), "the second ends")
            # The second's connection is gone by now, too.
            seconds_until(lambda: connections(server_pid, port) == 0, "the cut")
            cut_s = time.monotonic() - stopped_s
        told_s = seconds_until(lambda: "no message for 5 s" in first.said(), "the first is told")
        server.order("b")
        seconds_until(lambda: bool(first.ends()), "the first ends another")
        assert first.is_running()
        assert [end.slot_id for end in first.ends()] == ["train/b#0"]
        assert [end.slot_id for end in second.ends()] == ["train/a#0"]
        assert server.ends() == [
            ("train/a#0", Outcome.ABORTED, False),
            ("train/a#0", Outcome.TIMEOUT, True),
            ("train/b#0", Outcome.TIMEOUT, True),
        ]
    print(
        f"\na stopped client: its lease is free after {freed_s:.1f} s, another has the slot after "
        f"{taken_s:.1f} s, its connection is cut after {cut_s:.1f} s; told {told_s:.1f} s after it "
        "went on"
    )


def test_a_server_that_stands_still_is_waited_for_and_nothing_is_lost(tmp_path: Path) -> None:
    """Longer than a lease lasts, and than connections do: its silence is not its clients'."""
    settings = f"lease_s={LEASE_S}", "robots_endpoint=tcp://127.0.0.1:0"
    with (
        noop_server(tmp_path, TASK, *settings) as (endpoint, server_pid),
        watching(tmp_path) as server,
        worker(tmp_path / "sim", endpoint) as simulator,
        ExitStack() as stack,
    ):
        port = int(endpoint.rpartition(":")[2])
        # Neither may be near its end when the server stops, however slowly they start.
        seconds_until(
            lambda: bool(connected_from(simulator.pid, port)), "the simulator is there", HANG_S
        )
        words = robot_words(tmp_path, endpoint)
        robot = stack.enter_context(process(words, tmp_path / "robot.log"))
        seconds_until(lambda: server.status().open_episodes == 1, "the robot begins", HANG_S)
        server.order("a")
        seconds_until(lambda: server.status().open_episodes == 2, "both begin", HANG_S)
        said = (tmp_path / "robot.log").read_text
        (first_port,) = connected_from(simulator.pid, port)
        stopped_s = time.monotonic()
        with stopped(server_pid):
            seconds_until(lambda: "no fresh chunk" in said(), "the robot holds")
            held_s = time.monotonic() - stopped_s
            seconds_until(lambda: "Still asking" in simulator.said(), "the simulator notices")
            noticed_s = time.monotonic() - stopped_s
            seconds_until(  # the next connection of that process comes soon
                lambda: first_port not in connected_from(simulator.pid, port), "the cut"
            )
            cut_s = time.monotonic() - stopped_s
            time.sleep(max(0.0, stopped_s + STANDSTILL_S - time.monotonic()))
        went_on_s = time.monotonic()
        seconds_until(
            lambda: "chunks are back" in said() or robot.poll() is not None, "the robot goes on"
        )
        assert "chunks are back" in said(), said()
        back_s = time.monotonic() - went_on_s
        seconds_until(lambda: bool(simulator.ends()), "the simulator ends")
        assert robot.wait(HANG_S) == 0
        assert simulator.is_running()
        assert sorted(server.ends()) == [
            ("", Outcome.TIMEOUT, False),
            ("train/a#0", Outcome.TIMEOUT, True),
        ]
        assert len(read_log(tmp_path / "robot.jsonl")) == 1
    print(
        f"\na stopped server: a robot holds after {held_s:.1f} s, a simulator says so after "
        f"{noticed_s:.1f} s, connections are cut after {cut_s:.1f} s; chunks are back "
        f"{back_s:.1f} s after it went on"
    )


def robot_words(folder: Path, endpoint: str) -> list[str]:
    """A robot with one episode of ten seconds, which waits for its server as long as it must."""
    return [
        sys.executable, "-m", "sim_bridge.robots", "robot=simulated", "suite=toy", "rate_hz=20",
        f"task={TASK}", "episodes=1", "horizon_steps=200", "give_up_s=600", "request_timeout_s=1",
        f"endpoint={endpoint}", f"log_path={folder}/robot.jsonl",
    ]  # fmt: skip


def connected_from(pid: int, port: int) -> set[int]:
    """The ports from which that process's own sockets are connected to `port`."""
    import psutil

    found = psutil.Process(pid).net_connections("tcp")
    known = [c for c in found if c.raddr and c.raddr.port == port and c.status == "ESTABLISHED"]
    return {c.laddr.port for c in known}
