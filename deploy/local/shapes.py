"""What must be true of the records that a run leaves, before anything is computed from them."""

from __future__ import annotations

import re
from typing import Any

from agent.process.json_files import COUNT, Misfit

# `eval/ROW/MODE/TASK/STATE#k` and `train/TASK_INDEX/UPDATE/...#k`; all else is no order of ours.
SLOT = re.compile(r"eval/\d{1,6}/[^/]+/.+#\d+|train/\d{1,6}/\d{1,9}/.+#\d+|(?!eval/|train/).*")

END = {
    "episode_id": str,
    "slot_id": SLOT,
    "task": str,
    "phase": str,
    "version": str,
    "versions": [str],
    "outcome": str,
    "counted": bool,
    "unix_s": float,
}
PROBE = {"unix_s": float, "error": str}
EVENT = {"event": str, "unix_s": float}
# What is read of the events that somebody reads more of.
EVENTS: dict[str, dict[str, Any]] = {
    "start": {"version": str},
    "eval": {"row": COUNT, "mode": str, "task": str, "successes": COUNT, "trials": COUNT},
    "iteration": {
        "version": str,
        "task": str,
        "update": COUNT,
        "successes": COUNT,
        "trials": COUNT,
        "hold_s?": (float, None),
        "samples?": float,
        "time_s?": {str: float},
    },
}
SESSION = {"began_unix_s": float, "ended_unix_s": float, "restarts": {str: COUNT}}
STATE = {
    "settings": dict,
    "versions": {str: str},
    "sessions": [SESSION],
    "finished?": bool,
}
_MATRIX = {
    "successes": [[COUNT]],
    "trials": [[COUNT]],
    "protocol?": str,
    "temperature?": float,
    "success?": str,
}
RESULTS = {
    "suite": str,
    "seed": int,
    "temperature": float,
    "tasks": [str],
    "train_tasks": [str],
    "held_out_tasks": [str],
    "matrix": _MATRIX,
    "greedy": _MATRIX,
}
# Of the composed settings: what a summary tells.
SETTINGS = {
    "learner": {
        "algorithm": dict,
        "evaluation": dict,
        "temperature": float,
        "micro_batch": COUNT,
    },
    "model": {"name": str, "model_dir?": str, "architecture?": dict},
}
_FIGURE = (float, None)
SUMMARY = {
    "settings": {"temperature": float},
    "tasks": [str],
    "train_tasks": [str],
    "held_out_tasks": [str],
    "matrix": _MATRIX,
    "greedy?": {"matrix": _MATRIX},
    "base_avg?": _FIGURE,
    "final_avg?": _FIGURE,
    "episodes?": {str: COUNT},
    "wall_s?": float,
}
# What a recount compares with.
COMPARED = {
    "greedy": dict,
    "episodes": {"trained": COUNT, "filtered": COUNT, "eval": COUNT},
}


def check_results(values: dict[str, Any]) -> None:
    """Raises Misfit unless tasks and matrices of RESULTS go together."""
    tasks = values["tasks"]
    for name in ("train_tasks", "held_out_tasks"):
        if unknown := [task for task in values[name] if task not in tasks]:
            raise Misfit(f"{name}: {unknown[0]!r:.60} is not among tasks")
    check_matrices(values, values["matrix"], values["greedy"])


def check_summary(values: dict[str, Any]) -> None:
    """Raises Misfit as `check_results` does, for the same parts of SUMMARY."""
    greedy = values["greedy"]["matrix"] if "greedy" in values else values["matrix"]
    check_results({**values, "greedy": greedy})


def check_matrices(columns: dict[str, Any], *matrices: dict[str, Any]) -> None:
    """Raises Misfit unless each matrix has a row for the base and each task that is trained, a
    column for each task, and no more successes than trials.
    """
    rows, width = len(columns["train_tasks"]) + 1, len(columns["tasks"])
    for matrix in matrices:
        for name in ("successes", "trials"):
            if len(matrix[name]) != rows or {*map(len, matrix[name])} != {width}:
                raise Misfit(f"{name}: expected {rows} rows of {width} tasks")
        for successes, trials in zip(matrix["successes"], matrix["trials"], strict=True):
            if any(s > n for s, n in zip(successes, trials, strict=True)):
                raise Misfit("a cell has more successes than trials")
