"""Stalls of the server's threads, and what shows them."""

import threading
import time

import pytest
from patience import HANG_S
from server_fixtures import CountingPolicy, observe, running, start_own

from agent.metrics import AgentMetrics
from agent.server.inference import BATCH_LIMIT_S, FIRST_BATCH_LIMIT_S, MAX_SLOWDOWN
from agent.server.watchdog import Pulse, Watchdog


def test_a_stall_is_counted_once():
    now_s, since_s = [0.0], [0.0]
    metrics = AgentMetrics()
    pulses = {
        "loop_stalled": Pulse(lambda: since_s[0], lambda: 5.0),
        "inference_stalled": Pulse(lambda: None, lambda: 5.0),
    }
    watchdog = Watchdog(pulses, metrics, lambda: now_s[0])

    def trips(reason: str) -> float:
        watchdog.check()
        name = "perennial_watchdog_trips_total"
        return metrics.registry.get_sample_value(name, {"reason": reason})

    now_s[0] = 5.0
    assert trips("loop_stalled") == 0
    for now_s[0] in (5.1, 50.0):
        assert trips("loop_stalled") == 1
    since_s[0] = 50.0
    assert trips("loop_stalled") == 1
    now_s[0] = 56.0
    assert trips("loop_stalled") == 2
    assert trips("inference_stalled") == 0


@pytest.mark.parametrize("is_over", [False, True])
def test_a_batch_counts_as_stalled_when_the_server_counts_as_dead(tmp_path, monkeypatch, is_over):
    with running(tmp_path) as server:
        began_s = time.monotonic() - FIRST_BATCH_LIMIT_S + (-1.0 if is_over else 100.0)
        monkeypatch.setattr(server.server._inference, "_running_since_s", began_s)
        assert server.server.health().alive == (not is_over)
        server.server._watchdog.check()
        name = "perennial_watchdog_trips_total"
        assert (server.sample(name, reason="inference_stalled") > 0) == is_over
        monkeypatch.undo()


def test_a_machine_that_is_known_has_a_limit_of_its_own(tmp_path):
    """A policy that hangs is found in a minute, and a slow one is waited for."""
    policy = CountingPolicy(adapter_slots=3)
    with running(tmp_path, policy) as server:
        client, inference = server.client(), server.server._inference
        started = start_own(client)
        assert inference.batch_limit_s == FIRST_BATCH_LIMIT_S
        client.request(observe(started.episode_id, 0))
        limit_s = inference.batch_limit_s
        assert BATCH_LIMIT_S < limit_s < BATCH_LIMIT_S + MAX_SLOWDOWN * HANG_S
        inference._slowest_s = 60.0  # as of a 7B on a CPU
        client.request(observe(started.episode_id, 1))
        assert inference.batch_limit_s == BATCH_LIMIT_S + MAX_SLOWDOWN * 60.0


def test_a_real_servers_inference_shows_when_it_began(tmp_path):
    policy = CountingPolicy(adapter_slots=3)
    with running(tmp_path, policy) as server:
        client = server.client()
        started = start_own(client)
        inference = server.server._inference
        assert inference.running_since_s is None
        policy.gate.clear()
        answer = threading.Thread(target=client.request, args=(observe(started.episode_id, 0),))
        answer.start()
        server.wait_until(lambda: inference.running_since_s is not None)
        assert inference.running_since_s <= time.monotonic()
        policy.gate.set()
        answer.join(HANG_S)
        assert inference.running_since_s is None
