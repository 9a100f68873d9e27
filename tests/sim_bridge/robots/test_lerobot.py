"""Robots of the lerobot package, by the mapping of the settings, on lerobot's own base class."""

from __future__ import annotations

import os
import pty
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated_lerobot import KEYS

from agent.wire.errors import ConfigError
from sim_bridge.robot import BridgeError
from sim_bridge.robots.config import LeRobotConfig, RestConfig
from sim_bridge.robots.lerobot import LeRobotRobot, make_lerobot

HOME = [0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0]
BACKWARDS = KEYS[::-1]


@pytest.fixture
def config(tmp_path: Path) -> LeRobotConfig:
    return LeRobotConfig(
        robot="simulated_lerobot:SimulatedArm",
        arguments={"id": "left", "calibration_dir": str(tmp_path), "image_width": 96},
        cameras={"agentview": "front", "wrist": "hand"},
        proprio=[*BACKWARDS, "load"],
        actions=BACKWARDS,
    )


def driven(config: LeRobotConfig, home: list[float] = HOME, **resting: Any) -> LeRobotRobot:
    return LeRobotRobot(
        make_lerobot(config), config, RestConfig(home, **resting), 16, lambda: False
    )


def test_arguments_are_read_as_lerobot_reads_them(config: LeRobotConfig) -> None:
    robot = make_lerobot(config)
    assert (robot.id, robot.config.image_width) == ("left", 96)
    assert robot.calibration_dir == Path(config.arguments["calibration_dir"])


def test_keys_map_to_cameras_proprio_and_actions_in_the_order_of_the_settings(
    config: LeRobotConfig,
) -> None:
    arm = make_lerobot(config)
    robot = LeRobotRobot(arm, config, RestConfig(HOME), 16, lambda: False)
    assert np.isnan(robot.position()).all(), "nobody says where its grasp point is"
    robot.apply(np.arange(7, dtype=np.float32))
    assert arm.sent == [{key: 6.0 - k for k, key in enumerate(KEYS)}]
    seen = robot.observe()
    assert seen.proprio.tolist() == [*(5 + k / 2 for k in range(7)), 0.25]
    assert seen.proprio.dtype == np.float32
    assert {camera: image.shape for camera, image in seen.images.items()} == {
        "agentview": (16, 16, 3),
        "wrist": (16, 16, 3),
    }
    assert seen.images["agentview"][3, 3].tolist() == [0, 8, 0]
    robot.close()
    assert not arm.is_connected


def test_a_reset_moves_home_in_a_straight_line_from_where_the_arm_is(
    config: LeRobotConfig,
) -> None:
    arm = make_lerobot(config)
    robot = LeRobotRobot(arm, config, RestConfig(HOME, home_s=0.2), 16, lambda: False)
    robot.reset("reach", "", 0)
    goals_TA = np.array([[action[key] for key in BACKWARDS] for action in arm.sent])
    assert len(goals_TA) == 4
    np.testing.assert_allclose(goals_TA[-1], HOME)
    steps_TA = np.diff(np.vstack([np.full(7, 10.0), goals_TA]), axis=0)
    np.testing.assert_allclose(steps_TA, np.tile((np.array(HOME) - 10) / 4, (4, 1)), rtol=1e-5)


def test_without_a_home_a_person_resets(
    config: LeRobotConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    person, terminal = pty.openpty()
    try:
        monkeypatch.setattr("sys.stdin", open(terminal, closefd=False))  # noqa: SIM115
        asked: list[int] = []

        def press_enter() -> bool:
            asked.append(os.write(person, b"\n"))
            return len(asked) > 50

        robot = LeRobotRobot(make_lerobot(config), config, RestConfig(), 16, press_enter)
        robot.reset("reach", "", 0)
        robot.close()
        assert 1 <= len(asked) <= 50
    finally:
        os.close(person)
        os.close(terminal)


def test_holding_sends_the_hold_action_or_nothing(config: LeRobotConfig) -> None:
    arm = make_lerobot(config)
    robot = LeRobotRobot(arm, config, RestConfig(HOME), 16, lambda: False)
    robot.hold()
    assert arm.sent == []
    robot = LeRobotRobot(arm, config, RestConfig(HOME, hold_action=[0.5] * 7), 16, lambda: False)
    robot.hold()
    assert arm.sent == [dict.fromkeys(KEYS, 0.5)]


def test_what_the_robot_should_not_say_is_refused(config: LeRobotConfig) -> None:
    arm = make_lerobot(config)
    robot = LeRobotRobot(arm, config, RestConfig(HOME), 16, lambda: False)
    arm.joints[KEYS[2]] = np.nan
    with pytest.raises(BridgeError, match="finite"):
        robot.observe()
    with pytest.raises(BridgeError, match="7 keys, and the policy's actions have 6"):
        robot.apply(np.zeros(6, np.float32))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"cameras": {"agentview": "rear"}}, "observes no 'rear'; it has joint0.pos"),
        ({"proprio": ["joint9.pos"]}, "observes no 'joint9.pos'"),
        ({"actions": KEYS[:6]}, r"lerobot.actions: expected each of \['gripper.pos'"),
        ({"cameras": {}}, r"must be set; the robot has the observations \['front'"),
        ({"position": ["load"]}, "lerobot.position: expected 3 keys"),
        ({"robot": "simulated_lerobot:SimulatedLeg"}, "expected module:Class"),
        ({"robot": "simulated_lerobot:SimulatedArmConfig"}, "no Robot of lerobot"),
        ({"arguments": {"colour": "red"}}, "lerobot.arguments: .*colour"),
        ({"arguments": {"calibrated": False}}, "run lerobot-calibrate first"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused_before_anything_moves(
    changes: dict[str, Any], expected: str, config: LeRobotConfig, tmp_path: Path
) -> None:
    if "arguments" in changes:
        changes = {"arguments": {"calibration_dir": str(tmp_path), **changes["arguments"]}}
    with pytest.raises(ConfigError, match=expected):
        driven(replace(config, **changes))


def test_a_robot_that_cannot_be_reached_is_one_line(
    config: LeRobotConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_self: object, calibrate: bool) -> None:
        raise ConnectionError("no such port")

    monkeypatch.setattr("simulated_lerobot.SimulatedArm.connect", fail)
    with pytest.raises(BridgeError, match="left SimulatedArm cannot be connected: no such port"):
        driven(config)


def test_motors_whose_package_is_missing_are_named(
    config: LeRobotConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_self: object, _config: object) -> None:
        raise ModuleNotFoundError("No module named 'scservo_sdk'", name="scservo_sdk")

    monkeypatch.setattr("simulated_lerobot.SimulatedArm.__init__", fail)
    with pytest.raises(ConfigError, match="needs scservo_sdk; install lerobot's extra"):
        make_lerobot(config)


@pytest.mark.parametrize("resting", [{"home": HOME[:6]}, {"hold_action": [0.0]}])
def test_a_pose_of_the_wrong_length_is_refused(
    resting: dict[str, list[float]], config: LeRobotConfig
) -> None:
    with pytest.raises(ConfigError, match="expected 7 numbers or none"):
        driven(config, **resting)
