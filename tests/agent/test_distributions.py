"""The policies' distributions against torch's own, finite differences and their own draws."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from closeness import assert_near
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import random_inputs, tiny_config, tiny_model
from torch import Tensor

from agent.model.action_scale import (
    FILE_NAME,
    LARGEST,
    SMALLEST,
    initial_scale,
    read_scale,
    write_scale,
)
from agent.model.config import OpenVLAConfig
from agent.model.distributions import (
    LaplaceDistribution,
    TokenDistribution,
    action_distribution,
)
from agent.model.lora import AdapterError
from agent.model.openvla import ActionOutput, OpenVLA
from agent.model.sampling import gumbel_noise, laplace_noise

B, K, A, V = 3, 4, 7, 16
DRAWS = 40_000
# Scales and temperatures that a policy may meet, up to the largest that a file may hold.
scales = st.floats(1e-4, 2.0)
temperatures = st.floats(0.05, 5.0)
seeds = st.integers(0, 2**32 - 1)


def random_tensor(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make_laplace(seed: int, temperature: float) -> tuple[LaplaceDistribution, Tensor]:
    """float64 and the per-dimension scale."""
    scale_A = torch.logspace(-4, 0.3, A, dtype=torch.float64)
    means = random_tensor(B, K, A, seed=seed, dtype=torch.float64)
    return LaplaceDistribution(means, scale_A, temperature), scale_A


@given(seeds, temperatures)
@settings(max_examples=30, deadline=None)
def test_laplace_agrees_with_torch(seed: int, temperature: float) -> None:
    policy, scale_A = make_laplace(seed, temperature)
    reference = torch.distributions.Laplace(policy.means_BKA, scale_A * temperature)
    choices = policy.means_BKA + random_tensor(B, K, A, seed=seed ^ 1, dtype=torch.float64)
    torch.testing.assert_close(policy.logprobs(choices), reference.log_prob(choices))
    torch.testing.assert_close(policy.entropy(), reference.entropy())
    assert policy.noise_shape == (B, K, A)


@given(scales, temperatures, st.floats(-3.0, 3.0))
@settings(max_examples=50, deadline=None)
def test_laplace_density_is_the_slope_of_its_own_distribution_function(
    scale: float, temperature: float, distance: float
) -> None:
    # Independent of any closed form in torch: probability of a small interval, from the CDF.
    spread = scale * temperature
    policy = LaplaceDistribution(
        torch.zeros(1, 1, 1, dtype=torch.float64),
        torch.tensor([scale], dtype=torch.float64),
        temperature,
    )
    middle, half = distance * spread, 1e-6 * spread
    if abs(distance) < 1e-3:
        return  # the kink

    def below(x: float) -> float:
        return 0.5 * math.exp(x / spread) if x < 0 else 1.0 - 0.5 * math.exp(-x / spread)

    density = (below(middle + half) - below(middle - half)) / (2 * half)
    found = policy.logprobs(torch.full((1, 1, 1), middle, dtype=torch.float64)).exp()
    assert float(found) == pytest.approx(density, rel=1e-4)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.6])
def test_laplace_gradients_by_finite_differences(temperature: float) -> None:
    policy, scale_A = make_laplace(0, temperature)
    noise = random_tensor(B, K, A, seed=1, dtype=torch.float64)
    choices = policy.sample(noise + noise.sign())  # no choice on the kink at the mean

    def logprobs(means: Tensor, log_scale: Tensor) -> Tensor:
        return LaplaceDistribution(means, log_scale.exp(), temperature).logprobs(choices)

    def entropy(means: Tensor, log_scale: Tensor) -> Tensor:
        return LaplaceDistribution(means, log_scale.exp(), temperature).entropy()

    inputs = (policy.means_BKA.clone().requires_grad_(), scale_A.log().requires_grad_())
    assert torch.autograd.gradcheck(logprobs, inputs, eps=1e-7, rtol=1e-4)
    assert torch.autograd.gradcheck(entropy, inputs)
    # Away from the mean the density falls by 1 / scale a unit, whatever the distance.
    (slope,) = torch.autograd.grad(logprobs(*inputs).sum(), inputs[0])
    away = (choices - policy.means_BKA).sign()
    torch.testing.assert_close(slope, away.detach() / (scale_A * temperature))


def test_laplace_draws_follow_the_distribution() -> None:
    noise = torch.from_numpy(laplace_noise(3, 1, 4, (DRAWS, 1, 2))).double()
    means = torch.tensor([0.2, -0.4], dtype=torch.float64).expand(DRAWS, 1, 2)
    policy = LaplaceDistribution(means, torch.tensor([0.05, 0.3], dtype=torch.float64), 1.6)
    drawn = policy.sample(noise)
    reference = torch.distributions.Laplace(means[0, 0], policy.scale_A * 1.6)
    spread = policy.scale_A * 1.6
    # Standard errors: 1.41 of the mean, 2.24 of the variance, 1 of the absolute deviation.
    error = 5.0 / math.sqrt(DRAWS)
    centred = (drawn - means)[:, 0] / spread
    assert (centred.mean(0).abs() < 1.42 * error).all()
    assert ((centred.square().mean(0) / 2 - 1).abs() < 2.24 * error).all()
    assert ((centred.abs().mean(0) - 1).abs() < error).all()
    # Kolmogorov-Smirnov: the largest gap between the empirical and the true distribution.
    ranks = torch.arange(1, DRAWS + 1, dtype=torch.float64)[:, None] / DRAWS
    gap = (reference.cdf(drawn[:, 0].sort(dim=0).values) - ranks).abs().amax(0)
    assert (gap < 2.0 / math.sqrt(DRAWS)).all()
    # The entropy is the mean surprise of its own draws.
    surprise = -policy.logprobs(drawn).mean(0)
    torch.testing.assert_close(surprise, policy.entropy()[0], atol=float(error), rtol=0)


def test_laplace_at_temperature_zero_is_its_mean() -> None:
    policy, scale_A = make_laplace(0, 0.0)
    assert torch.equal(policy.sample(None), policy.means_BKA)
    tempered = LaplaceDistribution(policy.means_BKA, scale_A, 1.0)
    assert torch.equal(policy.logprobs(policy.means_BKA), tempered.logprobs(policy.means_BKA))
    with pytest.raises(ValueError, match=r"temperature 1\.0 needs noise"):
        tempered.sample(None)
    with pytest.raises(ValueError, match="temperature must be >= 0"):
        LaplaceDistribution(policy.means_BKA, scale_A, -1.0)


@torch.no_grad()
def test_the_greedy_regressing_policy_is_its_head() -> None:
    values = {**tiny_config().to_dict(), "variant": "oft-l1"}
    model = OpenVLA(OpenVLAConfig.from_dict(values)).eval()
    output = model(*random_inputs(model.config, 2))
    policy = action_distribution(output, 0.0, initial_scale(model.config))
    assert isinstance(policy, LaplaceDistribution)
    head = model.action_head.model
    for step in range(model.config.chunk_size):
        rows = output.hidden_BKAH[:, step].flatten(1)
        expected = head.fc2(
            head.layer_norm2(
                head.mlp_resnet_blocks[1](
                    head.mlp_resnet_blocks[0](torch.relu(head.fc1(head.layer_norm1(rows))))
                )
            )
        )
        assert_near(policy.sample(None)[:, step], expected)


@given(seeds, temperatures)
@settings(max_examples=30, deadline=None)
def test_tokens_agree_with_torch(seed: int, temperature: float) -> None:
    logits = 3.0 * random_tensor(B, K, A, V, seed=seed)
    policy = TokenDistribution(logits, temperature)
    reference = torch.distributions.Categorical(logits=logits.double() / temperature)
    tokens = reference.sample()
    for found, expected in (
        (policy.logprobs(tokens), reference.log_prob(tokens)),
        (policy.entropy(), reference.entropy()),
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)


def test_token_gradients_by_finite_differences() -> None:
    # The scores are computed in float32 at least: steps are wide, the bound accordingly.
    tokens = torch.tensor([[[2, 0]]])
    logits = random_tensor(1, 1, 2, 5, seed=0).requires_grad_()
    TokenDistribution(logits, 1.6).logprobs(tokens).sum().backward()
    found, step = logits.grad, 1e-2
    base = logits.detach()
    slopes = torch.zeros_like(base)
    for index in np.ndindex(*base.shape):
        change = torch.zeros_like(base)
        change[index] = step
        up, down = (
            TokenDistribution(base + sign * change, 1.6).logprobs(tokens).sum() for sign in (1, -1)
        )
        slopes[index] = float(up - down) / (2 * step)
    assert_near(found, slopes, share=1e-3)


def test_token_draws_follow_the_distribution() -> None:
    logits = random_tensor(1, 1, 1, V, seed=4)
    noise = torch.from_numpy(gumbel_noise(3, 1, 4, (DRAWS, 1, 1, V)))
    drawn = TokenDistribution(logits.expand(DRAWS, 1, 1, V), 1.6).sample(noise)
    counts = torch.bincount(drawn.flatten(), minlength=V).double()
    expected = DRAWS * torch.softmax(logits.flatten().double() / 1.6, dim=0)
    # Chi squared with 15 degrees of freedom exceeds 44.3 once in ten thousand.
    assert float(((counts - expected).square() / expected).sum()) < 44.3
    greedy = TokenDistribution(logits, 0.0)
    assert int(greedy.sample(None)) == int(logits.argmax())


def test_the_output_decides_the_distribution() -> None:
    output = tiny_model()(*random_inputs(tiny_config(), 1))
    assert isinstance(action_distribution(output, 1.0), TokenDistribution)
    means = ActionOutput(None, torch.zeros(1, 2, 7), output.hidden_BKAH)
    assert isinstance(action_distribution(means, 1.0, torch.ones(7)), LaplaceDistribution)


@given(st.lists(scales, min_size=7, max_size=7))
@settings(max_examples=30, deadline=None)
def test_scale_file_round_trips_exactly(values: list[float]) -> None:
    scale_A = torch.tensor(values, dtype=torch.float32)
    content = write_scale(scale_A)
    assert torch.equal(torch.tensor(json.loads(content)["scale"], dtype=torch.float32), scale_A)
    assert content == write_scale(scale_A.clone())


def test_scale_file_is_read_back(tmp_path: Path) -> None:
    config = tiny_config()
    assert torch.equal(read_scale(tmp_path, config), initial_scale(config))
    # A trained scale is clamped to the bounds in float32, and must still be usable.
    scale_A = torch.tensor([0.0, 9.0, 0.05, 0.1, 1 / 3, 1.0, 0.7]).clamp(SMALLEST, LARGEST)
    (tmp_path / FILE_NAME).write_bytes(write_scale(scale_A))
    assert torch.equal(read_scale(tmp_path, config), scale_A)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[1]",
        b'{"scale": null}',
        b'{"scale": 0.1}',
        b'{"other": [0.1]}',
        b'{"scale": [0.1, 0.1]}',
        b'{"scale": [0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]}',
        b'{"scale": [-0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]}',
        b'{"scale": [NaN, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]}',
        b'{"scale": [Infinity, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]}',
        b'{"scale": [1e9, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]}',
        b'{"scale": [1' + b"0" * 400 + b", 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]}",
        b'{"scale": ["0.1", 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]}',
        b'{"scale": [true, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]}',
    ],
)
def test_unusable_scale_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(AdapterError, match=r"action_scale\.json"):
        read_scale(tmp_path, tiny_config())
