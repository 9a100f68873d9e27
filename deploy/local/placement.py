"""Where a run's processes meet, and where each keeps its files: here, or as long-lived services.

A run's settings say what is learned; a placement says on which sockets and in which folders.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SOCKET_PATH_LIMIT_BYTES = 107  # sun_path of a UNIX socket


class BadSetting(Exception):
    """A setting that cannot work; one line with the way out."""


@dataclass(frozen=True)
class Placement:
    """Where the agent binds and the others connect, and what else depends on the place.

    sims: the names of the simulator workers' settings. agent, learner, client: what a process of
    that kind gets besides. probe: whether a client that watches the latency runs too.
    """

    robots_bind: str
    robots_connect: str
    operator_bind: str
    operator_connect: str
    sims: tuple[str, ...]
    agent: dict[str, Any] = field(default_factory=dict)
    learner: dict[str, Any] = field(default_factory=dict)
    client: dict[str, Any] = field(default_factory=dict)
    probe: bool = True


def local_placement(run_dir: Path, workers: int) -> Placement:
    """One machine, one supervisor: sockets in a private folder, nothing outlives the parent."""
    sockets = socket_folder(run_dir)
    robots, operator = (f"ipc://{sockets / name}" for name in ("robots.sock", "operator.sock"))
    sims = tuple(f"sim-{index}" for index in range(workers))
    own = {"die_with_parent": True}
    return Placement(robots, robots, operator, operator, sims, own, own, own)


def process_settings(
    run_dir: Path, tree: dict[str, Any], placement: Placement
) -> dict[str, dict[str, Any]]:
    """Each process's section of the composed `tree`, with its own folders and sockets."""
    suite, model_dir = tree["suite"], tree["model"]["model_dir"]
    tasks = {
        task["slug"]: {"instruction": task["instruction"], "suite": suite["name"]}
        for task in suite["tasks"]
    }
    agent = tree["agent"] | {
        "state_dir": str(run_dir / "agent"),
        "adapters_dir": str(run_dir / "adapters"),
        "robots_endpoint": placement.robots_bind,
        "operator_endpoint": placement.operator_bind,
        "policy": tree["agent"]["policy"] | {"model_dir": model_dir},
        "tasks": tree["agent"]["tasks"] | tasks,  # robots' own besides the suite's
    }
    learner = tree["learner"] | {
        "state_dir": str(run_dir / "learner"),
        "adapters_dir": str(run_dir / "adapters"),
        "operator_endpoint": placement.operator_connect,
        "model_dir": model_dir,
    }
    processes = {"agent": agent | placement.agent, "learner": learner | placement.learner}
    for name in placement.sims:
        own = {"client_id": name, "log_path": str(run_dir / name / "client.jsonl")}
        endpoint = {"endpoint": placement.robots_connect}
        processes[name] = tree["sim"] | endpoint | own | placement.client
    if placement.probe and tree["probe_rate_hz"] > 0:
        own = {"endpoint": placement.robots_connect, "log_path": str(run_dir / "probe.jsonl")}
        processes["probe"] = tree["probe"] | own | placement.client
    return processes


def socket_folder(run_dir: Path) -> Path:
    """A short path for the run's sockets, the same at every start of one run folder."""
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    digest = hashlib.sha256(str(run_dir).encode()).hexdigest()[:12]
    folder = base / f"perennial-{os.getuid()}-{digest}"
    if len(os.fsencode(folder / "operator.sock")) > SOCKET_PATH_LIMIT_BYTES:
        raise BadSetting(
            f"{folder} is too long for a socket ({SOCKET_PATH_LIMIT_BYTES} bytes); "
            "set XDG_RUNTIME_DIR or TMPDIR to a shorter folder"
        )
    return folder


def make_socket_folder(folder: Path) -> None:
    """Creates `folder` for this user alone. Raises BadSetting if somebody else's is in the way."""
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise BadSetting(f"{folder} is not a private folder of yours; remove it and try again")
