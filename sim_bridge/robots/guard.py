"""Limits on the robot's side, between what the policy asks for and what the robot is told."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from agent.wire.errors import ConfigError
from agent.wire.telemetry import DIM_GROUPS
from sim_bridge.robot import BridgeError
from sim_bridge.robots.config import LimitsConfig


@dataclass(frozen=True, slots=True)
class Limits:
    """All in the robot's own units; an action outside is changed, never refused.

    low_A, high_A: f32[A], of every action. step_A: f32[A], the largest change from one action to
    the next; inf: any. box_low_3, box_high_3: f64[3], m: where the grasp point may be.
    metres_per_unit: how far the first three actions move it; 0: they are no translation.
    """

    low_A: np.ndarray
    high_A: np.ndarray
    step_A: np.ndarray
    box_low_3: np.ndarray
    box_high_3: np.ndarray
    metres_per_unit: float = 0.0

    def __post_init__(self) -> None:
        for name in ("low_A", "high_A", "step_A", "box_low_3", "box_high_3", "metres_per_unit"):
            if np.isnan(getattr(self, name)).any():
                raise BridgeError(f"limits: {name} is not a number")
        if (self.low_A > self.high_A).any():
            raise BridgeError(f"limits: low {self.low_A} above high {self.high_A}")
        if (self.step_A <= 0).any():
            raise BridgeError(f"limits: a largest change of {self.step_A} allows no movement")
        if (self.box_low_3 > self.box_high_3).any():
            raise BridgeError(f"limits: box from {self.box_low_3} to {self.box_high_3} is empty")


def make_limits(config: LimitsConfig, action_dim: int) -> Limits:
    """The limits for actions of `action_dim` numbers. Raises ConfigError for what does not fit."""

    def spread(name: str, values: list[float], size: int, default: float) -> np.ndarray:
        if len(values) not in (0, 1, size):
            raise ConfigError(
                f"limits.{name}: expected 1 or {size} numbers, or none, got {len(values)}"
            )
        return np.full(size, values[0] if len(values) == 1 else values or default)

    has_box = bool(config.box_low_m or config.box_high_m)
    if has_box != (config.metres_per_unit > 0) or (has_box and action_dim < 3):
        raise ConfigError(
            "limits: a box needs box_low_m or box_high_m, metres_per_unit above 0, and 3 actions "
            f"that move the grasp point; got {config.box_low_m}, {config.box_high_m}, "
            f"{config.metres_per_unit:g}, and {action_dim} actions"
        )
    return Limits(
        spread("low", config.low, action_dim, -np.inf),
        spread("high", config.high, action_dim, np.inf),
        spread("step", config.step, action_dim, np.inf),
        spread("box_low_m", config.box_low_m, 3, -np.inf),
        spread("box_high_m", config.box_high_m, 3, np.inf),
        config.metres_per_unit,
    )


def dim_groups(action_dim: int) -> dict[str, slice]:
    """What an action's numbers move: end effector actions are 3 + 3 + 1, any other are one group.

    The names are those of `agent.wire.telemetry.DIM_GROUPS`.
    """
    position, rotation, gripper, other = DIM_GROUPS
    if action_dim != 7:
        return {other: slice(None)}
    return {position: slice(0, 3), rotation: slice(3, 6), gripper: slice(6, 7)}


class Guard:
    """Applies the limits; remembers the last action, from which the next may differ so much."""

    def __init__(self, limits: Limits) -> None:
        self.clamped: Counter[str] = Counter()  # actions that a limit changed, by group
        self._limits = limits
        self._groups = dim_groups(len(limits.low_A))
        self._last_A: np.ndarray | None = None

    def reset(self) -> None:
        """The robot stands still: the first action may be any."""
        self._last_A = None

    def apply(self, action_A: np.ndarray, position_3: np.ndarray) -> tuple[np.ndarray, bool]:
        """The action as it may be executed, f32[A], and whether a limit changed it.

        position_3: of the grasp point, f64[3], m, if there is a box. Raises BridgeError for an
        action or a position that is not finite.
        """
        limits = self._limits
        if action_A.shape != limits.low_A.shape or not np.isfinite(action_A).all():
            raise BridgeError(
                f"action: expected {len(limits.low_A)} finite numbers, got {action_A!r}"
            )
        safe_A = np.clip(action_A, limits.low_A, limits.high_A)
        if self._last_A is not None:
            safe_A = np.clip(safe_A, self._last_A - limits.step_A, self._last_A + limits.step_A)
        if limits.metres_per_unit > 0:
            if not np.isfinite(position_3).all():
                raise BridgeError(f"position: expected finite metres for the box, got {position_3}")
            low_3 = np.minimum(0.0, (limits.box_low_3 - position_3) / limits.metres_per_unit)
            high_3 = np.maximum(0.0, (limits.box_high_3 - position_3) / limits.metres_per_unit)
            safe_A = np.concatenate([np.clip(safe_A[:3], low_3, high_3), safe_A[3:]])
        safe_A = safe_A.astype(np.float32)
        self._last_A = safe_A
        changed_A = safe_A != action_A
        self.clamped.update(name for name, part in self._groups.items() if changed_A[part].any())
        return safe_A, bool(changed_A.any())
