"""Runs in whose middle a disk is full, or the learner may open no file: both pass."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy_run import ToyRun, finish_run

from deploy.local.supervisor import Supervisor
from deploy.local.tail import JsonTail

pytestmark = pytest.mark.slow

DISK = "size=12m"  # ten times what such a run writes
WAITING, GOES_ON = "waiting for the disk", "the disk takes it, after"
UNKEPT, KEPT = "episodes are not kept", "episodes are kept again"


class Trouble:
    """Begins once the clients' log has an end of a training episode, and is over once `told` is
    in a log.
    """

    def __init__(self, run_dir: Path, process: str, told: str) -> None:
        self._ends = JsonTail(run_dir / "sim-0" / "client.jsonl")
        self._log, self._told = run_dir / "logs" / f"{process}.log", told
        self._process = process
        self.has_begun = self.is_over = False

    def look(self, running: Supervisor) -> None:
        """Begins, makes worse, or ends it."""
        self.has_begun |= any(end["phase"] == "train" for end in self._ends.read())
        if self.has_begun and not self.is_over:
            pid = running.children[self._process].pid
            assert pid is not None
            self.is_over = self._told in self._log.read_text()
            self.end(pid) if self.is_over else self.make_worse(pid)

    def make_worse(self, pid: int) -> None:
        raise NotImplementedError

    def end(self, pid: int) -> None:
        raise NotImplementedError


class FullDisk(Trouble):
    """`folder` lies on a small disk, on which another file takes all that is left."""

    def __init__(self, run_dir: Path, process: str, told: str, folder: Path) -> None:
        super().__init__(run_dir, process, told)
        self._other = folder / "other"

    def make_worse(self, pid: int) -> None:
        with self._other.open("ab", buffering=0) as file:
            try:
                while file.write(bytes(1 << 12)):
                    pass
            except OSError:
                pass  # it is full

    def end(self, pid: int) -> None:
        self._other.unlink()


class NoDescriptors(Trouble):
    """No number is left under which the process could open a file."""

    def make_worse(self, pid: int) -> None:
        used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
        self._limit(pid, min(set(range(len(used) + 1)) - used))

    def end(self, pid: int) -> None:
        self._limit(pid, 4096)

    def _limit(self, pid: int, count: int) -> None:
        subprocess.run(["prlimit", f"--nofile={count}:", "--pid", str(pid)], check=True)


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder of the run on a small disk of its own."""
    folder = tmp_path / "run" / request.param
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", DISK, "perennial-test", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        assert not os.environ.get("CI"), "CI mounts a tmpfs"
        pytest.skip("may not mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def assert_equal_to(undisturbed: ToyRun, run: ToyRun, process: str, told: str, over: str) -> None:
    """The run came to the same; the process said in a few lines what the trouble was."""
    assert not any(run.restarts.values()), run.restarts
    versions = [[update.version for update in each.records.updates] for each in (undisturbed, run)]
    assert versions[0] == versions[1]
    assert run.records.results["matrix"] == undisturbed.records.results["matrix"]
    assert run.records.damaged == []
    log = (run.records.run_dir / "logs" / f"{process}.log").read_text()
    assert "Traceback" not in log
    assert over in log
    assert log.count(told) <= 4, log  # once for each who waits


@pytest.mark.parametrize(
    ("small_disk", "process", "told", "over"),
    [
        ("learner", "learner", WAITING, GOES_ON),
        ("adapters", "learner", WAITING, GOES_ON),
        ("agent", "agent", UNKEPT, KEPT),
    ],
    indirect=["small_disk"],
)
def test_a_full_disk_is_waited_for(
    small_disk: Path, process: str, told: str, over: str, undisturbed: ToyRun, model_dir: Path
) -> None:
    run_dir = small_disk.parent
    trouble = FullDisk(run_dir, process, told, small_disk)
    run = finish_run(run_dir, model_dir, also=trouble.look)
    assert trouble.is_over
    assert_equal_to(undisturbed, run, process, told, over)


def test_a_learner_that_may_open_no_file_waits(
    tmp_path: Path, undisturbed: ToyRun, model_dir: Path
) -> None:
    trouble = NoDescriptors(tmp_path / "run", "learner", WAITING)
    run = finish_run(tmp_path / "run", model_dir, also=trouble.look)
    assert trouble.is_over
    assert_equal_to(undisturbed, run, "learner", WAITING, GOES_ON)
