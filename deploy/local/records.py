"""Reads what a run left behind: the two ledgers, the clients' logs, the learner's lines.

Every file is opened read-only; a missing one is an error that names it and says what would write
it. Ledgers may be read while their owners run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agent.durable import StorageError, storage_errors
from agent.process.json_files import DamagedFile
from deploy.local.ledgers import RecordError, query
from deploy.local.recorded import (
    STATE_NAME,
    read_results,
    read_settings,
    read_state,
    rebuild_settings,
    rebuild_state,
)
from deploy.local.shapes import END, EVENT, EVENTS, PROBE
from deploy.local.tail import JsonTail

ENDED = ("sealed", "acked")  # states of the agent's episodes whose end is durable
QUARANTINED = "quarantined"  # the agent's state of an episode that is not to be trusted


@dataclass(frozen=True)
class EpisodeRow:
    """One episode as a ledger has it; `disposition` is the learner's, None elsewhere."""

    episode_id: str
    slot_id: str
    task: str
    phase: str
    version: str
    outcome: str
    counted: bool
    steps: int = 0  # of the environment
    state: str = ""
    disposition: str | None = None


@dataclass(frozen=True)
class Update:
    """One committed update of the learner."""

    update_id: int
    task_index: int
    version: str


@dataclass(frozen=True)
class Records:
    """Everything a report is made of.

    Episode rows cover ordered episodes only, by id; the agent's come in the order of their seals.
    set_aside: ends of episodes that turned out damaged, or were refused, when their outcome had
    been answered; their slots were run again, and `ends` holds all others. refused: ids of orders
    that no client could carry out; nothing of them is measured. damaged: what of the files was
    left out, or had to be found elsewhere, a line each.
    """

    run_dir: Path
    config: dict[str, Any]
    state: dict[str, Any]
    results: dict[str, Any]
    events: list[dict[str, Any]]
    ends: list[dict[str, Any]]
    probe: list[dict[str, Any]]
    agent_rows: dict[str, EpisodeRow]
    learner_rows: dict[str, EpisodeRow]
    updates: list[Update]
    activations: list[str]
    set_aside: list[dict[str, Any]] = field(default_factory=list)
    refused: frozenset[str] = frozenset()
    damaged: list[str] = field(default_factory=list)

    def ended(self) -> list[EpisodeRow]:
        """Episodes that ended, as the agent has them; what it lost, as the learner has it."""
        at_agent = {i: row for i, row in self.agent_rows.items() if row.state in ENDED}
        return list((self.learner_rows | at_agent).values())


def read_records(run_dir: Path) -> Records:
    """Raises RecordError unless `run_dir` holds a run that has come to its end."""
    if not (run_dir / "config" / "run.yaml").is_file() and not (run_dir / STATE_NAME).is_file():
        raise RecordError(f"{run_dir} is no run folder: it has no config/run.yaml")
    results = _read_results(run_dir)
    config, state, damaged = _read_own(run_dir)
    logs = ("sim-*/client.jsonl", "sim/*/client.jsonl")  # of workers, and of services
    client_logs = sorted(path for pattern in logs for path in run_dir.glob(pattern))
    agent_db, learner_db = run_dir / "agent" / "agent.db", run_dir / "learner" / "learner.db"
    agent_rows = _read_rows(agent_db, "state", "sealed_seq")
    learner_rows = _read_rows(learner_db, "disposition", "rowid")
    bad = _read_quarantined(agent_rows, learner_db) - learner_rows.keys()
    ends = [line for path in client_logs for line in _read_lines(path, damaged, END)]
    return Records(
        run_dir=run_dir,
        config=config,
        state=state,
        results=results,
        events=_read_lines(run_dir / "learner" / "progress.jsonl", damaged, EVENT, EVENTS),
        ends=[end for end in ends if end["episode_id"] not in bad],
        probe=_read_lines(run_dir / "probe.jsonl", damaged, PROBE),
        agent_rows=agent_rows,
        learner_rows=learner_rows,
        updates=[
            Update(*row)
            for row in query(
                learner_db, "SELECT update_id, task_index, version FROM updates ORDER BY update_id"
            )
        ],
        activations=[
            row[0] for row in query(agent_db, "SELECT version FROM activations ORDER BY seq")
        ],
        set_aside=[end for end in ends if end["episode_id"] in bad],
        refused=_read_refused(learner_db),
        damaged=damaged,
    )


def _read_results(run_dir: Path) -> dict[str, Any]:
    """The learner's own figures. Raises RecordError."""
    path = run_dir / "learner" / "results.json"
    if not os.path.lexists(path):
        raise RecordError(f"{run_dir} is not finished; start it again to go on from where it is")
    try:
        return read_results(run_dir)
    except DamagedFile as error:
        raise RecordError(str(error)) from error


def _read_own(run_dir: Path) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Settings and state of the run, and what of them is damaged and was found elsewhere.

    Raises RecordError.
    """
    damaged = []
    try:
        try:
            config = read_settings(run_dir)
        except DamagedFile as error:
            config = rebuild_settings(run_dir, error)
            damaged.append(f"{error.what}; the settings are those in {STATE_NAME}")
        try:
            state = read_state(run_dir)
        except DamagedFile as error:
            state = rebuild_state(run_dir, error)
            damaged.append(
                f"{error.what}; the run's time is that of the learner's log, versions and restarts "
                "are not known"
            )
    except DamagedFile as error:
        raise RecordError(str(error)) from error
    return config, state, damaged


def _read_quarantined(agent_rows: dict[str, EpisodeRow], learner_db: Path) -> set[str]:
    """Ids of the episodes that agent or learner say they have put aside."""
    found = {row.episode_id for row in agent_rows.values() if row.state == QUARANTINED}
    return found | {row[0] for row in query(learner_db, "SELECT episode_id FROM quarantined")}


def _read_refused(learner_db: Path) -> frozenset[str]:
    """Ids of the orders that the learner gave up; learners of before then gave up none."""
    table = "refused_orders"
    if not query(learner_db, "SELECT 1 FROM sqlite_master WHERE name = ?", table):
        return frozenset()
    return frozenset(row[0] for row in query(learner_db, f"SELECT order_id FROM {table}"))


def _read_rows(path: Path, column: str, order: str) -> dict[str, EpisodeRow]:
    """Ordered episodes of a ledger with its own `column` (state or disposition), by id."""
    rows = query(
        path,
        "SELECT episode_id, slot_id, task, phase, version, outcome, counted, steps, "
        f"{column} FROM episodes WHERE slot_id <> '' ORDER BY {order}",
    )
    found = {}
    for episode_id, slot_id, task, phase, version, outcome, counted, steps, value in rows:
        row = EpisodeRow(episode_id, slot_id, task, phase, version, outcome, bool(counted), steps)
        found[episode_id] = replace(row, **{column: value})
    return found


def _read_lines(
    path: Path,
    damaged: list[str],
    shape: Mapping[str, Any],
    kinds: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """The whole lines of a log; what it lacks is told in `damaged`. Raises RecordError."""
    tail = JsonTail(path, shape, kinds)
    try:
        with storage_errors(path):
            lines = tail.read()
    except StorageError as error:
        raise RecordError(f"{error}, then report again") from error
    if tail.left_out:
        damaged.append(f"{path}: {tail.left_out} damaged or torn lines are left out")
    return lines
