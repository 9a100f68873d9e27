"""Any robot of the `lerobot` package, 0.3.2 to 0.6, by a mapping in the settings."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from agent.process.optional import describe_failed_import
from agent.process.shown import printable
from agent.wire.errors import ConfigError
from agent.wire.messages import Outcome
from sim_bridge.robot import BridgeError, Observation
from sim_bridge.robots.config import LeRobotConfig, RestConfig
from sim_bridge.robots.pictures import fit_picture
from sim_bridge.robots.rest import Person, check_rest, move_home

INSTALL = "pip install 'perennial-vla[lerobot]'"
UNKNOWN = np.full(3, np.nan)


class LeRobotRobot:
    """Speaks lerobot's `Robot`: get_observation, send_action. It never sees how an episode ends."""

    def __init__(
        self,
        robot: Any,
        config: LeRobotConfig,
        rest: RestConfig,
        image_size: int,
        should_stop: Callable[[], bool],
    ) -> None:
        """Connects `robot`. Raises ConfigError for a mapping that does not fit it, BridgeError."""
        self._robot, self._config, self._rest = robot, config, rest
        self._image_size, self._should_stop = image_size, should_stop
        self._check_features()
        self._person = None if rest.home else Person()
        try:
            robot.connect(calibrate=False)  # calibrating asks questions
        except (OSError, RuntimeError) as error:
            raise BridgeError(f"lerobot: {robot} cannot be connected: {error}") from error
        if not robot.is_calibrated:
            robot.disconnect()
            raise ConfigError(f"lerobot: {robot} is not calibrated; run lerobot-calibrate first")

    def reset(self, task: str, split: str, init_state: int) -> None:
        """Moves home from where it is, or waits for the person; a task needs nothing else."""
        if self._person is not None:
            self._person.reset(task, self._should_stop)
            return
        present_A = self._numbers(self._robot.get_observation(), self._config.actions)
        home_A = np.array(self._rest.home)
        move_home(present_A, home_A, self._rest.home_s, self.apply, self._should_stop)

    def observe(self) -> Observation:
        """Reads motors and cameras."""
        seen = self._robot.get_observation()
        images = {
            camera: fit_picture(camera, np.asarray(_pick(seen, key)), self._image_size)
            for camera, key in self._config.cameras.items()
        }
        return Observation(images, self._numbers(seen, self._config.proprio).astype(np.float32))

    def position(self) -> np.ndarray:
        """Read where lerobot says it; that reads the cameras, too."""
        if not self._config.position:
            return UNKNOWN
        return self._numbers(self._robot.get_observation(), self._config.position)

    def apply(self, action_A: np.ndarray) -> None:
        """Sends the goal; what lerobot's own limits make of it is part of the robot."""
        actions = self._config.actions
        if action_A.shape != (len(actions),):
            raise BridgeError(
                f"lerobot.actions: {len(actions)} keys, and the policy's actions have "
                f"{len(action_A)} numbers"
            )
        self._robot.send_action(dict(zip(actions, action_A.tolist(), strict=True)))

    def hold(self) -> None:
        """Sends the hold action, if there is one: servos keep their last goal without it."""
        if self._rest.hold_action:
            self.apply(np.array(self._rest.hold_action, np.float32))

    def outcome(self) -> Outcome | None:
        """Never: that is for the operator or a detector to say."""
        return None

    def close(self) -> None:
        """Holds and disconnects."""
        if not self._robot.is_connected:
            return
        try:
            self.hold()
        finally:
            self._robot.disconnect()

    def _check_features(self) -> None:
        config, seen = self._config, self._robot.observation_features
        if not config.cameras or not config.proprio or not config.actions:
            raise ConfigError(
                "lerobot: cameras, proprio and actions must be set; the robot has the "
                f"observations {sorted(seen)} and the actions {sorted(self._robot.action_features)}"
            )
        if len(config.position) not in (0, 3):
            raise ConfigError(f"lerobot.position: expected 3 keys or none, got {config.position}")
        homing = config.actions if self._rest.home else []  # home is left from where they are
        for key in (*config.cameras.values(), *config.proprio, *config.position, *homing):
            _pick(seen, key)
        if sorted(config.actions) != sorted(self._robot.action_features):
            raise ConfigError(
                f"lerobot.actions: expected each of {sorted(self._robot.action_features)} once, "
                f"got {config.actions}"
            )
        check_rest(self._rest, len(config.actions))

    def _numbers(self, seen: Mapping[str, Any], keys: list[str]) -> np.ndarray:
        """f64[n]. Raises BridgeError for one that is not finite."""
        numbers = np.concatenate([np.ravel(np.asarray(_pick(seen, k), np.float64)) for k in keys])
        if not np.isfinite(numbers).all():
            raise BridgeError(f"lerobot: expected finite numbers for {keys}, got {numbers}")
        return numbers


def make_lerobot(config: LeRobotConfig) -> Any:
    """The robot of the settings, not yet connected. Raises ConfigError with the way out."""
    try:
        import draccus
        from lerobot.robots import Robot
    except Exception as error:
        why = describe_failed_import(error)
        if not why:
            raise
        raise ConfigError(f"robot=lerobot needs the lerobot package ({why}): {INSTALL}") from error
    kind = _named(config)
    is_robot = inspect.isclass(kind) and issubclass(kind, Robot)
    if not is_robot:
        raise ConfigError(f"lerobot.robot: '{config.robot}' is no Robot of lerobot")
    try:
        return kind(draccus.decode(kind.config_class, config.arguments))
    except ImportError as error:
        raise ConfigError(
            f"lerobot.robot: '{config.robot}' needs {error.name}; install lerobot's extra for its "
            "motors, e.g. pip install 'lerobot[feetech]'"
        ) from error
    except (draccus.utils.DecodingError, TypeError, ValueError) as error:
        raise ConfigError(f"lerobot.arguments: {error}") from error
    except Exception as error:
        if failure := describe_failed_import(error):
            raise ConfigError(f"lerobot.robot: '{config.robot}': {failure}") from error
        raise


def _named(config: LeRobotConfig) -> Any:
    module, _, name = config.robot.partition(":")
    try:
        for each in config.modules:
            importlib.import_module(each)
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # a module of the user's may raise anything
        raise ConfigError(
            "lerobot.robot: expected module:Class, e.g. "
            f"lerobot.robots.so101_follower:SO101Follower, got '{config.robot}' "
            f"({type(error).__name__}: {printable(error)})"
        ) from error


def _pick(seen: Mapping[str, Any], key: str) -> Any:
    if key not in seen:
        raise ConfigError(f"lerobot: the robot observes no '{key}'; it has {', '.join(seen)}")
    return seen[key]
