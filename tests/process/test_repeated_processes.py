"""Agent, learner and simulator, started again with the settings of a run that is finished."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from patience import HANG_S
from toy_run import finish_run

from deploy.local.processes import module_command, module_environment
from deploy.local.runfolder import RunFolder

pytestmark = pytest.mark.slow


@contextmanager
def started(run_dir: Path, module: str, name: str) -> Iterator[subprocess.Popen[bytes]]:
    config = run_dir / "config" / f"{name}.yaml"
    words = module_command(module, ["--config", str(config)])
    log = (run_dir / "logs" / f"{name}-again.log").open("wb")
    child = subprocess.Popen(words, env=module_environment(1), stdout=log, stderr=log)
    try:
        yield child
    finally:
        child.terminate()
        child.wait(HANG_S)
        log.close()


def rows(path: Path, sql: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(path) as ledger:
        return ledger.execute(sql).fetchall()


def what_was_made(run_dir: Path) -> dict[str, object]:
    """Everything that a run is there for: episodes, versions, checkpoints, figures."""
    folders = ("adapters", "learner/checkpoints", "learner/episodes", "agent/episodes")
    files = {
        str(path.relative_to(run_dir)): path.read_bytes()
        for folder in folders
        for path in (run_dir / folder).rglob("*")
        if path.is_file() and path.name != "lock"
    }
    assert len(files) > 20
    learner, agent = run_dir / "learner" / "learner.db", run_dir / "agent" / "agent.db"
    return {
        **files,
        "results": json.loads((run_dir / "learner" / "results.json").read_text()),
        "updates": rows(learner, "SELECT update_id, version, activated FROM updates"),
        "kept": rows(learner, "SELECT episode_id, sha256 FROM episodes ORDER BY 1"),
        "played": rows(agent, "SELECT episode_id, counted, outcome FROM episodes ORDER BY 1"),
        "served": rows(agent, "SELECT version FROM activations ORDER BY seq"),
        "logged": (run_dir / "sim-0" / "client.jsonl").read_bytes(),
    }


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    finish_run(folder, model_dir)
    return folder


def test_a_finished_run_whose_processes_start_again_stays_as_it_is(run_dir: Path) -> None:
    before = what_was_made(run_dir)
    with (
        RunFolder(run_dir).sockets(),
        started(run_dir, "agent", "agent"),
        started(run_dir, "sim_bridge", "sim-0") as sim,
        started(run_dir, "learner", "learner") as learner,
    ):
        assert learner.wait(HANG_S) == 0
        second = subprocess.run(
            module_command("agent", ["--config", str(run_dir / "config" / "agent.yaml")]),
            env=module_environment(1), capture_output=True, text=True, timeout=HANG_S, check=False,
        )  # fmt: skip
        assert second.returncode == 2, "while the first one serves"
        assert "in use by process" in second.stderr
        assert sim.poll() is None
    assert what_was_made(run_dir) == before


def test_a_file_in_the_place_of_a_folder_or_a_log_is_kept(tmp_path: Path, run_dir: Path) -> None:
    for name, module, key in (
        ("agent", "agent", "state_dir"), ("learner", "learner", "state_dir"),
        ("sim-0", "sim_bridge", "log_path"),
    ):  # fmt: skip
        config = yaml.safe_load((run_dir / "config" / f"{name}.yaml").read_text())
        mine = tmp_path / f"{name}-mine"
        mine.write_text("a person's")
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config | {key: str(mine)}))
        done = subprocess.run(
            module_command(module, ["--config", str(path)]),
            env=module_environment(1), capture_output=True, text=True, timeout=HANG_S, check=False,
        )  # fmt: skip
        assert done.returncode in (1, 2), done.stderr
        assert "Traceback" not in done.stderr
        assert str(mine) in done.stderr
        assert mine.read_text() == "a person's"
