"""Processes whose threads wait for each other for ever are killed and started again.

None of them is stopped by a signal: all of their threads sleep, and some that do not matter run on.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
from toy_run import SETTINGS, TICK_S, Deadline

from deploy.local import supervisor
from deploy.local.checker import recount
from deploy.local.records import read_records
from deploy.local.runfolder import RunFolder
from deploy.local.settings import compose_run
from deploy.local.supervisor import Supervisor
from deploy.local.tail import JsonTail

pytestmark = pytest.mark.slow

HANG_LIMIT_S = 10.0  # also a busy machine works more often than that
# Without the probe alone the run would go on, and might be done before that is found.
LOCKED = [("agent", "probe"), ("learner",), ("learner",), ("sim-0",)]
# Python imports it in every process. A signal makes the main thread wait for a lock that nobody
# gives back; another one lets a thread take the learner's inbox, which both of its threads need.
DEADLOCK = """
import gc, signal, threading, time

def stand_still(number, frame):
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()

def take_the_inbox(number, frame):
    def hold():
        for each in gc.get_objects():
            if type(each).__name__ == "Inbox":
                each._arrived.acquire()
        while True:
            time.sleep(1)
    threading.Thread(target=hold, daemon=True).start()

signal.signal(signal.SIGUSR1, stand_still)
signal.signal(signal.SIGUSR2, take_the_inbox)
"""


class Locker:
    """Sends each process its signal once, when all work, and notes how long it then hangs."""

    def __init__(self, run_dir: Path) -> None:
        numbers = [signal.SIGUSR1] * len(LOCKED)
        numbers[LOCKED.index(("learner",))] = signal.SIGUSR2
        self.pending = list(zip(LOCKED, numbers, strict=True))
        self.hung_s: list[float] = []
        self.troubles: set[str] = set()
        self._log = JsonTail(run_dir / "sim-0" / "client.jsonl")
        self._sent_s: float | None = None
        self._restarts: dict[str, int] = {}  # of those that were sent one, before that

    def look(self, running: Supervisor) -> None:
        self.troubles.add(running.trouble())
        restarts = running.restarts()  # of others, too: a starved process may be found as well
        is_found = all(restarts[name] > count for name, count in self._restarts.items())
        if self._sent_s is not None and is_found:
            self.hung_s.append(time.monotonic() - self._sent_s)
            self._sent_s = None
        works = bool(self._log.read()) and all(c.is_ready for c in running.children.values())
        if works and self._sent_s is None and self.pending:
            names, number = self.pending.pop(0)
            self._restarts = {name: restarts[name] for name in names}
            for name in names:
                pid = running.children[name].pid
                assert pid is not None
                os.kill(pid, number)
            self._sent_s = time.monotonic()


@pytest.fixture
def deadlocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(DEADLOCK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))


def test_each_process_that_deadlocks_is_started_again(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch, deadlocks: None
) -> None:
    monkeypatch.setattr(supervisor, "POLL_S", TICK_S)
    own = [f"model.model_dir={model_dir}", f"run_dir={tmp_path / 'run'}"]
    more = [f"hang_limit_s={HANG_LIMIT_S}", "probe_rate_hz=5"]
    config = compose_run([*SETTINGS, *own, *more])
    folder = RunFolder(config.settings.run_dir)
    locker = Locker(folder.path)
    with folder.lock(), folder.sockets():
        folder.prepare(config, {})
        with Supervisor(config, Deadline()) as running:
            running.start()
            running.run(lambda: locker.look(running))
    assert not locker.pending
    locked, restarts = Counter(chain.from_iterable(LOCKED)), running.restarts()
    assert all(restarts[name] >= count for name, count in locked.items())
    for name in locked:
        log = (folder.path / "logs" / f"{name}.log").read_text()
        assert "killed, because it gave no sign of life for" in log
        assert any(name in told and "it gave no sign of life" in told for told in locker.troubles)
    print("found after", [round(each, 1) for each in locker.hung_s])
    assert recount(read_records(folder.path)).problems == []
