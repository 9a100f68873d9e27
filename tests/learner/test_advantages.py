import numpy as np
import pytest

from learner.advantages import (
    episode_advantages,
    explained_variance,
    generalised_advantages,
    is_degenerate,
    leave_one_out,
    normalise_batch,
    normalise_group,
)

REWARDS = np.array([0.0, 0.5, 0.0, 1.0])
VALUES = np.array([0.3, 0.1, 0.6, 0.8])


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


def test_generalised_advantages_match_a_hand_computed_case():
    # deltas, gamma 1/2: .5 * .4 - .2 = 0, .5 * .8 - .4 = 0, 1 + .5 * 0 - .8 = .2
    # lambda 1/2: A_2 = .2, A_1 = 0 + .25 * .2 = .05, A_0 = 0 + .25 * .05 = .0125
    got = generalised_advantages(
        np.array([0.0, 0.0, 1.0]), np.array([0.2, 0.4, 0.8]), 0.0, gamma=0.5, decay=0.5
    )
    np.testing.assert_allclose(got, [0.0125, 0.05, 0.2])


@pytest.mark.parametrize("value_after", [0.0, 0.7])
def test_generalised_advantages_equal_the_sum_that_defines_them(value_after):
    gamma, decay = 0.9, 0.8
    deltas = REWARDS + gamma * np.append(VALUES[1:], value_after) - VALUES
    for t, got in enumerate(generalised_advantages(REWARDS, VALUES, value_after, gamma, decay)):
        terms = [(gamma * decay) ** k * delta for k, delta in enumerate(deltas[t:])]
        assert got == pytest.approx(sum(terms))


@pytest.mark.parametrize("value_after", [0.0, 0.7])
def test_the_limits_of_lambda_are_monte_carlo_and_one_step(value_after):
    gamma, steps = 0.9, len(REWARDS)
    returns = [
        sum(gamma ** (k - t) * REWARDS[k] for k in range(t, steps))
        + gamma ** (steps - t) * value_after
        for t in range(steps)
    ]
    monte_carlo = generalised_advantages(REWARDS, VALUES, value_after, gamma, decay=1.0)
    np.testing.assert_allclose(monte_carlo + VALUES, returns)
    one_step = generalised_advantages(REWARDS, VALUES, value_after, gamma, decay=0.0)
    np.testing.assert_allclose(
        one_step, REWARDS + gamma * np.append(VALUES[1:], value_after) - VALUES
    )


def test_a_perfect_critic_leaves_no_advantage():
    values = 0.9 ** np.array([2.0, 1.0, 0.0])  # of a success two chunks away
    advantages, known = episode_advantages(values, True, False, gamma=0.9, decay=0.95)
    np.testing.assert_allclose(advantages, 0.0, atol=1e-12)
    assert known == 3


def test_the_end_of_an_episode_is_worth_its_outcome():
    success, _ = episode_advantages(VALUES, True, False, gamma=0.9, decay=0.0)
    failure, _ = episode_advantages(VALUES, False, False, gamma=0.9, decay=0.0)
    np.testing.assert_allclose(success - failure, [0, 0, 0, 1])
    assert failure[-1] == pytest.approx(-VALUES[-1])


def test_an_episode_that_is_cut_off_goes_on_with_its_last_recorded_value():
    advantages, known = episode_advantages(VALUES, False, True, gamma=0.9, decay=0.8)
    assert known == 3
    np.testing.assert_allclose(
        advantages[:3], generalised_advantages(np.zeros(3), VALUES[:3], VALUES[3], 0.9, 0.8)
    )
    assert advantages[3] == 0.0
    # A critic that is right about never-ending episodes without reward but their value: no news.
    steady = 0.5 * 0.9 ** -np.arange(4.0)
    np.testing.assert_allclose(
        episode_advantages(steady, False, True, 0.9, 0.8)[0], 0.0, atol=1e-12
    )


def test_one_chunk_that_is_cut_off_teaches_nothing():
    advantages, known = episode_advantages(np.array([0.4]), False, True, 0.9, 0.8)
    assert (advantages.tolist(), known) == ([0.0], 0)


@pytest.mark.parametrize("values", [VALUES[:2], np.array([0.1, np.nan, 0.2, 0.3])])
def test_values_that_do_not_fit_or_are_not_finite_are_refused(values):
    with pytest.raises(ValueError, match="rewards and values must be"):
        generalised_advantages(REWARDS, values, 0.0, 0.9, 0.9)


def test_a_normalised_batch_has_mean_0_and_deviation_1_and_keeps_its_order():
    advantages = np.random.default_rng(0).normal(3.0, 5.0, 40)
    normalised = normalise_batch(advantages)
    assert abs(normalised.mean()) < 1e-12
    assert normalised.std(ddof=1) == pytest.approx(1.0, abs=1e-6)
    assert (np.argsort(normalised) == np.argsort(advantages)).all()
    assert normalise_batch(np.array([3.0])).tolist() == [0.0]


def test_explained_variance_of_a_perfect_a_constant_and_a_wrong_critic():
    returns = np.array([0.0, 1.0, 1.0, 0.0])
    assert explained_variance(returns + 5.0, returns) == pytest.approx(1.0)
    assert explained_variance(np.full(4, 0.3), returns) == pytest.approx(0.0)
    assert explained_variance(1.0 - returns, returns) == pytest.approx(-3.0)
    assert explained_variance(returns, np.ones(4)) == 0.0
