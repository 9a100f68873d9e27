"""Advantages from the outcomes of a group, or from a critic's values. Pure functions.

Where groups and values come from is not their business. Axes: G members of a group, T chunks of an
episode, B chunk samples.
"""

import numpy as np

STD_EPSILON = 1e-6


def is_degenerate(rewards_G: np.ndarray) -> bool:
    """Whether all rewards of a group are equal: its advantages are zero and it teaches nothing."""
    return bool((rewards_G == rewards_G[0]).all())


def normalise_group(rewards_G: np.ndarray) -> np.ndarray:
    """(reward - mean) / (std + 1e-6) with the unbiased std, f64[G].

    Source: GRPO (Shao et al. 2024, eq. 3) as the continual-RL recipe computes it. The 1e-6
    guards the division; a degenerate group comes out as exact zeros.

    Raises:
        ValueError: fewer than two rewards, or one that is not finite.
    """
    rewards_G = _checked(rewards_G)
    return (rewards_G - rewards_G.mean()) / (rewards_G.std(ddof=1) + STD_EPSILON)


def leave_one_out(rewards_G: np.ndarray) -> np.ndarray:
    """reward_i - mean of the others, f64[G].

    Source: RLOO (Kool et al. 2019; Ahmadian et al. 2024). The baseline does not depend on the
    trajectory it is subtracted from, so the estimate is unbiased even when the members of a
    group differ in their start state, as a robot's do.

    Raises:
        ValueError: fewer than two rewards, or one that is not finite.
    """
    rewards_G = _checked(rewards_G)
    others_G = (rewards_G.sum() - rewards_G) / (len(rewards_G) - 1)
    return rewards_G - others_G


def generalised_advantages(
    rewards_T: np.ndarray, values_T: np.ndarray, value_after: float, gamma: float, decay: float
) -> np.ndarray:
    """A_t = sum over l of (gamma lambda)^l delta_{t+l}, f64[T].

    delta_t = r_t + gamma V_{t+1} - V_t, V_T = `value_after`. Lambda 1 is the discounted return
    minus V_t, lambda 0 the one-step TD error. A_t + V_t is the lambda-return, the critic's target.

    Source: GAE (Schulman et al. 2016, eq. 16), computed backwards.

    Args:
        rewards_T: r_t came of what was done after observation t.
        value_after: 0 if the episode ended; where it was cut off, the value of the observation
            after the T-th step.
        decay: lambda.

    Raises:
        ValueError: the shapes differ, or a number is not finite.
    """
    if rewards_T.shape != values_T.shape or rewards_T.ndim != 1:
        raise ValueError(
            f"rewards and values must be equal vectors, got {rewards_T.shape}, {values_T.shape}"
        )
    numbers = np.array([*rewards_T, *values_T, value_after], dtype=np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError(f"rewards and values must be finite, got {rewards_T}, {values_T}")
    advantages_T = np.zeros(len(rewards_T), dtype=np.float64)
    advantage, next_value = 0.0, float(value_after)
    for step in reversed(range(len(rewards_T))):
        delta = float(rewards_T[step]) + gamma * next_value - float(values_T[step])
        advantage = delta + gamma * decay * advantage
        advantages_T[step], next_value = advantage, float(values_T[step])
    return advantages_T


def episode_advantages(
    values_T: np.ndarray,
    success: bool,
    cut_off: bool,
    gamma: float,
    decay: float,
) -> tuple[np.ndarray, int]:
    """Advantages of an episode's chunks, f64[T], and how many of its chunks, from the first, count.

    The reward is 1 with the last chunk of a success, else 0. Of an episode that is `cut_off` the
    observation after its last chunk is not recorded. It therefore counts as one that ends where its
    last chunk begins, with that observation's value for all that follows: exact, at the price of
    one chunk, whose own advantage nobody knows and which comes out as 0.
    """
    rewards_T = np.zeros(len(values_T))
    if not cut_off:
        rewards_T[-1] = float(success)
        return generalised_advantages(rewards_T, values_T, 0.0, gamma, decay), len(values_T)
    known = generalised_advantages(rewards_T[:-1], values_T[:-1], float(values_T[-1]), gamma, decay)
    return np.append(known, 0.0), len(known)


def normalise_batch(advantages_B: np.ndarray) -> np.ndarray:
    """(advantage - mean) / (std + 1e-6) over a whole batch, unbiased std, f64[B].

    Source: PPO as commonly run (Engstrom et al. 2020; RLinf's `normalize_advantages`). Fewer than
    two have no spread and come out as zeros.
    """
    advantages_B = np.asarray(advantages_B, dtype=np.float64)
    if len(advantages_B) < 2:
        return np.zeros_like(advantages_B)
    return (advantages_B - advantages_B.mean()) / (advantages_B.std(ddof=1) + STD_EPSILON)


def explained_variance(values_B: np.ndarray, returns_B: np.ndarray) -> float:
    """1 - Var(return - value) / Var(return): 1 is a perfect critic, 0 one that knows the mean.

    Negative values are worse than a constant. Returns that do not vary count as 0.
    """
    spread = float(np.var(returns_B)) if len(returns_B) else 0.0
    return 1.0 - float(np.var(returns_B - values_B)) / spread if spread > 0 else 0.0


def _checked(rewards_G: np.ndarray) -> np.ndarray:
    rewards_G = np.asarray(rewards_G, dtype=np.float64)
    if rewards_G.ndim != 1 or len(rewards_G) < 2:
        raise ValueError(f"a group needs at least 2 rewards in a vector, got {rewards_G.shape}")
    if not np.isfinite(rewards_G).all():
        raise ValueError(f"rewards must be finite, got {rewards_G}")
    return rewards_G
