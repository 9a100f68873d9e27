"""The robot client of docs/adding-a-robot.md works as printed, against a real server."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from observed_run import process
from patience import HANG_S

from agent.ledger import LedgerReader
from sim_bridge.log import read_log

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "minimal_robot.py"
EPISODES = 2
HORIZON_STEPS = 20  # as in the example, whose task the zeros of a no-op policy never solve
# A robot has neither of these; an import of one fails as if it were not installed.
WITHOUT_LEARNING = (
    "import runpy, sys; sys.modules.update(torch=None, transformers=None, learner=None); "
    "runpy.run_path(sys.argv.pop(1), run_name='__main__')"
)


@contextmanager
def noop_server(
    folder: Path, task: str = "reach", *settings: str, before: Sequence[str] = ()
) -> Iterator[tuple[str, int]]:
    """Robots' endpoint and process id of a real server that answers zeros and knows one task.

    before: words of a command that becomes the server.
    """
    endpoints_path = folder / "agent" / "endpoints.json"
    words = [
        *before, sys.executable, "-m", "agent", "policy.kind=noop",
        f"+tasks={{{task}: {{instruction: {task}}}}}",
        f"state_dir={folder}/agent", f"adapters_dir={folder}/adapters",
        f"robots_endpoint=ipc://{folder}/robots.sock",
        f"operator_endpoint=ipc://{folder}/operator.sock", *settings,
    ]  # fmt: skip
    with process(words, folder / "agent.log") as server:
        deadline_s = time.monotonic() + HANG_S
        while not endpoints_path.exists():
            assert server.poll() is None, (folder / "agent.log").read_text()[-2000:]
            assert time.monotonic() < deadline_s, f"no server within {HANG_S:g} s"
            time.sleep(0.05)
        yield json.loads(endpoints_path.read_text())["robots"], server.pid


@pytest.mark.slow
def test_the_example_runs_its_episodes_without_a_learning_library(tmp_path: Path) -> None:
    with noop_server(tmp_path) as (endpoint, _):
        robot = subprocess.run(
            [sys.executable, "-c", WITHOUT_LEARNING, str(EXAMPLE), endpoint, "reach",
             str(tmp_path / "client.jsonl"), str(EPISODES)],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
            timeout=HANG_S, check=False,
        )  # fmt: skip
    assert robot.returncode == 0, robot.stderr[-2000:]
    lines = read_log(tmp_path / "client.jsonl")
    assert len({line.episode_id for line in lines}) == EPISODES
    for line in lines:
        assert (line.task, line.outcome, line.counted) == ("reach", "timeout", False)
        assert (line.steps, line.versions) == (HORIZON_STEPS, ["base"])
    ledger = LedgerReader(tmp_path / "agent" / "agent.db")
    rows = {row.episode_id: row for row in ledger.episodes()}
    ledger.close()
    for line in lines:
        row = rows[line.episode_id]
        assert (row.init_state, row.split, row.phase) == (line.init_state, line.split, line.phase)
        assert row.outcome == line.outcome


def test_the_document_prints_the_example_that_is_tested() -> None:
    source = EXAMPLE.read_text()
    assert len(source.splitlines()) <= 60
    assert f"```python\n{source}```" in (ROOT / "docs" / "adding-a-robot.md").read_text()
