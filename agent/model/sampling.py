"""Actions from the network's output: sampling whose noise is a pure function of its key.

Noise comes from numpy's Philox bit stream (stable across numpy versions), so a sample does not
depend on batch composition, arrival order or restarts.
"""

import numpy as np
import torch
from torch import Tensor


def gumbel_noise(
    run_seed: int, slot_id: int, step_index: int, shape: tuple[int, ...]
) -> np.ndarray:
    """Standard Gumbel noise, float32 of `shape`, the same for the same key on every machine.

    Raises:
        ValueError: a key part is negative or does not fit 64 bits.
    """
    uniform = _uniform(run_seed, slot_id, step_index, shape)
    return (-np.log(-np.log(uniform))).astype(np.float32)


def laplace_noise(
    run_seed: int, slot_id: int, step_index: int, shape: tuple[int, ...]
) -> np.ndarray:
    """Standard Laplace noise (mean 0, scale 1), otherwise as `gumbel_noise`."""
    centred = _uniform(run_seed, slot_id, step_index, shape) - 0.5
    return (-np.sign(centred) * np.log1p(-2.0 * np.abs(centred))).astype(np.float32)


def _uniform(run_seed: int, slot_id: int, step_index: int, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform on the open interval (0, 1), float64."""
    for name, value in (("run_seed", run_seed), ("slot_id", slot_id), ("step_index", step_index)):
        if not 0 <= value < 2**64:
            raise ValueError(f"{name} must be in 0..2^64-1, got {value}")
    key = np.array([run_seed, slot_id], dtype=np.uint64)
    # Word 3 of the counter is the step: the stream of one step never reaches the next one's.
    counter = np.array([0, 0, 0, step_index], dtype=np.uint64)
    raw = np.random.Philox(key=key, counter=counter).random_raw(int(np.prod(shape)))
    return (((raw >> np.uint64(11)) + 0.5) * 2.0**-53).reshape(shape)


def sample_tokens(
    logits_BKAV: Tensor, temperature: float, noise_BKAV: Tensor | None = None
) -> Tensor:
    """Action tokens 0..V-1, int64 (B, K, A): Gumbel-max at `temperature`, greedy at 0.

    Raises:
        ValueError: negative temperature, or sampling without noise.
    """
    if temperature < 0:
        raise ValueError(f"temperature must be >= 0, got {temperature}")
    if temperature == 0:
        return logits_BKAV.argmax(-1)
    if noise_BKAV is None:
        raise ValueError(f"temperature {temperature} needs noise of the logits' shape, got none")
    return (logits_BKAV / temperature + noise_BKAV).argmax(-1)


def token_logprobs(logits_BKAV: Tensor, tokens_BKA: Tensor, temperature: float) -> Tensor:
    """Log-probability [nats] of each token under softmax(logits / T), (B, K, A).

    At T = 0 the log-probability at T = 1 is reported: a point mass has no useful one.
    """
    logprobs = torch.log_softmax(logits_BKAV / (temperature or 1.0), dim=-1)
    return logprobs.gather(-1, tokens_BKA.unsqueeze(-1)).squeeze(-1)


def token_entropy(logits_BKAV: Tensor, temperature: float) -> Tensor:
    """Entropy [nats] of softmax(logits / T) over the action bins, (B, K, A)."""
    logprobs = torch.log_softmax(logits_BKAV / (temperature or 1.0), dim=-1)
    return -(logprobs.exp() * logprobs).sum(-1)
