"""The robots the runtime can drive, by name; a robot's packages are imported when it is made."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from agent.process.shown import printable
from agent.wire.errors import ConfigError, PerennialError
from sim_bridge.config import SimConfig
from sim_bridge.robot import BridgeError
from sim_bridge.robots.config import RobotConfig
from sim_bridge.robots.robot import Robot


def make_robot(config: RobotConfig, should_stop: Callable[[], bool]) -> Robot:
    """The robot `config.robot`; its resets end early once `should_stop`.

    Raises ConfigError when it cannot be driven here, BridgeError when it does not answer.
    """
    if config.robot == "simulated":
        return _simulated(config)
    if config.robot == "lerobot":
        return _lerobot(config, should_stop)
    if config.robot == "ros2":
        return _ros2(config, should_stop)
    if ":" in config.robot:
        return _own(config.robot)
    return _replay(config)


def _own(name: str) -> Robot:
    """A class of the user's, "module:Class", made without arguments."""
    module, _, function = name.partition(":")
    try:
        make = getattr(importlib.import_module(module), function)
    except Exception as error:  # a module of the user's may raise anything
        raise ConfigError(
            f"robot: there is no '{name}' ({type(error).__name__}: {printable(error)}); its folder "
            "must be on PYTHONPATH"
        ) from error
    try:
        robot: Robot = make()
    except PerennialError:
        raise
    except Exception as error:  # the driver's, whatever it is
        raise BridgeError(f"robot: {name}(): {type(error).__name__}: {error}") from error
    return robot


def _replay(config: RobotConfig) -> Robot:
    from sim_bridge.robots.replay import ReplayRobot

    return ReplayRobot(Path(config.replay_dir))


def _simulated(config: RobotConfig) -> Robot:
    from sim_bridge.robots.simulated import SimulatedRobot
    from sim_bridge.suites import make_suite

    return SimulatedRobot(
        make_suite(
            SimConfig(
                suite=config.suite,
                image_size=config.image_size,
                protocol=config.protocol,
                renderer=config.renderer,
            )
        )
    )


def _lerobot(config: RobotConfig, should_stop: Callable[[], bool]) -> Robot:
    from sim_bridge.robots.lerobot import LeRobotRobot, make_lerobot

    robot = make_lerobot(config.lerobot)
    return LeRobotRobot(robot, config.lerobot, config.rest, config.image_size, should_stop)


def _ros2(config: RobotConfig, should_stop: Callable[[], bool]) -> Robot:
    from sim_bridge.robots.ros2 import Ros2Robot
    from sim_bridge.robots.ros2_transports import make_transport

    transport = make_transport(config.ros2)
    try:
        return Ros2Robot(transport, config.ros2, config.rest, config.image_size, should_stop)
    except ConfigError:
        transport.close()
        raise
