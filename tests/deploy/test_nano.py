"""The nano policy's recipe: its programs know every argument, and a failure ends it."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from deploy.local import nano
from learner import nano as pretraining
from learner.pretrain import PretrainConfig
from sim_bridge.tabletop import demos

GENERATE, PRETRAIN = "sim_bridge.tabletop.demos", "learner.nano"


def test_the_programs_take_their_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: dict[str, Any] = {}
    monkeypatch.setattr(demos, "generate", lambda config, out, workers: taken.update(out=out))
    monkeypatch.setattr(pretraining, "build", lambda config: taken.update(config=config))
    words = dict(nano.steps(Path("work"), Path("model")))
    assert demos.main(words[GENERATE]) == 0
    pretraining.main(words[PRETRAIN])
    assert [Path(folder) for folder in taken["config"].demos] == [taken["out"]]
    PretrainConfig(**taken["config"].pretrain)


@pytest.mark.parametrize(
    ("failing", "status", "reported"), [(GENERATE, 1, 1), (PRETRAIN, -9, 137), ("", 0, 0)]
)
def test_the_first_failure_ends_it(
    failing: str, status: int, reported: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        started.append(next(name for name in (GENERATE, PRETRAIN) if name in command))
        return subprocess.CompletedProcess(command, status if started[-1] == failing else 0)

    monkeypatch.setattr(nano.subprocess, "run", run)
    assert nano.main([]) == reported
    assert started == ([GENERATE] if failing == GENERATE else [GENERATE, PRETRAIN])
