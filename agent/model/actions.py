"""Action tokens <-> robot actions, numpy only. Every output transform sits beside its inverse.

A token here is an index 0..V-1 into the action bins, ascending in vocabulary id. The published
numbering runs backwards: the highest id is the lowest action. There are V bin edges on [-1, 1]
but V - 1 centres, so the two lowest ids decode alike.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

EPSILON = 1e-8


def bin_centres(n_bins: int) -> np.ndarray:
    """Centres between the `n_bins` edges of linspace(-1, 1), float64 (n_bins - 1,)."""
    edges = np.linspace(-1.0, 1.0, n_bins)
    return (edges[:-1] + edges[1:]) / 2.0


def encode_actions(actions: np.ndarray, n_bins: int) -> np.ndarray:
    """Normalised actions (any shape, clipped to [-1, 1]) to tokens int64 0..n_bins-1."""
    edges = np.linspace(-1.0, 1.0, n_bins)
    return n_bins - np.digitize(np.clip(actions, -1.0, 1.0), edges)


def decode_tokens(tokens: np.ndarray, n_bins: int) -> np.ndarray:
    """Tokens 0..n_bins-1 to normalised actions in (-1, 1), float64."""
    return bin_centres(n_bins)[np.clip(n_bins - 1 - np.asarray(tokens), 0, n_bins - 2)]


@dataclass(frozen=True)
class Quantiles:
    """Per-dimension 1% and 99% quantiles of a dataset; unmasked dimensions pass unchanged."""

    q01: np.ndarray
    q99: np.ndarray
    mask: np.ndarray

    def __post_init__(self) -> None:
        if not self.q01.shape == self.q99.shape == self.mask.shape or self.q01.ndim != 1:
            raise ValueError(
                f"q01, q99 and mask must be vectors of one length, got {self.q01.shape}, "
                f"{self.q99.shape}, {self.mask.shape}"
            )
        if not (np.isfinite(self.q01).all() and np.isfinite(self.q99).all()):
            raise ValueError("q01 and q99 must be finite")

    @classmethod
    def from_stats(
        cls, norm_stats: dict[str, Any], unnorm_key: str, modality: str = "action"
    ) -> "Quantiles":
        """Statistics of one dataset; `unnorm_key` falls back to `{unnorm_key}_no_noops`.

        Raises:
            KeyError: unknown key or modality; the message lists what there is.
        """
        for key in (unnorm_key, f"{unnorm_key}_no_noops"):
            if key in norm_stats:
                break
        else:
            raise KeyError(f"unnorm_key {unnorm_key!r} is not in {sorted(norm_stats)}")
        if modality not in norm_stats[key]:
            raise KeyError(f"norm_stats[{key!r}] lacks {modality!r}: {sorted(norm_stats[key])}")
        stats = norm_stats[key][modality]
        q01 = np.asarray(stats["q01"], dtype=np.float64)
        mask = np.asarray(stats.get("mask", np.ones(q01.shape, dtype=bool)), dtype=bool)
        return cls(q01, np.asarray(stats["q99"], dtype=np.float64), mask)

    def normalise(self, values: np.ndarray) -> np.ndarray:
        """(..., D) in dataset units to [-1, 1] between the quantiles, not clipped."""
        span = self.q99 - self.q01 + EPSILON
        return np.where(self.mask, 2.0 * (values - self.q01) / span - 1.0, values)

    def unnormalise(self, values: np.ndarray) -> np.ndarray:
        """Inverse of `normalise`: (..., D) in [-1, 1] to dataset units."""
        span = self.q99 - self.q01 + EPSILON
        return np.where(self.mask, 0.5 * (values + 1.0) * span + self.q01, values)


def normalise_proprio(proprio: np.ndarray, quantiles: Quantiles) -> np.ndarray:
    """(..., P) robot state in dataset units to float32, clipped to [-1, 1]."""
    return np.clip(quantiles.normalise(proprio), -1.0, 1.0).astype(np.float32)


def gripper_to_env(gripper: np.ndarray) -> np.ndarray:
    """Dataset gripper (1 open .. 0 closed) to the environment's command: -1 open, +1 close."""
    return -np.sign(2.0 * np.asarray(gripper) - 1.0)


def gripper_to_dataset(command: np.ndarray) -> np.ndarray:
    """Inverse of `gripper_to_env` for the commands -1 and +1."""
    return (1.0 - np.asarray(command)) / 2.0


def tokens_to_env_actions(tokens: np.ndarray, quantiles: Quantiles, n_bins: int) -> np.ndarray:
    """Tokens (..., A) to environment actions float64 (..., A); the last dimension is the gripper.

    The policy decodes the gripper in [-1, 1] where the dataset has 0..1: like the reference,
    unmasked dimensions are read as they are.
    """
    actions = quantiles.unnormalise(decode_tokens(tokens, n_bins))
    actions[..., -1] = gripper_to_env(actions[..., -1])
    return actions


def env_actions_to_tokens(actions: np.ndarray, quantiles: Quantiles, n_bins: int) -> np.ndarray:
    """Inverse of `tokens_to_env_actions` up to bin width: (..., A) to int64 tokens."""
    dataset = np.array(actions, dtype=np.float64)
    dataset[..., -1] = gripper_to_dataset(dataset[..., -1])
    return encode_actions(quantiles.normalise(dataset), n_bins)
