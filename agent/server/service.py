"""The server as a process: policy, HTTP, signals, and the file that says where it listens."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from pathlib import Path

from agent.config import AgentConfig, PolicyConfig
from agent.durable import StorageError
from agent.http import Health, HttpServer
from agent.metrics import AgentMetrics
from agent.noop_policy import NoopPolicy
from agent.policy import Policy
from agent.server.app import Server, write_endpoints
from agent.wire.errors import ConfigError

log = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 0.0005


def serve(config: AgentConfig) -> None:
    """Serves until SIGTERM or SIGINT. Raises ConfigError for whatever the user must mend first."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # A thread that computes (journal, inference) gives way to the loop after this long, not 5 ms.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    stop = threading.Event()
    metrics = AgentMetrics()
    current: list[Server] = []  # filled once the policy is loaded

    def on_signal(*_: object) -> None:
        stop.set()
        for server in current:
            server.wake()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    http = HttpServer(
        config.http_host,
        config.http_port,
        metrics.registry,
        lambda: current[0].health() if current else Health(True, False, "loading the model"),
        insecure=config.insecure,
    )
    http.start()
    try:
        with _open_server(config, metrics) as server:
            current.append(server)
            server.run(
                stop.is_set,
                on_ready=lambda: write_endpoints(Path(config.state_dir), server, http.url),
            )
    finally:
        http.close()


def make_policy(config: PolicyConfig) -> Policy:
    """The policy that the config names. Raises ConfigError if its files cannot be used."""
    if config.kind == "noop":
        return NoopPolicy(cameras=tuple(config.cameras), adapter_slots=config.adapter_slots)
    from agent.vla_loading import load_vla_policy

    return load_vla_policy(config)


def _open_server(config: AgentConfig, metrics: AgentMetrics) -> Server:
    try:
        return Server(config, lambda: make_policy(config.policy), metrics)
    except StorageError as error:
        raise ConfigError(f"state_dir: {error}") from error
