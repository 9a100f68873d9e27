"""The nano policy's recipe: its programs know every argument, and a failure ends it."""

import subprocess
from pathlib import Path

import pytest

from deploy.local import nano
from learner import nano as pretraining
from learner.pretrain import PretrainConfig
from sim_bridge.tabletop import demos

GENERATE, PRETRAIN = "sim_bridge.tabletop.demos", "learner.nano"


def test_the_programs_take_their_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[tuple[str, Path]] = []
    trained: list[pretraining.NanoConfig] = []
    monkeypatch.setattr(
        demos, "generate", lambda config, out, workers: recorded.append((config.operators, out))
    )
    monkeypatch.setattr(pretraining, "build", trained.append)
    for module, words in nano.steps(Path("work"), Path("model")):
        assert not {GENERATE: demos.main, PRETRAIN: pretraining.main}[module](words)
    assert [operators for operators, _ in recorded] == ["expert", "misjudging"]
    assert [Path(*config.demos) for config in trained] == [out for _, out in recorded]
    first, second = trained
    assert (first.base, second.base, Path(second.out)) == ("", first.out, Path("model"))
    for config in trained:
        PretrainConfig(**config.pretrain)


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
    whole = [GENERATE, PRETRAIN] * 2
    assert started == (whole[: whole.index(failing) + 1] if failing else whole)
