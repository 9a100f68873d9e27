"""A robot on ROS 2 topics over real DDS and zenoh on loopback, against an arm of other code."""

from __future__ import annotations

import os
import socket
import time

import numpy as np
import pytest
from patience import HANG_S
from ros2_arm import (
    COMMAND_TOPIC,
    IMAGE_TOPIC,
    JOINTS,
    JOINTS_TOPIC,
    LOOPBACK,
    running_arm,
)

from agent.wire.errors import ConfigError
from sim_bridge.robots import cdr, ros2_transports
from sim_bridge.robots.config import RestConfig, Ros2Config, Ros2Topic
from sim_bridge.robots.ros2 import Ros2Robot, Stale
from sim_bridge.robots.ros2_transports import make_transport

HOME = [0.25] * 7


def config_of(transport: str, where: str) -> Ros2Config:
    return Ros2Config(
        transport=transport,
        domain=int(where) if transport == "dds" else 0,
        zenoh_endpoints=[] if transport == "dds" else [where],
        cameras={"agentview": Ros2Topic(f"/{IMAGE_TOPIC}", cdr.IMAGE)},
        proprio=[Ros2Topic(f"/{JOINTS_TOPIC}", cdr.JOINT_STATE, JOINTS)],
        commands=[Ros2Topic(f"/{COMMAND_TOPIC}", cdr.FLOATS, size=7)],
        stale_s=HANG_S,
        first_s=HANG_S,
    )


def free_place(transport: str) -> str:
    """A DDS domain, or a zenoh endpoint, that no other test process uses."""
    if transport == "dds":
        return str(100 + os.getpid() % 100)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp/127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("transport", ["dds", "zenoh"])
def test_an_arm_is_seen_moved_and_missed(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CYCLONEDDS_URI", LOOPBACK)
    where = free_place(transport)
    config = config_of(transport, where)
    with running_arm(transport, where) as (arm, silent):
        robot = Ros2Robot(
            make_transport(config), config, RestConfig(HOME, home_s=0.1), 16, lambda: False
        )
        try:
            robot.reset("reach", "", 0)
            until(lambda: arm.joints_A == HOME)
            until(lambda: robot.observe().proprio.tolist() == HOME)
            goal_A = np.array([2.0, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5], np.float32)
            robot.apply(goal_A)
            until(lambda: np.array_equal(np.float32(arm.joints_A), goal_A))
            until(lambda: np.array_equal(robot.observe().proprio, goal_A))
            until(lambda: robot.observe().images["agentview"][0, 0].tolist() == [200, 0, 0])
            assert robot.observe().images["agentview"].shape == (16, 16, 3)

            silent.set()
            config.stale_s = 0.2
            with pytest.raises(Stale, match="last message"):
                until(lambda: robot.observe() is None)
            with pytest.raises(Stale):
                robot.apply(goal_A)
            silent.clear()
            robot.reset("reach", "", 0)  # waits for fresh ones
        finally:
            robot.close()


def test_a_transport_that_is_not_installed_is_named_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ros2_transports.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"pip install 'perennial-vla\[ros2\]'"):
        make_transport(Ros2Config(transport="auto"))
    with pytest.raises(ConfigError, match="'rclpy' needs rclpy: source your ROS 2"):
        make_transport(Ros2Config(transport="rclpy"))


def until(condition) -> None:
    deadline_s = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {HANG_S:g} s"
        time.sleep(0.01)
