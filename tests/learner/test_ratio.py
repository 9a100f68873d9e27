"""One probability ratio a token, an action or a chunk."""

import math

import numpy as np
import pytest
import torch

from learner.loss import Clip, grpo_loss
from learner.ratio import count_units, pool_log_ratio

CLIP = Clip(0.2, 0.28)
LEVELS = ["token", "action", "chunk"]
RATIOS = torch.tensor([[[1.1, 1.25], [0.9, 0.7], [9.0, 9.0]]], dtype=torch.float64)
MASK = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)  # the third action was not executed


def loss_at(log_ratio, mask, advantages, level):
    """The mean over units, as PPO weighs them; old log-probabilities are 0."""
    weight = 1 / count_units(mask.numpy(), log_ratio.shape[2], level)
    weights = torch.full((len(mask),), weight, dtype=torch.float64)
    zeros = torch.zeros_like(log_ratio)
    return grpo_loss(log_ratio, zeros, zeros, advantages, mask, weights, CLIP, level=level)


@pytest.mark.parametrize(
    ("level", "loss", "clipped", "units", "ratio_max"),
    [
        # 1.1, 1.25, .9 and .7, none above 1.28; a positive advantage is never clipped below
        ("token", -(1.1 + 1.25 + 0.9 + 0.7) / 4, 0.0, 4, 1.25),
        # 1.1 * 1.25 = 1.375, held at 1.28; .9 * .7 = .63
        ("action", -(1.28 + 0.63) / 2, 0.5, 2, 1.375),
        # 1.375 * .63 = .86625
        ("chunk", -0.86625, 0.0, 1, 0.86625),
    ],
)
def test_levels_by_hand(level, loss, clipped, units, ratio_max):
    log_ratio = RATIOS.log().requires_grad_()
    got, sums = loss_at(log_ratio, MASK, torch.ones(1, dtype=torch.float64), level)
    assert got.item() == pytest.approx(loss)
    assert sums.means()["clip_fraction"] == clipped
    assert sums.units == units
    assert sums.means()["ratio_max"] == pytest.approx(ratio_max)
    got.backward()
    # d loss / d log-probability is -ratio of its unit / units; 0 where the unit is clipped.
    expected = {
        "token": [[-1.1 / 4, -1.25 / 4], [-0.9 / 4, -0.7 / 4]],
        "action": [[0.0, 0.0], [-0.63 / 2, -0.63 / 2]],
        "chunk": [[-0.86625] * 2] * 2,
    }[level]
    np.testing.assert_allclose(log_ratio.grad[0, :2], expected)
    assert log_ratio.grad[0, 2].abs().sum() == 0


@pytest.mark.parametrize("level", LEVELS)
def test_kl_and_entropy_are_of_tokens_at_every_level(level):
    log_ratio = RATIOS.log()
    entropy = torch.arange(6, dtype=torch.float64).reshape(1, 3, 2)
    weights, ones = torch.tensor([0.1]), torch.ones(1, dtype=torch.float64)
    zeros = torch.zeros_like(log_ratio)
    _, sums = grpo_loss(log_ratio, zeros, entropy, ones, MASK, weights, CLIP, level=level)
    kl = sum(r - 1 - math.log(r) for r in (1.1, 1.25, 0.9, 0.7)) / 4
    assert sums.means()["approx_kl"] == pytest.approx(kl)
    assert sums.means()["entropy"] == pytest.approx((0 + 1 + 2 + 3) / 4)
    assert sums.tokens == 4


def random_batch(rows, actions, dims, seed=0):
    g = torch.Generator().manual_seed(seed)
    log_ratio = torch.randn(rows, actions, dims, generator=g, dtype=torch.float64) * 0.1
    advantages = torch.randn(rows, generator=g, dtype=torch.float64)
    mask = (torch.rand(rows, actions, generator=g) > 0.3).double()
    mask[:, 0] = 1.0
    return log_ratio, mask, advantages


@pytest.mark.parametrize("level", LEVELS)
def test_gradient_equals_a_finite_difference(level):
    log_ratio, mask, advantages = random_batch(4, 3, 2)
    log_ratio.requires_grad_()
    loss, sums = loss_at(log_ratio, mask, advantages, level)
    loss.backward()
    assert 0 <= sums.clipped < sums.units
    step = 1e-6
    for index in np.ndindex(*log_ratio.shape):
        up, down = log_ratio.detach().clone(), log_ratio.detach().clone()
        up[index] += step
        down[index] -= step
        difference = (
            loss_at(up, mask, advantages, level)[0] - loss_at(down, mask, advantages, level)[0]
        )
        slope = difference.item() / (2 * step)
        assert log_ratio.grad[index].item() == pytest.approx(slope, abs=1e-7)


@pytest.mark.parametrize(("actions", "equal"), [(3, ["token", "action"]), (1, LEVELS)])
def test_with_one_token_a_unit_the_levels_are_one(actions, equal):
    log_ratio, mask, advantages = random_batch(5, actions, 1)
    results = []
    for level in equal:
        leaf = log_ratio.clone().requires_grad_()
        loss, sums = loss_at(leaf, mask, advantages, level)
        loss.backward()
        results.append((loss.item(), leaf.grad.tolist(), sums))
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("level", LEVELS)
def test_at_ratio_one_all_levels_have_one_gradient_up_to_the_tokens_of_a_unit(level):
    log_ratio, mask, advantages = random_batch(6, 4, 7)
    leaf = torch.zeros_like(log_ratio).requires_grad_()
    loss_at(leaf, mask, advantages, level)[0].backward()
    tokens = mask.sum().item() * 7
    units = {"token": tokens, "action": mask.sum().item(), "chunk": 6.0}[level]
    expected = -advantages[:, None, None] * mask[:, :, None] / units
    torch.testing.assert_close(leaf.grad, expected.expand_as(leaf))


@pytest.mark.parametrize("level", LEVELS)
def test_actions_that_were_not_executed_have_no_influence(level):
    log_ratio, mask, advantages = random_batch(4, 5, 7)
    mask[2] = 0.0  # a chunk of which nothing was executed is no unit
    loss, sums = loss_at(log_ratio, mask, advantages, level)
    other = log_ratio.clone()
    other[mask == 0] += 5.0
    loss2, sums2 = loss_at(other, mask, advantages, level)
    assert loss.item() == loss2.item()
    assert sums == sums2
    assert sums.units == count_units(mask.numpy(), 7, level)


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match="'episode'"):
        pool_log_ratio(RATIOS, MASK, "episode")


@pytest.mark.parametrize("level", LEVELS)
def test_a_units_importance_weight_scales_its_loss_once(level):
    log_ratio, mask, advantages = random_batch(3, 4, 2)
    weight_B = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    importance = weight_B[:, None, None].expand_as(log_ratio)
    zeros, ones = torch.zeros_like(log_ratio), torch.ones(3, dtype=torch.float64)
    rest = (log_ratio, zeros, zeros, advantages, mask)
    weighed, _ = grpo_loss(*rest, ones, CLIP, importance, level)
    plain, _ = grpo_loss(*rest, weight_B, CLIP, level=level)
    assert weighed.item() == pytest.approx(plain.item(), rel=1e-12)


@pytest.mark.parametrize("level", ["action", "chunk"])
def test_what_was_not_executed_cannot_make_the_loss_infinite(level):
    log_ratio_BKA = torch.zeros(1, 2, 3)
    log_ratio_BKA[0, 1] = 100.0
    pooled, mask = pool_log_ratio(log_ratio_BKA, torch.tensor([[1.0, 0.0]]), level)
    assert torch.isfinite(pooled.exp() * mask).all()
