"""`perennial run` refuses what cannot work before it starts a process."""

import sys
from pathlib import Path

import pytest

from deploy.local import preflight as asking
from deploy.local import run
from deploy.local.placement import BadSetting
from deploy.local.preflight import preflight
from deploy.local.supervisor import Supervisor

REFUSED = 2


@pytest.fixture
def made_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Lets each process be a program that is given as code."""

    def make(**programs: str) -> None:
        def command(module: str, words: list[str]) -> list[str]:
            return [sys.executable, "-c", programs[module], *words]

        monkeypatch.setattr(asking, "module_command", command)
        monkeypatch.setattr(asking, "MODULES", {name: name for name in programs})

    return make


def test_the_simulator_is_asked_with_what_the_agent_answered(made_of, tmp_path: Path) -> None:
    made_of(
        agent="print('{1}')",
        sim="import sys; assert sys.argv[3:] == ['--preflight', '--policy={1}'], sys.argv",
        probe="import sys; assert sys.argv[3] == '--check'",
    )
    preflight(tmp_path, ["agent", "sim-0", "sim-1", "probe"])


def test_the_last_line_of_who_refuses_is_the_reason(made_of, tmp_path: Path) -> None:
    refuse = "import sys; print('warning', file=sys.stderr); sys.exit('the \\x1b[2J port is taken')"
    made_of(agent="pass", learner=refuse, sim="pass")
    with pytest.raises(BadSetting) as refused:
        preflight(tmp_path, ["agent", "learner", "sim-0"])
    assert str(refused.value) == "learner: the \\x1b[2J port is taken"


def test_a_check_that_hangs_is_given_up(
    made_of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "LIMIT_S", 0.2)
    made_of(agent="import time; time.sleep(600)")
    with pytest.raises(BadSetting, match="agent: its settings were not checked"):
        preflight(tmp_path, ["agent"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["suite=toy"], "words that the tokenizer does not know"),
        (["suite=toy", "model.device=nowhere"], "policy.device: nowhere is not there"),
    ],
)
def test_settings_that_cannot_work_start_nothing_and_bind_nobody(
    settings: list[str],
    reason: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Supervisor, "start", lambda _: pytest.fail("something was started"))
    run_dir = tmp_path / "run"
    assert run.main([*settings, f"run_dir={run_dir}"]) == REFUSED
    said = capsys.readouterr().err.splitlines()
    assert reason in said[-1]
    assert not run_dir.exists()  # with other settings it begins anew
