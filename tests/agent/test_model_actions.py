import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from agent.model.actions import (
    ActionCodec,
    NormBounds,
    decode_tokens,
    encode_actions,
    gripper_to_dataset,
    gripper_to_env,
    normalise_proprio,
)

BINS = st.integers(min_value=3, max_value=300)
UNIT = hnp.arrays(np.float64, 7, elements=st.floats(-1.5, 1.5))
BOUNDS = NormBounds(
    low=np.array([-0.75, -0.66, -0.94, -0.11, -0.2, -0.18, 0.0]),
    high=np.array([0.94, 0.88, 0.93, 0.1, 0.18, 0.15, 1.0]),
    mask=np.array([True] * 6 + [False]),
)


@given(UNIT, BINS)
def test_decoding_an_encoded_action_lands_within_half_a_bin(
    actions: np.ndarray, n_bins: int
) -> None:
    tokens = encode_actions(actions, n_bins)
    assert tokens.min() >= 0
    assert tokens.max() < n_bins
    error = np.abs(decode_tokens(tokens, n_bins) - np.clip(actions, -1, 1))
    assert error.max() <= 1.0 / (n_bins - 1) + 1e-12


@given(BINS)
def test_tokens_survive_a_round_trip_except_the_lowest(n_bins: int) -> None:
    tokens = np.arange(n_bins)
    back = encode_actions(decode_tokens(tokens, n_bins), n_bins)
    np.testing.assert_array_equal(back, np.maximum(tokens, 1))


@given(UNIT, BINS)
def test_higher_actions_get_lower_tokens(actions: np.ndarray, n_bins: int) -> None:
    tokens = encode_actions(np.sort(actions), n_bins)
    assert (np.diff(tokens) <= 0).all()


@given(UNIT)
def test_normalise_inverts_unnormalise(actions: np.ndarray) -> None:
    there = BOUNDS.unnormalise(actions)
    np.testing.assert_allclose(BOUNDS.normalise(there), actions, atol=1e-12)
    assert there[-1] == actions[-1]


def test_bounds_map_to_the_ends() -> None:
    np.testing.assert_allclose(BOUNDS.normalise(BOUNDS.low)[:6], -1, atol=1e-6)
    np.testing.assert_allclose(BOUNDS.normalise(BOUNDS.high)[:6], 1, atol=1e-6)


def test_gripper_conventions() -> None:
    dataset = np.array([1.0, 0.0, 0.9, 0.1])
    np.testing.assert_array_equal(gripper_to_env(dataset, "libero"), [-1, 1, -1, 1])
    np.testing.assert_array_equal(gripper_to_env(dataset, "simpler"), [1, -1, 1, -1])
    np.testing.assert_array_equal(gripper_to_env(dataset, "continuous"), dataset)
    np.testing.assert_array_equal(gripper_to_dataset(np.array([-1.0, 1.0]), "libero"), [1, 0])
    np.testing.assert_array_equal(gripper_to_dataset(np.array([-1.0, 1.0]), "simpler"), [0, 1])
    np.testing.assert_array_equal(gripper_to_dataset(dataset, "continuous"), dataset)


@given(UNIT, st.sampled_from([-1.0, 1.0]), st.sampled_from(["libero", "simpler"]))
def test_env_actions_round_trip_within_bin_width(
    unit: np.ndarray, gripper: float, convention: str
) -> None:
    codec = ActionCodec(BOUNDS, 256, convention)
    actions = BOUNDS.unnormalise(np.clip(unit, -1, 1))
    actions[-1] = gripper
    back = codec.to_env(codec.to_tokens(actions))
    width = (BOUNDS.high - BOUNDS.low) / 255
    assert (np.abs(back - actions)[:6] <= 0.5 * width[:6] + 1e-9).all()
    assert back[-1] == gripper


def test_proprio_is_clipped_float32() -> None:
    bounds = NormBounds(np.zeros(2), np.ones(2), np.ones(2, dtype=bool))
    values = normalise_proprio(np.array([[-3.0, 0.5], [2.0, 1.0]]), bounds)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, [[-1, 0], [1, 1]], atol=1e-6)


def test_unnorm_key_falls_back_and_errors_name_the_choices() -> None:
    stats = {"spatial_no_noops": {"action": {"q01": [0.0], "q99": [1.0]}}}
    assert NormBounds.from_stats(stats, "spatial").mask.tolist() == [True]
    with pytest.raises(KeyError, match="spatial_no_noops"):
        NormBounds.from_stats(stats, "object")
    with pytest.raises(KeyError, match="proprio"):
        NormBounds.from_stats(stats, "spatial", "proprio")
    with pytest.raises(ValueError, match="finite"):
        NormBounds(np.array([np.nan]), np.ones(1), np.ones(1, dtype=bool))


@given(UNIT, st.sampled_from([-1.0, 1.0]), st.booleans())
def test_normalised_actions_round_trip_exactly(
    unit: np.ndarray, gripper: float, continuous: bool
) -> None:
    codec = ActionCodec(BOUNDS, 256, "continuous" if continuous else "libero")
    actions = BOUNDS.unnormalise(unit)
    actions[-1] = unit[-1] if continuous else gripper
    back = codec.to_env(codec.to_normalised(actions))
    np.testing.assert_allclose(back, actions, atol=1e-12)


def test_minimum_and_maximum_serve_as_bounds() -> None:
    stats = {"aloha": {"action": {"min": [-2.0], "max": [4.0], "q01": [0.0], "q99": [1.0]}}}
    bounds = NormBounds.from_stats(stats, "aloha", kind="minmax", epsilon=0.0)
    np.testing.assert_array_equal(
        bounds.unnormalise(np.array([[-1.0], [0.0], [1.0]])), [[-2], [1], [4]]
    )
    with pytest.raises(KeyError, match=r"lacks \('min', 'max'\)"):
        NormBounds.from_stats({"a": {"action": {"q01": [0.0], "q99": [1.0]}}}, "a", kind="minmax")
