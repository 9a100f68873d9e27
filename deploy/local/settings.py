"""Composes a run's configuration and writes one resolved file per process.

Hydra checks every key and group; below `compose_run` only plain values and `RunSettings` exist.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.local.processes import PACKAGE_ROOT

CONFIGS = PACKAGE_ROOT / "configs"
SOCKET_PATH_LIMIT_BYTES = 107  # sun_path of a UNIX socket


class BadSetting(Exception):
    """A setting that cannot work; one line with the way out."""


@dataclass
class Threads:
    """Threads of the numerical libraries, per process."""

    agent: int = 1
    learner: int = 2
    sim: int = 1


@dataclass
class RunSettings:
    """What the supervisor itself needs; `configs/run.yaml` describes each."""

    run_dir: Path
    seed: int
    workers: int
    probe_rate_hz: float
    report: bool
    restart_limit: int
    restart_backoff_s: float
    stop_limit_s: float
    ready_limit_s: float
    threads: Threads = field(default_factory=Threads)


@dataclass(frozen=True)
class RunConfig:
    """`tree`: the whole composition; `processes`: process name -> its own resolved settings."""

    settings: RunSettings
    tree: dict[str, Any]
    processes: dict[str, dict[str, Any]]


def compose_run(overrides: Sequence[str]) -> RunConfig:
    """The run that `overrides` (Hydra's syntax) ask for.

    Raises BadSetting for an unknown key, option or task, with the nearest that exists.
    """
    tree = _compose(overrides)
    _check_settings(tree)
    suite = tree["suite"]
    suite["train_tasks"] = _choose_tasks(suite["train_tasks"], tree["task_order"])
    tree["learner"]["suite"]["train_tasks"] = suite["train_tasks"]
    tree["probe"]["task"] = suite["train_tasks"][0]
    tree["model"]["model_dir"] = str(find_model(tree["model"]["model_dir"]))
    names = RunSettings.__dataclass_fields__
    settings = RunSettings(**{name: tree[name] for name in names})
    settings.run_dir = Path(tree["run_dir"]).expanduser().resolve()
    settings.threads = Threads(**tree["threads"])
    return RunConfig(settings, tree, _process_settings(settings, tree))


def _compose(overrides: Sequence[str]) -> dict[str, Any]:
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    # The algorithm is the learner's own group; here it is chosen as the run's other groups are.
    short, full = "algorithm=", "algorithm@learner.algorithm="
    settings = [full + o.removeprefix(short) if o.startswith(short) else o for o in overrides]
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config = compose("run", settings)
        tree = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        known = _flat_keys(OmegaConf.to_container(_defaults()))
        raise BadSetting(_explain(str(error), known)) from error
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def _defaults() -> Any:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("run")


def _flat_keys(node: Any, prefix: str = "") -> list[str]:
    """Every dotted key of a tree of dicts, inner nodes too."""
    if not isinstance(node, dict):
        return []
    keys = [f"{prefix}{key}" for key in node]
    return keys + [k for key, value in node.items() for k in _flat_keys(value, f"{prefix}{key}.")]


def _explain(text: str, known: list[str]) -> str:
    """One line for what Hydra says in many."""
    if match := re.search(r"Could not override '([^']+)'", text):
        return _with_nearest(f"unknown setting '{match[1]}'", match[1], known)
    if match := re.search(r"Could not find '([^'/]+)/([^']+)'", text):
        options = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
        line = _with_nearest(f"unknown {match[1]} '{match[2]}'", match[2], options)
        return f"{line}; there are: {', '.join(options)}"
    if match := re.search(r"Missing mandatory value: (\S+)", text):
        key = re.search(r"full_key: (\S+)", text)
        name = key[1] if key else match[1]
        return f"{name} has no default; give it as {name}=VALUE"
    line = " ".join(text.split("\n", 1)[0].split())
    return f"{line}; settings look like key=value or key=[1,2]"


def _with_nearest(line: str, word: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(word, known, 1, 0.5)
    return f"{line}; did you mean '{nearest[0]}'?" if nearest else line


def _choose_tasks(train_tasks: list[str], order: Any) -> list[str]:
    """`train_tasks` in the order of the indices `order`, all of them if it is None."""
    if order is None:
        return train_tasks
    listing = ", ".join(f"{i} {slug}" for i, slug in enumerate(train_tasks))
    if not isinstance(order, list) or not order:
        raise BadSetting(f"task_order: expected indices like [0,1], got {order!r} ({listing})")
    for index in order:
        if not isinstance(index, int) or not 0 <= index < len(train_tasks):
            raise BadSetting(f"task_order: there is no task {index!r}; there are: {listing}")
    if len(set(order)) != len(order):
        raise BadSetting(f"task_order: a task is trained once, got {order}")
    return [train_tasks[index] for index in order]


def find_model(model_dir: str) -> Path:
    """The model folder, from the working directory or from the package.

    Raises BadSetting if it is in neither place.
    """
    candidates = [Path(model_dir).expanduser().resolve(), PACKAGE_ROOT / model_dir]
    for folder in candidates:
        if (folder / "config.json").is_file():
            return folder
    raise BadSetting(
        f"model.model_dir: no config.json in {candidates[0]}; "
        "name an OpenVLA-OFT checkpoint folder, or leave the setting out for the nano model"
    )


def _check_settings(tree: dict[str, Any]) -> None:
    for name, low in (("workers", 1), ("seed", 0), ("restart_limit", 0)):
        value = tree[name]
        if not isinstance(value, int) or value < low:
            raise BadSetting(f"{name}: expected an integer of at least {low}, got {value!r}")
    for name in ("probe_rate_hz", "restart_backoff_s", "stop_limit_s", "ready_limit_s"):
        value = tree[name]
        if not isinstance(value, int | float) or value < 0:
            raise BadSetting(f"{name}: expected a number of at least 0, got {value!r}")


def _process_settings(settings: RunSettings, tree: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each process's section with its share of the run folder and sockets."""
    run_dir = settings.run_dir
    sockets = socket_folder(run_dir)
    robots, operator = (f"ipc://{sockets / name}" for name in ("robots.sock", "operator.sock"))
    suite, model_dir = tree["suite"], tree["model"]["model_dir"]
    tasks = {
        task["slug"]: {"instruction": task["instruction"], "suite": suite["name"]}
        for task in suite["tasks"]
    }
    agent = tree["agent"] | {
        "state_dir": str(run_dir / "agent"),
        "adapters_dir": str(run_dir / "adapters"),
        "robots_endpoint": robots,
        "operator_endpoint": operator,
        "policy": tree["agent"]["policy"] | {"model_dir": model_dir},
        "tasks": tasks,
        "die_with_parent": True,
    }
    learner = tree["learner"] | {
        "state_dir": str(run_dir / "learner"),
        "adapters_dir": str(run_dir / "adapters"),
        "operator_endpoint": operator,
        "model_dir": model_dir,
        "die_with_parent": True,
    }
    processes = {"agent": agent, "learner": learner}
    for index in range(settings.workers):
        name = f"sim-{index}"
        log_path = str(run_dir / name / "client.jsonl")
        processes[name] = tree["sim"] | {
            "endpoint": robots,
            "client_id": name,
            "log_path": log_path,
            "die_with_parent": True,
        }
    if settings.probe_rate_hz > 0:
        processes["probe"] = tree["probe"] | {
            "endpoint": robots,
            "log_path": str(run_dir / "probe.jsonl"),
            "die_with_parent": True,
        }
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
