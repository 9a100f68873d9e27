"""Group-relative advantages. Pure functions; where the groups come from is not their business."""

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


def _checked(rewards_G: np.ndarray) -> np.ndarray:
    rewards_G = np.asarray(rewards_G, dtype=np.float64)
    if rewards_G.ndim != 1 or len(rewards_G) < 2:
        raise ValueError(f"a group needs at least 2 rewards in a vector, got {rewards_G.shape}")
    if not np.isfinite(rewards_G).all():
        raise ValueError(f"rewards must be finite, got {rewards_G}")
    return rewards_G
