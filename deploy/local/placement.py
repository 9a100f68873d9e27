"""Where a run's processes meet, and where each keeps its files: here, or as long-lived services.

A run's settings say what is learned; a placement says on which sockets and in which folders.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.process.errors import ConfigError
from deploy.local.protocols import stated_protocol

SOCKET_PATH_LIMIT_BYTES = 107  # sun_path of a UNIX socket
_FOLDER = "all of a run's files are in run_dir=FOLDER"
_SOCKETS = (
    "sockets are in $XDG_RUNTIME_DIR; for others start perennial serve, learn and sim yourself"
)
# Of settings that every place chooses.
WAYS_OUT = {
    "model_dir": "give model.model_dir=FOLDER",
    "learner.suite.train_tasks": "give suite.train_tasks=[...] or task_order=[...]",
    "agent.tasks": "the suite's tasks come from suite.tasks; give one of your own another name",
    **dict.fromkeys(
        ("learner.suite.name", "sim.suite"), "give suite=NAME, and suite.perturb=[AXIS,...]"
    ),
    "protocol": "give suite/protocol=NAME, where the suite has it",
    "stop_at_success": "give suite.stop_at_success=false or true",
}
LOCAL_WAYS_OUT = {
    **dict.fromkeys(("state_dir", "adapters_dir", "log_path"), _FOLDER),
    **dict.fromkeys(("robots_endpoint", "operator_endpoint", "endpoint"), _SOCKETS),
}


class BadSetting(ConfigError):
    """A setting of a run that cannot work; one line with the way out."""


@dataclass(frozen=True)
class Placement:
    """Where the agent binds and the others connect, and what else depends on the place.

    sims: the names of the simulator workers' settings. agent, learner, client: what a process of
    that kind gets besides. run: what the place decides of the run's own settings. unused: settings
    that have no effect in this place. ways_out: setting, section, or last part of a setting's name
    -> what somebody can do who wanted another value.
    """

    robots_bind: str
    robots_connect: str
    operator_bind: str
    operator_connect: str
    sims: tuple[str, ...]
    agent: dict[str, Any] = field(default_factory=dict)
    learner: dict[str, Any] = field(default_factory=dict)
    client: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    ways_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Process:
    """One process's settings: the `section` of the tree and, above it, what is `chosen` for it."""

    section: str
    chosen: dict[str, Any]

    def settings(self, tree: dict[str, Any]) -> dict[str, Any]:
        """All of them."""
        return _merge(tree[self.section], self.chosen)


def local_placement(run_dir: Path, workers: int) -> Placement:
    """One machine, one supervisor: sockets in a private folder, nothing outlives the parent."""
    sockets = socket_folder(run_dir)
    robots, operator = (f"ipc://{sockets / name}" for name in ("robots.sock", "operator.sock"))
    sims = tuple(f"sim-{index}" for index in range(workers))
    own = {"die_with_parent": True}
    return Placement(
        robots, robots, operator, operator, sims, own, own, own, ways_out=LOCAL_WAYS_OUT
    )


def place_processes(
    run_dir: Path, tree: dict[str, Any], placement: Placement
) -> dict[str, Process]:
    """Process name -> its section of the composed `tree`, with folders, sockets, model and tasks.

    What is chosen here replaces what the tree says: whoever calls this must have refused settings
    by hand that differ.
    """
    suite, model_dir = tree["suite"], tree["model"]["model_dir"]
    suite_name = perturbed_name(suite["name"], suite["perturb"])
    tasks = {
        task["slug"]: {"instruction": task["instruction"], "suite": suite_name}
        for task in suite["tasks"]
    }
    # What the learner says of its rates is what the simulators do.
    success = {"stop_at_success": suite.get("stop_at_success", True)}
    stated = {"protocol": stated_protocol(tree, Path(model_dir)), **success}
    agent = {
        "state_dir": str(run_dir / "agent"),
        "adapters_dir": str(run_dir / "adapters"),
        "robots_endpoint": placement.robots_bind,
        "operator_endpoint": placement.operator_bind,
        "policy": {"model_dir": model_dir},
        "tasks": tasks,  # besides robots' own
    }
    learner = {
        "state_dir": str(run_dir / "learner"),
        "adapters_dir": str(run_dir / "adapters"),
        "operator_endpoint": placement.operator_connect,
        "model_dir": model_dir,
        "suite": {"train_tasks": suite["train_tasks"], "name": suite_name, **stated},
    }
    processes = {
        "agent": Process("agent", agent | placement.agent),
        "learner": Process("learner", learner | placement.learner),
    }
    endpoint = {"endpoint": placement.robots_connect}
    for name in placement.sims:
        own = {"client_id": name, "log_path": str(run_dir / name / "client.jsonl")}
        bodies = {"suite": suite_name, "protocol": suite["protocol"], **success}
        processes[name] = Process("sim", endpoint | bodies | own | placement.client)
    if tree["probe_rate_hz"] > 0:
        own = {"log_path": str(run_dir / "probe.jsonl"), "task": suite["train_tasks"][0]}
        processes["probe"] = Process("probe", endpoint | own | placement.client)
    return processes


def perturbed_name(suite: str, perturb: Sequence[Any]) -> str:
    """The name of `suite` with these perturbations: another suite, whose rates are its own."""
    is_list = isinstance(perturb, Sequence) and not isinstance(perturb, str)
    if not is_list or not all(isinstance(each, str) for each in perturb):
        raise ValueError(f"suite.perturb: expected names like [camera,lighting], got {perturb!r}")
    return "-".join([suite, *sorted(perturb)])


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`below` with the values of `above`, section by section."""
    merged = dict(below)
    for key, value in above.items():
        inner = below.get(key)
        if isinstance(inner, dict) and isinstance(value, dict):
            value = _merge(inner, value)
        merged[key] = value
    return merged


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
