"""A camera's picture in the size that the policy wants."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from sim_bridge.robot import BridgeError


def fit_picture(name: str, picture: np.ndarray, size: int) -> np.ndarray:
    """u8[H, W, 3] to u8[size, size, 3]: each pixel the mean of what it covers.

    The whole picture is kept and squeezed into the square, as OpenVLA's demonstrations are. Raises
    BridgeError for what is no such picture.
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise BridgeError(
            f"camera {name}: expected uint8 [H, W, 3], got {picture.dtype}{list(picture.shape)}"
        )
    height, width, _ = picture.shape
    if (height, width) == (size, size):
        return np.ascontiguousarray(picture)
    rows = _mean(picture, size)
    fitted = _mean(rows.transpose(1, 0, 2), size).transpose(1, 0, 2)
    return np.ascontiguousarray(np.clip(np.rint(fitted), 0, 255).astype(np.uint8))


def _mean(picture: np.ndarray, size: int) -> np.ndarray:
    """The first axis in `size` parts, f32: a few products a pixel, not a matrix of mostly zeros."""
    places, shares = _cover(len(picture), size)
    fitted = np.zeros((size, *picture.shape[1:]), np.float32)
    for k in range(places.shape[1]):
        fitted += picture[places[:, k]] * shares[:, k, None, None]
    return fitted


@lru_cache(maxsize=16)
def _cover(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each of `size` equal parts, the pixels it lies on, i64[size, k], and how much, f32."""
    edges = np.linspace(0, length, size + 1)
    most = int(np.ceil(length / size)) + 1  # pixels under one part
    pixels = np.floor(edges[:-1, None]).astype(np.int64) + np.arange(most)
    starts = np.maximum(edges[:-1, None], pixels)
    ends = np.minimum(edges[1:, None], pixels + 1)
    shares = np.maximum(0.0, ends - starts) * (size / length)
    return np.minimum(pixels, length - 1), shares.astype(np.float32)
