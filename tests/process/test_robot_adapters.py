"""Whole episodes of a ROS 2 robot and of a LeRobot robot, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from observed_run import process
from patience import HANG_S
from test_minimal_robot import noop_server

from agent.ledger import LedgerReader
from sim_bridge.log import read_log

ROOT = Path(__file__).parents[2]
ARMS = ROOT / "tests" / "sim_bridge" / "robots"  # where the simulated ones are
TASK, HORIZON_STEPS = "reach", 20
COMMON = [
    f"task={TASK}", "episodes=1", f"horizon_steps={HORIZON_STEPS}", "image_size=224",
    "rest.home=[0,0,0,0,0,0,0]", "rest.home_s=0.5", "rate_hz=10", "watchdog_s=5", "give_up_s=60",
]  # fmt: skip
# The policy of the server sees two cameras and eight numbers, and gives seven.
ROS2_SETTINGS = """
robot: ros2
ros2:
  transport: dds
  domain: {domain}
  cameras:
    agentview: {{topic: /{image}, type: sensor_msgs/msg/Image}}
    wrist: {{topic: /{image}, type: sensor_msgs/msg/Image}}
  proprio:
    - {{topic: /{state}, type: sensor_msgs/msg/JointState, names: {names}}}
    - {{topic: /{state}, type: sensor_msgs/msg/JointState, names: [joint0]}}
  commands:
    - {{topic: /{command}, type: std_msgs/msg/Float64MultiArray, size: 7}}
  stale_s: 10
  first_s: 60
"""


def run_robot(endpoint: str, folder: Path, *settings: str) -> None:
    """One episode to its timeout."""
    words = [
        sys.executable, "-m", "sim_bridge.robots", f"endpoint={endpoint}",
        f"log_path={folder}/robot.jsonl", f"report_path={folder}/report.json", *COMMON, *settings,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ARMS}"}
    done = subprocess.run(
        words, env=environment, timeout=HANG_S, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = read_log(folder / "robot.jsonl")
    assert (line.outcome, line.steps) == ("timeout", HORIZON_STEPS), done.stderr[-2000:]
    assert json.loads((folder / "report.json").read_text())["executed"] == HORIZON_STEPS
    ledger = LedgerReader(folder / "agent" / "agent.db")
    assert [row.outcome for row in ledger.episodes()] == ["timeout"]
    ledger.close()


@pytest.mark.slow
def test_a_robot_on_dds_topics_plays_an_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ARMS))
    from ros2_arm import COMMAND_TOPIC, IMAGE_TOPIC, JOINTS, JOINTS_TOPIC, LOOPBACK

    monkeypatch.setenv("CYCLONEDDS_URI", LOOPBACK)
    domain = str(100 + os.getpid() % 100)
    settings = ROS2_SETTINGS.format(
        domain=domain, image=IMAGE_TOPIC, state=JOINTS_TOPIC, command=COMMAND_TOPIC, names=JOINTS
    )
    (tmp_path / "robot.yaml").write_text(settings)
    arm = [sys.executable, str(ARMS / "ros2_arm.py"), "dds", domain]
    with noop_server(tmp_path, TASK) as (endpoint, _), process(arm, tmp_path / "arm.log"):
        run_robot(endpoint, tmp_path, f"--config={tmp_path}/robot.yaml")


@pytest.mark.slow
def test_a_robot_of_lerobot_plays_an_episode(tmp_path: Path) -> None:
    keys = ",".join([*(f"joint{k}.pos" for k in range(6)), "gripper.pos"])
    with noop_server(tmp_path, TASK) as (endpoint, _):
        run_robot(
            endpoint, tmp_path, "robot=lerobot", "lerobot.robot=simulated_lerobot:SimulatedArm",
            f"+lerobot.arguments.calibration_dir={tmp_path}/calibration",
            "+lerobot.cameras.agentview=front", "+lerobot.cameras.wrist=hand",
            f"lerobot.proprio=[{keys},load]", f"lerobot.actions=[{keys}]",
        )  # fmt: skip
