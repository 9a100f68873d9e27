import numpy as np
import pytest

from learner.advantages import is_degenerate, leave_one_out, normalise_group


def test_normalise_group_matches_a_hand_computed_case():
    # mean 1/4, unbiased variance (3 * 1/16 + 9/16) / 3 = 1/4, std 1/2
    advantages = normalise_group(np.array([1.0, 0.0, 0.0, 0.0]))
    np.testing.assert_allclose(advantages, np.array([0.75, -0.25, -0.25, -0.25]) / (0.5 + 1e-6))


@pytest.mark.parametrize("scale", [0.5, 5.0])
def test_normalised_advantages_do_not_depend_on_the_reward_scale(scale):
    rewards = np.array([1.0, 0, 1, 1, 0, 0, 0, 1])
    np.testing.assert_allclose(
        normalise_group(rewards * scale), normalise_group(rewards), rtol=1e-5
    )


@pytest.mark.parametrize("advantages", [normalise_group, leave_one_out])
def test_advantages_sum_to_zero_and_vanish_in_a_degenerate_group(advantages):
    rng = np.random.default_rng(0)
    assert abs(advantages(rng.random(8)).sum()) < 1e-9
    assert is_degenerate(np.ones(8))
    np.testing.assert_array_equal(advantages(np.ones(8)), np.zeros(8))
    assert not is_degenerate(np.array([0.0, 0, 1]))


def test_leave_one_out_baseline_does_not_move_with_its_own_reward():
    rewards = np.array([0.3, 0.9, 0.1, 0.5])
    changed = rewards.copy()
    changed[2] += 7.0
    assert leave_one_out(changed)[2] - leave_one_out(rewards)[2] == pytest.approx(7.0)
    assert leave_one_out(np.array([1.0, 0.0, 0.0]))[0] == pytest.approx(1.0)
    assert leave_one_out(np.array([1.0, 0.0, 0.0]))[1] == pytest.approx(-0.5)


@pytest.mark.parametrize("rewards", [[1.0], [[1.0, 0.0]], [1.0, np.nan]])
def test_bad_rewards_are_refused(rewards):
    with pytest.raises(ValueError, match="rewards"):
        normalise_group(np.array(rewards))
