import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml
from patience import HANG_S
from service_manager import Manager

from deploy.local.settings import compose_run
from learner import __main__ as command
from learner import process
from learner.config import LearnerConfig, SuiteConfig, TaskConfig
from learner.stopping import EXIT_STATUS, StopFlag, Stopped

ROOT = Path(__file__).parents[2]


def test_a_stopped_learner_does_not_look_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(*_: object) -> None:
        raise Stopped

    suite = SuiteConfig("toy", [TaskConfig("a", "do a", 9)], ["a"], [])
    config = LearnerConfig(suite=suite, state_dir=str(tmp_path))
    monkeypatch.setattr("agent.process.startup.load_config", lambda *_: config)
    monkeypatch.setattr("agent.process.startup.set_thread_count", lambda threads: None)
    monkeypatch.setattr(process, "_learn_locked", stop)
    with caplog.at_level("INFO"):
        assert command.main([]) == 3
    assert "the same command resumes" in caplog.text


def test_asking_whether_to_stop_is_a_sign_of_life_and_waiting_is_none() -> None:
    asked: list[None] = []
    stop = StopFlag(lambda: asked.append(None))
    assert not stop.wait(0.001)
    assert asked == []
    assert not stop.is_set()
    assert len(asked) == 1
    stop.set()
    assert stop.wait(1)
    assert stop.is_set()


def lonely_learner(tmp_path: Path, command: list[str], manager: Manager) -> subprocess.Popen[bytes]:
    """A learner's process that has no agent."""
    settings = compose_run(["suite=toy", "budget=smoke", f"run_dir={tmp_path}/run"])
    own = {
        "state_dir": f"{tmp_path}/learner",
        "adapters_dir": f"{tmp_path}/adapters",
        "operator_endpoint": f"ipc://{tmp_path}/nobody.sock",
        "request_timeout_s": 0.1,
        "die_with_parent": False,
    }
    config = tmp_path / "learner.yaml"
    config.write_text(yaml.safe_dump(settings.processes["learner"] | own))
    return subprocess.Popen(
        [sys.executable, *command, "--config", str(config)],
        cwd=ROOT,
        env={**os.environ, **manager.watching()},
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.slow
def test_a_learner_without_an_agent_is_ready_pings_and_stops(tmp_path: Path) -> None:
    manager = Manager(f"{tmp_path}/notify")
    with lonely_learner(tmp_path, ["-m", "learner"], manager) as learner:
        try:
            manager.wait_for("READY=1")
            for _ in range(3):
                manager.wait_for("WATCHDOG=1")
            learner.terminate()
            manager.wait_for("STOPPING=1")
            assert learner.wait(HANG_S) == EXIT_STATUS
        finally:
            learner.kill()
    manager.close()


@pytest.mark.slow
def test_a_collector_that_hangs_for_ever_does_not_keep_the_learner(tmp_path: Path) -> None:
    hanging = (
        "import shutil, sys, threading\n"
        "shutil.disk_usage = lambda path: threading.Event().wait()\n"
        "from learner.__main__ import main\n"
        "sys.exit(main())\n"
    )
    manager = Manager(f"{tmp_path}/notify")
    with lonely_learner(tmp_path, ["-c", hanging], manager) as learner:
        try:
            manager.wait_for("READY=1")
            http = json.loads((tmp_path / "learner" / "endpoints.json").read_text())["http"]
            with urllib.request.urlopen(f"{http}/metrics", timeout=HANG_S) as response:
                page = response.read()
            assert b'collector_errors_total{collector="disk_state"} 1.0' in page
            learner.terminate()
            assert learner.wait(HANG_S) == EXIT_STATUS
        finally:
            learner.kill()
    manager.close()
