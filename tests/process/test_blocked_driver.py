"""A client whose robot or simulator blocks is told to stop: it ends, and so does its episode."""

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
from agent.wire.messages import Assign, Hello, LearnerHello, Order, Phase, PostOrders
from agent.wire.sockets import DealerClient

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

ORDER = Order(
    order_id="train/0", suite="toy", task="move_left", instruction="move left", split="train",
    init_state=0, horizon_steps=100, slots=1, phase=Phase.TRAIN, version="base",
    temperature=1.0, run_seed=0, noise_key="0",
)  # fmt: skip
BLOCKING_SIMULATOR = """
import sys, time
from sim_bridge import toy
from sim_bridge.__main__ import main

def block(*given):
    print("blocks", file=sys.stderr, flush=True)
    time.sleep(10_000)

toy.ToyBody.apply = block
sys.exit(main())
"""
STOPPED_S, BUSY = 2.0, 3.0  # from a signal to the end; on a machine with other work


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
        assert_given_up(tmp_path)


def assert_given_up(folder: Path) -> None:
    """The server ends the episode by itself."""
    deadline_s = time.monotonic() + HANG_S
    while not last_outcome(folder)[0]:
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    assert last_outcome(folder) == ("aborted", f"no message for {LEASE_S} s")


def test_a_simulator_whose_body_blocks_ends_at_once_and_its_slot_is_free(tmp_path: Path) -> None:
    with (
        noop_server(tmp_path, "reach", f"lease_s={LEASE_S}") as (endpoint, _),
        DealerClient(f"ipc://{tmp_path}/operator.sock", HANG_S) as operator,
    ):
        operator.request(LearnerHello("learner", 1, revision=1))
        operator.request(PostOrders(1, [ORDER]))
        words = ["suite=toy", f"endpoint={endpoint}", f"log_path={tmp_path}/sim.jsonl"]
        simulator = subprocess.Popen(
            [sys.executable, "-c", BLOCKING_SIMULATOR, *words],
            cwd=ROOT, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert simulator.stderr is not None
        try:
            while simulator.stderr.readline() != "blocks\n":
                assert simulator.poll() is None
            simulator.terminate()
            told_s = time.monotonic()
            simulator.wait(HANG_S)
            took_s = time.monotonic() - told_s
            assert simulator.stderr.read().endswith("it did not stop by itself in time\n")
        finally:
            simulator.kill()
            simulator.stderr.close()
        assert took_s < STOPPED_S * BUSY
        assert_given_up(tmp_path)
        with DealerClient(endpoint, HANG_S) as other:
            other.request(Hello("other", "test"))
            (lease,) = other.request(Assign("other", "toy", 1)).leases
            assert lease.slot_id == f"{ORDER.order_id}#0"
