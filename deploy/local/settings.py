"""Composes a run's configuration and writes one resolved file per process.

Hydra checks every key and group; below `compose_run` only plain values and `RunSettings` exist.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.local.placement import BadSetting, Placement, local_placement, process_settings
from deploy.local.processes import PACKAGE_ROOT

CONFIGS = PACKAGE_ROOT / "configs"


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


def compose_run(
    overrides: Sequence[str], place: Callable[[Path, int], Placement] = local_placement
) -> RunConfig:
    """The run that `overrides` (Hydra's syntax) ask for; `place(run_dir, workers)` says where.

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
    run_dir = settings.run_dir
    return RunConfig(
        settings, tree, process_settings(run_dir, tree, place(run_dir, settings.workers))
    )


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
