"""A simulator that dies in the middle of its episodes costs time, and no rate anything."""

from __future__ import annotations

import os
import signal
import time
from contextlib import closing
from pathlib import Path

import pytest
from toy_run import TICK_S, Deadline

from agent.ledger import EpisodeState, LedgerReader
from deploy.local import supervisor
from deploy.local.checker import recount
from deploy.local.records import read_records
from deploy.local.runfolder import RunFolder
from deploy.local.settings import compose_run
from deploy.local.supervisor import Supervisor

EPISODES = 8
SETTINGS = [
    "suite=tabletop", "budget=eval", "suite.train_tasks=[pick_red_tray]", "suite.held_out_tasks=[]",
    f"suite.eval_init_states={EPISODES // 2}", "learner.evaluation.slots_per_state=2",
    "learner.evaluation.greedy=false", "sim.envs=4", "threads.learner=1", "probe_rate_hz=0",
    "restart_backoff_s=0.01",
]  # fmt: skip
SILENCE_S = 3.0  # after which what a stopped simulator still sent has been answered


class Killer:
    """`kill -9` of the simulator at a moment when it surely has open episodes.

    It is stopped first: what it does not hear of cannot end meanwhile.
    """

    def __init__(self, agent_dir: Path) -> None:
        self.found_open: set[str] = set()
        self._agent_dir = agent_dir
        self._stopped_at_s: float | None = None

    def look(self, running: Supervisor) -> None:
        """One look at the run; kills once."""
        pid = running.children["sim-0"].pid
        if self.found_open or pid is None:
            return
        if self._stopped_at_s is None:
            if self._open_episodes():
                os.kill(pid, signal.SIGSTOP)
                self._stopped_at_s = time.monotonic()
        elif time.monotonic() - self._stopped_at_s > SILENCE_S:
            self._stopped_at_s = None
            self.found_open = self._open_episodes()
            os.kill(pid, signal.SIGKILL if self.found_open else signal.SIGCONT)

    def _open_episodes(self) -> set[str]:
        with closing(LedgerReader(self._agent_dir / "agent.db")) as reader:
            return set(reader.metas(EpisodeState.OPEN))


@pytest.mark.slow
def test_its_open_episodes_are_aborted_and_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "POLL_S", TICK_S)
    config = compose_run([*SETTINGS, f"run_dir={tmp_path / 'run'}"])
    folder = RunFolder(config.settings.run_dir)
    killer = Killer(folder.path / "agent")
    with folder.lock(), folder.sockets():
        folder.prepare(config, {})
        with Supervisor(config, Deadline()) as running:
            running.start()
            running.run(lambda: killer.look(running))
        folder.keep(running.restarts(), finished=True)
    assert running.restarts() == {"agent": 0, "learner": 0, "sim-0": 1}
    records = read_records(folder.path)
    assert killer.found_open
    aborted = {row.episode_id for row in records.agent_rows.values() if row.outcome == "aborted"}
    assert aborted >= killer.found_open  # more where a busy machine let a lease run out
    assert not any(records.agent_rows[episode_id].counted for episode_id in aborted)
    others = [row for row in records.agent_rows.values() if row.episode_id not in aborted]
    assert {row.outcome for row in others} <= {"success", "timeout"}
    found = recount(records)
    assert found.problems == []
    assert found.matrices["rollout"].cells[0][0].trials == len(others) == EPISODES
