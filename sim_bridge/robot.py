"""What a robot or simulated body must offer so that the bridge can drive it.

The bridge knows nothing else about a body: a suite makes one body per task, the worker resets it,
observes it once per chunk and applies one action per control step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from agent.wire.errors import ConfigError, PerennialError


@dataclass(frozen=True, slots=True)
class Observation:
    """images: camera -> u8[H, W, 3] RGB, upright. proprio: f32[P], in the suite's units."""

    images: dict[str, np.ndarray]
    proprio: np.ndarray


class Body(Protocol):
    """One robot or simulated robot doing one task. Any exception it raises aborts its episode."""

    action_low_A: np.ndarray  # f32[A], the smallest action the body executes as sent
    action_high_A: np.ndarray  # f32[A], the largest one

    @property
    def success(self) -> bool:
        """Whether the task's predicate holds now."""

    def reset(self, split: str, init_state: int) -> None:
        """Puts the scene into init state `init_state` of `split` ("train" or "eval")."""

    def observe(self) -> Observation:
        """What the policy needs to see; renders only when called."""

    def apply(self, action_A: np.ndarray) -> bool:
        """Executes one control step; True when the body cannot go on, solved or not.

        Success alone is no reason: whether it ends the episode is a setting of the worker.
        """

    def close(self) -> None:
        """Releases what the body holds; called once."""


class Suite(Protocol):
    """A family of tasks on one embodiment. One per process: its bodies may share a scene."""

    @property
    def name(self) -> str:
        """Its name in the registry and in orders."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Registered slugs."""

    @property
    def action_dim(self) -> int:
        """A."""

    @property
    def proprio_dim(self) -> int:
        """P."""

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the images its bodies give."""

    def make_body(self, task: str) -> Body:
        """A fresh body for `task`. Raises UnknownTask."""

    def close(self) -> None:
        """Releases the shared scene; called after every body was closed."""


class BridgeError(PerennialError):
    """Base of what the bridge raises while it runs; bad settings are a ConfigError."""


class UnknownTask(ConfigError):
    """The suite has no task of that slug; trying again is useless."""

    def __init__(self, suite: str, task: str, known: tuple[str, ...]) -> None:
        super().__init__(f"suite '{suite}' has no task '{task}'; it has: {', '.join(known)}")


def clip_action(body: Body, action_A: np.ndarray) -> tuple[np.ndarray, bool]:
    """The action within the body's limits, and whether a limit changed it."""
    clipped_A = np.clip(action_A, body.action_low_A, body.action_high_A)
    return clipped_A, bool(np.any(clipped_A != action_A))


def require_init_state(split: str, init_state: int, counts: Mapping[str, int]) -> None:
    """Raises BridgeError unless `init_state` is one of the `counts[split]` states of `split`."""
    if split not in counts:
        raise BridgeError(f"split: expected one of {sorted(counts)}, got '{split}'")
    if not 0 <= init_state < counts[split]:
        raise BridgeError(
            f"init_state: expected 0 to {counts[split] - 1} for split '{split}', got {init_state}"
        )
