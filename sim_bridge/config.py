"""Settings of the bridge's two processes; `configs/sim.yaml` and `configs/probe.yaml` set them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from agent.process.checks import require_range
from agent.process.errors import ConfigError

PUBLISHED_MUJOCO = (
    "3.3.2"  # of published LIBERO rates; later ones draw or move some scenes otherwise
)
_CLIENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass
class GymnasiumConfig:
    """What of an environment is what. Keys of nested observations are joined by "/"."""

    env_id: str = ""  # of gymnasium.make; "module:Id" imports the module first; "": no such suite
    arguments: dict[str, Any] = field(default_factory=dict)  # for gymnasium.make
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)  # slug -> more arguments
    cameras: dict[str, str] = field(default_factory=dict)  # camera -> key of u8[H, W, 3]
    proprio: list[str] = field(default_factory=list)  # keys, joined in this order
    success: str = "is_success"  # key of `info`


@dataclass
class SimConfig:
    """One worker process. Raises ConfigError for values that cannot work."""

    endpoint: str = "tcp://127.0.0.1:5555"  # the agent's robots socket
    keys_dir: str = ""  # this client's keys, made by `perennial keys add`; "": in clear
    suite: str = "tabletop"
    envs: int = 8  # bodies driven at once
    image_size: int = 64  # pixels a side, where the suite can choose
    protocol: str = "disjoint"  # of a LIBERO suite: openvla, vlacrl or disjoint
    renderer: str = "exact"  # of a LIBERO suite: exact or fast
    mujoco: str = PUBLISHED_MUJOCO  # of a LIBERO suite: the version it must run on; "": any
    stop_at_success: bool = True  # false: on to the horizon; what holds at its end counts
    pace_hz: float | None = None  # control steps a second, as a robot's; null: as fast as it goes
    gymnasium: GymnasiumConfig = field(default_factory=GymnasiumConfig)  # makes the suite
    client_id: str = "sim-0"  # unique among the agent's clients
    log_path: str = "client.jsonl"  # answered episode ends
    heartbeat_path: str = ""  # a file with the time of the last answer; "": none
    request_timeout_s: float = 5.0  # silence after which a request is sent again
    idle_exit_s: float | None = None  # leave after so long without a lease; null: stay
    threads: int = 1  # of numerical libraries
    die_with_parent: bool = False  # SIGTERM to itself when the parent process ends (Linux)

    def __post_init__(self) -> None:
        require_client_id(self.client_id)
        require_range("envs", self.envs, 1, 1024)
        require_range("image_size", self.image_size, 8, 640)
        require_range("request_timeout_s", self.request_timeout_s, 0.05, 600)
        require_range("threads", self.threads, 1, 1024)
        if self.pace_hz is not None:
            require_range("pace_hz", self.pace_hz, 0.1, 1000)
        if self.idle_exit_s is not None:
            require_range("idle_exit_s", self.idle_exit_s, 0, 1e9)


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
        require_client_id(self.client_id)
        require_range("rate_hz", self.rate_hz, 0.01, 1000)
        require_range("request_timeout_s", self.request_timeout_s, 0.05, 600)
        require_range("threads", self.threads, 1, 1024)


def require_client_id(client_id: str) -> None:
    """Raises ConfigError unless the agent would take it."""
    if not _CLIENT_ID.fullmatch(client_id):
        raise ConfigError(
            "client_id: expected 1 to 64 letters, digits, '.', '_' or '-', starting with a letter "
            f"or digit, got '{client_id}'"
        )
