import math

import numpy as np
import pytest
import torch

from learner.preference import pair_outcomes, preference_loss


def loss_and_slopes(margins, beta):
    margins_P = torch.tensor(margins, dtype=torch.float64, requires_grad=True)
    loss = preference_loss(margins_P, beta)
    loss.backward()
    return loss.item(), margins_P.grad.tolist()


@pytest.mark.parametrize(
    ("outcomes", "pairs"),
    [
        ([1, 0, 0, 1], [(0, 1), (3, 2)]),
        ([0, 0, 1, 0, 1, 1], [(2, 0), (4, 1), (5, 3)]),
        ([1, 1, 1, 0], [(0, 3)]),  # the surplus is in no pair
        ([0, 0, 1, 0], [(2, 0)]),
        ([1, 1, 1], []),
        ([0, 0], []),
    ],
)
def test_the_ith_success_is_compared_with_the_ith_failure(outcomes, pairs):
    assert pair_outcomes(np.array(outcomes, dtype=bool)) == pairs


def test_the_loss_by_hand():
    # sigmoid(.5 * 2 ln 3) = 3 / 4, and of the opposite 1 / 4
    margin = 2 * math.log(3)
    loss, slopes = loss_and_slopes([margin, -margin], beta=0.5)
    assert loss == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    # -beta sigmoid(-beta margin) / P
    assert slopes == pytest.approx([-0.5 * 0.25 / 2, -0.5 * 0.75 / 2])


@pytest.mark.parametrize("beta", [0.01, 0.1, 3.0])
def test_where_margins_begin_every_pair_pulls_alike(beta):
    loss, slopes = loss_and_slopes([0.0, 0.0, 0.0], beta)
    assert loss == pytest.approx(math.log(2))
    assert slopes == pytest.approx([-beta / 6] * 3)


def test_the_slope_equals_a_finite_difference():
    margins, step = [-30.0, -1.0, 0.3, 12.0], 1e-5
    _, slopes = loss_and_slopes(margins, beta=0.2)
    for index, slope in enumerate(slopes):
        nudge = step * np.eye(4)[index]
        up, down = (loss_and_slopes(list(margins + s * nudge), 0.2)[0] for s in (1, -1))
        assert (up - down) / (2 * step) == pytest.approx(slope, abs=1e-9)


def test_far_margins_stay_finite_and_only_the_wrong_ones_pull():
    loss, slopes = loss_and_slopes([1e6, -1e6], beta=0.1)
    assert loss == pytest.approx(1e5 / 2)
    assert slopes == pytest.approx([0.0, -0.1 / 2])
