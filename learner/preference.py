"""Preferences between trajectories: who is compared with whom, and DPO's loss. Pure functions.

Axes: G members of a group, P pairs.
"""

import numpy as np
import torch.nn.functional as F
from torch import Tensor


def pair_outcomes(succeeded_G: np.ndarray) -> list[tuple[int, int]]:
    """(success, failure) member indices: the i-th success with the i-th failure, in slot order.

    A member is in one pair at most: the surplus of the commoner outcome is in none, and a group of
    one outcome has no pair. The slots of a group differ in their noise alone, so that slot order
    prefers nobody.
    """
    wins, losses = np.flatnonzero(succeeded_G), np.flatnonzero(~succeeded_G)
    return [(int(win), int(loss)) for win, loss in zip(wins, losses, strict=False)]


def preference_loss(margins_P: Tensor, beta: float) -> Tensor:
    """Mean over pairs of -log sigmoid(beta * margin).

    margin = [log pi(w) - log ref(w)] - [log pi(l) - log ref(l)], where log pi of a trajectory is
    the sum over its executed tokens: the world's own probabilities are in pi and ref alike and
    cancel. It is a sum, not a mean: that is what a trajectory's log-likelihood is, and what makes
    beta log(pi / ref) a reward. A long failure therefore has more nats to lose than a short success
    has to gain, and a pair whose margin is far beyond 1 / beta has no gradient left.

    Source: DPO (Rafailov et al. 2023, eq. 7) over whole trajectories, as the trajectory-wise
    preference optimisation of GRAPE (Zhang et al. 2024) has it.

    Args:
        margins_P: [nats], not empty.
        beta: > 0; how much of a margin is enough, and how dear it is to leave the reference.
    """
    return -F.logsigmoid(beta * margins_P).mean()
