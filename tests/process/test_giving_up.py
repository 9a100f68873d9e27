"""A learner that can only fail is given up with its reason, while other clients go on."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_run import SETTINGS, TICK_S, Deadline

from deploy.local import supervisor
from deploy.local.processes import ProcessFailed
from deploy.local.runfolder import RunFolder
from deploy.local.settings import compose_run
from deploy.local.supervisor import Supervisor

pytestmark = pytest.mark.slow


def test_a_learner_whose_loss_is_nan_is_given_up(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe's episodes, which the learner keeps in each of its lives, are no progress."""
    monkeypatch.setattr(supervisor, "POLL_S", TICK_S)
    own = [f"model.model_dir={model_dir}", f"run_dir={tmp_path / 'run'}", "probe_rate_hz=20"]
    config = compose_run(
        [*SETTINGS, *own, "learner.algorithm.learning_rate=1000", "restart_limit=2"]
    )
    folder, troubles = RunFolder(config.settings.run_dir), set[str]()
    with folder.lock(), folder.sockets():
        folder.prepare(config, {})
        with Supervisor(config, Deadline()) as running:
            running.start()
            with pytest.raises(ProcessFailed, match=r"3 times in a row without progress.*norm is"):
                running.run(lambda: troubles.add(running.trouble()))
    assert running.restarts()["learner"] == 2
    for end in (1, 2):
        assert any(f"learner, end {end} of 3 without progress" in told for told in troubles)
