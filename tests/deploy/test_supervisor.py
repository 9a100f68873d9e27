"""When a run counts as finished; the processes' own lives are in test_processes.py."""

from pathlib import Path

import pytest

from deploy.local.processes import Child, ProcessFailed
from deploy.local.settings import RunConfig, RunSettings
from deploy.local.supervisor import StopSignal, Supervisor


class NeverStopped(StopSignal):
    """Leaves the test's own signal handlers alone."""

    def __init__(self) -> None:
        self._received = None


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    """Of a learner that has ended with exit status 0."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "learner.log").write_text("the last words\n")
    (tmp_path / "learner").mkdir()
    monkeypatch.setattr(Child, "watch", lambda child: 0)
    settings = RunSettings(
        tmp_path, seed=0, workers=1, probe_rate_hz=0.0, report=False, restart_limit=0,
        restart_backoff_s=0.0, stop_limit_s=0.1, ready_limit_s=0.1, hang_limit_s=1.0,
        parent_pid=None,
    )  # fmt: skip
    return Supervisor(RunConfig(settings, {}, {"learner": {}}), NeverStopped())


def test_a_run_is_finished_once_the_learner_left_its_results(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    (tmp_path / "learner" / "results.json").write_text("{}")
    supervisor.run(lambda: None)


def test_a_learner_that_leaves_no_results_has_not_finished(supervisor: Supervisor) -> None:
    with pytest.raises(ProcessFailed, match="learner ended without results: the last words"):
        supervisor.run(lambda: None)
