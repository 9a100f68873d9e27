"""What a simulator worker can be refused for before any process is started."""

from __future__ import annotations

import json
from pathlib import Path

from agent.durable import StorageError, require_writable
from agent.wire.endpoints import check_endpoint
from agent.wire.errors import ConfigError
from agent.wire.keys import find_client_keys
from agent.wire.messages import PROTOCOL_VERSION, Welcome
from sim_bridge.config import SimConfig
from sim_bridge.contract import require_fit
from sim_bridge.robot import UnknownTask
from sim_bridge.suites import make_suite


def preflight(config: SimConfig, policy: str) -> None:
    """Raises ConfigError for whatever cannot work.

    policy: what the agent's preflight printed, as JSON; "" if that is not known.
    """
    try:
        require_writable(Path(config.log_path).absolute().parent)
    except StorageError as error:
        raise ConfigError(f"log_path: {error}") from error
    find_client_keys(config.keys_dir)
    check_endpoint(config.endpoint, bind=False)
    suite = make_suite(config)
    try:
        if not policy:
            return
        welcome, tasks = _read(policy)
        require_fit(suite, welcome)
        for task in tasks.get(suite.name, []):
            if task not in suite.tasks:
                raise UnknownTask(suite.name, task, suite.tasks)
    finally:
        suite.close()


def _read(policy: str) -> tuple[Welcome, dict[str, list[str]]]:
    """What the agent would welcome a client with, and the tasks of each suite."""
    try:
        values = json.loads(policy)
        tasks = dict(values.pop("tasks"))
        return Welcome(PROTOCOL_VERSION, "", active_version="", **values), tasks
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ConfigError(
            "--policy: expected the line that perennial serve --preflight prints"
        ) from error
