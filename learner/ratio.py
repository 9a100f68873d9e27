"""What gets one probability ratio in PPO's loss: a token, an action or a chunk. Pure functions.

The ratio of several tokens' joint probability is the product of theirs. The levels differ in two
ways. A coarser ratio clips all of a unit's tokens at once, as soon as their product leaves the
bounds, which the same bounds make the earlier the more tokens there are. And the loss is a mean
over units: where all ratios are 1, its gradient is sum(A grad log p) / units, so that all levels
point in one direction and the action's is longer than the token's by the action's dimensions, the
chunk's by the mean executed tokens of a chunk. Adam does not see that length; the gradient's clip
norm does, and so does the critic's loss, a mean over chunks, on the trunk that both share.

Source: RLinf trains OpenVLA with one ratio an action of 7 tokens and OpenVLA-OFT with one a token.

Axes: B chunk samples, K actions of a chunk, A action dimensions.
"""

import numpy as np
from torch import Tensor


def pool_log_ratio(log_ratio_BKA: Tensor, mask_BK: Tensor, level: str) -> tuple[Tensor, Tensor]:
    """Log-ratio of each unit and which units count; actions that were not executed have no part.

    Args:
        mask_BK: 1 where the action was executed as the policy's own, else 0.

    Returns:
        token: [B, K, A] and [B, K, 1]; action: [B, K, 1] twice; chunk: [B, 1, 1] twice.

    Raises:
        ValueError: there is no such level.
    """
    mask_BK1 = mask_BK[:, :, None]
    if level == "token":
        return log_ratio_BKA, mask_BK1
    # A sum over tokens may be so large that its exponential is infinite, which no mask makes 0.
    executed_BKA = log_ratio_BKA.masked_fill(mask_BK1 == 0, 0.0)
    if level == "action":
        return executed_BKA.sum(2, keepdim=True), mask_BK1
    if level == "chunk":
        return executed_BKA.sum((1, 2), keepdim=True), mask_BK1.amax(1, keepdim=True)
    raise ValueError(f"ratio level: expected token, action or chunk, got {level!r}")


def count_units(mask_BK: np.ndarray, dims: int, level: str) -> float:
    """How many units of these chunks count: executed tokens, executed actions or chunks."""
    executed_B = mask_BK.sum(axis=1)
    sizes = {"token": executed_B * dims, "action": executed_B, "chunk": executed_B > 0}
    return float(sizes[level].sum())
