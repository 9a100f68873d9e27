"""What a policy server can be refused for before anything is loaded or served.

`perennial serve --preflight` and `perennial run` ask this first: a cause that is known at the start
is told at the start, not after minutes of loading.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from agent.config import AgentConfig, PolicyConfig, TaskConfig
from agent.durable import StorageError, locked, require_writable
from agent.http import Health, HttpServer
from agent.metrics import AgentMetrics
from agent.noop_policy import NoopPolicy
from agent.server.endpoints import bind_sockets
from agent.wire.endpoints import check_endpoint
from agent.wire.errors import ConfigError

if TYPE_CHECKING:
    from agent.model.policy_model import PolicyModel

_ANY_PORT = "tcp://127.0.0.1:0"


@dataclass(frozen=True)
class Contract:
    """What clients must fit: the policy as they are told it in the Welcome, and the tasks."""

    policy: str
    chunk_steps: int
    action_dim: int
    proprio_dim: int
    images: dict[str, list[int]]  # camera -> [height, width, 3]
    tasks: dict[str, list[str]]  # suite -> slugs of those that it may be asked for


def preflight(config: AgentConfig) -> None:
    """Prints the contract as a line of JSON. Raises ConfigError for whatever cannot work."""
    check_state("state_dir", config.state_dir)
    check_state("adapters_dir", config.adapters_dir, is_held=False)
    check_http(config.http_host, config.http_port, config.http_open)
    _check_sockets(config)
    print(json.dumps(asdict(_contract(config.policy, config.tasks))))


def check_state(setting: str, folder: str, *, is_held: bool = True) -> None:
    """Raises ConfigError unless the folder can be written, or made.

    is_held: by the process that uses it, for itself alone.
    """
    path = Path(folder)
    try:
        require_writable(path)
        if is_held and path.is_dir():
            with locked(path):
                pass
    except StorageError as error:
        raise ConfigError(f"{setting}: {error}") from error


def check_http(host: str, port: int, is_open: bool) -> None:
    """Raises ConfigError unless metrics and health can be served there."""
    health = Health(alive=True, ready=False)
    HttpServer(host, port, lambda: b"", lambda: health, is_open=is_open).close()


def _check_sockets(config: AgentConfig) -> None:
    """Binds what is TCP; to bind a path would take it from whoever is there."""
    endpoints = {}
    for name in ("robots_endpoint", "operator_endpoint"):
        endpoint = getattr(config, name)
        if endpoint and not endpoint.startswith("tcp://"):
            encrypted = bool(config.keys_dir)
            check_endpoint(endpoint, bind=True, insecure=config.insecure, encrypted=encrypted)
            endpoint = _ANY_PORT
        endpoints[name] = endpoint
    with ExitStack() as stack:
        bind_sockets(replace(config, **endpoints), AgentMetrics(), stack)


def _contract(config: PolicyConfig, tasks: Mapping[str, TaskConfig]) -> Contract:
    slugs: dict[str, list[str]] = {}
    for slug, task in tasks.items():
        slugs.setdefault(task.suite, []).append(slug)
    if config.kind == "noop":
        noop = NoopPolicy(cameras=tuple(config.cameras))
        return Contract(
            noop.name, noop.chunk_steps, noop.action_dim, noop.proprio_dim, noop.images, slugs
        )
    model = look_at_model(config, "policy.")
    if config.compile and model.config.is_autoregressive:
        raise ConfigError(
            "policy.compile: variant openvla is generated token by token and is not compiled; use "
            "policy.compile=false"
        )
    check_instructions(model, {f"tasks.{slug}": task.instruction for slug, task in tasks.items()})
    size = model.config.image_size
    return Contract(
        model.name,
        model.config.chunk_size,
        model.config.action_dim,
        model.config.proprio_dim,
        {camera: [size, size, 3] for camera in model.cameras},
        slugs,
    )


def look_at_model(config: PolicyConfig, prefix: str) -> PolicyModel:
    """The model without its weights. prefix: of the settings' names. Raises ConfigError."""
    from agent.model.devices import check_device
    from agent.model.errors import ModelFolderError
    from agent.model.policy_model import look_at_policy_model

    check_device(f"{prefix}device", config.device)
    try:
        return look_at_policy_model(
            config.model_dir, config.architecture, config.cameras, config.unnorm_key
        )
    except (ModelFolderError, OSError) as error:
        raise ConfigError(f"{prefix}model_dir: {error}") from error


def check_instructions(model: PolicyModel, instructions: dict[str, str]) -> None:
    """instructions: setting -> instruction. Raises ConfigError for one that cannot be read."""
    for setting, instruction in instructions.items():
        try:
            model.prompts.encode(instruction)
        except ValueError as error:
            raise ConfigError(
                f"{setting}: {error}; choose a model that was made for this suite (model=NAME or "
                "model.model_dir=FOLDER), or another suite"
            ) from error
