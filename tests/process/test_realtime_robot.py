"""A robot in real time against a real server: punctual, and held while the server is silent."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from observed_run import process
from patience import HANG_S
from test_minimal_robot import noop_server

from agent.ledger import LedgerReader
from sim_bridge.log import read_log

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "realtime_robot.py"
HORIZON_STEPS = 60


def robot_words(endpoint: str, folder: Path, *settings: str) -> list[str]:
    """The toy robot, which a no-op policy never brings to its goal."""
    return [
        sys.executable, "-m", "sim_bridge.robots", f"endpoint={endpoint}", "suite=toy",
        "task=move_left", f"horizon_steps={HORIZON_STEPS}", f"log_path={folder}/robot.jsonl",
        f"report_path={folder}/report.json", *settings,
    ]  # fmt: skip


@pytest.mark.slow
def test_episodes_run_to_their_end_and_every_action_is_told_of(tmp_path: Path) -> None:
    with noop_server(tmp_path, "move_left") as (endpoint, _):
        words = robot_words(endpoint, tmp_path, "episodes=2", "rate_hz=20", "lead_ticks=2")
        subprocess.run(words, check=True, timeout=HANG_S)
    report = json.loads((tmp_path / "report.json").read_text())
    lines = read_log(tmp_path / "robot.jsonl")
    assert [line.outcome for line in lines] == ["timeout", "timeout"]
    assert [line.steps for line in lines] == [HORIZON_STEPS, HORIZON_STEPS]
    assert report["executed"] == 2 * HORIZON_STEPS
    assert report["ticks"] >= report["executed"] + report["held"]
    ledger = LedgerReader(tmp_path / "agent" / "agent.db")
    assert {row.outcome for row in ledger.episodes()} == {"timeout"}
    ledger.close()


@pytest.mark.slow
def test_the_same_robot_again_leaves_what_was_logged(tmp_path: Path) -> None:
    """Its episodes are new ones; a file that is no log or report is not written to."""
    log = tmp_path / "robot.jsonl"
    with noop_server(tmp_path, "move_left") as (endpoint, _):
        words = robot_words(endpoint, tmp_path, "episodes=1", "rate_hz=50")
        subprocess.run(words, check=True, timeout=HANG_S)
        first = log.read_bytes()
        subprocess.run(words, check=True, timeout=HANG_S)
        both = log.read_bytes()
        assert both.startswith(first)
        assert len({line.episode_id for line in read_log(log)}) == 2
        for setting in ("log_path", "report_path"):
            mine = tmp_path / "mine"
            mine.write_text("a person's")
            refused = subprocess.run(
                [*words, f"{setting}={mine}"],
                capture_output=True, text=True, timeout=HANG_S, check=False,
            )  # fmt: skip
            assert refused.returncode == 2
            assert len(refused.stderr.splitlines()) == 1
            assert str(mine) in refused.stderr
            assert mine.read_text() == "a person's"
        assert log.read_bytes() == both


@pytest.mark.slow
def test_a_silent_server_holds_the_robot_until_it_speaks_again(tmp_path: Path) -> None:
    with noop_server(tmp_path, "move_left") as (endpoint, server):
        words = robot_words(
            endpoint, tmp_path, "episodes=1", "watchdog_s=0.3", "request_timeout_s=0.5"
        )
        log = tmp_path / "robot.log"
        with process(words, log) as robot:
            wait_for(lambda: "fresh" in log.read_text() or has_begun(tmp_path), "an episode")
            os.kill(server, signal.SIGSTOP)
            try:
                wait_for(lambda: "holding" in log.read_text(), "the watchdog trips")
            finally:
                os.kill(server, signal.SIGCONT)
            wait_for(lambda: robot.poll() is not None, "the episode ends")
            assert robot.returncode == 0, log.read_text()[-2000:]
        assert "going on" in log.read_text()
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["watchdog_trips"] >= 1
    assert report["executed"] == HORIZON_STEPS
    (line,) = read_log(tmp_path / "robot.jsonl")
    assert (line.outcome, line.steps) == ("timeout", HORIZON_STEPS)


@pytest.mark.slow
def test_what_a_server_recorded_is_replayed_to_its_end_and_told_to_prometheus(
    tmp_path: Path,
) -> None:
    steps = 40
    with noop_server(tmp_path, "move_left") as (endpoint, _):
        words = robot_words(
            endpoint, tmp_path, "episodes=1", f"horizon_steps={steps}", "lead_ticks=2"
        )
        subprocess.run(words, check=True, timeout=HANG_S)
        replay = subprocess.run(
            [
                sys.executable, "-m", "deploy.local.cli", "robot", "robot=replay",
                f"replay_dir={tmp_path}/agent", "task=move_left", "episodes=1", "rate_hz=20",
                "horizon_steps=1", f"endpoint={endpoint}", "client_id=replay",
                f"log_path={tmp_path}/replay.jsonl",
            ],
            capture_output=True, text=True, timeout=HANG_S, check=False,
        )  # fmt: skip
        assert replay.returncode == 0, replay.stderr[-2000:]
        http = json.loads((tmp_path / "agent" / "endpoints.json").read_text())["http"]
        with urllib.request.urlopen(f"{http}/metrics", timeout=HANG_S) as answer:
            exposed = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines())
    summary = json.loads(replay.stdout.splitlines()[-1])
    assert (summary["replayed"], summary["executed"]) == (1, steps)
    assert summary["difference_max"] == 0.0, "the same policy answers the same"
    (line,) = read_log(tmp_path / "replay.jsonl")
    assert (line.outcome, line.steps, line.counted) == ("aborted", steps, False)
    executed = exposed['perennial_robot_ticks_total{what="executed"}']
    assert float(executed) == 2 * steps, "both robots, all of it"
    assert float(exposed["perennial_observation_age_seconds_count"]) >= 2
    assert float(exposed['perennial_chunk_seam_jump_count{phase="serve"}']) >= 2


@pytest.mark.slow
def test_the_documents_robot_runs_as_printed(tmp_path: Path) -> None:
    with noop_server(tmp_path) as (endpoint, _):
        words = [
            sys.executable, "-m", "deploy.local.cli", "robot", "robot=realtime_robot:Arm",
            "task=reach", "episodes=1", "horizon_steps=20", f"endpoint={endpoint}",
            f"log_path={tmp_path}/robot.jsonl",
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": f"{EXAMPLE.parent}:{ROOT}"}
        robot = subprocess.run(
            words, env=environment, capture_output=True, text=True, timeout=HANG_S,
            check=False,
        )  # fmt: skip
    assert robot.returncode == 0, robot.stderr[-2000:]
    summary = json.loads(robot.stdout.splitlines()[-1])
    assert summary["steps"] == summary["executed"] == 20
    (line,) = read_log(tmp_path / "robot.jsonl")
    assert (line.outcome, line.steps) == ("timeout", 20)


def test_the_document_prints_the_robot_that_is_tested() -> None:
    source = EXAMPLE.read_text()
    assert len(source.splitlines()) <= 60
    assert f"```python\n{source}```" in (ROOT / "docs" / "adding-a-robot.md").read_text()


def has_begun(folder: Path) -> bool:
    """Whether the server has an episode."""
    path = folder / "agent" / "agent.db"
    if not path.exists():
        return False
    ledger = LedgerReader(path)
    try:
        return bool(list(ledger.episodes()))
    finally:
        ledger.close()


def wait_for(condition, what: str, limit_s: float = HANG_S) -> None:
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {limit_s:g} s: {what}"
        time.sleep(0.02)
