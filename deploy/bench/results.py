"""A finished cell as a small file that can be committed: what came of it, and what it cost."""

from __future__ import annotations

import json
import logging
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

from agent.durable import replace_file, set_aside
from agent.process.errors import PerennialError
from agent.process.json_files import COUNT, DamagedFile, Misfit, read_json
from deploy.bench.cells import Cell, compose
from deploy.bench.fork import inherited_sessions
from deploy.local.records import Records
from deploy.local.runfolder import changed_settings, recorded_settings
from deploy.local.settings import RunConfig
from deploy.local.shapes import SUMMARY, check_summary
from deploy.local.statistics import Matrix, Rate
from deploy.local.summary import USED

PHASES = ("wait", "learn", "publish")
CHUNK = {"chunk_size?": range(1, 10_000), "variant?": str}  # of a model's config.json
# What a report reads of a result; more of its summary only if it is there.
RESULT = {
    "name": str,
    "overrides": [str],
    "machine": dict,
    "time_s": {str: float},
    "curve": [[COUNT]],
    "summary": SUMMARY,
    "settings?": dict,
    "adapters?": [str],
    "cost?": {
        "own_wall_s?": float,
        "environment_steps?": (float, None),
        "chunk_forwards?": (float, None),
        "learned_chunks?": float,
        "wall_s?": float,
        "own_episodes?": COUNT,
        "starts?": COUNT,
    },
}

log = logging.getLogger(__name__)


class ResultError(PerennialError):
    """A result file that cannot be used; one line with the way out."""


@dataclass(frozen=True)
class Result:
    """What is kept of a cell. Results of before a field existed have its default.

    time_s: where the iterations' wall time went, summed, by phase. curve: [task index, update,
    successes, trials] of the training episodes, an iteration a row. settings: what decided the
    numbers. adapters: every version that was published. cost: see `measure_cost`.
    """

    name: str
    overrides: list[str]
    machine: dict[str, Any]
    time_s: dict[str, float]
    curve: list[list[int]]
    summary: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    adapters: list[str] = field(default_factory=list)
    cost: dict[str, Any] = field(default_factory=dict)

    @property
    def rollout(self) -> Matrix:
        """Success at the rollout temperature, with the curves of the training episodes."""
        matrix = Matrix.from_counts(self.summary, self.summary["matrix"])
        curves: dict[str, list[Rate]] = {}
        for index, _, successes, trials in self.curve:
            curves.setdefault(matrix.train_tasks[index], []).append(Rate(successes, trials))
        return Matrix(matrix.tasks, matrix.train_tasks, matrix.held_out_tasks, matrix.cells, curves)

    @property
    def greedy(self) -> Matrix:
        """Success at T = 0: the trained tasks, in the first and the last row."""
        return Matrix.from_counts(self.summary, self.summary["greedy"]["matrix"])

    @property
    def temperature(self) -> float:
        """Of the rollouts and of their evaluation."""
        return float(self.summary["settings"]["temperature"])


