"""No action leaves the guard that a limit forbids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from agent.wire.errors import ConfigError
from sim_bridge.robot import BridgeError
from sim_bridge.robots.config import LimitsConfig
from sim_bridge.robots.guard import Guard, Limits
from sim_bridge.robots.guard import make_limits as limits_of

A = 7
ANY_A = arrays(np.float32, A, elements=st.floats(-10, 10, width=32))
ANYWHERE = arrays(np.float64, 3, elements=st.floats(-1, 1))


def make_limits(**changed: object) -> Limits:
    values: dict[str, object] = {
        "low_A": np.full(A, -1.0, np.float32),
        "high_A": np.full(A, 1.0, np.float32),
        "step_A": np.full(A, 0.25, np.float32),
        "box_low_3": np.array([-0.3, -0.3, 0.0]),
        "box_high_3": np.array([0.3, 0.3, 0.5]),
        "metres_per_unit": 0.05,
    }
    return Limits(**{**values, **changed})  # type: ignore[arg-type]


@given(st.lists(st.tuples(ANY_A, ANYWHERE), min_size=1, max_size=10))
def test_whatever_is_asked_for_every_limit_is_kept(asked: list[tuple]) -> None:
    limits = make_limits()
    guard = Guard(limits)
    last_A = None
    for action_A, position_3 in asked:
        safe_A, limited = guard.apply(action_A, position_3)
        assert limited == (not np.array_equal(safe_A, action_A))
        assert (safe_A >= limits.low_A).all()
        assert (safe_A <= limits.high_A).all()
        if last_A is not None:
            # Into the box's wall the hand may stop at once.
            slower = np.abs(safe_A) <= np.abs(last_A) + 0.25 + 1e-6
            assert slower[:3].all()
            assert (np.abs(safe_A - last_A)[3:] <= 0.25 + 1e-6).all()
        reached_3 = position_3 + 0.05 * safe_A[:3]
        was_out = np.maximum(limits.box_low_3 - position_3, position_3 - limits.box_high_3)
        is_out = np.maximum(limits.box_low_3 - reached_3, reached_3 - limits.box_high_3)
        assert (is_out <= np.maximum(was_out, 0.0) + 1e-6).all(), "no further out than it was"
        last_A = safe_A


def test_an_action_within_all_limits_is_left_alone_and_a_nan_is_none() -> None:
    guard = Guard(make_limits())
    action_A = np.full(A, 0.5, np.float32)
    safe_A, limited = guard.apply(action_A, np.zeros(3) + 0.1)
    assert not limited
    np.testing.assert_array_equal(safe_A, action_A)
    with pytest.raises(BridgeError, match="finite"):
        guard.apply(np.full(A, np.nan, np.float32), np.zeros(3))
    with pytest.raises(BridgeError, match="largest change"):
        make_limits(step_A=np.zeros(A, np.float32))


def test_clamped_actions_are_counted_by_what_they_move() -> None:
    guard = Guard(make_limits(step_A=np.full(A, np.inf, np.float32)))
    for asked_A in ([0, 0, 2, 0, 0, 0, 0], [3, 2, 2, 0, 0, -2, 0], [0, 0, 0, 0, 0, 0, 0.5]):
        guard.apply(np.array(asked_A, np.float32), np.zeros(3) + 0.1)
    assert guard.clamped == {"position": 2, "rotation": 1}
    joints = Guard(make_limits(low_A=-np.ones(6), high_A=np.ones(6), step_A=np.ones(6)))
    joints.apply(np.full(6, 1.5, np.float32), np.zeros(3) + 0.1)
    assert joints.clamped == {"other": 1}


@pytest.mark.parametrize(
    ("config", "action_dim"),
    [
        (LimitsConfig(box_low_m=[0.0]), 7),
        (LimitsConfig(box_high_m=[0.5], metres_per_unit=-0.05), 7),
        (LimitsConfig(box_high_m=[0.5], metres_per_unit=float("nan")), 7),
        (LimitsConfig(metres_per_unit=0.05), 7),
        (LimitsConfig(box_high_m=[0.5], metres_per_unit=0.05), 2),
    ],
)
def test_a_box_that_would_not_be_kept_is_refused(config: LimitsConfig, action_dim: int) -> None:
    with pytest.raises(ConfigError, match="a box needs"):
        limits_of(config, action_dim)


@pytest.mark.parametrize("name", ["low", "high", "step"])
def test_a_limit_that_is_no_number_is_refused(name: str) -> None:
    with pytest.raises(BridgeError, match=f"{name}_A is not a number"):
        limits_of(LimitsConfig(**{name: [float("nan")]}), 7)
