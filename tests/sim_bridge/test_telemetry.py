"""What the worker tells about its time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from patience import HANG_S
from scripted_server import ScriptedServer, make_lease

from agent.wire.messages import Telemetry
from agent.wire.sockets import DealerClient
from agent.wire.telemetry import SIM_NAMES
from sim_bridge import worker
from sim_bridge.client import RequestTable
from sim_bridge.log import EndLog
from sim_bridge.toy import ToySuite
from sim_bridge.worker import Worker

EPISODES = 4


def test_told_times_only_grow_and_never_exceed_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "TELEMETRY_PERIOD_S", 0.0)
    told: list[dict[str, float]] = []

    def listen(message: object, reply: object) -> list[object]:
        if isinstance(message, Telemetry):
            told.append(message.gauges)
        return [reply]

    started_s = time.perf_counter()
    with ScriptedServer([make_lease(k) for k in range(EPISODES)]) as server:
        server.answer = listen
        with DealerClient(server.endpoint) as dealer:
            requests = RequestTable(dealer, 1.0)
            working = Worker(ToySuite(), requests, EndLog(tmp_path / "client.jsonl"), "sim-0", 2)

            def should_stop() -> bool:
                assert time.perf_counter() - started_s < HANG_S, working.counts
                return sum(working.counts.values()) >= EPISODES

            working.run(should_stop)
    elapsed_s = time.perf_counter() - started_s

    assert all(set(gauges) == set(SIM_NAMES) for gauges in told)
    times = ("step_seconds", "render_seconds", "wait_seconds")
    for name in (*times, "steps", "requests_resent"):
        totals = [gauges[name] for gauges in told]
        assert totals == sorted(totals)
        assert totals[-1] > 0 or name == "requests_resent", name
    assert sum(told[-1][name] for name in times) <= elapsed_s
