"""/metrics, /healthz, /readyz, and the figures behind them."""

import json
import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from server_fixtures import finish, make_order, observe, post, running, take_slot

from agent.http import Health, HttpServer
from agent.metrics import AgentMetrics, wilson_low
from agent.server.app import write_endpoints
from agent.wire.errors import ConfigError


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture
def serve_http():
    servers = []

    def start(health=Health(True, True), registry=None):  # noqa: B008
        server = HttpServer("127.0.0.1", 0, registry or CollectorRegistry(), lambda: health)
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


def test_a_served_episode_shows_in_the_metrics(tmp_path, serve_http):
    with running(tmp_path) as server:
        operator, client = server.operator(), server.client()
        post(operator, make_order(slots=4))
        for outcome in ("success", "timeout", "aborted"):
            _, started = take_slot(client)
            client.request(observe(started.episode_id, 0))
            client.request(finish(started.episode_id, outcome))
        url = serve_http(server.server.health(), server.metrics.registry).url
        assert get(f"{url}/readyz") == (200, "ok\n")
        families = text_string_to_metric_families(get(f"{url}/metrics")[1])
        samples = {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in families
            for sample in family.samples
        }
        write_endpoints(tmp_path, server.server, url)
        assert json.loads((tmp_path / "endpoints.json").read_text())["http"] == url
    for outcome in ("success", "timeout", "aborted"):
        assert samples["perennial_episodes_total", *sorted([outcome, "reach", "train"])] == 1
    assert samples["perennial_task_success_rate", "20", "reach", "train"] == 0.5
    assert samples["perennial_adapter_info", "", "", "base"] == 1
    assert samples["perennial_request_duration_seconds_count", "infer"] == 3
    busy_s = samples["perennial_inference_busy_seconds_total",]
    assert 0 < busy_s <= samples["perennial_request_duration_seconds_sum", "infer"]
    assert samples["perennial_requests_total", "Act", "ok"] == 3
    assert all(not key[0].startswith("perennial") or "robot" not in key for key in samples)


def test_only_the_active_version_has_an_info_series():
    metrics = AgentMetrics()
    metrics.set_active("v00001-aaaaaaaaaaaa", 1, "base")
    metrics.set_active("v00002-bbbbbbbbbbbb", 2, "v00001-aaaaaaaaaaaa")
    samples = next(iter(metrics.adapter_info.collect())).samples
    assert [sample.labels["version"] for sample in samples] == ["v00002-bbbbbbbbbbbb"]


def test_wilson_low_is_a_bound_below_the_rate():
    assert wilson_low(0, 0) == 0.0
    assert wilson_low(50, 100) == pytest.approx(0.4038, abs=1e-4)  # Brown et al., 2001, formula (4)
    for trials in (1, 5, 50):
        lows = [wilson_low(k, trials) for k in range(trials + 1)]
        assert lows == sorted(lows)
        assert all(low <= k / trials for k, low in enumerate(lows))


def test_a_taken_port_and_a_public_address_are_one_clear_line(serve_http):
    server = serve_http()
    port = int(server.url.rsplit(":", 1)[1])
    for host, taken, text in (("127.0.0.1", port, "0 for any free"), ("0.0.0.0", 0, "insecure")):
        with pytest.raises(ConfigError, match=text):
            HttpServer(host, taken, CollectorRegistry(), lambda: Health(True, True))
