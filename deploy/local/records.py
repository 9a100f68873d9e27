"""Reads what a run left behind: the two ledgers, the clients' logs, the learner's lines.

Every file is opened read-only; a missing one is an error that names it and says what would write
it. Ledgers may be read while their owners run.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agent.process.errors import ConfigError
from agent.process.shown import shown
from agent.process.tree import explain
from agent.process.yaml_file import read_yaml
from deploy.local.ledgers import RecordError, query
from deploy.local.tail import JsonTail

ENDED = ("sealed", "acked")  # states of the agent's episodes whose end is durable
# What a report needs of each file.
CONFIG_KEYS = ("learner", "model")
STATE_KEYS = ("versions", "sessions")
RESULT_KEYS = ("suite", "seed", "tasks", "train_tasks", "held_out_tasks", "matrix", "greedy")
END_KEYS = ("episode_id", "slot_id", "outcome", "counted", "unix_s")
PROBE_KEYS = ("unix_s", "error")
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
    that no client could carry out; nothing of them is measured.
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

    def ended(self) -> list[EpisodeRow]:
        """Episodes that ended, as the agent has them; what it lost, as the learner has it."""
        at_agent = {i: row for i, row in self.agent_rows.items() if row.state in ENDED}
        return list((self.learner_rows | at_agent).values())


def read_records(run_dir: Path) -> Records:
    """Raises RecordError unless `run_dir` holds a run that has come to its end."""
    if not (run_dir / "config" / "run.yaml").is_file():
        raise RecordError(f"{run_dir} is no run folder: it has no config/run.yaml")
    results_path = run_dir / "learner" / "results.json"
    if not results_path.is_file():
        raise RecordError(f"{run_dir} is not finished; start it again to go on from where it is")
    logs = ("sim-*/client.jsonl", "sim/*/client.jsonl")  # of workers, and of services
    client_logs = sorted(path for pattern in logs for path in run_dir.glob(pattern))
    agent_db, learner_db = run_dir / "agent" / "agent.db", run_dir / "learner" / "learner.db"
    agent_rows = _read_rows(agent_db, "state", "sealed_seq")
    learner_rows = _read_rows(learner_db, "disposition", "rowid")
    bad = _read_quarantined(agent_rows, learner_db) - learner_rows.keys()
    ends = [line for path in client_logs for line in _read_lines(path, END_KEYS)]
    return Records(
        run_dir=run_dir,
        config=_read_config(run_dir / "config" / "run.yaml"),
        state=read_object(run_dir / "state.json", STATE_KEYS),
        results=read_object(results_path, RESULT_KEYS),
        events=JsonTail(run_dir / "learner" / "progress.jsonl").read(),
        ends=[end for end in ends if end["episode_id"] not in bad],
        probe=_read_lines(run_dir / "probe.jsonl", PROBE_KEYS),
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
    )


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


def read_object(path: Path, keys: Collection[str]) -> dict[str, Any]:
    """The object in a JSON file. Raises RecordError unless it has these keys."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path} is damaged: it holds no JSON") from error
    if not isinstance(values, dict):
        raise RecordError(f"{path} is damaged: expected one JSON object")
    _require_keys(path, values, keys)
    return values


def _read_config(path: Path) -> dict[str, Any]:
    """The whole composition, resolved."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        config = OmegaConf.to_container(OmegaConf.create(read_yaml(path)[0]), resolve=True)
    except ConfigError as error:
        raise RecordError(str(error)) from error
    except OmegaConfBaseException as error:
        raise RecordError(f"{path} is damaged: {explain(error, None)}") from error
    assert isinstance(config, dict)
    _require_keys(path, config, CONFIG_KEYS)
    return {str(key): value for key, value in config.items()}


def _read_lines(path: Path, keys: Collection[str]) -> list[dict[str, Any]]:
    lines = JsonTail(path).read()
    for line in lines:
        _require_keys(path, line, keys)
    return lines


def _require_keys(path: Path, values: Mapping[Any, Any], keys: Collection[str]) -> None:
    if missing := [key for key in keys if key not in values]:
        raise RecordError(f"{path} is damaged: there is no {missing[0]!r} in {shown(values, 80)}")
