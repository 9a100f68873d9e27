"""One client that aborts whatever it gets costs time; the run learns and measures all the same."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
from patience import HANG_S
from toy_run import SETTINGS, TICK_S, Deadline

from agent.wire.errors import WireError
from agent.wire.messages import Assign, EpisodeEnd, EpisodeStart, Hello, Outcome
from agent.wire.sockets import DealerClient
from deploy.local import supervisor
from deploy.local.checker import recount
from deploy.local.records import read_records
from deploy.local.runfolder import RunFolder
from deploy.local.settings import compose_run
from deploy.local.supervisor import Supervisor
from deploy.local.tail import JsonTail

ABORTS = 8  # of one slot by one client would once give its order up
NAME, SUITE, PAUSE_S = "aborter", "toy", 0.05
STOPPED_S, RUNNING_S = 5.0, 0.1  # of the simulator: a process that is stopped for long is restarted


class Aborter(threading.Thread):
    """A client that starts episodes and aborts them, until it has done so often enough."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(daemon=True)
        self._endpoint, self.aborts = endpoint, 0

    def run(self) -> None:
        """Takes what it is offered."""
        deadline_s = time.monotonic() + HANG_S
        client = DealerClient(self._endpoint, HANG_S)
        client.request(Hello(NAME, NAME))
        while self.aborts < ABORTS and time.monotonic() < deadline_s:
            for lease in client.request(Assign(NAME, SUITE, 1)).leases:
                self._abort(client, lease.slot_id)
            time.sleep(PAUSE_S)
        client.close()

    def _abort(self, client: DealerClient, slot_id: str) -> None:
        try:
            started = client.request(EpisodeStart(NAME, uuid.uuid4().hex, slot_id=slot_id))
            end = EpisodeEnd(started.episode_id, Outcome.ABORTED, 0, np.zeros(0, np.uint8), "no")
            client.request(end)
        except WireError:  # its lease ran out on a busy machine
            return
        self.aborts += 1


class Disturbance:
    """Has the aborter served alone, as far as it goes, once the simulator has shown itself."""

    def __init__(self, run_dir: Path) -> None:
        self.aborter: Aborter | None = None
        self._run_dir = run_dir
        self._log = JsonTail(run_dir / "sim-0" / "client.jsonl")
        self._is_stopped, self._changed_at_s = False, 0.0

    def look(self, running: Supervisor) -> None:
        """One look at the run."""
        pid = running.children["sim-0"].pid
        if self.aborter is None and self._log.read():
            endpoints = json.loads((self._run_dir / "agent" / "endpoints.json").read_text())
            self.aborter = Aborter(endpoints["robots"])
            self.aborter.start()
        if self.aborter is None or pid is None:
            return
        lasts_s = time.monotonic() - self._changed_at_s
        if not self.aborter.is_alive():
            is_due = self._is_stopped
        else:
            is_due = lasts_s > (STOPPED_S if self._is_stopped else RUNNING_S)
        if is_due:
            self._is_stopped = not self._is_stopped
            self._changed_at_s = time.monotonic()
            os.kill(pid, signal.SIGSTOP if self._is_stopped else signal.SIGCONT)


@pytest.mark.slow
def test_eight_aborts_of_one_client_end_no_run_and_change_no_count(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "POLL_S", TICK_S)
    own = ["task_order=[0]", "learner.evaluation.greedy=false"]
    config = compose_run(
        [*SETTINGS, *own, f"model.model_dir={model_dir}", f"run_dir={tmp_path / 'run'}"]
    )
    folder = RunFolder(config.settings.run_dir)
    disturbance = Disturbance(folder.path)
    with folder.lock(), folder.sockets():
        folder.prepare(config, {})
        with Supervisor(config, Deadline()) as running:
            running.start()
            running.run(lambda: disturbance.look(running))
        folder.keep(running.restarts(), finished=True)
    assert disturbance.aborter is not None
    assert disturbance.aborter.aborts == ABORTS
    assert running.restarts() == {"agent": 0, "learner": 0, "sim-0": 0}
    records = read_records(folder.path)
    assert "order_refused" not in {event["event"] for event in records.events}
    assert sum(row.outcome == "aborted" for row in records.agent_rows.values()) >= ABORTS
    found = recount(records)
    assert found.problems == []
    assert found.lost == []
    assert len(records.updates) == 2
