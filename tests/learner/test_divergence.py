"""KL from a recorded distribution, by hand, by integration and where nothing moved."""

import math

import pytest
import torch

from agent.model.distributions import LaplaceDistribution, TokenDistribution
from learner.divergence import divergence, record_distribution


def tokens(*logits, temperature=1.0):
    return TokenDistribution(torch.tensor(logits).reshape(1, 1, 1, -1), temperature)


def laplace(mean, scale, temperature=1.0):
    return LaplaceDistribution(torch.full((1, 1, 1), mean), torch.tensor([scale]), temperature)


def test_of_two_tokens_by_hand_at_the_temperature_of_each():
    # At temperature 2 odds of 9 become 3: (3/4, 1/4); odds of 1 stay.
    old = tokens(math.log(9.0), 0.0, temperature=2.0)
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    found = divergence(record_distribution(old), tokens(1.0, 1.0, temperature=2.0))
    assert found.shape == (1, 1, 1)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_of_two_laplace_densities_by_integration():
    old, new = laplace(0.3, 0.2, temperature=1.5), laplace(-0.1, 0.5)
    x = torch.linspace(-12, 12, 2_400_001, dtype=torch.float64).reshape(-1, 1, 1)
    gap = old.logprobs(x) - new.logprobs(x)
    expected = (old.logprobs(x).exp() * gap).sum().item() * 1e-5
    assert divergence(record_distribution(old), new).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("make", [lambda: tokens(0.3, -1.0, 2.0), lambda: laplace(0.2, 0.4)])
def test_of_what_did_not_move_is_zero(make):
    assert divergence(record_distribution(make()), make()).item() == pytest.approx(0, abs=1e-7)


def test_its_gradient_equals_a_finite_difference():
    logits = torch.randn(2, 1, 3, 5, generator=torch.Generator().manual_seed(0)).double()
    old = record_distribution(TokenDistribution(logits.flip(0), 1.6)).double()

    def loss(x):
        if x.dim() == 4:  # float32 inside: the rounding is that of its 7 digits
            return divergence(old, TokenDistribution(x, 1.6)).sum()
        recorded = torch.stack([torch.zeros_like(x), torch.full_like(x, 0.7)], -1).detach()
        return divergence(
            recorded, LaplaceDistribution(x, torch.tensor([0.2, 0.3, 0.5]), 1.6)
        ).sum()

    for x in (logits.detach().requires_grad_(), logits[..., 0].detach().requires_grad_()):
        (slope,) = torch.autograd.grad(loss(x), x)
        step = 1e-2 * torch.sign(slope)
        with torch.no_grad():
            found = (loss(x + step) - loss(x - step)).item() / 0.02
        assert found == pytest.approx(slope.abs().sum().item(), rel=2e-3)
