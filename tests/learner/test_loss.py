import math

import numpy as np
import pytest
import torch

from learner.loss import Clip, LossSums, grpo_loss, value_loss

CLIP = Clip(0.2, 0.28)


def loss_of(ratio, advantage, weight=1.0, clip=CLIP):
    logprobs = torch.full((1, 1, 1), math.log(ratio), dtype=torch.float64, requires_grad=True)
    zeros = torch.zeros(1, 1, 1, dtype=torch.float64)
    loss, sums = grpo_loss(
        logprobs,
        zeros,
        zeros,
        torch.tensor([advantage]),
        torch.ones(1, 1),
        torch.tensor([weight]),
        clip,
    )
    loss.backward()
    return loss.item(), logprobs.grad.item(), sums.means()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (1.0, 2.0, -2.0, -2.0, 0.0),
        (1.2, 2.0, -2.4, -2.4, 0.0),
        (1.5, 2.0, -2.56, 0.0, 1.0),  # gain is capped at 1.28
        (0.5, 2.0, -1.0, -1.0, 0.0),  # a good action that became rare is still pulled back
        (0.5, -1.0, 0.8, 0.0, 1.0),  # a bad action is pushed down to 0.8 only
        (1.5, -1.0, 1.5, 1.5, 0.0),
        (3.0, 0.0, 0.0, 0.0, 0.0),
    ],
)
def test_clipping_by_hand(ratio, advantage, loss, gradient, clipped):
    got_loss, got_gradient, means = loss_of(ratio, advantage)
    assert got_loss == pytest.approx(loss)
    assert got_gradient == pytest.approx(gradient)
    assert means["clip_fraction"] == clipped
    assert means["ratio_max"] == pytest.approx(ratio)
    assert means["approx_kl"] == pytest.approx(ratio - 1 - math.log(ratio))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (2.9, -1.0, 2.9, 2.9, 0.0),
        (5.0, -1.0, 3.0, 0.0, 1.0),  # a bad action that became far likelier pulls no harder
        (5.0, -2.0, 6.0, 0.0, 1.0),
        (0.5, -1.0, 0.8, 0.0, 1.0),  # as without
        (5.0, 2.0, -2.56, 0.0, 1.0),  # a good one: as without
        (5.0, 0.0, 0.0, 0.0, 0.0),
    ],
)
def test_dual_clipping_by_hand(ratio, advantage, loss, gradient, clipped):
    got_loss, got_gradient, means = loss_of(ratio, advantage, clip=Clip(0.2, 0.28, dual=3.0))
    assert (got_loss, got_gradient) == pytest.approx((loss, gradient))
    assert means["clip_fraction"] == clipped


def test_the_decoupled_objective_by_hand():
    """Two tokens: w = min(pi_prox / pi_acted, 2), r = pi / pi_prox, w * the dually clipped loss."""
    acted, proximal, now = (
        torch.log(torch.tensor([[values]], dtype=torch.float64))
        for values in ([0.1, 0.4], [0.15, 0.1], [0.3, 0.08])
    )
    importance = (proximal - acted).exp().clamp(max=2.0)  # 1.5 and 0.25
    entropy, one = torch.zeros_like(now), torch.ones(1, 1, dtype=torch.float64)
    for advantage, expected in (
        (1.0, -(1.5 * 1.28 + 0.25 * 0.8)),  # ratios 2 and .8
        (-1.0, 1.5 * 1.7 + 0.25 * 0.8),  # 2 is beyond the dual clip of 1.7
    ):
        loss, _ = grpo_loss(
            now, proximal, entropy, torch.tensor([advantage], dtype=torch.float64), one, one[0],
            Clip(0.2, 0.28, dual=1.7), importance,
        )  # fmt: skip
        assert loss.item() == pytest.approx(expected)


def random_batch(rows, seed=0):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    mask = (torch.rand(rows, 5, generator=g) > 0.3).double()
    new, old = normal(rows, 5, 7) * 0.2 - 2, normal(rows, 5, 7) * 0.2 - 2
    return new, old, old.abs(), normal(rows), mask, torch.rand(rows, generator=g).double()


@pytest.mark.parametrize("clip", [CLIP, Clip(0.2, 0.28, dual=1.4)])
def test_gradient_equals_a_finite_difference(clip):
    new, *rest = random_batch(3)
    rest += [clip, torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(2)) * 2]
    new.requires_grad_()
    loss, _ = grpo_loss(new, *rest)
    loss.backward()
    step = 1e-6
    for index in np.ndindex(new.shape):
        up, down = new.detach().clone(), new.detach().clone()
        up[index] += step
        down[index] -= step
        difference = grpo_loss(up, *rest)[0] - grpo_loss(down, *rest)[0]
        assert new.grad[index].item() == pytest.approx(difference.item() / (2 * step), abs=1e-7)


