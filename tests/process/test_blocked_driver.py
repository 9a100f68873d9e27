"""A robot whose driver blocks is told to stop: it says where it waits, and ends as documented."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from patience import HANG_S
from test_minimal_robot import ROOT, noop_server

from agent.ledger import LedgerReader
from agent.process.stopping import FINISHING_LIMIT_S, LIMIT_S

pytestmark = pytest.mark.slow

LEASE_S = 3
DRIVER = """
import sys, time
import realtime_robot

class Arm(realtime_robot.Arm):
    def {method}(self, *given):
        if self.steps < 4:
            return super().{method}(*given)
        print("blocks", file=sys.stderr, flush=True)
        time.sleep(10_000)
"""


def last_outcome(folder: Path) -> tuple[str, str]:
    ledger = LedgerReader(folder / "agent" / "agent.db")
    try:
        *_, row = ledger.episodes()
    finally:
        ledger.close()
    return row.outcome, row.reason


@pytest.mark.parametrize("method", ["apply", "outcome"])
def test_a_robot_whose_driver_blocks_says_so_and_is_cut_off(tmp_path: Path, method: str) -> None:
    (tmp_path / "blocking.py").write_text(DRIVER.format(method=method))
    paths = f"{tmp_path}:{ROOT / 'docs' / 'examples'}:{ROOT}"
    with noop_server(tmp_path, "reach", f"lease_s={LEASE_S}") as (endpoint, _):
        robot = subprocess.Popen(
            [
                *(sys.executable, "-m", "sim_bridge.robots", "robot=blocking:Arm", "task=reach"),
                *(f"endpoint={endpoint}", f"log_path={tmp_path}/robot.jsonl"),
            ],
            env={**os.environ, "PYTHONPATH": paths}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert robot.stderr is not None
        try:
            while robot.stderr.readline() != "blocks\n":
                assert robot.poll() is None
            robot.terminate()
            told_s = time.monotonic()
            line = robot.stderr.readline()
            said_s = time.monotonic() - told_s
            cut = robot.stderr.readline()
            assert robot.wait(HANG_S) == 0
            took_s = time.monotonic() - told_s
        finally:
            robot.kill()
            robot.stderr.close()
        assert "waits for the robot's driver" in line
        assert f"now in Arm.{method} (blocking.py:" in line
        assert f"cut off in Arm.{method} (blocking.py:" in cut
        assert LIMIT_S <= said_s < FINISHING_LIMIT_S <= took_s
        deadline_s = time.monotonic() + HANG_S
        while not last_outcome(tmp_path)[0]:
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        assert last_outcome(tmp_path) == ("aborted", f"no message for {LEASE_S} s")
