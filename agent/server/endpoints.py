"""Where the server listens: addresses that nobody chose, and the file that tells all of them."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

from agent.config import AgentConfig
from agent.durable import replace_file
from agent.metrics import AgentMetrics
from agent.wire.codec import Limits
from agent.wire.curve import Door
from agent.wire.errors import ConfigError
from agent.wire.sockets import RouterSocket

CLIENT_HEADER_BYTES = 64 << 10
SOCKET_PARENT_MAX_BYTES = 72  # so that the path of a socket in a folder of it is short enough


def bind_sockets(
    config: AgentConfig, metrics: AgentMetrics, stack: ExitStack
) -> tuple[RouterSocket, RouterSocket]:
    """The robots' socket and the operators', behind one door if there are keys.

    `stack` closes them. Raises ConfigError.
    """
    door = None
    if config.keys_dir:
        refused = metrics.clients_refused_total
        door = Door(Path(config.keys_dir), lambda reason: refused.labels(reason).inc())
        stack.callback(door.close)

    def bind(endpoint: str, limits: Limits) -> RouterSocket:
        socket = RouterSocket(endpoint, limits, insecure=config.insecure, door=door)
        stack.callback(socket.close)
        return socket

    limits = Limits(config.max_message_bytes, max_header_bytes=CLIENT_HEADER_BYTES)
    robots = bind(config.robots_endpoint, limits)
    endpoint = config.operator_endpoint or private_endpoint(stack)
    return robots, bind(endpoint, Limits(config.max_message_bytes))


def private_endpoint(stack: ExitStack) -> str:
    """An ipc address in a fresh folder that only this user can enter; `stack` removes it."""
    parents = (os.environ.get("XDG_RUNTIME_DIR") or "", tempfile.gettempdir(), "/tmp")
    usable = [each for each in parents if os.access(each, os.W_OK | os.X_OK)]
    short = [each for each in usable if len(os.fsencode(each)) <= SOCKET_PARENT_MAX_BYTES]
    if not short:
        raise ConfigError(
            "operator_endpoint: no short folder to make a socket in; set XDG_RUNTIME_DIR or TMPDIR"
        )
    folder = tempfile.mkdtemp(prefix="perennial-", dir=short[0])
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    return f"ipc://{folder}/operator.sock"


def write_endpoints(state_dir: Path, robots: str, operator: str, http: str) -> None:
    """endpoints.json tells others where the process listens; there only once it does."""
    endpoints = {"robots": robots, "operator": operator, "http": http}
    replace_file(state_dir / "endpoints.json", (json.dumps(endpoints, indent=2) + "\n").encode())