def test_masked_tokens_and_filling_rows_have_no_influence():
    new, old, entropy, advantages, mask, weights = random_batch(4)
    weights[3] = 0
    loss, sums = grpo_loss(new, old, entropy, advantages, mask, weights, CLIP)
    new2, old2 = new.clone(), old.clone()
    new2[mask == 0] += 5.0
    new2[3] -= 4.0
    loss2, sums2 = grpo_loss(new2, old2, entropy, advantages, mask, weights, CLIP)
    assert loss.item() == loss2.item()
    assert sums == sums2
    assert sums.tokens == mask[:3].sum().item() * 7


def test_each_trajectory_weighs_the_same_whatever_its_length():
    """The recipe's mean over [N, T_max, A] of loss * mask * (T_max / L) is this sum."""
    lengths, t_max, dims, advantages = [3, 10], 16, 7, [1.5, -0.5]
    g = torch.Generator().manual_seed(1)
    new = torch.randn(2, t_max, dims, generator=g, dtype=torch.float64) * 0.1
    mask = torch.zeros(2, t_max, dtype=torch.float64)
    for i, length in enumerate(lengths):
        mask[i, :length] = 1
    zeros, a = torch.zeros_like(new), torch.tensor(advantages, dtype=torch.float64)
    weights = torch.tensor([1 / (2 * length * dims) for length in lengths], dtype=torch.float64)
    loss, _ = grpo_loss(new, zeros, zeros, a, mask, weights, CLIP)
    ratio = new.exp()
    plain = torch.maximum(-a[:, None, None] * ratio, -a[:, None, None] * ratio.clamp(0.8, 1.28))
    scale = t_max / torch.tensor(lengths, dtype=torch.float64)
    recipe = (plain * mask[:, :, None] * scale[:, None, None]).mean()
    assert loss.item() == pytest.approx(recipe.item(), rel=1e-12)


def test_sums_of_micro_batches_equal_the_whole_batch():
    batch = random_batch(6)
    whole_loss, whole = grpo_loss(*batch, CLIP)
    total, loss = LossSums(), 0.0
    for part in (slice(0, 2), slice(2, 6)):
        part_loss, sums = grpo_loss(*(x[part] for x in batch), CLIP)
        total.add(sums)
        loss += part_loss.item()
    assert loss == pytest.approx(whole_loss.item())
    for name, value in whole.means().items():
        assert total.means()[name] == pytest.approx(value)


def critic_loss(value, old, target, value_clip=0.2, huber_delta=10.0):
    values = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    rest = (torch.tensor([x], dtype=torch.float64) for x in (old, target, 1.0))
    loss = value_loss(values, *rest, value_clip, huber_delta)
    loss.backward()
    return loss.item(), values.grad.item()


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "gradient"),
    [
        (0.5, 0.5, 1.0, 0.125, -0.5),  # before the first step: half the squared error
        (0.6, 0.5, 1.0, 0.08, -0.4),  # within the clip
        (0.9, 0.5, 1.0, 0.045, 0.0),  # has moved by more than .2 towards the target: held at .7
        (0.1, 0.5, 1.0, 0.405, -0.9),  # has moved away: pulled back
        (0.9, 0.5, 0.6, 0.045, 0.3),  # beyond the target: pulled back
    ],
)
def test_value_clipping_by_hand(value, old, target, loss, gradient):
    assert critic_loss(value, old, target) == pytest.approx((loss, gradient))


def test_huber_is_linear_beyond_its_delta():
    # delta (|e| - delta / 2) = .1 * (.5 - .05)
    assert critic_loss(0.5, 0.5, 1.0, huber_delta=0.1) == pytest.approx((0.045, -0.1))


def test_value_gradient_equals_a_finite_difference():
    g = torch.Generator().manual_seed(0)
    values, old, returns = torch.randn(3, 12, generator=g, dtype=torch.float64)
    weights = torch.rand(12, generator=g, dtype=torch.float64)
    values.requires_grad_()
    settings = (old, returns, weights, 0.2, 0.7)
    value_loss(values, *settings).backward()
    step = 1e-6
    for index in range(12):
        nudge = torch.zeros(12, dtype=torch.float64)
        nudge[index] = step
        up, down = (value_loss(values.detach() + s * nudge, *settings) for s in (1, -1))
        slope = (up - down).item() / (2 * step)
        assert values.grad[index].item() == pytest.approx(slope, abs=1e-7)
