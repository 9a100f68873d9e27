"""/metrics, /healthz, /readyz of a real server, and the figures behind them."""

import json
import shutil
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
from patience import HANG_S
from prometheus_client.parser import text_string_to_metric_families
from server_fixtures import (
    A,
    CountingPolicy,
    K,
    finish,
    make_order,
    observe,
    post,
    running,
    start_own,
    take_slot,
)

from agent import metric_set
from agent.http import Health, HttpServer
from agent.journal import JournalFailed
from agent.measuring import add_ready_source
from agent.metrics import AgentMetrics
from agent.policy import ActResult
from agent.process.clock import unix_s
from agent.server.endpoints import write_endpoints
from agent.server.telemetry import ClientTelemetry
from agent.wire.errors import ConfigError, WireError
from agent.wire.messages import Activate, Executed, Hello, Telemetry
from agent.wire.telemetry import AGE, AGE_BOUNDS_S, TELEMETRY_NAMES, Tally


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=HANG_S) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def samples_of(text: str) -> dict[tuple[str, ...], float]:
    """(name, sorted label values...) -> value."""
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def serve_http():
    servers = []

    def start(health=Health(True, True), metrics=lambda: b""):  # noqa: B008
        server = HttpServer("127.0.0.1", 0, metrics, lambda: health)
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.close()


@pytest.mark.parametrize(
    ("health", "alive", "ready"),
    [
        (Health(True, True), 200, 200),
        (Health(True, False, "loading the model"), 200, 503),
        (Health(False, True, "stuck"), 503, 503),
    ],
)
def test_health_and_readiness_differ(serve_http, health, alive, ready):
    url = serve_http(health).url
    assert get(f"{url}/healthz")[0] == alive
    status, text = get(f"{url}/readyz")
    assert status == ready
    assert health.reason in text
    assert get(f"{url}/secrets")[0] == 404


@pytest.mark.parametrize("health", [Health(True, True), Health(True, False), Health(False, True)])
def test_the_ready_gauge_says_what_readyz_answers(serve_http, health):
    metrics = AgentMetrics()
    add_ready_source(metrics, lambda: health)
    url = serve_http(health, metrics.text).url
    ready = samples_of(get(f"{url}/metrics")[1])["perennial_ready",]
    assert ready == (get(f"{url}/readyz")[0] == 200)


def test_a_health_that_cannot_be_told_has_no_ready_gauge():
    metrics = AgentMetrics()
    answers = iter([Health(True, True)])
    add_ready_source(metrics, lambda: next(answers))
    assert "\nperennial_ready 1.0" in metrics.text().decode()
    assert "\nperennial_ready " not in metrics.text().decode()


def test_a_stopped_journal_shows_at_the_next_scrape(tmp_path, monkeypatch):
    with running(tmp_path) as server:
        add_ready_source(server.metrics, server.server.health)
        assert "\nperennial_ready 1.0" in server.metrics.text().decode()
        failure = JournalFailed("No space left on device")
        monkeypatch.setattr(server.server._journal, "_failure", failure)
        assert "\nperennial_ready 0.0" in server.metrics.text().decode()
        monkeypatch.undo()


def test_a_served_episode_shows_in_the_metrics(tmp_path, serve_http):
    with running(tmp_path, latency_budget_s=0.25) as server:
        operator, client = server.operator(), server.client()
        post(operator, make_order(slots=4))
        for outcome in ("success", "timeout", "aborted"):
            _, started = take_slot(client)
            client.request(observe(started.episode_id, 0))
            client.request(finish(started.episode_id, outcome))
        # The reply is sent before the figures are changed.
        server.wait_until(
            lambda: ("perennial_episodes_total", "reach", "aborted", "train") in server.samples()
        )
        url = serve_http(server.server.health(), server.metrics.text).url
        assert get(f"{url}/readyz") == (200, "ok\n")
        samples = samples_of(get(f"{url}/metrics")[1])
        write_endpoints(tmp_path, "robots", "operator", url)
        assert json.loads((tmp_path / "endpoints.json").read_text())["http"] == url
    for outcome in ("success", "timeout", "aborted"):
        assert samples["perennial_episodes_total", *sorted([outcome, "reach", "train"])] == 1
    assert samples["perennial_task_success_rate", "20", "reach", "train"] == 0.5
    assert samples["perennial_adapter_info", "", "", "base"] == 1
    assert samples["perennial_latency_budget_seconds",] == 0.25
    spent_s = 0.0
    for stage in ("decode", "encode", "infer", "preprocess", "queue", "total"):
        key = sorted([stage, "perennial"])
        assert samples["perennial_request_duration_seconds_count", *key] == 3
        spent_s += samples["perennial_request_duration_seconds_sum", *key]
    assert samples["perennial_inference_busy_seconds_total",] <= spent_s
    assert samples["perennial_requests_total", "Act", "ok", "perennial"] == 3
    assert samples["perennial_actions_total", "run"] == 3 * K
    assert samples["perennial_episode_store_bytes", "sealed"] > 0
    assert samples["perennial_episode_store_bytes", "open"] == 0
    assert samples["perennial_episode_store_fsync_seconds_count",] >= 3
    assert samples["perennial_disk_size_bytes", "adapters"] > 0
    (build,) = [key for key in samples if key[0] == "perennial_build_info"]
    assert "agent" in build
    assert samples[build] == 1
    assert all(not key[0].startswith("perennial") or "robot" not in key for key in samples)


