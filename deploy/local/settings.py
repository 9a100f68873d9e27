"""Composes a run's configuration and writes one resolved file per process.

Hydra checks every key and group; below `compose_run` only plain values and `RunSettings` exist.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.process.checks import require_range
from agent.process.errors import ConfigError
from agent.process.paths import expand_home
from agent.process.shown import shown
from deploy.local.capacity import AUTO, count_workers
from deploy.local.composition import compose_tree
from deploy.local.overrides import parse_overrides, refuse_overrides
from deploy.local.placement import BadSetting, Placement, local_placement, place_processes
from deploy.local.processes import PACKAGE_ROOT

# Of numbers that a run itself reads; limits of whole numbers are whole.
_LIMITS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "workers": (1, 10_000),
    "probe_rate_hz": (0.0, 1000.0),
    "restart_limit": (0, 1_000_000),
    "restart_backoff_s": (0.0, 3600.0),
    "stop_limit_s": (0.0, 86_400.0),
    "ready_limit_s": (0.001, 1e6),
    "hang_limit_s": (1.0, 1e6),
    "parent_pid": (1, 2**31 - 1),
    "threads.agent": (1, 1024),
    "threads.learner": (1, 1024),
    "threads.sim": (1, 1024),
    "suite.envs": (1, 1024),
}


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
    hang_limit_s: float
    parent_pid: int | None
    threads: Threads = field(default_factory=Threads)


@dataclass(frozen=True)
class RunConfig:
    """`tree`: the whole composition; `processes`: process name -> its own resolved settings.

    `overrides`: what was given by hand, in Hydra's syntax.
    """

    settings: RunSettings
    tree: dict[str, Any]
    processes: dict[str, dict[str, Any]]
    overrides: tuple[str, ...] = ()


def find_model(model_dir: str) -> Path:
    """The model folder, from the working directory or from the package.

    Raises BadSetting if it is in neither place.
    """
    candidates = [absolute_path("model.model_dir", model_dir), PACKAGE_ROOT / model_dir]
    for folder in candidates:
        if model_dir and has_file(folder / "config.json"):
            return folder
    raise BadSetting(
        f"model.model_dir: no config.json in {candidates[0]}; "
        "name an OpenVLA-OFT checkpoint folder, or leave the setting out for the nano model"
    )


def absolute_path(key: str, text: str) -> Path:
    """The place that a user means: below the working directory, or at home with ~.

    Raises BadSetting.
    """
    try:
        return Path(expand_home(key, text)).resolve()
    except ConfigError as error:
        raise BadSetting(str(error)) from error
    except (OSError, RuntimeError) as error:  # a name that is too long, links in a circle
        raise BadSetting(f"{key}: {shown(text)} cannot be a path here ({error})") from error


def has_file(path: Path) -> bool:
    """Whether there is a file; False where the system refuses the name."""
    try:
        return path.is_file()
    except OSError:
        return False


def compose_run(
    overrides: Sequence[str],
    place: Callable[[Path, int], Placement] = local_placement,
    find: Callable[[str], Path] = find_model,
) -> RunConfig:
    """The run that `overrides` (Hydra's syntax) ask for; `place(run_dir, workers)` says where.

    find: of model.model_dir, the model's folder.

    Raises BadSetting for an unknown key, option or task, with the nearest that exists, and for an
    override of what the place chooses.
    """
    tree = compose_tree(overrides)
    _refuse_protocol_names(overrides)
    _check_settings(tree)
    suite = tree["suite"]
    suite["train_tasks"] = _choose_tasks(suite["train_tasks"], tree["task_order"])
    tree["model"]["model_dir"] = str(find(tree["model"]["model_dir"]))
    workers = _count_workers(tree)
    placement = place(_run_dir(tree), workers)
    placed = tree | placement.run
    processes = place_processes(_run_dir(placed), placed, placement)
    refuse_overrides(overrides, tree, placement, processes.values())
    tree = placed
    tree["learner"]["suite"]["train_tasks"] = suite["train_tasks"]
    tree["probe"]["task"] = suite["train_tasks"][0]
    names = RunSettings.__dataclass_fields__
    settings = RunSettings(**{name: tree[name] for name in names} | {"workers": workers})
    settings.run_dir = _run_dir(tree)
    settings.threads = Threads(**tree["threads"])
    own = {name: process.settings(tree) for name, process in processes.items()}
    return RunConfig(settings, tree, own, tuple(overrides))


def _run_dir(tree: dict[str, Any]) -> Path:
    if not tree["run_dir"]:
        raise BadSetting("run_dir: name a folder, e.g. run_dir=runs/mine")
    return absolute_path("run_dir", str(tree["run_dir"]))


def _count_workers(tree: dict[str, Any]) -> int:
    """`workers`, counted on this machine if it is auto.

    The tree keeps the word: a run may go on where another number fits.
    """
    suite, workers = tree["suite"], tree["workers"]
    if workers != AUTO:
        return int(workers)
    if "env_mb" not in suite:
        raise BadSetting(
            f"workers=auto: suite {suite['name']} does not say what a body takes (env_mb); "
            "give workers=N"
        )
    return count_workers(suite["envs"], suite["env_mb"], Path(tree["model"]["model_dir"]))


def _refuse_protocol_names(overrides: Sequence[str]) -> None:
    """A name alone would stand over rates of another protocol's horizons and states."""
    for override in parse_overrides(overrides):
        if override.touches("suite.protocol"):
            raise BadSetting(
                f"{override.text}: a protocol is more than its name; give suite/protocol=NAME, "
                "where the suite has it"
            )


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


def _check_settings(tree: dict[str, Any]) -> None:
    if missing := [name for name in RunSettings.__dataclass_fields__ if name not in tree]:
        raise BadSetting(f"{missing[0]}: a run needs it; drop ~{missing[0]}")
    if isinstance(tree["workers"], str) and tree["workers"].isdecimal():
        tree["workers"] = int(tree["workers"])  # a word, auto, is what most suites have there
    if not isinstance(tree["report"], bool):
        raise BadSetting(f"report: expected true or false, got {tree['report']!r}")
    try:
        for name, (low, high) in _LIMITS.items():
            _check_number(name, tree, low, high)
    except ConfigError as error:
        raise BadSetting(str(error)) from error


def _check_number(name: str, tree: dict[str, Any], low: float, high: float) -> None:
    """Raises ConfigError unless the setting is within its limits, and whole if those are."""
    section, _, key = name.rpartition(".")
    values = tree[section] if section else tree
    value: Any = values.get(key) if isinstance(values, dict) else values
    if (name, value) in (("workers", AUTO), ("parent_pid", None)):
        return
    require_range(name, value, low, high)
    if isinstance(low, int) and not isinstance(value, int):
        raise ConfigError(f"{name}: expected a whole number, got {value!r}")
