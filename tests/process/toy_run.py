"""Whole runs of the toy suite: a micro OpenVLA-OFT, real processes, and kills at chosen moments."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from patience import HANG_S

from deploy.local import supervisor
from deploy.local.records import Records, read_records
from deploy.local.runfolder import RunFolder
from deploy.local.settings import compose_run
from deploy.local.supervisor import StopSignal, Supervisor
from deploy.local.tail import JsonTail

TICK_S = 0.02  # between two looks at a run, so that a kill finds episodes open
SETTINGS = [
    "suite=toy", "model=micro", "budget=smoke", "threads.learner=1", "probe_rate_hz=0",
    "learner.algorithm.learning_rate=0.01", "learner.micro_batch=8", "restart_backoff_s=0.01",
    "learner.request_timeout_s=2", "sim.request_timeout_s=1", "agent.lease_s=4",
]  # fmt: skip


@dataclass(frozen=True)
class Kill:
    """`kill -9` of a process once so many training episodes' ends are in the client's log."""

    process: str
    training_ends: int


@dataclass(frozen=True)
class ToyRun:
    """What a finished run left behind; restarts: how often each process was started again."""

    records: Records
    restarts: dict[str, int]


class Deadline(StopSignal):
    """Ends a run that takes too long; leaves the test runner's signal handlers alone."""

    def __init__(self) -> None:
        self._ends_at_s = time.monotonic() + HANG_S

    def check(self) -> None:
        """Raises TimeoutError once the time is over."""
        if time.monotonic() > self._ends_at_s:
            raise TimeoutError(f"the run was not finished after {HANG_S:.0f} s")


class Disturber:
    """Carries out kills in their order, each when all processes run."""

    def __init__(self, run_dir: Path, kills: Sequence[Kill]) -> None:
        self.pending = list(kills)
        self._log = JsonTail(run_dir / "sim-0" / "client.jsonl")
        self._training_ends = 0

    def look(self, running: Supervisor) -> None:
        """Kills the next process if its moment has come."""
        self._training_ends += sum(end["phase"] == "train" for end in self._log.read())
        all_run = all(child.is_running for child in running.children.values())
        if all_run and self.pending and self._training_ends >= self.pending[0].training_ends:
            pid = running.children[self.pending.pop(0).process].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)


def finish_run(
    run_dir: Path,
    model_dir: Path,
    kills: Sequence[Kill] = (),
    settings: Sequence[str] = (),
    also: Callable[[Supervisor], None] = lambda running: None,
) -> ToyRun:
    """Runs to the end under the supervisor, killing on the way; `also` is called again and again.

    Raises AssertionError if the run was over before all kills were carried out, TimeoutError
    after `HANG_S`.
    """
    own = [f"model.model_dir={model_dir}", f"run_dir={run_dir}"]
    config = compose_run([*SETTINGS, *settings, *own])
    folder = RunFolder(config.settings.run_dir)
    disturber = Disturber(folder.path, kills)
    with folder.lock(), folder.sockets():
        folder.prepare(config, {})
        with Supervisor(config, Deadline()) as running, pytest.MonkeyPatch.context() as patch:
            patch.setattr(supervisor, "POLL_S", TICK_S)
            running.start()

            def look() -> None:
                disturber.look(running)
                also(running)

            running.run(look)
        restarts = running.restarts()
        folder.keep(restarts, finished=True)
    assert not disturber.pending, f"the run was over before {disturber.pending}"
    return ToyRun(read_records(folder.path), restarts)