def test_a_slow_collector_holds_its_scrape_and_no_client(tmp_path, serve_http, monkeypatch):
    entered, gate = threading.Event(), threading.Event()
    monkeypatch.setattr(metric_set, "SOURCE_LIMIT_S", HANG_S)
    with running(tmp_path) as server:
        metrics, client = server.metrics, server.client()
        metrics.add_source("slow", lambda: entered.set() or gate.wait(HANG_S))
        url = serve_http(server.server.health(), metrics.text).url
        answers = []
        scrape = threading.Thread(target=lambda: answers.append(get(f"{url}/metrics")))
        scrape.start()
        try:
            assert entered.wait(HANG_S)
            started = start_own(client)
            client.request(observe(started.episode_id, 0))
            client.request(finish(started.episode_id))
            assert get(f"{url}/healthz")[0] == 200
            assert not answers
        finally:
            gate.set()
            scrape.join(HANG_S)
    assert answers[0][0] == 200
    assert samples_of(answers[0][1])["perennial_requests_total", "Act", "ok", "perennial"] == 1


def test_a_disk_that_never_answers_costs_its_own_figures_only(tmp_path, serve_http, monkeypatch):
    gate, ask = threading.Event(), shutil.disk_usage
    dead = tmp_path / "adapters"

    def disk_usage(path):
        assert dead != path or gate.wait(10 * HANG_S)
        return ask(path)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    try:
        with running(tmp_path) as server:
            dead.mkdir(exist_ok=True)
            add_ready_source(server.metrics, server.server.health)
            url = serve_http(server.server.health(), server.metrics.text).url
            client = server.client()
            for number in range(1, 4):
                status, text = get(f"{url}/metrics")  # within HANG_S
                samples = samples_of(text)
                assert status == 200
                assert ("perennial_disk_free_bytes", "adapters") not in samples
                assert ("perennial_disk_size_bytes", "adapters") not in samples
                assert samples["perennial_disk_free_bytes", "state"] > 0
                assert samples["perennial_collector_errors_total", "disk_adapters"] == number
                assert samples["perennial_ready",] == 1
                assert samples["perennial_episode_store_bytes", "quarantined"] == 0
                assert samples["process_resident_memory_bytes",] > 0
                assert get(f"{url}/healthz")[0] == 200
                assert get(f"{url}/readyz")[0] == 200
                client.request(finish(start_own(client).episode_id, "aborted", chunks=0))
            hanging = [t for t in threading.enumerate() if t.name == "collect disk_adapters"]
            assert len(hanging) == 1
            gate.set()
            hanging[0].join(HANG_S)
            samples = samples_of(get(f"{url}/metrics")[1])
            assert samples["perennial_disk_free_bytes", "adapters"] > 0
            assert samples["perennial_collector_errors_total", "disk_adapters"] == 3
    finally:
        gate.set()


def test_only_the_active_version_has_an_info_series(tmp_path):
    with running(tmp_path) as server:
        operator = server.operator()
        for number in (1, 2):
            version = server.publish(number)
            operator.request(Activate(1, version))
        family = next(iter(server.metrics.adapter_info.collect()))
    assert [sample.labels["version"] for sample in family.samples] == [version]


def test_the_oldest_unacknowledged_episode_has_its_time(tmp_path):
    with running(tmp_path) as server:
        client = server.client()
        assert "perennial_oldest_unacked_timestamp_seconds" in server.metrics.text().decode()
        assert ("perennial_oldest_unacked_timestamp_seconds",) not in server.samples()
        started_s = unix_s()
        for _ in range(2):
            client.request(finish(start_own(client).episode_id, "aborted", chunks=0))
        found = server.wait_for_sample("perennial_oldest_unacked_timestamp_seconds")
    assert started_s <= found <= unix_s()


class OddPolicy(CountingPolicy):
    """Gives what `answer` says."""

    answer = ActResult(*[np.zeros((K, A), np.float32)] * 3)

    def act(self, requests):
        return [self.answer] * len(requests)


