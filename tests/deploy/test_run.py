"""What the supervisor says when its own files cannot be written: one line with the way out."""

import errno
import os
from pathlib import Path

import pytest

from deploy.local import supervisor
from deploy.local.run import FAILED, main


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of a run that would begin in `tmp_path`/run; the test's own signal handlers stay."""
    monkeypatch.setattr(supervisor, "StopSignal", lambda: None)
    (tmp_path / "config.json").write_text("{}")  # composing reads no more of the model
    (tmp_path / "run").mkdir()
    return [f"model.model_dir={tmp_path}", f"run_dir={tmp_path / 'run'}"]


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    assert main(arguments) == FAILED
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_full_disk_is_named_with_the_way_out(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    line = refusal(arguments, capsys)
    assert line.endswith("No space left on device; free disk space")


def test_a_path_that_cannot_be_used_is_named_with_the_way_out(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / "config").write_text("a file where a folder is needed")
    line = refusal(arguments, capsys)
    assert line.startswith(f"perennial run: {tmp_path}/run/config: ")
    assert line.endswith("check who may write there, or choose another run_dir=FOLDER")
