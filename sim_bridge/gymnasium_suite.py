"""Any Gymnasium environment with dict observations as a suite, by a mapping in the settings.

A value of an observation may be a callable, which is called when the policy asks for it: so an
environment need not render what nobody looks at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from agent.wire.errors import ConfigError
from sim_bridge.config import GymnasiumConfig
from sim_bridge.robot import BridgeError, Observation, UnknownTask

# The init state k of a split is a reset with the seed SPLIT_SEEDS[split] + k.
SPLIT_SEEDS = {"train": 0, "eval": 1_000_000, "demo": 2_000_000}
SEPARATOR = "/"  # between the keys of nested observations


class GymnasiumBody:
    """One environment; its actions are the environment's own, f32[A]."""

    def __init__(self, env: Any, config: GymnasiumConfig) -> None:
        self._env, self._config = env, config
        self.action_low_A = np.asarray(env.action_space.low, np.float32)
        self.action_high_A = np.asarray(env.action_space.high, np.float32)
        self._seen: Mapping[str, Any] = {}
        self.success = False

    def reset(self, split: str, init_state: int) -> None:
        """Resets with the split's seed of that number."""
        if split not in SPLIT_SEEDS:
            raise BridgeError(f"split: expected one of {sorted(SPLIT_SEEDS)}, got '{split}'")
        self._seen, _ = self._env.reset(seed=SPLIT_SEEDS[split] + init_state)
        self.success = False

    def observe(self) -> Observation:
        """The mapped parts of the last observation."""
        images = {
            camera: np.ascontiguousarray(self._pick(key))
            for camera, key in self._config.cameras.items()
        }
        parts = [np.ravel(self._pick(key)) for key in self._config.proprio]
        return Observation(images, np.concatenate(parts).astype(np.float32))

    def apply(self, action_A: np.ndarray) -> bool:
        """One `step`; True when the environment ended the episode."""
        self._seen, _, terminated, truncated, info = self._env.step(action_A)
        self.success = bool(info.get(self._config.success, False))
        return bool(terminated or truncated)

    def close(self) -> None:
        """Closes the environment."""
        self._env.close()

    def _pick(self, key: str) -> np.ndarray:
        found: Any = self._seen
        for name in key.split(SEPARATOR):
            if not isinstance(found, Mapping) or name not in found:
                known = ", ".join(_keys(self._seen)) or "no keys: it is no dict"
                raise BridgeError(f"gymnasium: the observation has no '{key}'; it has {known}")
            found = found[name]
        return np.asarray(found() if callable(found) else found)


class GymnasiumSuite:
    """The tasks are variants of one environment: its id, with arguments of each task's own."""

    def __init__(self, name: str, config: GymnasiumConfig) -> None:
        """Raises ConfigError for a mapping that does not fit the environment."""
        self.name = name
        if not (config.env_id and config.tasks and config.cameras and config.proprio):
            raise ConfigError("gymnasium: env_id, tasks, cameras and proprio must be set")
        self._config = config
        self.tasks = tuple(config.tasks)
        self.cameras = tuple(config.cameras)
        body = self.make_body(self.tasks[0])
        body.reset("train", 0)
        seen = body.observe()
        for camera, image in seen.images.items():
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ConfigError(
                    f"gymnasium.cameras.{camera}: expected uint8 [H, W, 3], got "
                    f"{image.dtype}{list(image.shape)}"
                )
        self.action_dim, self.proprio_dim = len(body.action_low_A), len(seen.proprio)
        body.close()

    def make_body(self, task: str) -> GymnasiumBody:
        """A fresh environment. Raises UnknownTask, ConfigError."""
        import gymnasium

        if task not in self.tasks:
            raise UnknownTask(self.name, task, self.tasks)
        arguments = {**self._config.arguments, **self._config.tasks[task]}
        try:
            env = gymnasium.make(self._config.env_id, **arguments)
        except Exception as error:  # a constructor of the user's may raise anything
            raise ConfigError(
                f"gymnasium.env_id: '{self._config.env_id}' cannot be made: "
                f"{type(error).__name__}: {error}"
            ) from error
        space = env.action_space
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            raise ConfigError(
                f"gymnasium.env_id: '{self._config.env_id}' has actions of {space}; only Box with "
                "one axis, a vector of numbers, can be driven"
            )
        return GymnasiumBody(env, self._config)

    def close(self) -> None:
        """Every body holds its own environment."""


def _keys(seen: Any, prefix: str = "") -> list[str]:
    if not isinstance(seen, Mapping):
        return [prefix.rstrip(SEPARATOR)]
    return [key for name in seen for key in _keys(seen[name], f"{prefix}{name}{SEPARATOR}")]
