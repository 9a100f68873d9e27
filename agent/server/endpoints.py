"""Where the server listens: addresses that nobody chose, and the file that tells all of them."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

from agent.config import AgentConfig
from agent.durable import replace_file
from agent.http import HTTP_CONNECTIONS_MAX
from agent.metrics import AgentMetrics
from agent.process.descriptors import free_descriptors
from agent.wire.codec import CLIENT_HEADER_BYTES, DEFAULT_LIMITS, Limits
from agent.wire.curve import Door
from agent.wire.errors import ConfigError
from agent.wire.sockets import CONNECTIONS_MAX, RouterSocket

SOCKET_PARENT_MAX_BYTES = 72  # so that the path of a socket in a folder of it is short enough
OPERATORS_MAX = 32  # connections of the learner and of operators
ROBOTS_MIN = 32  # connections that are let in whatever the limit of open files is
OTHER_FILES = 64  # adapters that are loaded, folders that are synced, and a burst of connections

log = logging.getLogger(__name__)


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

    def bind(endpoint: str, limits: Limits, connections_max: int) -> RouterSocket:
        socket = RouterSocket(
            endpoint,
            limits,
            insecure=config.insecure,
            door=door,
            connections_max=connections_max,
            on_cut=lambda reason: metrics.connections_cut_total.labels(reason).inc(),
        )
        stack.callback(socket.close)
        return socket

    limits = Limits(config.max_message_bytes, max_header_bytes=CLIENT_HEADER_BYTES)
    robots = bind(config.robots_endpoint, limits, connections_allowed(config))
    endpoint = config.operator_endpoint or private_endpoint(stack)
    # A learner is not told of another limit: that of robots is for their pictures.
    return robots, bind(endpoint, DEFAULT_LIMITS, OPERATORS_MAX)


def connections_allowed(config: AgentConfig) -> int:
    """How many connections of robots leave descriptors for every file that may have to be open."""
    reserved = config.max_open_episodes + OPERATORS_MAX + HTTP_CONNECTIONS_MAX + OTHER_FILES
    free = free_descriptors() - reserved
    if free < ROBOTS_MIN:
        log.warning(
            "the limit of open files leaves room for %d connections of robots beside "
            "max_open_episodes=%d: raise it by %d (ulimit -n, LimitNOFILE=), or lower the setting",
            max(free, 0),
            config.max_open_episodes,
            ROBOTS_MIN - free,
        )
    return min(max(free, ROBOTS_MIN), CONNECTIONS_MAX)


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
