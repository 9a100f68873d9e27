"""Processes that hang in the middle of a run are killed and started again, and it ends well."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from toy_run import SETTINGS, TICK_S, Deadline

from deploy.local import signs, supervisor
from deploy.local.checker import recount
from deploy.local.records import read_records
from deploy.local.runfolder import RunFolder
from deploy.local.settings import compose_run
from deploy.local.supervisor import Supervisor
from deploy.local.tail import JsonTail

pytestmark = pytest.mark.slow

NAMES = ["agent", "learner", "sim-0"]


class Stopper:
    """Stops each process once, when it works, and waits until it works again."""

    def __init__(self, run_dir: Path) -> None:
        self.pending = list(NAMES)
        self.troubles: set[str] = set()
        self._log = JsonTail(run_dir / "sim-0" / "client.jsonl")
        self._ends = 0

    def look(self, running: Supervisor) -> None:
        if running.trouble():
            self.troubles.add(running.trouble())
        new = len(self._log.read())
        self._ends += new
        ready = all(child.is_ready for child in running.children.values())
        if (
            ready
            and new
            and self.pending
            and sum(running.restarts().values()) + len(self.pending) == len(NAMES)
        ):
            pid = running.children[self.pending.pop(0)].pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)


def test_each_process_that_a_signal_stops_is_started_again(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "POLL_S", TICK_S)
    monkeypatch.setattr(signs, "STOPPED_LIMIT_S", 3.0)
    own = [f"model.model_dir={model_dir}", f"run_dir={tmp_path / 'run'}"]
    config = compose_run([*SETTINGS, *own])
    folder = RunFolder(config.settings.run_dir)
    stopper = Stopper(folder.path)
    with folder.lock(), folder.sockets():
        folder.prepare(config, {})
        with Supervisor(config, Deadline()) as running:
            running.start()
            running.run(lambda: stopper.look(running))
    assert not stopper.pending
    assert running.restarts() == dict.fromkeys(NAMES, 1)
    for name in NAMES:
        assert any(name in told and "a signal had stopped it" in told for told in stopper.troubles)
        assert "killed, because" in (folder.path / "logs" / f"{name}.log").read_text()
    assert recount(read_records(folder.path)).problems == []
