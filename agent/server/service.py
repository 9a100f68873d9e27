"""The server as a process: policy, HTTP, signals, and the file that says where it listens."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from agent.config import AgentConfig, PolicyConfig
from agent.durable import StorageError, may_pass
from agent.http import Health, HttpServer
from agent.measuring import add_ready_source
from agent.metrics import AgentMetrics
from agent.noop_policy import NoopPolicy
from agent.policy import Policy
from agent.process import StopFlag
from agent.process.shown import start_logging
from agent.server.app import Server
from agent.server.endpoints import write_endpoints
from agent.wire.errors import ConfigError
from agent.wire.systemd import ServiceManager

log = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 0.0005


def serve(config: AgentConfig) -> None:
    """Serves until SIGTERM or SIGINT. Raises ConfigError for whatever the user must mend first."""
    start_logging()
    # A thread that computes (journal, inference) gives way to the loop after this long, not 5 ms.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    stop = StopFlag()
    metrics = AgentMetrics()
    manager = ServiceManager()
    manager.show("loading the model")
    current: list[Server] = []  # filled once the policy is loaded

    def health() -> Health:
        return current[0].health() if current else Health(True, False, "loading the model")

    add_ready_source(metrics, health)
    http = HttpServer(
        config.http_host, config.http_port, metrics.text, health, is_open=config.http_open
    )
    http.start()
    try:
        with _open_server(config, metrics) as server:
            current.append(server)

            def should_stop() -> bool:
                # The loop asks once a turn: it asks only while it turns.
                if server.health().alive:
                    manager.beat(server.status_line)
                return stop()

            def on_stop() -> None:
                manager.stopping()
                server.wake()

            def on_ready() -> None:
                write_endpoints(
                    Path(config.state_dir),
                    server.robots_endpoint,
                    server.operator_endpoint,
                    http.url,
                )
                manager.ready(server.status_line())

            with stop.working(on_stop), stop.finishing():
                server.run(should_stop, on_ready)
    finally:
        http.close()
        manager.close()


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
        if may_pass(error):  # a later start may succeed
            raise
        raise ConfigError(f"state_dir: {error}") from error
