"""Statistics of a LeRobot data set's features, exact and in one pass over the pictures."""

from __future__ import annotations

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
Statistics = dict[str, list]


def number_statistics(values_ND: np.ndarray) -> Statistics:
    """min, max, mean, std, quantiles of every dimension, each [D], and count [1]."""
    values = values_ND.astype(np.float64)
    return {
        "min": values.min(0).tolist(),
        "max": values.max(0).tolist(),
        "mean": values.mean(0).tolist(),
        "std": values.std(0).tolist(),
        "count": [len(values)],
        **{name: np.quantile(values, q, axis=0).tolist() for name, q in QUANTILES.items()},
    }


def pixel_counts(image: np.ndarray) -> np.ndarray:
    """How many pixels of u8[H, W, 3] have each value, i64[3, 256]."""
    return np.stack([np.bincount(image[..., c].ravel(), minlength=256) for c in range(3)])


def picture_statistics(counts_CV: np.ndarray, frames: int) -> Statistics:
    """The same of pictures scaled to [0, 1], each [3, 1, 1], from their summed `pixel_counts`."""
    values = np.arange(256) / 255
    share_CV = counts_CV / counts_CV.sum(1, keepdims=True)
    mean_C = share_CV @ values
    below_CV = np.cumsum(share_CV, axis=1)
    found = {
        "min": values[(counts_CV > 0).argmax(1)],
        "max": values[255 - (counts_CV[:, ::-1] > 0).argmax(1)],
        "mean": mean_C,
        "std": np.sqrt(np.maximum(share_CV @ values**2 - mean_C**2, 0.0)),
        # Rounding may leave the sum just below the quantile.
        **{name: values[(below_CV >= q - 1e-12).argmax(1)] for name, q in QUANTILES.items()},
    }
    shaped = {name: array.reshape(3, 1, 1).tolist() for name, array in found.items()}
    return {**shaped, "count": [frames]}
