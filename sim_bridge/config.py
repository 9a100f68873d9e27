"""Settings of the bridge's two processes; `configs/sim.yaml` and `configs/probe.yaml` set them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from agent.wire.errors import ConfigError

_CLIENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass
class SimConfig:
    """One worker process. Raises ConfigError for values that cannot work."""

    endpoint: str = "tcp://127.0.0.1:5555"  # the agent's robots socket
    keys_dir: str = ""  # this client's keys, made by `perennial keys add`; "": in clear
    suite: str = "tabletop"
    envs: int = 8  # bodies driven at once
    image_size: int = 64  # pixels a side, where the suite can choose
    client_id: str = "sim-0"  # unique among the agent's clients
    log_path: str = "client.jsonl"  # answered episode ends
    heartbeat_path: str = ""  # a file with the time of the last answer; "": none
    request_timeout_s: float = 5.0  # silence after which a request is sent again
    idle_exit_s: float | None = None  # leave after so long without a lease; null: stay
    threads: int = 1  # of numerical libraries
    die_with_parent: bool = False  # SIGTERM to itself when the parent process ends (Linux)

    def __post_init__(self) -> None:
        _require_client_id(self.client_id)
        _require_range("envs", self.envs, 1, 1024)
        _require_range("image_size", self.image_size, 8, 640)
        _require_range("request_timeout_s", self.request_timeout_s, 0.05, 600)
        _require_range("threads", self.threads, 1, 1024)
        if self.idle_exit_s is not None:
            _require_range("idle_exit_s", self.idle_exit_s, 0, 1e9)


@dataclass
class ProbeConfig:
    """The probe: a client that asks at a steady rate. Raises ConfigError as SimConfig does."""

    endpoint: str = "tcp://127.0.0.1:5555"
    keys_dir: str = ""
    task: str = "pick_red_tray"  # registered with the agent
    rate_hz: float = 20.0  # requests a second
    client_id: str = "probe"
    log_path: str = "probe.jsonl"
    request_timeout_s: float = 5.0
    threads: int = 1
    die_with_parent: bool = False

    def __post_init__(self) -> None:
        _require_client_id(self.client_id)
        _require_range("rate_hz", self.rate_hz, 0.01, 1000)
        _require_range("request_timeout_s", self.request_timeout_s, 0.05, 600)
        _require_range("threads", self.threads, 1, 1024)


def _require_client_id(client_id: str) -> None:
    if not _CLIENT_ID.fullmatch(client_id):
        raise ConfigError(
            "client_id: expected 1 to 64 letters, digits, '.', '_' or '-', starting with a letter "
            f"or digit, got '{client_id}'"
        )


def _require_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name}: expected {low:g} to {high:g}, got {value}")
