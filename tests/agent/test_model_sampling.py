import numpy as np
import pytest
import torch

from agent.model.sampling import gumbel_noise, sample_tokens, token_entropy, token_logprobs


def test_noise_is_a_function_of_its_key_alone() -> None:
    first = gumbel_noise(1, 2, 3, (5, 7, 16))
    gumbel_noise(9, 9, 9, (4,))
    np.testing.assert_array_equal(first, gumbel_noise(1, 2, 3, (5, 7, 16)))
    for key in ((0, 2, 3), (1, 0, 3), (1, 2, 4), (2, 1, 3)):
        other = gumbel_noise(*key, (5, 7, 16))
        assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.2
        assert not np.intersect1d(first, other).size


def test_noise_values_are_pinned() -> None:
    # A change here breaks the replay of recorded runs.
    expected = [0.0839821, 2.1363165, -0.482062]
    np.testing.assert_allclose(gumbel_noise(7, 11, 13, (3,)), expected, rtol=1e-6)


def test_noise_is_standard_gumbel() -> None:
    noise = gumbel_noise(0, 0, 0, (200_000,))
    assert np.isfinite(noise).all()
    assert noise.dtype == np.float32
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.02)
    assert noise.var() == pytest.approx(np.pi**2 / 6, abs=0.04)


@pytest.mark.parametrize("key", [(-1, 0, 0), (0, -1, 0), (0, 0, -1), (2**64, 0, 0)])
def test_bad_keys_are_refused(key: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="must be in"):
        gumbel_noise(*key, (2,))


def test_sampling_follows_the_tempered_softmax() -> None:
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0])
    temperature = 1.6
    noise = torch.from_numpy(gumbel_noise(3, 1, 0, (40_000, 4)))
    tokens = sample_tokens(logits.expand(40_000, 4), temperature, noise)
    frequency = torch.bincount(tokens, minlength=4) / 40_000
    expected = torch.softmax(logits / temperature, 0)
    torch.testing.assert_close(frequency, expected, atol=0.01, rtol=0)


def test_logprobs_and_entropy_agree_with_categorical() -> None:
    logits = torch.randn(2, 3, 4, 9, generator=torch.Generator().manual_seed(0))
    tokens = logits.argmax(-1)
    for temperature, used in ((0.7, 0.7), (1.6, 1.6), (0.0, 1.0)):
        reference = torch.distributions.Categorical(logits=logits / used)
        torch.testing.assert_close(
            token_logprobs(logits, tokens, temperature), reference.log_prob(tokens)
        )
        torch.testing.assert_close(token_entropy(logits, temperature), reference.entropy())


def test_temperature_zero_is_greedy_and_errors_are_clear() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    assert sample_tokens(logits, 0.0).tolist() == [1]
    with pytest.raises(ValueError, match="needs noise"):
        sample_tokens(logits, 1.0)
    with pytest.raises(ValueError, match=">= 0"):
        sample_tokens(logits, -1.0)