@pytest.mark.parametrize(
    ("reason", "shape", "number"),
    [("wrong_shape", (K + 1, A), 0.0), ("non_finite", (K, A), np.nan), (None, (K, A), 0.0)],
)
def test_a_chunk_that_cannot_be_executed_is_refused_and_counted(tmp_path, reason, shape, number):
    policy = OddPolicy(adapter_slots=3)
    policy.answer = ActResult(*[np.full(shape, number, np.float32)] * 3)
    with running(tmp_path, policy) as server:
        client = server.client()
        started = start_own(client)
        if reason is None:
            client.request(observe(started.episode_id, 0))
        else:
            with pytest.raises(WireError, match="policy produced") as caught:
                client.request(observe(started.episode_id, 0))
            assert caught.value.code == "internal"
            policy.answer = OddPolicy.answer
            client.request(observe(started.episode_id, 0))  # the episode goes on
        for known in ("wrong_shape", "non_finite"):
            rejected = server.sample("perennial_actions_rejected_total", reason=known)
            assert rejected == (known == reason)


def test_the_fate_of_each_action_is_counted_once(tmp_path):
    with running(tmp_path) as server:
        client = server.client()
        started = start_own(client)
        codes = np.array(
            [Executed.RUN, Executed.LIMITED, Executed.LIMITED, Executed.REPLACED], np.uint8
        )
        client.request(observe(started.episode_id, 0))
        for _ in range(2):  # a repeat tells nothing new
            client.request(observe(started.episode_id, 1, executed=codes))
        client.request(finish(started.episode_id))
        counts = {
            how: server.sample("perennial_actions_total", how=how)
            for how in ("not_run", "run", "limited", "replaced")
        }
    assert counts == {"not_run": 0, "run": 1 + K, "limited": 2, "replaced": 1}


def test_simulators_add_up_and_never_go_back():
    metrics = AgentMetrics()
    telemetry = ClientTelemetry(metrics)

    def steps() -> float:
        return metrics.registry.get_sample_value("perennial_sim_steps_total")

    telemetry.take("a", "1", {"steps": 1000.0, "envs": 8.0})  # before this server was there
    telemetry.take("b", "1", {"steps": 0.0, "envs": 4.0})
    assert steps() == 0
    telemetry.take("a", "1", {"steps": 1010.0})
    telemetry.take("b", "1", {"steps": 5.0})
    assert steps() == 15
    telemetry.take("a", "2", {"steps": 0.0, "envs": 8.0})  # started again
    telemetry.take("a", "2", {"steps": 3.0})
    assert steps() == 18
    telemetry.take("b", "1", {"steps": 2.0})  # came late
    telemetry.take("b", "1", {"steps": 6.0})
    assert steps() == 19
    telemetry.show({"a", "b"})
    assert metrics.registry.get_sample_value("perennial_sim_envs") == 12
    telemetry.forget("b")
    telemetry.show({"a", "b"})
    assert metrics.registry.get_sample_value("perennial_sim_envs") == 8


def test_robots_totals_become_histograms_and_counters():
    metrics = AgentMetrics()
    telemetry = ClientTelemetry(metrics)
    ages = {"left": Tally(AGE, AGE_BOUNDS_S), "right": Tally(AGE, AGE_BOUNDS_S)}
    for name, tally in ages.items():
        telemetry.take(name, "1", {**tally.totals(), "ticks_held": 0.0, "clamped_rotation": 3.0})
    for value in (0.01, 0.06, 9.0):
        ages["left"].add(value)
    ages["right"].add(0.06)
    for name, tally in ages.items():
        for _ in range(2):  # a repeat adds nothing
            telemetry.take(name, "1", {**tally.totals(), "ticks_held": 4.0})
    samples = samples_of(metrics.text().decode())
    name = "perennial_observation_age_seconds"
    assert [samples[f"{name}_bucket", le] for le in ("0.01", "0.05", "0.075", "5", "+Inf")] == (
        [1, 1, 3, 3, 4]
    )
    assert samples[f"{name}_count",] == 4
    assert samples[f"{name}_sum",] == pytest.approx(0.01 + 0.06 + 9.0 + 0.06)
    assert samples["perennial_robot_ticks_total", "held"] == 8
    assert samples["perennial_actions_clamped_total", "rotation"] == 0, "before the server knew"


def test_what_workers_tell_is_exported(tmp_path):
    with running(tmp_path) as server:
        client = server.client()
        client.request(Hello("sim-0", "test"))
        client.request(Telemetry("sim-0", dict.fromkeys(TELEMETRY_NAMES, 0.0)))
        for seconds in (0.0, 2.0):
            client.request(Telemetry("sim-0", {"envs": 3.0, "render_seconds": seconds}))
        assert server.sample("perennial_sim_seconds_total", part="render") == 2.0
        assert server.wait_for_sample("perennial_sim_envs") == 3.0


def test_a_taken_port_and_a_public_address_are_one_clear_line(serve_http):
    server = serve_http()
    port = int(server.url.rsplit(":", 1)[1])
    for host, taken, text in (("127.0.0.1", port, "0 for any free"), ("0.0.0.0", 0, "http_open")):
        with pytest.raises(ConfigError, match=text):
            HttpServer(host, taken, lambda: b"", lambda: Health(True, True))
    HttpServer("0.0.0.0", 0, lambda: b"", lambda: Health(True, True), is_open=True).close()
