"""A disk that refuses what the supervisor writes and reads is no end of a run."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from faulty_disk import FULL, FaultyDisk

from agent.durable import StorageError
from agent.process import OutputFailed
from deploy.local.passing import Passing
from deploy.local.processes import Child, ProcessFailed, ProcessSpec
from deploy.local.recorded import read_state
from deploy.local.runfolder import KEEP_S, RunFolder
from deploy.local.settings import compose_run
from deploy.local.signs import Signs


def test_what_may_pass_is_told_while_it_lasts_and_the_rest_is_raised(tmp_path: Path) -> None:
    passing = Passing()
    with passing.borne("the state is not written", tmp_path):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    told = passing.describe()
    assert told.startswith(f"the state is not written: {tmp_path}: Too many open files; ")
    with passing.borne("the state is not written", tmp_path):
        pass
    assert passing.describe() == ""
    with passing.borne("the progress is not shown", Path("stdout")):
        raise OutputFailed(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert passing.describe().startswith("the progress is not shown: stdout: No space left on")
    with pytest.raises(PermissionError), passing.borne("x", tmp_path):
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(OutputFailed), passing.borne("x", tmp_path):  # nobody reads it
        raise OutputFailed(BrokenPipeError(errno.EPIPE, "gone"))


def test_the_state_is_written_again_once_the_disk_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    folder = RunFolder(tmp_path / "run")
    with folder.lock():
        arguments = [f"model.model_dir={tmp_path}", f"run_dir={folder.path}"]
        folder.prepare(compose_run(arguments), {})
        disk = FaultyDisk(monkeypatch, "fsync")
        disk.error = FULL
        folder._kept_unix_s -= KEEP_S
        for _ in range(2):  # not only at the next period: what is told is true all the time
            with pytest.raises(StorageError, match=r"state\.json: No space left on device"):
                folder.keep({"sim-0": 1})
        disk.error = None
        folder.keep({"sim-0": 2})
    assert read_state(folder.path)["sessions"][-1]["restarts"] == {"sim-0": 2}


def test_a_log_that_cannot_be_read_counts_no_end_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ProcessSpec("child", "x", tmp_path / "c.yaml", tmp_path / "none" / "child.log", 1)
    child = Child(spec, 1, 0.0)
    monkeypatch.setattr(child, "last_line", lambda: (_ for _ in ()).throw(FULL))
    for _ in range(3):
        with pytest.raises(OSError, match="No space"):
            child._plan_restart(1, 0.0)
    monkeypatch.setattr(child, "last_line", lambda: "its words")
    child._plan_restart(1, 0.0)
    assert "end 1 of 2" in child.trouble
    with pytest.raises(ProcessFailed):
        child._plan_restart(1, 0.0)


def test_a_socket_that_could_not_be_made_is_made_later(tmp_path: Path) -> None:
    signs = Signs(tmp_path / "late" / "notify", 1.0, 1.0)
    with pytest.raises(OSError, match="No such file"):
        signs.expect()
    (tmp_path / "late").mkdir()
    signs.expect()
    assert (tmp_path / "late" / "notify").is_socket()
    signs.close()
