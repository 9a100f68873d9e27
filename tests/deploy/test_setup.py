"""`perennial setup`: settings the processes accept, keys that stay, no change by accident."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config import AgentConfig
from agent.process import load_config
from agent.wire.keys import load_client_keys, load_server_keys
from deploy import setup
from deploy.setup import BAD_INPUT, CLIENTS, TARGETS, main
from learner.config import LearnerConfig
from sim_bridge.config import SimConfig

pytestmark = pytest.mark.slow  # each call starts five interpreters


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    return ["--state-dir", str(tmp_path / "state"), "--keys-dir", str(tmp_path / "keys"),
            "suite=tabletop", "budget=smoke"]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_every_process_takes_its_settings_and_finds_its_keys(
    target: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOSTNAME", "box-1")
    monkeypatch.setenv("PERENNIAL_INSTANCE", "1")
    assert main([target, *arguments]) == 0
    config_dir = tmp_path / "state" / "config"
    agent = load_config(AgentConfig, config_dir / "agent.yaml", [])
    learner = load_config(LearnerConfig, config_dir / "learner.yaml", [])
    sim = load_config(SimConfig, config_dir / "sim.yaml", [])
    server = load_server_keys(Path(agent.keys_dir))
    for folder in (learner.keys_dir, sim.keys_dir, str(tmp_path / "keys" / "operator")):
        assert load_client_keys(Path(folder)).server_public == server.public
    assert not agent.insecure
    assert not agent.die_with_parent
    assert not learner.exit_when_done
    assert agent.robots_endpoint.rpartition(":")[2] == sim.endpoint.rpartition(":")[2]
    assert (
        agent.operator_endpoint.rpartition(":")[2] == learner.operator_endpoint.rpartition(":")[2]
    )
    assert agent.adapters_dir == learner.adapters_dir
    assert sim.client_id in sim.log_path
    # Nothing is reachable from elsewhere without keys, and metrics only where it was asked for.
    assert agent.http_open == (target == "compose")


def test_a_second_setup_changes_nothing(arguments: list[str], tmp_path: Path) -> None:
    assert main(["compose", *arguments]) == 0
    files = [
        path
        for path in tmp_path.rglob("*")
        if path.is_file() and path.name not in ("state.json", "lock")
    ]
    before = {path: path.read_bytes() for path in files}
    assert any(path.name == "server.key_secret" for path in files)
    assert main(["compose", *arguments]) == 0
    assert {path: path.read_bytes() for path in files} == before


def test_settings_that_would_make_another_run_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compose", *arguments]) == 0
    capsys.readouterr()
    assert main(["compose", *arguments, "seed=7"]) == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert "seed=0, not 7" in line


def test_a_lost_key_folder_is_named_with_the_way_out(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compose", *arguments]) == 0
    (tmp_path / "keys" / "learner").rename(tmp_path / "elsewhere")
    capsys.readouterr()
    assert main(["compose", *arguments]) == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert f"perennial keys remove {tmp_path}/keys/agent learner, then set up again" in line


def test_what_is_refused_leaves_neither_keys_nor_settings(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "state" / "config" / "run.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert main(["compose", *arguments]) == BAD_INPUT
    assert "another program's" in capsys.readouterr().err
    assert {path.name for path in tmp_path.rglob("*")} == {"state", "config", "run.yaml"}
    mine.unlink()
    (tmp_path / "keys").write_text("a file")
    (tmp_path / "state" / "config").rmdir()
    (tmp_path / "state").rmdir()
    assert main(["compose", *arguments]) == BAD_INPUT
    assert "keys: " in capsys.readouterr().err
    assert {path.name for path in tmp_path.rglob("*")} == {"keys"}


def test_options_may_stand_before_settings(arguments: list[str], tmp_path: Path) -> None:
    assert main([*arguments[:4], "compose", *arguments[4:]]) == 0


def test_only_the_learner_and_the_operator_may_operate() -> None:
    assert {name for name, may in CLIENTS.items() if "operate" in may} == {"learner", "operator"}


def test_a_disk_that_hangs_is_one_line(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(setup, "KEYS_LIMIT_S", 0.001)
    assert main([next(iter(TARGETS)), *arguments]) == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert f"none in {tmp_path / 'keys'} after 0.001 s" in line
    assert not (tmp_path / "state").exists()
