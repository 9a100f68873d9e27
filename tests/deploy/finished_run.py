"""Writes the files of a small finished run: two trained tasks, one held out, all consistent."""

import json
import sqlite3
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from agent.ledger import Ledger
from learner.store import SCHEMA as LEARNER_SCHEMA

TRAINED, HELD_OUT = ["push", "pick"], ["stack"]
TASKS = [*TRAINED, *HELD_OUT]
# (row, task) -> successes of 4 trials, rollout; greedy halves them
SUCCESSES = {
    (0, "push"): 1, (0, "pick"): 2, (0, "stack"): 2,
    (1, "push"): 3,
    (2, "push"): 2, (2, "pick"): 4, (2, "stack"): 2,
}  # fmt: skip
TRIALS = 4
VERSIONS = ["v00001-aaaaaaaaaaaa", "v00002-bbbbbbbbbbbb"]


class FinishedRun:
    """Collects episodes, then writes logs, ledgers and results."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.rows = 3  # measured, the base's included
        self.ends: list[dict[str, Any]] = []
        self.dispositions: dict[str, tuple[str, int | None]] = {}

    def add(
        self, slot_id: str, task: str, outcome: str, version: str, disposition: str,
        update: int | None = None, counted: bool = True,
    ) -> None:  # fmt: skip
        """One episode, known to everybody."""
        number = len(self.ends)
        episode_id = f"{number:032x}"
        phase = slot_id.split("/")[0]
        self.ends.append(
            {
                "episode_id": episode_id, "slot_id": slot_id, "task": task,
                "split": "train" if phase == "train" else "eval", "init_state": 0, "phase": phase,
                "version": version, "versions": [version], "outcome": outcome, "steps": 9,
                "counted": counted, "unix_s": 1000.0 + number,
            }
        )  # fmt: skip
        self.dispositions[episode_id] = (disposition, update)

    def add_everything(self) -> None:
        """Evaluations of three rows, one update of four episodes per task, one aborted episode."""
        for row in range(3):
            version = "base" if row == 0 else VERSIONS[row - 1]
            for (cell_row, task), successes in SUCCESSES.items():
                if cell_row == row:
                    self.add_cell(row, "rollout", task, successes, version)
                    if task in TRAINED and row != 1:
                        self.add_cell(row, "greedy", task, successes // 2, version)
            if row < 2:
                parent = "base" if row == 0 else VERSIONS[0]
                for k in range(4):
                    outcome = "success" if k % 2 else "timeout"
                    slot = f"train/{row}/{row + 1}/0/0#{k}"
                    self.add(slot, TRAINED[row], outcome, parent, "trained", row + 1)
        self.add("train/0/1/0/0#1", "push", "aborted", "base", "aborted", counted=False)

    def add_base(self) -> None:
        """The evaluations of `perennial eval`: the base's row and nothing else."""
        self.rows = 1
        for (row, task), successes in SUCCESSES.items():
            if row == 0:
                self.add_cell(row, "rollout", task, successes, "base")
                if task in TRAINED:
                    self.add_cell(row, "greedy", task, successes // 2, "base")

    def add_cell(self, row: int, mode: str, task: str, successes: int, version: str) -> None:
        for state in range(TRIALS):
            outcome = "success" if state < successes else "timeout"
            self.add(f"eval/{row}/{mode}/{task}/{state}#0", task, outcome, version, "eval")

    def write(self) -> None:
        for name in ("config", "agent", "learner", "sim-0"):
            (self.run_dir / name).mkdir(parents=True)
        learner = {
            "algorithm": {"group_size": 4}, "evaluation": {}, "temperature": 1.0, "micro_batch": 4,
        }  # fmt: skip
        run = {"learner": learner, "model": {"name": "micro"}}
        OmegaConf.save(OmegaConf.create(run), self.run_dir / "config" / "run.yaml")
        session = {"began_unix_s": 1000.0, "ended_unix_s": 1100.0, "restarts": {"agent": 1}}
        state = {"versions": {}, "settings": {}, "sessions": [session], "finished": True}
        (self.run_dir / "state.json").write_text(json.dumps(state))
        write_lines(self.run_dir / "sim-0" / "client.jsonl", self.ends)
        write_lines(
            self.run_dir / "learner" / "progress.jsonl",
            [
                {"event": "iteration", "unix_s": 1000.0 + update, "hold_s": hold_s, "samples": 6,
                 "version": VERSIONS[update - 1], "task": TRAINED[update - 1], "update": update,
                 "successes": 2, "trials": 4,
                 "time_s": {"wait": 1.0, "learn": 2.0, "publish": 0.5}}
                for update, hold_s in ((1, 0.001), (2, 0.003))
            ],
        )  # fmt: skip
        probe = [{"unix_s": t, "error": ""} for t in (1000.0, 1000.5, 1001.5)]
        write_lines(self.run_dir / "probe.jsonl", probe)
        (self.run_dir / "learner" / "results.json").write_text(json.dumps(self.results()))
        self.write_agent_ledger()
        self.write_learner_ledger()

    def results(self) -> dict[str, Any]:
        cells = {"matrix": SUCCESSES}
        cells["greedy"] = {
            (row, task): n // 2
            for (row, task), n in SUCCESSES.items()
            if task in TRAINED and row != 1
        }
        cells = {
            name: {cell: n for cell, n in found.items() if cell[0] < self.rows}
            for name, found in cells.items()
        }
        matrices = {
            name: {
                "successes": [[found.get((r, t), 0) for t in TASKS] for r in range(3)],
                "trials": [[TRIALS * ((r, t) in found) for t in TASKS] for r in range(3)],
            }
            for name, found in cells.items()
        }
        for name, temperature in (("matrix", 1.6), ("greedy", 0.0)):
            under = {"protocol": "vlacrl", "temperature": temperature, "success": "at_end"}
            matrices[name] |= under
        return {
            "suite": "toy", "seed": 0, "temperature": 1.6, "tasks": TASKS,
            "train_tasks": TRAINED, "held_out_tasks": HELD_OUT, **matrices,
        }  # fmt: skip

    def write_agent_ledger(self) -> None:
        path = self.run_dir / "agent" / "agent.db"
        Ledger(path).close()
        with sqlite3.connect(path) as db:
            db.execute(  # one of the probe's
                "INSERT INTO episodes (episode_id, order_id, slot_id, suite, task, split,"
                " init_state, phase, version, state, outcome, steps, counted, sealed_seq, meta)"
                " VALUES ('probe','','','','push','',0,'serve','base','acked','aborted',0,0,0,'{}')"
            )
            for number, end in enumerate(self.ends, start=1):
                db.execute(
                    "INSERT INTO episodes (episode_id, order_id, slot_id, suite, task, split,"
                    " init_state, phase, version, state, outcome, steps, counted, sealed_seq, meta)"
                    " VALUES (?,?,?,'toy',?,?,0,?,?,'acked',?,9,?,?,'{}')",
                    (
                        end["episode_id"], end["slot_id"].split("#")[0], end["slot_id"],
                        end["task"], end["split"], end["phase"], end["version"], end["outcome"],
                        end["counted"], number,
                    ),
                )  # fmt: skip
            rows = [(version, 1000.0, 0) for version in VERSIONS]
            db.executemany(
                "INSERT INTO activations (version, unix_s, after_sealed_seq) VALUES (?, ?, ?)", rows
            )

    def write_learner_ledger(self) -> None:
        with sqlite3.connect(self.run_dir / "learner" / "learner.db") as db:
            db.executescript(LEARNER_SCHEMA)
            for update_id, version in enumerate(VERSIONS, start=1):
                db.execute(
                    "INSERT INTO updates (update_id, task_index, iteration, checkpoint,"
                    " checkpoint_sha256, version, parent, metrics, committed_unix_s)"
                    " VALUES (?,?,1,'c','0',?,'base','{}',0)",
                    (update_id, update_id - 1, version),
                )
            for end in self.ends:
                db.execute(
                    "INSERT INTO episodes (episode_id, sha256, order_id, slot_id, suite, task,"
                    " split, init_state, phase, version, outcome, steps, counted, file,"
                    " disposition, update_id) VALUES (?,'0',?,?,'toy',?,?,0,?,?,?,9,?,'f',?,?)",
                    (
                        end["episode_id"], end["slot_id"].split("#")[0], end["slot_id"],
                        end["task"], end["split"], end["phase"], end["version"], end["outcome"],
                        end["counted"], *self.dispositions[end["episode_id"]],
                    ),
                )  # fmt: skip


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def change_ledger(path: Path, sql: str, *values: object) -> None:
    """Tampers with a ledger of the run."""
    with sqlite3.connect(path) as db:
        db.execute(sql, values)