def collect_result(
    name: str, overrides: Sequence[str], records: Records, summary: dict[str, Any]
) -> Result:
    """What the records of a finished run come to."""
    times_s = Counter(dict.fromkeys(PHASES, 0.0))
    for event in records.events:
        if event["event"] == "iteration":
            times_s.update({phase: event.get("time_s", {}).get(phase, 0.0) for phase in PHASES})
    return Result(
        name=name,
        overrides=list(overrides),
        machine={"cores": len(os.sched_getaffinity(0)), "processor": platform.machine()},
        time_s={phase: round(time_s, 1) for phase, time_s in times_s.items()},
        curve=learning_curve(records),
        summary=summary,
        settings=records.state["settings"],
        adapters=[update.version for update in records.updates],
        cost=measure_cost(records, summary),
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


def measure_cost(records: Records, summary: dict[str, Any]) -> dict[str, Any]:
    """What a run cost, its beginning's part included; `own_...` without that part.

    environment_steps: of all episodes that ended, aborted ones too. chunk_forwards: the policy's
    answers to them; None where the model does not say how long a chunk is. learned_chunks: those
    that the iterations' updates learned from, each counted once. starts: of the run's processes.
    """
    ended = records.ended()
    chunk = chunk_size(records.config["model"])
    sessions = records.state["sessions"]
    own = sessions[inherited_sessions(records.run_dir) :]
    began_s = own[0]["began_unix_s"] if own else 0.0
    iterations = [event for event in records.events if event["event"] == "iteration"]
    return {
        "environment_steps": sum(row.steps for row in ended),
        "chunk_forwards": sum(ceil(row.steps / chunk) for row in ended) if chunk else None,
        "learned_chunks": int(sum(event.get("samples", 0) for event in iterations)),
        "wall_s": summary["wall_s"],
        "own_wall_s": round(sum(s["ended_unix_s"] - s["began_unix_s"] for s in own), 1),
        "own_episodes": sum(end["unix_s"] >= began_s for end in records.ends),
        "starts": len(sessions),
    }


def chunk_size(model: Mapping[str, Any]) -> int | None:
    """Actions of one forward pass, as the model's folder or the run's settings state it."""
    stated = model["architecture"]
    path = Path(model["model_dir"]) / "config.json"
    try:
        published = read_json(path, CHUNK, "fetch the model again") if path.is_file() else {}
    except DamagedFile as error:
        log.warning("%s: the result does not say how often the policy answered", error)
        published = {}
    for source in (stated, published):
        if source.get("chunk_size"):
            return int(source["chunk_size"])
        if source.get("variant") == "openvla":
            return 1
    return None


def refuse_other_settings(result: Result, config: RunConfig, path: Path) -> None:
    """Results of other settings must not stand in one table. Raises ResultError.

    A setting that came with a later release counts as recorded with what it shipped with.
    """
    found = changed_settings(result.settings, recorded_settings(config), config.overrides)
    changed = [difference for difference in found if difference.kind != "gone"]
    if changed:
        first = changed[0]
        raise ResultError(
            f"{path} was made with {first.key}={json.dumps(first.recorded)}, not "
            f"{json.dumps(first.present)}; remove it and the cell's run folder to run it again, or "
            "choose another out=FOLDER"
        )


def write_result(folder: Path, result: Result) -> Path:
    """Writes folder/NAME.json, one top-level value a line; a reader sees all of it or nothing.

    Raises StorageError.
    """
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in asdict(result).items()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.name}.json"
    if os.path.lexists(path):
        try:
            read_result(path)
        except DamagedFile:
            log.warning("%s is kept as %s", path, set_aside(path))
    replace_file(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())
    return path


def read_result(path: Path) -> Result:
    """Raises ResultError for a file that is no result, or another cell's; DamagedFile."""
    values = read_json(path, RESULT, "remove it to have the cell's result made again", _check)
    try:
        result = Result(**values)
    except TypeError as error:
        raise ResultError(f"{path} is no result ({error}); remove it and run the cell") from error
    if result.name != path.stem:
        raise ResultError(f"{path} holds the result of {result.name}; rename or remove it")
    return result


def _check(values: dict[str, Any]) -> None:
    """Raises Misfit for figures that do not go together."""
    check_summary(values["summary"])
    tasks = len(values["summary"]["train_tasks"])
    for row in values["curve"]:
        if len(row) != 4 or row[0] >= tasks or not row[2] <= row[3] > 0:
            raise Misfit("curve: expected rows of task index, update, successes, trials")


def read_cells(folder: Path, cells: Sequence[Cell]) -> tuple[dict[str, Result], list[str]]:
    """The results that the cells have, by name, and the names of those without.

    Raises ResultError for one that was made with other settings than its cell has, BadSetting.
    """
    results, missing = read_results(folder, [cell.name for cell in cells])
    for cell in cells:
        if cell.name in results:
            path = folder / f"{cell.name}.json"
            refuse_other_settings(results[cell.name], compose(cell.overrides), path)
    return results, missing


def read_results(folder: Path, names: Sequence[str]) -> tuple[dict[str, Result], list[str]]:
    """The results that exist, by name, and the names that are missing.

    One that is damaged counts as missing: its cell is run again, from what its run still holds.
    """
    found = {}
    for name in names:
        path = folder / f"{name}.json"
        if os.path.lexists(path):
            try:
                found[name] = read_result(path)
            except DamagedFile as error:
                log.warning("%s: left out", error.what)
    return found, [name for name in names if name not in found]
