from pathlib import Path

import pytest

from learner import __main__ as command
from learner import process
from learner.config import LearnerConfig, SuiteConfig, TaskConfig
from learner.stopping import Stopped


def test_a_stopped_learner_does_not_look_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(*_: object) -> None:
        raise Stopped

    suite = SuiteConfig("toy", [TaskConfig("a", "do a", 9)], ["a"], [])
    config = LearnerConfig(suite=suite, state_dir=str(tmp_path))
    monkeypatch.setattr("agent.process.load_config", lambda *_: config)
    monkeypatch.setattr("agent.process.set_thread_count", lambda threads: None)
    monkeypatch.setattr(process.signal, "signal", lambda *_: None)
    monkeypatch.setattr(process, "_learn_locked", stop)
    with caplog.at_level("INFO"):
        assert command.main([]) == 3
    assert "the same command resumes" in caplog.text
