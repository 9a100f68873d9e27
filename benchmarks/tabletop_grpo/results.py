"""A finished cell as a small committed file: its summary, its learning curve, its machine."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploy.local.records import Records
from deploy.local.statistics import Matrix

SIZE_LIMIT_BYTES = 30_000
USED = ("trained", "filtered")  # every counted training episode is one or the other
PHASES = ("wait", "learn", "publish")


class ResultError(Exception):
    """A result file that cannot be used; one line with the way out."""


@dataclass(frozen=True)
class Result:
    """What is kept of a cell.

    curve: [task index, update, successes, trials] of the training episodes, an iteration a row.
    time_s: where the iterations' wall time went, summed, by phase.
    """

    name: str
    overrides: list[str]
    machine: dict[str, Any]
    time_s: dict[str, float]
    curve: list[list[int]]
    summary: dict[str, Any]

    @property
    def rollout(self) -> Matrix:
        """Success at the rollout temperature."""
        return Matrix.from_counts(self.summary, self.summary["matrix"])

    @property
    def greedy(self) -> Matrix:
        """Success at T = 0: the trained tasks, in the first and the last row."""
        return Matrix.from_counts(self.summary, self.summary["greedy"]["matrix"])

    @property
    def temperature(self) -> float:
        """Of the rollouts and of their evaluation."""
        return float(self.summary["settings"]["temperature"])


def collect_result(
    name: str, overrides: tuple[str, ...], records: Records, summary: dict[str, Any]
) -> Result:
    """What the records of a finished run come to."""
    times_s = Counter(dict.fromkeys(PHASES, 0.0))
    for event in records.events:
        if event["event"] == "iteration":
            times_s.update({phase: event["time_s"][phase] for phase in PHASES})
    return Result(
        name=name,
        overrides=list(overrides),
        machine={"cores": len(os.sched_getaffinity(0)), "processor": platform.machine()},
        time_s={phase: round(time_s, 1) for phase, time_s in times_s.items()},
        curve=learning_curve(records),
        summary=summary,
    )


def learning_curve(records: Records) -> list[list[int]]:
    """Counts of the training episodes that the learner used, by task and update."""
    successes: Counter[tuple[int, int]] = Counter()
    trials: Counter[tuple[int, int]] = Counter()
    for row in records.learner_rows.values():
        if row.disposition in USED:
            _, task_index, update, *_ = row.slot_id.split("/")
            key = int(task_index), int(update)
            trials[key] += 1
            successes[key] += row.outcome == "success"
    return [[*key, successes[key], trials[key]] for key in sorted(trials)]


def write_result(folder: Path, result: Result) -> Path:
    """Writes folder/NAME.json, one top-level value a line; a reader sees all of it or nothing.

    Raises ResultError if it would be larger than a committed result should be.
    """
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in asdict(result).items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    if len(text.encode()) > SIZE_LIMIT_BYTES:
        raise ResultError(f"{result.name}: {len(text.encode())} bytes, over {SIZE_LIMIT_BYTES}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.name}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)
    return path


def read_result(path: Path) -> Result:
    """Raises ResultError for a file that is no result."""
    try:
        result = Result(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ResultError(f"{path} is no result ({error}); remove it and run the cell") from error
    if result.name != path.stem:
        raise ResultError(f"{path} holds the result of {result.name}; rename or remove it")
    return result


def read_results(folder: Path, names: list[str]) -> tuple[dict[str, Result], list[str]]:
    """The results that exist, by name, and the names that are missing."""
    found = {
        name: read_result(path) for name in names if (path := folder / f"{name}.json").is_file()
    }
    return found, [name for name in names if name not in found]
